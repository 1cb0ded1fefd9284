"""README and docs: their lines run and print what stands below them; what they name is there."""

import contextlib
import importlib
import importlib.util
import io
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("tests/*.md"))]
PAGES += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "experiments" / "README.md"]
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}
COMMANDS = sorted(set(re.findall(r"python -m ([\w.]+)", "".join(TEXTS.values()))))


def section(title):
    """The README's lines below the heading, up to the next one."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_examples_run_in_order_and_print_what_stands_below_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = []
    for text in TEXTS.values():
        names = {}  # of one page: what its examples have in common
        for code, shown in re.findall(
            r"```python\n(.*?)```(?:\n\nprints\n\n```\n(.*?)```)?", text, re.S
        ):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                # A minute's work on 20 pairs: here one shows that the lines run.
                exec(code.replace("count=20", "count=1"), names)
            assert not shown or printed.getvalue() == shown
            examples.append((code, shown))
    assert len(examples) > 4 and sum(bool(shown) for _, shown in examples) > 3
    written = set(re.findall(r'"(\w+\.(?:png|html|svg))"', "".join(code for code, _ in examples)))
    assert written == {path.name for path in tmp_path.iterdir()} and len(written) > 3


def test_the_commands_are_those_that_the_gate_runs():
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = re.findall(r"^    (pip install .*)$", README, re.M)
    assert commands
    for command in commands:
        for part in command.split(" && "):
            quiet = part.replace("pip install", "pip install -q")
            assert quiet.replace("-m pytest", "-m pytest -q") in gate


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_that_is_named_has_its_module_and_says_how_to_use_it(
    module, monkeypatch, capsys
):
    path = importlib.util.find_spec(module).origin
    # Others take no options; pytest would start itself within itself.
    if module == "pytest" or "argparse" not in Path(path).read_text(encoding="utf-8"):
        return
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert not ended.value.code and "usage:" in capsys.readouterr().out


def functions_in_the_table():
    """The functions in the table of methods, as module.name or module.class.name."""
    for cell in re.findall(r"^\|[^|]*\|([^|]*)\|", section("Methods"), re.M):
        owner = ""
        for name in re.findall(r"`([\w.]+)`", cell):
            if not name.startswith("."):  # `.name`: in the same place as the one before
                owner = name.rpartition(".")[0]
            yield f"{owner}.{name.rpartition('.')[2]}"


def test_every_function_in_the_table_of_methods_is_in_its_module():
    functions = list(functions_in_the_table())
    assert len(functions) > 20
    for function in functions:
        module, *attributes = function.split(".")
        value = importlib.import_module(f"mingpt.interpretability.{module}")
        for attribute in attributes:
            value = getattr(value, attribute)
        assert callable(value), function


def test_every_file_that_is_named_exists():
    for page, text in TEXTS.items():
        paths = re.findall(r"\]\(([\w/.-]+)\)", text)
        for path in paths:
            assert (page.parent / path).exists(), f"{path} in {page}"


def paths_in_the_tree():
    """The files and folders of the README's tree, relative to the repository."""
    folders = {4: Path()}  # {indentation: the folder whose content stands there}
    for line in re.findall(r"^    .*$", section("What is where"), re.M):
        indentation = len(line) - len(line.lstrip())
        entries, *_ = re.split(r"   +", line.strip())  # then its clause
        for name in entries.split():
            yield folders[indentation] / name
            folders[indentation + 2] = folders[indentation] / name


def test_the_tree_shows_files_that_exist_and_all_modules_of_the_package():
    tree = list(paths_in_the_tree())
    for path in tree:
        assert (ROOT / path).exists(), path
    for path in (ROOT / "mingpt").rglob("*.py"):
        assert path.relative_to(ROOT) in tree or path.name == "__init__.py", path


def test_every_dependency_is_explained():
    files = [ROOT / "requirements.txt", ROOT / "requirements-explorer.txt"]
    required, explorer = [file.read_text(encoding="utf-8").split() for file in files]
    names = [re.match(r"\w+", line)[0] for line in (*required, "tokenizers", *explorer)]
    assert re.findall(r"`(\w+)`\s\(", section("Dependencies")) == names
