"""From a model's files to its configuration, weights and tokenizer, all checked; and back, `save`.

A weight or a setting that this GPT-2 does not have is an error that names it: nothing is skipped or guessed.
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from mingpt import hub
from mingpt.bpe import END_OF_TEXT, BPETokenizer, read_tokenizer
from mingpt.common import atomic_write
from mingpt.config import GPTConfig, without_masks

SIZES = {  # config.json's name -> GPTConfig's
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "n_inner": "n_inner",
    "vocab_size": "vocab_size",
    "n_positions": "block_size",
}
OPTIONS = {  # defaults for omitted fields of config.json; GPTConfig's own defaults are minGPT's
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "embd_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
}  # reorder_and_upcast_attn is not among them: it moves a product and a cast, which in fp32 is the same function
REFUSED = ("add_cross_attention", "quantization_config", "pruned_heads")  # another model, if set
# The files hold these weights as (in, out), the model's nn.Linear as (out, in).
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


class Pretrained(NamedTuple):
    """What the files of a model hold."""

    config: GPTConfig
    weights: dict  # {name: tensor}, as GPT.load_state_dict takes them
    tokenizer: BPETokenizer | None


def read(files):
    """The Pretrained of a model's files, a hub.Folder or hub.Hub.

    Unavailable if it can be had neither from the cache nor from the hub; ValueError for everything else.
    """
    path = None
    try:
        config = read_config(required(files, "config.json"))
        tokenizer = read_tokenizer(files, config.vocab_size)
        path = required(files, *hub.WEIGHTS)
        weights = fit_weights(read_weights(path), config, path)
    except OSError as error:
        unreadable = error.filename or path
        reason = error.strerror or error
        raise ValueError(f"{files.where}: cannot read {unreadable}: {reason}") from error
    return Pretrained(config, weights, tokenizer)


def required(files, *filenames):
    """The path of the first of these files; ValueError if there is none."""
    path = files.find(*filenames)
    if path is None:
        names = " or ".join(filenames)
        raise ValueError(f"{files.where} has no {names}; such a file, in one piece, must be there")
    return path


def read_config(path):
    """config.json -> GPTConfig; ValueError, naming the field, for what this GPT-2 does not have."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path.resolve()} is no whole JSON file ({error}); delete it and get it again"
        ) from error
    model_type = fields.get("model_type") if isinstance(fields, dict) else None
    if model_type != "gpt2":
        raise ValueError(
            f'{path}: model_type must be "gpt2", got {model_type!r}; other architectures are not read'
        )
    for name in REFUSED:
        if fields.get(name):
            raise ValueError(
                f"{path} sets {name} to {fields[name]!r}, which is not supported here; take a plain GPT-2"
            )
    settings = {}
    for name, our_name in SIZES.items():
        value = fields.get(name)
        is_default = name == "n_inner" and value is None
        if not is_default and (type(value) is not int or value < 1):
            raise ValueError(f"{path}: {name} must be a whole number from 1, got {value!r}")
        settings[our_name] = value
    for name, default in OPTIONS.items():
        value = fields.get(name, default)
        kind = type(default)
        whole_number = kind is float and type(value) is int
        if type(value) is not kind and not whole_number:
            raise ValueError(
                f"{path}: {name} must be a {kind.__name__}, such as {default!r}, got {value!r}"
            )
        settings[name] = value
    try:
        return GPTConfig(**settings).complete()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_weights(path):
    """{name: tensor} as the file has them, memory-mapped; a .bin is read as plain tensors, never as code."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        mmap = zipfile.is_zipfile(
            path
        )  # a file from before torch 1.6 is none, and cannot be mapped
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # for a cut or altered file the readers raise errors of many types
        reason = hub.one_line(error)[:200]
        raise ValueError(
            f"{path} cannot be read as weights ({reason}): it is corrupt, cut short or not only tensors; "
            f"delete {path.resolve()} and get it again"
        ) from error
    if not isinstance(weights, dict) or not all(
        isinstance(weight, torch.Tensor) for weight in weights.values()
    ):
        raise ValueError(
            f"{path} must hold one dict of name: tensor, as torch.save(model.state_dict(), ...) writes it"
        )
    return weights


def stored_shapes(config):
    """{name: shape} of all weights of a GPT-2 as its files hold them, linear weights (in, out)."""
    C = config.n_embd
    M = config.n_inner
    block = {
        "ln_1.weight": (C,),
        "ln_1.bias": (C,),
        "attn.c_attn.weight": (C, 3 * C),
        "attn.c_attn.bias": (3 * C,),
        "attn.c_proj.weight": (C, C),
        "attn.c_proj.bias": (C,),
        "ln_2.weight": (C,),
        "ln_2.bias": (C,),
        "mlp.c_fc.weight": (C, M),
        "mlp.c_fc.bias": (M,),
        "mlp.c_proj.weight": (M, C),
        "mlp.c_proj.bias": (C,),
    }
    shapes = {
        "transformer.wte.weight": (config.vocab_size, C),
        "transformer.wpe.weight": (config.block_size, C),
    }
    for layer in range(config.n_layer):
        shapes |= {f"transformer.h.{layer}.{name}": shape for name, shape in block.items()}
    shapes["transformer.ln_f.weight"] = (C,)
    shapes["transformer.ln_f.bias"] = (C,)
    shapes["lm_head.weight"] = (config.vocab_size, C)
    return shapes


def fit_weights(weights, config, path):
    """The file's weights under the model's names, in fp32, linear weights (out, in).

    ValueError, naming the weight, if one is missing, unknown, there twice, of another shape, or not finite.
    """
    shapes = stored_shapes(config)
    fitted = {}
    faults = []
    for stored_name, weight in without_masks(weights).items():
        has_prefix = stored_name.startswith(("transformer.", "lm_head."))
        name = stored_name if has_prefix else f"transformer.{stored_name}"
        if name not in shapes:
            faults.append(f"{stored_name} is no weight of this model")
            continue
        weight = weight.float()
        if name in fitted:
            faults.append(f"{stored_name} is there twice, with and without 'transformer.'")
        if weight.shape != shapes[name]:
            found = tuple(weight.shape)
            faults.append(f"{stored_name} has shape {found}, config.json makes it {shapes[name]}")
        # A finite sum has only finite terms, and is quicker to have.
        if not (weight.sum().isfinite() or weight.isfinite().all()):
            faults.append(f"{stored_name} has values that are NaN or infinite")
        fitted[name] = weight.t() if name.endswith(CONV1D) and weight.ndim == 2 else weight
    if config.tie_word_embeddings and "transformer.wte.weight" in fitted:
        embedding = fitted["transformer.wte.weight"]
        if not fitted.setdefault("lm_head.weight", embedding).equal(embedding):
            faults.append(
                "lm_head.weight is not wte.weight, though tie_word_embeddings in config.json says so"
            )
    faults += [f"{name} is missing" for name in shapes if name not in fitted]
    if faults:
        more = [f"and {len(faults) - 5} more"] if len(faults) > 5 else []
        raise ValueError("\n  ".join([f"{path} does not fit its config.json:", *faults[:5], *more]))
    return fitted


class NoInit(TorchFunctionMode):
    """While it is on, nn.init.normal_ does nothing: for it torch's meta device imports a compiler, which takes 1 s."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.init.normal_:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def save(model, folder, dtype=torch.float32):
    """Write the model into the folder in the hub's layout, which transformers reads too; no file is ever in part.

    ValueError if the folder cannot be written.
    """
    folder = Path(folder)
    config = model.config
    weights = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = weight.t() if name.endswith(CONV1D) else weight
        weights[name] = stored.to("cpu", dtype).contiguous()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder) as temporary:
            temporary.mkdir()
            text = json.dumps(settings_of(model, dtype), indent=2) + "\n"
            (temporary / "config.json").write_text(text, encoding="utf-8")
            save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
            # safetensors makes its file readable by its owner alone
            shutil.copymode(temporary / "config.json", temporary / "model.safetensors")
            if model.tokenizer:
                model.tokenizer.save(temporary)
            # Another model's tokenizer would be taken for this one's.
            for name in ("merges.txt", "vocab.json"):
                if not (temporary / name).exists():
                    (folder / name).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot write to {folder}: {reason}; give another folder") from error


def settings_of(model, dtype):
    """The fields of config.json."""
    fields = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    for name in (*SIZES, *OPTIONS):
        fields[name] = getattr(model.config, SIZES.get(name, name))
    fields["dtype"] = str(dtype).removeprefix("torch.")
    fields["torch_dtype"] = fields["dtype"]  # its name in transformers 4
    if model.tokenizer:
        end = model.tokenizer.encoder.ids.get(END_OF_TEXT)
        fields["bos_token_id"] = end
        fields["eos_token_id"] = end
    return fields
