"""A model's name -> its files on this machine.

A name is `names` (the embedded model), a folder, or a model id of the Hugging Face hub (gpt2,
distilgpt2, owner/name). Files of the hub come from the cache that huggingface_hub shares with the
user's other tools; what is missing there is downloaded.
"""

import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import huggingface_hub
import numpy

from mingpt.common import AnyPath, has_stderr, one_line, reading

# For the help of commands: what GPT.from_pretrained takes.
MODEL_HELP = (
    "a model id of the Hugging Face hub (gpt2, owner/name), a model's folder, a training run's "
    "folder (its last model), or names, the embedded model"
)
EMBEDDED = Path(__file__).parent / "checkpoints" / "names"
EMBEDDED_AUTOENCODER = EMBEDDED.with_name("names_autoencoder")  # of that model
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
# What the hub forwards these names to; the cache may have the model under either.
MOVED = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
PATIENCE = 8  # seconds in which the hub must answer; huggingface_hub itself tries for 24
TRIES = 3  # of a download that breaks off, beyond what huggingface_hub itself resumes
BROKEN = ("ReadError", "RemoteProtocolError")  # httpx's: a connection was reset, or ended early


class Unavailable(ValueError):
    """The model is not cached, and the hub is unreachable, refuses or does not know it."""


def find_model(name: AnyPath) -> "Folder | Hub":
    """The Folder or the Hub that a name stands for; no traffic.

    Of a run folder that trainer.py wrote, it is the folder of the last step.
    ValueError if the name can be neither a folder nor a hub id.
    """
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
        raise ValueError(
            f"the model's name must be a hub id such as gpt2, a folder, or names; got {name!r}"
        )
    name = os.fspath(name)
    if name == "names":
        return Folder(EMBEDDED, "names, embedded")
    path = Path(os.path.expanduser(name))
    with reading(path):
        is_folder = path.is_dir()
        is_file = path.exists() and not is_folder
    if is_folder:
        steps = steps_in(path)
        # A model's own folder is taken as it is, whatever else lies in it.
        if steps and not os.path.exists(path / "config.json"):
            path = steps[max(steps)]
        return Folder(path, f"folder {path}")
    if is_file:
        raise ValueError(
            f"{name} is a file; give the folder that it lies in, with config.json beside it"
        )
    if not HUB_ID.fullmatch(name):
        raise ValueError(
            f"there is no folder {name}; give one that exists, or a hub id such as gpt2"
        )
    return Hub(name)


def steps_in(folder: AnyPath) -> dict[int, Path]:
    """{step: its folder} of the checkpoints that trainer.py wrote there."""
    steps = {}
    for path in Path(folder).glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdecimal():
            steps[int(number)] = path
    return steps


class Folder:
    """The files of a model in a folder.

    where: its name in error messages. source: for the user, where the model came from.
    """

    def __init__(self, path: Path, source: str):
        self.path = path
        self.where = str(path)
        self.source = source

    def find(self, *filenames: str) -> Path | None:
        """The path of the first of these files that is there, or None."""
        with reading(self.path):
            present = os.listdir(self.path)
        for filename in filenames:
            if filename in present:
                return self.path / filename
        return None


def constants() -> ModuleType:
    """huggingface_hub's constants: ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE.

    ValueError if HF_ENDPOINT is no address: with some of those they cannot even be imported, which
    is why this module does not do so at its top.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # such as a port that is no number
        is_address = False
    if not is_address or re.search(r"\s", endpoint):
        raise ValueError(
            "HF_ENDPOINT must be an address such as https://huggingface.co, "
            f"got {endpoint!r}; set it anew or unset it"
        )
    from huggingface_hub import constants

    return constants


class Hub:
    """The files of a model on the hub.

    What is in the cache is taken from there without any traffic; the rest is downloaded.
    where, source: as a Folder's. repo: the id to ask for. revision: the commit from which all its
    files are taken, once the first of them is there; until then the newest one, "main".
    """

    def __init__(self, name: str):
        self.where = name
        self.source = f"{name}, from the cache {constants().HF_HUB_CACHE}"
        # The cache may have the model under its new id only.
        repos = (name, MOVED.get(name, name))
        self.repo = next(filter(has_weights, repos), name)
        self.revision = "main"
        self.downloaded = False

    def find(self, *filenames: str) -> Path | None:
        """The path of the first of these files that is cached or that the hub has, or None.

        A cached file goes before one to download, whatever their order.
        """
        for get_file in (cached, self.download):
            for filename in filenames:
                path = get_file(self.repo, self.revision, filename)
                if path:
                    # The folder is named by the commit: later files come from the same version.
                    self.revision = path.parents[filename.count("/")].name
                    return path
        return None

    def download(self, repo: str, revision: str, filename: str) -> Path | None:
        """The path of the file, fetched and checked; None if the model has no such file."""
        # It is not cached, so this is a note that the hub has no such file, from an earlier visit.
        if huggingface_hub.try_to_load_from_cache(repo, filename, revision=revision):
            return None
        if not self.downloaded:
            check_reachable(repo, filename)
        path = fetch(repo, revision, filename)
        if path:
            check_download(path)
            self.downloaded = True
            self.source = f"{self.where}, downloaded from {constants().ENDPOINT}"
        return path


Files = Folder | Hub  # of a model; both have find, where and source


def cached(repo: str, revision: str, filename: str) -> Path | None:
    """The path of the file in the cache, or None; no traffic."""
    # What comes back is a path, None, or an object that stands for "the hub has no such file".
    path = huggingface_hub.try_to_load_from_cache(repo, filename, revision=revision)
    return Path(path) if isinstance(path, str) else None


def has_weights(repo: str) -> bool:
    """Is there a weights file of this model in the cache?"""
    return any(cached(repo, "main", weights) for weights in WEIGHTS)


def check_reachable(repo: str, filename: str) -> None:
    """Unavailable if the hub does not answer a request for the file within PATIENCE seconds.

    huggingface_hub would find out too, but only after three times as long.
    """
    from huggingface_hub.utils import get_session

    fault: BaseException | str | None = f"no answer in {PATIENCE} s"

    def ask():
        nonlocal fault
        try:
            url = huggingface_hub.hf_hub_url(repo, filename)
            status = get_session().head(url, timeout=PATIENCE).status_code
            fault = f"it answers {status}" if status >= 500 else None
        except Exception as error:  # of requests or httpx, by version of huggingface_hub
            fault = error

    # No timeout bounds a silent name server or a host with many dead addresses, so the request
    # has a thread of its own, which may be left waiting.
    thread = threading.Thread(target=ask, daemon=True)
    if constants().HF_HUB_OFFLINE:
        fault = "HF_HUB_OFFLINE is set"
    else:
        thread.start()
        thread.join(PATIENCE)
    if fault:
        raise unreachable(repo, filename, fault)


def unreachable(repo: str, filename: str, reason: BaseException | str) -> Unavailable:
    """The Unavailable for a hub that does not answer."""
    return Unavailable(
        f"{filename} of {repo} is not in the cache {constants().HF_HUB_CACHE}, and "
        f"{constants().ENDPOINT} cannot be reached ({one_line(reason)}); "
        "run this again with a network, or give a folder that has the model, or names, the "
        "embedded model"
    )


def fetch(repo: str, revision: str, filename: str) -> Path | None:  # type: ignore[return]
    """The path of the file, downloaded; None if the model has no such file.

    Unavailable if the download fails, and fails again where trying again can help.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError

    # The last try returns or raises, which a type checker cannot see.
    for tries_left in reversed(range(TRIES)):
        try:
            is_large = filename.endswith((".safetensors", ".bin", ".pt"))
            with quiet(show_bar=is_large and has_stderr()):
                return Path(huggingface_hub.hf_hub_download(repo, filename, revision=revision))
        except RemoteEntryNotFoundError:
            return None
        # Its type depends on huggingface_hub's version: of requests, httpx, hf_xet or the disk.
        except Exception as error:
            if not tries_left or type(error).__name__ not in BROKEN:
                raise explain(error, repo, filename) from error


def explain(error: Exception, repo: str, filename: str) -> Unavailable:
    """The Unavailable for an error of huggingface_hub: what it means, and what to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return Unavailable(
            f"{repo} is gated: accept its terms at {constants().ENDPOINT}/{repo}, "
            "run `hf auth login`, then this again"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return Unavailable(
            f"there is no folder {repo}, and no such model at {constants().ENDPOINT}; "
            "check the spelling (for a private model run `hf auth login` first)"
        )
    # LocalEntryNotFoundError is huggingface_hub's word for every other refusal.
    if not isinstance(error, errors.LocalEntryNotFoundError):
        return Unavailable(
            f"the download of {filename} of {repo} from {constants().ENDPOINT} broke off: "
            f"{one_line(error)}; nothing was kept in part, run this again"
        )
    cause = error.__cause__
    if isinstance(cause, errors.HfHubHTTPError) and cause.response.status_code < 500:
        return Unavailable(
            f"{constants().ENDPOINT} refuses {filename} of {repo}: {one_line(cause)}"
        )
    return unreachable(repo, filename, cause or error)


def check_download(path: Path) -> None:
    """Unavailable, and the file is gone, if its bytes are not those that the hub announced.

    huggingface_hub itself compares only the size.
    """
    blob = path.resolve()
    # Only a large file's blob is named by its sha256, and only where the cache can make links.
    if len(blob.name) != 64:
        return
    digest = hashlib.sha256(numpy.memmap(path, mode="r").data).hexdigest()
    if digest != blob.name:
        for file in (path, blob):
            file.unlink(missing_ok=True)
        raise Unavailable(
            f"{path.name} came corrupt: its sha256 is {digest}, the hub announced {blob.name}; "
            "it was removed, run this again"
        )


@contextmanager
def quiet(show_bar: bool) -> Iterator[None]:
    """Silence huggingface_hub's lines about retries, and its progress bar if not show_bar."""
    from huggingface_hub import utils

    logger = logging.getLogger("huggingface_hub")
    with ExitStack() as undo:
        undo.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        # The user may have switched the bars off: then they stay off.
        if not show_bar and not utils.are_progress_bars_disabled():
            undo.callback(utils.enable_progress_bars)
            utils.disable_progress_bars()
        yield
