"""The pictures of an induction study: what each head does, and in a training run, since when.

Its quantities have short names here, which stand over the panels and the columns of tables;
mingpt/interpretability/induction.py says what each is.
"""

import torch

from mingpt.interpretability import figures, induction, runs

# Of the fields of an InductionStudy and, from change_of_delta on, of a HeadAblations, where the
# kind of ablation follows after a comma.
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
# What they are in plain words, and their unit.
MEANINGS = {
    "A(r)": ("attention in the repeats", "share of attention"),
    "A(c)": ("attention in the controls", "share of attention"),
    "A(r)-A(c)": ("the difference of the two", "share of attention"),
    "loss(r)": ("loss on the repeats", "nats per token"),
    "loss(c)": ("loss on the controls", "nats per token"),
    "loss(text)": ("loss on unbroken text", "nats per token"),
    "ICL": ("late loss - early loss in context", "nats per token"),
    "Delta": ("largest A(r)-A(c) of a head", "share of attention"),
    "change of Delta": ("Delta = largest A(r)-A(c) of the others", "share of attention"),
    "ICL share lost": ("ICL = in-context learning", "share that is lost"),
    "change of loss(r)": ("loss on the repeats", "nats per token"),
    "change of loss(c)": ("loss on the controls", "nats per token"),
}
# What one strip, or one panel, of a picture shows.
ATTENTION = ("A(r)", "A(c)", "A(r)-A(c)")
LOSSES = ("loss(r)", "loss(c)", "loss(text)")
CHANGES = ("change of Delta", "ICL share lost", "change of loss(r)", "change of loss(c)")
STANDS_IN = {"zero": "zeros", "mean": "its mean"}  # for a head's z, by the kind of ablation
LARGEST = 5  # heads that are named in a picture or a printed table
STYLES = ("o-", "s--", "^:")  # of lines that may lie on each other


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


def dotted(head):
    """The text "3.5" of head (3, 5), by which a reader knows it."""
    return ".".join(map(str, head))


def describe(model, prompts):
    """Three lines over a picture or a table: which model, on how many prompts, what they are."""
    kinds, bases, T = prompts.shape
    tokens = "random tokens" if kinds == 2 else "tokens from a text"
    lines = [
        f"Induction heads: {model.name or 'a model'}",
        f"{bases} pieces of {T // 4} {tokens}; means +- standard errors",
        "r, a repeat: a piece four times; c, its control: the piece, then three others",
    ]
    return "\n".join(lines)


def plot_study(model, prompts, study, path=None):
    """The Figure of the study's means, (L,H) each, and of the head with the largest A(r) - A(c).

    That head's mean pattern is drawn whole, in a repeat; and from the second piece to the first,
    in a repeat and in its control, where the stripe lies right above the diagonal.
    """
    from mingpt.interpretability.notebook_figure import Figure

    rows = 2 + len(study.ablations)
    figure = Figure(figsize=(13, 3.8 * rows), layout="constrained")
    figure.suptitle(describe(model, prompts), fontweight="bold", wrap=True, parse_math=False)
    first, *middle, last = figure.subfigures(rows)
    mean, error = induction.mean_error(study.attention_difference)
    head = divmod(mean.argmax().item(), model.config.n_head)
    first.suptitle(
        "attention from a token to the one that followed its previous occurrence; "
        f"largest difference: head {dotted(head)}, {mean[head]:.3f} +- {error[head]:.3f}"
    )
    values = columns(study)
    _draw_means(first, values, ATTENTION, alike=ATTENTION)
    for strip, kind in zip(middle, study.ablations):
        strip.suptitle(f"what changes with {STANDS_IN[kind]} in the place of one head's z")
        names = [f"{name}, {kind}" for name in CHANGES]
        _draw_means(strip, values, names, alike=names[2:])

    last.suptitle(f"head {dotted(head)}: its mean pattern in up to 16 prompts")
    patterns = _patterns(model, prompts, *head)
    panels = last.subplots(1, len(patterns))
    for axes, (name, pattern) in zip(panels, patterns.items()):
        _draw_map(axes, pattern, 1, "Blues", "share of attention")
        axes.set(title=name, xlabel="key", ylabel="query")
    return figures.shown(figure, path)


def _draw_means(strip, values, names, alike):
    """Draw the means over the bases of the named (B,L,H) in values, layer 0 at the top.

    alike: the names of those that share one scale: a stripe in the controls must look as strong as
    it is. A map of shares of which there is nothing to lose is all nan, and is left out.
    """
    means = {}
    limits = {}
    for name in names:
        mean, error = induction.mean_error(values[name])
        if not mean.isnan().all():
            means[name] = mean
            # The colour of what may be chance is pale: no scale ends before 4 standard errors.
            least = induction.STANDARD_ERRORS * error.max()
            limits[name] = max(mean.abs().max(), least).item()
    limits.update(dict.fromkeys(alike, max(limits[name] for name in alike)))

    panels = strip.subplots(1, len(means), squeeze=False)
    for axes, (name, mean) in zip(panels[0], means.items()):
        meaning, unit = MEANINGS[name.partition(",")[0]]
        colours = "Blues" if name in ("A(r)", "A(c)") else "RdBu_r"
        _draw_map(axes, mean, limits[name], colours, unit)
        axes.set_title(f"{name}\n{meaning}", fontsize="medium")
        axes.set(xlabel="head", ylabel="layer")


def _draw_map(axes, values, limit, colours, unit):
    """Draw values (rows, columns), row 0 at the top, with a colour bar up to the limit.

    colours: "Blues" from white at 0, or "RdBu_r", red above 0, white at 0, blue below.
    """
    least = 0 if colours == "Blues" else -limit
    image = axes.imshow(values.cpu().numpy(), colours, vmin=least, vmax=limit, aspect="auto")
    axes.locator_params(integer=True)
    if limit:
        axes.figure.colorbar(image).set_label(unit)
    else:
        # There is no scale of nothing; imshow would invent one.
        image.set_clim(-1, 1)
        axes.text(0.5, 0.5, "0 everywhere", ha="center", va="center", transform=axes.transAxes)


@torch.no_grad()
def _patterns(model, prompts, layer, head):
    """{title: the head's mean pattern over up to 16 bases}: in a repeat, whole; and from the
    second piece to the first, in a repeat and in a control.
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
        "in a whole repeat": repeat,
        "repeat, from piece 2 to piece 1": repeat[n : 2 * n, :n],
        "control, from piece 2 to piece 1": control[n : 2 * n, :n],
    }


def plot_curve(curve, path=None, losses=None, title=None):
    """The Figure of induction_curve, {step: study}: A(r) - A(c) of the heads, losses below.

    Bars are standard errors. losses: of the training itself, as read_losses gives them; a panel
    for them goes below.
    """
    from mingpt.interpretability.notebook_figure import Figure

    rows = 4 if losses else 3
    figure = Figure(figsize=(8, 3 * rows + 1), layout="constrained")
    figure.suptitle(title, wrap=True, parse_math=False)
    panels = figure.subplots(rows, 1, sharex=True)
    _draw_heads(panels[0], curve)
    _draw_lines(panels[1], curve, LOSSES)
    panels[1].set_ylabel("loss on the prompts,\nnats per token")
    # By itself: beside the losses a change of it could not be seen.
    _draw_lines(panels[2], curve, ["ICL"])
    panels[2].set_ylabel("late loss - early loss,\nnats per token")
    if losses:
        for name, style in zip(("train_loss", "validation_loss"), STYLES):
            panels[3].plot(losses["step"], losses[name], style, markersize=4, label=name)
        panels[3].set_ylabel("loss of the training,\nnats per token")
    for axes in panels:
        axes.legend()
    panels[-1].set_xlabel("step")
    return figures.shown(figure, path)


def _draw_heads(axes, curve):
    """A line for each head: the highest ones named, with standard errors, the others grey.

    The height of a head is its largest mean at any step.
    """
    means = []
    errors = []
    for study in curve.values():
        mean, error = induction.mean_error(study.attention_difference)
        means.append(mean.flatten())
        errors.append(error.flatten())
    means = torch.stack(means)  # (S,LH), S steps
    errors = torch.stack(errors)
    H = mean.size(1)
    ranking = means.amax(0).argsort(descending=True)
    steps = list(curve)
    for number in ranking[:LARGEST].tolist():
        name = f"head {dotted(divmod(number, H))}"
        axes.errorbar(steps, means[:, number], errors[:, number], fmt=".-", label=name)
    others = means[:, ranking[LARGEST:]]
    axes.plot(steps, others, ".-", color="lightgrey", zorder=1)
    axes.set_ylabel("attention in repeats - controls,\nA(r)-A(c)")


def _draw_lines(axes, curve, names):
    """A line for each of the named quantities that the studies have, with standard errors."""
    tables = [columns(study) for study in curve.values()]
    for name, style in zip(names, STYLES):
        if name in tables[0]:
            means, errors = zip(*(induction.mean_error(table[name]) for table in tables))
            axes.errorbar(list(curve), means, errors, fmt=style, markersize=4, label=name)
