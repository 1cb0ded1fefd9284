"""The notebooks run from a clean kernel, and say and draw what is stored in them."""

import base64
import copy
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy
import pytest
import torch
from IPython.core.inputtransformer2 import TransformerManager
from matplotlib import rc_context
from PIL import Image

from experiments import run_notebooks
from mingpt.interpretability.figures import Scale, draw_heatmap

ROOT = Path(__file__).parent.parent
PATHS = sorted((ROOT / "experiments").glob("*.ipynb"))
EVERY = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
# With a decimal point. A number with one decimal may be the name of a head, and must be the same;
# of longer ones the last digit may be off by one, since other processors round other sums.
NUMBER = re.compile(r"-?\d+\.\d{2,}")
# Pictures are compared by the mean colours of so many squares.
ACROSS = 90
DOWN = 60
# Of 255: the largest difference of a square, drawn by the same version of matplotlib and by another
# one. That one moves all things a little; a square may then be like one of its neighbours.
SAME_VERSION = 25
OTHER_VERSION = 105
# And of the mean over all squares, which tells other colours from other places.
MEAN = 8


def answer_of(notebook):
    """(code, what it prints) of the exercise's folded answer."""
    block = "```python\n(.*?)```.*?```\n(.*?)```"
    [found] = re.findall(block, notebook.cells[-1].source, re.S)
    return found


def check_outputs(stored, fresh):
    """AssertionError unless a cell's outputs are of the same kinds, and say and show the same."""
    assert [output_kind(output) for output in stored] == [output_kind(output) for output in fresh]
    for before, after in zip(stored, fresh):
        if before.output_type == "stream":
            check_texts(before.text, after.text)
            continue
        check_texts(before.data["text/plain"], after.data["text/plain"])
        if "image/png" in before.data:
            check_pictures(before.data["image/png"], after.data["image/png"])


def output_kind(output):
    return output.output_type, sorted(output.get("data", ()))


def check_texts(stored, fresh):
    assert NUMBER.split(stored) == NUMBER.split(fresh)
    for before, after in zip(NUMBER.findall(stored), NUMBER.findall(fresh)):
        decimals = len(before.partition(".")[2])
        assert len(after.partition(".")[2]) == decimals
        # Compared as numbers, -0.00 is 0.00.
        assert abs(float(before) - float(after)) < 1.5 * 10**-decimals, f"{before}, now {after}"


def check_pictures(stored, fresh):
    before = run_notebooks.decode_picture(stored)
    after = run_notebooks.decode_picture(fresh)
    compare_pictures(before, after, before.info["Software"] == after.info["Software"])


def compare_pictures(before, after, is_same):
    """is_same: whether the same version of matplotlib drew both."""
    differences = compare_squares(before, after, reach=0 if is_same else 1)
    assert differences.max() <= (SAME_VERSION if is_same else OTHER_VERSION)
    assert differences.mean() <= MEAN


def compare_squares(one, other, reach):
    """(DOWN, ACROSS): how far each square is from the most similar one within `reach` squares."""
    squares = []
    for picture in (one, other):
        small = picture.resize((ACROSS, DOWN), Image.Resampling.BOX)
        squares.append(numpy.asarray(small, dtype=float))
    there = nearest(*squares, reach)
    back = nearest(*reversed(squares), reach)  # what the first one has and the second one lacks
    return numpy.maximum(there, back)


def nearest(squares, others, reach):
    padded = numpy.pad(others, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    distances = []
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            moved = padded[down : down + DOWN, right : right + ACROSS]
            distances.append(abs(squares - moved).max(-1))
    return numpy.min(distances, axis=0)


@EVERY
def test_a_notebook_runs_and_its_stored_outputs_are_those_of_its_code(path):
    stored = run_notebooks.read_notebook(path)
    fresh = copy.deepcopy(stored)
    code, printed = answer_of(stored)
    fresh.cells.append(nbformat.v4.new_code_cell(code))
    run_notebooks.run_notebook(fresh)

    [answer] = fresh.cells.pop().outputs
    check_texts(printed, answer.text)
    for before, after in zip(stored.cells, fresh.cells):
        check_outputs(before.get("outputs", []), after.get("outputs", []))


@EVERY
def test_a_notebook_has_the_form_of_all(path):
    notebook = run_notebooks.read_notebook(path)
    nbformat.validate(notebook)
    title, colab, model, *_ = notebook.cells
    assert re.match(r"# .+\n\n\*\*.+\?\*\*\n", title.source)  # a title and a question
    first = run_notebooks.read_notebook(PATHS[0])
    assert colab.source == first.cells[1].source
    assert 'GPT.from_pretrained("names")  # or "gpt2"' in model.source
    assert len(notebook.cells) < 25
    headings = re.findall("^## (.*)", "\n".join(cell.source for cell in notebook.cells), re.M)
    assert headings[-3:] == ["What it shows, and what not", "On GPT-2", "Exercise"]
    last = notebook.cells[-1].source
    assert "<details><summary>Answer</summary>" in last and last.endswith("</details>")


@EVERY
def test_a_notebook_is_stored_without_noise(path):
    text = path.read_text(encoding="utf-8")
    notebook = run_notebooks.read_notebook(path)
    assert text == nbformat.writes(notebook) + "\n"
    assert notebook.metadata == run_notebooks.METADATA
    pictures = 0
    for cell in notebook.cells:
        assert not cell.metadata
        assert cell.get("execution_count") is None
        for output in cell.get("outputs", []):
            assert output.output_type in ("stream", "execute_result", "display_data")
            assert not output.get("metadata")
            shown = output.get("text") or output.data["text/plain"]
            assert not re.search(r"0x[0-9a-f]{6}|/tmp|/home|/root|/Users|[A-Z]:\\", shown), shown
            picture = output.get("data", {}).get("image/png")
            if picture:
                pictures += 1
                file = base64.b64decode(picture)
                stored = Image.open(io.BytesIO(file))
                assert len(file) <= run_notebooks.MAX_BYTES
                assert stored.width <= run_notebooks.MAX_WIDTH
                assert list(stored.info) == ["Software"]
    assert 2 <= pictures <= 4


@EVERY
def test_a_notebook_is_listed_for_readers(path):
    listed = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    assert f"]({path.name})" in listed


def first_cell():
    """The code of the cell that is for Colab, as Python alone."""
    source = run_notebooks.read_notebook(PATHS[0]).cells[1].source
    return TransformerManager().transform_cell(source)


def test_in_a_clone_the_first_cell_finds_the_package_and_prints_nothing():
    code = first_cell() + "\nimport mingpt\nprint(mingpt.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "experiments",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    [printed] = ran.stdout.splitlines()
    assert Path(printed).samefile(ROOT / "mingpt" / "__init__.py")
    assert not ran.stderr


def test_in_colab_the_first_cell_installs_from_the_address_that_must_be_given(monkeypatch):
    commands = []
    shell = SimpleNamespace(run_line_magic=lambda *command: commands.append(command))
    monkeypatch.setitem(sys.modules, "google.colab", shell)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = first_cell()
    with pytest.raises(ValueError, match="address.*REPOSITORY"):
        exec(code)
    exec(
        code.replace('REPOSITORY = ""', 'REPOSITORY = "https://x.org/y"'),
        {"get_ipython": lambda: shell},
    )
    # IPython itself puts the value in the place of the braces.
    assert commands == [("pip", "install -q git+{REPOSITORY}")]


CELLS = (
    "print(1.25, end=' ', flush=True)\nprint('and more')",
    # Once as a widget, and once as where there are none.
    "from mingpt.common import progress_bar\nfor _ in progress_bar(range(3)):\n    pass",
    "from tqdm.std import tqdm\nfor _ in tqdm(range(3)):\n    pass",
    "import torch\n"
    "from mingpt.interpretability.figures import plot_effects\n"
    "plot_effects(torch.arange(6).view(2, 3) / 2)",
)


def write_notebook(path, *sources):
    """A notebook as Jupyter leaves it: with the marks of a run."""
    cells = [
        nbformat.v4.new_code_cell(
            source, id=f"c{i}", execution_count=7, metadata={"scrolled": True}
        )
        for i, source in enumerate(sources)
    ]
    metadata = {"language_info": {"name": "python", "version": "3.99"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)


def run_command(monkeypatch, path):
    """The exit code of the command for one file."""
    monkeypatch.setattr(sys, "argv", ["run_notebooks", str(path)])
    return run_notebooks.main()


def test_the_command_stores_what_cells_say_and_again_the_same_bytes(tmp_path, monkeypatch):
    path = tmp_path / "tiny.ipynb"
    write_notebook(path, *CELLS)
    assert run_command(monkeypatch, path) == 0
    stored = path.read_bytes()
    assert run_command(monkeypatch, path) == 0
    assert path.read_bytes() == stored
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.ipynb"]

    notebook = run_notebooks.read_notebook(path)
    assert notebook.metadata == run_notebooks.METADATA
    text, widget, bar, picture = notebook.cells
    assert [output.text for output in text.outputs] == ["1.25 and more\n"]
    assert not widget.outputs and not bar.outputs
    assert list(picture.outputs[0].data) == ["image/png", "text/plain"]
    assert b'execution_count": 7' not in stored and b"scrolled" not in stored


@pytest.mark.parametrize(
    "source, said",
    [
        ("print(1)\n1 / 0", "ZeroDivisionError"),
        ("import sys\nprint('a warning', file=sys.stderr)", "stderr: a warning"),
        ("from mingpt.interpretability.notebook_figure import Figure\nFigure((11, 1))", "1000"),
    ],
)
def test_a_notebook_that_cannot_be_stored_stays_as_it_is(
    source, said, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "tiny.ipynb"
    write_notebook(path, source)
    before = path.read_bytes()
    assert run_command(monkeypatch, path) == 2
    message = capsys.readouterr().err
    assert said in message and str(path) in message
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [None, "no notebook", "[1]", "{}"])
def test_what_is_no_notebook_is_named(content, tmp_path, monkeypatch, capsys):
    path = tmp_path / "other.ipynb"
    if content is not None:
        path.write_text(content)
    assert run_command(monkeypatch, path) == 2
    assert f"{path} cannot be read as a notebook" in capsys.readouterr().err


def test_numbers_may_differ_in_their_last_digit_and_nothing_else_may():
    check_texts("a -0.00 5.2 0.350", "a 0.00 5.2 0.351")
    for other in ("a 0.00 5.3 0.350", "a 0.00 5.2 0.352", "b 0.00 5.2 0.350", "a 0.00 5.2 0.35"):
        with pytest.raises(AssertionError):
            check_texts("a -0.00 5.2 0.350", other)


# As the heatmap of the experiment: a few cells matter, all others are one number.
VALUES = torch.full((12, 11), 7.4)
VALUES[:6, 1] = -8.6
VALUES[6:, 10] = -8.7


def draw(values=VALUES, dpi=100, scale=None, **settings):
    """The picture of a heatmap as a notebook stores it; settings: of matplotlib."""
    with rc_context(settings):
        columns = [f"{i} token" for i in range(11)]
        figure = draw_heatmap(values, columns, "a title\nof two lines", "logits", scale=scale)
        file = io.BytesIO()
        figure.savefig(file, dpi=dpi)
    stored = run_notebooks.clean_picture(base64.b64encode(file.getvalue()))
    return run_notebooks.decode_picture(stored)


@pytest.fixture(scope="module")
def picture():
    return draw()


def changed(layer, position, value):
    values = VALUES.clone()
    values[layer, position] = value
    return values


@pytest.mark.parametrize(
    "other",
    [
        {"values": changed(5, 10, -1)},
        {"values": changed(2, 1, 7.4)},
        {"values": VALUES[[0, 1, 2, 3, 4, 6, 5, 7, 8, 9, 10, 11]]},
        {"scale": Scale("coolwarm")},
    ],
    ids=["a cell with an effect", "a cell without one", "two layers swapped", "other colours"],
)
def test_a_picture_of_something_else_is_found_out(picture, other):
    fresh = draw(**other)
    for is_same in (True, False):
        with pytest.raises(AssertionError):
            compare_pictures(picture, fresh, is_same)


def test_by_the_same_matplotlib_a_picture_shows_a_change_of_a_logit(picture):
    compare_pictures(picture, draw(changed(3, 4, 7.41)), is_same=True)  # too little for one digit
    with pytest.raises(AssertionError):
        compare_pictures(picture, draw(changed(3, 4, 6.2)), is_same=True)


@pytest.mark.parametrize(
    "settings", [{"dpi": 80}, {"text.hinting": "none"}, {"font.family": "DejaVu Serif"}]
)
def test_the_same_picture_by_another_matplotlib_passes(picture, settings):
    compare_pictures(picture, draw(**settings), is_same=False)
