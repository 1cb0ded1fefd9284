"""A model's files -> its configuration, weights and tokenizer, all checked; and back, `save`.

A weight or a setting that this GPT-2 does not have is an error that names it: nothing is skipped
or guessed. The files are those of the Hugging Face hub, which transformers reads and writes too:
config.json, model.safetensors or pytorch_model.bin, merges.txt and vocab.json.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mingpt import hub
from mingpt.bpe import END_OF_TEXT, BPETokenizer
from mingpt.common import AnyPath, atomic_write, read_json
from mingpt.config import GPTConfig
from mingpt.weights import read_weights, stored_weights

if TYPE_CHECKING:  # it imports this module
    from mingpt.model import GPT

# These sizes have the same names in config.json and in GPTConfig; n_positions is block_size there.
SAME_NAMES = ("n_layer", "n_head", "n_embd", "n_inner", "vocab_size")
# Defaults for omitted fields of config.json; those of GPTConfig are minGPT's. The field
# reorder_and_upcast_attn is not read: it moves a product and a cast, which changes nothing in fp32.
OPTION_DEFAULTS = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "embd_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
}
# A model with one of these set is another function than this GPT-2.
REFUSED = ("add_cross_attention", "quantization_config", "pruned_heads")


@dataclass
class Pretrained:
    """What the files of a model hold.

    All of it is checked, so that a model made of it needs no further check.
    """

    config: GPTConfig
    weights: dict[str, Tensor]  # as GPT.load_state_dict takes them
    tokenizer: BPETokenizer | None


def read(files: hub.Files) -> Pretrained:
    """The Pretrained of a model's files, a hub.Folder or hub.Hub.

    hub.Unavailable if it is not cached, and the hub is unreachable or does not know it;
    ValueError for everything else.
    """
    # The small files first: what is wrong with them shows before the weights are downloaded.
    config = read_config(required(files, "config.json"))
    tokenizer = read_tokenizer(files, config.vocab_size)
    weights = read_weights(required(files, *hub.WEIGHTS), config)
    return Pretrained(config, weights, tokenizer)


def find_and_read(name: AnyPath) -> tuple[hub.Files, Pretrained]:
    """The files that a name stands for, and the Pretrained of them; errors as `read` has them."""
    while True:
        files = hub.find_model(name)
        try:
            return files, read(files)
        except ValueError:
            if not isinstance(files, hub.Folder):
                raise
            # A run that is still going on has removed this checkpoint: it has a newer one.
            is_of_run = files.path.parent == Path(name).expanduser()
            if not is_of_run or files.path.exists():
                raise


def required(files: hub.Files, *filenames: str) -> Path:
    """The path of the first of these files; ValueError if there is none."""
    path = files.find(*filenames)
    if path is None:
        raise ValueError(
            f"{files.where} has no {' or '.join(filenames)}; "
            "such a file, in one piece, must be there"
        )
    return path


def read_config(path: Path) -> GPTConfig:
    """The GPTConfig of a config.json; ValueError, naming the field, for another kind of model."""
    fields = read_json(path)
    try:
        check_architecture(fields)
        sizes = {name: fields.get(name) for name in SAME_NAMES}
        block_size = fields.get("n_positions")
        return GPTConfig(**sizes, block_size=block_size, **read_options(fields)).complete()
    except ValueError as error:
        # The only field that has another name in config.json.
        reason = str(error).replace("block_size", "n_positions")
        raise ValueError(f"{path}: {reason}") from error


def check_architecture(fields: Any) -> None:
    """ValueError if the fields of config.json are not those of a plain GPT-2."""
    model_type = fields.get("model_type") if isinstance(fields, dict) else None
    if model_type != "gpt2":
        raise ValueError(
            f'model_type must be "gpt2", got {model_type!r:.80}; other architectures are not read'
        )
    for name in REFUSED:
        if fields.get(name):
            raise ValueError(
                f"it sets {name} to {fields[name]!r:.80}, which is not supported here; "
                "take a plain GPT-2"
            )


def read_options(fields: dict[str, Any]) -> dict[str, Any]:
    """{name: value} of the options in config.json, which GPTConfig has under the same names.

    ValueError for a value of another type: GPTConfig itself checks only the sizes.
    """
    options = {}
    for name, default in OPTION_DEFAULTS.items():
        value = fields.get(name, default)
        kind = type(default)
        # JSON may write the float 1.0 as 1. A bool is an int in Python, but no number here.
        is_whole_float = kind is float and type(value) is int
        if type(value) is not kind and not is_whole_float:
            raise ValueError(
                f"{name} must be a {kind.__name__}, such as {default!r}, got {value!r:.80}"
            )
        options[name] = value
    return options


def read_tokenizer(files: hub.Files, vocab_size: int) -> BPETokenizer | None:
    """The BPETokenizer of a model's files (a hub.Folder or hub.Hub); None if they have none at all.

    ValueError where files are missing or broken, or the ids go beyond the model's vocab_size.
    """
    merges = files.find("merges.txt")
    vocab = files.find("vocab.json")
    # A vocabulary alone does not say in which order its tokens are put together.
    if merges is None:
        other = vocab or files.find("tokenizer.json")
        if other:
            raise ValueError(
                f"{files.where} has {other.name} but no merges.txt; put the merges.txt (and "
                "vocab.json) of the same model beside it: the order of the merges counts"
            )
        return None
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


class NoInit(TorchFunctionMode):
    """While it is on, nn.init.normal_ does nothing.

    A model on torch's meta device has no numbers to initialise, and for this one function the meta
    device imports a compiler, which takes a second.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.init.normal_:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def save(model: "GPT", folder: AnyPath, dtype: torch.dtype = torch.float32) -> None:
    """Write the model into the folder in the hub's layout, which transformers reads too.

    The folder may exist. No file is ever there in part: a run that is killed while it writes a
    checkpoint leaves a whole model or none. ValueError if the folder cannot be written.
    """
    weights = stored_weights(model, dtype)
    with atomic_write(folder) as temporary:
        temporary.mkdir(parents=True)
        settings = temporary / "config.json"
        text = json.dumps(settings_of(model, dtype), indent=2) + "\n"
        settings.write_text(text, encoding="utf-8")
        stored = temporary / hub.WEIGHTS[0]
        try:
            save_file(weights, stored, metadata={"format": "pt"})
        except SafetensorError as error:  # its word for a full disk
            raise OSError(error) from error
        # safetensors makes its file readable by its owner alone.
        shutil.copymode(settings, stored)
        if model.tokenizer:
            model.tokenizer.save(temporary)
        # Another model's tokenizer would be taken for this one's.
        for name in ("merges.txt", "vocab.json", "tokenizer.json"):
            if not (temporary / name).exists():
                Path(folder, name).unlink(missing_ok=True)


def settings_of(model: "GPT", dtype: torch.dtype) -> dict[str, Any]:
    """The fields of config.json: the model's configuration, and what transformers asks for."""
    number_format = str(dtype).removeprefix("torch.")
    fields = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_positions": model.block_size,
        "dtype": number_format,
        "torch_dtype": number_format,  # its name in transformers 4
    }
    for name in (*SAME_NAMES, *OPTION_DEFAULTS):
        fields[name] = getattr(model.config, name)
    if model.tokenizer:
        # Without these transformers would take GPT-2's own id, 50256.
        end = model.tokenizer.encoder.ids.get(END_OF_TEXT)
        fields |= {"bos_token_id": end, "eos_token_id": end}
    return fields
