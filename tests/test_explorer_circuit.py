"""What the explorer says of circuits, against find_circuit on the same pair."""

import base64
import csv
import io

import pytest

from mingpt.explorer import circuit_view, pictures, scripts
from mingpt.explorer.circuit_view import circuit, faithfulness
from mingpt.explorer.worker import Cache
from mingpt.interpretability.circuits import find_circuit
from mingpt.interpretability.graph import layout
from mingpt.model import GPT
from tests.test_explorer_scripts import run

CLEAN = "Michelle Jones was a top-notch student. Michelle"
CORRUPTED = "Michelle Smith was a top-notch student. Michelle"
BODY = {
    "clean": CLEAN,
    "corrupted": CORRUPTED,
    "clean_answer": None,
    "corrupted_answer": None,
    "method": "eap",
}
METHODS = {"eap": "eap", "exact": "path_patching"}


@pytest.fixture(scope="module")
def model():
    return GPT.from_pretrained("names")


@pytest.fixture(scope="module", params=METHODS)
def searched(request, model):
    """(body, cache, events of the search, find_circuit of the 400 largest edges)."""
    body = BODY | {"method": request.param}
    cache = Cache()
    events = list(circuit(model, body, cache))
    pair = (CLEAN, CORRUPTED, " Jones", " Smith")
    right = find_circuit(model, [pair], METHODS[request.param], n_edges=400)
    return body, cache, events, right


def test_the_edges_are_those_of_the_library(searched, model):
    _, _, events, right = searched
    found = {(edge["sender"], edge["reader"]): edge["score"] for edge in events[-1]["edges"]}
    assert len(found) == len(events[-1]["edges"]) == 400
    for edge in right.edges:
        assert found[edge[:2]] == pytest.approx(edge.score, abs=1e-5)
    sizes = [abs(edge["score"]) for edge in events[-1]["edges"]]
    assert sizes == sorted(sizes, reverse=True)
    assert events[-1]["total"] == layout(model).possible.sum()
    clean, corrupted = right.runs.unpatched()[:, 0].tolist()
    assert events[-1]["clean"] == pytest.approx(clean) and clean > 0
    assert events[-1]["corrupted"] == pytest.approx(corrupted) and corrupted < 0


def test_a_search_says_how_far_it_is(searched):
    """The shares rise; with exact there are many, between which the worker can stop it."""
    body, _, events, _ = searched
    shares = [event["share"] for event in events[:-1]]
    assert shares == sorted(set(shares)) and shares[0] == 0
    if body["method"] == "exact":
        assert shares[-1] == 1 and len(shares) > 40


def test_searches_for_two_pairs_can_take_turns(model):
    cache = Cache()
    other = BODY | {"corrupted": CORRUPTED.replace("Smith", "White")}
    searches = [circuit(model, body, cache) for body in (BODY, other)]
    for events in zip(*searches):
        last = events
    for body, event in zip((BODY, other), last):
        assert event == list(circuit(model, body, Cache()))[-1]
        assert event == list(circuit(model, body, cache))[-1]


@pytest.mark.parametrize("size, removed", [(40, 0), (40, 3), (400, 0)])
def test_the_faithfulness_is_that_of_the_same_circuit(searched, model, size, removed):
    body, cache, events, right = searched
    edges = events[-1]["edges"]
    out = [{"sender": edge["sender"], "reader": edge["reader"]} for edge in edges[:removed]]
    (event,) = faithfulness(model, body | {"size": size, "removed": out}, cache)
    smaller = [(edge["sender"], edge["reader"]) for edge in edges[size:] + out]
    chosen = right.without(smaller)
    kept = {(edges[i]["sender"], edges[i]["reader"]) for i in event["edges"]}
    assert kept == {edge[:2] for edge in chosen.edges}
    assert event["faithfulness"] == pytest.approx(chosen.faithfulness(), abs=1e-6)
    assert event["metric"] == pytest.approx(chosen.runs.metric(chosen.mask), abs=1e-4)


def test_a_circuit_without_any_edge_is_the_corrupted_run(model):
    cache = Cache()
    *_, found = circuit(model, BODY, cache)
    (event,) = faithfulness(model, BODY | {"size": 1, "removed": found["edges"][:1]}, cache)
    assert event["edges"] == [] and event["faithfulness"] == 0
    assert event["metric"] == pytest.approx(found["corrupted"])


def test_a_pair_is_run_and_scored_once(model, monkeypatch):
    """The scores stay when another pair comes and goes, the runs, which are large, do not."""
    recorded = []
    scored = []
    record = circuit_view.record_task
    score = circuit_view.score
    monkeypatch.setattr(
        circuit_view, "record_task", lambda *given: recorded.append(1) or record(*given)
    )
    monkeypatch.setattr(circuit_view, "score", lambda *given: scored.append(1) or score(*given))
    cache = Cache()
    other = BODY | {"corrupted": CORRUPTED.replace("Smith", "Brown")}
    for body in (BODY, BODY, other, BODY):
        list(circuit(model, body, cache))
        list(faithfulness(model, body | {"size": 20, "removed": []}, cache))
    assert len(recorded) == 3
    assert len(scored) == 2


def test_a_search_that_is_broken_off_goes_on_where_it_was(searched, model):
    """Unless another pair came meanwhile, whose runs took the place."""
    body, _, events, _ = searched
    cache = Cache()

    def begin(count):
        search = circuit(model, body, cache)
        shares = [next(search).get("share") for _ in range(count)]
        search.close()
        return shares

    if body["method"] == "exact":
        right = [event["share"] for event in events[:6]]
        assert begin(3) == right[:3] and begin(3) == right[3:]
        list(circuit(model, body | {"corrupted": CORRUPTED.replace("Smith", "Brown")}, cache))
    assert begin(1) == [0]
    assert list(circuit(model, body, cache))[-1] == events[-1]


def test_a_search_that_fails_begins_anew(model, monkeypatch):
    cache = Cache()
    with monkeypatch.context() as patch:
        patch.setattr(circuit_view, "score_edges", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(circuit(model, BODY, cache))
    assert list(circuit(model, BODY, cache))[0] == {"share": 0}


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"clean_answer": " Smith", "corrupted_answer": " Jones"}, "on 0 of 1 pairs"),
        ({"method": "acdc"}, "method must be one of eap, exact; got 'acdc'"),
        ({"corrupted": CORRUPTED + " Smith"}, "11 tokens and the corrupted one 12"),
        ({"size": 401}, "size must be a whole number from 1 to 400; got 401"),
        ({"size": 0}, "size must be a whole number"),
        ({"removed": "all"}, "removed must be a list of edges"),
        ({"removed": [{"sender": "embed"}]}, "removed must be a list of edges"),
        ({"removed": None}, "removed must be a list of edges"),
        ({"removed": [{"sender": "embed", "reader": "12.0.q"}]}, "no edge from 'embed' to"),
        ({"removed": [{"sender": [], "reader": {}}]}, "removed must be a list of edges"),
        (
            {"removed": [{"sender": "a" * 65, "reader": "logits"}]},
            "removed must be a list of edges",
        ),
        ({"removed": [{"sender": "embed", "reader": "logits"}] * 401}, "edges, 400 at most"),
    ],
)
def test_a_request_that_makes_no_circuit_is_refused(model, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        list(faithfulness(model, BODY | {"size": 5, "removed": []} | changes, Cache()))


def test_a_pair_whose_runs_would_fill_the_memory_is_refused(model, monkeypatch):
    """(1 + 12 * (4 + 1) senders + 14 * 12 vectors) * 128 numbers are 117,248 bytes for a token."""
    assert len(layout(model).senders) == 61
    monkeypatch.setattr(circuit_view, "MOST_BYTES", 11 * 117_248)
    list(circuit(model, BODY, Cache()))
    monkeypatch.setattr(circuit_view, "MOST_BYTES", 11 * 117_248 - 1)
    with pytest.raises(ValueError, match="takes texts of up to 10 tokens, got 11"):
        list(circuit(model, BODY, Cache()))


def test_the_script_picture_and_table_of_a_circuit_have_its_edges(searched, model, tmp_path):
    body, cache, events, _ = searched
    removed = [{name: events[-1]["edges"][1][name] for name in ("sender", "reader")}]
    body = body | {"model": "names", "of": "circuit", "size": 30, "removed": removed}
    (event,) = faithfulness(model, body, cache)
    edges = [events[-1]["edges"][i] for i in event["edges"]]
    ((script,), (table,), (picture,)) = (
        list(view(model, body, cache)) for view in (scripts.script, pictures.csv, pictures.picture)
    )
    assert len(script["text"].splitlines()) <= 12
    *printed, last = run(script["text"], tmp_path)
    for line, edge in zip(printed, edges, strict=True):
        assert float(line[0]) == pytest.approx(edge["score"], rel=1e-4)
    assert float(last[1]) == pytest.approx(event["faithfulness"], rel=1e-4)
    header, *rows = csv.reader(io.StringIO(table["text"]))
    assert header == ["edge", "score in logits"]
    names = [f"{edge['sender']} to {edge['reader']}" for edge in edges]
    assert [row[0] for row in rows] == names
    assert [float(row[1]) for row in rows] == [edge["score"] for edge in edges]
    assert base64.b64decode(picture["png"]).startswith(b"\x89PNG")
