"""Which heads are induction heads, what is lost without them, and when in training do they form?

An induction head looks from a token to the token that followed its previous occurrence. Prompts
come in pairs. A repeat r is one piece of n tokens four times, [base] * 4, where such a head can do
its work; its control c is [base, other, other, other], where it cannot.

The measure of a head is its attention A along one stripe: from each token to the token n - 1
before it, averaged over all queries from position n on. In r that key is the token after the
previous occurrence. A head that also looks after all earlier occurrences shows only a part of its
attention in A.

A large A(r) - A(c) does not show that the model uses the head. A loss that rises without a head
does not show that it is an induction head: heads that look at the previous token are needed as
well. Two heads that can replace each other are not found by ablating one at a time.

Source: Olsson et al. 2022 (arXiv 2209.11895). Their score of in-context learning compares the
losses of tokens 500 and 50; here it compares two tenths of the positions.

Letters in the shapes: B bases, T = 4n positions, L layers, H heads, D head size, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt.common import AnyPath, progress_bar
from mingpt.hub import steps_in
from mingpt.interpretability import results, runs
from mingpt.interpretability.inputs import Head
from mingpt.model import GPT
from mingpt.sites import Activations, Patch

if TYPE_CHECKING:  # pandas need not be there
    from pandas import DataFrame

KINDS = ("zero", "mean")  # of ablation
STANDARD_ERRORS = 4  # a mean that is further from 0 than this is taken for more than chance


@dataclass(repr=False)
class HeadAblations:
    """What changes when one head is ablated: (B,L,H), entry [b, l, h] without head l.h alone.

    change_of_delta          of the largest A(r) - A(c) of the other heads; negative = they looked
                             there because of this head
    in_context_share_lost    share of in_context that is gone, 1 = all; nan if there is none to lose
    change_of_loss_repeats   in nats; positive = the head helped
    change_of_loss_controls  in nats; near 0 for a head that serves repeats alone
    """

    change_of_delta: Tensor
    in_context_share_lost: Tensor
    change_of_loss_repeats: Tensor
    change_of_loss_controls: Tensor

    __repr__ = results.summary


@dataclass(repr=False)
class InductionStudy:
    """What study_induction measures, for each base by itself; mean_error averages over the bases.

    field                 shape    printed as  meaning
    attention_repeats     (B,L,H)  A(r)        attention along the stripe in the repeats, 0 to 1
    attention_controls    (B,L,H)  A(c)        the same in the controls
    attention_difference  (B,L,H)  A(r)-A(c)   near 1 for an induction head, near 0 for most heads
    loss_repeats          (B,)     loss(r)     nats a token on pieces 2 to 4; without the first
                                               token of piece 2, which nothing foretells
    loss_controls         (B,)     loss(c)     the same in the controls
    loss_texts            (B,)     loss(text)  the same in unbroken text; None without a text
    in_context            (B,)     ICL         loss in the last tenth of the positions minus loss in
                                               the second tenth, of the texts, or of the repeats if
                                               there are none; negative = it learns in context
    delta                 (B,)     Delta       A(r) - A(c) of the head with the largest mean
    ablations             {kind: HeadAblations}, kind "zero" or "mean"
    """

    attention_repeats: Tensor
    attention_controls: Tensor
    attention_difference: Tensor
    loss_repeats: Tensor
    loss_controls: Tensor
    loss_texts: Tensor | None
    in_context: Tensor
    delta: Tensor
    ablations: dict[str, HeadAblations] = field(default_factory=dict)

    __repr__ = results.summary

    def to_dataframe(self) -> "DataFrame":
        """The pandas DataFrame of the means over the bases: a row per head, with its attention."""
        columns = results.places(self.attention_repeats.shape[1:], "layer", "head")
        for name in ("attention_repeats", "attention_controls", "attention_difference"):
            columns[name] = getattr(self, name).mean(0).flatten().tolist()
        return results.data_frame(columns)


@dataclass
class Candidates:
    """Heads that are needed, lists of (layer, head), the most needed one first.

    delta  without it the largest A(r) - A(c) of the other heads falls
    loss   without it the loss on repeats rises
    both   in both lists, in the order of loss
    """

    delta: list[Head]
    loss: list[Head]
    both: list[Head]


def draw_prompts(
    model: GPT, length: int | None = None, bases: int = 32, seed: int = 0, text: str | None = None
) -> Tensor:
    """Ids (2,B,4n): B = bases repeats and their controls; with a text (3,B,4n), excerpts of it too.

    length: n, the tokens in a piece; None: 32, or as many as fit. A piece is uniform over the
    vocabulary, all its tokens different; with a text, n tokens in a row from anywhere in it, some
    of which may occur twice.
    """
    V = model.config.vocab_size
    longest = min(V, model.block_size // 4)
    n = min(32, longest) if length is None else length
    if bases < 2 or not 2 <= n <= longest:
        raise ValueError(
            f"needs 2 bases or more, of 2 to {longest} tokens for this model; got {bases} of {n}"
        )
    generator = torch.Generator().manual_seed(seed)
    if text is None:
        # The n largest of V random numbers are n different tokens in random order.
        pieces = torch.rand(4 * bases, V, generator=generator).topk(n).indices
        texts = []
    else:
        tokens = _encode_text(model, text, 4 * n)
        starts = torch.randint(len(tokens) - 4 * n + 1, (5 * bases, 1), generator=generator)
        rows = tokens[starts + torch.arange(4 * n)]  # (5B,4n)
        texts = [rows[:bases]]
        pieces = rows[bases:, :n]
    controls = pieces.reshape(bases, 4 * n)  # (4B,n) -> (B,4n)
    repeats = controls[:, :n].repeat(1, 4)
    return torch.stack([repeats, controls, *texts])


def _encode_text(model, text, least):
    """The text's ids, (N,); ValueError without a tokenizer, or if there are fewer than `least`."""
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer; leave the text out, for random tokens")
    tokens = torch.tensor(model.tokenizer.encode(text))
    if len(tokens) < least:
        raise ValueError(
            f"the text has {len(tokens)} tokens, needs {least}; give a longer one, or none"
        )
    return tokens


@torch.no_grad()
def study_induction(
    model: GPT, prompts: Tensor | None = None, kinds: Sequence[str] = KINDS
) -> InductionStudy:
    """The InductionStudy of a model.

    prompts: of draw_prompts, or any such ids; None: draw_prompts(model). kinds: "zero" puts 0 in
    the place of a head's z, "mean" its mean over the controls; () ablates nothing. ValueError for
    ablations in a model with a single head. Cost: 1 pass over the prompts, L*H for each kind, and
    for "mean" 1 more over the controls.
    """
    L = model.config.n_layer
    H = model.config.n_head
    if kinds and L * H < 2:
        raise ValueError(
            "without its only head nothing is left to compare; "
            "take a model with two heads, or kinds=()"
        )
    if not {*kinds} <= {*KINDS}:
        raise ValueError(f'kinds must be of "zero" and "mean", got {kinds}')
    if prompts is None:
        prompts = draw_prompts(model)
    prompts = prompts.to(model.lm_head.weight.device)
    study = _measure(model, prompts)
    for kind in kinds:
        z = torch.zeros(L, H, 1) if kind == "zero" else _mean_z(model, prompts[1])
        study.ablations[kind] = _ablate_heads(model, prompts, study, z, kind)
    return study


def _ablate_heads(model, prompts, study, z, kind):
    """The HeadAblations for which z (L,H,D) takes the place of each head's own z."""
    L = model.config.n_layer
    H = model.config.n_head
    mean, error = mean_error(study.in_context)
    # A share of something that may be 0 says nothing.
    whole = mean if mean < -STANDARD_ERRORS * error else torch.nan
    changes = []
    heads = list(product(range(L), range(H)))
    for l, h in progress_bar(heads, desc=f"ablating, {kind}", unit="head"):
        ablated = _measure(model, prompts, [Patch(l, None, z[l, h], "z", h)])
        # In the order of HeadAblations, (B,) each.
        change = (
            ablated.delta - study.delta,
            (study.in_context - ablated.in_context) / whole,
            ablated.loss_repeats - study.loss_repeats,
            ablated.loss_controls - study.loss_controls,
        )
        changes.append(torch.stack(change))
    return HeadAblations(*torch.stack(changes, 2).unflatten(2, (L, H)))  # (4,B,LH) -> 4 x (B,L,H)


def _mean_z(model, ids):
    """(L,H,D): every head's mean z over these ids (B,T)."""
    total: Tensor | int = 0
    for chunk in ids.split(max(1, 2000 // ids.size(1))):
        z = torch.stack(list(runs.record(model, chunk, ["z"])["z"].values()))  # (L,b,H,T,D)
        total += z.sum((1, 3))  # (L,H,D)
    return total / ids.numel()


def _measure(model, prompts, patches=()):
    """The InductionStudy of one run, without ablations; delta leaves patched heads out."""
    T = prompts.size(2)
    n = T // 4
    # Some 2,000 tokens at a time: logits and patterns are large.
    chunks = prompts.split(max(1, 1000 // T), dim=1)
    measured = [_run_chunk(model, chunk, patches) for chunk in chunks]
    attention, losses = (torch.cat(parts, dim=1) for parts in zip(*measured))
    difference = attention[0] - attention[1]  # (B,L,H)

    others = difference.clone()
    for patch in patches:
        others[:, patch.layer, patch.head] = -torch.inf
    largest = others.mean(0).argmax()

    # The loss on token t + 1 stands at t: from n on it is without the first token of piece 2.
    later = losses[:, :, n:].mean(-1)  # (r,B)
    has_texts = len(losses) == 3
    unbroken = losses[2 if has_texts else 0]
    tenth = max(1, T // 10)
    late = unbroken[:, -tenth:].mean(1)
    early = unbroken[:, tenth : 2 * tenth].mean(1)
    return InductionStudy(
        attention_repeats=attention[0],
        attention_controls=attention[1],
        attention_difference=difference,
        loss_repeats=later[0],
        loss_controls=later[1],
        loss_texts=later[2] if has_texts else None,
        in_context=late - early,
        delta=others.flatten(1)[:, largest],
    )


def _run_chunk(model, prompts, patches):
    """(A (r,b,L,H), loss on each token but the first (r,b,T-1)) of prompts (r,b,T), on the CPU."""
    ids = prompts.flatten(0, 1)  # (r,b,T) -> (rb,T)
    n = ids.size(1) // 4
    stored: Activations = {"pattern": {}}
    stream = runs.run(model, ids, patches, stored)
    logits = model.lm_head(model.transformer.ln_f(stream))[:, :-1].float()  # (rb,T-1,V)
    losses = F.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
    # Entry i of this diagonal is query n - 1 + i and key i; query n - 1 is still in the base.
    patterns = stored["pattern"].values()  # L x (rb,H,T,T)
    stripes = [pattern.diagonal(1 - n, -2, -1)[..., 1:].mean(-1) for pattern in patterns]
    attention = torch.stack(stripes, 1).float()  # L x (rb,H) -> (rb,L,H)
    pairs = prompts.shape[:2]
    return attention.unflatten(0, pairs).cpu(), losses.unflatten(0, pairs).cpu()


def mean_error(value: Tensor) -> tuple[Tensor, Tensor]:
    """(mean over the first axis, its standard error)."""
    return value.mean(0), value.std(0) / len(value) ** 0.5


def name_candidates(study: InductionStudy, kind: str = "zero", share: float = 0.1) -> Candidates:
    """The Candidates of a study: heads without which much is lost, more than chance would explain.

    Ablation takes at least this share of delta, or of loss_controls - loss_repeats; what is lost
    and what it is a share of are both over 4 standard errors from 0. For the head with the largest
    A itself, delta says only how far ahead it is: the next head takes its place.
    """
    changes = study.ablations[kind]
    saved = study.loss_controls - study.loss_repeats
    delta = _needed_heads(-changes.change_of_delta, study.delta, share)
    loss = _needed_heads(changes.change_of_loss_repeats, saved, share)
    return Candidates(delta, loss, both=[head for head in loss if head in delta])


def _needed_heads(lost, whole, share):
    """[(layer, head), ...] whose ablation costs enough, lost (B,L,H) of whole (B,), sorted."""
    lost, error = mean_error(lost)
    whole, whole_error = mean_error(whole)
    is_sure = (lost > STANDARD_ERRORS * error) & (whole > STANDARD_ERRORS * whole_error)
    is_large = lost >= share * whole
    heads = [tuple(head) for head in (is_sure & is_large).nonzero().tolist()]
    return sorted(heads, key=lambda head: -lost[head])


def induction_curve(
    run_folder: AnyPath,
    length: int | None = None,
    bases: int = 32,
    seed: int = 0,
    text: str | None = None,
) -> dict[int, InductionStudy]:
    """{step: InductionStudy without ablations} of a run folder's checkpoints; {} if it has none.

    All checkpoints get the same prompts, those of draw_prompts. Cost: 1 pass for each checkpoint.
    """
    curve = {}
    prompts = None
    checkpoints = sorted(steps_in(run_folder).items())
    for step, folder in progress_bar(checkpoints, unit="checkpoint"):
        try:
            model = GPT.from_pretrained(folder.absolute())  # never a model id of the hub
        except ValueError:
            if folder.exists():
                raise
            # A run that is still going on has removed it.
            continue
        if prompts is None:
            prompts = draw_prompts(model, length, bases, seed, text)
        curve[step] = study_induction(model, prompts, kinds=())
    return curve
