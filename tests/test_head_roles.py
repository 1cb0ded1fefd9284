"""Roles of heads and in-context learning without them: heads made by hand, loops, the command."""

import csv
import math
import random

import pytest
import torch
from torch.nn import functional as F

from experiments import head_roles, in_context
from experiments.head_roles import ROLES, compare_pairs, deal, draw_rows, score_text, summarize
from mingpt import pretrained
from mingpt.bpe import BPETokenizer, Encoder
from mingpt.interpretability.attention_analysis import extract_attention
from mingpt.interpretability.induction import draw_prompts
from mingpt.model import GPT, GPTConfig, Patch
from tests.handmade import INDUCTION_HEAD, PREVIOUS_TOKEN_HEAD, induction_model

L, H, D = 4, 3, 7
TEXT = 'a(b[c]d "e" f)g (abcab) '
CLOSE = {"rtol": 0, "atol": 1e-5}  # fp32 sums of some 20 weights


def make_model(block_size=24):
    """A random model of bytes."""
    tokenizer = BPETokenizer(Encoder([]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPTConfig(
            n_layer=L,
            n_head=H,
            n_embd=H * D,
            vocab_size=tokenizer.n_vocab,
            block_size=block_size,
        )
        model = GPT(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    model.tokenizer = tokenizer
    return model


def rows_of_random_tokens(count=24, T=20):
    """Ids (1,T), with copies of tokens in them."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(20, (count, T), generator=generator).split(1)


@pytest.fixture(scope="module")
def handmade():
    """The rows of the table of the model made by hand."""
    model = induction_model()
    measured = head_roles.measure_roles(model, rows_of_random_tokens(), draw_prompts(model))
    return summarize(measured)


def clear(rows, role):
    return [row.head for row in head_roles.clear_heads(rows, role)]


def test_heads_made_by_hand_have_their_roles_and_a_head_without_weights_has_none(handmade):
    assert clear(handmade, "previous_token") == ["0.1"]
    assert clear(handmade, "induction") == ["1.2"]
    # By hand, the previous-token head goes by position alone.
    assert clear(handmade, "positional") == ["0.1"]
    before = next(row for row in handmade if row.head == "0.1" and row.role == "previous_token")
    assert before.score == pytest.approx(1, abs=1e-6)
    assert before.control == pytest.approx(0, abs=1e-6)
    # Heads of zeros look everywhere alike: that says nothing about a role, and so do their scores.
    flat = [row for row in handmade if row.head not in ("0.1", "1.2")]
    assert len(flat) == 6 * (len(ROLES) - 1)  # tokens without texts have no delimiters
    assert not any(row.is_clear for row in flat)
    assert PREVIOUS_TOKEN_HEAD == (0, 1) and INDUCTION_HEAD == (1, 2)


def pattern_on(keys):
    """A pattern (1,1,T,T) that has all weight of query t on keys[t]."""
    return torch.eye(len(keys))[keys][None, None]


def test_a_head_that_looks_at_copies_is_told_from_one_that_looks_as_far_back():
    tokens = [1, 2, 3, 1, 4, 2, 1]
    expected = torch.zeros(7, 7, dtype=torch.bool)
    expected[[3, 5, 6, 6], [0, 1, 0, 3]] = True
    # To the last copy, or to itself. No other pair is six apart: (6, 0) has no control.
    copies = pattern_on([0, 1, 2, 0, 4, 1, 3])
    score, control = compare_pairs(copies, expected)
    assert score.item() == pytest.approx(1)
    assert control.item() == 0
    three_back = pattern_on([0, 0, 0, 0, 1, 2, 3])
    score, control = compare_pairs(three_back, expected)
    # (3, 0) and (6, 3) are three apart, so are (4, 1) and (5, 2); (5, 1) is four apart.
    assert score.item() == pytest.approx(2 / 3)
    assert control.item() == pytest.approx(2 / 3)
    assert compare_pairs(copies, expected & False) is None
    assert tokens[3] == tokens[0]


def test_a_deal_keeps_each_querys_weights_on_the_keys_that_it_sees():
    generator = torch.Generator().manual_seed(0)
    pattern = torch.rand(L, H, 9, 9, generator=generator).tril()
    dealt = deal(pattern, generator)
    torch.testing.assert_close(dealt.sort(-1).values, pattern.sort(-1).values)
    assert torch.equal(dealt, dealt.tril())
    assert not torch.equal(dealt, pattern)


def test_all_scores_are_those_of_loops_over_the_weights():
    model = make_model()
    ids = torch.tensor([model.tokenizer.encode(TEXT)])
    T = ids.size(1)
    found = score_text(model, ids, torch.Generator().manual_seed(0))
    order = torch.randperm(T, generator=torch.Generator().manual_seed(0))
    shuffled = extract_attention(model, ids[:, order])
    weights = extract_attention(model, ids)
    tokens = ids[0].tolist()
    copies = [(q, k) for q in range(T) for k in range(q) if tokens[q] == tokens[k]]
    delimiters = [(5, 3), (10, 8), (13, 1), (22, 16)]  # ] " ) ) in TEXT
    assert [TEXT[q] + TEXT[k] for q, k in delimiters] == ["][", '""', ")(", ")("]

    def mean(keys_of):
        """The weight on one key of each query from 2 on, (L,H)."""
        return torch.stack([weights[..., q, keys_of(q)] for q in range(2, T)]).mean(0)

    def matched(pairs):
        """The score and the control of pairs (query, key)."""
        score = 0
        control = 0
        queries = set()
        for q, k in pairs:
            others = [(i, i - q + k) for i in range(q - k, T) if (i, i - q + k) not in pairs]
            if others:
                score = score + weights[..., q, k]
                control = control + torch.stack([weights[..., i, j] for i, j in others]).mean(0)
                queries.add(q)
        return score / len(queries), control / len(queries)

    variation = (weights - shuffled).abs().sum(-1)[..., 1:].mean(-1) / 2
    expected = {
        "previous_token": (mean(lambda q: q - 1), mean(lambda q: q - 2)),
        "current_token": (mean(lambda q: q), mean(lambda q: q - 1)),
        "first_token": (mean(lambda q: 0), mean(lambda q: 1)),
        "duplicate_token": matched(copies),
        "delimiter": matched(delimiters),
    }
    torch.testing.assert_close(found.pop("positional")[0], 1 - variation, **CLOSE)
    assert found.keys() == expected.keys() == ROLES.keys() - {"positional", "induction"}
    for role, pair in expected.items():
        torch.testing.assert_close(found[role], pair, **CLOSE)


def test_a_role_is_clear_where_the_difference_is_large_and_sure_and_the_texts_are_enough():
    noise = torch.tensor([-1.0, 1]).repeat(10)[:, None, None]  # (20,1,1), error 1.026 / 20**0.5
    scores = torch.tensor([0.61, 0.59, 0.9]) + noise * torch.tensor([0, 0, 1.0])
    controls = torch.full_like(scores, 0.5)
    measured = {"positional": torch.stack((scores, controls))}
    rows = summarize(measured)
    assert [row.is_clear for row in rows] == [True, False, False]
    assert rows[0].difference == pytest.approx(0.11)
    assert rows[2].score_error == rows[2].difference_error == pytest.approx((1 / 19) ** 0.5)
    assert [row.n for row in rows] == [20] * 3
    # Where half of the pattern goes with the tokens it is not positional.
    shifted = {
        "positional": measured["positional"] - 0.2,
        "delimiter": measured["positional"] - 0.2,
    }
    assert [row.is_clear for row in summarize(shifted)] == [False] * 3 + [True, False, False]
    few = {"positional": measured["positional"][:, :19]}
    assert not any(row.is_clear for row in summarize(few))


def test_windows_are_spread_over_the_texts_and_short_texts_are_whole():
    model = make_model(block_size=10)
    long = "".join(map(chr, range(33, 33 + 64)))
    rows = draw_rows(model, [long, "short", "abc"], 100)
    assert [model.tokenizer.decode(row[0]) for row in rows] == [
        *(long[start : start + 10] for start in range(0, 60, 10)),
        "short",
    ]
    rows = draw_rows(model, [long], 3)
    assert [model.tokenizer.decode(row[0, :1]) for row in rows] == [long[0], long[20], long[40]]


def test_a_corpus_gives_the_tenth_that_training_does_not_see(monkeypatch):
    monkeypatch.setattr(head_roles, "read_corpus", lambda name: ["a" * 200, "b" * 20, "cc"])
    # With two marks of 13 characters between the files there are 248: the tenth begins at 223.
    assert head_roles.read_texts("any", "python", 5) == ["b" * 10, "cc"]


def losses_of(model, ids, patches=None):
    """The loss on each token but the first, (T-1,), of the public forward."""
    logits, _ = model(ids, patch_params=patches)
    return F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")


def test_losses_and_shares_are_those_of_plain_forwards():
    model = make_model()
    prompts = draw_prompts(model, 6, 5)
    rows = [ids[:, :T] for ids, T in zip(prompts[1].split(1), (24, 24, 21, 24, 24))]
    heads = [(2, 1), (3, 0)]
    found = in_context.study_losses(model, rows, prompts, heads)
    draws = in_context.draw_controls(model, heads)
    assert [(line.inputs, line.without, line.kind) for line in found[:5]] == [
        ("repeats", "nothing", ""),
        ("repeats", "2.1 3.0", "zero"),
        ("repeats", "as many others (draws: 5)", "zero"),
        ("repeats", "2.1 3.0", "mean"),
        ("repeats", "as many others (draws: 5)", "mean"),
    ]
    assert len(draws) == len(set(draws)) == in_context.DRAWS  # of the 6 pairs that there are
    assert not {(2, 1), (3, 0)} & {head for draw in draws for head in draw}
    assert min(layer for draw in draws for layer, _ in draw) == 2

    zs = []
    for ids in prompts[1].split(1):
        model(ids, store_activations=["z"])
        zs.append(torch.cat(list(model.activations["z"].values())))  # (L,H,T,D)
    mean = torch.stack(zs).mean((0, 3))
    for kind, place in (("zero", 1), ("mean", 3)):
        patches = []
        for layer, head in heads:
            new = mean[layer, head] if kind == "mean" else torch.zeros(D)
            patches.append(Patch(layer, None, new, "z", head))
        pieces = []
        for ids in prompts[0].split(1):
            loss = losses_of(model, ids, patches)
            # Token t's loss stands at t - 1; of each piece of 6 the first token is left out.
            pieces.append([loss[6 * p : 6 * p + 5].mean().item() for p in range(4)])
        icl = torch.tensor([piece[3] - piece[0] for piece in pieces])
        line = found[place]
        assert line.n == 5
        assert line.icl == pytest.approx(icl.mean().item(), abs=1e-5)
        assert line.icl_error == pytest.approx((icl.std() / 5**0.5).item(), abs=1e-5)
        means = torch.tensor(pieces).mean(0).tolist()
        assert list(map(float, line.parts.split())) == pytest.approx(means, abs=6e-4)

    texts = found[5]
    assert (texts.inputs, texts.without, texts.n) == ("texts", "nothing", 5)
    icl = []
    for ids in rows:
        loss = losses_of(model, ids)
        icl.append((loss[-2:].mean() - loss[2:4].mean()).item())
    assert texts.icl == pytest.approx(sum(icl) / 5, abs=1e-5)
    # A random model learns nothing in context: there is no share to lose.
    assert all(math.isnan(line.share_lost) for line in found)


def test_a_share_is_the_ratio_of_means_with_the_error_of_its_residuals():
    intact = torch.tensor([[5.0, 1], [6, 4], [7, 4]])  # ICL -4, -2, -3
    ablated = torch.tensor([[5.0, 3], [6, 5], [7, 6]])  # -2, -1, -1
    share, error = in_context.share_lost(intact, ablated)
    assert share == pytest.approx(5 / 9)
    residuals = [(-2 + 20 / 9) / -3, (-1 + 10 / 9) / -3, (-2 + 15 / 9) / -3]
    expected = (sum(x * x for x in residuals) / 2 / 3) ** 0.5
    assert error == pytest.approx(expected, abs=1e-6)
    assert in_context.share_lost(intact, intact) == (0, 0)


def test_without_its_induction_head_the_model_made_by_hand_learns_nothing_in_context():
    model = induction_model()
    rows = [row[None] for row in draw_prompts(model)[1]]
    found = in_context.study_losses(model, rows, draw_prompts(model), [INDUCTION_HEAD])
    shares = {(line.without, line.kind): line for line in found if line.inputs == "repeats"}
    for kind in ("zero", "mean"):
        assert shares["1.2", kind].share_lost > 0.9
        others = shares["as many others (draws: 3)", kind]
        assert others.share_lost == pytest.approx(0, abs=1e-6)
        assert others.least_share == pytest.approx(others.largest_share, abs=1e-6)
    # The controls are random: nothing in them can be learned.
    assert all(math.isnan(line.share_lost) for line in found if line.inputs == "texts")


def test_too_few_other_heads_and_no_heads_give_no_control():
    model = make_model()
    assert in_context.draw_controls(model, []) == []
    assert in_context.draw_controls(model, [(3, 0), (3, 1)]) == []
    assert in_context.draw_controls(model, [(3, 0)]) == [((3, 1),), ((3, 2),)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and a text in files."""
    folder = tmp_path_factory.mktemp("model")
    pretrained.save(make_model(), folder)
    make_model().tokenizer.save(folder)
    (folder / "a.txt").write_text(TEXT * 30, encoding="utf-8")
    return folder


def test_the_command_writes_tables_and_picture_and_prints_the_clear_heads(folder, tmp_path, capsys):
    output = tmp_path / "new" / "folder"
    text = str(folder / "a.txt")
    arguments = [str(folder), "--text", text, "--texts", "25", "--output", str(output)]
    assert head_roles.main(arguments) == 0
    names = sorted(path.name for path in output.iterdir())
    assert names == ["in_context.csv", "roles.csv", "roles.png"]
    with open(output / "roles.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == L * H * len(ROLES)
    printed = capsys.readouterr().out
    for row in table:
        line = f"{row['head']:>6}  {float(row['score']):.3f} +- {float(row['score_error']):.3f}"
        assert (row["is_clear"] == "True") == (line in printed), row
    for role, (score, control) in ROLES.items():
        assert f"{role}: {score}; control: {control}; n = " in printed
    assert "repeats, n = 32\nwithout nothing: losses " in printed
    assert printed.endswith(f"Wrote roles.csv, roles.png and in_context.csv into {output}.\n")


def test_the_picture_has_layer_0_on_top_and_one_scale():
    measured = {role: torch.rand(2, 5, L, H) for role in ROLES}
    figure = head_roles.plot_roles(measured, "my $model$_1")
    maps = {axes.get_title().split("\n")[0]: axes for axes in figure.axes if axes.images}
    assert maps.keys() == ROLES.keys()
    for role, axes in maps.items():
        drawn = axes.images[0]
        scores, controls = measured[role]
        expected = (scores - controls).mean(0)
        torch.testing.assert_close(torch.from_numpy(drawn.get_array().data), expected)
        assert drawn.get_clim() == (-1, 1)
        bottom, top = axes.get_ylim()
        assert bottom > top
    assert figure.get_suptitle() == "my $model$_1"


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "give --text, a file that it was not trained on, or shakespeare, austen, python"),
        (["--text", "none.txt"], "none.txt cannot be read as utf-8 text"),
        (["--texts", "1"], "an error needs 2 texts or more; got --texts 1"),
        (["--text", "short.txt"], "the texts have 1 windows of up to 24 tokens, needs 2"),
    ],
)
def test_bad_input_is_said_and_leaves_nothing(
    options, message, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("a few words", encoding="utf-8")
    assert head_roles.main([str(folder), "--output", "out", *options]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_names_gets_passages_that_it_was_not_trained_on():
    passages = head_roles.read_texts("names", None, 3)
    assert len(passages) == 3
    assert passages == head_roles.read_texts("names", None, 3)
    assert passages[0] != head_roles.passage(random.Random(0))
