"""What can be seen and replaced in the model: the sites, and a patch of one of them.

Letters in the shapes: B batch, T position, C n_embd, H heads, D head size (C / H).
"""

import operator
from collections.abc import Callable
from typing import NamedTuple

import torch

RESIDUAL_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")  # (B,T,C)
MLP_SITES = ("mlp_pre", "mlp_post")  # (B,T,4C)
HEAD_SITES = ("q", "k", "v", "z")  # (B,H,T,D)
ATTENTION_SITES = ("scores", "pattern")  # (B,H,T,T), rows are queries
SITES_WITH_HEADS = HEAD_SITES + ATTENTION_SITES
SITES = RESIDUAL_SITES + MLP_SITES + SITES_WITH_HEADS


class Patch(NamedTuple):
    """Replace `site` of block `layer` at `position` by `activation`.

    A triple (layer, position, activation) is its short form.
    position: an int (negative counts from the end), a slice, or None for all; at scores and pattern, the query's row.
    activation: a tensor that broadcasts to what it replaces, or a function from the old tensor to the new one.
    head: at the sites with heads (q, k, v, z, scores, pattern) one head, or None for all.
    """

    layer: int
    position: int | slice | None
    activation: torch.Tensor | Callable[[torch.Tensor], torch.Tensor]
    site: str = "resid_post"
    head: int | None = None

    @property
    def index(self):
        """What it replaces, as an index into the site's tensor."""
        position = slice(None) if self.position is None else self.position
        if self.site not in SITES_WITH_HEADS:
            return slice(None), position
        head = slice(None) if self.head is None else self.head
        return slice(None), head, position

    def check(self, n_layer, n_head, T):
        """ValueError, saying what the right ones are, if there is no such site, layer, head or position."""
        check_site(self.site)
        if type(self.layer) is not int or not 0 <= self.layer < n_layer:
            raise ValueError(f"no layer {self.layer!r}; the layers are 0 to {n_layer - 1}")
        if self.head is not None and self.site not in SITES_WITH_HEADS:
            raise ValueError(
                f"{self.site} has no heads; those that have are {', '.join(SITES_WITH_HEADS)}"
            )
        if self.head is not None and not (type(self.head) is int and 0 <= self.head < n_head):
            raise ValueError(f"no head {self.head!r}; the heads are 0 to {n_head - 1}")
        self._check_position(T)
        if not (callable(self.activation) or isinstance(self.activation, torch.Tensor)):
            given = type(self.activation).__name__
            raise ValueError(f"activation must be a tensor or a function, got {given}")

    def _check_position(self, T):
        position = self.position
        if type(position) not in (int, slice, type(None)):
            raise ValueError(f"position must be an int, a slice or None, got {position!r}")
        if type(position) is int and not -T <= position < T:
            raise ValueError(
                f"no position {position}; the input's positions are 0 to {T - 1} (or -{T} to -1)"
            )
        if isinstance(position, slice):
            if (position.step or 1) < 1:
                raise ValueError(
                    f"the step of {position} must be positive; order the activation instead"
                )
            if not range(T)[position]:
                raise ValueError(f"{position} selects none of the input's positions 0 to {T - 1}")

    def apply(self, x):
        """x with the patch in it, a new tensor."""
        x = x.clone()
        old = x[self.index]
        new = self.activation(old.clone()) if callable(self.activation) else self.activation
        if not isinstance(new, torch.Tensor):
            given = type(new).__name__
            raise ValueError(
                f"the patch function for {self.site} must return a tensor, got {given}"
            )
        try:
            x[self.index] = new.to(x).broadcast_to(old.shape)
        except RuntimeError as error:
            raise ValueError(
                f"the activation for {self.site} of layer {self.layer} has shape {tuple(new.shape)}, "
                f"which does not broadcast to the {tuple(old.shape)} that it replaces"
            ) from error
        return x


def check_site(site):
    """ValueError, saying what the sites are, if there is none of that name."""
    if site not in SITES:
        raise ValueError(f"no site {site!r}; the sites are {', '.join(SITES)}")


def as_patches(patch_params):
    """None, one patch or triple, or a list of them -> a list of Patch, its numbers as Python's own ints."""
    if patch_params is None:
        return []
    is_one = isinstance(patch_params, tuple) and not isinstance(
        next(iter(patch_params), None), tuple
    )
    try:
        patches = [Patch(*patch) for patch in ([patch_params] if is_one else patch_params)]
    except TypeError as error:
        raise ValueError(
            "patch_params must be (layer, position, activation), a Patch, or a list of them"
        ) from error
    return [
        patch._replace(
            layer=as_int(patch.layer), position=as_int(patch.position), head=as_int(patch.head)
        )
        for patch in patches
    ]


def as_int(number):
    """An integer of NumPy or PyTorch as Python's; anything else as it is, for a check to judge."""
    if isinstance(number, bool):
        return number
    try:
        return operator.index(number)
    except TypeError:
        return number


def as_store(store_activations):
    """What a run fills: False -> {}; True or a collection of sites -> {site: {}}, always with resid_post."""
    if not store_activations:
        return {}
    if store_activations is True:
        return {"resid_post": {}}
    if isinstance(store_activations, str):
        store_activations = [store_activations]
    try:
        sites = list(store_activations)
    except TypeError as error:
        raise ValueError(
            f"store_activations must be True, False or a list of sites, got {store_activations!r}"
        ) from error
    for site in sites:
        check_site(site)
    return {site: {} for site in ("resid_post", *sites)}
