"""The pages together: axe-core's rules, small screens, several in one document, odd tokens."""

import html
import re

import pytest

from mingpt.interpretability.attention_analysis import plot_all_heads, plot_attention_head
from mingpt.interpretability.logit_lens import analyze
from mingpt.interpretability.neuron_analysis import top_activating_examples
from mingpt.interpretability.web_pages import page_texts
from mingpt.model import GPT
from tests.test_attention_analysis import text_model

TEXT = "Elizabeth 東京\n 🙂 said"
PAGES = {
    "attention": lambda model, path: plot_all_heads(model, TEXT, path),
    "logit_lens": lambda model, path: analyze(model, TEXT).plot(path, "kl"),
    "neurons": lambda model, path: top_activating_examples(model, 1, [2, 5], [TEXT]).plot(path),
}


@pytest.mark.parametrize("size", [(1280, 720), (360, 640)])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_keeps_the_rules_of_axe_and_fits_the_screen(
    name, size, browser, set_window, axe, tmp_path
):
    page = PAGES[name](GPT.from_pretrained("names"), tmp_path / "page.html")
    set_window(*size)
    browser.get(page.path.as_uri())
    browser.execute_script(axe)
    found = browser.execute_async_script("axe.run().then(arguments[0])")
    # Without the contrast of colours the check would say little.
    assert "color-contrast" in [rule["id"] for rule in found["passes"]]
    broken = {rule["id"]: rule["nodes"][0]["html"] for rule in found["violations"]}
    assert not broken
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    assert browser.find_element("class name", "model").text == "names, the embedded model"
    assert not browser.get_log("browser")


def test_twelve_heads_fit_a_phone(browser, set_window, tmp_path):
    model = text_model(n_head=12)
    set_window(360, 640)
    browser.get(plot_all_heads(model, TEXT, tmp_path / "page.html").path.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    last = browser.find_elements("css selector", ".heads button")[11].rect
    assert last["x"] + last["width"] <= 360


def test_several_pages_work_in_one_document(browser, tmp_path):
    model = text_model()
    pages = [write(model, tmp_path / f"{name}.html") for name, write in PAGES.items()]
    pages.append(plot_attention_head(model, "ab", 1, 1, tmp_path / "head.html"))
    whole = tmp_path / "notebook.html"
    whole.write_text("".join(page.path.read_text(encoding="utf-8") for page in pages), "utf-8")
    browser.get(whole.as_uri())
    assert not browser.get_log("browser")
    mains = browser.find_elements("tag name", "main")
    first, lens, neurons, last = mains
    assert first.find_element("class name", "name").text == "Head 0.0"
    assert last.find_element("class name", "name").text == "Head 1.1"
    assert lens.find_element("class name", "where").text.startswith("Layer 1")
    assert neurons.find_element("class name", "readout").text
    before = [main.text for main in mains]
    first.find_elements("css selector", ".heads button")[4].click()
    assert first.find_element("class name", "name").text == "Head 1.1"
    assert [main.text for main in mains[1:]] == before[1:]


def test_a_page_shows_itself_in_a_notebook(browser, tmp_path):
    page = plot_attention_head(text_model(), "ab", 1, 2, tmp_path / "page.html")
    shown = page._repr_html_()
    source = re.search(r'srcdoc="([^"]*)"', shown)[1]
    assert html.unescape(source) == page.path.read_text(encoding="utf-8")
    notebook = tmp_path / "notebook.html"
    notebook.write_text(shown + shown, "utf-8")
    browser.get(notebook.as_uri())
    for frame in browser.find_elements("tag name", "iframe"):
        browser.switch_to.frame(frame)
        assert browser.find_element("class name", "name").text == "Head 1.2"
        browser.switch_to.default_content()
    assert not browser.get_log("browser")


def test_spaces_line_ends_and_parts_of_characters_can_be_seen():
    model = GPT.from_pretrained("names")
    tokens = model.tokenizer.tokens(model.tokenizer.encode(" said 東\n"))
    assert page_texts(tokens) == ["␣said", "␣", "<0xe6>", "<0x9d>", "<0xb1>", r"\n"]
