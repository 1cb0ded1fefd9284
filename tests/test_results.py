"""What results show of themselves: a picture in a notebook, a table for pandas, a short text."""

import io
import sys
from dataclasses import replace

import pytest

from mingpt.interpretability.activation_patching import patch_layers
from mingpt.interpretability.attention_analysis import compute_attention_stats
from mingpt.interpretability.circuits import find_circuit
from mingpt.interpretability.induction import study_induction
from mingpt.interpretability.logit_lens import analyze, compare_predictions, measure_convergence
from mingpt.interpretability.neuron_analysis import activation_stats
from mingpt.model import GPT

PNG = b"\x89PNG\r\n\x1a\n"
CLEAN = "Michelle Jones was a top-notch student. Michelle"
CORRUPTED = "Michelle Smith was a top-notch student. Michelle"
SET_UP = f"""
from mingpt.interpretability.activation_patching import patch_layers
from mingpt.interpretability.logit_lens import analyze
from mingpt.model import GPT

model = GPT.from_pretrained("names")
result = patch_layers(model, {CLEAN!r}, {CORRUPTED!r})
"""


@pytest.fixture(scope="module")
def model():
    return GPT.from_pretrained("names")


@pytest.fixture(scope="module")
def circuit(model):
    pairs = [(CLEAN, CORRUPTED, " Jones", " Smith")]
    return find_circuit(model, pairs, "eap", n_edges=40)


def test_in_a_notebook_a_picture_appears_once_and_only_when_asked_for():
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient")
    from experiments.run_notebooks import run_notebook

    pictures = {
        SET_UP: 0,
        "result": 1,
        "result.plot()": 1,
        "figure = result.plot()": 0,
        "result.plot('heatmap.png')": 1,
        "analyze(model, 'Anna Brown. Anna')": 1,
    }
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in pictures]
    run_notebook(notebook)
    for cell in notebook.cells:
        shown = sum("image/png" in output.get("data", {}) for output in cell.outputs)
        assert shown == pictures[cell.source], cell.source


def test_a_result_is_a_picture_for_a_notebook_and_a_line_elsewhere(model, circuit):
    result = patch_layers(model, CLEAN, CORRUPTED)
    for shown in (result, circuit, analyze(model, CLEAN)):
        assert shown._repr_png_().startswith(PNG)
        assert "\n" not in repr(shown)


def test_a_result_that_cannot_be_drawn_is_shown_as_text_and_says_why(circuit, capsys):
    empty = circuit.without([(edge.sender, edge.reader) for edge in circuit.edges])
    assert empty._repr_png_() is None
    assert "no picture: the circuit has no edges to draw" in capsys.readouterr().err


def test_a_circuit_of_very_many_edges_is_shown_as_text(circuit):
    everything = replace(circuit, mask=circuit.runs.graph.possible)
    assert everything._repr_png_() is None
    assert repr(everything) == "Circuit(eap, 4555 edges, 62 nodes)"


def test_a_large_picture_is_bounded_in_a_notebook():
    from PIL import Image

    from mingpt.interpretability.notebook_figure import LONGEST, Figure

    figure = Figure((60, 10))
    picture = Image.open(io.BytesIO(figure._repr_png_()))
    assert picture.size == (LONGEST, LONGEST // 6)


def test_results_of_many_numbers_have_a_short_text(model):
    study = study_induction(model, kinds=())
    texts = [
        repr(study),
        repr(compute_attention_stats(model, CLEAN)),
        repr(measure_convergence(model, CLEAN)),
        repr(activation_stats(model, [CLEAN])),
        repr(compare_predictions(model, [CLEAN, CORRUPTED])),
    ]
    for text in texts:
        assert len(text.splitlines()) <= 14 and max(map(len, text.splitlines())) <= 100
    mean = study.attention_difference.mean().item()
    assert f"32x12x4   mean {mean:.3g}" in texts[0]
    assert texts[4] == compare_predictions(model, [CLEAN, CORRUPTED]).table


@pytest.mark.parametrize("site", ["resid_post", "z"])
def test_the_table_of_a_sweep_has_a_row_for_each_cell(model, site):
    pytest.importorskip("pandas", reason="needs pandas")
    result = patch_layers(model, CLEAN, CORRUPTED, site=site)
    table = result.to_dataframe("logit_diff", "kl")
    assert len(table) == result.logit_diff.numel()
    row = table.iloc[-3]
    axes = [name for name in ("layer", "head", "position") if name in table]
    cell = tuple(int(row[name]) for name in axes)
    assert cell[-1] == 8 and row.token == result.tokens[8]
    assert row.logit_diff == pytest.approx(result.logit_diff[cell].item())
    assert row.kl == pytest.approx(result.kl[cell].item())
    assert list(result.to_dataframe()) == [*axes, "token", "logit_diff"]


def test_the_table_of_a_sweep_over_whole_sequences_has_no_positions(model):
    pytest.importorskip("pandas", reason="needs pandas")
    result = patch_layers(model, CLEAN, CORRUPTED, each_position=False)
    table = result.to_dataframe()
    assert list(table) == ["layer", "logit_diff"]
    assert table.logit_diff.tolist() == result.logit_diff.tolist()


def test_the_table_of_the_lens_has_a_row_for_each_of_the_k_tokens(model):
    pytest.importorskip("pandas", reason="needs pandas")
    predictions = analyze(model, CLEAN, k=3)
    table = predictions.to_dataframe()
    assert len(table) == 12 * 11 * 3
    found = table[(table.layer == 7) & (table.position == 10) & (table["rank"] == 2)].iloc[0]
    assert found.token == predictions.tokens[10]
    assert found.prediction == predictions.top[7][10][2]
    assert found.probability == pytest.approx(predictions.probability[7, 10, 2].item())
    assert found.logit == pytest.approx(predictions.logits[7, 10, 2].item())


def test_the_tables_of_a_circuit_and_of_heads(model, circuit):
    pytest.importorskip("pandas", reason="needs pandas")
    table = circuit.to_dataframe()
    assert list(table.itertuples(index=False, name=None)) == circuit.edges

    study = study_induction(model, kinds=())
    heads = study.to_dataframe()
    row = heads[(heads.layer == 5) & (heads["head"] == 1)].iloc[0]
    mean = study.attention_difference[:, 5, 1].mean().item()
    assert row.attention_difference == pytest.approx(mean)


def test_without_pandas_a_table_says_what_to_install(circuit, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ValueError, match="pip install pandas"):
        circuit.to_dataframe()
