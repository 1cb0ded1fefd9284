"""Which heads of a model are induction heads, and in a training run, when did they form?

    python -m experiments.induction_study MODEL_OR_RUN --output FOLDER

FOLDER gets induction.png, the means over the bases for each head; induction.csv, all quantities
with their standard errors; and of a run of experiments.train also induction_curve.png, the same
over the steps. It prints the largest quantities and the heads that the model needs. What the
quantities are, and what they do not show, stands in mingpt/interpretability/induction.py.
"""

import csv
import math
import signal
import sys
from dataclasses import astuple, dataclass
from itertools import groupby, product
from operator import attrgetter
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # While the imports below take their seconds, Ctrl-C ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy
import torch

from mingpt.common import atomic_write, command_parser, run_command
from mingpt.hub import steps_in
from mingpt.interpretability import figures, induction, runs
from mingpt.model import GPT

# What tables and pictures call the fields of an InductionStudy and, from change_of_delta on, those
# of a HeadAblations, where the kind of ablation follows after a comma. The names are short, since
# they stand over columns and panels; induction.py says what each is.
NAMES = {
    "attention_repeats": "A(r)",
    "attention_controls": "A(c)",
    "attention_difference": "A(r)-A(c)",
    "loss_repeats": "loss(r)",
    "loss_controls": "loss(c)",
    "loss_texts": "loss(text)",
    "in_context": "ICL",
    "delta": "Delta",
    "change_of_delta": "change of Delta",
    "in_context_share_lost": "ICL share lost",
    "change_of_loss_repeats": "change of loss(r)",
    "change_of_loss_controls": "change of loss(c)",
}
# Those that one strip, or one panel, of a picture shows.
ATTENTION = ("A(r)", "A(c)", "A(r)-A(c)")
LOSSES = ("loss(r)", "loss(c)", "loss(text)", "ICL")
CHANGES = ("change of Delta", "ICL share lost", "change of loss(r)")
LARGEST = 5  # heads that are named in a picture or a printed line


def columns(study):
    """{name: (B,L,H) for each head, or (B,) for the model} of all that the study holds.

    The names are those of the tables and pictures: "A(r)-A(c)", "change of Delta, zero" ...
    """
    named = {}
    for field, values in vars(study).items():
        # A study without a text has no loss on it.
        if field in NAMES and values is not None:
            named[NAMES[field]] = values
    for kind, changes in study.ablations.items():
        for field, values in vars(changes).items():
            named[f"{NAMES[field]}, {kind}"] = values
    return named


@dataclass
class Row:
    """One line of the table: a quantity's mean over the bases, with its standard error."""

    quantity: str
    head: str  # "3.5", or "" where the quantity is the whole model's
    mean: float
    error: float

    def __str__(self):
        return f"{self.head:>4} {self.mean:.3f} +- {self.error:.3f}"


def summarize(study):
    """A list of Row: every column of the study, head by head, in the order of columns."""
    rows = []
    for name, values in columns(study).items():
        mean, error = induction.mean_error(values)
        # The axes that are left are layers and heads, or none: then () is the only place.
        for place in product(*map(range, mean.shape)):
            rows.append(Row(name, dotted(place), mean[place].item(), error[place].item()))
    return rows


def dotted(head):
    """The text "3.5" of head (3, 5), by which a reader knows it."""
    return ".".join(map(str, head))


def plot_study(model, prompts, study, path=None):
    """The Figure of the study's means, (L,H) each, and of the head with the largest A(r) - A(c).

    That head's mean pattern is drawn whole, on r; and zoomed to queries in piece 2 and keys in
    piece 1, on r and c, where the stripe lies right above the diagonal.
    """
    from matplotlib.figure import Figure

    means = {name: values.mean(0) for name, values in columns(study).items()}
    rows = 2 + len(study.ablations)
    figure = Figure(figsize=(13, 4 * rows), layout="constrained")
    first, *middle, last = figure.subfigures(rows)

    # One scale for both kinds of prompts: a stripe in the controls must look as strong as it is.
    _draw_maps(first, means, ATTENTION, alike=True)
    for strip, kind in zip(middle, study.ablations):
        _draw_maps(strip, means, [f"{name}, {kind}" for name in CHANGES])
    strongest = means["A(r)-A(c)"].argmax().item()
    patterns = _patterns(model, prompts, *divmod(strongest, model.config.n_head))
    titles = list(patterns)
    whole, zoomed = last.subfigures(1, 2, width_ratios=(1, 2))
    _draw_maps(whole, patterns, titles[:1], "query", "key")
    _draw_maps(zoomed, patterns, titles[1:], "query", "key", alike=True)
    return figures.shown(figure, path)


def _draw_maps(strip, maps, titles, row_name="layer", column_name="head", alike=False):
    """Draw those of the maps side by side, row 0 at the top; red above 0, white at 0.

    maps: {title: values (rows, columns)}. alike: do all share one scale? A map of shares of which
    there is nothing to lose is all nan, and is left out.
    """
    from matplotlib.colors import CenteredNorm

    titles = [title for title in titles if not maps[title].isnan().all()]
    largest = max(maps[title].abs().max().item() for title in titles)
    panels = strip.subplots(1, len(titles), squeeze=False)
    for axes, title in zip(panels[0], titles):
        # Without a number, it is the largest value of the map itself.
        norm = CenteredNorm(0, largest if alike else None)
        image = axes.imshow(maps[title].cpu().numpy(), "RdBu_r", norm=norm, aspect="auto")
        strip.colorbar(image)
        axes.set(title=title, xlabel=column_name, ylabel=row_name)
        axes.locator_params(integer=True)


@torch.no_grad()
def _patterns(model, prompts, layer, head):
    """{title: the head's mean pattern over up to 16 bases}: on r; and on r and c, zoomed.

    Zoomed are the queries in piece 2 and the keys in piece 1.
    """
    pairs = prompts[:2, :16].transpose(0, 1).to(model.lm_head.weight.device)  # (b,2,T)
    patterns = []
    # One repeat and its control at a time: the patterns of all layers are recorded.
    for pair in pairs:
        recorded = runs.record(model, pair, ["pattern"])
        patterns.append(recorded["pattern"][layer][:, head])
    repeat, control = torch.stack(patterns).float().mean(0)  # (b,2,T,T) -> 2 x (T,T)
    n = len(repeat) // 4
    return {
        f"{layer}.{head} on r": repeat,
        f"{layer}.{head} on r, pieces 2, 1": repeat[n : 2 * n, :n],
        f"{layer}.{head} on c, pieces 2, 1": control[n : 2 * n, :n],
    }


def plot_curve(curve, path=None, losses=None):
    """The Figure of induction_curve, {step: study}: A(r) - A(c) of the heads, losses below.

    losses: of the training itself, as read_losses gives them; a panel for them goes below.
    """
    from matplotlib.figure import Figure

    rows = 3 if losses else 2
    figure = Figure(figsize=(8, 4 * rows), layout="constrained")
    panels = figure.subplots(rows, 1, sharex=True)
    _draw_heads(panels[0], curve)
    _draw_losses(panels[1], curve)
    if losses:
        for name in ("train_loss", "validation_loss"):
            panels[2].plot(losses["step"], losses[name], label=name)
        panels[2].set_ylabel("of the training: nats per token")
    for axes in panels:
        axes.set_xlabel("step")
        axes.legend()
    return figures.shown(figure, path)


def _draw_heads(axes, curve):
    """A line for each head: the highest ones named, the others grey behind them.

    The height of a head is its largest mean at any step.
    """
    means = torch.stack([study.attention_difference.mean(0) for study in curve.values()])
    heads = means.flatten(1)  # (S,L,H) -> (S,LH), S steps
    ranking = heads.amax(0).argsort(descending=True)
    steps = list(curve)
    for number in ranking[:LARGEST].tolist():
        name = dotted(divmod(number, means.size(2)))
        axes.plot(steps, heads[:, number], ".-", label=f"head {name}")
    others = heads[:, ranking[LARGEST:]]
    axes.plot(steps, others, ".-", color="lightgrey", zorder=1)
    axes.set_ylabel("A(r)-A(c)")


def _draw_losses(axes, curve):
    """A line for each loss on the prompts that the studies have, with standard errors."""
    tables = [columns(study) for study in curve.values()]
    for name in LOSSES:
        if name in tables[0]:
            means, errors = zip(*(induction.mean_error(table[name]) for table in tables))
            axes.errorbar(list(curve), means, errors, label=name)
    axes.set_ylabel("on the prompts: nats, with standard errors")


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
    with atomic_write(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["step", "quantity", "layer.head", "mean", "standard error", *settings])
        for step, study in studies.items():
            for row in summarize(study):
                table.writerow([step, *astuple(row), *settings.values()])


def print_study(study):
    """Print each quantity, of the heads the largest ones, and the heads that are needed.

    Of a share that is nan for all heads, there is nothing to lose.
    """
    for name, rows in groupby(summarize(study), attrgetter("quantity")):
        numbers = [row for row in rows if not math.isnan(row.mean)]
        numbers.sort(key=lambda row: -abs(row.mean))
        print(f"{name:24}", *numbers[:LARGEST] or ["none to lose"])
    for kind in study.ablations:
        lists = vars(induction.name_candidates(study, kind)).values()
        texts = [" ".join(map(dotted, heads)) for heads in lists]
        print("needed ({}): by Delta {}; by loss(r) {}; by both {}".format(kind, *texts))


def report(name, output, text, length, bases, seed):
    """Study the named model or run, write pictures and table into the folder, print the largest.

    text: a file to take the bases from; length, bases and seed: as draw_prompts takes them.
    ValueError or OSError where something cannot be read, studied or written.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "induction.png"
    # Before the work, so that it is not lost.
    figures.check_output(picture)
    content = Path(text).read_text(encoding="utf-8") if text else None
    # Before the model is read: a run that is still going on writes newer ones.
    last_step = max(steps_in(name), default=None)
    model = GPT.from_pretrained(name)
    curve = induction.induction_curve(name, length, bases, seed, content)
    prompts = induction.draw_prompts(model, length, bases, seed, content)
    study = induction.study_induction(model, prompts)

    plot_study(model, prompts, study, picture)
    if curve:
        plot_curve(curve, folder / "induction_curve.png", read_losses(name))
    settings = {"n": bases, "length": prompts.size(2) // 4, "seed": seed, "text": text}
    write_table(curve | {last_step: study}, settings, folder / "induction.csv")
    print(f"{name}, {settings}: mean +- standard error, of heads the five largest")
    print_study(study)


def main(arguments=None):
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "name",
        metavar="MODEL_OR_RUN",
        help="of a run, the last model is studied, the curve is of all",
    )
    parser.add_argument(
        "--output",
        required=True,
        help="folder for induction.png, induction.csv and induction_curve.png",
    )
    parser.add_argument(
        "--text", help="a file to take bases from; without it they are random tokens"
    )
    parser.add_argument("--length", type=int, help="tokens in a base; default: 32, or what fits")
    parser.add_argument("--bases", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    return run_command(lambda options: report(**vars(options)), parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
