"""Patterns against transformers; scores against TransformerLens, loops and hand-built heads.

The page in a browser.
"""

import json
import math

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmarks.make_fixtures import PATH, checkpoint
from mingpt import pretrained
from mingpt.bpe import BPETokenizer, Encoder
from mingpt.interpretability import attention_analysis
from mingpt.interpretability.attention_analysis import (
    KINDS,
    composition_scores,
    compute_attention_stats,
    extract_attention,
    find_attention_patterns,
    plot_all_heads,
    plot_attention_head,
)
from mingpt.model import GPT, GPTConfig
from tests.handmade import INDUCTION_HEAD, PREVIOUS_TOKEN_HEAD, induction_model

L, H, D, V, T = 4, 3, 7, 11, 5
HOSTILE = '</script><img src=x onerror="document.title=1">(a) $x$'


def make_model(**options):
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(n_layer=L, n_head=H, n_embd=H * D, vocab_size=V, block_size=12, **options)
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def text_model(block_size=64, n_head=3):
    tokenizer = BPETokenizer(Encoder([]))  # every byte a token
    torch.manual_seed(0)
    config = GPTConfig(
        n_layer=2, n_head=n_head, n_embd=12, vocab_size=tokenizer.n_vocab, block_size=block_size
    )
    model = GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.tokenizer = tokenizer
    return model


def table(found, shape):
    """[(layer, head, score)] of all heads as (L,H)."""
    scores = torch.full(shape, torch.nan, dtype=torch.float64)
    for layer, head, score in found:
        scores[layer, head] = score
    return scores


@pytest.mark.parametrize(
    "options", [{}, {"scale_attn_by_inverse_layer_idx": True}, {"tie_word_embeddings": True}]
)
def test_patterns_are_those_of_transformers(options, tmp_path):
    GPT2LMHeadModel = pytest.importorskip("transformers").GPT2LMHeadModel
    model, ids = make_model(**options), torch.tensor([[3, 1, 4, 1, 5]])
    pretrained.save(model, tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    expected = torch.cat(theirs(ids, output_attentions=True).attentions)
    found = extract_attention(model, ids)
    assert found.shape == (L, H, T, T) and not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)  # fp32 rounding in four layers
    torch.testing.assert_close(found.sum(-1), torch.ones(L, H, T))


def test_stats_are_those_of_a_loop_over_the_weights():
    model, ids = make_model().double(), torch.tensor([[3, 1, 4, 1, 5]])
    pattern = extract_attention(model, ids)
    stats = compute_attention_stats(model, ids)
    for layer in range(L):
        for head in range(H):
            rows = pattern[layer, head].tolist()
            weights = [(q, k, rows[q][k]) for q in range(T) for k in range(q + 1)]
            expected = {
                "entropy": -sum(w * math.log(w) for _, _, w in weights) / T,
                "distance": sum(w * (q - k) for q, k, w in weights) / T,
                "first_token": sum(w for q, k, w in weights if k == 0) / T,
                "current_token": sum(w for q, k, w in weights if k == q) / T,
                "previous_token": sum(w for q, k, w in weights if k == q - 1) / (T - 1),
                "largest": max(w for q, _, w in weights if q > 0),
            }
            assert vars(stats).keys() == expected.keys()
            for name, value in expected.items():
                measured = getattr(stats, name)
                assert measured.shape == (L, H)
                assert measured[layer, head].item() == pytest.approx(value, abs=1e-12), name
    alone = compute_attention_stats(model, ids[:, :1])
    assert alone.previous_token.eq(0).all()
    assert alone.largest.eq(1).all()
    assert alone.entropy.eq(0).all()


@pytest.fixture(scope="module")
def transformer_lens():
    """(the checkpoint that TransformerLens was run on, what it said)."""
    model, results = checkpoint(), json.loads(PATH.read_text())
    weights = sum(weight.double().abs().sum().item() for weight in model.parameters())
    if abs(weights - results["weights"]) > 1e-3:
        pytest.skip(
            "this PyTorch draws other random weights than the one that the fixture was made with"
        )
    return model, results


def test_scores_are_transformer_lenss(transformer_lens):
    model, results = transformer_lens
    ids, names = torch.tensor([results["ids"]]), {f"{kind}_head": kind for kind in KINDS}
    names |= {"previous_token_head": "previous_token", "duplicate_token_head": "duplicate_token"}
    assert len(results["detect_head"]) == 24
    for name, expected in results["detect_head"].items():
        kind, *options = name.split()
        options = dict(option.split("=") for option in options)
        exclude = {
            option: bool(int(value)) for option, value in options.items() if option != "measure"
        }
        found = find_attention_patterns(model, ids, -2, options["measure"], **exclude)
        scores = table(found[names[kind]], (3, 4))
        torch.testing.assert_close(scores, torch.tensor(expected).double(), rtol=0, atol=1e-4)
    default = find_attention_patterns(model, ids, thresholds=-2)
    assert default == find_attention_patterns(model, ids, thresholds=-2, measure="mul")


@pytest.mark.parametrize("kind", "QKV")
def test_composition_scores_are_transformer_lenss_and_the_definition(kind, transformer_lens):
    model, results = transformer_lens
    expected = torch.tensor(results["composition"][kind])
    torch.testing.assert_close(composition_scores(model, kind), expected, rtol=1e-4, atol=1e-6)

    model = make_model().double()
    scores = composition_scores(model, kind)
    assert scores.shape == (L, H, L, H) and not scores.requires_grad

    def matrices(layer, head):
        """QK (C,C), the query's side left, and OV (C,C), as maps of column vectors."""
        attention, rows = model.transformer.h[layer].attn, slice(head * D, (head + 1) * D)
        q, k, v = (part[rows] for part in attention.c_attn.weight.chunk(3))
        return q.T @ k, attention.c_proj.weight[:, rows] @ v

    for l1, h1, l2, h2 in torch.cartesian_prod(*map(torch.arange, (L, H, L, H))).tolist():
        qk, ov = matrices(l2, h2)
        later = {"Q": qk.T, "K": qk, "V": ov}[kind]
        earlier = matrices(l1, h1)[1]
        value = (
            (later @ earlier).norm() / (later.norm() * earlier.norm())
            if l2 > l1
            else torch.zeros(())
        )
        assert scores[l1, h1, l2, h2].item() == pytest.approx(value.item(), abs=1e-12)


def test_hand_built_heads_are_found():
    model = induction_model()
    ids = torch.tensor([[3, 4, 5, 3, 6, 4, 4, 3, 6, 1, 1, 2, 5]])
    assert model(ids)[0][0].argmax(-1).tolist() == [
        3,
        4,
        5,
        4,
        6,
        5,
        4,
        6,
        4,
        1,
        1,
        2,
        3,
    ]  # as its docstring says
    found = find_attention_patterns(model)
    for kind, head in (("previous_token", PREVIOUS_TOKEN_HEAD), ("induction", INDUCTION_HEAD)):
        assert [each[:2] for each in found[kind]] == [head] and found[kind][0][2] > 0.99
    assert PREVIOUS_TOKEN_HEAD in [head[:2] for head in found["positional"]]
    assert INDUCTION_HEAD not in [head[:2] for head in found["positional"]]
    copies = torch.arange(8).repeat(1, 2)
    scores = find_attention_patterns(model, copies, -1, "mean", exclude_bos=True)
    assert max(scores["induction"], key=lambda head: head[2])[:2] == INDUCTION_HEAD
    K = composition_scores(model, "K")
    assert K[PREVIOUS_TOKEN_HEAD + INDUCTION_HEAD] == K.max() > 0.1 and K.count_nonzero() == 1
    assert composition_scores(model, "V").count_nonzero() == 0  # the unused heads are 0, not NaN


def test_default_scores_are_the_means_of_diagonals_over_repeated_random_tokens(monkeypatch):
    seen = []

    def recorded(model, ids):
        seen.append((ids, extract_attention(model, ids)))
        return seen[-1][1]

    monkeypatch.setattr(attention_analysis, "extract_attention", recorded)
    model = make_model().double()
    found = find_attention_patterns(model, thresholds=-1)
    assert list(found) == KINDS and found["delimiter"] == []
    n, patterns, others = (
        6,
        [pattern for _, pattern in seen[::2]],
        [pattern for _, pattern in seen[1::2]],
    )
    assert len(patterns) == 8 and len({tuple(ids[0].tolist()) for ids, _ in seen}) == 16
    for (ids, _), (shuffled, _) in zip(seen[::2], seen[1::2]):
        assert torch.equal(ids[0, :n], ids[0, n:]) and len(set(ids[0].tolist())) == n
        assert torch.equal(ids.sort().values, shuffled.sort().values)

    def diagonal(offset, start=0):
        return torch.stack(
            [pattern.diagonal(-offset, -2, -1)[..., start:].mean(-1) for pattern in patterns]
        ).mean(0)

    variation = torch.stack([(a - b).abs().sum(-1)[..., 1:] / 2 for a, b in zip(patterns, others)])
    expected = {
        "previous_token": diagonal(1),
        "duplicate_token": diagonal(n),
        "induction": diagonal(
            n - 1, start=1
        ),  # without the last of the first copy, which has nothing to find
        "current_token": diagonal(0),
        "first_token": torch.stack(patterns)[..., 0].mean((0, -1)),
        "positional": 1 - variation.mean((0, -1)),
    }
    for kind, scores in expected.items():
        torch.testing.assert_close(table(found[kind], (L, H)), scores, rtol=0, atol=1e-12)
        assert [head[2] for head in found[kind]] == sorted(
            (head[2] for head in found[kind]), reverse=True
        )


def test_thresholds_decide_which_heads_are_named():
    model = make_model()
    all_heads = find_attention_patterns(model, thresholds=-1)
    limit = all_heads["induction"][4][2]
    some = find_attention_patterns(model, thresholds={"induction": limit, "positional": 2})
    assert some["induction"] == all_heads["induction"][:5] and some["positional"] == []
    assert some["first_token"] == [head for head in all_heads["first_token"] if head[2] >= 0.4]


def test_a_pattern_that_no_token_moves_is_positional():
    model = make_model()
    model.transformer.wte.weight.data.zero_()
    scores = table(find_attention_patterns(model, thresholds=-1)["positional"], (L, H))
    torch.testing.assert_close(scores, torch.ones(L, H).double(), rtol=0, atol=1e-6)
    model = make_model()
    model.transformer.wpe.weight.data.zero_()
    assert (
        table(find_attention_patterns(model, thresholds=-1)["positional"], (L, H))[0].max() < 0.99
    )


def test_delimiters_match_as_in_writing_and_scores_average_over_the_texts_that_have_any(
    monkeypatch,
):
    model = text_model()
    text, plain = 'a(b[c]d "e" f)g) (', "no delimiters"
    pairs = [(5, 3), (10, 8), (13, 1)]  # the second ) closes nothing, the last ( stays open
    pattern = extract_attention(model, text).double()
    expected = torch.stack([pattern[..., query, key] for query, key in pairs]).mean(0)
    for dataset in (text, [text], [text, plain]):
        found = find_attention_patterns(model, dataset, thresholds=-1)
        torch.testing.assert_close(table(found["delimiter"], (2, 3)), expected, rtol=0, atol=1e-6)
    assert find_attention_patterns(model, plain, thresholds=-1)["delimiter"] == []
    without_first = find_attention_patterns(model, "(a)", -1, exclude_bos=True)
    assert table(without_first["delimiter"], (2, 3)).eq(0).all()
    monkeypatch.setattr(BPETokenizer, "tokens", lambda tokenizer, ids: ["(", "()", ")"])
    expected = extract_attention(model, "abc")[
        ..., 2, 0
    ].double()  # the pair within a token says nothing
    found = find_attention_patterns(model, "abc", thresholds=-1, measure="mean")
    torch.testing.assert_close(table(found["delimiter"], (2, 3)), expected, rtol=0, atol=1e-6)


def test_texts_of_any_lengths_count_equally():
    model = text_model()
    texts = ["abcabc", "an example of another length"]
    both, *single = (find_attention_patterns(model, some, -1) for some in (texts, *texts))
    for kind in ("previous_token", "duplicate_token", "induction", "first_token", "current_token"):
        mean = torch.stack([table(found[kind], (2, 3)) for found in single]).mean(0)
        torch.testing.assert_close(table(both[kind], (2, 3)), mean, rtol=0, atol=1e-6)
    ids = torch.cat([model.tokenizer(text) for text in ("abcabc", "xyzzyx")])
    assert find_attention_patterns(model, ids, -1) == find_attention_patterns(
        model, ["abcabc", "xyzzyx"], -1
    )


def test_nothing_of_the_callers_is_changed(tmp_path):
    model, ids = make_model(), torch.tensor([[3, 1, 4, 1, 5]])
    model(ids, store_activations=["pattern"])
    kept = {layer: pattern.clone() for layer, pattern in model.activations["pattern"].items()}
    state, logits, copy = (
        {k: v.clone() for k, v in model.state_dict().items()},
        model.last_token_logits,
        ids.clone(),
    )
    torch.manual_seed(5)
    rng = torch.get_rng_state()
    find_attention_patterns(model)
    for measure in ("mean", "mul", "abs"):
        find_attention_patterns(
            model, ids, measure=measure, exclude_bos=True, exclude_current_token=True
        )
    compute_attention_stats(model, ids)
    composition_scores(model)
    plot_all_heads(model, ids, tmp_path / "all.html")
    assert (
        torch.is_grad_enabled()
        and torch.equal(torch.get_rng_state(), rng)
        and torch.equal(ids, copy)
    )
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model.last_token_logits is logits
    assert all(
        torch.equal(pattern, kept[layer]) for layer, pattern in model.activations["pattern"].items()
    )


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_figures_show_the_weights_with_the_tokens_on_both_axes(suffix, tmp_path):
    model, text = text_model(), "$a_b$ <c>"
    n = len(text)
    pattern = extract_attention(model, text)
    labels = [f"{position} {token}" for position, token in enumerate(text)]
    figure = plot_attention_head(model, text, 1, 2, tmp_path / f"head{suffix}")
    axes = figure.axes[0]
    image = torch.from_numpy(axes.images[0].get_array().filled(-1.0))
    lower = torch.ones(n, n, dtype=torch.bool).tril()
    assert torch.equal(image[lower], pattern[1, 2][lower]) and image[~lower].eq(-1).all()
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == labels
    assert (tmp_path / f"head{suffix}").stat().st_size > 1000

    figure = plot_all_heads(model, text)
    axes = figure.axes[0]
    image = torch.from_numpy(axes.images[0].get_array().filled(-1.0))
    for layer in range(2):
        for head in range(3):
            x, y = head * (n + 1), layer * (n + 1)
            assert torch.equal(image[y : y + n, x : x + n][lower], pattern[layer, head][lower])
    assert [text.get_text() for text in axes.texts] == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    assert [label.get_text() for label in axes.get_xticklabels()] == labels * 3
    assert [label.get_text() for label in axes.get_yticklabels()] == labels * 2


def boxes(figure):
    """Where the labels of the x axis, of the y axis, other writing, and the figure are drawn."""
    canvas, (axes, bar) = FigureCanvasAgg(figure), figure.axes
    figure.dpi = 40
    canvas.draw()
    others = [
        axes.xaxis.label,
        axes.yaxis.label,
        axes.title,
        bar.yaxis.label,
        *bar.get_yticklabels(),
    ]
    writing = axes.get_xticklabels(), axes.get_yticklabels(), others
    return *(
        [each.get_window_extent(canvas.get_renderer()) for each in some] for some in writing
    ), figure.bbox


@pytest.mark.parametrize(
    "sentences, only", [(1, None), (1, (5, 2)), (6, None), (6, (5, 2)), (12, None)]
)
def test_no_label_is_cut_off_or_covers_another(sentences, only):
    model = GPT.from_pretrained("names")
    text = (
        "Elizabeth Jones was a top-notch student. Michelle"
        + " Jones was a top-notch student." * (sentences - 1)
    )
    x, y, others, whole = boxes(plot_all_heads(model, text, only=only))
    for box in x + y + others:  # a pixel for rounding
        assert (
            whole.x0 - 1 <= box.x0
            and box.x1 <= whole.x1 + 1
            and whole.y0 - 1 <= box.y0
            and box.y1 <= whole.y1 + 1
        )
    assert all(left.x1 <= right.x0 + 1 for left, right in zip(x, x[1:]))
    assert all(low.y1 <= high.y0 + 1 for high, low in zip(y, y[1:]))


def test_bad_input_is_a_clear_error(tmp_path):
    model, ids = make_model(), torch.tensor([[3, 1, 4, 1, 5]])
    for call, message in (
        (lambda: extract_attention(model, ids.repeat(2, 1)), "one text at a time, got 2"),
        (lambda: extract_attention(model.train(), ids), r"call model.eval\(\)"),
        (
            lambda: plot_attention_head(model, ids, 4, 0),
            "no head 4.0; the layers are 0 to 3, each with heads 0 to 2",
        ),
        (lambda: plot_attention_head(model, ids, 0, -1), "no head 0.-1"),
        (
            lambda: plot_all_heads(model, ids, tmp_path / "page.htm"),
            "must end in one of .png, .svg, .pdf, .html",
        ),
        (lambda: plot_all_heads(model, ids, tmp_path / "no" / "page.html"), "make it first"),
        (
            lambda: find_attention_patterns(model, ids, measure="max"),
            "measure must be mean, mul or abs.*'max'",
        ),
        (
            lambda: find_attention_patterns(model, ids, {"copying": 0.4}),
            "thresholds for .*'induction'.*copying",
        ),
        (lambda: find_attention_patterns(model, []), "dataset is empty"),
        (lambda: find_attention_patterns(model, "text"), "no tokenizer"),
        (lambda: composition_scores(model, "q"), '"Q", "K" or "V", got \'q\''),
    ):
        with pytest.raises(ValueError, match=message):
            call()
        model.eval()
    model.transformer.wte.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        extract_attention(model, ids)
    big = text_model(block_size=2000)
    with pytest.raises(ValueError, match="24,000,000 weights are too many"):
        plot_all_heads(big, "x" * 2000, tmp_path / "page.html")
    with pytest.raises(ValueError, match="25,000,000 weights are too many to show; give fewer"):
        plot_attention_head(text_model(5000), "x" * 5000, 1, 2, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_the_page_in_a_browser(browser, tmp_path, monkeypatch):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    model = text_model()
    monkeypatch.setattr(BPETokenizer, "tokens", lambda tokenizer, ids: [HOSTILE, *HOSTILE[1:]])
    weights = extract_attention(model, HOSTILE)
    page = plot_all_heads(model, HOSTILE, tmp_path / "page.html")
    assert page.path == tmp_path / "page.html"
    browser.get(page.path.as_uri())

    def find(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def shown():
        """What the chips say: a weight each, of the chosen token to earlier or from later ones."""
        return [chip.find_element(By.TAG_NAME, "small").text for chip in find(".tokens button")]

    def expected(layer, head, token):
        pattern = weights[layer, head]
        row = [
            pattern[token, k].item() if k <= token else pattern[k, token].item()
            for k in range(len(HOSTILE))
        ]
        return ["" if weight < 0.0005 else f"{weight:.3f}" for weight in row]

    def about(found, wanted):  # the page rounds halves in its own way
        return len(found) == len(wanted) and all(
            abs(float(a or 0) - float(b or 0)) < 0.0011 for a, b in zip(found, wanted)
        )

    assert find(".text")[0].text == HOSTILE and not find("img") and browser.title == "Attention"
    assert find(".tokens button")[0].text.startswith(f"0 {HOSTILE.replace(' ', '␣')}")
    assert find(".name")[0].text == "Head 0.0" and len(find(".heads button")) == 6
    assert about(shown(), expected(0, 0, len(HOSTILE) - 1))

    find(".heads button")[5].click()
    assert find(".name")[0].text == "Head 1.2"
    ActionChains(browser).move_to_element(find(".tokens button")[4]).perform()
    assert about(shown(), expected(1, 2, 4)) and "4 r attends to" in find(".lists")[0].text
    first = find(".to-list li")[0].text.split()
    assert float(first[0]) == pytest.approx(weights[1, 2, 4].max().item(), abs=0.0011)

    find(".heads button")[1].click()
    assert find(".name")[0].text == "Head 0.1" and about(shown(), expected(0, 1, 4))

    find(".heads button")[1].send_keys(Keys.ARROW_DOWN)  # the same head of the next layer
    assert find(".name")[0].text == "Head 1.1"
    browser.switch_to.active_element.send_keys(
        Keys.TAB
    )  # from the heads to the tokens, at the chosen one
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert about(shown(), expected(1, 1, 5))
    assert (
        len(find(".tokens button[aria-current=true]"))
        == len(find(".tokens button[tabindex='0']"))
        == 1
    )
    assert [
        entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]
    ] == []


def test_the_page_of_one_head_holds_that_head_alone(browser, tmp_path):
    from selenium.webdriver.common.by import By

    model, text = text_model(block_size=2000), "ab" * 400
    page = plot_attention_head(model, text, 1, 2, tmp_path / "page.html")
    T = len(text)
    # Two bytes for each of its weights, a third more in base64; the rest is the text and the page.
    assert page.path.stat().st_size < 4 / 3 * T * (T + 1) + 50_000
    browser.get(page.path.as_uri())
    assert browser.find_element(By.CLASS_NAME, "name").text == "Head 1.2"
    assert not browser.find_element(By.CLASS_NAME, "heads").is_displayed()
    weight = extract_attention(model, text)[1, 2, -1].max().item()
    shown = browser.find_element(By.CSS_SELECTOR, ".to-list li").text.split()[0]
    assert float(shown) == pytest.approx(weight, abs=0.0006)


def test_a_cell_of_the_map_is_marked_and_read_by_mouse_touch_and_keys(browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.interaction import POINTER_TOUCH
    from selenium.webdriver.common.actions.pointer_input import PointerInput
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    model, text = text_model(), "abcd"
    weights = extract_attention(model, text)[0, 0]
    browser.get(plot_all_heads(model, text, tmp_path / "page.html").path.as_uri())
    plot = browser.find_element(By.CLASS_NAME, "plot")
    side = plot.size["width"] / 4

    def assert_is_at(query, key):
        """The text names the cell, and the two marks lie on it and on its row."""
        shown = browser.find_element(By.CLASS_NAME, "cell").text
        told, weight = shown.split(": ")
        assert told == f"{query} {text[query]} attends to {key} {text[key]}"
        assert float(weight) == pytest.approx(weights[query, key].item(), abs=0.0006)
        row, mark = (plot.find_element(By.CLASS_NAME, name).rect for name in ("row", "key"))
        assert mark["x"] - plot.rect["x"] == pytest.approx(key * side, abs=2)
        assert mark["y"] == row["y"]
        assert row["y"] - plot.rect["y"] == pytest.approx(query * side, abs=2)

    ActionChains(browser).move_to_element_with_offset(plot, -side / 2, side / 2).perform()
    assert_is_at(2, 1)
    finger = ActionBuilder(browser, mouse=PointerInput(POINTER_TOUCH, "finger"))
    place = (round(plot.rect["x"] + side / 2), round(plot.rect["y"] + 1.5 * side))
    finger.pointer_action.move_to_location(*place).click()
    finger.perform()
    assert_is_at(1, 0)
    plot.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert_is_at(3, 1)
    plot.send_keys(Keys.END)
    assert_is_at(3, 3)
    plot.send_keys(Keys.HOME)
    assert_is_at(3, 0)
    plot.send_keys(Keys.END, Keys.ARROW_UP)  # no token sees a later one
    assert_is_at(2, 2)
    ticks = [tick.text for tick in browser.find_elements(By.CSS_SELECTOR, ".queries span")]
    assert ticks == ["0 a", "1 b", "2 c", "3 d"]
    assert len(browser.find_elements(By.CSS_SELECTOR, ".keys span")) == 4


def test_the_map_stays_in_view_while_the_heads_are_gone_through(browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    torch.manual_seed(0)
    config = GPTConfig(n_layer=24, n_head=2, n_embd=4, vocab_size=V, block_size=8)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    browser.get(plot_all_heads(GPT(config).eval(), ids, tmp_path / "page.html").path.as_uri())
    button = browser.find_element(By.CSS_SELECTOR, ".heads button")
    for _ in range(23):
        button.send_keys(Keys.ARROW_DOWN)
        button = browser.switch_to.active_element
    assert browser.find_element(By.CLASS_NAME, "name").text == "Head 23.0"
    top, bottom, height = browser.execute_script(
        "const box = document.querySelector('.plot').getBoundingClientRect();"
        "return [box.top, box.bottom, innerHeight]"
    )
    assert 0 <= top < bottom <= height
