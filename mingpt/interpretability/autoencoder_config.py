"""What is an autoencoder besides its weights? Where in the model is it, and what does it expect?

Files name the place by the hooks of TransformerLens (blocks.6.hook_resid_pre) or by the modules of
transformers (transformer.h.6.mlp); here it is a layer and a site.
"""

import re
from dataclasses import dataclass

from mingpt.model import GPT
from mingpt.sites import MLP_SITES, RESIDUAL_SITES

Place = tuple[int, str]  # (layer, site)
ACTIVATIONS = ("relu", "topk", "jumprelu")
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
# What is at one position of these is read from that position alone; z with its heads side by side.
AUTOENCODER_SITES = (*RESIDUAL_SITES, *MLP_SITES, "z")
# TransformerLens's name of each site, behind "blocks.6.".
HOOKS = {site: f"hook_{site}" for site in RESIDUAL_SITES}
HOOKS |= {"z": "attn.hook_z", "mlp_pre": "mlp.hook_pre", "mlp_post": "mlp.hook_post"}
# What a module of transformers' GPT-2 gives out, behind "transformer.h.6".
MODULES = {
    "": "resid_post",
    ".attn": "attn_out",
    ".attn.c_proj": "attn_out",
    ".mlp": "mlp_out",
    ".mlp.c_proj": "mlp_out",
    ".mlp.c_fc": "mlp_pre",
    ".mlp.act": "mlp_post",
}


@dataclass
class AutoencoderConfig:
    """An autoencoder's sizes, function, place and expectations; ValueError where they cannot be."""

    width: int  # d, of the site: C, or 4C at mlp_pre and mlp_post
    n_features: int
    layer: int
    site: str = "resid_post"
    activation: str = "relu"  # or topk, or jumprelu, which has a threshold for each feature
    k: int | None = None  # topk: so many features at each token, or fewer
    # Of the input, undone in the reconstruction: none; layer_norm: to mean 0 and deviation 1;
    # constant_norm_rescale: to the length sqrt(d).
    normalization: str = "none"
    subtract_b_dec: bool = True  # from the input, before it is encoded
    centered_stream: bool = False  # it was trained on the input less its mean over the channels
    beginning_token: bool = False  # in training <|endoftext|> stood before every text
    context: int | None = None  # tokens of a text in training, the beginning token included
    model: str | None = None  # whose activations these were, as its files name it

    def __post_init__(self):
        for name, value in (("width", self.width), ("n_features", self.n_features)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a number from 1, got {value!r:.80}")
        if type(self.layer) is not int or self.layer < 0:
            raise ValueError(f"layer must be a number from 0, got {self.layer!r:.80}")
        if self.context is not None and (type(self.context) is not int or self.context < 2):
            raise ValueError(f"context must be a number from 2, or None, got {self.context!r:.80}")
        for name, word, known in (
            ("site", self.site, AUTOENCODER_SITES),
            ("activation", self.activation, ACTIVATIONS),
            ("normalization", self.normalization, NORMALIZATIONS),
        ):
            if word not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {word!r:.80}")
        for name in ("subtract_b_dec", "centered_stream", "beginning_token"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r:.80}")
        if self.activation != "topk":
            self.k = None
        elif type(self.k) is not int or not 1 <= self.k <= self.n_features:
            raise ValueError(
                f"topk needs a k from 1 to the {self.n_features} features, got {self.k!r:.80}"
            )


def width_at(model: GPT, site: str) -> int:
    """How many numbers the site has at each token."""
    return model.config.n_inner if site in MLP_SITES else model.config.n_embd


def hook_of(layer: int, site: str) -> str:
    """TransformerLens's name of a place: blocks.6.hook_resid_pre."""
    return f"blocks.{layer}.{HOOKS[site]}"


def place_of(name: str) -> Place | None:
    """(layer, site) that a hook's or a module's name stands for; None if it is no such name."""
    hook = re.fullmatch(r"blocks\.(\d+)\.(.+)", name, re.ASCII)
    if hook:
        sites = [site for site in HOOKS if HOOKS[site] == hook[2]]
        return (int(hook[1]), sites[0]) if sites else None
    module = re.fullmatch(r"(?:.*\.)?(?:h|layers)\.(\d+)((?:\.[a-z_]+)*)", name, re.ASCII)
    if module and module[2] in MODULES:
        return int(module[1]), MODULES[module[2]]
    return None
