"""How much of in-context learning (ICL) is lost without some heads together?

ICL is a loss at the end minus a loss at the beginning, in nats a token; negative = the model
learns in context. It is measured on two kinds of inputs:

    repeats  a piece of tokens four times: piece 4 minus piece 1, without each piece's first token
    texts    unbroken text: the last tenth of the positions minus the second tenth

The control are as many other heads, drawn from the layers of these heads and those above, so that
none of them is what these heads read. What an ablation raises early and late alike is no loss of
ICL, but may hide one. In a text the end may be easier than the beginning for other reasons than
what was read before: a share tells what of it needs these heads.

Source: Olsson et al. 2022 (arXiv 2209.11895), which compares the losses of tokens 500 and 50.
"""

import random
from dataclasses import dataclass
from itertools import product
from math import comb, nan

import torch
from torch.nn import functional as F

from experiments.induction_figures import dotted
from mingpt.common import progress_bar
from mingpt.interpretability import induction, runs
from mingpt.sites import Patch

DRAWS = 5  # of control heads, where there are so many
STANDS_IN = {"zero": "zeros", "mean": "their means"}  # for the heads' z
REFERENCES = 64  # texts, of which a head's mean z is taken


@dataclass
class Losses:
    """What the model says without some heads: means over n inputs, each with its standard error.

    Of control heads the mean over all draws, and the least and the largest share of a draw.
    """

    inputs: str  # "repeats" or "texts"
    without: str  # "nothing", the heads, or "as many others (draws: 5)"
    kind: str  # what stands in for them: "zero", "mean", or "" for nothing
    n: int
    parts: str  # losses of the parts, from the beginning to the end
    icl: float
    icl_error: float
    share_lost: float = nan  # of the intact model's icl; nan if that is not clearly below 0
    share_error: float = nan
    least_share: float = nan
    largest_share: float = nan


def study_losses(model, rows, prompts, heads):
    """A list of Losses: without nothing, without the heads together, without control heads.

    rows: texts, ids (1,T) each. prompts: of induction.draw_prompts. heads: [(layer, head), ...]; []
    ablates nothing. Cost: 2 * (draws + 1) + 1 passes over both, and 1 for the means over a part.
    """
    draws = draw_controls(model, heads)
    names = {" ".join(map(dotted, heads)): [heads]} if heads else {}
    if draws:
        names[f"as many others (draws: {len(draws)})"] = draws
    repeats = prompts[0].split(1)
    inputs = {"repeats": (repeats, split_pieces), "texts": (rows, split_tenths)}
    # A mean over repeats would know the piece.
    references = {"repeats": prompts[1].split(1), "texts": rows[:REFERENCES]}
    found = []
    for name, (ids, split) in inputs.items():
        intact = part_losses(model, ids, split)
        found.append(summarize(name, "nothing", "", intact, [intact]))
        means = mean_z(model, references[name])
        for kind in induction.KINDS:
            z = means if kind == "mean" else torch.zeros_like(means)
            for without, sets in names.items():
                ablated = [part_losses(model, ids, split, patches_for(some, z)) for some in sets]
                found.append(summarize(name, without, kind, intact, ablated))
    return found


def draw_controls(model, heads):
    """Up to DRAWS different sets of as many other heads, lists of (layer, head); [] if too few."""
    if not heads:
        return []
    lowest = min(layer for layer, _ in heads)
    places = product(range(lowest, model.config.n_layer), range(model.config.n_head))
    others = [head for head in places if head not in heads]
    rng = random.Random(0)
    draws = set()
    while len(draws) < min(DRAWS, comb(len(others), len(heads))):
        draws.add(tuple(sorted(rng.sample(others, len(heads)))))
    return sorted(draws)


def patches_for(heads, z):
    """The patches that put z (L,H,D) in the place of the heads' own."""
    return [Patch(l, None, z[l, h], "z", h) for l, h in heads]


def mean_z(model, rows):
    """(L,H,D): every head's mean z over all tokens of some ids (1,T)."""
    total = 0
    for ids in rows:
        z = torch.cat(list(runs.record(model, ids, ["z"])["z"].values()))  # (L,H,T,D)
        total += z.sum(2)
    return total / sum(ids.size(1) for ids in rows)


@torch.no_grad()
def part_losses(model, rows, split, patches=()):
    """(n,parts): the mean loss in each part of each text, ids (1,T); split: as split_tenths."""
    losses = []
    for ids in progress_bar(rows, desc="losses", unit="text"):
        stream = runs.run(model, ids, patches)[0, :-1]
        logits = model.lm_head(model.transformer.ln_f(stream)).float()  # (T-1,V)
        loss = F.cross_entropy(logits, ids[0, 1:], reduction="none")  # (T-1,)
        losses.append(torch.stack([part.mean() for part in split(loss)]).cpu())
    return torch.stack(losses)


def split_pieces(loss):
    """The parts of a repeat's losses (T-1,), 4; the loss on token t + 1 stands at t."""
    n = (len(loss) + 1) // 4
    return [loss[piece * n : (piece + 1) * n - 1] for piece in range(4)]


def split_tenths(loss):
    """The parts of a text's losses (T-1,), 2: the second tenth and the last one."""
    tenth = max(1, (len(loss) + 1) // 10)
    return [loss[tenth : 2 * tenth], loss[-tenth:]]


def summarize(inputs, without, kind, intact, ablated):
    """The Losses of ablated, a list of (n,parts) of each draw; intact: (n,parts)."""
    mean = torch.stack(ablated).mean(0)  # (n,parts)
    parts = " ".join(f"{loss:.3f}" for loss in mean.mean(0).tolist())
    icl, error = induction.mean_error(icl_of(mean))
    found = Losses(inputs, without, kind, len(mean), parts, icl.item(), error.item())
    whole, whole_error = induction.mean_error(icl_of(intact))
    # A share of something that may be 0 says nothing.
    if kind and whole < -induction.STANDARD_ERRORS * whole_error:
        found.share_lost, found.share_error = share_lost(intact, mean)
        shares = [share_lost(intact, draw)[0] for draw in ablated]
        found.least_share = min(shares)
        found.largest_share = max(shares)
    return found


def icl_of(parts):
    """(n,): the loss at the end minus that at the beginning, of losses (n,parts)."""
    return parts[:, -1] - parts[:, 0]


def share_lost(intact, ablated):
    """(share, its standard error) of ICL that is gone, of losses (n,parts); 1 = all of it.

    It is a ratio of two means over the same texts, so its error is that of the residuals (the delta
    method).
    """
    whole = icl_of(intact)
    lost = whole - icl_of(ablated)
    share = lost.mean() / whole.mean()
    _, error = induction.mean_error((lost - share * whole) / whole.mean())
    return share.item(), error.item()


def print_losses(found):
    """Print the Losses, a block for each kind of inputs."""
    print("\nIn-context learning: loss at the end - loss at the beginning, nats a token")
    if not any(line.kind for line in found):
        print("(no head is clearly an induction head; nothing was ablated)")
    for line in found:
        if not line.kind:
            print(f"\n{line.inputs}, n = {line.n}")
        stands_in = f", {STANDS_IN[line.kind]} in their place" if line.kind else ""
        print(f"without {line.without}{stands_in}: losses {line.parts}")
        print(f"    ICL {line.icl:.3f} +- {line.icl_error:.3f}; {_share_text(line)}")


def _share_text(line):
    """What the share says, in words."""
    if not line.kind:
        is_clear = line.icl < -induction.STANDARD_ERRORS * line.icl_error
        return "the whole" if is_clear else "not clearly below 0"
    if line.share_lost != line.share_lost:  # nan
        return "no share, since the whole is not clear"
    text = f"share lost {line.share_lost:.3f} +- {line.share_error:.3f}"
    if line.least_share < line.largest_share:
        text += f" ({line.least_share:.3f} to {line.largest_share:.3f})"
    return text
