"""Which heads of a model are induction heads, and in a training run, when did they form?

    python -m experiments.induction_study MODEL_OR_RUN --output FOLDER

FOLDER gets induction.png, the means over the bases for each head; induction.csv, all quantities
with their standard errors; and of a run of experiments.train also induction_curve.png, the same
over the steps. It prints the largest quantities and the heads that the model needs. What the
quantities are, and what they do not show, stands in mingpt/interpretability/induction.py.
"""

import signal
import sys
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # While the imports below take their seconds, Ctrl-C ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy

from experiments.corpora import read_text
from experiments.induction_figures import (
    ATTENTION,
    CHANGES,
    LARGEST,
    MEANINGS,
    STANDS_IN,
    columns,
    describe,
    dotted,
    plot_curve,
    plot_study,
)
from experiments.train import check_folder, write_rows
from mingpt.common import command_parser, run_command
from mingpt.hub import MODEL_HELP, steps_in
from mingpt.interpretability import induction
from mingpt.model import GPT


@dataclass
class Row:
    """One line of the table: a quantity's mean over the bases, with its standard error."""

    quantity: str
    head: str  # "3.5", or "" where the quantity is the whole model's
    mean: float
    error: float


def summarize(study):
    """A list of Row: every column of the study, head by head, in the order of columns."""
    rows = []
    for name, values in columns(study).items():
        mean, error = induction.mean_error(values)
        # The axes that are left are layers and heads, or none: then () is the only place.
        for place in product(*map(range, mean.shape)):
            rows.append(Row(name, dotted(place), mean[place].item(), error[place].item()))
    return rows


def read_losses(run_folder):
    """{"step": array, "train_loss": array, "validation_loss": array} of the run's curve.csv.

    None if the folder has no such file, or the file no such columns.
    """
    try:
        table = numpy.genfromtxt(f"{run_folder}/curve.csv", delimiter=",", names=True)
        return {name: table[name] for name in ("step", "train_loss", "validation_loss")}
    except (OSError, ValueError, IndexError):
        return None


def write_table(studies, settings, path):
    """Write a CSV with a line for each Row of {step: study}; step None is a model without a run.

    settings: {column: value} of the prompts, the same in every line.
    """
    rows = [["step", "quantity", "layer.head", "mean", "standard error", *settings]]
    for step, study in studies.items():
        rows += [[step, *astuple(row), *settings.values()] for row in summarize(study)]
    write_rows(path, rows)


def print_study(study):
    """Print each quantity, of the heads the largest ones, and the heads that are needed."""
    numbers = {name: induction.mean_error(values) for name, values in columns(study).items()}
    for name, (mean, error) in numbers.items():
        if not mean.ndim:
            meaning, unit = MEANINGS[name]
            print(f"{name:10} {_number(mean, error):>16}  {meaning} ({unit})")
    print("\nthe heads with the largest difference of attention")
    _print_heads({name: numbers[name] for name in ATTENTION}, "A(r)-A(c)")
    for kind in study.ablations:
        print(
            f"\nwith {STANDS_IN[kind]} in the place of a head's z: the largest changes of loss(r)"
        )
        changes = {name: numbers[f"{name}, {kind}"] for name in CHANGES}
        _print_heads(changes, "change of loss(r)")
        lists = vars(induction.name_candidates(study, kind)).values()
        texts = [" ".join(map(dotted, heads)) or "none" for heads in lists]
        print("needed ({}): by Delta {}; by loss(r) {}; by both {}".format(kind, *texts))


def _print_heads(numbers, key):
    """Print a table of {name: (mean (L,H), error (L,H))}: the heads with the largest `key`."""
    # Of a share that is nan for all heads, there is nothing to lose.
    numbers = {name: pair for name, pair in numbers.items() if not pair[0].isnan().all()}
    print("head", *(f"{name:>17}" for name in numbers))
    mean = numbers[key][0]
    for place in mean.flatten().argsort(descending=True)[:LARGEST].tolist():
        head = divmod(place, mean.size(1))
        cells = [_number(mean[head], error[head]) for mean, error in numbers.values()]
        print(f"{dotted(head):>4}", *(f"{cell:>17}" for cell in cells))


def _number(mean, error):
    """The text "0.468 +- 0.003"."""
    return f"{round(mean.item(), 3) + 0:.3f} +- {error:.3f}"  # + 0: no "-0.000"


def report(name, output, text, length, bases, seed):
    """Study the named model or run, write pictures and table into the folder, print the largest.

    text: a file to take the bases from; length, bases and seed: as draw_prompts takes them.
    ValueError or OSError where something cannot be read, studied or written.
    """
    folder = Path(output)
    picture, curve_picture, table = (
        folder / f"induction{end}" for end in (".png", "_curve.png", ".csv")
    )
    check_folder(folder, picture.name, curve_picture.name)
    content = read_text(text) if text else None
    # Before the model is read: a run that is still going on writes newer ones.
    last_step = max(steps_in(name), default=None)
    model = GPT.from_pretrained(name)
    prompts = induction.draw_prompts(model, length, bases, seed, content)
    curve = induction.induction_curve(name, length, bases, seed, content)
    study = induction.study_induction(model, prompts)

    folder.mkdir(parents=True, exist_ok=True)
    title = describe(model, prompts)
    print(f"{title}\n")
    print_study(study)
    plot_study(model, prompts, study, picture)
    settings = {"n": bases, "length": prompts.size(2) // 4, "seed": seed, "text": text}
    write_table(curve | {last_step: study}, settings, table)
    written = f"{picture} and {table}"
    if curve:
        plot_curve(curve, curve_picture, read_losses(name), title)
        written = f"{picture}, {curve_picture} and {table}"
    print(f"\nWrote {written}.")


def add_prompt_options(parser):
    """Give the parser the options of draw_prompts, and --text, a file to take bases from."""
    parser.add_argument(
        "--text", help="a file to take bases from; default: none, bases of random tokens"
    )
    parser.add_argument("--length", type=int, help="tokens in a base; default: 32, or what fits")
    parser.add_argument("--bases", type=int, default=32, help="prompts; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts; default: %(default)s")


def main(arguments=None):
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "name",
        metavar="MODEL_OR_RUN",
        help=f"{MODEL_HELP}; of a run the curve is of all its models",
    )
    parser.add_argument(
        "--output",
        required=True,
        help="folder for induction.png, induction.csv and induction_curve.png",
    )
    add_prompt_options(parser)
    return run_command(lambda options: report(**vars(options)), parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
