"""How many pairs a second does a sweep over a file do, in one process and in two?

    python -m benchmarks.many_pairs [--pairs 100] [--model-type gpt2] [--memory 10000]

writes random pairs of 11 tokens that differ in the second one, and a model with the type's shapes
and random weights, and sweeps over resid_post three ways: one process with one thread, one process
with two, and two processes of torchrun with one thread each. What a start costs is measured by
starting again when all is done, and taken off. --memory instead compares the peak memory of a
process for 100 pairs with that for so many.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from mingpt import pretrained
from mingpt.common import command_parser, run_command
from mingpt.interpretability.pairs import Pair, write_pairs
from mingpt.model import GPT, GPTConfig

TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node=2".split()
WAYS = {
    "1 process, 1 thread": (1, []),
    "1 process, 2 threads": (2, []),
    "2 processes, 1 thread each": (1, TORCHRUN),
}
T = 11


def make_work(folder, count, model_type):
    """Write the model and a file of pairs into the folder."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50257, "block_size": 1024, "tie_word_embeddings": True}
    model = GPT(GPTConfig(model_type=model_type, **sizes)).eval()
    pretrained.save(model, folder / "model")
    write_random_pairs(folder / "pairs.jsonl", count)


def write_random_pairs(path, count):
    clean = torch.randint(50257, (count, T))
    corrupted = clean.clone()
    corrupted[:, 1] = (clean[:, 1] + 1) % 50257
    rows = zip(clean.tolist(), corrupted.tolist())
    pairs = [Pair(first, second, first[1], second[1]) for first, second in rows]
    write_pairs(pairs, path)


def sweep(folder, output, threads, launcher):
    """Seconds of a whole sweep over the file in the folder."""
    command = [sys.executable, *launcher, "-m", "mingpt.interpretability.sweeps"]
    command += [str(folder / "pairs.jsonl"), "--model", str(folder / "model")]
    # A random model is wrong on half of the pairs; they take the same time.
    command += ["--failures", "keep", "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def compare(options):
    """Print the rates, or the memory."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        make_work(folder, options.pairs, options.model_type)
        if options.memory:
            print_memory(folder, options.memory)
            return
        for number, (way, (threads, launcher)) in enumerate(WAYS.items()):
            output = folder / str(number)
            whole = sweep(folder, output, threads, launcher)
            start = sweep(folder, output, threads, launcher)
            rate = options.pairs / (whole - start)
            print(f"{way:28}{rate:8.2f} pairs/s; a start takes {start:.1f} s", flush=True)


def print_memory(folder, many):
    """Print the peak of a process with few pairs, then with many: the peak of both only grows."""
    for count in (100, many):
        write_random_pairs(folder / "pairs.jsonl", count)
        sweep(folder, folder / f"memory {count}", 2, [])
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"{count} pairs: {peak:.0f} MB", flush=True)


def main(arguments=None):
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--model-type", default="gpt2", help="the shapes; default: %(default)s")
    parser.add_argument("--memory", type=int, help="how many pairs to compare with 100")
    return run_command(compare, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
