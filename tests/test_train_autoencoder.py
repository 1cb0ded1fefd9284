"""Training autoencoders: what they learn from and what they learn; kills, processes, misuse."""

import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from experiments import train_autoencoder
from experiments.autoencoder_presets import PRESETS, AutoencoderPreset
from mingpt import hub, pretrained
from mingpt.bpe import END_OF_TEXT, BPETokenizer, Encoder
from mingpt.hub import steps_in
from mingpt.interpretability.activation_stream import ActivationStream, StreamConfig
from mingpt.interpretability.answer_features import answer_features
from mingpt.interpretability.autoencoder_quality import evaluate
from mingpt.interpretability.autoencoder_training import AutoencoderTrainer, SparsityConfig
from mingpt.interpretability.autoencoders import Autoencoder
from mingpt.interpretability.sparse_features import Encode, decode, top_of_batch, top_of_token
from mingpt.model import GPT, GPTConfig
from mingpt.names import passage
from mingpt.trainer import TrainerConfig

ROOT = Path(__file__).parent.parent
TEXT = "".join(f"{n} times {n} is {n * n}, and {n} more makes {n * n + n}.\n" for n in range(600))
SETTINGS = StreamConfig(1, context=10, tokens=30, batches=4)
TINY = AutoencoderPreset(
    1, "topk", 40, 5, 10, 32, 8, 1e-2, warmup_iters=2, batches=3, checkpoint_interval=2, kept=3
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"n_layer": 3, "n_head": 3, "n_embd": 21, "vocab_size": 257, "block_size": 16}
    model = GPT(GPTConfig(**sizes)).eval()
    model.tokenizer = BPETokenizer(Encoder([]))
    model.name = "tiny"
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A folder with the model, in model/, and a text."""
    root = tmp_path_factory.mktemp("autoencoder")
    pretrained.save(model, root / "model")
    (root / "text.txt").write_text(TEXT)
    return root


class Planted(ActivationStream):
    """Activations that are sums of few of 24 directions in 16 dimensions, at some place."""

    def __init__(self, model):
        self.model = model
        self.config = StreamConfig(1, tokens=256, batches=8)
        self.width = 16
        generator = torch.Generator().manual_seed(1)
        self.directions = F.normalize(torch.randn(24, 16, generator=generator), dim=1)

    def round(self, number):
        generator = torch.Generator().manual_seed(number)
        strength = 1 + torch.rand(2048, 24, generator=generator)
        active = torch.rand(2048, 24, generator=generator) < 0.08
        return 3 + (strength * active) @ self.directions


def make_trainer(stream, sparsity, **settings):
    settings = {"device": "cpu", "max_iters": 8, "learning_rate": 1e-2, "betas": (0.9, 0.99)} | (
        settings
    )
    return AutoencoderTrainer(TrainerConfig(**settings), stream, sparsity)


def fvu(autoencoder, x):
    return ((x - autoencoder(x)).square().sum() / (x - x.mean(0)).square().sum()).item()


def found(autoencoder, directions):
    """Mean over the directions of the cosine with the feature that is nearest."""
    return (directions @ autoencoder.W_dec.T).max(1).values.mean().item()


def test_the_products_of_few_features_are_those_of_all_with_zeros_between():
    torch.manual_seed(0)
    x = torch.randn(50, 7)
    weights = [torch.randn(40, 7).T, torch.randn(40), torch.randn(40, 7)]
    weights = [weight.requires_grad_() for weight in weights]
    W_enc, b_enc, W_dec = weights
    pre = x @ W_enc + b_enc
    of_token = torch.zeros_like(pre, dtype=torch.bool).scatter(1, pre.topk(5).indices, True)
    smallest = pre.flatten().topk(250).values[-1]
    for active, mask in (
        (top_of_token(pre.detach(), 5), of_token),
        (top_of_batch(pre.detach(), 5, guess=0.5), pre >= smallest),
        (top_of_batch(pre.detach(), 5, guess=9.0), pre >= smallest),  # above them: all are ordered
    ):
        values = Encode.apply(x, W_enc, b_enc, pre.detach(), active).relu()
        few = decode(values, W_dec, active)
        all_of_them = (pre.relu() * mask) @ W_dec
        torch.testing.assert_close(few, all_of_them, atol=1e-4, rtol=1e-5)  # sums in another order
        gradients = [
            torch.autograd.grad((total - x).square().mean(), weights, retain_graph=True)
            for total in (few, all_of_them)
        ]
        for gradient, expected in zip(*gradients):
            torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("site, width", [("resid_post", 21), ("mlp_post", 84), ("z", 21)])
def test_a_round_is_what_the_model_has_at_the_place(model, site, width):
    stream = ActivationStream(model, replace(SETTINGS, site=site), [TEXT[:200]])
    x = stream.round(3)
    assert x.shape == (120, width)
    model(stream.rows(torch.arange(len(stream.starts))), store_activations=[site])
    expected = model.activations[site][1]
    if site == "z":
        expected = expected.transpose(1, 2).flatten(2)
    gaps = x[:, None] - expected[:, 1:].flatten(0, 1)  # (N,1,d) - (M,d) -> (N,M,d)
    assert gaps.abs().amax(-1).min(1).values.max() < 1e-5  # a batch of another size
    assert torch.equal(stream.round(3), x)
    assert not torch.equal(stream.round(4), x)
    assert len(stream.model.transformer.h) == 2 and len(model.transformer.h) == 3


def test_short_texts_are_read_from_their_beginning_and_the_beginning_token_stands_before(model):
    texts = ["abc", "defgh", "ij"] * 9
    settings = replace(SETTINGS, beginning_token=True)
    stream = ActivationStream(model, settings, texts)
    rows = stream.rows(stream.starts)
    decoded = [model.tokenizer.decode(row) for row in rows]
    assert {row.removeprefix(END_OF_TEXT)[0] for row in decoded} == {"a", "d", "i"}
    assert all(row.startswith(END_OF_TEXT) for row in decoded)
    assert rows.shape[1] == 10


def test_a_batch_depends_on_the_seed_and_its_number_alone(model):
    batches = ActivationStream(model, SETTINGS, [TEXT]).from_batch(0)
    batches = [next(batches) for _ in range(7)]
    later = ActivationStream(model, SETTINGS, [TEXT]).from_batch(5)
    assert torch.equal(next(later), batches[5])
    assert torch.equal(next(later), batches[6])
    other = ActivationStream(model, replace(SETTINGS, seed=1), [TEXT]).from_batch(5)
    assert not torch.equal(next(other), batches[5])


@pytest.mark.parametrize("kind, options", [("topk", {}), ("batchtopk", {}), ("relu", {"l1": 0.2})])
def test_each_kind_finds_planted_directions_that_random_ones_do_not(model, kind, options):
    stream = Planted(model)
    sparsity = SparsityConfig(kind, n_features=48, k=3, dead_steps=50, **options)
    trainer = make_trainer(
        stream, sparsity, max_iters=300, warmup_iters=20, final_learning_rate=1e-4
    )
    untrained = trainer.autoencoder()
    trainer.run()
    trained = trainer.autoencoder()
    x = stream.round(999)
    assert fvu(untrained, x) > 0.5
    assert fvu(trained, x) < 0.15
    assert found(untrained, stream.directions) < 0.6
    assert found(trained, stream.directions) > 0.8
    assert trained.W_dec.norm(dim=1).sub(1).abs().max() < 1e-6
    # Of 24 directions 8 % are there.
    assert 1.5 < (trained.encode(x) > 0).sum(1).float().mean() < 10
    assert trained.config.activation == {"batchtopk": "jumprelu"}.get(kind, kind)


def test_the_threshold_of_batchtopk_keeps_up_with_a_short_training(model):
    """In use each token is by itself, and as many features are to be active as in the batches."""
    stream = Planted(model)
    sparsity = SparsityConfig("batchtopk", n_features=48, k=3)
    trainer = make_trainer(stream, sparsity, max_iters=60, final_learning_rate=1e-4)
    trainer.run()
    features = trainer.autoencoder().encode(stream.round(999))
    assert (features > 0).sum(1).float().mean().item() == pytest.approx(3, rel=0.1)


def test_the_auxiliary_loss_revives_dead_features(model):
    def dead_after(auxiliary):
        sparsity = SparsityConfig("topk", 48, k=2, auxiliary=auxiliary, dead_steps=10)
        trainer = make_trainer(Planted(model), sparsity, max_iters=300)
        with torch.no_grad():
            trainer.model.b_enc[:24] = -20  # none of these is ever among the largest
        trainer.run()
        return (trainer.model.silent_steps[:24] >= 100).sum()

    assert dead_after(0.0) == 24
    assert dead_after(1.0) < 6


@pytest.mark.parametrize("kind, options", [("topk", {}), ("batchtopk", {}), ("relu", {"l1": 0.1})])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(model, kind, options, tmp_path):
    def make(**settings):
        stream = ActivationStream(model, SETTINGS, [TEXT])
        sparsity = SparsityConfig(kind, 40, k=5, dead_steps=2, **options)
        return make_trainer(stream, sparsity, final_learning_rate=1e-4, **settings)

    def stop_at_five(trainer):
        if trainer.iter_num == 5:
            raise StopIteration

    undisturbed = make()
    undisturbed.run()
    first = make(checkpoint_dir=tmp_path)
    first.add_callback("on_batch_end", stop_at_five)
    first.run()
    second = make(checkpoint_dir=tmp_path)
    assert second.resume()
    second.run()
    assert second.iter_num == 8
    for name, weight in undisturbed.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name


def test_the_folder_is_an_autoencoder_and_has_its_curve(model, tmp_path, capsys):
    trained = train_autoencoder.train(model, [TEXT], TINY, tmp_path / "run", "cpu")
    for folder in (tmp_path / "run", tmp_path / "run" / "step-00000008"):
        read = Autoencoder.from_pretrained(folder)
        assert torch.equal(read.W_enc, trained.W_enc)
        assert (read.config.layer, read.config.site, read.config.k) == (1, "resid_post", 5)
    with open(tmp_path / "run" / "curve.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [int(row["step"]) for row in rows] == [1, 4, 8]
    # The last row, by its definition, on the rows of the last tenth.
    tail = TEXT[len(TEXT) * 9 // 10 :]
    stream = ActivationStream(model, StreamConfig(1, context=10), [tail])
    x = train_autoencoder.measured_activations(stream).flatten(0, 1)
    assert float(rows[-1]["fvu"]) == pytest.approx(fvu(trained, x), rel=1e-4)
    assert float(rows[-1]["l0"]) == (trained.encode(x) > 0).sum(1).float().mean()
    assert (tmp_path / "run" / "curve.png").read_bytes().startswith(b"\x89PNG")
    before = (tmp_path / "run" / "curve.csv").read_bytes()
    train_autoencoder.train(model, [TEXT], TINY, tmp_path / "run", "cpu")
    assert (tmp_path / "run" / "curve.csv").read_bytes() == before
    with pytest.raises(ValueError, match="has a run with learning_rate 0.01; give the same"):
        train_autoencoder.train(
            model, [TEXT], replace(TINY, learning_rate=0.5), tmp_path / "run", "cpu"
        )
    other = GPT(model.config).eval()
    other.tokenizer = model.tokenizer
    with pytest.raises(ValueError, match="has a run with another model; give the same"):
        train_autoencoder.train(other, [TEXT], TINY, tmp_path / "run", "cpu")


OPTIONS = (
    "--layer 1 --kind topk --n-features 40 --k 5 --context 10 --tokens 32 --batches 3 --kept 3 "
    "--learning-rate 0.01 --warmup-iters 2 --dead-steps 3 --device cpu"
)


def start(folder, output, steps, interval=2, launcher=()):
    command = [sys.executable, *launcher, str(ROOT / "experiments" / "train_autoencoder.py")]
    command += [str(folder / "model"), "--text", str(folder / "text.txt"), "--output", str(output)]
    command += f"--max-iters {steps} --checkpoint-interval {interval} {OPTIONS}".split()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_killed_run_ends_like_an_undisturbed_one(folder, tmp_path):
    steps = 80
    assert start(folder, tmp_path / "whole", steps).wait() == 0
    rng = random.Random(0)
    for _ in range(2):
        process = start(folder, tmp_path / "killed", steps)
        before = steps_in(tmp_path / "killed")
        while steps_in(tmp_path / "killed") == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(0.1 * rng.random())
        process.kill()
        killed = 1 if os.name == "nt" else -signal.SIGKILL
        assert process.wait() == killed, "the run had ended before it could be killed"
    assert start(folder, tmp_path / "killed", steps).wait() == 0
    one, two = (Autoencoder.from_pretrained(tmp_path / name) for name in ("whole", "killed"))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name]), name
    curves = []
    for name in ("whole", "killed"):
        with open(tmp_path / name / "curve.csv", newline="") as file:
            curves.append([row[:2] + row[3:] for row in csv.reader(file)])
    assert curves[0] == curves[1]
    assert not [*(tmp_path / "killed").glob(".*")]


@pytest.mark.skipif(
    os.name == "nt", reason="torchrun needs libuv, which PyTorch for Windows has not"
)
def test_two_processes_train_one_run(folder, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, way in (("one", []), ("two", launcher)):
        process = start(folder, tmp_path / name, 12, launcher=way)
        printed, complaints = process.communicate()
        assert process.returncode == 0, complaints
        assert printed.count("is done: 12 steps") == 1
    one, two = (Autoencoder.from_pretrained(tmp_path / name) for name in ("one", "two"))
    for name, weight in one.state_dict().items():
        # Sums in another order, by way of 12 steps of Adam.
        torch.testing.assert_close(two.state_dict()[name], weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        ("--layer 3", "no layer 3; this model's layers are 0 to 2"),
        ("--site pattern", "no autoencoder is trained at the site 'pattern'; give one of resid"),
        ("--kind gated", "kind must be one of topk, batchtopk, relu, got 'gated'"),
        ("--kind relu", "without an l1 above 0"),
        ("--k 41", "k must be 1 to the 40 features, got 41"),
        ("--context 17", "context must be 2 to 16, which this model takes; got 17"),
        ("--skipped 10", "skipped must be 0 to 9, below context; got 10"),
        ("--l1 nan", "l1 must be above 0, up to 1,000,000,000, got nan"),
        ("--tokens 1000000000", "numbers at once; ask for 1,000,000,000 at the most"),
        ("--text short.txt", "fewer than the 10 of a row; give more text, or a smaller context"),
        ("--text nowhere.txt", "nowhere.txt cannot be read"),
        ("--preset gpt2-small-res-jb", "has no text of its own; give --text"),
        ("--device warp", "no device 'warp' can be used here"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(options, message, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("short")
    text = [] if "--text" in options or "--preset" in options else ["--text", f"{folder}/text.txt"]
    arguments = [str(folder / "model"), *text, *OPTIONS.split(), "--max-iters", "4"]
    assert train_autoencoder.main([*arguments, *options.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_activations_that_are_all_the_same_and_a_loss_that_is_no_number_are_refused(model):
    stream = Planted(model)
    sparsity = SparsityConfig(n_features=48, k=2)
    stream.directions = torch.zeros(24, 16)
    with pytest.raises(ValueError, match="the variance 0.0, so there is nothing to learn"):
        make_trainer(stream, sparsity).run()
    with pytest.raises(ValueError, match="step .* has the loss nan and a gradient"):
        make_trainer(Planted(model), sparsity, learning_rate=1e30, max_iters=60).run()


def test_the_preset_for_gpt2_has_the_sizes_of_the_published_ones():
    preset = PRESETS["gpt2-small-res-jb"]
    assert (preset.n_features, preset.context, preset.site) == (24576, 128, "resid_pre")
    assert preset.beginning_token
    assert preset.tokens * preset.max_iters == pytest.approx(300e6, rel=0.01)


def test_the_embedded_one_is_small_and_as_good_as_its_card_says():
    """On passages of another seed than those of its training."""
    files = [*hub.EMBEDDED_AUTOENCODER.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 2e6
    autoencoder = Autoencoder.from_pretrained("names")
    assert all(torch.equal(w, w.half().float()) for w in autoencoder.state_dict().values())
    rng = random.Random(7)
    quality = evaluate(GPT.from_pretrained("names"), autoencoder, [passage(rng) for _ in range(40)])
    card = (hub.EMBEDDED_AUTOENCODER / "README.md").read_text()
    assert f"{autoencoder.config.n_features:,} features" in card
    measured = {
        "active features (L0)": quality.l0,
        "variance unexplained (FVU)": quality.fvu,
        "loss recovered, from the mean": quality.recovered_mean,
        "loss recovered, from zeros": quality.recovered_zero,
    }
    for name, (value, error) in measured.items():
        stated, its_error = re.search(re.escape(name) + r" \| (\S+) \+- (\S+) \|", card).groups()
        # Both are samples of such passages, and the card's is rounded.
        rounding = 0.5 * 10.0 ** -len(stated.split(".")[1])
        allowed = 4 * (error**2 + float(its_error) ** 2) ** 0.5 + rounding
        assert abs(value - float(stated)) < allowed, name


def test_a_feature_of_the_embedded_one_carries_the_answer():
    """Without the feature that carries most of it, much more is lost than without a like one."""
    model = GPT.from_pretrained("names")
    text = "Michelle Jones was a top-notch student. Michelle"
    found = answer_features(model, Autoencoder.from_pretrained("names"), text, " Jones", " Smith")
    assert found.exact.max() > 1.5
    assert found.exact.max() > 20 * found.exact.abs().median()
