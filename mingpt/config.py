"""The sizes and options of a GPT-2."""

from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional as F

MODEL_TYPES = {  # name -> layers, heads, width
    "openai-gpt": (12, 12, 768),
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
    "gopher-44m": (8, 16, 512),
    "gpt-mini": (6, 6, 192),
    "gpt-micro": (4, 4, 128),
    "gpt-nano": (3, 3, 48),
}

ACTIVATIONS = {  # the names that config.json files use
    "gelu_new": partial(F.gelu, approximate="tanh"),  # GPT-2's own
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}

SHAPE = ("n_layer", "n_head", "n_embd")  # what a model type sets
SIZES = (*SHAPE, "vocab_size", "block_size")  # what every model must have


MASKS = (".attn.bias", ".attn.masked_bias")  # buffers in older checkpoints, not weights


@dataclass(slots=True)
class GPTConfig:
    """Either a model_type of MODEL_TYPES, or n_layer, n_head and n_embd; and always vocab_size and block_size."""

    model_type: str | None = None
    n_layer: int | None = None
    n_head: int | None = None
    n_embd: int | None = None
    vocab_size: int | None = None
    block_size: int | None = None  # the longest input, in tokens
    embd_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    n_inner: int | None = None  # width of the MLP, 4 * n_embd if None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True  # divide scores by sqrt(D)
    scale_attn_by_inverse_layer_idx: bool = False  # and by layer + 1
    tie_word_embeddings: bool = False  # lm_head is wte, as in GPT-2; minGPT trains two matrices

    def complete(self):
        """A copy in which every size is a number; ValueError if one is missing, doubled or does not fit."""
        sizes = {name: getattr(self, name) for name in self.__slots__}
        if self.model_type is not None:
            sizes |= self._shape_of_type()
        missing = [name for name in SIZES if not sizes[name]]
        if missing:
            known = ", ".join(MODEL_TYPES)
            raise ValueError(f"set {', '.join(missing)}, or for the shape a model_type of {known}")
        sizes["n_inner"] = sizes["n_inner"] or 4 * sizes["n_embd"]
        for name in (*SIZES, "n_inner"):
            if type(sizes[name]) is not int or sizes[name] < 1:
                raise ValueError(f"{name} must be a whole number from 1, got {sizes[name]!r}")
        if sizes["n_embd"] % sizes["n_head"]:
            raise ValueError(
                f"n_embd {sizes['n_embd']} is not a multiple of n_head {sizes['n_head']}"
            )
        if self.activation_function not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(
                f"no activation_function {self.activation_function!r}; known are {known}"
            )
        return GPTConfig(**sizes)

    def _shape_of_type(self):
        """{n_layer, n_head, n_embd} of the model type; ValueError if the configuration sets others beside it."""
        if self.model_type not in MODEL_TYPES:
            known = ", ".join(MODEL_TYPES)
            raise ValueError(f"no model_type {self.model_type!r}; known are {known}, or None")
        shape = dict(zip(SHAPE, MODEL_TYPES[self.model_type]))
        given = {name: getattr(self, name) for name in SHAPE}
        others = {name: size for name, size in given.items() if size not in (None, shape[name])}
        if others:
            raise ValueError(
                f"model_type {self.model_type!r} sets {shape}, but the configuration also has {others}"
            )
        return shape


def without_masks(weights):
    """The state dict without the mask buffers that older checkpoints have beside the weights."""
    return {name: weight for name, weight in weights.items() if not name.endswith(MASKS)}
