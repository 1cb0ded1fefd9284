"""The pages of the API, as the command in CONTRIBUTING.md builds them."""

import html
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_readme import functions_in_the_table

ROOT = Path(__file__).parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
COMMAND = re.search(r"`python -m (pdoc .*) -o docs/api`", CONTRIBUTING)[1]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{"mingpt.model": page, ...}, and what the search looks in under "search"."""
    folder = tmp_path_factory.mktemp("api")
    command = [sys.executable, "-m", *shlex.split(COMMAND), "-o", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")  # no warning
    files = {path: path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    names = {path: ".".join(file.with_suffix("").parts) for path, file in files.items()}
    return {name: path.read_text(encoding="utf-8") for path, name in names.items()}


def docstring(page, name=None):
    """What the page shows as the docstring of a function or class in it, or of the module."""
    if name:
        page = page.split(f'id="{name}"')[1]
    return text_of(re.search(r'<div class="docstring plain">(.*?)</div>', page, re.S)[1])


def text_of(page):
    """What a reader sees."""
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def test_every_module_but_the_explorers_has_a_page_with_its_docstring_as_it_stands(pages):
    paths = [path for path in ROOT.glob("mingpt/**/*.py") if "explorer" not in path.parts]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]
    names = [name.removesuffix(".__init__") for name in names]
    assert sorted(pages) == sorted([*names, "index", "search"])
    for name in names:
        assert docstring(pages[name]) == inspect.getdoc(importlib.import_module(name)), name


def test_every_function_in_the_readmes_table_of_methods_is_on_its_page_with_its_docstring(pages):
    for function in functions_in_the_table():
        module, _, name = function.partition(".")
        value = importlib.import_module(f"mingpt.interpretability.{module}")
        module = value.__name__
        for part in name.split("."):
            value = getattr(value, part)
        assert docstring(pages[module], name) == inspect.getdoc(value), function


def test_tables_signs_and_comments_of_fields_are_shown_as_they_are_written(pages):
    induction = importlib.import_module("mingpt.interpretability.induction")
    study = inspect.getdoc(induction.InductionStudy)
    assert docstring(pages["mingpt.interpretability.induction"], "InductionStudy") == study
    page = pages["mingpt.interpretability.attribution"]
    assert docstring(page, "LogitParts.heads") == "(L,H), with their value biases"


def test_the_start_page_leads_to_every_module_with_its_first_line(pages):
    start = pages["mingpt"]
    assert "url=./mingpt.html" in pages["index"]
    for name in set(pages) - {"index", "search", "mingpt"}:
        link = f'<dt><a href="{name.replace(".", "/")}.html">'
        shown = re.search(r"<dd>(.*?)<", start.split(link)[1], re.S)[1]
        assert html.unescape(shown).strip() == docstring(pages[name]).partition("\n")[0]


def test_nothing_private_nothing_of_this_machine_and_nothing_of_torchs_is_on_a_page(pages):
    for name, page in pages.items():
        assert not re.search(r'<(section|div) id="(\w+\.)?_(?!_init__")', page), name
        assert ROOT.as_posix() not in page and " at 0x" not in page, name
    assert "Should be overridden by all subclasses" not in pages["mingpt.model"]


def test_the_workflow_builds_them_as_one_is_told_to():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert f"run: python -m {COMMAND} -o docs/api\n" in workflow
