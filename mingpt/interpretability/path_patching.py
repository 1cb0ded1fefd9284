"""Which heads reach another part of the model directly?

Path patching changes one head, and lets the change reach a receiver along all paths that pass
through no other head. An effect near 0 does not show that the head is not needed: another path, or
another head that stands in for it, may carry the same.
Source: Wang et al. 2022 (arXiv 2211.00593), appendix B.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from mingpt.common import progress_bar
from mingpt.interpretability import runs
from mingpt.interpretability.inputs import (
    Answer,
    ComponentName,
    Inputs,
    answer_pair,
    encode_pair,
    parse_component,
)
from mingpt.interpretability.readout import answer_direction, logit_diff
from mingpt.model import GPT
from mingpt.sites import Patch


@torch.no_grad()
def path_patching(
    model: GPT,
    clean_input: Inputs,
    corrupted_input: Inputs,
    sender: ComponentName | None,
    receiver: ComponentName | Sequence[ComponentName],
    target_token: Answer = None,
    corrupted_token: Answer = None,
    freeze_mlps: bool = False,
    max_tokens: int = 4096,
) -> Any:
    """Effect of a head along its direct paths to the receiver, a float, in logits; of all, (L,H).

    First a run with all heads as in the clean run, but the sender as in the corrupted one; MLPs are
    computed anew, or stay clean too with freeze_mlps. Then the clean run with the receiver as in
    that run, and all above it computed anew. effect: the change of logit(corrupted answer) -
    logit(clean answer) at the last position from the clean to the second run, averaged over the
    pairs; positive = the path carries the clean answer. 0 where no path leads to the receiver.
    sender: a head, "3.5", or None for all heads, each by itself. receiver: "logits", "mlp 3",
    "3.5.q" (or .k or .v), or a list of these, received together. Inputs and answers as in
    patch_layers. max_tokens: how many tokens may be under way at once, which bounds the memory.
    Cost: 2 passes; and for each head the layers from its own up to the receiver, and from there up.
    """
    clean_ids, corrupted_ids = encode_pair(model, clean_input, corrupted_input)
    answers = answer_pair(model, clean_ids, corrupted_ids, target_token, corrupted_token)
    receivers = _read_receivers(model, receiver)
    senders = _read_senders(model, sender, receivers)
    clean = runs.record(model, clean_ids, ("resid_pre", "z", "mlp_out"))
    corrupted_z = runs.record(model, corrupted_ids, ("z",))["z"]

    last = model.config.n_layer - 1
    direction = answer_direction(model, *answers)  # (B,C)
    intact = logit_diff(model, clean["resid_post"][last][:, -1], direction)  # (B,)
    effect = intact.new_zeros(last + 1, model.config.n_head)
    at_once = max(1, max_tokens // clean_ids.numel())
    for first in progress_bar(range(0, len(senders), at_once), desc="path patching"):
        chunk = senders[first : first + at_once]
        patches = _receive(model, clean, corrupted_z, chunk, receivers, freeze_mlps)
        ends = _run_received(model, clean, patches, len(chunk))  # (R,B,C)
        change = logit_diff(model, ends, direction) - intact  # (R,B)
        layers, heads = zip(*chunk)
        effect[layers, heads] = -change.mean(1)  # the published sign
    # With one sender all other effects are 0.
    return effect if sender is None else effect.sum().item()


def _read_senders(model, sender, receivers):
    """[(layer, head)], ascending: one head or with None all, if they lie below a receiver."""
    top = _top_layer(receivers)
    if sender is None:
        layers = range(top + 1)
        heads = range(model.config.n_head)
        return [(layer, head) for layer in layers for head in heads]
    kind, layer, head, role = parse_component(model, sender)
    if kind != "head" or role:
        raise ValueError(f'sender must be a head, "3.5" or (3, 5), or None; got {sender!r}')
    return [(layer, head)] if layer <= top else []


def _read_receivers(model, receiver):
    """{(layer, site): [head, ...]}: where what receives is put into a run; head None at an MLP."""
    names = receiver if isinstance(receiver, list) and receiver else [receiver]
    if "logits" in names and len(names) > 1:
        raise ValueError(
            '"logits" receive by themselves: what else received would reach them a second time'
        )
    receivers: dict[tuple[int, str], list[int | None]] = {}
    for name in names:
        kind, layer, head, role = parse_component(model, name)
        if kind == "logits":
            place = (model.config.n_layer - 1, "resid_post")
        elif kind == "mlp":
            place = (layer, "mlp_out")
        elif role:
            place = (layer, role)
        else:
            known = '"logits", "mlp 3", "3.5.q", or .k or .v, or a list'
            raise ValueError(f"no receiver {name!r}; write {known}")
        receivers.setdefault(place, []).append(head)
    return receivers


def _top_layer(receivers):
    """Above this layer nothing is received."""
    return max(layer for layer, _ in receivers)


def _receive(model, clean, corrupted_z, senders, receivers, freeze_mlps):
    """Patches with what the receivers compute in runs in which one sender each is corrupted.

    All other heads are as in the clean run. senders: [(layer, head)], ascending, one for each run.
    A patch is (n*B,...), run after run, for the first n runs: in those whose sender is higher up
    nothing is changed where it is received.
    """
    resid_pre = clean["resid_pre"]
    B, T, C = resid_pre[0].shape
    patches = []

    def tap(layer, heads, site, x):
        R = len(x) // B
        for head in receivers.get((layer, site), []):
            received = x if head is None else x[:, head]
            patches.append(Patch(layer, None, received, site, head))
        if site == "z":
            x = torch.cat([clean["z"][layer]] * R)  # (R*B,H,T,D)
            # The layer's senders are those that have joined last.
            for run, head in enumerate(heads, start=R - len(heads)):
                rows = slice(run * B, (run + 1) * B)
                x[rows, head] = corrupted_z[layer][:, head]
        # What an MLP makes of the sender is received, but with freeze_mlps goes no further.
        if site == "mlp_out" and freeze_mlps:
            x = torch.cat([clean["mlp_out"][layer]] * R)
        return x

    # A run joins those under way where its sender is: below, it is the clean run.
    stream = resid_pre[0].new_empty(0, T, C)
    lowest = senders[0][0]
    for layer in range(lowest, _top_layer(receivers) + 1):
        block = model.transformer.h[layer]
        heads = [head for sender_layer, head in senders if sender_layer == layer]
        joining = [resid_pre[layer]] * len(heads)
        stream = torch.cat([stream, *joining])
        stream = block(stream, partial(tap, layer, heads))
    return patches


def _run_received(model, clean, patches, R):
    """(R,B,C): the final residual vectors of R clean runs with the patches of _receive."""

    def tap(layer, site, x):
        for patch in patches:
            if (patch.layer, patch.site) == (layer, site):
                # In the other runs the sender is higher up than this receiver.
                first_runs = x[: len(patch.activation)]
                first_runs[patch.index] = patch.activation
        return x

    # Below the lowest receiver all is as in the clean run.
    lowest = min(patch.layer for patch in patches)
    stream = torch.cat([clean["resid_pre"][lowest]] * R)  # (R*B,T,C)
    for layer in range(lowest, model.config.n_layer):
        block = model.transformer.h[layer]
        stream = block(stream, partial(tap, layer))
    return stream[:, -1].unflatten(0, (R, -1))  # (R*B,T,C) -> (R,B,C)
