"""From a name or a folder to a model: configuration, weights and tokenizer, all checked; and back, `save`.

A name is `names` (the embedded model), a folder, or a model id of the Hugging Face hub (gpt2, distilgpt2, owner/name).
Files come from the cache that huggingface_hub shares with the user's other tools; what is missing there is downloaded.
A weight or a setting that this GPT-2 does not have is an error that names it: nothing is skipped or guessed.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
import threading
import zipfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import huggingface_hub
import numpy
import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from mingpt.bpe import END_OF_TEXT, BPETokenizer
from mingpt.model import GPT, MASKS, GPTConfig

EMBEDDED = Path(__file__).parent / "checkpoints" / "names"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
SIZES = {name: name for name in ("n_layer", "n_head", "n_embd", "n_inner", "vocab_size")}
SIZES["n_positions"] = "block_size"  # config.json's name -> GPTConfig's
OPTIONS = {  # with what config.json means where it leaves one out; GPTConfig's own defaults are minGPT's
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    **dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.1),
}  # reorder_and_upcast_attn is not among them: it moves a product and a cast, which in fp32 is the same function
REFUSED = ("add_cross_attention", "quantization_config", "pruned_heads")  # another model, if set
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # stored as (in, out)
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
# what the hub forwards these names to; the cache may have the model under either
MOVED = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
MOVED["distilgpt2"] = "distilbert/distilgpt2"
PATIENCE = 8  # seconds in which the hub must answer; huggingface_hub itself tries for 24
TRIES = 3  # of a download that breaks off, beyond what huggingface_hub itself resumes
BROKEN = ("ReadError", "RemoteProtocolError")  # httpx's names for a connection that was reset, or ended early


class Unavailable(ValueError):
    """The model is not in the cache and not to be had from the hub: not reached, refused, unknown or broken off."""


def load(name, cls=GPT):
    """The named model in eval mode, fp32, with `.tokenizer` (None if it has none), `.name` and `.source`, one line.

    name: `names`, a hub id, a folder in the hub's layout, or a run folder of trainer.py (its last step is taken).
    Unavailable if it can be had neither from the cache nor from the hub; ValueError for everything else.
    """
    find, path = source_of(name), None
    try:
        config = read_config(needed(find, "config.json"))
        tokenizer = read_tokenizer(find, config.vocab_size)
        path = needed(find, *WEIGHTS)
        with torch.device("meta"), NoInit():
            model = cls(config)
        model.load_state_dict(fit(read_weights(path), model, path), assign=True)
    except OSError as error:
        raise ValueError(f"{find.where}: cannot read {error.filename or path}: {error.strerror or error}") from error
    if config.tie_word_embeddings:
        model.lm_head.weight = model.transformer.wte.weight  # assign=True made two parameters of the one
    model.tokenizer, model.name, model.source = tokenizer, os.fspath(name), find.source
    return model.eval()


def save(model, folder, dtype=torch.float32):
    """Write the model into the folder in the hub's layout, which transformers reads too; no file is ever there in part.

    ValueError if the folder cannot be written.
    """
    folder, config = Path(folder), model.config
    settings = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    settings |= {name: getattr(config, SIZES.get(name, name)) for name in (*SIZES, *OPTIONS)}
    settings["dtype"] = settings["torch_dtype"] = str(dtype).removeprefix("torch.")  # torch_dtype in transformers 4
    if model.tokenizer:
        settings["bos_token_id"] = settings["eos_token_id"] = model.tokenizer.encoder.ids.get(END_OF_TEXT)
    weights = {
        name: (weight.t() if name.endswith(CONV1D) else weight).to("cpu", dtype).contiguous()
        for name, weight in model.state_dict().items()
        if not (name == "lm_head.weight" and config.tie_word_embeddings)
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as part:
            Path(part, "config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            save_file(weights, Path(part, WEIGHTS[0]), metadata={"format": "pt"})
            shutil.copymode(Path(part, "config.json"), Path(part, WEIGHTS[0]))  # safetensors' is its owner's alone
            if model.tokenizer:
                model.tokenizer.save(part)
            files = sorted(Path(part).iterdir())
            for old in {"merges.txt", "vocab.json"} - {file.name for file in files}:
                (folder / old).unlink(missing_ok=True)  # another model's, which would be taken for this one's
            for file in files:
                os.replace(file, folder / file.name)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot write to {folder}: {why}; give another folder") from error


def source_of(name):
    """The Folder or the Hub that a name stands for: called with file names, it gives the first one's path, or None."""
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
        raise ValueError(f"the model's name must be a hub id such as gpt2, a folder, or names; got {name!r}")
    name = os.fspath(name)
    if name == "names":
        return Folder(EMBEDDED, "names, embedded")
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        steps = {} if (path / "config.json").exists() else steps_in(path)
        path = steps[max(steps)] if steps else path
        return Folder(path, f"folder {path}")
    if path.exists():
        raise ValueError(f"{name} is a file; give the folder that it lies in, with config.json beside it")
    if not HUB_ID.fullmatch(name):
        raise ValueError(f"there is no folder {name}; give one that exists, or a hub id such as gpt2")
    return Hub(name)


def steps_in(folder):
    """{step: its folder} of the checkpoints that trainer.py wrote there."""
    named = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in Path(folder).glob("step-*"))
    return {int(match[1]): path for match, path in named if match}


def needed(find, *filenames):
    """The path of the first of these files; ValueError if there is none."""
    path = find(*filenames)
    if path is None:
        raise ValueError(f"{find.where} has no {' or '.join(filenames)}; such a file, in one piece, must be there")
    return path


def read_config(path):
    """config.json -> GPTConfig; ValueError, naming the field, for what this GPT-2 does not have."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.resolve()} is no whole JSON file ({error}); delete it and get it again") from error
    model_type = fields.get("model_type") if isinstance(fields, dict) else None
    if model_type != "gpt2":
        raise ValueError(f'{path}: model_type must be "gpt2", got {model_type!r}; other architectures are not read')
    for name in filter(fields.get, REFUSED):
        raise ValueError(f"{path} sets {name} to {fields[name]!r}, which this GPT-2 has not; take a plain GPT-2")
    settings = {}
    for name, ours in SIZES.items():
        settings[ours] = value = fields.get(name)
        if (type(value) is not int or value < 1) and not (name == "n_inner" and value is None):
            raise ValueError(f"{path}: {name} must be a whole number from 1, got {value!r}")
    for name, default in OPTIONS.items():
        settings[name] = value = fields.get(name, default)
        if type(value) not in (type(default), int if type(default) is float else None):
            raise ValueError(f"{path}: {name} must be a {type(default).__name__}, such as {default!r}, got {value!r}")
    try:
        return GPTConfig(**settings).complete()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_tokenizer(find, vocab_size=math.inf):
    """The BPETokenizer of merges.txt and, where there is one, vocab.json; None if there is no tokenizer at all."""
    merges, vocab = find("merges.txt"), find("vocab.json")
    if merges is None:
        if other := vocab or find("tokenizer.json"):
            todo = "put the merges.txt (and vocab.json) of the same model beside it: the order of the merges counts"
            raise ValueError(f"{find.where} has {other.name} but no merges.txt; {todo}")
        return None
    try:
        tokenizer = BPETokenizer.from_files(merges, vocab)
        last = max(tokenizer.encoder.ids.values())
        if last >= vocab_size:
            why = f"the tokenizer has ids up to {last}, but the vocab_size of config.json is {vocab_size}"
            raise ValueError(f"{why}; take both from the same model")
    except ValueError as error:
        raise ValueError(f"{find.where}: {error}") from error
    return tokenizer


def read_weights(path):
    """{name: tensor} as the file has them, memory-mapped; a .bin is read as plain tensors, never as code."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        mmap = zipfile.is_zipfile(path)  # a file from before torch 1.6 is none, and cannot be mapped
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # for a cut or altered file the readers raise errors of many types
        why = f"({one_line(error)[:200]}): it is corrupt, cut short or not only tensors"
        raise ValueError(f"{path} cannot be read as weights {why}; delete {path.resolve()} and get it again") from error
    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise ValueError(f"{path} must hold one dict of name: tensor, as torch.save(model.state_dict(), ...) writes it")
    return weights


def fit(weights, model, path):
    """The file's weights as a state dict of the model: its names, fp32, linear weights (out, in).

    ValueError, naming the weight, if one is missing, unknown, there twice, of another shape, or not finite.
    """
    expected, state, faults = model.state_dict(), {}, []
    for stored, weight in weights.items():
        if stored.endswith(MASKS):
            continue
        name = stored if stored.startswith(("transformer.", "lm_head.")) else f"transformer.{stored}"
        if name not in expected:
            faults.append(f"{stored} is no weight of this model")
            continue
        turn = torch.t if name.endswith(CONV1D) else torch.Tensor.detach  # both give a view
        shape, weight = turn(expected[name]).shape, weight.float()
        found = {
            "is there twice, with and without 'transformer.'": name in state,
            f"has shape {tuple(weight.shape)}, config.json makes it {tuple(shape)}": weight.shape != shape,
            "has values that are NaN or infinite": not (weight.sum().isfinite() or weight.isfinite().all()),
        }  # a finite sum, which is quicker to have, has only finite terms
        faults += [f"{stored} {fault}" for fault, is_so in found.items() if is_so]
        state[name] = turn(weight) if weight.ndim == 2 else weight
    if model.config.tie_word_embeddings and "transformer.wte.weight" in state:
        embedding = state["transformer.wte.weight"]
        if not state.setdefault("lm_head.weight", embedding).equal(embedding):
            faults.append("lm_head.weight is not wte.weight, though tie_word_embeddings in config.json says so")
    faults += [f"{name} is missing" for name in expected if name not in state]
    if faults:
        more = [f"and {len(faults) - 5} more"] if len(faults) > 5 else []
        raise ValueError("\n  ".join([f"{path} does not fit its config.json:", *faults[:5], *more]))
    return state


class NoInit(TorchFunctionMode):
    """While it is on, nn.init.normal_ does nothing: for it torch's meta device imports a compiler, which takes 1 s."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return kwargs["tensor"] if func is torch.nn.init.normal_ else func(*args, **(kwargs or {}))


class Folder:
    """The files of a model in a folder."""

    def __init__(self, path, source):
        self.path, self.where, self.source = path, str(path), source

    def __call__(self, *filenames):
        """The path of the first of these files that is there, or None."""
        return next((self.path / filename for filename in filenames if (self.path / filename).exists()), None)


class Hub:
    """The files of a model on the hub: from the cache, without any traffic, where they are there, else downloaded."""

    def __init__(self, name):
        repos = (name, MOVED.get(name, name))
        self.where, self.source = name, f"{name}, from the cache {constants.HF_HUB_CACHE}"
        self.repo = next((repo for repo in repos if any(cached(repo, "main", weights) for weights in WEIGHTS)), name)
        self.revision, self.downloaded = "main", False

    def __call__(self, *filenames):
        """The path of the first of these files that is in the cache, else of the first that the hub has, or None."""
        for get in (cached, self.download):
            for filename in filenames:
                path = get(self.repo, self.revision, filename)
                if path:
                    self.revision = path.parent.name  # the commit: what follows is taken from the same version
                    return path
        return None

    def download(self, repo, revision, filename):
        """The path of the file, fetched and checked, or None if the hub says that the model has no such file."""
        if huggingface_hub.try_to_load_from_cache(repo, filename, revision=revision):
            return None  # not a path, which `cached` would have found, but a note that there is no such file
        if not self.downloaded:
            reach(repo, filename)
        path = fetch(repo, revision, filename)
        if path:
            self.downloaded, self.source = True, f"{self.where}, downloaded from {constants.ENDPOINT}"
            check_download(path)
        return path


def cached(repo, revision, filename):
    """The path of the file in the cache, or None; no traffic."""
    path = huggingface_hub.try_to_load_from_cache(repo, filename, revision=revision)
    return Path(path) if isinstance(path, str) else None


def reach(repo, filename):
    """Unavailable, within PATIENCE seconds, if the hub does not answer a request for the file.

    In a thread of its own, since no timeout bounds a silent name server or a host with many dead addresses.
    """
    from huggingface_hub.utils import get_session

    fault = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"no answer in {PATIENCE} s"

    def ask():
        nonlocal fault
        try:
            status = get_session().head(huggingface_hub.hf_hub_url(repo, filename), timeout=PATIENCE).status_code
            fault = f"it answers {status}" if status >= 500 else None
        except Exception as error:  # of requests or httpx, by version of huggingface_hub
            fault = error

    if not constants.HF_HUB_OFFLINE:
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(PATIENCE)
    if fault:
        raise unreachable(repo, filename, fault)


def unreachable(repo, filename, reason):
    return Unavailable(
        f"{filename} of {repo} is not in the cache {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} cannot be "
        f"reached ({one_line(reason)}); run this again with a network, or give a folder that has the model"
    )


def fetch(repo, revision, filename):
    """The path of the file, downloaded; None if the model has no such file; Unavailable if all fails."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    for tries_left in reversed(range(TRIES)):
        try:
            with quiet(show_bar=filename in WEIGHTS):
                return Path(huggingface_hub.hf_hub_download(repo, filename, revision=revision))
        except RemoteEntryNotFoundError:
            return None
        except Exception as error:  # of requests, httpx, hf_xet or the disk, by version of huggingface_hub
            if not tries_left or type(error).__name__ not in BROKEN:
                raise refusal(error, repo, filename) from error


def refusal(error, repo, filename):
    """The Unavailable for an error of huggingface_hub: what it means, and what to do."""
    from huggingface_hub import errors

    hub, cause = constants.ENDPOINT, error.__cause__
    if isinstance(error, errors.GatedRepoError):
        return Unavailable(f"{repo} is gated: accept its terms at {hub}/{repo}, run `hf auth login`, then this again")
    if isinstance(error, errors.RepositoryNotFoundError):
        todo = "check the spelling (for a private model run `hf auth login` first)"
        return Unavailable(f"there is no folder {repo}, and no such model at {hub}; {todo}")
    if not isinstance(error, errors.LocalEntryNotFoundError):  # huggingface_hub's word for every other refusal
        why = f"{one_line(error)}; nothing was kept in part, run this again"
        return Unavailable(f"the download of {filename} of {repo} from {hub} broke off: {why}")
    if isinstance(cause, errors.HfHubHTTPError) and cause.response.status_code < 500:
        return Unavailable(f"{hub} refuses {filename} of {repo}: {one_line(cause)}")
    return unreachable(repo, filename, cause or error)


def check_download(path):
    """Unavailable, and the file is gone, if its bytes are not those that the hub announced."""
    blob = path.parent / os.readlink(path) if path.is_symlink() else path
    if not re.fullmatch("[0-9a-f]{64}", blob.name):  # small files are not named by a sha256, nor files without a link
        return
    digest = hashlib.sha256(numpy.memmap(path, mode="r")).hexdigest()
    if digest != blob.name:
        for file in (path.resolve(), blob, path):
            file.unlink(missing_ok=True)
        found = f"its sha256 is {digest}, the hub announced {blob.name}"
        raise Unavailable(f"{path.name} came corrupt: {found}; it was removed, run this again")


@contextmanager
def quiet(show_bar):
    """huggingface_hub without its lines about retries; with its progress bar, if wanted, where there is a terminal."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    with ExitStack() as undo:
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        if not show_bar and not are_progress_bars_disabled():
            undo.callback(enable_progress_bars)
            disable_progress_bars()
        yield


def one_line(error):
    """What an error says, in one line; huggingface_hub's go over several."""
    return " ".join(str(error).split()) or type(error).__name__
