"""Which estimate of an edge's effect can be trusted, and where?

    python -m experiments.compare_methods

finds circuits by every method, on `names` and on a model whose weights are written by hand, and
prints a table of the measures by which the field compares methods (see circuit_measures.py), of
the rank correlation with the exact scores, and of the time. Edges are scored on some pairs, and CPR
and CMD are measured on others.
"""

import sys
import time

import torch

from mingpt.common import command_parser, run_command
from mingpt.interpretability.circuit_measures import auroc, curve_areas
from mingpt.interpretability.circuits import METHODS, find_circuit
from mingpt.interpretability.tasks import load_task
from mingpt.model import GPT
from tests.handmade import CIRCUIT, induction_model


def compare(options):
    """Print the table, a row as soon as it is measured."""
    names = GPT.from_pretrained("names")
    handmade = induction_model()
    print("| model, task | method | CPR | CMD | AUROC | rank correlation | seconds |")
    print("|---|---|---|---|---|---|---|")
    for title, model, task, known in (
        ("names, name_recall", names, "name_recall", None),
        ("names, induction", names, "induction", None),
        ("hand-written, induction", handmade, "induction", CIRCUIT),
    ):
        pairs = load_task(model, task, options.pairs, seed=0)
        others = load_task(model, task, options.pairs, seed=1)
        exact = None
        for method in METHODS:
            start = time.perf_counter()
            circuit = find_circuit(model, pairs, method)
            seconds = time.perf_counter() - start
            areas = curve_areas(circuit, others)
            exact = exact or circuit  # the first method is the exact one
            row = [
                title,
                method,
                f"{areas.cpr:.3f}",
                f"{areas.cmd:.3f}",
                f"{auroc(circuit, known):.3f}" if known else "",
                f"{rank_correlation(circuit, exact):.2f}",
                f"{seconds:.0f}",
            ]
            print("| " + " | ".join(row) + " |", flush=True)


def rank_correlation(circuit, other):
    """Spearman's correlation of two circuits' |score| over all edges; equal scores share a rank."""
    possible = circuit.runs.graph.possible
    ranks = []
    for scores in (circuit.scores, other.scores):
        values = scores[possible].abs()
        ordered = values.sort().values
        first = torch.searchsorted(ordered, values)
        last = torch.searchsorted(ordered, values, right=True)
        ranks.append((first + last).double())
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


def main(arguments=None):
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--pairs", type=int, default=20, help="pairs of each task; default: %(default)s"
    )
    return run_command(compare, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
