"""Which heads and MLPs, talking to which, produce the answer?

The model is taken as a graph (see graph.py): an edge is what a head's queries, keys or values, an
MLP or the logits read of an earlier part's output. An edge is taken out by giving its reader the
value of the corrupted run. A circuit is a set of edges that suffices for the answer on the given
pairs. It need not be the only one, nor what the model does on other texts.
Sources: Wang et al. 2022 (arXiv 2211.00593), Conmy et al. 2023 (ACDC, arXiv 2304.14997), Syed et
al. 2023 (EAP, arXiv 2310.10348), Hanna et al. 2024 (EAP-IG, arXiv 2403.17806), Marks et al. 2024
(completeness, arXiv 2403.19647).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from mingpt.common import atomic_write
from mingpt.interpretability import figures
from mingpt.interpretability.edges import edge_attribution, score_edges  # noqa: F401, found here too
from mingpt.interpretability.graph import layout, record_base_runs, run_circuit  # noqa: F401
from mingpt.interpretability.tasks import Batch, load_task  # noqa: F401
from mingpt.model import GPT

# For each method the one of edge_attribution; acdc scores edges on its own way.
METHODS = {"path_patching": "exact", "eap": "eap", "eap-ig": "eap-ig-inputs", "acdc": None}


class Edge(NamedTuple):
    sender: str  # embed, 3.5 or mlp 3
    reader: str  # 3.5.q (or .k or .v), mlp 3 or logits
    score: float  # in logits; positive = it supports the right answer


def find_circuit(model, task, method="eap-ig", threshold=0.01, n_edges=None):
    """The Circuit of the edges that matter at least `threshold` times as much as corrupting
    everything.

    task: "induction", "name_recall", "ioi" or "greater_than" (100 pairs, seed 0), or pairs (clean,
    corrupted, right answer, wrong answer): texts or ids of equal token lengths, and for each answer
    a token or a list of tokens. method: "path_patching" goes by the exact score of every edge,
    "eap" and "eap-ig" by estimates; with n_edges so many of the largest are taken instead. "acdc"
    goes from the logits down and takes each edge out for good if the metric falls by less without
    it. Edges on no path from the embedding to the logits are left out.
    ValueError, with the number, if the model prefers the wrong answer on most pairs. Cost: as
    edge_attribution; acdc, 2 passes and the layers above for every edge.
    """
    _check_options(method, threshold, n_edges)
    batches = load_task(model, task)
    bases = [record_base_runs(model, batch) for batch in batches]
    clean, corrupted = unpatched_metrics(bases)
    _check_answers(clean, corrupted)
    smallest = threshold * (clean - corrupted).mean().item()
    graph = bases[0].graph
    if method == "acdc":
        scores, mask = _acdc(bases, smallest)
    else:
        progress = tqdm(bases, desc=method, unit="batch", disable=None)
        scores = score_edges(progress, METHODS[method]).cpu()
        if n_edges:
            mask = _largest(graph, scores, n_edges)
        else:
            mask = (scores.abs() >= smallest) & graph.possible
    return Circuit(model, bases, _connected(graph, mask), scores, method)


def _check_options(method, threshold, n_edges):
    is_known = method in METHODS and threshold >= 0
    if n_edges is not None:
        is_known = is_known and method != "acdc" and n_edges >= 1
    if not is_known:
        raise ValueError(
            f"method must be one of {', '.join(METHODS)}, threshold from 0, n_edges from 1, "
            f"not with acdc; got {method!r}, {threshold}, {n_edges}"
        )


def _check_answers(clean, corrupted):
    """ValueError unless the metric (pairs,) says that the model does the task, and less so when
    corrupted.
    """
    right = clean > 0
    if not right.float().mean() > 0.5:
        raise ValueError(
            f"the model prefers the right answer on {right.sum()} of {len(clean)} pairs "
            f"(mean logit difference {clean.mean():.2f}): it does not do this task; "
            "take another task or model"
        )
    if not clean.mean() > corrupted.mean():
        raise ValueError(
            f"the right answer is ahead by {clean.mean():.2f} in the clean texts and by "
            f"{corrupted.mean():.2f} in the corrupted ones, on average; "
            "corrupt them so that it falls behind"
        )


def unpatched_metrics(bases):
    """The metric of each pair's clean and of its corrupted run: 2 x (pairs,)."""
    return torch.cat([base.unpatched() for base in bases], 1)


def _metric(bases, mask, start=0):
    """The mean over the pairs of run_circuit's metric."""
    return torch.cat([run_circuit(base, mask, start) for base in bases]).mean().item()


def _share(bases, mask):
    """(metric along the edges in mask - corrupted) / (clean - corrupted), of the means over the
    pairs.
    """
    clean, corrupted = unpatched_metrics(bases).mean(1).tolist()
    return (_metric(bases, mask) - corrupted) / (clean - corrupted)


def _acdc(bases, smallest):
    """(scores, mask of the edges that stay): the score is the drop of the metric when the edge is
    tried, else 0.
    """
    graph = bases[0].graph
    mask = graph.possible.clone()
    scores = torch.zeros(mask.shape)
    metric = _metric(bases, mask)
    readers = range(len(graph.readers) - 1, -1, -1)
    for reader in tqdm(readers, desc="acdc", unit="reader", disable=None):
        node = graph.nodes[reader]
        if node != "logits" and not mask[:, graph.senders.index(node)].any():
            mask[reader] = False  # what nobody reads need not read
            continue
        # From the last sender down; below this reader's layer no edge is out yet.
        for sender in reversed(mask[reader].nonzero()[:, 0].tolist()):
            mask[reader, sender] = False
            without = _metric(bases, mask, graph.layer_of(reader))
            if metric - without < smallest:
                metric = without
            else:
                mask[reader, sender] = True
                scores[reader, sender] = metric - without
    return scores, mask


def _largest(graph, scores, size):
    """The mask of the possible edges with the `size` largest |score|."""
    order = scores.abs().masked_fill(~graph.possible, -1).flatten().argsort(descending=True)
    mask = torch.zeros(len(order), dtype=torch.bool)
    mask[order[:size]] = True
    return mask.view_as(graph.possible) & graph.possible


def _connected(graph, mask):
    """The mask without the edges on no path from the embedding to the logits."""
    names = [*graph.senders, "logits"]
    node_of = torch.tensor([names.index(node) for node in graph.nodes])  # (R,)
    while True:
        reads = torch.zeros(len(names), dtype=torch.bool)
        reads[node_of[mask.any(1)]] = True
        reads[0] = True  # the embedding reads the text
        is_read = torch.cat((mask.any(0), torch.tensor([True])))  # the logits are what is asked for
        connected = mask & reads[:-1] & is_read[node_of][:, None]
        if connected.equal(mask):
            return mask
        mask = connected


def _without(mask, reader, sender):
    mask = mask.clone()
    mask[reader, sender] = False
    return mask


@dataclass
class Circuit:
    """Some edges of the model, with scores; what it is worth is measured on the task's pairs or on
    others.

    task, in the methods: other pairs than those it was found on, as find_circuit takes them.
    """

    model: GPT
    bases: list  # BaseRuns of the task's pairs
    mask: torch.Tensor  # bool (R,S), as in `layout`
    scores: torch.Tensor  # (R,S): of all edges that the method scored, in logits
    method: str

    @property
    def edges(self):
        """[Edge], the largest effect first."""
        graph = self.bases[0].graph
        edges = []
        for r, s in self.mask.nonzero().tolist():
            edges.append(Edge(graph.senders[s], graph.readers[r], self.scores[r, s].item()))
        return sorted(edges, key=lambda edge: -abs(edge.score))

    @property
    def nodes(self):
        """The names of the nodes that have edges, from the embedding to the logits."""
        graph = self.bases[0].graph
        names = set()
        for r, s in self.mask.nonzero().tolist():
            names |= {graph.nodes[r], graph.senders[s]}
        return [name for name in [*graph.senders, "logits"] if name in names]

    def faithfulness(self, task=None):
        """The metric with all outside the circuit corrupted: 0 as in the corrupted run, 1 as in the
        clean run.
        """
        return _share(self._bases(task), self.mask)

    def completeness(self, task=None):
        """The same with the circuit corrupted and all else clean (Marks et al. 2024): near 0 =
        nothing is missing.
        """
        possible = self.bases[0].graph.possible
        return _share(self._bases(task), possible & ~self.mask)

    def minimality(self, task=None):
        """{(sender, reader): faithfulness lost without this edge}; near 0 = the circuit does not
        need it.
        """
        graph = self.bases[0].graph
        bases = self._bases(task)
        whole = _share(bases, self.mask)
        edges = self.mask.nonzero().tolist()
        lost = {}
        for r, s in tqdm(edges, desc="minimality", unit="edge", disable=None):
            without = _share(bases, _without(self.mask, r, s))
            lost[graph.senders[s], graph.readers[r]] = whole - without
        return lost

    def curve(self, sizes=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), task=None):
        """[(edges, faithfulness)] of so many edges with the largest scores, as far as they
        connect.
        """
        bases = self._bases(task)
        n_scored = self._n_scored()
        masks = [self._top(size) for size in sizes if size <= n_scored]
        return [(int(mask.sum()), _share(bases, mask)) for mask in masks]

    def smaller(self, faithfulness=0.9):
        """A Circuit of few edges that is this faithful, not guaranteed to be the smallest.

        Binary search on the number of top-scored edges, of all that were scored; then greedy
        removal: each edge is tried once, the least score first, and goes if it can. ValueError if
        all together are not so faithful.
        """
        few = 0
        many = self._n_scored()
        reached = _share(self.bases, self._top(many))
        if not reached >= faithfulness:
            raise ValueError(
                f"all {many} edges with a score are {reached:.3f} faithful, not {faithfulness}; "
                "ask for less"
            )
        while many - few > 1:
            size = (few + many) // 2
            if _share(self.bases, self._top(size)) >= faithfulness:
                many = size
            else:
                few = size
        mask = self._remove_edges(self._top(many), faithfulness)
        return Circuit(self.model, self.bases, mask, self.scores, self.method)

    def to_json(self, path):
        """Write method, shape and edges."""
        graph = self.bases[0].graph
        data = {
            "method": self.method,
            "layers": graph.n_layer,
            "heads": graph.n_head,
            "edges": self.edges,
        }
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path, model, task):
        """The Circuit of to_json; ValueError where the model has another shape."""
        bases = [record_base_runs(model, batch) for batch in load_task(model, task)]
        graph = bases[0].graph
        scores = torch.zeros(graph.possible.shape)
        mask = torch.zeros_like(graph.possible)
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if (data["layers"], data["heads"]) != (graph.n_layer, graph.n_head):
                raise ValueError(f"the model has {data['layers']} layers of {data['heads']} heads")
            for sender, reader, score in data["edges"]:
                edge = graph.readers.index(reader), graph.senders.index(sender)
                scores[edge] = score
                mask[edge] = True
            method = data["method"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no circuit of this model, as to_json writes it: {error}"
            ) from error
        return cls(model, bases, mask & graph.possible, scores, method)

    def plot(self, path=None):
        """The matplotlib Figure: the embedding at the top, an arrow per edge, as wide as its
        score.
        """
        if not self.mask.any():
            raise ValueError("the circuit has no edges to draw; take a lower threshold")
        return figures.shown(figures.draw_graph(self.nodes, self.edges, repr(self)), path)

    def __repr__(self):
        return f"Circuit({self.method}, {int(self.mask.sum())} edges, {len(self.nodes)} nodes)"

    def _bases(self, task):
        """The BaseRuns of other pairs, or of the circuit's own."""
        if task is None:
            return self.bases
        return [record_base_runs(self.model, batch) for batch in load_task(self.model, task)]

    def _n_scored(self):
        return int((self.scores != 0).sum())

    def _top(self, size):
        """The mask of the `size` edges with the largest scores, as far as they connect."""
        graph = self.bases[0].graph
        return _connected(graph, _largest(graph, self.scores, size))

    def _remove_edges(self, mask, faithfulness):
        """The mask without each edge that it can do without, tried once, the least score first."""
        edges = mask.nonzero().tolist()
        edges.sort(key=lambda edge: abs(self.scores[tuple(edge)].item()))
        for r, s in tqdm(edges, desc="shrinking", unit="edge", disable=None):
            # An edge may have gone already, with another one that connected it.
            if mask[r, s]:
                fewer = _connected(self.bases[0].graph, _without(mask, r, s))
                if _share(self.bases, fewer) >= faithfulness:
                    mask = fewer
        return mask
