"""What can be seen and replaced in the model: the sites, and a patch of one of them.

Letters in the shapes: B batch, T position, C n_embd, H heads, D head size (C / H).
Each site is one line tap(site, tensor) in model.py.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

RESIDUAL_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")  # (B,T,C)
MLP_SITES = ("mlp_pre", "mlp_post")  # (B,T,4C)
HEAD_SITES = ("q", "k", "v", "z")  # (B,H,T,D)
ATTENTION_SITES = ("scores", "pattern")  # (B,H,T,T), rows are queries
SITES_WITH_HEADS = HEAD_SITES + ATTENTION_SITES
SITES = RESIDUAL_SITES + MLP_SITES + SITES_WITH_HEADS

Position = int | slice | None  # negative counts from the end; None is all
Replacement = Tensor | Callable[[Tensor], Tensor]  # what is put in, or a function of what was there
Activations = dict[str, dict[int, Tensor]]  # {site: {layer: tensor}}


class Patch(NamedTuple):
    """Replace `site` of block `layer` at `position` by `activation`.

    A triple (layer, position, activation) is its short form: at resid_post, after the block.
    position: an int (negative counts from the end), a slice, or None for all; at scores and
        pattern it is the query's row.
    activation: a tensor that broadcasts to what it replaces, or a function from the old tensor to
        the new one.
    head: at the sites with heads (q, k, v, z, scores, pattern) one head, or None for all.
    """

    layer: int
    position: Position
    activation: Replacement
    site: str = "resid_post"
    head: int | None = None

    @property
    def index(self) -> tuple[int | slice, ...]:  # type: ignore[override]  # hides a tuple's
        """What it replaces, as an index into the site's tensor."""
        position = slice(None) if self.position is None else self.position
        if self.site not in SITES_WITH_HEADS:
            return slice(None), position
        head = slice(None) if self.head is None else self.head
        return slice(None), head, position

    def check(self, n_layer: int, n_head: int, T: int) -> None:
        """ValueError, with the right ones, if there is no such site, layer, head or position."""
        check_site(self.site)
        # type() and not isinstance: True and False are no numbers here.
        if type(self.layer) is not int or not 0 <= self.layer < n_layer:
            raise ValueError(f"no layer {self.layer!r}; the layers are 0 to {n_layer - 1}")
        if self.head is not None:
            self._check_head(n_head)
        self._check_position(T)
        if not (callable(self.activation) or isinstance(self.activation, torch.Tensor)):
            raise ValueError(
                f"activation must be a tensor or a function, got {type(self.activation).__name__}"
            )

    def _check_head(self, n_head):
        """ValueError if the site has no heads, or no such head."""
        if self.site not in SITES_WITH_HEADS:
            raise ValueError(
                f"{self.site} has no heads; those that have are {', '.join(SITES_WITH_HEADS)}"
            )
        if type(self.head) is not int or not 0 <= self.head < n_head:
            raise ValueError(f"no head {self.head!r}; the heads are 0 to {n_head - 1}")

    def _check_position(self, T):
        """ValueError if the position is none of an input of T tokens."""
        position = self.position
        if type(position) not in (int, slice, type(None)):
            raise ValueError(f"position must be an int, a slice or None, got {position!r}")
        if type(position) is int and not -T <= position < T:
            raise ValueError(
                f"no position {position}; the input's positions are 0 to {T - 1} (or -{T} to -1)"
            )
        if isinstance(position, slice):
            # PyTorch's tensors, unlike lists, have no negative steps.
            if (position.step or 1) < 1:
                raise ValueError(
                    f"the step of {position} must be positive; order the activation instead"
                )
            if not range(T)[position]:
                raise ValueError(f"{position} selects none of the input's positions 0 to {T - 1}")

    def apply(self, x: Tensor) -> Tensor:
        """x with the patch in it, a new tensor.

        ValueError if the activation is no tensor or does not fit.
        """
        x = x.clone()
        old = x[self.index]
        # The function gets a copy: it may write into what it is given.
        new = self.activation(old.clone()) if callable(self.activation) else self.activation
        if not isinstance(new, torch.Tensor):
            raise ValueError(
                f"the patch function for {self.site} must return a tensor, got {type(new).__name__}"
            )
        try:
            x[self.index] = new.to(x).broadcast_to(old.shape)
        except RuntimeError as error:
            raise ValueError(
                f"the activation for {self.site} of layer {self.layer} has shape "
                f"{tuple(new.shape)}, which does not broadcast to the {tuple(old.shape)} "
                "that it replaces"
            ) from error
        return x


# What a call takes as patch_params.
OnePatch = Patch | tuple[int, Position, Replacement]
Patches = OnePatch | Iterable[OnePatch] | None


def check_site(site: str) -> None:
    """ValueError, saying what the sites are, if there is none of that name."""
    if site not in SITES:
        raise ValueError(f"no site {site!r}; the sites are {', '.join(SITES)}")


def as_patches(patch_params: Patches) -> list[Patch]:
    """A list of Patch of what a caller may give: None, one patch or triple, or a list of them.

    Numbers of NumPy and PyTorch become ints. ValueError if it is none of these.
    """
    if patch_params is None:
        return []
    # One patch and a tuple of patches are both tuples, but a patch does not begin with a tuple.
    is_one = isinstance(patch_params, tuple) and not (
        patch_params and isinstance(patch_params[0], tuple)
    )
    given: Any = [patch_params] if is_one else patch_params
    try:
        patches = [Patch(*patch) for patch in given]
    except TypeError as error:
        raise ValueError(
            "patch_params must be (layer, position, activation), a Patch, or a list of them"
        ) from error
    # With Python's own ints, so that `check` can ask for the type int, and reject True and 1.0.
    return [
        Patch(as_int(layer), as_int(position), activation, site, as_int(head))
        for layer, position, activation, site, head in patches
    ]


def as_int(number: Any) -> Any:
    """An integer of NumPy or PyTorch as Python's; anything else as it is, for a check to judge."""
    if isinstance(number, bool):
        return number
    try:
        return operator.index(number)
    except TypeError:
        return number


def as_store(store_activations: bool | Iterable[str]) -> Activations:
    """What a run fills: {} for False, else {site: {}} with resid_post and the sites asked for.

    store_activations: False, True, a site or a collection of sites; else ValueError.
    """
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
