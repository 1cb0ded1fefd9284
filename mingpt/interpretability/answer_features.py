"""Which features carry the answer?

Each active feature is taken out at its token, in a run of its own, and the answer is read again;
beside it stands what the gradient says. One that changes nothing alone may have others that stand
in for it. What the autoencoder does not explain stays in all of these runs, and may carry much.
Source: Marks et al. 2024 (arXiv 2403.19647), which differs: there the gradient alone decides.
"""

from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from mingpt.common import progress_bar
from mingpt.interpretability import partial_runs, readout, runs
from mingpt.interpretability.autoencoder_config import AutoencoderConfig
from mingpt.interpretability.autoencoders import Autoencoder, as_vectors, from_vectors
from mingpt.interpretability.features import check_fits, encode_text, site_vectors
from mingpt.interpretability.inputs import Answer, Text, answer_ids, encode_pair, token_texts
from mingpt.model import GPT
from mingpt.sites import Activations

SHOWN = 20  # lines of a table


@dataclass(repr=False)
class AnswerFeatures:
    """What each active feature adds to a logit or a difference of two, in logits; printed, a table.

    The strongest first, by `exact`; positive = it supports the answer.
    """

    tokens: list[str]  # T texts
    position: Tensor  # (F,)
    feature: Tensor  # (F,)
    activation: Tensor  # (F,)
    replaced_by: Tensor  # (F,), its value in the other text; 0 without one
    exact: Tensor  # (F,): intact - with the feature replaced
    gradient: Tensor  # (F,): the same to first order
    total: float  # of the intact run

    def __repr__(self):
        lines = [f"intact {self.total:.3f}; {len(self.exact)} features, of which:"]
        lines.append("position  token            feature  activation     exact  gradient")
        rows = zip(self.position, self.feature, self.activation, self.exact, self.gradient)
        for position, feature, *values in islice(rows, SHOWN):
            token = repr(self.tokens[position])
            cells = "".join(f"{value:10.3f}" for value in values)
            lines.append(f"{position:8}  {token:14}{feature:10}  {cells}")
        return "\n".join(lines)


def answer_features(
    model: GPT,
    autoencoder: Autoencoder,
    text: Text,
    answer: Answer,
    other: Answer = None,
    corrupted: Text | None = None,
    beginning: bool | None = None,
    max_tokens: int = 4096,
) -> AnswerFeatures:
    """AnswerFeatures of logit(answer) [- logit(other)] at the last position.

    text: one, or ids (1,T). corrupted: a text of as many tokens, whose value of a feature is put in
    the place of each that differs; without one it is 0. beginning: as in features.features.
    max_tokens: how many may be under way at once, which bounds the memory. Cost: 2 passes and 1
    backward (1 pass more with a corrupted text), and for each feature the tail of a run.
    """
    check_fits(model, autoencoder)
    ids = encode_text(model, autoencoder, text, beginning)
    direction = _read_direction(model, ids, answer, other)
    intact = _record_intact(model, autoencoder, ids, direction)
    with torch.no_grad():
        wanted = torch.zeros_like(intact.features)
        if corrupted is not None:
            corrupted_ids = encode_text(model, autoencoder, corrupted, beginning)
            encode_pair(model, ids, corrupted_ids)  # of one length, and not the same
            x = site_vectors(model, autoencoder, corrupted_ids)[0]
            wanted = autoencoder.encode(x)
        found = _replace_each(model, autoencoder, ids, intact, wanted, direction, max_tokens)
        found["tokens"] = token_texts(model, ids[0])
    return AnswerFeatures(**found, total=intact.total.item())


def _read_direction(model, ids, answer, other):
    """(C,): the direction of the last normalised vector along which the answer is ahead."""
    answer_id = answer_ids(model, answer, ids, ids, "given")
    other_id = None
    if other is not None:
        other_id = answer_ids(model, other, ids, ids, "given")
    direction = readout.answer_direction(model, answer_id, other_id)
    return direction[0].detach()


@dataclass
class IntactRun:
    """What the autoencoder finds in the run of the text, in which nothing is replaced."""

    x: Tensor  # (T,d), at the site
    features: Tensor  # (T,n)
    scale: Tensor  # (T,1): by so much the decoder's output is multiplied
    slope: Tensor  # (T,d): the gradient of the answer by x
    total: Tensor  # the answer's logit, or the difference of two


def _record_intact(model, autoencoder, ids, direction):
    """The IntactRun of ids (1,T); direction (C,), of the answer. Cost: 1 pass and 1 backward."""
    site = autoencoder.config.site
    layer = autoencoder.config.layer
    with torch.enable_grad():
        stream, recorded = runs.record_with_gradient(model, ids, [site])
        total = readout.logit_diff(model, stream[0, -1], direction)
        (slope,) = torch.autograd.grad(total, recorded[site, layer])
    x = recorded[site, layer].detach()
    x = as_vectors(x, site)[0].to(autoencoder.W_enc)
    slope = as_vectors(slope, site)[0].to(x)
    with torch.no_grad():
        _, scale, _ = autoencoder.normalize(x)
        features = autoencoder.encode(x)
    return IntactRun(x, features, scale, slope, total.detach())


def _replace_each(model, autoencoder, ids, intact, wanted, direction, max_tokens):
    """{field of AnswerFeatures: (F,)}, of all features that are not as wanted (T,n)."""
    cells = (intact.features != wanted).nonzero(as_tuple=True)
    position, feature = cells  # (F,) each
    old = intact.features[cells]
    new = wanted[cells]
    # So many times its direction is added where a feature is replaced.
    times = (new - old) * intact.scale[position, 0]
    slopes = intact.slope @ autoencoder.W_dec.T  # (T,d) @ (d,n) -> (T,n)
    ends = _patched_ends(model, autoencoder, ids, intact.x, cells, times, max_tokens)
    exact = intact.total - readout.logit_diff(model, ends, direction)
    found = {
        "position": position,
        "feature": feature,
        "activation": old,
        "replaced_by": new,
        "exact": exact,
        "gradient": -times * slopes[cells],
    }
    order = exact.abs().argsort(descending=True, stable=True)
    return {name: values[order].cpu() for name, values in found.items()}


def _patched_ends(model, autoencoder, ids, x, cells, times, max_tokens):
    """(F,C): the last token's final residual vector, before ln_f, of a run for each cell.

    cells: positions and features, (F,) each, by position. times: how often the feature's direction
    is added to x (T,d) there.
    """
    config = autoencoder.config
    sites = (*partial_runs.base_sites(config.site), "attn_out")
    base = runs.record(model, ids, sites)
    positions, sizes = cells[0].unique_consecutive(return_counts=True)
    sizes = sizes.tolist()
    features = cells[1].split(sizes)
    by_position = zip(positions.tolist(), features, times.split(sizes))
    none = model.lm_head.weight.new_zeros(0, model.config.n_embd)
    ends = [none]
    for position, features, added in progress_bar(by_position, total=len(sizes), desc="features"):
        # All runs of one position go up together, as many as may be under way.
        at_once = max(1, max_tokens // (ids.size(1) - position))
        for some, by in zip(features.split(at_once), added.split(at_once)):
            new = x[position] + by[:, None] * autoencoder.W_dec[some]  # (R,d)
            ends.append(ends_at(model, config, base, position, new))
    return torch.cat(ends)


def ends_at(
    model: GPT, config: AutoencoderConfig, base: Activations, position: int, new: Tensor
) -> Tensor:
    """(R,C): final residual vectors, before ln_f, of runs with new (R,d) at the site at a position.

    base: the intact run, of partial_runs.base_sites(config.site) and attn_out.
    """
    start = config.layer
    if config.site != "resid_pre":
        start += 1
    R = len(new)
    first = _stream_after(model, config, base, position, new)  # (R,C)
    stream = partial_runs.stream_at(base, start)[0]  # (T,C)
    after = stream[position + 1 :].expand(R, -1, -1)  # (R,T-p-1,C)
    tail = torch.cat((first[:, None], after), 1)
    tail = tail[None]  # (1,R,T-p,C)

    def inject(start, positions):
        return {position: tail}

    patched = partial_runs.PatchedRuns([start], [position], R, inject)
    ends = partial_runs.run_patched(model, base, patched, max_tokens=tail.numel())
    return ends[0, 0, :, 0]  # (1,1,R,1,C) -> (R,C)


def _stream_after(model, config, base, position, new):
    """(R,C): the stream at one position, after the block, with new (R,d) at the site there.

    At resid_pre it is the stream before the block. No other position reads the site within it.
    """
    before = base["resid_pre"][config.layer][:, [position]]  # (1,1,C)
    new = new.to(before)
    if config.site in ("resid_pre", "resid_post"):
        return new
    attn_out = base["attn_out"][config.layer][:, [position]]

    def tap(site, x):
        if site == config.site:
            return from_vectors(new[:, None], x, site)
        # A token alone cannot attend to the others: what it had from them is known.
        is_known = site == "attn_out" and config.site != "z"
        return attn_out if is_known else x

    block = model.transformer.h[config.layer]
    return block(before.expand(len(new), -1, -1), tap)[:, 0]
