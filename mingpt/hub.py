"""From a name to a model's files on this machine.

A name is `names` (the embedded model), a folder, or a model id of the Hugging Face hub (gpt2, distilgpt2, owner/name).
Files come from the cache that huggingface_hub shares with the user's other tools; what is missing is downloaded.
"""

import hashlib
import logging
import os
import re
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import huggingface_hub
import numpy
from huggingface_hub import constants

EMBEDDED = Path(__file__).parent / "checkpoints" / "names"
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
BROKEN = (
    "ReadError",
    "RemoteProtocolError",
)  # httpx's names for a connection reset, or ended early


class Unavailable(ValueError):
    """The model is not cached, and the hub is unreachable, refuses, does not know it, or broke off."""


def find_model(name):
    """The Folder or the Hub that a name stands for; ValueError if it can be neither."""
    if not isinstance(name, (str, os.PathLike)) or not os.fspath(name):
        raise ValueError(
            f"the model's name must be a hub id such as gpt2, a folder, or names; got {name!r}"
        )
    name = os.fspath(name)
    if name == "names":
        return Folder(EMBEDDED, "names, embedded")
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        steps = {} if (path / "config.json").exists() else steps_in(path)
        newest = steps[max(steps)] if steps else path
        return Folder(newest, f"folder {newest}")
    if path.exists():
        raise ValueError(
            f"{name} is a file; give the folder that it lies in, with config.json beside it"
        )
    if not HUB_ID.fullmatch(name):
        raise ValueError(
            f"there is no folder {name}; give one that exists, or a hub id such as gpt2"
        )
    return Hub(name)


def steps_in(folder):
    """{step: its folder} of the checkpoints that trainer.py wrote there."""
    steps = {}
    for path in Path(folder).glob("step-*"):
        match = re.fullmatch(r"step-(\d+)", path.name)
        if match:
            steps[int(match[1])] = path
    return steps


class Folder:
    """The files of a model in a folder."""

    def __init__(self, path, source):
        self.path = path
        self.where = str(path)  # for error messages
        self.source = source  # for the user: where the model came from

    def find(self, *filenames):
        """The path of the first of these files that is there, or None."""
        for filename in filenames:
            if (self.path / filename).exists():
                return self.path / filename
        return None


class Hub:
    """The files of a model on the hub: from the cache, without any traffic, where they are there, else downloaded."""

    def __init__(self, name):
        self.where = name
        self.source = f"{name}, from the cache {constants.HF_HUB_CACHE}"
        self.repo = name
        for repo in (name, MOVED.get(name, name)):
            if any(cached(repo, "main", weights) for weights in WEIGHTS):
                self.repo = repo
                break
        self.revision = "main"
        self.downloaded = False

    def find(self, *filenames):
        """The path of the first of these files that is cached, else of the first that the hub has, or None."""
        for get in (cached, self.download):
            for filename in filenames:
                path = get(self.repo, self.revision, filename)
                if path:
                    self.revision = (
                        path.parent.name
                    )  # the commit: what follows is taken from the same version
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
            self.downloaded = True
            self.source = f"{self.where}, downloaded from {constants.ENDPOINT}"
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

    if constants.HF_HUB_OFFLINE:
        raise unreachable(repo, filename, "HF_HUB_OFFLINE is set")
    fault = f"no answer in {PATIENCE} s"

    def ask():
        nonlocal fault
        try:
            url = huggingface_hub.hf_hub_url(repo, filename)
            status = get_session().head(url, timeout=PATIENCE).status_code
            fault = f"it answers {status}" if status >= 500 else None
        except Exception as error:  # of requests or httpx, by version of huggingface_hub
            fault = error

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
        except (
            Exception
        ) as error:  # of requests, httpx, hf_xet or the disk, by version of huggingface_hub
            if not tries_left or type(error).__name__ not in BROKEN:
                raise refusal(error, repo, filename) from error


def refusal(error, repo, filename):
    """The Unavailable for an error of huggingface_hub: what it means, and what to do."""
    from huggingface_hub import errors

    hub = constants.ENDPOINT
    cause = error.__cause__
    if isinstance(error, errors.GatedRepoError):
        return Unavailable(
            f"{repo} is gated: accept its terms at {hub}/{repo}, run `hf auth login`, then this again"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = "check the spelling (for a private model run `hf auth login` first)"
        return Unavailable(f"there is no folder {repo}, and no such model at {hub}; {hint}")
    if not isinstance(
        error, errors.LocalEntryNotFoundError
    ):  # huggingface_hub's word for every other refusal
        reason = f"{one_line(error)}; nothing was kept in part, run this again"
        return Unavailable(f"the download of {filename} of {repo} from {hub} broke off: {reason}")
    if isinstance(cause, errors.HfHubHTTPError) and cause.response.status_code < 500:
        return Unavailable(f"{hub} refuses {filename} of {repo}: {one_line(cause)}")
    return unreachable(repo, filename, cause or error)


def check_download(path):
    """Unavailable, and the file is gone, if its bytes are not those that the hub announced."""
    blob = path.parent / os.readlink(path) if path.is_symlink() else path
    if not re.fullmatch(
        "[0-9a-f]{64}", blob.name
    ):  # small files are not named by a sha256, nor files without a link
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
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

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
