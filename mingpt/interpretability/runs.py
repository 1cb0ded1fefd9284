"""One run of the model, checked: the door through which every analysis goes.

An analysis of a model in training mode, or of one that gives NaN, would be an analysis of noise;
here it is an error.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from mingpt.common import check_finite, check_mps
from mingpt.model import GPT
from mingpt.sites import Activations, Patch, as_store


def check_model(model: GPT) -> None:
    """ValueError if what the model computes now is not what it computes in use."""
    if model.training:
        raise ValueError(
            "the model is in training mode, where dropout is noise; call model.eval() first"
        )
    device = model.lm_head.weight.device
    check_mps(device)
    if torch.is_autocast_enabled(device.type):
        raise ValueError(
            "under torch.autocast a run rounds where the model does not say so; turn it off, and "
            "give the model the dtype that you want, such as model.to(torch.bfloat16)"
        )


def run(
    model: GPT, ids: Tensor, patches: Sequence[Patch] = (), stored: Activations | None = None
) -> Tensor:
    """The residual stream after the last block, (B,T,C), of ids (B,T).

    patches: a list of Patch. stored: {site: {}}, which the run fills. The model itself keeps
    nothing of the run. ValueError in training mode, and where the result is not finite. Cost: 1
    pass, without the output matrix.
    """
    check_model(model)
    x = model.stream(ids, patches, stored)
    # A NaN anywhere in the output matrix is one in its mean, which costs less than the logits.
    check_finite(model.transformer.ln_f(x[:, -1]), model.lm_head.weight.mean())
    return x


def record(model: GPT, ids: Tensor, sites: Iterable[str]) -> Activations:
    """{site: {layer: tensor}} of one run, copies; always with resid_post. Cost: 1 pass."""
    stored = as_store(sites)
    run(model, ids, stored=stored)
    return stored


def record_pair(
    model: GPT, first: Tensor, second: Tensor, sites: Iterable[str]
) -> tuple[Activations, Activations]:
    """`record` of two inputs of one shape, ids (B,T) each: a pair of {site: {layer: tensor}}.

    They run side by side, so that the weights are read once.
    """
    both = record(model, torch.cat((first, second)), sites)
    halves: tuple[Activations, Activations] = {}, {}
    for site, layers in both.items():
        for i, half in enumerate(halves):
            half[site] = {layer: x.chunk(2)[i] for layer, x in layers.items()}
    return halves


def check_gradient(model: GPT) -> None:
    """ValueError where autograd cannot work."""
    if torch.is_inference_mode_enabled() or model.lm_head.weight.is_inference():
        raise ValueError(
            "there are no gradients in torch.inference_mode; load the model and call this outside "
            "of it (torch.no_grad does no harm)"
        )


def record_with_gradient(
    model: GPT, ids: Tensor, sites: Iterable[str]
) -> tuple[Tensor, dict[tuple[str, int], Tensor]]:
    """(final residual stream (B,T,C), {(site, layer): tensor}) of one run.

    Autograd can differentiate the first by the others. ValueError in torch.inference_mode. Cost: 1
    pass.
    """
    check_gradient(model)
    recorded: dict[tuple[str, int], Tensor] = {}

    def keep(site, layer, x):
        recorded[site, layer] = x if x.requires_grad else x.requires_grad_()
        return x

    # A patch function sees every tensor that passes its site; these hand it on as it is.
    watchers = [
        Patch(layer, None, partial(keep, site, layer), site)
        for layer in range(model.config.n_layer)
        for site in sites
    ]
    return run(model, ids, watchers), recorded
