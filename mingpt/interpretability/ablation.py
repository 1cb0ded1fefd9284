"""What is lost without a head, an MLP, a layer, a neuron?

A part is replaced by zeros, by its mean, or by what it is on other inputs, and what the model says
is read again. A part without which nothing is lost may have others that stand in for it; one
without which much is lost may only have kept the stream in the range that later parts are used to.
Mean and resampling are the milder questions.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from mingpt.interpretability import partial_runs, runs
from mingpt.interpretability.inputs import (
    Answer,
    ComponentName,
    Inputs,
    answer_ids,
    encode,
    parse_component,
)
from mingpt.interpretability.readout import answer_direction, logit_diff, next_token_loss
from mingpt.model import GPT
from mingpt.sites import Patch

# Where each part of a layer is replaced.
SITES_OF = {
    "head": "z",
    "attention": "attn_out",
    "mlp": "mlp_out",
    "neuron": "mlp_post",
}


@torch.no_grad()
def ablate_component(
    model: GPT,
    inputs: Inputs,
    component: ComponentName | Sequence[ComponentName],
    kind: str = "zero",
    answers: Sequence[Answer] | None = None,
    reference: Inputs | None = None,
) -> float:
    """What removing a component costs, a float: the rise of the next-token loss, in nats.

    It is the mean over all tokens of the inputs. With answers (right, wrong), ids or texts of one
    token, it is instead diff(ablated) - diff(intact) in logits, averaged over the inputs, where
    diff = logit(right) - logit(wrong) at the last position; negative = the component helped.
    component: "3.5" or "layer_3_head_5", "mlp 3", "layer_3_neuron_17", "layer_3" (attention and
    MLP), or a tuple such as (3, "head", 5); or a list of these, removed together.
    kind: "zero"; "mean", over all tokens of the reference inputs; "resample", the reference inputs'
    own values (texts or ids of the same shape as the inputs). Zeroing a head's z is not
    TransformerLens's zeroing after its default weight processing, which folds the value bias away:
    there a zeroed head still passes on that bias.
    Cost: 2 passes, and 1 over the reference.
    """
    ids = encode(model, inputs)
    names = component if isinstance(component, list) and component else [component]
    parts = [part for name in names for part in _parts(model, name)]
    sites = {SITES_OF[part] for part, _, _ in parts}
    measure = _measure(model, ids, answers)
    replacement = _replacements(model, ids, kind, reference, sites)
    patches = [_ablation(replacement, *part) for part in parts]
    ablated = runs.run(model, ids, patches)
    intact = runs.run(model, ids)
    return (measure(ablated[:, None]) - measure(intact[:, None])).item()


@torch.no_grad()
def ablate_heads(
    model: GPT,
    inputs: Inputs,
    kind: str = "zero",
    answers: Sequence[Answer] | None = None,
    reference: Inputs | None = None,
    max_tokens: int = 4096,
) -> Tensor:
    """ablate_component for every head by itself: (L,H), in the same units.

    Cost: 1 pass and the tails of the L*H ablated runs.
    """
    ids = encode(model, inputs)
    L = model.config.n_layer
    H = model.config.n_head
    measure = _measure(model, ids, answers)
    replacement = _replacements(model, ids, kind, reference, {"z"})
    base = runs.record(model, ids, partial_runs.base_sites("z"))
    new = {}
    for layer, z in base["z"].items():  # (B,H,T,D)
        heads = [replacement("z", layer, head).expand_as(z[:, head]) for head in range(H)]
        new[layer] = torch.stack(heads, 1)
    patched = partial_runs.patch_site(model, base, new, "z", [0], each_position=False)
    every_token = answers is None  # the loss is of every token, a logit difference of the last
    ablated = partial_runs.run_patched(
        model, base, patched, max_tokens, measure, every_token, desc="ablating"
    )
    intact = measure(base["resid_post"][L - 1][:, None])
    return ablated[:, 0] - intact  # (L,1,H) -> (L,H)


def _parts(model, component):
    """[(kind, layer, index)] of a component; a whole layer is its attention and its MLP."""
    part = parse_component(model, component)
    if part.kind == "layer":
        return [("attention", part.layer, None), ("mlp", part.layer, None)]
    if part.kind == "logits" or part.role:
        raise ValueError(
            f"{component!r} is nothing to remove; name a head, an MLP, a neuron or a layer"
        )
    return [(part.kind, part.layer, part.index)]


def _ablation(replacement, kind, layer, index):
    """The Patch that puts the replacement in the place of a part, at all positions."""
    site = SITES_OF[kind]
    value = replacement(site, layer, index)
    if kind != "neuron":
        return Patch(layer, None, value, site, index)

    def with_neuron(old):  # (B,T,4C); the tap hands out a copy
        old[..., index] = value
        return old

    return Patch(layer, None, with_neuron, site)


def _replacements(model, ids, kind, reference, sites):
    """f(site, layer, index): what an ablated part is replaced by.

    It gives a tensor that broadcasts to the site, or to its head or neuron of that index.
    """
    if kind not in ("zero", "mean", "resample"):
        raise ValueError(f'kind must be "zero", "mean" or "resample", got {kind!r}')
    if kind == "zero":
        if reference is not None:
            raise ValueError(
                'kind "zero" takes nothing from a reference; '
                'give "mean" or "resample", or no reference'
            )
        return lambda site, layer, index: model.lm_head.weight.new_zeros(())
    if reference is None:
        raise ValueError(
            f'kind "{kind}" takes its values from other inputs; give them as reference'
        )
    reference = encode(model, reference)
    if kind == "resample" and reference.shape != ids.shape:
        raise ValueError(
            f"the reference must be {tuple(ids.shape)} tokens like the inputs, "
            f"got {tuple(reference.shape)}"
        )
    recorded = runs.record(model, reference, sites)

    def value(site, layer, index):
        x = recorded[site][layer]
        # Of a site with heads or neurons only the one that is ablated.
        if index is not None and site == "z":
            x = x[:, index]  # (B,H,T,D) -> (B,T,D)
        elif index is not None:
            x = x[..., index]  # (B,T,4C) -> (B,T)
        return x.mean((0, 1)) if kind == "mean" else x

    return value


def _measure(model, ids, answers):
    """f(final residual streams (B,R,n,C)) -> (R,), what the runs are compared by.

    Each run's mean next-token loss, or with answers its mean logit difference.
    """
    if answers is None:
        return partial(next_token_loss, model, ids=ids)
    if not isinstance(answers, (tuple, list)) or len(answers) != 2:
        raise ValueError(f"answers must be two, (right, wrong), got {answers!r}")
    clean_answer = answer_ids(model, answers[0], ids, ids, "right")
    corrupted_answer = answer_ids(model, answers[1], ids, ids, "wrong")
    direction = answer_direction(model, clean_answer, corrupted_answer)[:, None]  # (B,1,C)
    return lambda streams: logit_diff(model, streams[:, :, -1], direction).mean(0)
