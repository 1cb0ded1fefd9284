"""Does a training run that is killed at random moments end as if nothing had happened?

    python -m benchmarks.kill_training [20]

trains a tiny model once undisturbed, then once more, killed (SIGKILL) so many times at moments drawn at random and
started again each time. Both must end with the same weights, bit for bit, the same losses and the same kept models.
"""

import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from mingpt.hub import steps_in
from mingpt.model import GPT

TEXT = "".join(f"{n} times {n} is {n * n}, and {n} more makes {n * n + n}.\n" for n in range(600))
OPTIONS = (
    (
        "--n-layer 2 --n-head 3 --n-embd 21 --block-size 16 --batch-size 4 --vocab-size 257 --dropout 0.1 "
        "--checkpoint-interval 2 --kept 5 --device cpu"  # a checkpoint every few milliseconds: kills fall into them too
    ).split()
)


def start(folder, steps):
    command = [
        sys.executable,
        "-m",
        "experiments.train",
        str(folder / "text.txt"),
        "--output",
        str(folder / "run"),
    ]
    command += [*OPTIONS, "--max-iters", str(steps)]
    return subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )


def losses(folder):
    """curve.csv without the time."""
    with open(folder / "run" / "curve.csv", newline="", encoding="utf-8") as file:
        return [row[:2] + row[3:] for row in csv.reader(file)]


def newest(folder):
    return max(steps_in(folder / "run"), default=-1)


def wait_for_more(folder, step, process):
    while newest(folder) == step and process.poll() is None:
        time.sleep(0.002)


def kill_and_compare(root, kills, seed=0):
    """How far each killed process had come, a list of steps; AssertionError where the two runs differ."""
    rng, reached, steps = random.Random(seed), [], 40 * kills
    undisturbed, disturbed = Path(root) / "undisturbed", Path(root) / "disturbed"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
        (folder / "text.txt").write_text(TEXT)
    process = start(undisturbed, steps)
    wait_for_more(undisturbed, -1, process)
    began = time.monotonic()
    assert process.wait() == 0
    longest = (
        0.8 * (time.monotonic() - began) / kills
    )  # so that the kills fall anywhere in the run, and it never ends
    while len(reached) < kills:
        process, before = start(disturbed, steps), newest(disturbed)
        if len(reached) % 5 != 1:  # some are killed before they have come any further
            wait_for_more(disturbed, before, process)
        time.sleep(longest * rng.random())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run had ended before it could be killed"
        reached.append(newest(disturbed))
    assert start(disturbed, steps).wait() == 0
    ours, theirs = steps_in(undisturbed / "run"), steps_in(disturbed / "run")
    assert ours.keys() == theirs.keys()
    for step, folder in ours.items():
        a, b = (GPT.from_pretrained(run).state_dict() for run in (folder, theirs[step]))
        assert all(torch.equal(a[name], b[name]) for name in a), f"the models of step {step} differ"
    assert losses(undisturbed) == losses(disturbed)
    return reached


def main():
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as root:
        reached = kill_and_compare(root, kills)
    print(
        f"killed {len(reached)} times, at steps {reached}: the same weights, losses and kept models"
    )


if __name__ == "__main__":
    main()
