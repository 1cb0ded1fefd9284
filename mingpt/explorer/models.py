"""Which models may be chosen, and how one comes into the memory while the page shows how far it is.

A model is read in a thread of its own, so that the one before it can be used meanwhile; where it
cannot be had, or does not fit into the memory, the older ones stay. Two stay at most.
"""

import asyncio
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub

from mingpt import hub, pretrained
from mingpt.explorer import feature_view
from mingpt.explorer.memory import check_fits, count_weights
from mingpt.explorer.worker import Cache, explain
from mingpt.model import GPT

# {name: millions of parameters}, beside the models that the command names.
OFFERED = {"names": 2.6, "gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558}
MOST = 2  # models that stay in the memory
# Weights: of a smaller model a run is so short that a second thread gains little, and where
# other programs need the cores it was seen to cost four times the time.
SMALL = 20e6
BETWEEN = 0.1  # seconds between two looks at how far a model is


@dataclass
class Loaded:
    """A model, and what was computed with it."""

    model: GPT
    cache: Cache

    @property
    def threads(self):
        """How many of torch's threads its runs take; None for as many as torch would."""
        return 1 if count_weights(self.model.config) < SMALL else None


class Loading:
    """A model that is being read: how far it is, and at the end what went wrong, if anything."""

    def __init__(self, name):
        self.stage = f"looking for {name}"
        self.error = None  # a sentence
        self.folder: Path | None = None  # where the download is
        self.size = None  # of the download, in bytes
        self.thread = None

    def event(self):
        """What the page shows."""
        return {"stage": self.stage, "share": self.share()}

    def share(self):
        """How much of the download is there, from 0 to 1; None where that is not known."""
        size = self.size  # which the thread that reads takes away when it is through
        if not size or not self.folder:
            return None
        # huggingface_hub writes into a file of this name, until it has all of it.
        sizes = map(_size_of, self.folder.rglob("*.incomplete"))
        return min(1.0, max(sizes, default=0) / size)


def _size_of(path):
    """Bytes of a file; 0 where it has gone meanwhile."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


class Models:
    """The models that may be chosen, by name; load() and get() are called in the event loop."""

    def __init__(self, given=(), autoencoders=()):
        """given: models of the command; autoencoders: folders or hub ids, of the first of them."""
        self.names = list(dict.fromkeys((*given, *OFFERED)))
        self.start = next(iter(given), "names")
        self.autoencoders = autoencoders
        self.loaded = OrderedDict()  # {name: Loaded}, the latest used last
        self.under_way = {}  # {name: Loading}
        self.reading = threading.Lock()  # of one model at a time: so much memory is needed once

    async def load(self, name):
        """Yields {"stage", "share"} until the model is there; ValueError if it cannot be."""
        if not isinstance(name, str) or name not in self.names:
            raise ValueError(f"no model {name!r:.80}; those to choose from are in the page's list")
        # In this order: a model that is not under way any more is loaded.
        loading = self.under_way.get(name)
        if loading is None and name in self.loaded:
            return
        loading = loading or self._begin(name)
        told = None
        while loading.thread.is_alive():
            event = loading.event()
            # Said when it changes: a page shows it until the next.
            if event != told:
                yield event
            told = event
            await asyncio.sleep(BETWEEN)
        if loading.error:
            raise ValueError(loading.error)

    def get(self, name):
        """The Loaded of a model that load() has brought."""
        loaded = self.loaded.get(name)
        if loaded is None:
            raise ValueError(f"{name} has made room for another model; ask again")
        self.loaded.move_to_end(name)
        return loaded

    def _begin(self, name):
        loading = Loading(name)
        self.under_way[name] = loading
        loading.thread = threading.Thread(target=self._load, args=(name, loading), daemon=True)
        loading.thread.start()
        return loading

    def _load(self, name, loading):
        """Read a model; in a thread of its own."""
        try:
            self.read(name, loading)
        except Exception as error:
            loading.error = explain(error)
        finally:
            del self.under_way[name]

    def read(self, name, loading=None):
        """Bring a model into the memory; ValueError where it cannot be had or does not fit."""
        loading = loading or Loading(name)
        files = hub.find_model(name)
        config = pretrained.read_config(pretrained.required(files, "config.json"))
        # Before a long download, and again when it is over.
        check_fits(name, config, self._room_to_make())
        self._download(name, files, loading)
        with self.reading:
            loading.stage = f"reading the weights of {name}"
            loading.size = None
            check_fits(name, config, self._room_to_make())
            while len(self.loaded) >= MOST:
                self.loaded.popitem(last=False)
            model = GPT.from_pretrained(name)
            found = feature_view.read_autoencoders(self._autoencoders_of(name), model)
            self.loaded[name] = Loaded(model, Cache(autoencoders=found))

    def _autoencoders_of(self, name):
        """The names of a model's autoencoders: of `names` there is one in the project."""
        shipped = ["names"] if name == "names" else []
        return [*shipped, *self.autoencoders] if name == self.start else shipped

    def _room_to_make(self):
        """The sizes of the models that would go for another one."""
        going = list(self.loaded.values())[: len(self.loaded) - MOST + 1]
        return [loaded.model.config for loaded in going]

    def _download(self, name, files, loading):
        """Bring the weights into the hub's cache, unless they are there or in a folder."""
        if isinstance(files, hub.Folder):
            return
        loading.stage = f"downloading {name}"
        loading.folder = folder_in_cache(files.repo)
        if not any(hub.cached(files.repo, files.revision, weights) for weights in hub.WEIGHTS):
            loading.size = size_of_download(files.repo)
        files.find(*hub.WEIGHTS)


def title(name):
    """What a list of models shows: the name, how large it is, and whether a download comes first.

    Of a model that the command names, it is the name.
    """
    if name not in OFFERED:
        return name
    text = f"{name}, {OFFERED[name]} M parameters"
    files = hub.find_model(name)
    if isinstance(files, hub.Folder) or hub.has_weights(files.repo):
        return text
    return f"{text}: {OFFERED[name] * 4 / 1000:.1f} GB to download"


def folder_in_cache(repo):
    """The folder of the hub's cache that has the files of this model."""
    return Path(hub.constants().HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def size_of_download(repo):
    """Bytes of the weights on the hub; None if it does not say, for then nothing hangs on it."""
    try:
        url = huggingface_hub.hf_hub_url(repo, hub.WEIGHTS[0])
        return huggingface_hub.get_hf_file_metadata(url, timeout=hub.PATIENCE).size
    except Exception:
        return None


def describe(model, body, cache):
    """The view `model`: what a page must know of a model before it asks about texts."""
    config = model.config
    sizes = {
        "name": body["model"],
        "title": model.source or body["model"],
        "layers": config.n_layer,
        "heads": config.n_head,
        "width": config.n_embd,
        "neurons": config.n_inner,
        "vocabulary": config.vocab_size,
        "context": config.block_size,
        "autoencoders": feature_view.describe(cache.autoencoders),
    }
    yield {"model": sizes}
