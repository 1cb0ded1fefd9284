"""The weights of a GPT-2, as its files hold them and as the model does.

Files name the weights with or without "transformer." in front, and keep the linear ones as
(in, out), turned against the model's nn.Linear. Every weight is checked against the configuration.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from mingpt.common import reading
from mingpt.config import GPTConfig

if TYPE_CHECKING:  # it imports this module
    from mingpt.model import GPT

# The linear weights, which files hold as (in, out), the model's nn.Linear as (out, in).
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
EMBEDDING = "transformer.wte.weight"
OUTPUT = "lm_head.weight"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MASKS = (".attn.bias", ".attn.masked_bias")  # buffers in older checkpoints, not weights

Shapes = dict[str, tuple[int, ...]]  # {name of a weight: its shape}


def read_file(path: Path) -> dict[str, Tensor]:
    """{name: tensor} as the file has them, memory-mapped, so that nothing is read twice.

    A .bin is read as plain tensors, never as code. ValueError if the file is not whole.
    """
    complaint = "cannot be read as weights: it is corrupt, cut short or not only tensors"
    with reading(path, complaint):
        if path.suffix == ".safetensors":
            return load_file(path)
        # A file from before torch 1.6 is no zip file, and cannot be mapped.
        is_zip = zipfile.is_zipfile(path)
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    items = weights.items() if isinstance(weights, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(w, torch.Tensor) for name, w in items):
        raise ValueError(
            f"{path} must hold one dict of name: tensor, "
            "as torch.save(model.state_dict(), ...) writes it"
        )
    return weights


def stored_shapes(config: GPTConfig) -> Shapes:
    """{name: shape} of all weights of a GPT-2 as its files hold them, linear weights (in, out)."""
    C = config.n_embd
    M = config.n_inner  # width of the MLP
    # c_attn makes the queries, keys and values of all heads in one product, so its width is 3C.
    block: Shapes = {
        "ln_1": (C,),
        "attn.c_attn": (C, 3 * C),
        "attn.c_proj": (C, C),
        "ln_2": (C,),
        "mlp.c_fc": (C, M),
        "mlp.c_proj": (M, C),
    }
    with_bias: Shapes = {"ln_f": (C,)}
    for layer in range(config.n_layer):
        with_bias |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    shapes: Shapes = {
        EMBEDDING: (config.vocab_size, C),
        "transformer.wpe.weight": (config.block_size, C),
        OUTPUT: (config.vocab_size, C),
    }
    for name, shape in with_bias.items():
        shapes[f"transformer.{name}.weight"] = shape
        shapes[f"transformer.{name}.bias"] = shape[-1:]
    return shapes


def read_weights(path: Path, config: GPTConfig) -> dict[str, Tensor]:
    """The weights of a file as GPT.load_state_dict takes them, {name: tensor}, in fp32.

    ValueError if the file is not whole, or, naming the weight, if one is missing, unknown, there
    twice, of another shape, no plain floats, or not finite. It names up to five such faults:
    together they show what kind of file it is.
    """
    weights = without_masks(read_file(path))
    # A layer has 12 weights. The names of a billion layers would not fit into the memory.
    if config.n_layer > len(weights):
        raise ValueError(
            f"{path} does not fit its config.json: "
            f"it has {len(weights)} weights, too few for n_layer {config.n_layer}; "
            "take both from the same model"
        )
    shapes = stored_shapes(config)
    fitted, faults = fit_weights(weights, shapes)
    if config.tie_word_embeddings and EMBEDDING in fitted:
        # A file holds the one matrix once; here it is put in the second place, not copied.
        fitted.setdefault(OUTPUT, fitted[EMBEDDING])
    faults += [f"{name} is missing" for name in shapes if name not in fitted]
    if config.tie_word_embeddings and not faults and not fitted[OUTPUT].equal(fitted[EMBEDDING]):
        faults = [f"{OUTPUT} is not wte.weight, though tie_word_embeddings in config.json says so"]
    if faults:
        if len(faults) > 5:
            faults[5:] = [f"and {len(faults) - 5} more"]
        raise ValueError("\n  ".join([f"{path} does not fit its config.json:", *faults]))
    return {name: transpose_linear(name, weight) for name, weight in fitted.items()}


def fit_weights(weights: dict[str, Tensor], shapes: Shapes) -> tuple[dict[str, Tensor], list[str]]:
    """({name: tensor} in fp32 under the names of `shapes`, what is wrong as a list of texts)."""
    fitted = {}
    faults = []
    for stored_name, weight in weights.items():
        # GPT-2's own files leave the prefix out; those that transformers writes have it.
        has_prefix = stored_name.startswith(("transformer.", "lm_head."))
        name = stored_name if has_prefix else f"transformer.{stored_name}"
        if name not in shapes:
            faults.append(f"{stored_name} is no weight of this model")
            continue
        if name in fitted:
            faults.append(f"{stored_name} is there twice, with and without 'transformer.'")
        fault = find_misfit(weight, shapes[name])
        # Only now: a wrong shape may ask for more memory than there is.
        fitted[name] = weight if fault else weight.float()
        if not fault and not is_finite(fitted[name]):
            fault = "has values that are NaN or infinite"
        if fault:
            faults.append(f"{stored_name} {fault}")
    return fitted, faults


def find_misfit(weight: Tensor, shape: tuple[int, ...]) -> str | None:
    """What of a weight, but for its values, is not as this model needs it, a text; or None."""
    # What is no float here is sparse, or a code that needs its own decoder.
    is_plain = weight.layout is torch.strided and weight.device.type == "cpu"
    if not is_plain or weight.is_nested or weight.dtype not in FLOATS:
        kind = "nested" if weight.is_nested else f"{weight.layout}, {weight.dtype}"
        return f"must be a plain tensor of floats on the cpu, got {kind}, {weight.device}"
    if weight.shape != shape:
        return f"has shape {tuple(weight.shape)}, config.json makes it {shape}"
    return None


def is_finite(weight: Tensor) -> bool:
    """Are all values finite? A finite sum has only finite terms, and is quicker to have."""
    return bool(weight.sum().isfinite() or weight.isfinite().all())


def transpose_linear(name: str, weight: Tensor) -> Tensor:
    """A linear weight turned from (in, out) to (out, in) or back; any other as it is."""
    return weight.t() if name.endswith(CONV1D) else weight


def stored_weights(model: "GPT", dtype: torch.dtype) -> dict[str, Tensor]:
    """{name: tensor} of the model as its file holds them, linear weights (in, out)."""
    weights = {}
    for name, weight in model.state_dict().items():
        # A tied output matrix is the token embedding once more; a file holds it once.
        is_copy = name == OUTPUT and model.config.tie_word_embeddings
        if not is_copy:
            weights[name] = transpose_linear(name, weight).to("cpu", dtype).contiguous()
    return weights


def without_masks(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the mask buffers that older checkpoints have beside the weights."""
    return {name: weight for name, weight in weights.items() if not name.endswith(MASKS)}
