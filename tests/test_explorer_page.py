"""The explorer's page in a browser: texts, heatmap, answers, keyboard, address, history, files."""

from threading import Semaphore
from urllib.parse import urlencode

import pytest

from mingpt.explorer import grid
from mingpt.explorer.models import Loaded
from mingpt.explorer.worker import Cache
from mingpt.interpretability.activation_patching import patch_layers
from mingpt.model import GPT
from tests.test_attention_analysis import text_model

CLEAN = "Michelle Jones was a top-notch student. Michelle"
CORRUPTED = "Michelle Smith was a top-notch student. Michelle"
BROWN = "Michelle Brown was a top-notch student. Michelle"
PATIENCE = 60  # seconds, which a busy machine may need


class Page:
    """What a person does with the page, and sees on it."""

    def __init__(self, browser, address):
        from selenium.webdriver.common.keys import Keys
        from selenium.webdriver.support.ui import Select, WebDriverWait

        self.browser = browser
        self.address = address
        self.keys = Keys
        self.Select = Select
        self.waiting = WebDriverWait(browser, PATIENCE, 0.02)

    def open(self, fragment=""):
        self.browser.get("about:blank")
        self.browser.get(self.address + fragment)
        self.finish()

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition):
        return self.waiting.until(lambda _: condition())

    def finish(self):
        """Wait until the heatmap is whole."""
        whole = "#heatmap[aria-busy=false]"
        self.wait(lambda: self.all(whole))

    def type(self, run, text):
        """Replace a text, key by key."""
        box = self.find(f"#text-{run}")
        box.send_keys(self.keys.CONTROL, "a")
        box.send_keys(text)
        self.finish()

    def choose(self, name, value):
        choice = self.Select(self.find(f"#choose-{name}"))
        choice.select_by_visible_text(value)
        self.finish()

    def click(self, title):
        self.browser.find_element("xpath", f"//button[.='{title}']").click()

    def text(self, selector):
        """As it is in the document, spaces and all."""
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def texts(self, selector):
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return self.run(script, selector)

    def cell(self, row, column):
        return self.all(f".map tbody tr:nth-child({row + 1}) td")[column]

    def numbers(self):
        """What the cells say, row by row; None where one is grey."""
        rows = self.run(
            "return [...document.querySelectorAll('.map tbody tr')].map(row => "
            "[...row.querySelectorAll('td')].map(cell => "
            "cell.hasAttribute('aria-disabled') ? null : cell.textContent))"
        )
        return rows


@pytest.fixture
def page(explorer, browser):
    """The page in a tab of its own; its console says nothing until the test ends."""
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    browser.get_log("browser")
    opened = Page(browser, explorer.address)
    opened.open()
    yield opened
    said = browser.get_log("browser")
    browser.close()
    browser.switch_to.window(first)
    assert not said


@pytest.fixture(scope="module")
def model():
    return GPT.from_pretrained("names")


def agrees(shown, values):
    """Does each cell that is not grey say its value, to the decimals that it shows?"""
    assert len(shown) == len(values)
    for texts, row in zip(shown, values.tolist()):
        assert len(texts) == len(row)
        for text, value in zip(texts, row):
            if text is not None:
                decimals = len(text.partition(".")[2])
                assert decimals and abs(float(text) - value) < 0.51 * 10**-decimals
    return True


def test_typing_changes_the_tokens_and_the_heatmap(page, model):
    assert page.find("#text-clean").get_attribute("value") == CLEAN
    page.type("corrupted", BROWN)
    assert page.texts(".pair.differs .chip") == ["␣Jones", "␣Brown"]
    assert agrees(page.numbers(), patch_layers(model, CLEAN, BROWN).logit_diff)
    assert page.text(".says").startswith("says ␣Jones")
    assert page.numbers()[0][0] is None


@pytest.mark.parametrize(
    "site, direction, measure, title",
    [
        ("mlp_out", "denoise", "probability", "probability of the clean answer"),
        ("resid_pre", "noise", "normalized", "normalized: 0 corrupted, 1 clean"),
        ("v", "noise", "kl", "KL divergence from the clean run, nats"),
    ],
)
def test_the_numbers_are_those_of_patch_layers(page, model, site, direction, measure, title):
    page.choose("site", site)
    page.find(f"[value={direction}]").find_element("xpath", "..").click()
    page.choose("measure", title)
    has_heads = site == "v"
    result = patch_layers(
        model, CLEAN, CORRUPTED, site=site, direction=direction, each_position=not has_heads
    )
    assert agrees(page.numbers(), result.mean(measure))


def test_a_head_opens_into_its_positions_and_escape_goes_back_up(page, model):
    page.choose("site", "z")
    assert len(page.numbers()) == 12 and len(page.numbers()[0]) == model.config.n_head
    page.cell(5, 1).click()
    page.finish()
    values = patch_layers(model, CLEAN, CORRUPTED, site="z").logit_diff[5, 1]
    assert agrees(page.numbers(), values[None])
    assert "head 5.1" in page.text(".crumb")
    page.cell(0, 3).send_keys(page.keys.ESCAPE)
    page.finish()
    assert len(page.numbers()) == 12


def test_rows_appear_from_the_last_layer_up_until_a_newer_edit_cancels_them(
    page, explorer, model, monkeypatch
):
    from mingpt.explorer.app import VIEWS

    for limit in ("START", "MOST"):
        monkeypatch.setattr(grid, limit, 1)  # a piece is as small as can be
    gate = Semaphore(0)
    sent = {}  # {text: the layers of its rows}
    real = VIEWS["sweep"]

    def slow(model, body, cache):
        for event in real(model, body, cache):
            if "layers" in event:
                gate.acquire(timeout=10)
                sent.setdefault(body["corrupted"], []).extend(event["layers"])
            yield event

    def paste(text):
        box = "document.querySelector('#text-corrupted')"
        page.run(f"{box}.value = arguments[0]; {box}.dispatchEvent(new Event('input'))", text)

    monkeypatch.setitem(VIEWS, "sweep", slow)
    older, newer = (CLEAN.replace("Jones", name) for name in ("Cole", "Hall"))
    paste(older)
    gate.release()
    rows = "#heatmap tbody tr"
    page.wait(lambda: len(page.all(f"{rows}:not(.stale)")) == 1)
    assert page.all(f"{rows}:last-child:not(.stale)")
    assert page.find("#heatmap").get_attribute("aria-busy") == "true"
    jobs = list(explorer.worker.jobs.values())
    paste(newer)
    page.wait(lambda: all(job.is_over for job in jobs))
    gate.release(100)
    page.finish()
    assert agrees(page.numbers(), patch_layers(model, CLEAN, newer).logit_diff)
    assert sent[newer] == list(range(12))[::-1]
    assert len(sent[older]) < 12


def test_what_the_server_took_for_the_older_question_is_asked_again(page, model):
    page.run(
        "const real = fetch; window.fetch = async () => {"
        "window.fetch = real; return new Response('{\"cancelled\": true}\\n'); }"
    )
    page.choose("site", "mlp_out")
    assert agrees(page.numbers(), patch_layers(model, CLEAN, CORRUPTED, site="mlp_out").logit_diff)


def test_unequal_lengths_are_shown_while_typing(page):
    page.find("#text-corrupted").send_keys(" Smith said")
    page.finish()
    assert len(page.all(".pair .missing")) == 2
    assert "11" in page.text(".pair .problem") and "13" in page.text(".pair .problem")
    assert not page.find("#exports button").is_enabled()
    page.find("#text-clean").send_keys(" Smith said")
    page.finish()
    assert not page.all(".pair .missing") and page.text(".pair .problem") == ""
    assert len(page.numbers()[0]) == 13


def test_where_several_tokens_differ_the_answers_are_chosen(page, model):
    corrupted = BROWN.replace("student", "singer")
    page.type("corrupted", corrupted)
    assert "name the clean answer" in page.text(".pair .problem")
    chosen = []
    for run, index in (("Clean", 1), ("Corrupted", 21)):
        choice = page.Select(page.find(f"[aria-label='{run} answer']"))
        choice.select_by_index(index)
        page.finish()
        chosen.append(int(choice.first_selected_option.get_attribute("value")))
    assert agrees(page.numbers(), patch_layers(model, CLEAN, corrupted, *chosen).logit_diff)


def test_a_cell_that_cannot_matter_is_grey_and_says_why(page):
    page.cell(3, 0).click()
    assert "first difference" in page.text(".readout")
    assert "cells=" not in page.browser.current_url
    page.cell(3, 1).click()
    assert "resid_post of layer 3, position 1 ␣Smith" in page.text(".readout")


def test_the_answers_are_picked_from_what_the_runs_say(page, model):
    options = page.texts("[aria-label='Clean answer'] option")
    assert options[0] == "␣Jones ≠" and len(options) == 41
    choice = page.Select(page.find("[aria-label='Corrupted answer']"))
    choice.select_by_index(5)
    page.finish()
    chosen = int(choice.first_selected_option.get_attribute("value"))
    values = patch_layers(model, CLEAN, CORRUPTED, corrupted_token=chosen).logit_diff
    assert agrees(page.numbers(), values)


def test_examples_fill_in_both_texts(page):
    page.all(".examples button")[1].click()
    page.finish()
    assert page.find("#text-clean").get_attribute("value").startswith("Jessica Jones")
    assert page.find("#text-corrupted").get_attribute("value").startswith("Jessica Smith")


def test_keys_move_select_and_go_back_up(page):
    keys = page.keys
    page.find("#text-corrupted").click()
    page.cell(0, 1).send_keys(keys.ARROW_DOWN)
    active = page.browser.switch_to.active_element
    assert active == page.cell(1, 1) and "layer 1, position 1" in page.text(".readout")
    active.send_keys(keys.ENTER)
    assert active.get_attribute("aria-selected") == "true"
    active.send_keys(keys.SHIFT, keys.ARROW_DOWN)
    assert [cell.text for cell in page.all("[aria-selected=true][role=gridcell]")] == ["-8.6"] * 2
    page.browser.switch_to.active_element.send_keys(keys.ESCAPE)
    assert not page.all(".map [aria-selected=true]")
    active = page.browser.switch_to.active_element
    active.send_keys(keys.ENTER)
    active.send_keys(keys.ENTER)
    assert page.browser.switch_to.active_element == page.find("#detail")
    page.find("#detail").send_keys(keys.ESCAPE)
    assert page.browser.switch_to.active_element == active
    active.send_keys("?")
    assert page.find("#dialog").is_displayed()


def test_the_arrow_keys_lead_along_the_tabs(page):
    page.find("#tab-patch").send_keys(page.keys.ARROW_LEFT)
    last = page.all("[role=tab]")[-1]
    assert page.browser.switch_to.active_element == last
    assert last.get_attribute("aria-selected") == "true"
    assert not page.find("#panel-patch").is_displayed()
    # What was typed beside another tab is swept when this one is seen again.
    page.type("corrupted", BROWN)
    last.send_keys(page.keys.ARROW_RIGHT)
    page.wait(lambda: "␣Brown" in page.texts(".map thead th span"))
    page.finish()
    assert page.find("#panel-patch").is_displayed() and page.numbers()[11][1] != ""


def test_the_address_is_the_view(page):
    page.type("corrupted", BROWN)
    page.choose("site", "mlp_out")
    page.cell(2, 1).click()
    address = page.browser.current_url
    numbers = page.numbers()
    page.browser.refresh()
    page.finish()
    assert page.browser.current_url == address and page.numbers() == numbers
    assert page.cell(2, 1).get_attribute("aria-selected") == "true"
    page.open("#" + address.partition("#")[2])
    assert page.numbers() == numbers


def test_back_undoes_a_step_and_typing_as_one(page):
    before = page.numbers()
    page.type("corrupted", BROWN)
    typed = page.numbers()
    page.choose("site", "mlp_out")
    page.browser.back()
    page.finish()
    assert page.numbers() == typed and page.find("#choose-site").get_attribute("value") != "mlp_out"
    page.browser.back()
    page.finish()
    assert page.numbers() == before
    assert page.find("#text-corrupted").get_attribute("value") == CORRUPTED


@pytest.mark.parametrize(
    "fragment", ["#cells=9.9,x&at=q&clean_answer={", "#tab=no&site=&cells=-1.2"]
)
def test_an_address_that_cannot_be_read_opens_the_page_all_the_same(page, fragment):
    page.open(fragment)
    assert page.find("#text-clean").get_attribute("value") == CLEAN


def test_the_history_has_a_card_for_each_experiment_and_puts_them_side_by_side(page):
    page.type("corrupted", BROWN)
    page.choose("site", "mlp_out")
    assert page.texts(".cards b") == ["␣Jones | ␣Brown", "␣Jones | ␣Brown", "␣Jones | ␣Smith"]
    page.all(".cards .go")[2].click()
    page.finish()
    assert page.find("#text-corrupted").get_attribute("value") == CORRUPTED
    assert len(page.all(".cards .go")) == 3
    for tick in page.all(".cards input")[:2]:
        tick.click()
    assert len(page.all(".beside figure")) == 2
    first = page.all(".beside figure")[0].find_elements("css selector", "tr:nth-child(2) td")[1]
    page.run("arguments[0].focus()", first)
    readouts = page.texts(".beside .readout")
    assert all("at 1, 1 ␣Brown" in readout for readout in readouts)
    page.browser.refresh()
    page.finish()
    assert len(page.all(".cards .go")) == 3
    page.click("Attention")
    page.browser.refresh()
    page.wait(lambda: page.all(".cards .go"))
    assert page.texts(".cards .go span")[1] == "logit difference, names"
    page.click("Clear")
    assert not page.all(".cards .go")


def test_the_view_can_be_kept_as_script_picture_and_table(page, model, tmp_path):
    page.browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    page.choose("site", "mlp_out")
    page.click("Script")
    page.wait(lambda: page.all("#dialog[open] pre"))
    script = page.text("#dialog pre")
    assert CLEAN in script and "mlp_out" in script and "patch_layers" in script
    page.find("#dialog-close").click()
    page.click("PNG")
    page.click("CSV")
    page.wait(lambda: (tmp_path / "sweep.csv").exists() and (tmp_path / "sweep.png").exists())
    page.wait(lambda: not list(tmp_path.glob("*.crdownload")))
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "sweep.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 13 and lines[0].startswith("layer,")


def test_with_cells_selected_the_script_is_theirs(page):
    cell = page.cell(4, 1)
    for keys in (page.keys.ENTER, page.keys.SHIFT + page.keys.ARROW_DOWN):
        cell.send_keys(keys)
        page.click("Script")
        page.wait(lambda: page.all("#dialog[open] pre"))
        script = page.text("#dialog pre")
        assert "Patch(4, 1, " in script
        assert ("Patch(5, 1, " in script) == (keys != page.keys.ENTER)
        page.find("#dialog-close").click()


def test_the_link_is_copied(page):
    page.choose("site", "q")
    page.browser.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    page.click("Copy link")
    page.wait(lambda: "Copied" in page.texts("#exports button"))
    copied = page.browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied == page.browser.current_url and "site=q" in copied


def test_a_model_that_cannot_be_had_says_so_and_the_old_one_stays(page, explorer, monkeypatch):
    def read(name, loading):
        raise ValueError("gpt2 cannot be had without a network")

    monkeypatch.setattr(explorer.models, "read", read)
    before = page.numbers()
    page.Select(page.find("#model")).select_by_index(1)
    page.wait(lambda: "cannot be had" in page.text("#notice"))
    assert page.find("#model").get_attribute("value") == "names"
    assert page.numbers() == before
    page.type("corrupted", BROWN)
    assert page.numbers() != before and page.text("#notice") == ""
    # An address that names it opens the model to start with.
    page.open("#model=gpt2")
    page.wait(lambda: "cannot be had" in page.text("#notice"))
    assert page.find("#model").get_attribute("value") == "names"
    assert page.numbers() == before


def test_a_model_that_is_loading_says_how_far_it_is_and_the_old_one_can_be_used(
    page, explorer, monkeypatch
):
    gate = Semaphore(0)

    def read(name, loading):
        loading.stage = "downloading gpt2"
        loading.share = lambda: 0.4
        gate.acquire(timeout=10)
        raise ValueError("gpt2 cannot be had without a network")

    monkeypatch.setattr(explorer.models, "read", read)
    page.Select(page.find("#model")).select_by_index(1)
    page.wait(lambda: page.find("#loading").is_displayed())
    assert page.find("#loading").get_attribute("value") == "0.4"
    assert page.text("#notice") == "downloading gpt2"
    before = page.numbers()
    page.choose("site", "mlp_out")
    assert page.numbers() != before
    gate.release()
    page.wait(lambda: not page.find("#loading").is_displayed())


def test_another_model_can_be_chosen(page, explorer, monkeypatch):
    def read(name, loading):
        explorer.models.loaded[name] = Loaded(text_model(), Cache())

    monkeypatch.setattr(explorer.models, "read", read)
    page.Select(page.find("#model")).select_by_index(1)
    page.wait(lambda: len(page.all(".pair.differs")) == 5)
    page.finish()
    # Five bytes differ, so the answers are to be chosen.
    for number, run in enumerate(("Clean", "Corrupted")):
        page.Select(page.find(f"[aria-label='{run} answer']")).select_by_index(1 + number)
        page.finish()
    assert len(page.numbers()) == 2 and len(page.numbers()[0]) == len(CLEAN)
    assert "model=gpt2" in page.browser.current_url
    page.Select(page.find("#model")).select_by_index(0)
    page.wait(lambda: len(page.numbers()) == 12)
    del explorer.models.loaded["gpt2"]


def test_a_hostile_text_is_shown_and_does_nothing(page):
    hostile = "<img src=x onerror=hacked=1></script><b>{0}</b>"
    page.type("clean", hostile.format(1))
    page.type("corrupted", hostile.format(2))
    page.cell(0, len(page.numbers()[0]) - 1).click()
    page.click("Script")
    page.wait(lambda: page.all("#dialog[open] pre"))
    assert hostile.format(1) in page.text("#dialog pre")
    assert page.run("return typeof hacked") == "undefined"
    assert not page.all("img") and page.run("return document.scripts.length") == 1


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize(
    "answers", [(None, None), ('" was"', '" had"'), ('" had"', '" was"'), ('" was"', '" Smith"')]
)
def test_the_names_of_both_runs_stay_apart_below_the_colours(page, set_window, answers, width):
    set_window(width, 800)
    fields = {"clean": CLEAN, "corrupted": CORRUPTED}
    for name, text in zip(("clean_answer", "corrupted_answer"), answers):
        if text:
            fields[name] = text
    page.open("#" + urlencode(fields))
    left, right = page.all(".legend .run-names span")
    bar = page.find(".legend .colours").rect
    assert bar["x"] <= left.rect["x"]
    assert left.rect["x"] + left.rect["width"] <= right.rect["x"]
    assert right.rect["x"] + right.rect["width"] <= bar["x"] + bar["width"] + 1


def test_what_matters_of_a_long_text_is_in_view_at_first(page):
    rest = " was a top-notch student." * 6
    texts = {"clean": rest + " Jones was a", "corrupted": rest + " Smith was a"}
    page.open("#" + urlencode(texts))
    hatched = len(page.all(".map tbody tr:first-child [aria-disabled]"))
    assert hatched > 40
    first, view = page.cell(0, hatched).rect, page.find("#heatmap").rect
    assert view["x"] < first["x"] < view["x"] + view["width"]


def test_the_tokens_lines_have_no_empty_space_between(page):
    line, column = page.find(".tokens.pairs"), page.find(".tokens .pair")
    assert line.size["height"] < column.size["height"] + 8


def test_on_a_large_screen_the_first_sentence_is_one_line(page, set_window):
    set_window(2000, 1000)
    height = float(page.find(".top .sentence").value_of_css_property("line-height")[:-2])
    assert page.find(".top .sentence").size["height"] < 2 * height


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (360, 640)])
def test_the_page_keeps_the_rules_of_axe_and_fits_the_screen(page, set_window, axe, size, scheme):
    set_window(*size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    page.cell(5, 1).click()
    page.find(".cards input").click()
    page.run(axe)
    for problem in (False, True):
        if problem:
            page.find("#text-clean").send_keys(" is")
            page.finish()
        found = page.browser.execute_async_script("axe.run().then(arguments[0])")
        assert "color-contrast" in [rule["id"] for rule in found["passes"]]
        broken = {rule["id"]: rule["nodes"][0]["html"] for rule in found["violations"]}
        assert not broken
    assert page.run("return document.documentElement.scrollWidth") <= size[0]


def test_a_page_at_rest_asks_nothing(page):
    count = "return performance.getEntriesByType('resource').length"
    before = page.run(count)
    page.browser.execute_async_script("setTimeout(arguments[0], 700)")
    assert page.run(count) == before
