"""A model's files -> its configuration, weights and tokenizer, all checked; and back, `save`.

A weight or a setting that this GPT-2 does not have is an error that names it: nothing is skipped
or guessed. The files are those of the Hugging Face hub, which transformers reads and writes too:
config.json, model.safetensors or pytorch_model.bin, merges.txt and vocab.json.
"""

import json
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from mingpt import hub
from mingpt.bpe import END_OF_TEXT, BPETokenizer
from mingpt.common import atomic_write
from mingpt.config import GPTConfig, fields_of, read_config, without_masks

# The files hold these weights as (in, out), the model's nn.Linear as (out, in).
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


@dataclass
class Pretrained:
    """What the files of a model hold."""

    config: GPTConfig
    weights: dict  # {name: tensor}, as GPT.load_state_dict takes them
    tokenizer: BPETokenizer | None


def read(files):
    """The Pretrained of a model's files, a hub.Folder or hub.Hub.

    hub.Unavailable if it is not cached, and the hub is unreachable or does not know it;
    ValueError for everything else.
    """
    path = None
    try:
        # The small files first: what is wrong with them shows before the weights are downloaded.
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


def read_tokenizer(files, vocab_size):
    """The BPETokenizer of a model's files (a hub.Folder or hub.Hub); None if they have none at all.

    ValueError where files are missing or broken, or the ids go beyond the model's vocab_size.
    """
    merges = files.find("merges.txt")
    vocab = files.find("vocab.json")
    # A vocabulary alone does not say in which order its tokens are put together.
    if merges is None:
        other = vocab or files.find("tokenizer.json")
        if other is None:
            return None
        raise ValueError(
            f"{files.where} has {other.name} but no merges.txt; put the merges.txt (and "
            "vocab.json) of the same model beside it: the order of the merges counts"
        )
    try:
        tokenizer = BPETokenizer.from_files(merges, vocab)
        last = max(tokenizer.encoder.tokens)
        if last >= vocab_size:
            raise ValueError(
                f"the tokenizer has ids up to {last}, but the vocab_size of config.json is "
                f"{vocab_size}; take both from the same model"
            )
    except ValueError as error:
        raise ValueError(f"{files.where}: {error}") from error
    return tokenizer


def read_weights(path):
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
        reason = hub.one_line(error)[:200]
        raise ValueError(
            f"{path} cannot be read as weights ({reason}): it is corrupt, cut short or not only "
            f"tensors; delete {path.resolve()} and get it again"
        ) from error
    is_dict = isinstance(weights, dict)
    if not is_dict or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
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

    ValueError, naming the weight, if one is missing, unknown, there twice, of another shape, or
    not finite. It names up to five such faults: together they show what kind of file it is.
    """
    shapes = stored_shapes(config)
    fitted = {}
    faults = []
    for stored_name, weight in without_masks(weights).items():
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
        message = "\n  ".join([f"{path} does not fit its config.json:", *faults[:5]])
        more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(message + more)
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


class NoInit(TorchFunctionMode):
    """While it is on, nn.init.normal_ does nothing.

    A model on torch's meta device has no numbers to initialise, and for this one function the meta
    device imports a compiler, which takes a second.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.init.normal_:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def save(model, folder, dtype=torch.float32):
    """Write the model into the folder in the hub's layout, which transformers reads too.

    The folder may exist. No file is ever there in part: a run that is killed while it writes a
    checkpoint leaves a whole model or none. ValueError if the folder cannot be written.
    """
    folder = Path(folder)
    weights = stored_weights(model, dtype)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder) as temporary:
            temporary.mkdir()
            text = json.dumps(settings_of(model, dtype), indent=2) + "\n"
            (temporary / "config.json").write_text(text, encoding="utf-8")
            save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
            # safetensors makes its file readable by its owner alone.
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


def stored_weights(model, dtype):
    """{name: tensor} of the model as its file holds them, linear weights (in, out)."""
    weights = {}
    for name, weight in model.state_dict().items():
        # A tied output matrix is the token embedding once more; a file holds it once.
        is_copy = name == "lm_head.weight" and model.config.tie_word_embeddings
        if not is_copy:
            weights[name] = transpose_linear(name, weight).to("cpu", dtype).contiguous()
    return weights


def settings_of(model, dtype):
    """The fields of config.json: the model's configuration, and what transformers asks for."""
    fields = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **fields_of(model.config)}
    fields["dtype"] = str(dtype).removeprefix("torch.")
    fields["torch_dtype"] = fields["dtype"]  # its name in transformers 4
    if model.tokenizer:
        # Without these transformers would take GPT-2's own id, 50256.
        end = model.tokenizer.encoder.ids.get(END_OF_TEXT)
        fields["bos_token_id"] = end
        fields["eos_token_id"] = end
    return fields
