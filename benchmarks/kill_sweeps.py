"""Do sweeps whose processes are killed at random moments end as if nothing had happened?

    python -m benchmarks.kill_sweeps [20]

sweeps over the pairs of a task once undisturbed, in one process. Then it does the same work under
torchrun with two processes, kills one of them (SIGKILL) again and again at moments drawn at random,
and starts the job again until the folder is whole. Both folders must hold the same files, bit for
bit, and nothing half-written. torchrun itself starts killed processes again, up to a limit.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORK = "name_recall --count 60 --model names --sites resid_post,z --output".split()
MODULE = ["-m", "mingpt.interpretability.sweeps"]
LAUNCHER = "-m torch.distributed.run --standalone --nproc-per-node=2 --max-restarts=2".split()


def start(output, launcher=()):
    """The process of the work, into a folder."""
    command = [sys.executable, *launcher, *MODULE, *WORK, str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def workers(process):
    """The processes that torchrun has started."""
    listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    return [int(number) for number in listed.stdout.split()]


def shards(folder):
    """The names of the shards that are whole."""
    return {path.name for path in (folder / "shards").glob("[0-9]*")}


def wait_for_more(folder, process):
    """Wait until there is another shard than now, or the process has ended."""
    before = shards(folder)
    while shards(folder) == before and process.poll() is None:
        time.sleep(0.002)


def kill_and_compare(root, kills, seed=0):
    """How many shards there were at each kill, a list. AssertionError if the folders differ."""
    undisturbed = Path(root) / "undisturbed"
    disturbed = Path(root) / "disturbed"
    assert start(undisturbed).wait() == 0
    rng = random.Random(seed)
    reached = []
    process = start(disturbed, LAUNCHER)
    while len(reached) < kills:
        wait_for_more(disturbed, process)
        # The work of a shard takes a part of a second.
        time.sleep(rng.random())
        running = workers(process)
        if running:
            os.kill(rng.choice(running), signal.SIGKILL)
            reached.append(len(shards(disturbed)))
        if process.poll() is not None:
            # All is done, or torchrun has given up. Half of the work is undone, so that it goes on.
            done = sorted(shards(disturbed))
            for name in rng.sample(done, len(done) // 2):
                (disturbed / "shards" / name).unlink()
            process = start(disturbed, LAUNCHER)
    process.wait()
    assert start(disturbed, LAUNCHER).wait() == 0
    compare(undisturbed, disturbed)
    return reached


def compare(undisturbed, disturbed):
    """AssertionError where the two folders are not the same, but for the pictures."""
    for folder in (undisturbed, disturbed):
        leftovers = list((folder / "shards").glob(".*"))
        assert not leftovers, f"parts of shards are left: {leftovers}"
    names = {path.relative_to(undisturbed) for path in undisturbed.rglob("*") if path.is_file()}
    for name in sorted(names):
        if name.suffix != ".png":
            same = (undisturbed / name).read_bytes() == (disturbed / name).read_bytes()
            assert same, f"{name} differs"


def main():
    """The command line: prints when the processes were killed, or ends with an AssertionError."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as root:
        reached = kill_and_compare(root, kills)
    print(f"killed {len(reached)} times, with {reached} shards whole: the same files")


if __name__ == "__main__":
    main()
