"""The detail of a cell on the explorer's page: its numbers are the library's; mouse and keys."""

import pytest

from mingpt.interpretability.activation_patching import (
    get_activations,
    patch_activation,
    patch_layers,
)
from mingpt.interpretability.autoencoders import Autoencoder
from mingpt.interpretability.feature_patches import change_feature
from mingpt.interpretability.features import feature_logit_weights, features
from mingpt.interpretability.logit_lens import analyze
from mingpt.interpretability.web_pages import page_texts
from mingpt.model import GPT
from mingpt.sites import Patch

ui = pytest.importorskip("selenium.webdriver.support.ui", reason="needs selenium")

TEXTS = {
    "clean": "Michelle Jones was a top-notch student. Michelle",
    "corrupted": "Michelle Smith was a top-notch student. Michelle",
}
LAYER = 5
POSITION = 10  # the last one
PATIENCE = 60  # seconds, which a busy machine may need


@pytest.fixture(scope="module")
def model():
    return GPT.from_pretrained("names")


@pytest.fixture(scope="module")
def answers(model):
    return model.tokenizer.encode(" Jones Smith")


def wait(browser, found):
    """What found(browser) returns, once it is true."""
    return ui.WebDriverWait(browser, PATIENCE).until(found)


@pytest.fixture
def show(browser, explorer):
    """show(fields) opens the page at an address, and gives the detail once it is whole."""

    def open_address(fields):
        browser.get("about:blank")  # else a change of the fragment would be no start
        browser.get(f"{explorer.address}#{fields}")
        wait(browser, lambda b: b.find_elements("css selector", '#detail .cell[aria-busy="false"]'))
        browser.execute_script(
            "for (const fold of document.querySelectorAll('#detail details')) fold.open = true"
        )
        return browser.find_element("id", "detail")

    yield open_address
    assert not browser.get_log("browser")


def number(text):
    return float(text.replace("−", "-"))


def rows_of(detail, part):
    """The texts of a table's cells, row by row."""
    rows = detail.find_elements("css selector", f".{part} tbody tr")
    return [[cell.text for cell in row.find_elements("css selector", "td, th")] for row in rows]


def difference(logits, answers):
    """The published logit difference of logits (V,)."""
    jones, smith = answers
    return (logits[smith] - logits[jones]).item()


def patched_logits(model, site="resid_post", head=None):
    """Last-token logits (V,) with the clean site at LAYER and POSITION in the corrupted run."""
    new = get_activations(model, TEXTS["clean"], site)[site][LAYER]
    patch = Patch(LAYER, POSITION, None, site, head)
    arguments = LAYER, POSITION, new[patch.index], site, head
    return patch_activation(model, TEXTS["corrupted"], *arguments)[0]


def test_value_and_sentence_are_of_the_cell(show, model):
    detail = show(f"cells={LAYER}.{POSITION}")
    result = patch_layers(model, *TEXTS.values())
    assert (
        detail.find_element("tag name", "h2").text == "resid_post, layer 5, position 10 ␣Michelle"
    )
    shown = detail.find_element("css selector", ".value b").text
    assert number(shown) == pytest.approx(result.logit_diff[LAYER, POSITION].item(), abs=0.006)
    sentence = detail.find_element("css selector", ".value .note").text
    assert sentence.startswith("the clean resid_post of layer 5 at position 10")


def test_a_cell_that_moves_nothing_is_0_percent_of_the_way(show):
    said = show("cells=11.3").find_element("css selector", ".value p").text
    assert said.endswith(": 0 % of the way")


def test_the_next_tokens_are_listed_with_and_without_the_patch(show, model):
    rows = rows_of(show(f"cells={LAYER}.{POSITION}"), "tops")
    unpatched = model(model.tokenizer(TEXTS["corrupted"]))[0][0, -1]
    lists = [unpatched.topk(20), patched_logits(model).topk(20)]
    ranks = lists[0].indices.tolist()
    for rank, row in enumerate(rows):
        for column, top in zip(row[1:3], lists):
            [text] = page_texts(model.tokenizer.tokens([top.indices[rank].item()]))
            assert column.startswith(text)
        before = lists[1].indices[rank].item()
        before = ranks.index(before) if before in ranks else None
        moved = (
            "▲ new"
            if before is None
            else ["", f"▲ {before - rank}", f"▼ {rank - before}"][(before > rank) - (before < rank)]
        )
        assert row[3] == moved
    assert len(rows) == 20


def test_each_head_is_patched_by_itself(show, model, answers):
    detail = show(f"cells={LAYER}.{POSITION}")
    cells = detail.find_elements("css selector", ".heads td")
    assert len(cells) == 4
    for head, cell in enumerate(cells):
        value = difference(patched_logits(model, "z", head), answers)
        assert number(cell.text) == pytest.approx(value, abs=0.051)


def test_the_heads_look_where_the_patterns_say(show, model):
    detail = show(f"cells={LAYER}.{POSITION}")
    rows = detail.find_elements("css selector", ".looks button")
    assert len(rows) == 4
    # Each weight stands above its token.
    names = detail.find_element("css selector", ".looks .names").rect
    for strip in detail.find_elements("css selector", ".looks .strip"):
        assert (strip.rect["x"], strip.rect["width"]) == (names["x"], names["width"])
    for name, line in (("clean", 0), ("corrupted", 1)):
        pattern = get_activations(model, TEXTS[name], "pattern")["pattern"][LAYER][0, :, POSITION]
        tokens = page_texts(model.tokenizer.tokens(model.tokenizer.encode(TEXTS[name])))
        for row, weights in zip(rows, pattern):
            token, weight = row.find_elements("css selector", ".most span")[line].text.split()
            assert token == tokens[weights.argmax()]
            assert float(weight) == pytest.approx(weights.max().item(), abs=0.006)


def test_the_lens_stands_side_by_side(show, model, answers):
    rows = rows_of(show(f"cells={LAYER}.{POSITION}"), "lens")
    lenses = [analyze(model, text) for text in TEXTS.values()]
    streams = [get_activations(model, text)["resid_post"] for text in TEXTS.values()]
    for layer, (name, *columns) in enumerate(rows):
        assert name == str(layer)
        for run_number, lens in enumerate(lenses):
            says, shown = columns[2 * run_number : 2 * run_number + 2]
            [top] = page_texts([lens.top[layer][POSITION][0]])
            assert says.startswith(top)
            stream = streams[run_number][layer][0, POSITION]
            logits = model.lm_head(model.transformer.ln_f(stream))
            assert number(shown) == pytest.approx(difference(logits, answers), abs=0.006)
    assert len(rows) == 12


def test_the_neurons_are_patched_one_by_one(show, model, answers):
    rows = rows_of(show(f"cells={LAYER}.{POSITION}"), "neurons")
    acts = [get_activations(model, text, "mlp_post")["mlp_post"][LAYER] for text in TEXTS.values()]
    clean, corrupted = (x[0, POSITION] for x in acts)
    assert len(rows) == 10
    for name, *shown in rows:
        layer, neuron = map(int, name.split("."))
        assert layer == LAYER
        assert number(shown[0]) == pytest.approx(clean[neuron].item(), abs=0.006)
        assert number(shown[1]) == pytest.approx(corrupted[neuron].item(), abs=0.006)
        new = corrupted.clone()
        new[neuron] = clean[neuron]
        arguments = LAYER, POSITION, new, "mlp_post"
        logits = patch_activation(model, TEXTS["corrupted"], *arguments)[0]
        assert number(shown[3]) == pytest.approx(difference(logits, answers), abs=0.006)


def test_the_features_are_patched_one_by_one_and_show_what_they_promote(show, model, answers):
    detail = show("cells=6.10")
    fold = detail.find_element("css selector", ".features")
    wait(fold, lambda f: f.find_elements("css selector", "tbody tr"))
    autoencoder = Autoencoder.from_pretrained("names")
    acts = [features(model, autoencoder, text).values.to_dense() for text in TEXTS.values()]
    clean, corrupted = (x[POSITION] for x in acts)
    rows = rows_of(detail, "features")
    assert len(rows) == 10
    assert "names: 2048 features of resid_post of layer 6" in fold.text
    for name, *shown in rows:
        number_of = int(name)
        assert number(shown[0]) == pytest.approx(clean[number_of].item(), abs=0.006)
        assert number(shown[1]) == pytest.approx(corrupted[number_of].item(), abs=0.006)
        patch = change_feature(autoencoder, number_of, clean[number_of], position=POSITION)
        logits = model(model.tokenizer(TEXTS["corrupted"]), patch_params=patch)[0][0, -1]
        assert number(shown[3]) == pytest.approx(difference(logits, answers), abs=0.006)

    buttons = fold.find_elements("css selector", "button")
    for button in buttons[:2]:
        button.send_keys(" ")
    wait(fold, lambda f: len(f.find_elements("css selector", ".promoted p")) == 4)
    [below, _] = fold.find_elements("css selector", ".promoted")
    promoted = feature_logit_weights(model, autoencoder, int(rows[0][0]), 8).promotes
    shown = below.find_elements("css selector", "p:first-child .token")
    assert [token.text for token in shown] == page_texts([token for token, _ in promoted])
    for button in buttons[:2]:
        button.send_keys(" ")
    assert not fold.find_elements("css selector", ".promoted")


def test_the_features_of_a_layer_without_an_autoencoder_say_where_there_is_one(show):
    fold = show(f"cells={LAYER}.{POSITION}").find_element("css selector", ".features")
    assert "Choose a cell of layer 6 (resid_post), which has one." in fold.text
    assert not fold.find_elements("css selector", "table")


def test_several_cells_are_patched_together(show, model, answers):
    cells = [(5, 1), (5, 10), (6, 1)]
    detail = show("cells=" + ",".join(f"{layer}.{position}" for layer, position in cells))
    clean = get_activations(model, TEXTS["clean"])["resid_post"]
    patches = [(layer, position, clean[layer][:, position]) for layer, position in cells]
    model(model.tokenizer(TEXTS["corrupted"]), patch_params=patches)
    joint = difference(model.last_token_logits[0], answers)
    result = patch_layers(model, *TEXTS.values())
    start = result.corrupted.item()
    single = [result.logit_diff[cell].item() for cell in cells]
    sum_of_moves = sum(value - start for value in single)

    wait(detail, lambda d: len(rows_of(d, "joint")) == 5)
    values, moves = zip(*(map(number, row[1:]) for row in rows_of(detail, "joint")))
    expected = [*single, start + sum_of_moves, joint]
    assert values == pytest.approx(expected, abs=0.006)
    assert moves == pytest.approx([value - start for value in expected], abs=0.006)
    said = detail.find_element("css selector", ".joint p").text
    assert said.startswith(f"{joint:.2f}".replace("-", "−"))
    assert "Together they do less than the sum" in said


def test_whole_heads_are_patched_together(show, browser, model, answers):
    keys = pytest.importorskip("selenium.webdriver").Keys
    heads = [(5, 1), (6, 2)]
    detail = show("site=z&cells=5.all.1")
    assert detail.find_element("tag name", "h2").text == "z, head 5.1, all positions"
    head = browser.find_elements("css selector", "#heatmap tbody tr:nth-child(7) td")[2]
    head.send_keys(keys.SPACE)
    wait(detail, lambda d: len(rows_of(d, "joint")) == 4)
    values = [number(row[1]) for row in rows_of(detail, "joint")]
    result = patch_layers(model, *TEXTS.values(), site="z", each_position=False)
    assert values[:2] == pytest.approx(
        [result.logit_diff[place].item() for place in heads], abs=0.006
    )
    clean = get_activations(model, TEXTS["clean"], "z")["z"]
    patches = [Patch(layer, None, clean[layer][:, head], "z", head) for layer, head in heads]
    model(model.tokenizer(TEXTS["corrupted"]), patch_params=patches)
    assert values[-1] == pytest.approx(difference(model.last_token_logits[0], answers), abs=0.006)
    wait(browser, lambda b: "cells=5.all.1%2C6.all.2" in b.current_url)
    head.send_keys(keys.ENTER)
    wait(browser, lambda b: "at=6.2" in b.current_url and "cells" not in b.current_url)


def test_the_keys_go_down_into_the_cell_on_to_a_head_and_back(show, browser):
    keys = pytest.importorskip("selenium.webdriver").Keys
    detail = show("cells=5.10")

    def press(*pressed):
        for key in pressed:
            browser.switch_to.active_element.send_keys(key)

    cell = browser.find_element("css selector", '#heatmap [aria-selected="true"]')
    cell.send_keys(keys.ENTER)
    assert browser.switch_to.active_element == detail
    press(keys.TAB, keys.TAB)  # the first fold, and in it the first head
    assert browser.switch_to.active_element == detail.find_element("css selector", ".heads td")
    press(keys.ARROW_RIGHT, keys.ARROW_RIGHT)
    assert "The z of head 5.2 alone" in detail.find_element("css selector", ".heads .note").text
    press(keys.ESCAPE)
    assert browser.switch_to.active_element == cell

    detail.find_elements("css selector", ".looks button")[1].send_keys(keys.ARROW_DOWN)
    press(keys.HOME, keys.ARROW_RIGHT)
    note = detail.find_element("css selector", ".looks .note").text
    assert note.startswith("Head 5.2 at position 1: clean ␣Jones 0.9")
    press(keys.ENTER)
    wait(browser, lambda b: b.find_element("id", "panel-attention").is_displayed())
    wait(browser, lambda b: "head=5.2&query=10" in b.current_url)
    assert browser.switch_to.active_element == browser.find_element("id", "tab-attention")


@pytest.mark.parametrize("cells, sentence", [("5.99", "position"), ("99.1", "layer")])
def test_a_cell_that_is_not_there_is_a_sentence(cells, sentence, show):
    problem = show(f"cells={cells}").find_element("css selector", ".cell .problem").text
    assert sentence in problem and "must be" in problem


@pytest.mark.parametrize("width", [360, 1280, 2000])
def test_all_parts_fit_the_screen_and_keep_the_rules_of_axe(width, show, set_window, browser, axe):
    set_window(width, 800)
    detail = show("cells=5.1,6.10")
    detail.find_element("css selector", ".feature").click()
    wait(detail, lambda d: d.find_elements("css selector", ".promoted p"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_script(axe)
    found = browser.execute_async_script("axe.run('#detail').then(arguments[0])")
    assert "color-contrast" in [rule["id"] for rule in found["passes"]]
    assert not [rule["id"] for rule in found["violations"]]
