"""Circuits in files: our own JSON, and EAP-IG's, in which the field exchanges its circuits.

Ours holds the edges of the circuit. EAP-IG's holds every edge of the model, each with its score and
whether it is in the circuit. Scores have the sign that EAP-IG's code gives them, which is ours too:
positive = supports the answer. Files of other versions may have the other sign, as MIB's of IOI on
GPT-2 has: there the edge from head 9.9, which moves the name, to the logits is negative.
Source of the format: Hanna et al. 2024's code (github.com/hannamw/EAP-IG), and the files of the MIB
benchmark (arXiv 2504.13151).
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mingpt.common import AnyPath, atomic_write
from mingpt.interpretability.graph import Layout

if TYPE_CHECKING:  # circuits imports this module
    from mingpt.interpretability.circuits import Circuit

FORMS = ("own", "eap-ig")


def write_circuit(circuit: "Circuit", path: AnyPath, form: str = "own") -> None:
    """Write a Circuit as JSON. form: "own" or "eap-ig"."""
    if form not in FORMS:
        raise ValueError(f'form must be "own" or "eap-ig"; got {form!r}')
    graph = circuit.runs.graph
    if form == "own":
        data = {
            "method": circuit.method,
            "layers": graph.n_layer,
            "heads": graph.n_head,
            "edges": circuit.edges,
        }
    else:
        data = _as_eap_ig(circuit)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def read_circuit(path: AnyPath, graph: Layout) -> tuple[str, Tensor, Tensor]:
    """(method, mask (R,S), scores (R,S)) of a file of either form, for a model of this Layout.

    ValueError where it is no circuit of such a model.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if "cfg" in data:
            return ("eap-ig", *_read_eap_ig(data, graph))
        return (data["method"], *_read_own(data, graph))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no circuit of this model, as to_json or EAP-IG writes it: {error}"
        ) from error


def _read_own(data, graph):
    """(mask, scores) of the edges in the circuit."""
    _check_shape(graph, data["layers"], data["heads"])
    scores = torch.zeros(graph.possible.shape)
    mask = torch.zeros_like(graph.possible)
    for sender, reader, score in data["edges"]:
        edge = graph.readers.index(reader), graph.senders.index(sender)
        scores[edge] = score
        mask[edge] = True
    return mask & graph.possible, scores


def _check_shape(graph, layers, heads):
    if (layers, heads) != (graph.n_layer, graph.n_head):
        raise ValueError(f"it is of a model with {layers} layers of {heads} heads")


def _read_eap_ig(data, graph):
    """(mask, scores) of all edges."""
    shape = data["cfg"]
    _check_shape(graph, shape["n_layers"], shape["n_heads"])
    scores = torch.zeros(graph.possible.shape)
    mask = torch.zeros_like(graph.possible)
    places = _eap_ig_edges(graph)
    if data["edges"].keys() != places.keys():
        raise ValueError(f"it has {len(data['edges'])} edges, this model {len(places)}")
    for name, edge in data["edges"].items():
        scores[places[name]] = edge["score"]
        mask[places[name]] = edge["in_graph"]
    return mask, scores


def _as_eap_ig(circuit):
    """The data of EAP-IG's file: cfg, nodes and edges."""
    graph = circuit.runs.graph
    nodes = {}
    for name in [*graph.senders, "logits"]:
        nodes[_eap_ig_name(name)] = {"in_graph": name in circuit.nodes}
    edges = {}
    for name, place in _eap_ig_edges(graph).items():
        score = circuit.scores[place].item()
        edges[name] = {"score": score, "in_graph": circuit.mask[place].item()}
    shape = {
        "n_layers": graph.n_layer,
        "n_heads": graph.n_head,
        "parallel_attn_mlp": False,
        "d_model": circuit.model.config.n_embd,
    }
    return {"cfg": shape, "nodes": nodes, "edges": edges}


def _eap_ig_edges(graph):
    """{EAP-IG's name of an edge: (reader, sender), its place in the mask}."""
    senders = [_eap_ig_name(name) for name in graph.senders]
    readers = [_eap_ig_name(name) for name in graph.readers]
    places = graph.possible.nonzero().tolist()
    return {f"{senders[s]}->{readers[r]}": (r, s) for r, s in places}


def _eap_ig_name(name):
    """embed -> input, 3.5 -> a3.h5, 3.5.q -> a3.h5<q>, mlp 3 -> m3, logits as it is."""
    name = re.sub(r"^(\d+)\.(\d+)", r"a\1.h\2", name)
    name = re.sub(r"\.([qkv])$", r"<\1>", name)
    return name.replace("mlp ", "m").replace("embed", "input")
