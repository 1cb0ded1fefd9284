"""The README's lines run and print what it says."""

import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
ROOT = Path(__file__).parent.parent


def test_the_examples_run_in_order_and_print_what_stands_below_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    examples = re.findall(r"```python\n(.*?)```(?:\n\nprints\n\n```\n(.*?)```)?", README, re.S)
    for code, shown in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert not shown or printed.getvalue() == shown
    assert len(examples) > 4 and sum(bool(shown) for _, shown in examples) > 3
    written = set(re.findall(r'"(\w+\.(?:png|html|svg))"', "".join(code for code, _ in examples)))
    assert written == {path.name for path in tmp_path.iterdir()} and len(written) > 3


def test_the_commands_are_those_that_the_gate_runs():
    gate = (ROOT / ".ci" / "run").read_text()
    for command in re.findall(r"^    (pip install .*)$", README, re.M):
        for part in command.split(" && "):
            assert (
                part.replace("pip install", "pip install -q").replace("-m pytest", "-m pytest -q")
                in gate
            )


def test_every_file_that_is_named_exists():
    for path in re.findall(r"^- `([\w/.]+)` - ", README, re.M) + re.findall(
        r"\]\(([\w/.]+)\)", README
    ):
        if "." in path or path.endswith("/"):
            assert (ROOT / path).exists(), path


def test_the_dependencies_are_the_same_in_all_places():
    pyproject = (ROOT / "pyproject.toml").read_text()
    required = (ROOT / "requirements.txt").read_text().split()
    assert (
        re.search(r"^dependencies = \[\n(.*?)^\]", pyproject, re.M | re.S)[1]
        .replace('"', "")
        .replace(",\n", "\n")
        .split()
        == required
    )
    named = re.findall(r"^- `(\w+)` - ", README[README.index("## Dependencies") :], re.M)
    assert named == [re.match(r"\w+", line)[0] for line in required] + ["tokenizers"]
