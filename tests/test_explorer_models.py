"""The explorer's models: which may be chosen, how far one is, does it fit, which ones stay."""

import asyncio
import json
import threading

import pytest
import torch
from huggingface_hub import constants

from mingpt import pretrained
from mingpt.config import GPTConfig
from mingpt.explorer import memory, models
from mingpt.explorer.memory import count_weights, free_memory
from mingpt.explorer.models import Models, title
from mingpt.model import GPT
from tests.hub import Handler, Hub, files_of


def load(chosen, name, see=None):
    """The events of loading a model; see is called with each as it comes."""

    async def collect():
        events = []
        async for event in chosen.load(name):
            events.append(event)
            if see:
                see(event)
        return events

    return asyncio.run(collect())


@pytest.fixture
def save(tmp_path):
    """save(name, width) -> the folder of a small model."""

    def save_model(name, width=8):
        torch.manual_seed(0)
        sizes = {"n_layer": 1, "n_head": 2, "n_embd": width, "vocab_size": 300, "block_size": 9}
        folder = tmp_path / name
        pretrained.save(GPT(GPTConfig(**sizes, tie_word_embeddings=True)), folder)
        return str(folder)

    return save_model


@pytest.fixture
def point_to(tmp_path, monkeypatch):
    """point_to(address): huggingface_hub takes it for the hub; there is no cache."""

    def point(url):
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    return point


def test_the_first_model_that_the_command_names_is_shown_else_names():
    assert Models().start == "names"
    chosen = Models(["gpt2-xl", "folder"])
    assert chosen.start == "gpt2-xl"
    assert chosen.names == ["gpt2-xl", "folder", "names", "gpt2", "gpt2-medium", "gpt2-large"]


def test_a_title_says_how_large_a_model_is_and_whether_it_must_be_downloaded(monkeypatch):
    monkeypatch.setattr(models.hub, "has_weights", lambda repo: False)
    assert title("gpt2-medium") == "gpt2-medium, 355 M parameters: 1.4 GB to download"
    monkeypatch.setattr(models.hub, "has_weights", lambda repo: True)
    assert title("gpt2-medium") == "gpt2-medium, 355 M parameters"
    assert title("names") == "names, 2.6 M parameters"
    assert title("a/folder") == "a/folder"


def test_a_model_is_read_once_for_all_who_ask_for_it(save, monkeypatch):
    name = save("small")
    reads = []
    read = GPT.from_pretrained

    def count(name):
        reads.append(name)
        return read(name)

    monkeypatch.setattr(models.GPT, "from_pretrained", count)
    chosen = Models([name])

    async def together():
        async def one():
            async for _ in chosen.load(name):
                pass

        await asyncio.gather(one(), one())

    asyncio.run(together())
    load(chosen, name)
    assert reads == [name] and chosen.get(name).model.config.n_embd == 8


def test_two_models_stay_those_used_last(save):
    names = [save(name) for name in ("one", "two", "three")]
    chosen = Models(names)
    for name in names[:2]:
        load(chosen, name)
    first = chosen.get(names[0])
    first.cache.get("key", lambda: 1)
    load(chosen, names[2])
    assert list(chosen.loaded) == [names[0], names[2]]
    assert chosen.get(names[0]).cache.get("key", lambda: 2) == 1
    with pytest.raises(ValueError, match="made room"):
        chosen.get(names[1])


def test_a_download_shows_how_far_it_is(save, point_to, monkeypatch, tmp_path):
    files = files_of(tmp_path / save("wide", width=200).rpartition("/")[2])
    size = len(files["model.safetensors"])
    goes_on = threading.Event()
    body = Handler.body

    def send(self, filename, data, start):
        if filename == "model.safetensors":
            self.wfile.write(data[: size // 2])
            self.wfile.flush()
            goes_on.wait(20)
            start += size // 2
        body(self, filename, data, start)

    monkeypatch.setattr(Handler, "body", send)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)

    def see(event):
        if event["share"] and event["share"] > 0.4:
            goes_on.set()

    with Hub({"gpt2": files}) as hub:
        point_to(hub.url)
        chosen = Models()
        events = load(chosen, "gpt2", see)
    shares = [event["share"] for event in events if event["share"]]
    assert events[0] == {"stage": "looking for gpt2", "share": None}
    assert "downloading gpt2" in [event["stage"] for event in events]
    assert shares == sorted(shares) and shares[-1] <= 1
    # So much was there while the hub held back the rest.
    assert [share for share in shares if 0.4 < share <= 0.5]
    assert chosen.get("gpt2").model.config.n_embd == 200


def test_how_far_a_download_is_can_be_asked_while_it_ends(tmp_path):
    loading = models.Loading("gpt2")
    loading.size = 100

    class Folder:
        """Of which all has gone while it was looked at."""

        def rglob(self, pattern):
            loading.size = None
            return [tmp_path / "gone.incomplete"]

    loading.folder = Folder()
    assert loading.share() == 0
    assert loading.share() is None


def test_a_model_that_has_just_come_is_not_read_again(save, monkeypatch):
    """Between two looks of the event loop the thread that reads may end."""
    name = save("small")
    chosen = Models([name])

    class JustThen(dict):
        def get(self, name):
            chosen.loaded.setdefault(name, "what the thread has read")
            return super().get(name)

    chosen.under_way = JustThen()
    monkeypatch.setattr(chosen, "_begin", lambda name: 1 / 0)
    assert load(chosen, name) == []


def test_a_model_that_cannot_be_had_says_so_and_the_old_one_stays(point_to):
    chosen = Models()
    load(chosen, "names")
    point_to("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="cannot be reached"):
        load(chosen, "gpt2")
    assert list(chosen.loaded) == ["names"] and not chosen.under_way


def test_a_fault_while_reading_is_told_to_the_terminal(save, monkeypatch, capfd):
    name = save("small")

    def break_down(name):
        raise KeyError("ours")

    monkeypatch.setattr(models.GPT, "from_pretrained", break_down)
    with pytest.raises(ValueError, match="fault"):
        load(Models([name]), name)
    assert "ours" in capfd.readouterr().err


def test_a_model_too_large_for_the_memory_is_refused_before_its_weights_are_read(
    tmp_path, monkeypatch
):
    sizes = {"n_layer": 48, "n_head": 25, "n_embd": 1600, "vocab_size": 50257, "n_positions": 1024}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"} | sizes))
    monkeypatch.setattr(memory, "free_memory", lambda: 2e9)
    chosen = Models([str(tmp_path)])
    load(chosen, "names")
    with pytest.raises(ValueError, match=r"needs 6.5 GB of memory, and 2.0 GB are free"):
        load(chosen, str(tmp_path))
    assert list(chosen.loaded) == ["names"]
    # Where nobody knows, it is tried: then what is missing is the weights.
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    with pytest.raises(ValueError, match="has no model.safetensors"):
        load(chosen, str(tmp_path))


def test_a_model_that_would_go_counts_as_free(save, monkeypatch):
    names = [save("one"), save("two", width=1000), save("three", width=1000)]
    chosen = Models(names)
    needed = 4 * count_weights(GPT.from_pretrained(names[2]).config) + memory.ROOM
    for name in names[1::-1]:
        load(chosen, name)
    monkeypatch.setattr(memory, "free_memory", lambda: needed - 1000)
    load(chosen, names[2])
    assert list(chosen.loaded) == [names[0], names[2]]


@pytest.mark.parametrize("is_tied", [True, False])
def test_the_count_of_weights_is_that_of_the_model(is_tied):
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 8, "vocab_size": 30, "block_size": 9}
    config = GPTConfig(**sizes, n_inner=21, tie_word_embeddings=is_tied).complete()
    assert count_weights(config) == sum(weight.numel() for weight in GPT(config).parameters())


def test_the_count_of_a_billion_layers_takes_no_memory():
    sizes = {"n_layer": 10**9, "n_head": 2, "n_embd": 8, "vocab_size": 30, "block_size": 9}
    assert count_weights(GPTConfig(**sizes).complete()) > 8e11


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_free_memory_is_that_of_the_machine_or_of_the_tightest_container(tmp_path):
    proc = tmp_path / "proc"
    groups = tmp_path / "groups"
    assert free_memory(proc, groups) is None
    write(proc, meminfo="MemTotal:  9000 kB\nMemAvailable:    5000 kB\n")
    assert free_memory(proc, groups) == 5000 * 1024
    # Version 2: the outer group is the tighter one; files that were read can go.
    write(proc / "self", cgroup="0::/outer/inner\n")
    write(groups / "outer" / "inner", memory__max="max\n", memory__current="10\n")
    write(groups / "outer", memory__max="4000\n", memory__current="3000\n")
    assert free_memory(proc, groups) == 1000
    write(groups / "outer", memory__stat="anon 5\ninactive_file 200\n")
    assert free_memory(proc, groups) == 1200
    # Version 1, of which a container sees its own group as the root.
    write(proc / "self", cgroup="5:cpu:/x\n4:memory:/elsewhere\n")
    bounded = {"memory__limit_in_bytes": "700", "memory__usage_in_bytes": "100"}
    write(groups / "memory", **bounded)
    assert free_memory(proc, groups) == 600
