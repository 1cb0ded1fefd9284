"""Areas against sums by hand, AUROC against pairs, files against EAP-IG's own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mingpt.interpretability.circuit_files import read_circuit, write_circuit
from mingpt.interpretability.circuit_measures import SHARES, CurveAreas, auroc, curve_areas
from mingpt.interpretability.circuits import Circuit, find_circuit
from mingpt.interpretability.graph import layout, run_circuit
from mingpt.model import GPT, GPTConfig
from tests.handmade import CIRCUIT, INDUCTION_HEAD, PREVIOUS_TOKEN_HEAD, induction_model

PUBLISHED = Path(__file__).parents[2] / "shared" / "reference" / "mib_ioi_eap_ig.json"


@pytest.fixture(scope="module")
def handmade():
    return find_circuit(induction_model(), "induction", "path_patching")


def test_the_areas_are_those_of_the_trapezoids():
    curve = CurveAreas((0.1, 0.5, 1), by_sign=[0, 1, 3], by_size=[0.5, 2, 1])
    assert curve.cpr == pytest.approx(0.4 * 0.5 + 0.5 * 2)
    assert curve.cmd == pytest.approx(0.4 * (0.5 + 1) / 2 + 0.5 * (1 + 0) / 2)


def test_each_point_of_the_curve_is_a_circuit_of_that_share_of_the_edges(handmade):
    """The oracle keeps the first edges, those on no path too, and runs them."""
    curve = curve_areas(handmade)
    graph = handmade.runs.graph
    assert curve.shares == SHARES and len(curve.by_sign) == len(curve.by_size) == len(SHARES)
    assert curve.by_sign[-1] == pytest.approx(1, abs=1e-5)
    clean, corrupted = handmade.runs.unpatched().mean(1).tolist()
    edges = graph.possible.nonzero().tolist()
    for sign, faithfulness in ((True, curve.by_sign), (False, curve.by_size)):
        for share, value in zip(SHARES[-3:], faithfulness[-3:]):
            score = handmade.scores if sign else handmade.scores.abs()
            first = sorted(edges, key=lambda edge: -score[tuple(edge)].item())
            mask = torch.zeros_like(graph.possible)
            for r, s in first[: int(share * len(edges))]:
                mask[r, s] = True
            # Edges on no path change nothing: with or without them it is the same run.
            ends = [
                run_circuit(base, mask.double().to(handmade.scores))
                for base in handmade.runs.batches
            ]
            metric = torch.cat(ends).mean().item()
            assert value == pytest.approx((metric - corrupted) / (clean - corrupted), abs=1e-5)


def test_an_order_that_begins_with_the_known_circuit_is_better_than_one_that_ends_with_it(handmade):
    worst = replace(handmade, scores=1 / (1 + handmade.scores.abs()) * handmade.runs.graph.possible)
    best_areas, worst_areas = curve_areas(handmade), curve_areas(worst)
    assert best_areas.cpr > worst_areas.cpr + 0.3
    assert best_areas.cmd < worst_areas.cmd - 0.3
    assert auroc(handmade, CIRCUIT) > 0.99
    assert auroc(worst, CIRCUIT) < 0.01


def test_auroc_is_the_share_of_pairs_in_the_right_order_and_half_where_equal(handmade):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-3, 4, handmade.scores.shape, generator=generator).float()
    circuit = replace(handmade, scores=scores)
    graph = handmade.runs.graph
    wins = []
    for r, s in graph.possible.nonzero().tolist():
        if (graph.senders[s], graph.readers[r]) in CIRCUIT:
            continue
        for sender, reader in CIRCUIT:
            own = abs(scores[graph.readers.index(reader), graph.senders.index(sender)])
            other = abs(scores[r, s])
            wins.append(1 if own > other else 0.5 if own == other else 0)
    assert auroc(circuit, CIRCUIT) == pytest.approx(sum(wins) / len(wins))
    same = replace(handmade, scores=torch.ones_like(scores))
    assert auroc(same, CIRCUIT) == 0.5


def test_a_circuit_survives_eap_igs_file(handmade, tmp_path):
    path = tmp_path / "circuit.json"
    handmade.to_json(path, "eap-ig")
    data = json.loads(path.read_text())
    assert data["cfg"] == {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 128}
    assert len(data["edges"]) == int(handmade.runs.graph.possible.sum())
    previous = "a{}.h{}".format(*PREVIOUS_TOKEN_HEAD)
    induction = "a{}.h{}".format(*INDUCTION_HEAD)
    assert data["nodes"][previous]["in_graph"] and data["nodes"]["input"]["in_graph"]
    assert data["edges"][f"{previous}->{induction}<k>"]["in_graph"]
    assert data["edges"][f"{previous}->{induction}<k>"]["score"] > 1
    again = Circuit.from_json(path, handmade.model, "induction")
    assert again.mask.equal(handmade.mask)
    torch.testing.assert_close(again.scores, handmade.scores.to(again.scores), rtol=1e-6, atol=0)


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"the published numbers are not at {PUBLISHED}")
def test_the_published_circuit_of_gpt2_maps_one_to_one():
    with torch.device("meta"):
        model = GPT(GPTConfig(model_type="gpt2", vocab_size=50257, block_size=1024))
    graph = layout(model)
    method, mask, scores = read_circuit(PUBLISHED, graph)
    data = json.loads(PUBLISHED.read_text())
    assert method == "eap-ig" and int(graph.possible.sum()) == len(data["edges"]) == 32491
    assert int(mask.sum()) == sum(edge["in_graph"] for edge in data["edges"].values())
    for name, edge in (
        ("input->a0.h0<k>", (graph.readers.index("0.0.k"), graph.senders.index("embed"))),
        ("a11.h10->logits", (graph.readers.index("logits"), graph.senders.index("11.10"))),
        ("m3->a7.h2<v>", (graph.readers.index("7.2.v"), graph.senders.index("mlp 3"))),
        ("a4.h5->m4", (graph.readers.index("mlp 4"), graph.senders.index("4.5"))),
    ):
        assert scores[edge].item() == pytest.approx(data["edges"][name]["score"])


def test_a_circuit_that_was_read_is_written_the_same(handmade, tmp_path):
    handmade.to_json(tmp_path / "first.json", "eap-ig")
    method, mask, scores = read_circuit(tmp_path / "first.json", handmade.runs.graph)
    again = replace(handmade, mask=mask, scores=scores, method=method)
    write_circuit(again, tmp_path / "second.json", "eap-ig")
    first = json.loads((tmp_path / "first.json").read_text())
    assert first == json.loads((tmp_path / "second.json").read_text())


def test_a_file_of_another_model_is_refused(handmade, tmp_path):
    path = tmp_path / "circuit.json"
    handmade.to_json(path, "eap-ig")
    data = json.loads(path.read_text())
    for change, message in (
        ({"cfg": data["cfg"] | {"n_heads": 3}}, "2 layers of 3 heads"),
        ({"edges": {"input->m0": {"score": 1, "in_graph": True}}}, "has 1 edges"),
        ({"cfg": 3}, "is no circuit"),
    ):
        path.write_text(json.dumps(data | change))
        with pytest.raises(ValueError, match=message):
            Circuit.from_json(path, handmade.model, "induction")
    with pytest.raises(ValueError, match='"own" or "eap-ig"'):
        handmade.to_json(path, "EAP")
