"""How fast are the scores of edges, beside the machine's limit for the work that they need?

    python -m benchmarks.edges [--rounds 3] [--threads 2] [--only WORD] [--layers 12]

GPT-2-small's shapes, random weights, fp32, CPU; texts of 15 tokens that differ at the second one
alone. The limit is as in benchmarks/speed.py: the floating-point work that the scores need, over
the rate of a large matrix product measured in between. The exact scores of all edges are minutes of
work; with --layers 4 the model has 4 layers. The memory is what a process needs above the model
and a run of it.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.peers import CLEAN, CORRUPTED, C, H, V
from benchmarks.speed import SLOW, matrix_rate, peak_memory
from mingpt.config import GPTConfig
from mingpt.interpretability.circuits import find_circuit
from mingpt.interpretability.edges import edge_attribution
from mingpt.interpretability.graph import layout
from mingpt.interpretability.readout import answer_direction
from mingpt.interpretability.tasks import Batch
from mingpt.model import GPT

T = 15  # tokens of each text
FIRST = 1  # the position of the one that differs
N_PAIRS = 8  # of the gradient methods
STEPS = 5  # of eap-ig-inputs
THRESHOLD = 0.01  # of acdc; with 12 layers some 90 edges stay
D = C // H


@dataclass
class Case:
    """One question."""

    name: str
    answer: Callable
    work: Callable  # f(the answer): floating-point operations that it needs


def pairs_of_tokens(first):
    """How many pairs of a query and a key that it sees a text has, of queries from `first` on."""
    return sum(range(first + 1, T + 1))


def pass_work():
    """Floating-point operations of a text's run in one block.

    A product of (n,a) @ (a,b) is 2nab; a block costs 24 C^2 a token and 4 C a pair of query and
    key. So does its backward pass by the activations alone, but for the pairs, which cost twice.
    """
    return 24 * C * C * T + 4 * C * pairs_of_tokens(0)


def gradient_work(L, steps):
    """The same for the estimates of all edges' scores, of N_PAIRS."""
    runs = (1 + 2 * steps) * L * pass_work() + steps * L * 4 * C * pairs_of_tokens(0)
    # What each head writes, and the gradient by what each head's q, k and v read.
    ends = L * 2 * C * C * T + L * 6 * C * C * T
    edges = sum(3 * H * n + n + H for n in senders_below(L))
    products = 2 * C * T * edges
    return N_PAIRS * (runs + ends + products)


def senders_below(L):
    """[how many senders each layer's heads can read]."""
    return [1 + layer * (H + 1) for layer in range(L)]


def exact_work(L):
    """The same for the exact scores of all edges, of one pair; only tokens from FIRST on change."""
    n = T - FIRST
    pairs = pairs_of_tokens(FIRST)
    block = 24 * C * C * n + 4 * C * pairs
    # Keys and values of all tokens, the rest of the last one.
    last_block = 4 * C * C * n + 20 * C * C + 4 * C * T
    work = 2 * L * pass_work()
    for layer, senders in enumerate(senders_below(L)):
        blocks_above = L - 1 - layer
        above = max(0, blocks_above - 1) * block + min(1, blocks_above) * last_block
        # In the last layer, only the last token's MLP is read.
        tokens = n if blocks_above else 1
        mlp = 16 * C * C * tokens
        # For each sender all heads' queries, keys, values; and their attention, of the values half.
        work += senders * (6 * C * C * n + (4 + 4 + 2) * C * pairs)
        work += senders * 3 * H * (2 * C * D * tokens + mlp + above)
        work += (senders + H) * (mlp + above)
    return work


def acdc_work(graph, kept):
    """The same for acdc with one pair, which keeps the edges kept (R,S).

    Each edge to a node that is read is tried once: its reader is computed anew, and the readers
    that this comes to along kept edges.
    """
    n = T - FIRST
    mlp = 16 * C * C * n
    # One of a head's queries, keys and values; its attention and what it writes.
    role = 2 * C * D * n
    head = 4 * D * pairs_of_tokens(FIRST) + 2 * C * D * n
    work = 2 * graph.n_layer * pass_work()
    for reader, node in enumerate(graph.nodes):
        is_read = node == "logits" or kept[:, graph.senders.index(node)].any()
        if not is_read:
            continue
        reached = {reader}
        nodes = {node}
        for higher in range(reader + 1, len(graph.readers)):
            senders = [graph.senders.index(name) for name in nodes if name != "logits"]
            if kept[higher, senders].any():
                reached.add(higher)
                nodes.add(graph.nodes[higher])
        each = role * sum(graph.readers[one][-2:] in (".q", ".k", ".v") for one in reached)
        for name in nodes - {"logits"}:
            each += mlp if name.startswith("mlp") else head
        work += graph.possible[reader].sum().item() * each
    return work


def make_model(n_layer):
    """A model of GPT-2-small's width, the same one in every run of this program."""
    torch.manual_seed(0)
    sizes = {"n_layer": n_layer, "n_head": H, "n_embd": C, "vocab_size": V, "block_size": 1024}
    return GPT(GPTConfig(**sizes, tie_word_embeddings=True)).eval()


def make_batch(model, n_pairs):
    """The Batch of n_pairs texts and the same ones with another token at FIRST."""
    clean = torch.randint(V, (n_pairs, T), generator=torch.Generator().manual_seed(0))
    clean[:, FIRST] = CLEAN
    corrupted = clean.clone()
    corrupted[:, FIRST] = CORRUPTED
    # The answers that the difference speaks for most.
    with torch.no_grad():
        difference = model(clean)[0][:, -1] - model(corrupted)[0][:, -1]  # (B,V)
    direction = answer_direction(model, difference.argmax(-1), difference.argmin(-1))
    return Batch(clean, corrupted, direction.detach())


def make_cases(L):
    """[Case, ...], quick ones first."""
    model = make_model(L)
    many = [make_batch(model, N_PAIRS)]
    one = [make_batch(model, 1)]
    score = partial(edge_attribution, model)
    prune = partial(find_circuit, model, one, "acdc", THRESHOLD)
    graph = layout(model)
    estimate = partial(score, many, "eap-ig-inputs", STEPS)
    return [
        Case("eap, 8 pairs", partial(score, many, "eap"), lambda _: gradient_work(L, 1)),
        Case("eap-ig-inputs, 8 pairs", estimate, lambda _: gradient_work(L, STEPS)),
        Case("acdc, 1 pair", prune, lambda circuit: acdc_work(graph, circuit.scores != 0)),
        Case("exact, 1 pair", partial(score, one, "exact"), lambda _: exact_work(L)),
    ]


def run_case(case, rounds):
    """(GFLOP, seconds, seconds of the limit, their ratio), the medians of the rounds."""
    rows = []
    for _ in range(rounds):
        rate = matrix_rate()
        start = time.perf_counter()
        answer = case.answer()
        seconds = time.perf_counter() - start
        work = case.work(answer)
        limit = 2 * work / (rate + matrix_rate())
        rows.append((work / 1e9, seconds, limit, seconds / limit))
        if seconds > SLOW:
            break
    return [statistics.median(column) for column in zip(*rows)]


def memory_of(case):
    """MB by which it raises the peak memory of this process."""
    # Building the model took more than it needs; from here on Linux counts the peak anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_memory()
    case.answer()
    return peak_memory() - before


def measure_elsewhere(options, case):
    """memory_of the case in a process of its own: a peak never falls."""
    arguments = ["--memory", "--only", case.name, "--layers", str(options.layers)]
    command = [sys.executable, "-m", "benchmarks.edges", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=2)
    add("--layers", type=int, default=12)
    add("--only", default="", help="only the cases with this in their name")
    add("--memory", action="store_true", help="only the memory, in MB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [case for case in make_cases(options.layers) if options.only in case.name]
    if options.memory:
        for case in cases:
            print(f"{memory_of(case):.0f}")
        return
    print(f"{'case':24}{'GFLOP':>8}{'seconds':>9}{'limit':>8}{'ratio':>7}{'MB':>7}")
    for case in cases:
        figures = run_case(case, options.rounds)
        megabytes = measure_elsewhere(options, case)
        print("{:24}{:>8.0f}{:>9.2f}{:>8.2f}{:>7.2f}{:>7}".format(case.name, *figures, megabytes))


if __name__ == "__main__":
    main()
