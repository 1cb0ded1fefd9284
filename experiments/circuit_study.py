"""Which few edges of a model carry a task? They are found on some pairs and measured on others.

    python -m experiments.circuit_study names --output docs/names_circuit.png

draws the circuit and writes it as a .json file beside the picture. It prints how often the model is
right, how much of the logit difference the circuit keeps, on the pairs that it was found on and on
others, and every edge with its score.
"""

import signal
import sys
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # While the imports below take their seconds, Ctrl-C ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from mingpt.common import command_parser, run_command
from mingpt.hub import MODEL_HELP
from mingpt.interpretability import figures
from mingpt.interpretability.circuits import METHODS, find_circuit
from mingpt.interpretability.graph import record_task
from mingpt.interpretability.tasks import TASKS, load_task
from mingpt.model import GPT


def study(options):
    """Find a circuit of the named model, measure it, draw it and write it."""
    # Before all the computing: a picture that cannot be written would be lost at the end.
    figures.check_output(options.output)
    table = Path(options.output).with_suffix(".json")
    if table.is_dir():
        raise ValueError(f"cannot write '{table}': it is a folder")
    if not 0 < options.keep <= 1:
        raise ValueError(f"--keep must be above 0 and at most 1, got {options.keep}")
    model = GPT.from_pretrained(options.model)
    pairs = load_task(model, options.task, options.pairs)
    others = load_task(model, options.task, options.pairs, seed=1)
    circuit = find_circuit(model, pairs, options.method).smaller(options.keep)
    print_measures(circuit, others)
    # The largest first; a negative score is an edge that speaks against the answer.
    print("scores of the edges, in logits:")
    for sender, reader, score in circuit.edges:
        print(f"{sender:>8} -> {reader:8} {score:7.3f}")
    circuit.plot(options.output)
    circuit.to_json(table)
    print(f"Wrote {options.output} and {table}.")


def print_measures(circuit, others):
    """Print what the model does on other pairs, and how much of it the circuit does.

    A circuit may fit the pairs that it was found on by chance: only the others tell.
    """
    runs = record_task(circuit.model, others)
    clean, corrupted = runs.unpatched()
    right = (clean > 0).float().mean()
    print(
        f"{len(clean)} other pairs: right on {right:.1%}, "
        f"mean logit difference {clean.mean():.2f}, corrupted {corrupted.mean():.2f}"
    )
    print(f"{circuit} of {int(runs.graph.possible.sum())} possible edges")
    found_on = circuit.faithfulness()
    print(f"faithfulness {found_on:.3f}, on the other pairs {circuit.faithfulness(others):.3f}")
    print(f"completeness, on the other pairs, {circuit.completeness(others):.3f}")


def main(arguments=None):
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--task", default="name_recall", choices=TASKS, help="default: %(default)s")
    parser.add_argument(
        "--method", default="path_patching", choices=METHODS, help="default: %(default)s"
    )
    parser.add_argument(
        "--keep",
        type=float,
        default=0.9,
        help="share of the logit difference that the circuit keeps; default: %(default)s",
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=100,
        help="pairs to find it on, and other ones to measure it on; fewer are faster; "
        "default: %(default)s of each",
    )
    parser.add_argument(
        "--output", default="circuit.png", help="default: %(default)s; and a .json beside it"
    )
    return run_command(study, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
