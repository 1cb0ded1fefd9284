"""A score's parts against the run's own score, a bilinear form, and a head written by hand."""

import pytest
import torch

from mingpt.interpretability import runs
from mingpt.interpretability.attention_analysis import explain_attention
from mingpt.model import GPT, GPTConfig
from tests.handmade import INDUCTION_HEAD, PREVIOUS_TOKEN_HEAD, induction_model

L, H, D, V, T = 4, 3, 7, 11, 5
IDS = torch.tensor([[3, 1, 4, 1, 5]])


def make_model(**options):
    torch.manual_seed(0)
    config = GPTConfig(n_layer=L, n_head=H, n_embd=H * D, vocab_size=V, block_size=12, **options)
    model = GPT(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("layer", [0, 1, L - 1])
@pytest.mark.parametrize("options", [{}, {"scale_attn_by_inverse_layer_idx": True}])
def test_the_table_sums_to_the_score_of_the_run(layer, options):
    model = make_model(**options).double()
    scores = runs.record(model, IDS, ["scores", "pattern"])
    for head in range(H):
        for query, key in ((4, 2), (3, 3), (-1, -5)):
            explanation = explain_attention(model, IDS, layer, head, query, key)
            expected = scores["scores"][layer][0, head, query, key].item()
            assert explanation.table.sum().item() == pytest.approx(expected, abs=1e-10)
            assert explanation.score == pytest.approx(expected, abs=1e-10)
            weight = scores["pattern"][layer][0, head, query, key].item()
            assert explanation.weight == pytest.approx(weight, abs=1e-10)
            S = len(explanation.parts)
            assert layer * (H + 1) + 3 == S and explanation.table.shape == (S, S)


def score_of_streams(model, layer, head, x, y, at_x, at_y):
    """The score of a query at stream x with a key at y, the norms with the scales of at_x, at_y."""
    block = model.transformer.h[layer]

    def normed(stream, whole):
        mean = stream.mean()
        scale = torch.sqrt(((whole - whole.mean()) ** 2).mean() + block.ln_1.eps)
        return block.ln_1.weight * (stream - mean) / scale + block.ln_1.bias

    q = block.attn.c_attn(normed(x, at_x)).view(3, H, D)[0, head]
    k = block.attn.c_attn(normed(y, at_y)).view(3, H, D)[1, head]
    return (q @ k / D**0.5).item()


def test_an_entry_is_what_the_score_gains_by_the_two_parts_together():
    model = make_model().double()
    layer, head, query, key = 2, 1, 4, 2
    explanation = explain_attention(model, IDS, layer, head, query, key)
    stored = runs.record(model, IDS, ["resid_pre", "z", "mlp_out"])
    at_query, at_key = stored["resid_pre"][layer][0, [query, key]]

    def written(part, position):
        if part == "token":
            return model.transformer.wte.weight[IDS[0, position]]
        if part == "position":
            return model.transformer.wpe.weight[position]
        if part.startswith("mlp"):
            below = int(part[4:])
            block = model.transformer.h[below]
            return stored["mlp_out"][below][0, position] - block.mlp.c_proj.bias
        below, of = map(int, part.split("."))
        # What attention writes, without all other heads and without its bias.
        z = torch.zeros(H, D).double()
        z[of] = stored["z"][below][0, of, position]
        return model.transformer.h[below].attn.c_proj.weight @ z.flatten()

    for row, first in enumerate(explanation.parts[:-1]):
        for column, second in enumerate(explanation.parts[:-1]):
            a, b = written(first, query), written(second, key)
            gain = 0
            for sign, x, y in (
                (1, at_query, at_key),
                (-1, at_query - a, at_key),
                (-1, at_query, at_key - b),
                (1, at_query - a, at_key - b),
            ):
                gain += sign * score_of_streams(model, layer, head, x, y, at_query, at_key)
            assert explanation.table[row, column].item() == pytest.approx(gain, abs=1e-10)


def test_the_induction_head_matches_the_token_with_what_the_previous_token_head_wrote():
    ids = torch.tensor([[7, 2, 9, 4, 7]])
    layer, head = INDUCTION_HEAD
    explanation = explain_attention(induction_model(), ids, layer, head, 4, 1)
    previous = ".".join(map(str, PREVIOUS_TOKEN_HEAD))
    query, key, entry = explanation.largest(1)[0]
    assert (query, key) == ("token", previous)
    assert entry == pytest.approx(explanation.score, rel=0.05)
    assert explanation.weight == pytest.approx(1)
    # To another key the same pair gives next to nothing. (It has a mean, which the norm takes off.)
    other = explain_attention(induction_model(), ids, layer, head, 4, 2)
    row = other.parts.index("token")
    assert abs(other.table[row, other.parts.index(previous)].item()) < 0.02 * entry


def test_against_other_keys_the_table_sums_to_what_the_score_is_above_their_mean():
    model = make_model().double()
    explanation = explain_attention(model, IDS, 2, 1, 4, 2, against=(0, 1, -1))
    scores = runs.record(model, IDS, ["scores"])["scores"][2][0, 1, 4]
    above = (scores[2] - scores[[0, 1, 4]].mean()).item()
    assert explanation.table.sum().item() == pytest.approx(above, abs=1e-10)
    assert explanation.score - explanation.baseline == pytest.approx(above, abs=1e-10)


def test_it_prints_the_largest_entries_and_what_is_left():
    explanation = explain_attention(make_model(), IDS, 2, 1, 4, 2)
    first, header, *lines, by_query, by_key = str(explanation).splitlines()
    assert first.startswith("head 2.1 from 4 5 to 2 4: score ")
    assert len(lines) == 11
    assert by_query.startswith("by what wrote the query: ") and by_key.count(",") == 4
    entries = [float(line.split()[-1]) for line in lines]
    assert sum(entries) == pytest.approx(explanation.score, abs=0.1)
    sizes = [abs(entry) for entry in entries[:-1]]
    assert sizes == sorted(sizes, reverse=True)


def test_the_picture_sums_to_the_score_too(tmp_path):
    explanation = explain_attention(make_model(), IDS, 3, 1, 4, 2)
    figure = explanation.plot(tmp_path / "why.png", count=4)
    axes = figure.axes[0]
    shown = axes.images[0].get_array()
    assert shown.shape == (5, 5)
    assert shown.sum() == pytest.approx(explanation.score, abs=1e-4)
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows[-1] == "others" and set(rows[:-1]) < set(explanation.parts)
    assert (tmp_path / "why.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "place, message",
    [
        ((L, 0, 1, 0), "no head 4.0"),
        ((0, H, 1, 0), "no head 0.3"),
        ((0, 0, T, 0), "-5 to 4"),
        ((0, 0, 1, -6), "-5 to 4"),
        ((0, 0, 1, 2), "no token sees a later one"),
        ((0, 0, 1, 0, (3,)), "no token sees a later one"),
    ],
)
def test_a_score_that_there_is_not_is_refused(place, message):
    with pytest.raises(ValueError, match=message):
        explain_attention(make_model(), IDS, *place)


def test_in_half_precision_the_parts_still_sum_to_the_score():
    for dtype in (torch.float16, torch.bfloat16):
        explanation = explain_attention(make_model().to(dtype), IDS, 2, 1, 4, 2)
        total = explanation.table.sum().item()
        # The run rounds its stream to 8 bits after every part.
        assert total == pytest.approx(explanation.score, rel=0.05, abs=0.05)
