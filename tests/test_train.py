"""python -m experiments.train: corpora, the run and what it leaves; kills, downloads, wrong use."""

import csv
import hashlib
import json
import math
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks.kill_training import TEXT, kill_and_compare
from experiments import corpora, train
from mingpt import checkpointing
from mingpt.checkpointing import locked
from mingpt.hub import steps_in
from mingpt.interpretability.activation_patching import patch_layers
from mingpt.interpretability.induction import induction_curve
from mingpt.model import GPT, GPTConfig
from mingpt.trainer import Trainer
from tests.hub import Hub

TINY = train.Preset(
    257, 2, 3, 21, 16, batch_size=4, max_iters=6, learning_rate=1e-3, kept=3, checkpoint_interval=2
)
HEADER = (
    "The Project Gutenberg eBook of Emma\r\n\r\n"
    "*** START OF THE PROJECT GUTENBERG EBOOK EMMA ***\r\n\r\n"
)
LICENCE = (
    "\r\n\r\n*** END OF THE PROJECT GUTENBERG EBOOK EMMA ***\r\n"
    "Updated editions will replace the previous one.\r\n"
)
SMALLEST = "--vocab-size 257 --n-layer 1 --n-head 1 --n-embd 8 --block-size 16 --device cpu".split()


def rows(folder):
    with open(folder / "curve.csv", newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train") / "run"
    return folder, train.train([TEXT], TINY, folder, "cpu")


def test_the_folder_is_a_model_that_an_analysis_takes(run):
    folder, model = run
    read = GPT.from_pretrained(folder)
    assert all(
        torch.equal(weight, read.state_dict()[name]) for name, weight in model.state_dict().items()
    )
    assert read.tokenizer.decode(read.tokenizer.encode("7 times 7\n")) == "7 times 7\n"
    clean, corrupted = read.tokenizer("7 times 7"), read.tokenizer("8 times 7")
    assert patch_layers(read, clean, corrupted, 3, 4).logit_diff.shape == (2, 9)


def test_models_are_kept_at_the_steps_where_the_losses_were_measured(run):
    """Steps round(6 (i / 3)^2); the loss of the kept model on the rows is what curve.csv has."""
    folder, _ = run
    assert [int(row["step"]) for row in rows(folder)] == [0, 1, 3, 6]
    assert sorted(steps_in(folder)) == [0, 1, 3, 4, 6]  # 4: to go on from, should 6 be damaged
    ids = {
        "train_loss": TEXT[: len(TEXT) * 9 // 10],
        "validation_loss": TEXT[len(TEXT) * 9 // 10 :],
    }
    for row in rows(folder):
        model = GPT.from_pretrained(folder / f"step-{int(row['step']):08d}")
        for name, part in ids.items():
            part = torch.tensor(model.tokenizer.encode(part))
            starts = range(0, len(part) - 16, max(16, len(part) // 100))
            x = torch.stack([part[i : i + 17] for i in starts])
            losses = F.cross_entropy(model(x[:, :-1])[0].mT, x[:, 1:], reduction="none").mean(1)
            assert float(row[name]) == pytest.approx(
                losses.mean().item(), abs=1e-5
            )  # sums in another order
        assert float(row["validation_error"]) == pytest.approx(
            losses.std().item() / len(losses) ** 0.5, rel=1e-3
        )
        assert float(row["bits_per_byte"]) == pytest.approx(
            float(row["validation_loss"]) / math.log(2)
        )
        assert int(row["tokens"]) == int(row["step"]) * 4 * 16
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not (
        folder / "step-00000003" / "trainer_state.pt"
    ).exists()  # only the newest two are resumed from


def test_the_untrained_model_is_minGPTs_start(run):
    torch.manual_seed(TINY.seed)
    sizes = {"n_layer": 2, "n_head": 3, "n_embd": 21, "vocab_size": 257, "block_size": 16}
    expected = GPT(GPTConfig(**sizes, tie_word_embeddings=True)).state_dict()
    untrained = GPT.from_pretrained(run[0] / "step-00000000").state_dict()
    assert all(torch.equal(weight, untrained[name]) for name, weight in expected.items())


def test_measuring_and_writing_a_sample_do_not_disturb_the_training(tmp_path):
    often, seldom = (
        train.train(
            [TEXT], replace(TINY, dropout=0.5, kept=kept), tmp_path / f"{kept}", "cpu"
        ).state_dict()
        for kept in (6, 1)
    )
    assert all(torch.equal(often[name], seldom[name]) for name in often)


def test_training_lowers_the_loss_below_that_of_letter_frequencies(tmp_path):
    train.train(
        [TEXT], replace(TINY, max_iters=120, learning_rate=1e-2, warmup_iters=10), tmp_path, "cpu"
    )
    counts = torch.bincount(torch.tensor([*TEXT.encode()])).float()
    share = counts[counts > 0] / counts.sum()
    assert float(rows(tmp_path)[-1]["validation_loss"]) < -(share * share.log()).sum() - 0.5


def test_the_last_tenth_is_not_learned_and_the_cosine_ends_at_a_tenth_of_the_rate(
    tmp_path, monkeypatch
):
    rates, step = [], Trainer._step
    monkeypatch.setattr(
        Trainer, "_step", lambda self, x, y: (step(self, x, y), rates.append(self.learning_rate()))
    )
    unseen = "zyxw" * 300
    settings = replace(TINY, max_iters=120, learning_rate=1e-2, warmup_iters=10)
    train.train(["abcd" * 2700 + unseen], settings, tmp_path, "cpu")
    last = rows(tmp_path)[-1]
    assert float(last["train_loss"]) < 0.1
    assert float(last["validation_loss"]) > math.log(257)
    assert rates[0] == pytest.approx(1e-3)
    assert max(rates) == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-3, rel=0.01)


def test_a_bpe_learns_from_the_training_part_alone_and_bits_per_byte_count_its_tokens(tmp_path):
    rng = random.Random(0)
    text, unseen = (
        "".join(rng.choice("abcdefghijklmno ") for _ in range(12_000)),
        "zyxwvut " * 150,
    )  # less than a tenth
    model = train.train([text, unseen], replace(TINY, vocab_size=261), tmp_path, "cpu")
    assert model.config.vocab_size == 261
    learned = ["".join(pair) for pair in model.tokenizer.encoder.merges]
    assert len(learned) == 4
    assert not set("".join(learned)) & set("zyxwvut")
    validation = "<|endoftext|>".join((text, unseen))
    validation = validation[len(validation) * 9 // 10 :]
    ratio = len(model.tokenizer.encode(validation, allow_special=True)) / len(validation.encode())
    last = rows(tmp_path)[-1]
    assert float(last["bits_per_byte"]) == pytest.approx(
        float(last["validation_loss"]) / math.log(2) * ratio
    )


def test_a_batch_in_parts_has_the_gradient_of_the_whole_one():
    class Rows(
        torch.utils.data.Dataset
    ):  # with targets that do not count, a different number in each row
        def __len__(self):
            return 5

        def __getitem__(self, i):
            row = torch.arange(i, i + 7) % 11
            return row[:-1], row[1:].masked_fill(torch.arange(6) < (6 if i > 2 else i), -1)

    def gradients(accumulation):
        torch.manual_seed(0)
        sizes = {"n_layer": 2, "n_head": 3, "n_embd": 21, "vocab_size": 11, "block_size": 6}
        model = GPT(GPTConfig(**sizes, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0))
        config = Trainer.get_default_config()
        config.device, config.max_iters, config.batch_size, config.accumulation = (
            "cpu",
            1,
            5,
            accumulation,
        )
        config.grad_norm_clip, config.seed = 1e9, 1  # a batch whose last part has no target at all
        trainer = Trainer(config, model, Rows())
        trainer.run()
        return trainer.loss.item(), [p.grad for p in model.parameters()]

    whole, parts = gradients(1), gradients(3)
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    for a, b in zip(whole[1], parts[1]):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-4)  # sums in another order


def test_fused_attention_in_training_gives_the_logits_of_the_explicit_pattern():
    torch.manual_seed(0)
    sizes = {"n_layer": 4, "n_head": 3, "n_embd": 21, "vocab_size": 11, "block_size": 6}
    model = GPT(GPTConfig(**sizes, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0))
    ids = torch.randint(11, (2, 6))
    logits, gradients = [], []
    for mode in (True, False):
        model.train(mode).zero_grad()
        found, loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        logits.append(found)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*logits, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_two_killed_runs_end_like_an_undisturbed_one(tmp_path):
    assert len(kill_and_compare(tmp_path, kills=2)) == 2


def command(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = [sys.executable, "-m", "experiments.train", *map(str, arguments)]
    return subprocess.run(process, env=environment, capture_output=True, text=True, timeout=60)


def test_the_command_trains_prints_the_curve_and_says_so_when_all_is_done(tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("b", "a"):
        (tmp_path / "texts" / f"{name}.txt").write_text(f"{name} " + TEXT[:4000])
    options = [*SMALLEST, "--max-iters", "5", "--kept", "4"]
    arguments = [tmp_path / "texts", "--output", tmp_path / "run", *options]
    first = command(*arguments)
    assert first.returncode == 0
    assert "bits per byte" in first.stdout
    assert "tokens/s" in first.stdout
    assert "step 5:" in first.stdout
    lines = first.stdout.splitlines()[:-1]  # the last one has a path of any length
    assert max(map(len, lines)) <= 80
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["n_embd"] == 8
    before = rows(tmp_path / "run")
    again = command(*arguments)
    assert again.returncode == 0
    assert again.stdout == first.stdout.splitlines(keepends=True)[-1]
    assert again.stdout.startswith(f"{tmp_path / 'run'} is done: 5 steps, ")
    assert rows(tmp_path / "run") == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.txt"], "is none of shakespeare, austen, python, and nowhere.txt cannot be read"),
        (["empty"], "has no text"),
        (["latin.txt"], "latin.txt cannot be read as utf-8 text"),
        (["text.txt", "--device", "warp"], "no device 'warp' can be used here"),
        (["short.txt", "--preset", "shakespeare-char"], "needs 257; give more text"),
        (["text.txt", "--vocab-size", "200"], "vocab_size must be at least 257"),
        (["text.txt", "--n-layer", "0"], "n_layer must be above 0"),
        (["text.txt", "--n-head", "5"], "not a multiple of n_head"),
        (["text.txt", "--preset", "shakespeare-char", "--output", "text.txt"], "text.txt"),
        (
            ["text.txt", "--preset", "shakespeare-char", "--output", "other"],
            "checkpoints of another program",
        ),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "other/step-00000001"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "short.txt").write_text("short")
    (tmp_path / "text.txt").write_text(TEXT)
    assert train.main(["--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_folder_with_another_run_is_refused_and_says_what_differs(run):
    folder, _ = run
    with pytest.raises(
        ValueError, match="has a run with learning_rate 0.001, seed 0; give the same"
    ):
        train.train([TEXT], replace(TINY, learning_rate=2e-3, seed=5), folder, "cpu")
    with pytest.raises(ValueError, match="has a run with another text; give the same"):
        train.train([TEXT + "!"], TINY, folder, "cpu")


def test_a_run_that_cannot_begin_leaves_its_folder_to_another(tmp_path):
    with pytest.raises(ValueError, match="not a multiple of n_head"):
        train.train([TEXT], replace(TINY, n_head=2), tmp_path, "cpu")
    assert not [*tmp_path.iterdir()]
    train.train([TEXT], TINY, tmp_path, "cpu")


def test_other_tokens_are_not_taken_for_those_of_the_run(tmp_path, monkeypatch):
    preset = replace(TINY, vocab_size=259)
    monkeypatch.setattr(train, "train_bpe", lambda texts, size: [("t", "i"), ("e", "s")])
    train.train([TEXT], preset, tmp_path, "cpu")
    monkeypatch.setattr(train, "train_bpe", lambda texts, size: [("e", "s"), ("t", "i")])
    with pytest.raises(ValueError, match="has a run with other tokens; give the same"):
        train.train([TEXT], preset, tmp_path, "cpu")


def test_a_sample_that_the_terminal_cannot_show_does_not_end_the_run(tmp_path):
    (tmp_path / "text.txt").write_text("\u0416\u0428" * 3000, encoding="utf-8")
    options = [*SMALLEST, "--max-iters", "6", "--kept", "6"]
    process = [sys.executable, "-m", "experiments.train", "text.txt", *options]
    environment = os.environ | {
        "PYTHONIOENCODING": "cp1252",
        "PYTHONPATH": os.getcwd(),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        process, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "\\u0416" in done.stdout


def test_the_presets_have_the_sizes_in_their_names():
    sizes = {}
    for name, preset in train.PRESETS.items():
        with torch.device("meta"):
            shape = train.shared_fields(preset, GPTConfig)
            model = GPT(GPTConfig(**shape, tie_word_embeddings=True))
        sizes[name] = sum(p.numel() for p in model.parameters()) / 1e6
    assert sizes["austen-2m"] == pytest.approx(2, abs=0.1)
    assert sizes["austen-5.6m"] == pytest.approx(5.6, abs=0.1)
    shapes = {name: (p.n_layer, p.n_head, p.n_embd) for name, p in train.PRESETS.items()}
    assert shapes["shakespeare-char"] == (4, 4, 128)
    assert shapes["shakespeare-gpu"] == (6, 6, 384)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A server with a plain text and a Gutenberg file, which are the corpora; an empty cache."""
    plain = b"To be, or not to be.\n" * 999
    novel = (HEADER + "EMMA\r\n\r\n" + "handsome\r\n" * 99 + LICENCE).encode()
    files = {"input.txt": plain, "pg158.txt": novel}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Hub({"texts": files}) as hub:
        place = f"{hub.url}/texts/resolve/main/"
        served = {
            "shakespeare": {place + "input.txt": hashlib.sha256(plain).hexdigest()},
            "austen": {place + "pg158.txt": None},
        }
        monkeypatch.setattr(corpora, "CORPORA", served)
        yield hub, tmp_path / "cache" / "mingpt"


def test_a_corpus_is_downloaded_once_and_comes_without_header_and_licence(shelf):
    hub, cache = shelf
    for _ in range(2):
        assert corpora.read_corpus("shakespeare") == ["To be, or not to be.\n" * 999]
        assert corpora.read_corpus("austen") == ["EMMA\n\n" + "handsome\n" * 99]
    assert len(hub.requests) == 2
    assert {path.name for path in cache.rglob("*.*")} == {"input.txt", "pg158.txt"}


def test_the_python_corpus_is_the_standard_librarys_source_without_its_tests():
    texts = corpora.read_corpus("python")
    assert Path(json.__file__).read_text(encoding="utf-8") in texts
    assert sum(map(len, texts)) > 5e6
    assert not any("import torch" in text for text in texts)


def test_a_download_that_breaks_off_is_kept_and_goes_on_from_there(shelf):
    hub, cache = shelf
    hub.cut["input.txt"] = [9_000, 5_000]
    for size in (8_192, 12_288):  # whole pieces of 4,096 bytes
        with pytest.raises(ValueError, match="did not come whole.*run this again"):
            corpora.read_corpus("shakespeare")
        assert [(path.name, path.stat().st_size) for path in cache.rglob("*.*")] == [
            ("input.part", size)
        ]
    assert corpora.read_corpus("shakespeare") == ["To be, or not to be.\n" * 999]
    assert [start for _, _, start in hub.requests] == ["bytes=0-", "bytes=8192-", "bytes=12288-"]


def test_a_download_that_was_killed_before_its_last_step_is_taken_as_it_is(shelf):
    hub, cache = shelf
    (cache / "shakespeare").mkdir(parents=True)
    (cache / "shakespeare" / "input.part").write_bytes(hub.repos["texts"]["input.txt"])
    assert corpora.read_corpus("shakespeare") == ["To be, or not to be.\n" * 999]


@pytest.mark.parametrize("corpus, file", [("shakespeare", "input.txt"), ("austen", "pg158.txt")])
def test_what_is_not_the_text_is_refused_and_not_kept(shelf, corpus, file):
    hub, cache = shelf
    data = hub.repos["texts"][file]
    hub.sent[file] = (
        data.replace(b"o", b"0") if corpus == "shakespeare" else data[: data.index(b"*** END")]
    )
    with pytest.raises(ValueError, match="bytes of text, not the .* expected; nothing was kept"):
        corpora.read_corpus(corpus)
    assert not [*cache.rglob("*.*")]
    hub.sent.clear()
    corpora.read_corpus(corpus)


def test_without_a_network_the_error_says_which_file_to_put_where(shelf, capsys):
    hub, cache = shelf
    hub.__exit__()
    assert train.main(["shakespeare"]) == 2
    (address,) = corpora.CORPORA["shakespeare"]
    assert capsys.readouterr().err == (
        f"error: {address} cannot be downloaded (ConnectionError); get it elsewhere and save it as "
        f"{cache / 'shakespeare' / 'input.txt'}, or give a text file in place of shakespeare\n"
    )
    (cache / "shakespeare" / "input.txt").write_text("by hand")
    assert corpora.read_corpus("shakespeare") == ["by hand"]
    hub.__enter__()


def refused(arguments, capsys):
    """What the command says to arguments that it refuses, one line."""
    assert train.main(["text.txt", *SMALLEST, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """The current folder, with a text in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


@pytest.mark.parametrize(
    "options, message",
    [
        (f"--vocab-size {10**21}", "vocab_size must be a number up to 1,000,000,000"),
        ("--batch-size 100000000000", "batch_size must be a number up to"),
        ("--batch-size 100000000", "these sizes make 1,600,000,000 tokens in a batch"),
        ("--n-layer 1000000000", "weights in the model; ask for 1,000,000,000 at the most"),
        ("--dropout nan", "dropout must be a number up to 1,000,000,000, got nan"),
        ("--dropout 1", "dropout must be below 1"),
        ("--learning-rate inf", "learning_rate must be a number up to"),
        ("--device hpu", "no device 'hpu' can be used here"),
    ],
)
def test_sizes_that_no_machine_has_are_refused_before_the_work(options, message, desk, capsys):
    assert message in refused(options.split(), capsys)
    assert not (desk / "runs").exists()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("curve.csv", "mine", "has files that are not of a training run, such as curve.csv"),
        ("partial/thesis.txt", "mine", "has files that are not of a training run, such as partial"),
        ("settings.json", "[1, 2]", "settings.json is not of a training run"),
        ("settings.json", '{"text": 1}', "settings.json is not of a training run"),
        ("settings.json", "[" * 100_000, "settings.json is not of a training run"),
        ("config.json", "{}", "has files that are not of a training run, such as config.json"),
    ],
)
def test_a_folder_that_is_not_of_a_run_is_refused_and_stays_as_it_is(
    name, content, message, desk, capsys
):
    file = desk / "theirs" / name
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert message in refused(["--output", "theirs"], capsys)
    assert [path for path in (desk / "theirs").rglob("*") if path.is_file()] == [file]
    assert file.read_text() == content


def test_what_else_lies_in_the_folder_of_a_run_stays(tmp_path):
    train.train([TEXT], TINY, tmp_path, "cpu")
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "thesis.txt").write_text("mine")
    train.train([TEXT], TINY, tmp_path, "cpu")
    assert (tmp_path / "partial" / "thesis.txt").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes among its files")
def test_a_corpus_that_is_a_pipe_is_refused_not_waited_for(desk):
    os.mkfifo(desk / "pipe.txt")
    for name in ("pipe.txt", "."):
        with pytest.raises(ValueError, match="pipe.txt is no regular file"):
            corpora.read_corpus(name)


TRAIN_LONG = """
import sys
from experiments import train
from tests.test_train import TEXT, TINY, replace
settings = replace(TINY, max_iters=100_000, kept=3)
train.train([TEXT], settings, sys.argv[1], "cpu")
"""


@pytest.mark.skipif(
    os.name == "nt", reason="torchrun needs libuv, which PyTorch for Windows has not"
)
def test_two_processes_train_one_run(tmp_path):
    """torchrun's, on the command's own way: one of them writes, and losses are as by one."""
    (tmp_path / "text.txt").write_text(TEXT)
    options = [*SMALLEST, "--max-iters", "8", "--batch-size", "4", "--dropout", "0", "--kept", "2"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    module = ["-m", "experiments.train", str(tmp_path / "text.txt"), *options, "--output"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name, start in (("one", []), ("two", launcher)):
        done = subprocess.run(
            [sys.executable, *start, *module, str(tmp_path / name)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("is done: 8 steps") == 1
    one = rows(tmp_path / "one")
    two = rows(tmp_path / "two")
    assert [row["step"] for row in two] == [row["step"] for row in one] == ["0", "2", "8"]
    for row, other in zip(two, one):
        assert float(row["validation_loss"]) == pytest.approx(float(other["validation_loss"]))


@pytest.fixture
def training(tmp_path):
    """A process that trains in tmp_path/run for a long time; it has written a checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN_LONG, str(tmp_path / "run")], stdout=subprocess.DEVNULL
    )
    while not steps_in(tmp_path / "run"):
        assert process.poll() is None, "the training ended by itself"
        time.sleep(0.05)
    yield process, tmp_path / "run"
    process.kill()
    process.wait()


def test_a_second_training_in_a_folder_is_told_so_and_a_kill_leaves_it_free(training):
    process, folder = training
    settings = replace(TINY, max_iters=100_000, kept=3)
    with pytest.raises(ValueError, match="another training is writing to .*run; wait for its end"):
        train.train([TEXT], settings, folder, "cpu")
    process.kill()
    process.wait()
    with locked(folder):
        pass


def test_where_the_system_has_no_folder_locks_a_file_that_goes_with_the_process_is_one(
    tmp_path, monkeypatch
):
    """As on Windows, whose flag for such a file other systems do not have."""
    monkeypatch.setattr(checkpointing, "fcntl", None)
    monkeypatch.setattr(os, "O_TEMPORARY", 0, raising=False)
    with locked(tmp_path), locked(tmp_path):
        checkpointing.LOCKED.clear()  # as another process sees it
        with pytest.raises(ValueError, match="another training is writing"), locked(tmp_path):
            pass
        checkpointing.LOCKED.add(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not remove a file that is being read")
def test_a_run_can_be_read_at_any_moment_while_it_trains(training):
    _, folder = training
    sources = {GPT.from_pretrained(folder).source for _ in range(40)}
    assert len(sources) > 1
    assert induction_curve(folder, length=2, bases=2)
