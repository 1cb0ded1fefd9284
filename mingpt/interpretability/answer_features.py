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
from mingpt.interpretability.autoencoders import as_vectors, from_vectors
from mingpt.interpretability.features import check_fits, encode_text, site_vectors
from mingpt.interpretability.inputs import answer_ids, encode_pair, token_texts

SHOWN = 20  # lines of a table


@dataclass(repr=False)
class AnswerFeatures:
    """What each active feature adds to a logit or a difference of two, in logits; printed, a table.

    The strongest first, by `exact`; positive = it supports the answer.
    """

    tokens: list  # T texts
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
            cells = "".join(f"{value:10.3f}" for value in values)
            lines.append(f"{position:8}  {self.tokens[position]!r:14}{feature:10}  {cells}")
        return "\n".join(lines)


def answer_features(
    model, autoencoder, text, answer, other=None, corrupted=None, beginning=None, max_tokens=4096
):
    """AnswerFeatures of logit(answer) [- logit(other)] at the last position.

    text: one, or ids (1,T). corrupted: a text of as many tokens, whose value of a feature is put in
    the place of each that differs; without one it is 0. beginning: as in features.features.
    max_tokens: how many may be under way at once, which bounds the memory. Cost: 2 passes and 1
    backward (1 pass more with a corrupted text), and for each feature the tail of a run.
    """
    check_fits(model, autoencoder)
    ids = encode_text(model, autoencoder, text, beginning)
    answer_id = answer_ids(model, answer, ids, ids, "given")
    other_id = None if other is None else answer_ids(model, other, ids, ids, "given")
    direction = readout.answer_direction(model, answer_id, other_id).detach()  # (1,C)
    x, slope, total = _record_slope(model, autoencoder, ids, direction)
    with torch.no_grad():
        normed, scale, _ = autoencoder.normalize(x)
        active = autoencoder.activate(autoencoder.pre_activations(normed))  # (T,n)
        wanted = torch.zeros_like(active)
        if corrupted is not None:
            corrupted_ids = encode_text(model, autoencoder, corrupted, beginning)
            encode_pair(model, ids, corrupted_ids)  # of one length, and not the same
            wanted = autoencoder.encode(site_vectors(model, autoencoder, corrupted_ids)[0])
        position, feature = (active != wanted).nonzero(as_tuple=True)  # (F,) each
        # So many times its direction is added where a feature is replaced.
        change = ((wanted - active) * scale)[position, feature]
        by_one_unit = (slope @ autoencoder.W_dec.T)[position, feature]  # (T,d) @ (d,n) -> (T,n)
        gradient = -change * by_one_unit
        ends = _patched_ends(model, autoencoder, ids, x, (position, feature, change), max_tokens)
        exact = total - readout.logit_diff(model, ends, direction)
        order = exact.abs().argsort(descending=True, stable=True)
        columns = [position, feature, active[position, feature], wanted[position, feature]]
        columns = [column[order].cpu() for column in (*columns, exact, gradient)]
    return AnswerFeatures(token_texts(model, ids[0]), *columns, total=total.item())


def _record_slope(model, autoencoder, ids, direction):
    """(what is at the site (T,d), its gradient (T,d), the logit or difference) of one run."""
    config = autoencoder.config
    with torch.enable_grad():
        stream, recorded = runs.record_with_gradient(model, ids, [config.site])
        total = readout.logit_diff(model, stream[0, -1], direction[0])
        x = recorded[config.site, config.layer]
        (gradient,) = torch.autograd.grad(total, x)
    vectors = [as_vectors(tensor, config.site)[0] for tensor in (x.detach(), gradient)]
    return *(v.to(autoencoder.W_enc) for v in vectors), total.detach()


def _patched_ends(model, autoencoder, ids, x, changes, max_tokens):
    """(F,C): the last token's final residual vector of a run for each change, before ln_f.

    changes: position, feature and how often its direction is added there, (F,) each, by position.
    """
    config = autoencoder.config
    base = runs.record(model, ids, (*partial_runs.base_sites(config.site), "attn_out"))
    T = ids.size(1)
    positions, sizes = changes[0].unique_consecutive(return_counts=True)
    numbers, amounts = (column.split(sizes.tolist()) for column in changes[1:])
    found = zip(positions.tolist(), numbers, amounts)
    ends = [base["resid_pre"][config.layer].new_zeros(0, model.config.n_embd)]
    for position, features, sums in progress_bar(found, total=len(sizes), desc="features"):
        at_once = max(1, max_tokens // (T - position))
        for feature, amount in zip(features.split(at_once), sums.split(at_once)):
            new = x[position] + amount[:, None] * autoencoder.W_dec[feature]  # (R,d)
            ends.append(_ends_at(model, config, base, position, new))
    return torch.cat(ends)


def _ends_at(model, config, base, position, new):
    """(R,C): the final residual vectors of runs with new (R,d) at the site at this position."""
    start = config.layer if config.site == "resid_pre" else config.layer + 1
    first = _stream_after(model, config, base, position, new)  # (R,C)
    after = partial_runs.stream_at(base, start)[:, None, position + 1 :]  # (1,1,T-p-1,C)
    tail = torch.cat((first[None, :, None], after.expand(-1, len(new), -1, -1)), 2)
    R, n = tail.shape[1:3]
    patched = partial_runs.PatchedRuns([start], [position], R, lambda *_: {position: tail})
    ends = partial_runs.run_patched(model, base, patched, max_tokens=R * n)
    return ends[0, 0, :, 0]  # (1,1,R,1,C) -> (R,C)


def _stream_after(model, config, base, position, new):
    """(R,C): the stream at one position, after the block, with new (R,d) at the site there.

    At resid_pre it is the stream before the block. No other position reads the site within it.
    """
    new = new.to(base["resid_pre"][config.layer])
    if config.site in ("resid_pre", "resid_post"):
        return new
    before = base["resid_pre"][config.layer][:, [position]]  # (1,1,C)
    attn_out = base["attn_out"][config.layer][:, [position]]

    def tap(site, x):
        if site == config.site:
            return from_vectors(new[:, None], x, site)
        # A token alone cannot attend to the others: what it had from them is known.
        return attn_out if site == "attn_out" and config.site != "z" else x

    block = model.transformer.h[config.layer]
    return block(before.expand(len(new), -1, -1), tap)[:, 0]
