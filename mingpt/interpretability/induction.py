"""Which heads are induction heads, what is lost without them, and when in training do they form?

    python -m mingpt.interpretability.induction MODEL_OR_RUN --output FOLDER

An induction head looks from a token to the one that followed its previous occurrence. Repeats r = [base] * 4 give it
one to find, controls c = [base, other, other, other] do not. A is a head's attention along the stripe from each token
to the one n - 1 before it, n the length of the base, averaged over the queries from n on: in r, that key is the token
after the previous occurrence (a head that looks after all earlier ones as well shows a part of itself). A stripe does
not show that the model uses the head, nor a loss that rises without it that it is an induction head: one that tells
tokens their predecessors is needed too. Heads that stand in for each other are not found one by one. Source: Olsson et
al. 2022 (arXiv 2209.11895); their score for in-context learning is of tokens 500 and 50, here of two tenths.
"""

import argparse
import csv
import sys
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from mingpt.common import atomic_write
from mingpt.hub import steps_in
from mingpt.interpretability import figures, runs
from mingpt.model import GPT
from mingpt.sites import Patch

SURE = 4  # standard errors from 0 that are taken for more than chance


def draw_prompts(model, length=None, bases=32, seed=0, text=None):
    """Ids (2,B,4n), B = bases: repeats and controls; with a text (3,B,4n), pieces of it as long after them.

    A base or other is n = length tokens (None: 32, or what fits), uniform over the vocabulary and all different, or
    with a text n in a row from anywhere in it, some of which may come back by themselves.
    """
    V, most = model.config.vocab_size, min(model.config.vocab_size, model.block_size // 4)
    n, generator = min(32, most) if length is None else length, torch.Generator().manual_seed(seed)
    if bases < 2 or not 2 <= n <= most:
        raise ValueError(
            f"needs 2 bases or more, of 2 to {most} tokens for this model; got {bases} of {n}"
        )
    if text is None:
        control = torch.rand(4 * bases, V, generator=generator).topk(n).indices.view(bases, 4 * n)
        return torch.stack([control[:, :n].repeat(1, 4), control])
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer; leave the text out, for random tokens")
    tokens = torch.tensor(model.tokenizer.encode(text))
    if len(tokens) < 4 * n:
        raise ValueError(
            f"the text has {len(tokens)} tokens, needs {4 * n}; give a longer one, or none"
        )
    starts = torch.randint(len(tokens) - 4 * n + 1, (5 * bases, 1), generator=generator)
    texts, others = tokens[starts + torch.arange(4 * n)].split([bases, 4 * bases])
    control = others[:, :n].reshape(bases, 4 * n)
    return torch.stack([control[:, :n].repeat(1, 4), control, texts])


@torch.no_grad()
def study_induction(model, prompts, kinds=("zero", "mean")):
    """{name: (B,L,H) for each head, or (B,) for the model}, of each base by itself; mean_error averages.

    A(r), A(c), A(r)-A(c); Delta, the largest mean A(r)-A(c) of a head; loss(r), loss(c) and loss(text), in nats, over
    the last three pieces, the first token of which nothing foretells and is left out; ICL, loss in the last tenth of
    the positions - in the second tenth, of the texts if there are any, else of r: negative = it learns in context.
    Then for each kind and head ablated: "change of Delta, zero" (its own A is left out), "change of loss(r), zero", and
    of loss(c), which a head that serves repeats alone does not change; "ICL share lost, zero", of 1 (nan where ICL is
    not below 0 by 4 standard errors: there is nothing to lose). prompts: of draw_prompts, or any such ids.
    kinds: "zero" makes the head's z 0, "mean" its mean over c. ValueError for a single head.
    Cost: 1 pass over the prompts, and L*H for each kind; "mean": 1 more over c.
    """
    runs.check_model(model)
    if kinds and model.config.n_layer * model.config.n_head < 2:
        raise ValueError(
            "without its only head nothing is left to compare; take a model with two heads, or kinds=()"
        )
    if not {*kinds} <= {"zero", "mean"}:
        raise ValueError(f'kinds must be of "zero" and "mean", got {kinds}')
    prompts = prompts.to(model.lm_head.weight.device)
    values = _measure(model, prompts)
    values["Delta"] = values["A(r)-A(c)"].flatten(1)[:, values["A(r)-A(c)"].mean(0).argmax()]
    z = _mean_z(model, prompts[1]) if "mean" in kinds else None
    icl, error = mean_error(values["ICL"])
    whole = icl if icl < -SURE * error else torch.nan
    heads = product(kinds, range(model.config.n_layer), range(model.config.n_head))
    for kind, l, h in tqdm([*heads], desc="ablating", unit="head", disable=None):
        new = z[l, h] if kind == "mean" else torch.zeros(())
        ablated = _measure(model, prompts, [Patch(l, None, new, "z", h)])
        others = ablated["A(r)-A(c)"]
        others[:, l, h] = -torch.inf
        delta = others.flatten(1)[:, others.mean(0).argmax()]
        lost = (values["ICL"] - ablated["ICL"]) / whole
        changes = {"change of Delta": delta - values["Delta"], "ICL share lost": lost}
        changes |= {
            f"change of {loss}": ablated[loss] - values[loss] for loss in ("loss(r)", "loss(c)")
        }
        for name, change in changes.items():
            values.setdefault(f"{name}, {kind}", torch.empty_like(others))[:, l, h] = change
    return values


def _mean_z(model, ids):
    """(L,H,D): every head's mean z over these inputs (B,T)."""
    total, batches = 0, ids.split(max(1, 2000 // ids.size(1)))
    for some in batches:
        total = total + torch.stack([*runs.record(model, some, ["z"])["z"].values()]).sum(
            (1, 3)
        )  # (L,b,H,T,D) -> (L,H,D)
    return total / ids.numel()


def _measure(model, prompts, patches=()):
    """What study_induction says without ablation, Delta aside; some 2,000 tokens at a time."""
    found, T = [], prompts.size(2)
    n, tenth = T // 4, max(1, T // 10)
    for some in prompts.split(max(1, 1000 // T), dim=1):
        stored, ids = {"pattern": {}}, some.flatten(0, 1)  # (r,b,T) -> (rb,T)
        logits = model.lm_head(model.transformer.ln_f(model.stream(ids, patches, stored)))[
            :, :-1
        ].float()
        loss = F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").unflatten(
            0, some.shape[:2]
        )  # (r,b,T-1)
        stripes = [
            pattern.diagonal(1 - n, -2, -1)[..., 1:].mean(-1)
            for pattern in stored["pattern"].values()
        ]
        A = torch.stack(stripes, 1).float().unflatten(0, some.shape[:2])  # L x (rb,H) -> (r,b,L,H)
        text = loss[-1 if len(loss) == 3 else 0]
        part = {"A(r)": A[0], "A(c)": A[1], "A(r)-A(c)": A[0] - A[1]}
        part |= zip(
            ("loss(r)", "loss(c)", "loss(text)"), loss[:, :, n:].mean(-1)
        )  # entry t is the loss on token t + 1
        found.append(part | {"ICL": text[:, -tenth:].mean(1) - text[:, tenth : 2 * tenth].mean(1)})
    return {name: torch.cat([part[name] for part in found]).cpu() for name in found[0]}


def mean_error(value):
    """(mean over the first axis, its standard error)."""
    return value.mean(0), value.std(0) / len(value) ** 0.5


def name_candidates(values, kind="zero", share=0.1):
    """{"Delta": [(layer, head), ...], "loss(r)": [...], "both": [...]}: heads that are needed, the most needed first.

    Ablation takes at least this share of Delta, or of loss(c) - loss(r); both are over 4 standard errors from 0. Of the
    head with the largest A itself, Delta says only how far it is ahead: the next one takes its place.
    """
    named = {}
    for name, sign, whole in (
        ("Delta", -1, values["Delta"]),
        ("loss(r)", 1, values["loss(c)"] - values["loss(r)"]),
    ):
        (mean, error), (size, off) = (
            mean_error(sign * values[f"change of {name}, {kind}"]),
            mean_error(whole),
        )
        found = (mean > SURE * error) & (mean >= share * size) & (size > SURE * off)
        named[name] = sorted(map(tuple, found.nonzero().tolist()), key=lambda head: -mean[head])
    return named | {"both": [head for head in named["loss(r)"] if head in named["Delta"]]}


def induction_curve(run_folder, length=None, bases=32, seed=0, text=None):
    """{step: study_induction without ablation} of the checkpoints in a run folder; {} if it has none. A pass each."""
    curve, prompts = {}, None
    for step, folder in tqdm(sorted(steps_in(run_folder).items()), unit="checkpoint", disable=None):
        if not folder.exists():
            continue  # the run goes on, and has removed it
        model = GPT.from_pretrained(folder)
        prompts = draw_prompts(model, length, bases, seed, text) if prompts is None else prompts
        curve[step] = study_induction(model, prompts, kinds=())
    return curve


@torch.no_grad()
def plot_study(model, prompts, values, path=None):
    """The Figure of the mean (L,H) of values, changes of loss(c) aside, and of the head with the largest A(r)-A(c).

    Its mean pattern is whole, on r; and zoomed to queries in piece 2 and keys in piece 1, on r and c: the stripe lies
    at +1.
    """
    from matplotlib.colors import CenteredNorm
    from matplotlib.figure import Figure

    drawn, n = (
        [name for name in values if values[name].ndim == 3 and "loss(c)" not in name],
        prompts.size(2) // 4,
    )
    maps = {name: values[name].mean(0) for name in drawn}
    layer, head = divmod(maps["A(r)-A(c)"].argmax().item(), model.config.n_head)
    pairs = (
        prompts[:2, :16].transpose(0, 1).to(model.lm_head.weight.device)
    )  # (b,2,T): a pair at a time, for memory
    r, c = sum(
        runs.record(model, pair, ["pattern"])["pattern"][layer][:, head].float() for pair in pairs
    ) / len(pairs)
    maps[f"{layer}.{head} on r"] = r
    maps |= {
        f"{layer}.{head} on {x}, pieces 2, 1": part[n : 2 * n, :n] for x, part in zip("rc", (r, c))
    }
    largest = {name: mean.abs().max().item() for name, mean in maps.items()}
    for alike in (
        [name for name in maps if name[0] == "A"],
        [name for name in maps if "pieces" in name],
    ):
        largest |= dict.fromkeys(
            alike, max(largest[name] for name in alike)
        )  # drawn to one scale, to compare
    rows = len(maps) // 3
    figure = Figure(figsize=(13, 4 * rows), layout="constrained")
    for axes, (name, mean) in zip(figure.subplots(rows, 3).flat, maps.items()):
        origin, ylabel, xlabel = (
            ("lower", "layer", "head") if name in values else ("upper", "query", "key")
        )
        norm = CenteredNorm(0, largest[name] or None)
        figure.colorbar(
            axes.imshow(mean.cpu().numpy(), "RdBu_r", norm=norm, origin=origin, aspect="auto")
        )
        axes.set(
            title=name + ": none to lose" * bool(mean.isnan().all()), xlabel=xlabel, ylabel=ylabel
        )
        axes.locator_params(integer=True)
    return figures.shown(figure, path)


def plot_curve(curve, path=None, losses=None):
    """The Figure of induction_curve by step: A(r)-A(c) of each head, the highest five named; the prompts' losses, ICL.

    losses: {"step": [...], name: [...], ...}, drawn below: those of the training itself, in nats per token.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 12 if losses else 8), layout="constrained")
    panels = figure.subplots(3 if losses else 2, 1, sharex=True)
    heads = torch.stack([values["A(r)-A(c)"].mean(0) for values in curve.values()])  # (S,L,H)
    for rank, i in enumerate(heads.amax(0).flatten().argsort(descending=True).tolist()):
        l, h = divmod(i, heads.size(2))
        style = {"label": f"head {l}.{h}"} if rank < 5 else {"color": "lightgrey", "zorder": 1}
        panels[0].plot(list(curve), heads[:, l, h].numpy(), ".-", **style)
    for name in [
        name for name in ("loss(r)", "loss(c)", "loss(text)", "ICL") if name in [*curve.values()][0]
    ]:
        found = torch.tensor([mean_error(values[name]) for values in curve.values()])  # (S,2)
        panels[1].errorbar(list(curve), *found.T.numpy(), label=name)
    for name in [name for name in losses or () if name != "step"]:
        panels[2].plot(losses["step"], losses[name], label=name)
    ylabels = (
        "A(r)-A(c)",
        "on the prompts: nats, with standard errors",
        "of the training: nats per token",
    )
    for axes, ylabel in zip(panels, ylabels):
        axes.set(xlabel="step", ylabel=ylabel)
        axes.legend()
    return figures.shown(figure, path)


def read_losses(run_folder):
    """{"step": [...], "train_loss": [...], "validation_loss": [...]} of the run's curve.csv; None if it has none."""
    try:
        with open(Path(run_folder) / "curve.csv", newline="", encoding="utf-8") as file:
            rows = [*csv.DictReader(file)]
        return {
            name: [float(row[name]) for row in rows]
            for name in ("step", "train_loss", "validation_loss")
        }
    except (OSError, KeyError):
        return None


def summarize(values):
    """[(name, "layer.head" or "", mean, standard error), ...] of all values."""
    rows = []
    for name, (mean, error) in ((name, mean_error(value)) for name, value in values.items()):
        places = [".".join(map(str, place)) for place in product(*map(range, mean.shape))]
        rows += zip([name] * len(places), places, mean.flatten().tolist(), error.flatten().tolist())
    return rows


def report(name, output, text=None, length=None, bases=32, seed=0):
    """What the command line does: studies the named model or run, writes pictures and table, prints the largest."""
    picture, table = Path(output) / "induction.png", Path(output) / "induction.csv"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figures.check_output(picture)
    drawn = (length, bases, seed, text and Path(text).read_text(encoding="utf-8"))
    last, model = max(steps_in(name), default=None), GPT.from_pretrained(name)
    curve = induction_curve(name, *drawn)
    prompts = draw_prompts(model, *drawn)
    values = study_induction(model, prompts)
    plot_study(model, prompts, values, picture)
    if curve:
        plot_curve(curve, picture.with_name("induction_curve.png"), read_losses(name))
    setting = {"n": bases, "length": prompts.size(2) // 4, "seed": seed, "text": text}
    with (
        atomic_write(table) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        lines = csv.writer(file)
        lines.writerow(["step", "quantity", "layer.head", "mean", "standard error", *setting])
        for step, found in (curve | {last: values}).items():
            lines.writerows([step, *row, *setting.values()] for row in summarize(found))
    print(f"{name}, {setting}: mean +- standard error, of heads the five largest")
    for quantity, rows in groupby(summarize(values), itemgetter(0)):
        largest = sorted((row for row in rows if row[2] == row[2]), key=lambda row: -abs(row[2]))[
            :5
        ]  # not nan
        found = [f"{place:>4} {mean:.3f} +- {error:.3f}" for _, place, mean, error in largest]
        print(f"{quantity:24}", *found or ["none to lose"])
    for kind in ("zero", "mean"):
        print(f"needed ({kind}):", name_candidates(values, kind))


def main(arguments=None):
    """The command line: 0, or 2 after a message that says what to change."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "name",
        metavar="MODEL_OR_RUN",
        help="of a run, the last model is studied, the curve is of all",
    )
    parser.add_argument(
        "--output", required=True, help="folder for induction.png, .csv and induction_curve.png"
    )
    parser.add_argument(
        "--text", help="a file to take bases from; without it they are random tokens"
    )
    for flag, default in (("--length", None), ("--bases", 32), ("--seed", 0)):
        parser.add_argument(flag, type=int, default=default, help="default: %(default)s")
    try:
        report(**vars(parser.parse_args(arguments)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
