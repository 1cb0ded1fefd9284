"""How predictions form: by loops over the definitions, bigrams counted by hand, the command."""

import csv
import math

import pytest
import torch
from torch.nn import functional as F

from experiments import prediction_layers, train
from experiments.prediction_layers import (
    GROUPS,
    Formation,
    count_bigrams,
    measure_formation,
    plot_formation,
)
from mingpt.bpe import BPETokenizer, Encoder
from mingpt.model import GPT, GPTConfig

T, L, H, D, V = 5, 4, 3, 7, 11
TEXT = "It rained all week, and it will rain again. " * 30
TINY = train.Preset(257, 2, 3, 21, 16, batch_size=4, max_iters=2, learning_rate=1e-3, kept=1)


def random_model(**settings):
    sizes = {"n_layer": L, "n_head": H, "n_embd": H * D, "vocab_size": V, "block_size": T}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT(GPTConfig(**sizes | settings)).eval()
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def random_ids(*size):
    return torch.randint(V, size, generator=torch.Generator().manual_seed(1))


def test_bigrams_are_those_counted_by_hand():
    found = count_bigrams(torch.tensor([0, 1, 0, 1, 2]), 4)
    # As next tokens 1 comes twice, 0 and 2 once, 3 never; each counts once more.
    assert found.unigrams.tolist() == pytest.approx([2 / 8, 3 / 8, 2 / 8, 1 / 8])
    # After 0 came 1 twice; a third count is spread like the unigrams. After 2 and 3 came nothing.
    after_0 = [2 / 8 / 3, (2 + 3 / 8) / 3, 2 / 8 / 3, 1 / 8 / 3]
    rows = found.after(torch.tensor([0, 3, 0, 2]))
    for row, expected in zip(rows.tolist(), (after_0, found.unigrams, after_0, found.unigrams)):
        assert row == pytest.approx([*map(float, expected)])


@pytest.fixture(scope="module")
def measured():
    """(model, text for counting, x, y, Formation), of three windows."""
    model = random_model()
    ids = random_ids(60)
    held_out = random_ids(3, T + 1)
    x, y = held_out[:, :-1], held_out[:, 1:]
    return model, ids, x, y, measure_formation(model, x, y, count_bigrams(ids, V))


@torch.no_grad()
def test_every_number_is_that_of_its_definition_token_by_token(measured):
    model, ids, x, y, found = measured
    ids = ids.tolist()
    pairs = [*zip(ids, ids[1:])]
    unigrams = [(ids[1:].count(b) + 1) / (len(pairs) + V) for b in range(V)]
    assert found.values.shape == (3, L + 3, 4)
    for n in range(3):
        model(x[n : n + 1], store_activations=["resid_pre"])
        embedding = model.activations["resid_pre"][0]
        streams = [embedding, *model.layer_activations.values()]
        expected = torch.zeros(L + 3, 4).double()
        for t in range(T):
            a = x[n, t].item()
            times = ids[:-1].count(a)
            bigrams = [(pairs.count((a, b)) + unigrams[b]) / (times + 1) for b in range(V)]
            lens = [model.lm_head(model.transformer.ln_f(s))[0, t].softmax(-1) for s in streams]
            readings = [unigrams, bigrams, *(reading.tolist() for reading in lens)]
            for r, q in enumerate(readings):
                for i, p in enumerate((bigrams, unigrams, readings[-1])):
                    terms = (p[b] * math.log(p[b] / q[b]) for b in range(V))
                    expected[r, i] += sum(terms) / T
                expected[r, 3] -= math.log(q[y[n, t]]) / T

            layer = L - 1
            top = lens[-1].argmax()
            while layer and lens[layer].argmax() == top:  # lens[layer] is after layer - 1
                layer -= 1
            assert found.layer[n, t] == layer
            assert found.is_bigrams[n, t] == (top == max(range(V), key=bigrams.__getitem__))
            assert found.is_sure[n, t] == (max(readings[-1]) >= 0.5)
        # fp32 through L blocks and a softmax
        torch.testing.assert_close(found.values[n].double(), expected, rtol=1e-4, atol=1e-5)
    assert found.names() == ["unigrams", "bigrams", "embedding", "0", "1", "2", "3"]


@torch.no_grad()
def test_the_last_loss_is_the_models_own(measured):
    model, _, x, y, found = measured
    logits, _ = model(x)
    losses = F.cross_entropy(logits.mT, y, reduction="none").mean(1)
    torch.testing.assert_close(found.values[:, -1, 3], losses)
    assert found.values[:, -1, 2].abs().max() < 1e-6


def handmade_formation():
    """Two windows of four tokens, three layers; in the second no top token is the bigrams'."""
    layer = torch.tensor([[0, 2, 1, 1], [2, 2, 2, 0]])
    is_bigrams = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]]).bool()
    is_sure = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]]).bool()
    return Formation(torch.rand(2, 3 + 3, 4), layer, is_bigrams, is_sure)


def test_tokens_are_counted_at_their_layer_and_windows_averaged_one_by_one():
    found = handmade_formation()
    counts = [found.counts()[name].tolist() for name in GROUPS]
    assert counts == [[1, 1, 0], [1, 1, 4], [0, 1, 0], [1, 1, 0]]
    assert found.mean_layers(GROUPS[:2]).tolist() == [[0.5, 1.5]]
    assert found.mean_layers(GROUPS[2:]).tolist() == [[1, 1]]
    assert found.mean_layers(GROUPS[1:2]).tolist() == [[1.5], [1.5]]


def test_the_picture_has_layer_0_above_and_every_count():
    found = handmade_formation()
    left, right = plot_formation(found, "a $title$").axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["0", "1", "2"]
    bottom, top = right.get_ylim()
    assert bottom > top
    bars = [[bar.get_width() for bar in group] for group in right.containers]
    assert bars == [pytest.approx([1 / 2, 1 / 2, 0]), pytest.approx([1 / 6, 1 / 6, 4 / 6])]
    line = left.containers[0].lines[0].get_xdata()
    assert line.tolist() == pytest.approx(found.values.mean(0)[3:, 0].tolist())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(a run's folder, the file that it was trained on)."""
    folder = tmp_path_factory.mktemp("layers")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    train.train([TEXT], TINY, folder / "run", "cpu")
    return folder / "run", folder / "text.txt"


def test_the_command_measures_the_rows_that_the_training_measures(run, tmp_path, capsys):
    folder, text = run
    arguments = [str(folder), "--corpus", str(text), "--output", str(tmp_path / "new" / "out")]
    assert prediction_layers.main(arguments) == 0
    files = sorted((tmp_path / "new" / "out").iterdir())
    assert [file.name for file in files] == ["layers.csv", "layers.png"]
    printed = capsys.readouterr().out
    assert printed.endswith("Wrote {1} and {0}.\n".format(*files))
    with open(files[0], encoding="utf-8", newline="") as file:
        *_, header, _, _, _, _, last = [*csv.reader(file)]
    # Of two layers, the last line is layer 1.
    assert last[0] == "1"
    with open(folder / "curve.csv", encoding="utf-8", newline="") as file:
        *_, trained = csv.DictReader(file)
    place = header.index("loss")
    numbers = [float(cell) for cell in last[place : place + 2]]
    curve = [float(trained[name]) for name in ("validation_loss", "validation_error")]
    assert numbers == pytest.approx(curve, rel=1e-4)
    assert "{:.3f} +- {:.3f}".format(*curve) in printed


def test_the_command_says_what_is_wrong_and_exits_with_2(run, tmp_path, capsys):
    folder, text = run
    short = tmp_path / "short.txt"
    short.write_text("It rained.", encoding="utf-8")
    other = tmp_path / "other.txt"
    other.write_text(f"{TEXT} And more.", encoding="utf-8")
    step = str(folder / "step-00000002")
    cases = [
        (["./nothere", "--corpus", str(text)], "there is no folder"),
        ([step, "--corpus", str(short)], "has 1 tokens, needs 33"),
        ([step, "--corpus", str(tmp_path / "none.txt")], "cannot be read"),
        ([str(folder), "--corpus", str(other)], "was trained on another text"),
    ]
    for arguments, message in cases:
        assert prediction_layers.main([*arguments, "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="has no tokenizer"):
        prediction_layers.held_out_windows(random_model(), TEXT)
    model = random_model(vocab_size=257)
    model.tokenizer = BPETokenizer(Encoder([]))
    x, y = prediction_layers.held_out_windows(model, TEXT)
    assert x.shape == y.shape and x.size(1) == T
    assert x[:, 1:].equal(y[:, :-1])
