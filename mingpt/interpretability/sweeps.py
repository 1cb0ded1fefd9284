"""Which cells decide, over many pairs? Sweeps and edge scores of a file of pairs.

    python -m mingpt.interpretability.sweeps pairs.jsonl --model gpt2 --sites resid_post,z
    torchrun --nproc-per-node=2 -m mingpt.interpretability.sweeps pairs.jsonl ...

patches every pair at every cell of each site, and writes, for each site, the mean, the standard
error and n of every cell: a picture, a table cells.csv, and the largest on the terminal. PAIRS is a
file (see pairs.py) or the name of a built-in task. The values of each pair stay in the folder
shards/, as safetensors. Several processes share the pairs: those of torchrun, of srun, or of
--shard i/n; a start after a stop goes on where the work is missing.
"""

import hashlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import torch
from torch import Tensor

from mingpt.common import atomic_write, check_device, command_parser, progress_bar, run_command
from mingpt.hub import MODEL_HELP
from mingpt.interpretability import edges, pairs, sweep_report
from mingpt.interpretability.activation_patching import DIRECTIONS, Sweep
from mingpt.interpretability.graph import record_base_runs
from mingpt.interpretability.pairs import Pair, Usable
from mingpt.interpretability.shards import ShardFolder, digest
from mingpt.interpretability.tasks import TASKS, Batch
from mingpt.model import GPT
from mingpt.processes import this_process
from mingpt.sites import check_site

SHARD_PAIRS = 16  # of one length, which run side by side
EDGE_METHODS = {"exact_edges": "exact", "eap": "eap"}


def sweep(options: Namespace) -> None:
    """Do this process's part of the work; who comes to the end of the last shard sums up."""
    sites = options.sites.split(",")
    for site in sites:
        check_site(site)
    process = this_process(options.shard)
    device = process.own_device(options.device)
    check_device(device)
    model = GPT.from_pretrained(options.model).to(device)
    usable, skipped = pairs.usable_pairs(model, read(model, options), options.max_skipped)
    work = cut(usable)
    methods = [method for flag, method in EDGE_METHODS.items() if getattr(options, flag)]
    settings = {
        "model": options.model,
        "weights": digest(model.state_dict()),
        "pairs": hashlib.sha256(repr([one.pair for one in usable]).encode()).hexdigest(),
        "sites": sites,
        "direction": options.direction,
        "edges": methods,
    }
    folder = ShardFolder(options.output, settings)
    write_skipped(skipped, folder.folder / "skipped.jsonl")

    own = process.own(list(range(len(work))))
    total = sum(len(work[number]) for number in own)
    has_worked = process.rank == 0
    with progress_bar(total=total, unit="pair", shown=process.rank == 0) as bar:
        for number in own:
            if folder.read(number) is None:
                values = compute(model, work[number], sites, options.direction, methods)
                folder.write(number, values)
                has_worked = True
            bar.update(len(work[number]))
    missing = [number for number in range(len(work)) if not folder.path(number).exists()]
    if missing:
        print(f"{len(missing)} of {len(work)} shards are still to be done by other processes.")
        return
    # Where all was done before, the first process alone sums up.
    if has_worked:
        folder.tidy()
        sweep_report.report(model, folder, work, options.failures == "keep")


def read(model: GPT, options: Namespace) -> list[Pair]:
    """The Pairs of the file, or of the built-in task of that name."""
    if options.pairs in TASKS:
        return pairs.draw_task(model, options.pairs, options.count)
    return pairs.load_pairs(options.pairs)


def cut(usable: list[Usable]) -> list[list[Usable]]:
    """The shards, lists of Usable of one length, in the order in which the lengths first come."""
    by_length: dict[int, list[Usable]] = {}
    for one in usable:
        by_length.setdefault(one.length, []).append(one)
    shards = []
    for alike in by_length.values():
        shards += [alike[i : i + SHARD_PAIRS] for i in range(0, len(alike), SHARD_PAIRS)]
    return shards


def compute(
    model: GPT, shard: list[Usable], sites: list[str], direction: str, methods: list[str]
) -> dict[str, Tensor]:
    """{name: tensor}, with B pairs first: what a shard says.

    clean, corrupted (B,): logit(corrupted answer) - logit(clean answer) of the unpatched runs. Of
    each site (B,L,T) or (B,L,H,T): the same of the patched runs. Of each method "edges METHOD"
    (B,R,S), as edge_attribution gives them.
    """
    batches = [pairs.read_batch(model, one.pair) for one in shard]
    batch = Batch(*map(torch.cat, zip(*batches)))
    values = {}
    for site in sites:
        sweep = Sweep(model, batch.clean, batch.corrupted, direction, [site])
        for name, vectors in sweep.vectors(site).items():  # (B,cells,C), or (B,C)
            answers = batch.direction.view(len(shard), *[1] * (vectors.ndim - 2), -1)
            difference = -(vectors.to(answers.dtype) * answers).sum(-1).cpu()
            values[site if name == "patched" else name] = difference
    for method in methods:
        scores = []
        for single in batches:
            base = record_base_runs(model, single)
            scores.append(edges.score_edges([base], method))
        values[f"edges {method}"] = torch.stack(scores).cpu()
    return values


def write_skipped(skipped: list[tuple[Pair, str]], path: Path) -> None:
    """Write the pairs that cannot be used, as JSON lines with line and reason."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for pair, reason in skipped:
            row = {"line": pair.line, "reason": reason, "clean": pair.clean}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("pairs", help=f"a file of pairs, or one of {', '.join(TASKS)}")
    parser.add_argument("--model", default="gpt2", help=f"{MODEL_HELP}; %(default)s")
    parser.add_argument("--sites", default="resid_post", help="with commas; %(default)s")
    parser.add_argument("--direction", default="denoise", choices=DIRECTIONS, help="%(default)s")
    parser.add_argument("--exact-edges", action="store_true", help="exact scores of all edges too")
    parser.add_argument("--eap", action="store_true", help="their estimate by eap too")
    parser.add_argument("--count", type=int, default=100, help="pairs of a built-in task; 100")
    parser.add_argument(
        "--max-skipped",
        type=float,
        default=pairs.MAX_SKIPPED,
        help="the share of pairs that may be of no use for the model; %(default)s",
    )
    parser.add_argument(
        "--failures",
        default="leave-out",
        choices=("leave-out", "keep"),
        help="pairs on which the clean run prefers the wrong answer; %(default)s",
    )
    parser.add_argument("--shard", help="i/n: the part of this process, where nothing launches it")
    parser.add_argument("--device", default="cpu", help="cuda: each process its own; %(default)s")
    parser.add_argument("--output", default="sweep", help="a folder; %(default)s")
    return run_command(sweep, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
