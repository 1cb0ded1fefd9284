"""Do induction heads form alike in runs with other seeds? Several runs in one picture.

    python -m experiments.induction_seeds RUN RUN ... --output FOLDER [--text FILE]

FOLDER gets seeds.png and seeds.csv: over the steps of each run, the largest A(r)-A(c) of all heads,
and what repeats save, loss(c) - loss(r). It prints when the first head passed the threshold, and
which heads lead at the end. A run that was stopped is drawn as far as it went. Runs with the same
tokens get the same prompts. What the quantities are, and what they do not show, stands in
mingpt/interpretability/induction.py.
"""

import signal
import sys
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # While the imports below take their seconds, Ctrl-C ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from experiments.corpora import read_text
from experiments.induction_figures import dotted
from experiments.induction_study import add_prompt_options
from experiments.train import check_folder, read_settings, write_rows
from mingpt.common import command_parser, run_command
from mingpt.interpretability import figures
from mingpt.interpretability.induction import induction_curve, mean_error

COLUMNS = (
    "run",
    "seed",
    "step",
    "head",  # with the largest mean A(r)-A(c)
    "A(r)-A(c)",
    "standard error",
    "loss(c)-loss(r)",  # in nats a token
    "standard error",
)
LEADING = 3  # heads that are named at the end of a run
STYLES = ("o-", "s--", "^:", "d-.")  # of lines that may lie on each other


def read_run(folder, *prompts):
    """(seed, steps it was made for, {step: InductionStudy}) of a run; prompts: of induction_curve.

    ValueError if the folder has no run of experiments.train.
    """
    settings = read_settings(Path(folder))
    curve = induction_curve(folder, *prompts)
    if not settings or not curve:
        raise ValueError(f"{folder} has no run with step-N folders; give one of experiments.train")
    return settings["seed"], settings["max_iters"], curve


def leading_heads(study):
    """[((layer, head), mean, standard error)] of A(r)-A(c), all heads, the largest mean first."""
    mean, error = mean_error(study.attention_difference)  # (L,H)
    order = mean.flatten().argsort(descending=True).tolist()
    heads = [divmod(place, mean.size(1)) for place in order]
    return [(head, mean[head].item(), error[head].item()) for head in heads]


def summarize(curve):
    """Rows of COLUMNS without run and seed, one for each step of a curve {step: study}."""
    rows = []
    for step, study in curve.items():
        head, *attention = leading_heads(study)[0]
        saved = mean_error(study.loss_controls - study.loss_repeats)
        rows.append([step, dotted(head), *attention, *(value.item() for value in saved)])
    return rows


def first_above(rows, threshold):
    """The first of summarize's rows whose A(r)-A(c) is above the threshold; None if none is."""
    return next((row for row in rows if row[2] > threshold), None)


def print_runs(runs, threshold):
    """Print for {folder: (seed, planned, curve)} when a head passed, and which lead at the end."""
    print(f"the first head above A(r)-A(c) = {threshold}, and the heads that lead at the end\n")
    for folder, (seed, planned, curve) in runs.items():
        rows = summarize(curve)
        last = max(curve)
        print(f"seed {seed} ({folder}), up to step {last:,} of {planned:,}")
        passed = first_above(rows, threshold)
        if passed:
            step, head, mean, error, *_ = passed
            before = max((row[0] for row in rows if row[0] < step), default="none")
            print(f"  passed: head {head} at step {step}, {mean:.3f} +- {error:.3f}")
            print(f"  the step measured before: {before}")
        else:
            print("  passed: none")
        for head, mean, error in leading_heads(curve[last])[:LEADING]:
            print(f"  leads: head {dotted(head)}, {mean:.3f} +- {error:.3f}")
        *_, saved, error = rows[-1]
        print(f"  repeats save {saved:.2f} +- {error:.2f} nats a token")


def plot_runs(runs, threshold, title, path=None):
    """The matplotlib Figure of {folder: (seed, planned, curve)}: a line for each run.

    Above the largest A(r)-A(c), below what repeats save; bars are standard errors.
    """
    from mingpt.interpretability.notebook_figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    figure.suptitle(title, wrap=True, parse_math=False)
    above, below = figure.subplots(2, 1, sharex=True)
    for i, (seed, planned, curve) in enumerate(runs.values()):
        steps, _, means, errors, saved, saved_errors = zip(*summarize(curve))
        label = f"seed {seed}, step {steps[-1]:,} of {planned:,}"
        style = {"fmt": STYLES[i % len(STYLES)], "ms": 4, "color": f"C{i}", "label": label}
        above.errorbar(steps, means, errors, **style)
        below.errorbar(steps, saved, saved_errors, **style)
        # Where a run ends is seen on the other lines too.
        for axes in (above, below):
            axes.axvline(steps[-1], color=f"C{i}", lw=0.7, alpha=0.5)
    above.axhline(threshold, color="grey", lw=1)
    above.set(ylabel="largest A(r)-A(c) of a head,\nshare of attention")
    below.set(ylabel="what repeats save, loss(c)-loss(r),\nnats per token", xlabel="step")
    above.legend()
    return figures.shown(figure, path)


def report(runs, output, threshold, text, length, bases, seed):
    """Measure the runs, a list of folders, write picture and table, print the heads.

    ValueError or OSError where something cannot be read, measured or written.
    """
    folder = Path(output)
    picture = folder / "seeds.png"
    check_folder(folder, picture.name)
    content = read_text(text) if text else None
    measured = {name: read_run(name, length, bases, seed, content) for name in runs}

    folder.mkdir(parents=True, exist_ok=True)
    source = Path(text).name if text else "random tokens"
    title = f"Induction heads in {len(measured)} runs, on {bases} pieces of {source}"
    print(f"{title}; means +- standard errors\n")
    print_runs(measured, threshold)
    plot_runs(measured, threshold, title, picture)
    rows = []
    for name, (seed, _, curve) in measured.items():
        rows += [[name, seed, *row] for row in summarize(curve)]
    write_rows(picture.with_suffix(".csv"), [COLUMNS, *rows])
    print(f"\nWrote {picture} and {picture.with_suffix('.csv')}.")


def main(arguments=None):
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of experiments.train")
    parser.add_argument("--output", required=True, help="folder for seeds.png and seeds.csv")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.1,
        help="A(r)-A(c) that a head must pass; default: %(default)s",
    )
    add_prompt_options(parser)
    return run_command(lambda options: report(**vars(options)), parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
