"""The explorer's Attention tab in a browser, against the library on the same texts."""

from urllib.parse import urlencode

import pytest
from selenium.webdriver import ActionChains

from mingpt.interpretability.attention_analysis import explain_attention, extract_attention
from mingpt.model import GPT
from tests.test_explorer_page import CLEAN, CORRUPTED, page  # noqa: F401

CHOSEN = {
    "tab": "attention",
    "clean": CLEAN,
    "corrupted": CORRUPTED,
    "head": "5.2",
    "query": 10,
    "key": 1,
}


@pytest.fixture(scope="module")
def model():
    return GPT.from_pretrained("names")


@pytest.fixture
def tab(page):  # noqa: F811
    """The page with the Attention tab open, and all of it there."""
    page.click("Attention")
    page.wait(lambda: page.all(".weights .chip"))
    return page


def open_at(page, **changes):  # noqa: F811
    page.browser.get("about:blank")
    page.browser.get(page.address + "#" + urlencode(CHOSEN | changes))
    page.wait(lambda: page.all(".tables tbody tr"))


def read(tab):
    return tab.text(".large .readout")


def rows(tab, number):
    """[(cells of a row, ...)] of a table of the explanation."""
    return tab.run(
        "return [...document.querySelectorAll('.tables table')[arguments[0]].tBodies[0].rows]"
        ".map(row => [...row.cells].map(cell => cell.textContent))",
        number,
    )


def number(text):
    return float(text.replace("−", "-"))


def test_every_head_is_there_and_the_weights_are_the_models(tab, model):
    pattern = extract_attention(model, CLEAN)
    assert len(tab.all(".heads button")) == 48
    tab.find(".heads button[title='head 5.2']").click()
    tab.wait(lambda: tab.text(".large h2") == "Head 5.2, clean run")
    assert read(tab) == f"10 ␣Michelle looks at 10 ␣Michelle: {pattern[5, 2, 10, 10]:.3f}"
    shown = [float(text or 0) for text in tab.texts(".weights small")]
    assert shown == pytest.approx(pattern[5, 2, 10].tolist(), abs=0.00051)
    assert len({chip.rect["y"] for chip in tab.all(".weights .chip")}) == 1  # one line


def test_the_other_run_has_its_own_tokens_and_weights(tab, model):
    tab.run("document.querySelector('input[value=corrupted]').click()")
    tab.wait(lambda: tab.texts(".weights .chip")[1].startswith("1 ␣Smith"))
    pattern = extract_attention(model, CORRUPTED)
    shown = [float(text or 0) for text in tab.texts(".weights small")]
    assert shown == pytest.approx(pattern[0, 0, 10].tolist(), abs=0.00051)


def test_a_click_on_a_weight_says_which_parts_make_the_head_look_there(tab, model):
    tab.find(".heads button[title='head 5.2']").click()
    plot = tab.find(".plot")
    tab.run("arguments[0].scrollIntoView({ block: 'center' })", plot)
    side = plot.size["width"]
    # From the middle of the picture to the cell of query 10 and key 1.
    mouse = ActionChains(tab.browser, duration=0)
    mouse.move_to_element_with_offset(plot, side * (1.5 / 11 - 0.5), side * (10.5 / 11 - 0.5))
    mouse.click().perform()
    tab.wait(lambda: tab.all(".tables tbody tr"))
    assert tab.text(".why h2") == "Why does head 5.2 look from 10 ␣Michelle to 1 ␣Jones?"
    right = explain_attention(model, CLEAN, 5, 2, 10, 1)
    largest = rows(tab, 0)
    assert [tuple(row[:2]) for row in largest[:-1]] == [entry[:2] for entry in right.largest(12)]
    assert sum(number(row[2]) for row in largest) == pytest.approx(right.score, abs=0.07)
    assert f"score {right.score:.2f}; weight {right.weight:.2f}" in tab.text(".why .toolbar")

    tab.find(".why input").click()
    tab.wait(lambda: "above the other keys' mean" in tab.text(".why .toolbar"))
    others = [0, *range(2, 11)]
    right = explain_attention(model, CLEAN, 5, 2, 10, 1, others)
    for table, sums in ((1, right.table.sum(1)), (2, right.table.sum(0))):
        for name, value in rows(tab, table)[:-1]:
            assert number(value) == pytest.approx(sums[right.parts.index(name)].item(), abs=0.0051)


def test_the_keys_lead_through_the_picture_and_enter_asks_why(tab):
    plot = tab.find(".plot")
    plot.send_keys(tab.keys.ARROW_UP, tab.keys.HOME, tab.keys.ARROW_RIGHT)
    assert read(tab).startswith("9 . looks at 1 ␣Jones: ")
    plot.send_keys(tab.keys.ENTER)
    tab.wait(lambda: tab.all(".tables tbody tr"))
    assert tab.text(".why h2") == "Why does head 0.0 look from 9 . to 1 ␣Jones?"
    chip = tab.all(".weights .chip")[9]
    chip.send_keys(tab.keys.ARROW_LEFT)
    assert read(tab).startswith("8 ␣student looks at ")


def test_the_address_opens_the_same_head_and_weight(page):  # noqa: F811
    open_at(page, run="corrupted", against="others")
    assert page.text(".large h2") == "Head 5.2, corrupted run"
    assert page.text(".why h2").endswith("from 10 ␣Michelle to 1 ␣Smith?")
    assert page.find(".why input").is_selected()
    # What this text does not have is as if it were not named.
    page.browser.get("about:blank")
    page.browser.get(page.address + "#" + urlencode(CHOSEN | {"head": "99.0", "query": 400}))
    page.wait(lambda: page.all(".weights .chip"))
    assert page.text(".large h2") == "Head 0.0, clean run"
    assert page.text(".why h2").startswith("Click a weight")


def test_a_text_is_shown_though_the_other_has_another_length(tab):
    tab.find("#text-corrupted").send_keys(" was")
    tab.wait(lambda: tab.text(".pair .problem"))
    tab.find("#text-clean").send_keys(" is")
    tab.wait(lambda: len(tab.all(".weights .chip")) == 12)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (360, 640)])
def test_the_tab_keeps_the_rules_of_axe_and_fits_the_screen(page, set_window, axe, size, scheme):  # noqa: F811
    set_window(*size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    open_at(page)
    page.run(axe)
    found = page.browser.execute_async_script("axe.run().then(arguments[0])")
    assert not {rule["id"]: rule["nodes"][0]["html"] for rule in found["violations"]}
    assert page.run("return document.documentElement.scrollWidth") <= size[0]
