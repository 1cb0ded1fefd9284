"""How do the analyses see a model in which a patch is always in force?

patched_model gives a model that patch_layers, ablate_component, find_circuit and the others take.
What the patch changes in the residual stream is added by the MLP of its layer: in a circuit, it is
part of that MLP's node.
"""

import copy
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from mingpt.model import GPT, Block, untouched
from mingpt.sites import MLP_SITES, OnePatch, as_patches, check_site

SITES = ("resid_pre", "resid_mid", "resid_post", "mlp_out", *MLP_SITES)

M = TypeVar("M", bound=nn.Module)


def patched_model(model: GPT, patch: OnePatch) -> GPT:
    """The model with a patch in all of its runs; its weights are the same tensors.

    patch: as in model(...), of all positions, its activation a function that takes each token by
    itself, as those of feature_patches do: an analysis may compute some tokens of a run alone, or
    many runs at once, (...,d). At attn_out and z a patch is refused: what the heads write would no
    longer be a sum. Where another patch is of the same site, this one comes first.
    """
    (patch,) = as_patches(patch)
    check_site(patch.site)
    if patch.site not in SITES:
        raise ValueError(
            f"a patch of {patch.site} cannot always be in force; one of {', '.join(SITES)} can"
        )
    if patch.position is not None or not callable(patch.activation):
        raise ValueError(
            "a patch that is always in force must be of all positions (None), and its activation "
            f"a function; got position {patch.position} and {type(patch.activation).__name__}"
        )
    patch.check(model.config.n_layer, model.config.n_head, model.block_size)
    layer = patch.layer
    site = patch.site
    if site == "resid_pre":
        # What a block reads is what the block below leaves.
        layer -= 1
        site = "resid_post"
    if layer < 0:
        raise ValueError("no block writes resid_pre of layer 0; take a patch of a later site")
    blocks = list(model.transformer.h)
    blocks[layer] = with_parts(
        blocks[layer],
        ln_2=nn.Identity(),  # whoever runs the MLP gives it what comes out of this norm
        mlp=patched_mlp(blocks[layer], site, patch.activation),
    )
    return with_parts(model, transformer=with_parts(model.transformer, h=nn.ModuleList(blocks)))


def with_parts(module: M, **parts: nn.Module) -> M:
    """A copy of a module with some parts replaced; its weights are the same tensors."""
    changed = copy.copy(module)
    # A copy shares the dict of its parts with the original.
    changed._modules = {**module._modules, **parts}
    return changed


def patched_mlp(block: Block, site: str, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """The block's MLP, which takes resid_mid (...,C), and adds what the patch changes besides."""

    def forward(mid, tap=untouched):
        def patched_tap(name, x):
            return tap(name, change(x.clone()) if name == site else x)

        read = change(mid.clone()) if site == "resid_mid" else mid
        written = block.mlp(block.ln_2(read), patched_tap)
        post = read + written
        if site == "resid_post":
            post = change(post.clone())
        return post - mid

    mlp = with_parts(block.mlp)
    mlp.forward = forward  # type: ignore[method-assign]  # of this one object
    return mlp
