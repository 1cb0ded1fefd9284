"""Does a training run that is killed at random moments end as if nothing had happened?

    python -m benchmarks.kill_training [20]

trains a tiny model once undisturbed, then once more, killed (SIGKILL) so many times at moments
drawn at random and started again each time. Both must end with the same weights, bit for bit, the
same losses and the same kept models, and leave nothing half-written.
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
# A checkpoint every few milliseconds, so that kills fall into the writing of one too.
OPTIONS = (
    "--n-layer 2 --n-head 3 --n-embd 21 --block-size 16 --batch-size 4 --vocab-size 257 "
    "--dropout 0.1 --checkpoint-interval 2 --kept 5 --device cpu"
)


def start(folder, steps):
    """The process of a run in folder/run, on the text in the folder; it goes on where one was."""
    command = [sys.executable, "-m", "experiments.train", str(folder / "text.txt")]
    command += ["--output", str(folder / "run"), "--max-iters", str(steps), *OPTIONS.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def losses(folder):
    """The rows of curve.csv without the time, which differs from run to run."""
    with open(folder / "run" / "curve.csv", newline="", encoding="utf-8") as file:
        return [row[:2] + row[3:] for row in csv.reader(file)]


def newest_step(folder):
    """The step of the newest checkpoint; -1 if there is none."""
    return max(steps_in(folder / "run"), default=-1)


def wait_for_more(folder, step, process):
    """Wait until there is another checkpoint than that of this step, or the process has ended."""
    while newest_step(folder) == step and process.poll() is None:
        time.sleep(0.002)


def kill_and_compare(root, kills, seed=0):
    """How far each killed process had come, a list of steps.

    root: an empty folder for both runs. AssertionError if they do not end alike.
    """
    steps = 40 * kills
    undisturbed = Path(root) / "undisturbed"
    disturbed = Path(root) / "disturbed"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
        (folder / "text.txt").write_text(TEXT)
    seconds = run_undisturbed(undisturbed, steps)
    # Each process lives a part of its share: kills fall anywhere, and the run never ends by itself.
    longest = 0.8 * seconds / kills
    rng = random.Random(seed)
    reached = []
    while len(reached) < kills:
        before = newest_step(disturbed)
        process = start(disturbed, steps)
        # One in five may be killed before it has come any further.
        if len(reached) % 5 != 1:
            wait_for_more(disturbed, before, process)
        time.sleep(longest * rng.random())
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run had ended before it could be killed"
        reached.append(newest_step(disturbed))
    assert start(disturbed, steps).wait() == 0
    compare(undisturbed, disturbed)
    return reached


def run_undisturbed(folder, steps):
    """Seconds that the run takes from its first checkpoint to its end."""
    process = start(folder, steps)
    # Python's own start takes longer than all the training.
    wait_for_more(folder, -1, process)
    began = time.monotonic()
    assert process.wait() == 0
    return time.monotonic() - began


def compare(undisturbed, disturbed):
    """AssertionError where what the two runs left is not the same.

    Compared are the models of all kept steps, bit for bit, and the measured losses, digit by digit.
    """
    models = steps_in(undisturbed / "run")
    others = steps_in(disturbed / "run")
    assert models.keys() == others.keys()
    for step, folder in models.items():
        weights = GPT.from_pretrained(folder).state_dict()
        other_weights = GPT.from_pretrained(others[step]).state_dict()
        for name, weight in weights.items():
            assert torch.equal(weight, other_weights[name]), f"{name} of step {step} differs"
    assert losses(undisturbed) == losses(disturbed)
    leftovers = list((disturbed / "run").glob(".step-*"))
    assert not leftovers, f"parts of checkpoints are left: {leftovers}"


def main():
    """The command line: prints where the run was killed, or ends with an AssertionError."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as root:
        reached = kill_and_compare(root, kills)
    outcome = "the same weights, losses and kept models"
    print(f"killed {len(reached)} times, at steps {reached}: {outcome}")


if __name__ == "__main__":
    main()
