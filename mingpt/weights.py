"""The weights of a GPT-2, as its files hold them and as the model does.

Files name the weights with or without "transformer." in front, and keep the linear ones as
(in, out), turned against the model's nn.Linear. Every weight is checked against the configuration.
"""

import zipfile

import torch
from safetensors.torch import load_file

from mingpt.common import one_line

# The linear weights, which files hold as (in, out), the model's nn.Linear as (out, in).
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
MASKS = (".attn.bias", ".attn.masked_bias")  # buffers in older checkpoints, not weights


def read_file(path):
    """{name: tensor} as the file has them, memory-mapped, so that nothing is read twice.

    A .bin is read as plain tensors, never as code. ValueError if the file is not whole.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # A file from before torch 1.6 is no zip file, and cannot be mapped.
        is_zip = zipfile.is_zipfile(path)
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError:
        raise
    # For a file that is cut short or altered the readers raise errors of many types.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as weights ({one_line(error)[:200]}): it is corrupt, "
            f"cut short or not only tensors; delete {path.resolve()} and get it again"
        ) from error
    values = weights.values() if isinstance(weights, dict) else [None]
    if not all(isinstance(value, torch.Tensor) for value in values):
        raise ValueError(
            f"{path} must hold one dict of name: tensor, "
            "as torch.save(model.state_dict(), ...) writes it"
        )
    return weights


def stored_shapes(config):
    """{name: shape} of all weights of a GPT-2 as its files hold them, linear weights (in, out)."""
    C = config.n_embd
    M = config.n_inner  # width of the MLP
    # c_attn makes the queries, keys and values of all heads in one product, so its width is 3C.
    block = {
        "ln_1": (C,),
        "attn.c_attn": (C, 3 * C),
        "attn.c_proj": (C, C),
        "ln_2": (C,),
        "mlp.c_fc": (C, M),
        "mlp.c_proj": (M, C),
    }
    with_bias = {"ln_f": (C,)}
    for layer in range(config.n_layer):
        with_bias |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    shapes = {
        "transformer.wte.weight": (config.vocab_size, C),
        "transformer.wpe.weight": (config.block_size, C),
        "lm_head.weight": (config.vocab_size, C),
    }
    for name, shape in with_bias.items():
        shapes[f"transformer.{name}.weight"] = shape
        shapes[f"transformer.{name}.bias"] = shape[-1:]
    return shapes


def read_weights(path, config):
    """The weights of a file as GPT.load_state_dict takes them, {name: tensor}, in fp32.

    ValueError if the file is not whole, or, naming the weight, if one is missing, unknown, there
    twice, of another shape, or not finite. It names up to five such faults: together they show
    what kind of file it is.
    """
    shapes = stored_shapes(config)
    fitted = {}
    faults = []
    for stored_name, weight in without_masks(read_file(path)).items():
        # GPT-2's own files leave the prefix out; those that transformers writes have it.
        has_prefix = stored_name.startswith(("transformer.", "lm_head."))
        name = stored_name if has_prefix else f"transformer.{stored_name}"
        if name not in shapes:
            faults.append(f"{stored_name} is no weight of this model")
            continue
        if name in fitted:
            faults.append(f"{stored_name} is there twice, with and without 'transformer.'")
        fitted[name] = weight.float()
        faults += find_faults(stored_name, fitted[name], shapes[name])
    if config.tie_word_embeddings:
        faults += tie_embeddings(fitted)
    faults += [f"{name} is missing" for name in shapes if name not in fitted]
    if faults:
        if len(faults) > 5:
            faults[5:] = [f"and {len(faults) - 5} more"]
        raise ValueError("\n  ".join([f"{path} does not fit its config.json:", *faults]))
    return {name: transpose_linear(name, weight) for name, weight in fitted.items()}


def find_faults(name, weight, shape):
    """What is wrong with a weight by itself, a list of texts."""
    faults = []
    if weight.shape != shape:
        faults.append(f"{name} has shape {tuple(weight.shape)}, config.json makes it {shape}")
    # A finite sum has only finite terms, and is quicker to have.
    if not (weight.sum().isfinite() or weight.isfinite().all()):
        faults.append(f"{name} has values that are NaN or infinite")
    return faults


def tie_embeddings(weights):
    """What is wrong with the output matrix of a model that has it tied, a list of texts.

    Where the weights have no output matrix, the token embedding is put in its place, not copied.
    """
    embedding = weights.get("transformer.wte.weight")
    if embedding is None:
        return []
    output = weights.setdefault("lm_head.weight", embedding)
    if output.equal(embedding):
        return []
    return ["lm_head.weight is not wte.weight, though tie_word_embeddings in config.json says so"]


def transpose_linear(name, weight):
    """A linear weight turned from (in, out) to (out, in) or back; any other as it is."""
    return weight.t() if name.endswith(CONV1D) else weight


def stored_weights(model, dtype):
    """{name: tensor} of the model as its file holds them, linear weights (in, out)."""
    weights = {}
    for name, weight in model.state_dict().items():
        # A tied output matrix is the token embedding once more; a file holds it once.
        is_copy = name == "lm_head.weight" and model.config.tie_word_embeddings
        if not is_copy:
            weights[name] = transpose_linear(name, weight).to("cpu", dtype).contiguous()
    return weights


def without_masks(weights):
    """The state dict without the mask buffers that older checkpoints have beside the weights."""
    return {name: weight for name, weight in weights.items() if not name.endswith(MASKS)}
