"""The drawing code of the pages (pages/*.js) as modules, which is how the explorer takes it."""

import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import matplotlib
import pytest

from mingpt.interpretability.web_pages import FOLDER

SHARED = [path for path in FOLDER.iterdir() if path.suffix in (".js", ".css")]
DOCUMENT = """<!DOCTYPE html><html lang="en"><title>Drawing</title><link rel="icon" href="data:,">
{styles}<main class="page"><h1>Drawing</h1><div class="box"></div></main>"""


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a document that has the styles, beside the modules."""
    folder = tmp_path_factory.mktemp("pages")
    for path in SHARED:
        shutil.copy(path, folder)
    sheets = [path.name for path in SHARED if path.suffix == ".css"]
    styles = "".join(f'<link rel="stylesheet" href="{name}">' for name in sheets)
    (folder / "index.html").write_text(DOCUMENT.format(styles=styles), "utf-8")
    handler = partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def script(browser, address):
    """script(code) runs code in a new document, with the modules' names in `shared`."""
    browser.get(address)

    def run(code, *values):
        return browser.execute_async_script(
            "const values = [...arguments], done = values.pop();"
            "const box = document.querySelector('.box');"
            "Promise.all(['common', 'heatmap', 'tokens'].map(name => import(`/${name}.js`)))"
            f".then(modules => Object.assign({{}}, ...modules)).then(shared => {{ {code} }})"
            ".then(done, error => done(`${error}`))",
            *values,
        )

    yield run
    assert not browser.get_log("browser")


# A heatmap of 2 rows and 3 columns, of which the first cannot matter; `told` has what it says.
HEATMAP = """
    window.told = [];
    window.table = shared.heatmap(box, {
        label: "Effects", corner: "layer", rows: [0, 1], columns: ["a", "b", "<i>"],
        notes: [0, 1, 2], low: -2, high: 2,
        grey: (row, column) => column ? "" : "before the texts differ",
        onPoint: (...place) => told.push(["point", ...place]),
        onEnter: (...place) => told.push(["enter", ...place]),
        onSelect: places => told.push(["select", ...places]),
    });
"""


def cells_of(browser, row):
    return browser.find_elements("css selector", f"tbody tr:nth-child({row + 1}) td")


def colour_of(cell):
    found = re.findall(r"[\d.]+", cell.value_of_css_property("background-color"))
    return [float(part) for part in found]


def told(browser):
    return browser.execute_script("return told.splice(0)")


def test_a_heatmap_is_filled_row_by_row_in_the_colours_of_the_figures(script, browser):
    script(HEATMAP + "table.fill(1, [9, -2, 0.5]);")
    colours = matplotlib.colormaps["RdBu_r"]
    first, last = cells_of(browser, 0), cells_of(browser, 1)
    for cell, value in zip(last[1:], (-2, 0.5)):
        expected = [255 * part for part in colours((value + 2) / 4)[:3]]
        assert colour_of(cell)[:3] == pytest.approx(expected, abs=3)
        assert cell.get_attribute("aria-label") == f"{value:.3f}"
    empty = colour_of(first[1])
    assert empty == colour_of(first[2]) and empty != colour_of(last[1])
    browser.execute_script("table.fill(0, [0, 0, 2], ['', 'none', '2.00'])")
    assert [cell.text for cell in cells_of(browser, 0)] == ["", "none", "2.00"]
    # Of twice the range, the colour of a share that is half as far from the middle.
    browser.execute_script("table.range(-4, 4)")
    expected = [255 * part for part in colours(0.75)[:3]]
    assert colour_of(cells_of(browser, 0)[2])[:3] == pytest.approx(expected, abs=3)
    browser.execute_script("table.clear()")
    assert colour_of(cells_of(browser, 0)[2]) == empty


def test_a_heatmap_shows_its_heads_as_text(script, browser):
    script(HEATMAP)
    heads = browser.find_elements("css selector", "thead th")
    assert [head.text for head in heads] == ["layer", "a\n0", "b\n1", "<i>\n2"]
    assert [head.text for head in browser.find_elements("css selector", "tbody th")] == ["0", "1"]
    assert browser.find_element("tag name", "table").accessible_name == "Effects"


def test_a_grey_cell_says_why_and_can_be_pointed_at_but_not_entered(script, browser):
    script(HEATMAP + "table.fill(0, [1, 1, 1]);")
    grey, cell = cells_of(browser, 0)[:2]
    assert grey.get_attribute("title") == grey.accessible_name == "before the texts differ"
    assert grey.value_of_css_property("background-image") != "none"
    assert "background-color" not in (grey.get_attribute("style") or "")
    grey.click()
    assert told(browser) == [["point", 0, 0]]
    cell.click()
    assert told(browser) == [["point", 0, 1], ["enter", 0, 1]]


def test_the_keys_go_through_a_heatmap_enter_cells_and_select_some(script, browser):
    from selenium.webdriver import ActionChains, Keys

    script(HEATMAP + "table.fill(0, [1, 1, 1]);")
    ActionChains(browser).send_keys(Keys.TAB, Keys.ARROW_RIGHT, Keys.ENTER).perform()
    assert told(browser) == [["point", 0, 0], ["point", 0, 1], ["enter", 0, 1]]
    keys = ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.ARROW_DOWN)
    keys.key_up(Keys.SHIFT).perform()
    assert told(browser) == [["point", 1, 1], ["select", [0, 1], [1, 1]]]
    ActionChains(browser).send_keys(" ").perform()
    assert told(browser) == [["select", [0, 1]]]
    chosen = browser.find_elements("css selector", "[aria-selected=true]")
    assert chosen == [cells_of(browser, 0)[1]]
    last = cells_of(browser, 1)[2]
    ActionChains(browser).key_down(Keys.CONTROL).click(last).key_up(Keys.CONTROL).perform()
    assert told(browser) == [["point", 1, 2], ["select", [0, 1], [1, 2]]]
    browser.execute_script("table.select([[1, 1]])")
    chosen = browser.find_elements("css selector", "[aria-selected=true]")
    assert chosen == [cells_of(browser, 1)[1]] and not told(browser)


def test_two_rows_of_tokens_stand_under_each_other_and_mark_what_differs(script, browser):
    first, second = ["Mi", " Jones", " was", "<b>"], ["Mi", " Smith", "son"]
    script("shared.tokenPairs(box, ...values)", first, second, [False, True, True, True])
    pairs = browser.find_elements("css selector", ".pair")
    shown = [pair.get_property("textContent") for pair in pairs]
    assert shown == ["MiMi0", " Jones Smith1 ≠", " wasson2 ≠", "<b>no token3 ≠"]
    for pair in pairs:
        upper, lower = pair.find_elements("tag name", "span")
        assert upper.rect["x"] == lower.rect["x"] and upper.rect["y"] < lower.rect["y"]


def test_a_token_is_coloured_and_written_on_in_black_or_white(script, browser):
    script(
        "const chips = shared.tokenRow(box, ['a', 'b'], { tag: 'button', notes: true });"
        "shared.colourChip(chips[0], [0, 0, 90], '0.123'); shared.colourChip(chips[1], null);"
    )
    dark, plain = browser.find_elements("css selector", "button.chip")
    assert dark.text == "a\n0.123" and colour_of(dark)[:3] == [0, 0, 90]
    assert dark.value_of_css_property("color") == "rgba(255, 255, 255, 1)"
    assert colour_of(plain)[:3] == [255, 255, 255]


def test_no_two_modules_have_a_name_in_common():
    """In a page that is written to a file they share one scope."""
    names = []
    for path in SHARED:
        if path.suffix == ".js":
            pattern = r"^(?:export )?(?:function|const|let|class) (\w+)"
            names += re.findall(pattern, path.read_text("utf-8"), re.MULTILINE)
    assert len(names) > 10 and len(names) == len(set(names))
