"""The sizes and options of a GPT-2, under minGPT's names: do they fit together?"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# name -> layers, heads, width. Sources: Radford et al. 2018 and 2019 (GPT and GPT-2); Rae et al.
# 2021 (Gopher, arXiv 2112.11446). The last three are minGPT's, for experiments in minutes.
MODEL_TYPES = {
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

# The names are those that config.json files use. GPT-2's own is gelu_new: it computes the GELU by
# a formula with tanh, which is off by at most 5e-4.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}

SHAPE = ("n_layer", "n_head", "n_embd")  # what a model type sets
# The largest value of each; the smallest is 0.
RANGES = {"embd_pdrop": 1, "resid_pdrop": 1, "attn_pdrop": 1, "layer_norm_epsilon": 1e30}
SIZES = (*SHAPE, "vocab_size", "block_size", "n_inner")

# A size that is not given yet. In the configuration of a model each is a number, and has its type.
NOT_GIVEN: Any = None


@dataclass(slots=True)
class GPTConfig:
    """What a GPT is built from, under minGPT's names.

    Give a model_type of MODEL_TYPES, or n_layer, n_head and n_embd; and always vocab_size and
    block_size. The rest has defaults. A misspelt field is an AttributeError.
    """

    model_type: str | None = None
    n_layer: int = NOT_GIVEN
    n_head: int = NOT_GIVEN
    n_embd: int = NOT_GIVEN
    vocab_size: int = NOT_GIVEN
    # The longest input, in tokens.
    block_size: int = NOT_GIVEN
    # Dropout: on the embeddings, on what attention and MLP write, on the attention pattern.
    embd_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    # The width of the MLP, 4 * n_embd if None.
    n_inner: int = NOT_GIVEN
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    # Divide attention scores by sqrt(D), and by layer + 1?
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    # Is lm_head wte? So it is in GPT-2; minGPT trains two matrices.
    tie_word_embeddings: bool = False

    def complete(self) -> "GPTConfig":
        """A copy in which every size is a number.

        ValueError if a size is missing, given twice with two values, or does not fit the others.
        """
        shape = {} if self.model_type is None else self._shape_of_type()
        completed = replace(self, **shape)
        # Without a width there is nothing to take four times; the check says that it is missing.
        if completed.n_inner is None and completed.n_embd:
            completed.n_inner = 4 * completed.n_embd
        completed._check()
        return completed

    def _check(self):
        """ValueError if a number is out of its range, or numbers or names do not fit together."""
        for name in SIZES:
            size = getattr(self, name)
            if type(size) is not int or size < 1:
                raise ValueError(
                    f"{name} must be a whole number from 1, got {size!r:.80}; "
                    f"set {name}, or for layers, heads and width GPTConfig's model_type"
                )
        for name, largest in RANGES.items():
            value = getattr(self, name)
            # Written so that NaN, which is neither below 0 nor above, is refused too.
            if not (isinstance(value, int | float) and 0 <= value <= largest):
                raise ValueError(f"{name} must be a number from 0 to {largest}, got {value!r:.80}")
        # The heads share the width evenly: D = C / H.
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(
                f"no activation_function {self.activation_function!r}; "
                f"known are {', '.join(ACTIVATIONS)}"
            )

    def _shape_of_type(self):
        """{n_layer, n_head, n_embd} of the model type.

        ValueError if there is no such type, or the configuration sets another shape beside it.
        """
        if self.model_type not in MODEL_TYPES:
            raise ValueError(
                f"no model_type {self.model_type!r}; known are {', '.join(MODEL_TYPES)}, or None"
            )
        shape = dict(zip(SHAPE, MODEL_TYPES[self.model_type]))
        for name, size in shape.items():
            # A completed configuration has both a type and its shape, which is no contradiction.
            given = getattr(self, name)
            if given not in (None, size):
                raise ValueError(
                    f"model_type {self.model_type!r} sets {shape}, "
                    f"but the configuration has {name} {given}"
                )
        return shape
