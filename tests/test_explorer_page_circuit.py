"""The explorer's Circuit tab in a browser, against find_circuit on the same pair."""

from urllib.parse import urlencode

import pytest
from selenium.webdriver import ActionChains

from mingpt.interpretability.circuits import find_circuit
from mingpt.model import GPT
from tests.test_explorer_page import CLEAN, CORRUPTED, page  # noqa: F401

PAIR = (CLEAN, CORRUPTED, " Jones", " Smith")


@pytest.fixture(scope="module")
def model():
    return GPT.from_pretrained("names")


@pytest.fixture
def tab(page):  # noqa: F811
    """The page with the Circuit tab open, and all of it there."""
    page.click("Circuit")
    wait_for_worth(page)
    return page


def open_at(page, fragment):  # noqa: F811
    page.browser.get("about:blank")
    page.browser.get(page.address + fragment)


def wait_for_worth(page):  # noqa: F811
    page.wait(lambda: page.all("#panel-circuit :not([inert]) > .worth[aria-busy=false]"))


def worth(page):  # noqa: F811
    return float(page.text(".worth .value").replace("−", "-"))


def wait_until_worth(page, value):  # noqa: F811
    page.wait(lambda: abs(worth(page) - value) < 0.005)


def wait_for_address(page, part):  # noqa: F811
    page.wait(lambda: part in page.run("return location.hash"))


def set_size(page, size):  # noqa: F811
    page.run(
        "const slider = document.querySelector('#circuit-size'); slider.value = arguments[0];"
        "slider.dispatchEvent(new Event('input'))",
        size,
    )


def edge_name(edge):
    return f"{edge.sender} → {edge.reader}"


def test_the_list_and_the_graph_have_the_edges_of_find_circuit(tab, model):
    right = find_circuit(model, [PAIR], "eap", n_edges=40)
    names = tab.texts(".edges button:not([hidden], .loose) .token")
    assert names == [edge_name(edge) for edge in right.edges]
    assert len(tab.texts(".edges button:not([hidden])")) == 40
    first = float(tab.text(".edges .number"))
    assert first == pytest.approx(right.edges[0].score, abs=0.005)
    drawn = tab.run(
        "return [...document.querySelectorAll('.graph .edge')]"
        ".filter(edge => edge.style.display !== 'none').length"
    )
    assert drawn == len(right.edges)
    used = set(tab.texts(".graph .node:not(.unused) text:last-child"))
    assert used == set(right.nodes)
    assert worth(tab) == pytest.approx(right.faithfulness(), abs=0.005)


def test_the_slider_sets_how_many_edges_and_says_the_threshold(tab, model):
    for size in (120, 15):
        set_size(tab, size)
        right = find_circuit(model, [PAIR], "eap", n_edges=size)
        wait_until_worth(tab, right.faithfulness())
        assert tab.text(".size output").startswith(f"{size} of 4,555, scores from ")
        assert len(tab.all(".edges button:not([hidden])")) == size
        wait_for_address(tab, f"size={size}")


def test_an_edge_is_taken_out_and_put_back_in_the_list_and_in_the_graph(tab, model):
    circuit = find_circuit(model, [PAIR], "eap", n_edges=40)
    before = worth(tab)
    sender, reader, _ = circuit.edges[2]
    right = circuit.without([(sender, reader)]).faithfulness()
    assert abs(right - before) > 0.02

    row = tab.all(".edges button")[2]
    row.send_keys(tab.keys.ENTER)
    wait_until_worth(tab, right)
    assert row.get_attribute("aria-pressed") == "false"
    assert "removed=mlp+10%3Elogits" in tab.run("return location.hash")
    assert len(tab.all(".graph .edge.out")) == 1

    # In the graph, at the middle of its line.
    place = tab.run(
        "const line = document.querySelector('.graph .edge.out .hit');"
        "line.scrollIntoView({ block: 'center' });"
        "const p = line.getPointAtLength(line.getTotalLength() / 2), m = line.getScreenCTM();"
        "return [Math.round(p.x * m.a + m.e), Math.round(p.y * m.d + m.f)]"
    )
    mouse = ActionChains(tab.browser, duration=0)
    mouse.w3c_actions.pointer_action.move_to_location(*place)
    mouse.w3c_actions.pointer_action.click()
    mouse.perform()
    wait_until_worth(tab, before)
    assert not tab.all(".graph .edge.out")
    assert "logits are lost when logits reads mlp 10" in tab.text("#panel-circuit .readout")


def test_the_arrow_keys_walk_along_the_edges_and_read_them(tab):
    rows = tab.all(".edges button")
    rows[0].send_keys(tab.keys.ARROW_DOWN)
    assert tab.browser.switch_to.active_element == rows[1]
    assert "logits are lost when 0.3 reads embed as its values" in tab.text(
        "#panel-circuit .readout"
    )
    assert tab.find(".graph .pointed").get_attribute("data-edge") == "1"
    tab.browser.switch_to.active_element.send_keys(tab.keys.END)
    assert tab.browser.switch_to.active_element == rows[39]


def test_the_address_opens_the_same_circuit(tab):
    set_size(tab, 25)
    tab.all(".edges button")[3].click()
    wait_for_address(tab, "removed=")
    wait_for_worth(tab)
    shown = worth(tab)
    tab.browser.refresh()
    wait_for_worth(tab)
    assert worth(tab) == shown
    assert tab.all(".edges button")[3].get_attribute("aria-pressed") == "false"
    tab.click("Put back 1")
    tab.wait(lambda: worth(tab) > shown)


def test_exact_scores_show_how_far_they_are_and_can_be_stopped(tab):
    estimated = tab.texts(".edges .number")
    tab.run("document.querySelector('input[value=exact]').click()")
    tab.wait(lambda: "%" in tab.text(".wait") and tab.find(".wait").is_displayed())
    tab.wait(lambda: float(tab.find(".wait progress").get_attribute("value") or 0) > 0)
    tab.click("Stop")
    wait_for_worth(tab)
    assert tab.texts(".edges .number") == estimated
    tab.run("document.querySelector('input[value=exact]').click()")
    tab.wait(lambda: not tab.find(".wait").is_displayed())
    wait_for_worth(tab)
    assert tab.texts(".edges .number") != estimated
    assert "method=exact" in tab.run("return location.hash")


def test_a_pair_that_the_model_does_not_do_is_said(tab):
    """With the answers the other way round nothing is to be explained."""
    answers = {"clean_answer": '" Smith"', "corrupted_answer": '" Jones"'}
    texts = {"clean": CLEAN, "corrupted": CORRUPTED}
    open_at(tab, "#" + urlencode({"tab": "circuit"} | texts | answers))
    tab.wait(lambda: "on 0 of 1 pairs" in tab.text("#panel-circuit .problem"))
    assert not tab.find(".worth").is_displayed()


def test_a_new_text_brings_its_own_circuit(tab):
    before = tab.texts(".edges .number")
    tab.find("#text-corrupted").clear()
    tab.find("#text-corrupted").send_keys(CORRUPTED.replace("Smith", "Brown"))
    tab.wait(lambda: tab.texts(".edges .number") != before)
    wait_for_worth(tab)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (360, 640)])
def test_the_tab_keeps_the_rules_of_axe_and_fits_the_screen(tab, set_window, axe, size, scheme):
    set_window(*size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    tab.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    open_at(tab, "#tab=circuit&removed=mlp+10>logits")
    wait_for_worth(tab)
    tab.run(axe)
    found = tab.browser.execute_async_script("axe.run().then(arguments[0])")
    assert not {rule["id"]: rule["nodes"][0]["html"] for rule in found["violations"]}
    assert tab.run("return document.documentElement.scrollWidth") <= size[0]


def test_the_circuit_that_is_shown_can_be_kept_as_a_script(tab):
    set_size(tab, 25)
    wait_for_worth(tab)
    tab.click("Script")
    tab.wait(lambda: tab.all("#dialog[open] pre"))
    assert "n_edges=25).without([])" in tab.text("#dialog pre")
