"""How fast are the sweeps, beside other ways to the same numbers, and beside the machine's limit?

    python -m benchmarks.speed [--output benchmark.csv] [--rounds 3] [--threads 2]

GPT-2-small shapes, random weights, fp32, CPU. In each round every way runs once, and before each of
them the sweep; medians are shown. The limit is the floating-point work that a sweep needs, over
the rate of a large fp32 matrix product measured in between: what a program could reach that does
nothing but multiply. transformers, TransformerLens and nnsight take part where they are installed
(benchmarks/peers.py); --train is benchmarks/train_speed.py.
"""

import argparse
import csv
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.peers import CLEAN, CORRUPTED, C, H, L, V, installed_peers
from benchmarks.train_speed import train_beside_transformers
from experiments.train import PRESETS
from mingpt import pretrained
from mingpt.config import GPTConfig
from mingpt.interpretability.ablation import ablate_component, ablate_heads
from mingpt.interpretability.activation_patching import patch_layers, patch_loop
from mingpt.model import GPT
from mingpt.sites import Patch

COLUMNS = ("case", "way", "seconds", "times the sweep", "times the limit")
# It has random weights of its own, so its table is another.
OWN_WEIGHTS = "transformer_lens, HookedTransformer"
# Seconds; of a way that takes longer, one round is enough.
SLOW = 30


@dataclass
class Case:
    """One question, and the ways to answer it; "sweep" is this package's."""

    name: str
    work: float  # floating-point operations that it needs
    ways: dict[str, Callable]


@dataclass
class Timing:
    """What running a Case gave."""

    seconds: dict[str, float]  # of each way, the median
    limit: float  # seconds
    results: dict  # what each way returned


def make_pair(T, position):
    """Ids (1,T) twice, clean and corrupted, different at the position.

    The same ones in every run of this program.
    """
    clean = torch.randint(V, (1, T), generator=torch.Generator().manual_seed(T))
    corrupted = clean.clone()
    clean[0, position] = CLEAN
    corrupted[0, position] = CORRUPTED
    return clean, corrupted


def sweep_work(T, first, heads=1):
    """Floating-point operations of a residual sweep; with heads, of one over all heads' z.

    first: the first position that is patched. A product of (n,a) @ (a,b) is 2nab; a block costs
    24 C^2 a token and 4 C a pair of query and key.
    """
    base_runs = 2 * L * (24 * C * C * T + 2 * C * T * T)
    work = 0
    for p in range(first, T):
        for blocks_above in range(L):
            work += heads * patch_work(T, p, blocks_above)
            if heads > 1:
                # The head's own output, and the MLP of its token.
                work += heads * (16 * C * C + 2 * C * C / H)
    return base_runs + work


def patch_work(T, p, blocks_above):
    """Floating-point operations of the rest of a run that is patched at position p.

    They are those of mingpt.interpretability.partial_runs: only the tokens from p on are computed.
    """
    n = T - p
    pairs = sum(range(p + 1, T + 1))
    block = 24 * C * C * n + 4 * C * pairs
    # Right of p, queries, keys and values are still those of the base run.
    first_block = block - 6 * C * C * (n - 1)
    # Keys and values of all tokens, the rest of the last one.
    last_block = 4 * C * C * n + 20 * C * C + 4 * C * T
    work = 0
    if blocks_above >= 1:
        work += last_block
    if blocks_above >= 2:
        work += first_block + (blocks_above - 2) * block
    return work


def ablation_work(T):
    """The same for ablating all heads one by one, with the loss at every token.

    Every block is computed for all tokens, and the output matrix too, which is about half of it.
    """
    block = 24 * C * C * T + 2 * C * T * T
    output = 2 * C * V * (T - 1)
    own = 16 * C * C * T + 2 * C * C / H * T
    work = L * block + output
    for blocks_above in range(L):
        work += H * (own + blocks_above * block + output)
    return work


def matrix_rate():
    """Floating-point operations a second of a large fp32 product, the median of five."""
    a = torch.randn(2048, 3072)
    b = torch.randn(3072, 3072)
    a @ b  # the first one also starts the threads
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * 2048 * 3072 * 3072 / statistics.median(times)


def patch_heads_one_by_one(model, clean, corrupted):
    """The loop for the sweep over z: a forward per head and position."""
    with torch.no_grad():
        model(clean, store_activations=["z"])
        z = model.activations["z"]
        for layer in range(L):
            for head in range(H):
                for p in range(clean.size(1)):
                    model(corrupted, patch_params=Patch(layer, p, z[layer][:, head, p], "z", head))


def ablate_heads_one_by_one(model, clean):
    """The loop for the ablation of all heads."""
    for layer in range(L):
        for head in range(H):
            ablate_component(model, clean, (layer, "head", head))


def patch_sweep(model, clean, corrupted, **options):
    """The table of logit differences, as the other libraries' sweeps give it."""
    return patch_layers(model, clean, corrupted, CLEAN, CORRUPTED, **options).logit_diff


def make_cases(model, folder):
    """[Case, ...], quick ones first. folder: the same model's files, for the other libraries.

    The first differing token is early, so that little can be left out left of it.
    """
    peers = installed_peers(folder)
    cases = []
    for T, first in ((11, 1), (64, 5), (256, 5)):
        pair = make_pair(T, first)
        ways = {"sweep": partial(patch_sweep, model, *pair)}
        # The rest would take hours at T=256.
        if T <= 64:
            ways["loop over patch_params"] = partial(patch_loop, model, *pair, CLEAN, CORRUPTED)
            ways |= {name: partial(sweep, *pair) for name, sweep in peers.items()}
        cases.append(Case(f"residual stream, T={T}", sweep_work(T, first), ways))
    pair = make_pair(11, 1)
    ways = {
        "sweep": partial(patch_sweep, model, *pair, site="z"),
        "loop over patch_params": partial(patch_heads_one_by_one, model, *pair),
    }
    cases.append(Case("every head's z, T=11", sweep_work(11, 1, H), ways))
    ways = {
        "sweep": partial(ablate_heads, model, pair[0]),
        "loop over patch_params": partial(ablate_heads_one_by_one, model, pair[0]),
    }
    cases.append(Case("all heads ablated, T=11", ablation_work(11), ways))
    return cases


def run_case(case, rounds):
    """The Timing of a case. Rounds interleave the ways, so that a slower minute meets them all."""
    seconds = defaultdict(list)
    limits = []
    results = {}
    for number in range(rounds):
        for way in case.ways:
            if number and seconds[way][0] > SLOW:
                continue
            limits.append(case.work / matrix_rate())
            # The sweep runs beside every other way, so that both meet the machine in one state.
            for name in dict.fromkeys(("sweep", way)):
                start = time.perf_counter()
                results[name] = case.ways[name]()
                seconds[name].append(time.perf_counter() - start)
    medians = {way: statistics.median(seconds[way]) for way in case.ways}
    return Timing(medians, statistics.median(limits), results)


def rows_of(case, timing):
    """[(case, way, seconds, times the sweep, times the limit), ...], texts; the limit is last."""
    rows = []
    for way, seconds in timing.seconds.items():
        times_sweep = f"{seconds / timing.seconds['sweep']:.1f}"
        times_limit = f"{seconds / timing.limit:.2f}"
        rows.append((case.name, way, f"{seconds:.3f}", times_sweep, times_limit))
    limit_name = f"limit, {case.work / 1e9:.0f} GFLOP"
    rows.append((case.name, limit_name, f"{timing.limit:.3f}", "", "1"))
    return rows


def print_differences(results):
    """A line for each way whose table can be compared with the sweep's."""
    for way, table in results.items():
        if way not in ("sweep", OWN_WEIGHTS) and isinstance(table, torch.Tensor):
            difference = (table - results["sweep"]).abs().max().item()
            print(f"{'':26}{way}: off by {difference:.1e}")


def run_cases(options, model, folder):
    """Run, print and write to a file the cases that the options name."""
    table = [COLUMNS]
    for case in make_cases(model, folder):
        if options.only not in case.name:
            continue
        timing = run_case(case, options.rounds)
        rows = rows_of(case, timing)
        for row in rows:
            print("{:26}{:37}{:>8}{:>17}{:>17}".format(*row), flush=True)
        print_differences(timing.results)
        table += rows
    with open(options.output, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table)
    print(f"Wrote {options.output}.")


def measure_memory(model):
    """MB by which the T=256 sweep raises the peak memory of a process that has run the model."""
    clean, corrupted = make_pair(256, 5)
    with torch.no_grad():
        model(corrupted)
    before = peak_memory()
    patch_sweep(model, clean, corrupted)
    return peak_memory() - before


def peak_memory():
    """The most memory that this process has used, in MB, as Linux counts it."""
    # getrusage's figure would take over the parent process's.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def measure_start(folder):
    """Seconds that the script takes on a model folder, above importing torch and pyplot.

    Medians of 5 runs each.
    """
    script = Path(__file__).resolve().parent.parent / "interpretability.py"
    commands = {
        "import": ["-c", "import torch, matplotlib.pyplot"],
        "script": [script, "--model", folder],
    }
    seconds = defaultdict(list)
    with tempfile.TemporaryDirectory() as empty:
        for way in list(commands) * 5:
            command = [sys.executable, *commands[way]]
            start = time.perf_counter()
            subprocess.run(command, cwd=empty, check=True, stdout=subprocess.DEVNULL)
            seconds[way].append(time.perf_counter() - start)
    return statistics.median(seconds["script"]) - statistics.median(seconds["import"])


def read_options():
    """The command line's."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", default="benchmark.csv")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=2)
    add("--only", default="", help="only the cases with this in their name")
    add("--memory", metavar="FOLDER", help="only the memory of the T=256 sweep on this model")
    add("--start", metavar="FOLDER", help="only the start-up of the script on this model")
    add("--train", choices=PRESETS, help="only the speed of training, beside transformers'")
    return parser.parse_args()


def main():
    """The command line: everything, or the one measurement that is asked for."""
    options = read_options()
    torch.set_num_threads(options.threads)
    if options.train:
        train_beside_transformers(options.train, options.rounds)
    elif options.start:
        seconds = measure_start(Path(options.start).resolve())
        print(f"the script takes {seconds:.2f} s more than its imports, the sweep included")
    elif options.memory:
        megabytes = measure_memory(GPT.from_pretrained(options.memory))
        print(f"{megabytes:.0f} MB above the model at the peak of T=256")
    else:
        compare_ways(options)


def compare_ways(options):
    """Run the cases on a new model, and measure the memory."""
    torch.manual_seed(0)
    sizes = {"n_layer": L, "n_head": H, "n_embd": C, "vocab_size": V, "block_size": 1024}
    with tempfile.TemporaryDirectory() as folder:
        pretrained.save(GPT(GPTConfig(**sizes, tie_word_embeddings=True)), folder)
        run_cases(options, GPT.from_pretrained(folder), folder)
        # In a process of its own: a peak never falls.
        command = ["-m", "benchmarks.speed", "--threads", str(options.threads), "--memory", folder]
        subprocess.run([sys.executable, *command], check=True)


if __name__ == "__main__":
    main()
