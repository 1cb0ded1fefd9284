"""What can be taken along from the explorer: scripts that print its numbers, pictures, tables."""

import ast
import base64
import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mingpt.explorer import cell_view, pictures, scripts, sweep_view
from mingpt.explorer.worker import Cache
from mingpt.interpretability.activation_patching import patch_layers
from mingpt.model import GPT

ROOT = Path(__file__).parent.parent
CLEAN = "Michelle Jones was a top-notch student. Michelle"
CORRUPTED = "Michelle Smith was a top-notch student. Michelle"
HEAD = {"layer": 3, "head": 1}


@pytest.fixture(scope="module")
def model():
    return GPT.from_pretrained("names")


def ask(view, model, **fields):
    """The events of a view, without the breaths."""
    body = {
        "model": "names",
        "clean": CLEAN,
        "corrupted": CORRUPTED,
        "clean_answer": None,
        "corrupted_answer": None,
        "site": "resid_post",
        "direction": "denoise",
        "measure": "logit_diff",
        "at": None,
    }
    events = view(model, body | fields, Cache())
    return [event for event in events if event]


def run(text, folder):
    """What a script prints, a list of words for each line."""
    path = folder / "view.py"
    path.write_text(text, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, path], env=environment, cwd=folder, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def close(values):
    """Numbers that are equal but for the rounding of sums in another order."""
    return pytest.approx(values, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"measure": "kl"},
        {"site": "z", "direction": "noise"},
        {"site": "pattern", "at": HEAD, "measure": "normalized"},
    ],
)
def test_the_script_of_a_heatmap_prints_its_numbers(model, fields, tmp_path):
    (made,) = ask(scripts.script, model, of="sweep", **fields)
    assert len(made["text"].splitlines()) <= 15
    _, *lines = run(made["text"], tmp_path)
    printed = {words[0]: [float(word) for word in words[1:]] for words in lines}
    first, second, *events = ask(sweep_view.sweep, model, **fields)
    rows = {}
    for event in events:
        rows |= dict(zip(event["layers"], event["values"]))
    assert list(printed) == second["rows"]
    for label, values in printed.items():
        assert values == close(rows[int(label.split(".")[0])])


@pytest.mark.parametrize(
    "fields",
    [
        {"layer": 5, "position": 1},
        {"layer": 5, "position": 3, "head": 2, "site": "scores", "direction": "noise"},
        {"layer": 5, "position": None, "head": 2, "site": "z"},
    ],
)
def test_the_script_of_a_cell_prints_its_numbers(model, fields, tmp_path):
    (made,) = ask(scripts.script, model, of="cell", **fields)
    lines = run(made["text"], tmp_path)
    cell = {}
    for event in ask(cell_view.cell, model, **fields):
        cell |= event
    into = "clean" if fields.get("direction") == "noise" else "corrupted"
    for name, value in (("unpatched", cell["unpatched"][into]), ("patched", cell["value"])):
        (difference, *top), lines = lines[:21], lines[21:]
        assert difference[0] == name and float(difference[1]) == close(value)
        expected = [token["probability"] for token in cell["tops"][name]]
        assert [float(words[0]) for words in top] == close(expected)
    assert [float(words[2]) for words in lines] == close(cell["heads"])


@pytest.mark.parametrize(
    ("site", "cells"),
    [
        ("mlp_out", [(2, 1, None), (5, 10, None)]),
        ("z", [(2, 1, 3), (5, None, 0), (5, 3, 0)]),
    ],
)
def test_the_script_of_several_cells_prints_their_numbers(model, site, cells, tmp_path):
    cells = [dict(zip(("layer", "position", "head"), cell)) for cell in cells]
    (made,) = ask(scripts.script, model, of="joint", site=site, cells=cells)
    printed = {words[0]: list(map(float, words[1:])) for words in run(made["text"], tmp_path)}
    (joint,) = ask(cell_view.joint, model, site=site, cells=cells)
    assert printed["unpatched"] == close([joint["unpatched"]["corrupted"]])
    assert printed["single"] == close(joint["single"])
    assert printed["joint"] == close([joint["joint"]])
    assert printed["sum"] == close([joint["sum"]])


@pytest.mark.parametrize("of", ["sweep", "cell", "joint"])
def test_a_hostile_text_stays_a_text_in_a_script(model, of):
    hostile = '\'"""\n{name} {0} \\\'); import os; os._exit(1) #\u2028\u202e\r</script>'
    texts = {"clean": hostile + " was", "corrupted": hostile + " a"}
    cells = [{"layer": 1, "position": 1}, {"layer": 2, "position": 1}]
    (made,) = ask(scripts.script, model, of=of, layer=1, position=1, cells=cells, **texts)
    tree = ast.parse(made["text"])
    literals = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert literals >= set(texts.values())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert "os" not in names
    lines = made["text"].split("\n")
    # Nothing in it ends a line or turns the direction of writing.
    assert len(lines) == len(made["text"].splitlines()) + 1 and "\u202e" not in made["text"]


@pytest.mark.parametrize("measure", ["logit_diff", "kl"])
def test_the_table_of_a_heatmap_is_that_of_the_library(model, measure, tmp_path):
    (made,) = ask(pictures.csv, model, of="sweep", measure=measure)
    result = patch_layers(model, CLEAN, CORRUPTED)
    result.to_csv(tmp_path / "table.csv", measure)
    expected = (tmp_path / "table.csv").read_text(encoding="utf-8")
    found, expected = (list(csv.reader(io.StringIO(text))) for text in (made["text"], expected))
    assert found[0] == expected[0] and len(found) == 13
    for found_row, expected_row in zip(found[1:], expected[1:]):
        assert list(map(float, found_row)) == close(list(map(float, expected_row)))


def test_the_table_of_one_head_names_it(model):
    (made,) = ask(pictures.csv, model, of="sweep", site="v", at=HEAD)
    header, row = csv.reader(io.StringIO(made["text"]))
    assert header[:3] == ["layer", "0 Michelle", "1  Smith"] and row[0] == "3.1"


@pytest.mark.parametrize("fields", [{}, {"site": "z"}, {"site": "z", "at": HEAD}])
def test_the_picture_of_a_heatmap_is_drawn_as_the_librarys(model, fields, monkeypatch):
    drawn = []
    draw = pictures.figures.draw_heatmap

    def watched(*arguments):
        drawn.append(arguments)
        return draw(*arguments)

    monkeypatch.setattr(pictures.figures, "draw_heatmap", watched)
    (made,) = ask(pictures.picture, model, of="sweep", **fields)
    assert base64.b64decode(made["png"]).startswith(b"\x89PNG\r\n")
    site = fields.get("site", "resid_post")
    at = fields.get("at")
    result = patch_layers(
        model, CLEAN, CORRUPTED, site=site, each_position=site != "z" or at is not None
    )
    monkeypatch.undo()
    expected = []
    monkeypatch.setattr(pictures.figures, "draw_heatmap", lambda *given: expected.append(given))
    monkeypatch.setattr(pictures.figures, "shown", lambda figure, path: None)
    result.plot()
    values, columns, title, quantity, rows, xlabel, scale, marks = drawn[0]
    assert list(columns) == list(expected[0][1])
    assert (title, quantity, xlabel, scale) == (*expected[0][2:4], *expected[0][5:7])
    assert marks == close(expected[0][7])
    wanted = result.logit_diff if at is None else result.logit_diff[3:4, 1]
    assert values.flatten().tolist() == close(wanted.flatten().tolist())
    assert rows == (None if at is None else ["3.1"])


@pytest.mark.parametrize("view", [scripts.script, pictures.picture, pictures.csv])
def test_what_cannot_be_taken_along_is_a_sentence(model, view):
    with pytest.raises(ValueError, match="of must be one of sweep"):
        ask(view, model, of="model")
    with pytest.raises(ValueError, match="site must be one of"):
        ask(view, model, of="sweep", site="nowhere")
    with pytest.raises(ValueError, match="are the same"):
        ask(view, model, of="sweep", clean=CORRUPTED)
