"""What the explorer says of heads, against the library's functions on the same texts."""

import base64
import csv
import io

import numpy
import pytest

from mingpt.explorer import pictures, scripts
from mingpt.explorer.attention_view import attention, explain
from mingpt.explorer.worker import Cache
from mingpt.interpretability.attention_analysis import explain_attention, extract_attention
from mingpt.model import GPT
from tests.test_explorer_scripts import run

BODY = {
    "clean": "Michelle Jones was a top-notch student. Michelle",
    "corrupted": "Michelle Smith was a top",  # one run is shown, so the other may be shorter
    "run": "clean",
}
CELL = BODY | {"layer": 5, "head": 3, "query": 10, "key": 1}


@pytest.fixture(scope="module")
def model():
    return GPT.from_pretrained("names")


@pytest.mark.parametrize("run", ["clean", "corrupted"])
def test_the_patterns_are_those_of_the_run_that_is_asked_for(model, run):
    (event,) = attention(model, BODY | {"run": run}, Cache())
    patterns = extract_attention(model, BODY[run])
    L, H, T, _ = patterns.shape
    assert event["across"] == H
    assert event["heads"] == [f"{layer}.{head}" for layer in range(L) for head in range(H)]
    assert len(event["tokens"]) == T and event["tokens"][3] == "3 ␣a"
    weights = numpy.frombuffer(base64.b64decode(event["weights"]), "<u2")
    rows, columns = numpy.tril_indices(T)
    right = patterns.numpy()[..., rows, columns]
    assert abs(weights.reshape(right.shape) / 1000 - right).max() < 0.00051


@pytest.mark.parametrize("against", [None, "others"])
def test_a_weight_is_explained_as_the_library_does(model, against):
    (event,) = explain(model, CELL | {"against": against}, Cache())
    others = [0, *range(2, 11)] if against else []
    right = explain_attention(model, BODY["clean"], 5, 3, 10, 1, others)
    for name in ("score", "baseline", "weight"):
        assert event[name] == pytest.approx(getattr(right, name), rel=1e-5)
    largest = [(entry["query"], entry["key"]) for entry in event["largest"]]
    assert largest == [entry[:2] for entry in right.largest(12)]
    assert event["largest"][0]["value"] == pytest.approx(right.largest(1)[0][2], rel=1e-5)


def test_what_the_parts_add_sums_to_the_score(model):
    """The twelve largest parts are named; what is left stands in a last row."""
    (event,) = explain(model, CELL | {"against": "others"}, Cache())
    for side in ("by_query", "by_key"):
        parts = [entry["part"] for entry in event[side]]
        assert len(set(parts)) == 13 and parts[-1] == "all others"
        total = sum(entry["value"] for entry in event[side])
        assert total == pytest.approx(event["score"] - event["baseline"], abs=1e-3)
    # The first layer has two parts and biases: all are named.
    (event,) = explain(model, CELL | {"layer": 0}, Cache())
    assert {entry["part"] for entry in event["by_key"]} == {"token", "position", "biases"}


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"run": "patched"}, "run must be one of clean, corrupted; got 'patched'"),
        ({"run": None}, "run must be one of"),
        ({"clean": 3}, "clean must be a text"),
        ({"clean": ""}, "the clean text has 0 tokens; this model takes 1 to 256"),
        ({"clean": "a " * 300}, "the clean text has .* tokens; this model takes 1 to 256"),
        ({"layer": 12}, "layer must be a whole number from 0 to 11; got 12"),
        ({"head": True}, "head must be a whole number from 0 to 3"),
        ({"query": 11}, "query must be a whole number from 0 to 10"),
        ({"query": 4, "key": 5}, "key must be a whole number from 0 to 4; got 5"),
        ({"against": ["others"]}, "against must be one of others"),
        ({"query": 0, "key": 0, "against": "others"}, "the first token sees itself alone"),
    ],
)
def test_a_request_that_asks_for_nothing_there_is_refused(model, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(explain(model, CELL | changes, Cache()))


def keep(model, body):
    """(script, table, bytes of the picture) of a view."""
    views = (scripts.script, pictures.csv, pictures.picture)
    script, table, picture = (list(view(model, body, Cache()))[-1] for view in views)
    return script["text"], table["text"], base64.b64decode(picture["png"])


def test_the_script_picture_and_table_of_a_head_have_its_weights(model, tmp_path):
    script, table, picture = keep(model, CELL | {"of": "attention"})
    right = extract_attention(model, BODY["clean"])[5, 3]
    for query, *weights in run(script, tmp_path):
        row = right[int(query), : int(query) + 1]
        assert [float(weight) for weight in weights] == pytest.approx(row.tolist(), abs=0.00051)
    header, *rows = csv.reader(io.StringIO(table))
    assert header[0] == "query" and header[2] == "1  Jones" and rows[10][0] == "10  Michelle"
    assert [float(weight) for weight in rows[10][1:]] == right[10].tolist()
    assert picture.startswith(b"\x89PNG")


def test_the_script_picture_and_table_of_an_explanation_have_its_numbers(model, tmp_path):
    body = CELL | {"of": "explain", "against": "others"}
    script, table, picture = keep(model, body)
    (event,) = explain(model, body, Cache())
    first, *lines = run(script, tmp_path)
    assert float(first[1]) == pytest.approx(event["score"], rel=1e-4)
    right = [*event["largest"], *event["by_query"][:-1], *event["by_key"][:-1]]
    for line, entry in zip(lines, right, strict=True):
        assert float(line[0]) == pytest.approx(entry["value"], rel=1e-4, abs=1e-5)
    header, *rows = csv.reader(io.StringIO(table))
    assert len(rows) == len(header) - 1 == 28  # token, position, 5 * (4 heads + 1 MLP), biases
    assert picture.startswith(b"\x89PNG")
