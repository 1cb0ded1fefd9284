"""Which heads and MLPs, talking to which, produce the answer?

The model is taken as a graph (see graph.py): an edge is what a head's queries, keys or values, an
MLP or the logits read of an earlier part's output. An edge is taken out by giving its reader the
value of the corrupted run. A circuit is a set of edges that suffices for the answer on the given
pairs. It need not be the only one, nor what the model does on other texts.
Sources: Wang et al. 2022 (arXiv 2211.00593), Conmy et al. 2023 (ACDC, arXiv 2304.14997), Syed et
al. 2023 (EAP, arXiv 2310.10348), Hanna et al. 2024 (EAP-IG, arXiv 2403.17806), Marks et al. 2024
(completeness, arXiv 2403.19647).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mingpt.common import AnyPath, progress_bar
from mingpt.interpretability import figures, results
from mingpt.interpretability.acdc import prune_edges
from mingpt.interpretability.circuit_figure import draw_circuit
from mingpt.interpretability.circuit_files import read_circuit, write_circuit
from mingpt.interpretability.edges import edge_attribution as edge_attribution
from mingpt.interpretability.edges import score_edges
from mingpt.interpretability.graph import Layout, TaskRuns, layout, record_task
from mingpt.interpretability.tasks import Task
from mingpt.model import GPT

if TYPE_CHECKING:  # matplotlib and pandas are imported where they are needed
    from pandas import DataFrame

    from mingpt.interpretability.notebook_figure import Figure

# For each method the one of edge_attribution; acdc scores edges in its own way.
METHODS = {"path_patching": "exact", "eap": "eap", "eap-ig": "eap-ig-inputs", "acdc": "acdc"}
MOST_ARROWS = 200  # of the picture that a notebook shows unasked


class Edge(NamedTuple):
    """What one part of the model reads of another's output, and how much it matters."""

    sender: str  # embed, 3.5 or mlp 3
    reader: str  # 3.5.q (or .k or .v), mlp 3 or logits
    score: float  # in logits; positive = it supports the clean answer


def find_circuit(
    model: GPT,
    task: Task,
    method: str = "eap-ig",
    threshold: float = 0.01,
    n_edges: int | None = None,
) -> "Circuit":
    """The Circuit of the edges that matter enough: `threshold` times the effect of all together.

    task: "induction", "name_recall", "ioi" or "greater_than" (100 pairs, seed 0), or pairs (clean,
    corrupted, clean answer, corrupted answer): texts or ids of equal token lengths, and for each
    answer a token or a list of tokens.
    method: "path_patching" goes by the exact score of every edge, "eap" and "eap-ig" by estimates;
    with n_edges so many of the largest are taken instead. "acdc" goes from the logits down and
    takes each edge out for good if the metric falls by less without it. Edges on no path from the
    embedding to the logits are left out.
    ValueError, with the number, if the model prefers the corrupted answer on most pairs.
    Cost: as edge_attribution; acdc, 2 passes and the layers above for every edge. The base runs of
    all pairs are held together: see record_base_runs for the memory.
    """
    _check_options(method, threshold, n_edges)
    runs = record_task(model, task)
    clean, corrupted = runs.unpatched()
    check_answers(clean, corrupted)
    smallest = threshold * (clean - corrupted).mean().item()
    graph = runs.graph
    if method == "acdc":
        scores, mask = prune_edges(runs, smallest)
    else:
        progress = progress_bar(runs.batches, desc=method, unit="batch")
        scores = score_edges(progress, METHODS[method]).cpu()
        if n_edges:
            mask = first_edges(graph, scores.abs(), n_edges)
        else:
            mask = (scores.abs() >= smallest) & graph.possible
    return Circuit(model, runs, connected(graph, mask), scores, method)


def _check_options(method, threshold, n_edges):
    """ValueError, saying what the options can be, where they are something else."""
    is_size = n_edges is None or (n_edges >= 1 and method != "acdc")
    if method not in METHODS or not threshold >= 0 or not is_size:
        raise ValueError(
            f"method must be one of {', '.join(METHODS)}, threshold from 0, n_edges from 1, "
            f"not with acdc; got {method!r}, {threshold}, {n_edges}"
        )


def check_answers(clean: Tensor, corrupted: Tensor) -> None:
    """ValueError unless the metric (pairs,) says that the model does the task, of clean texts."""
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


def first_edges(graph: Layout, values: Tensor, size: int) -> Tensor:
    """The mask of the possible edges with the `size` largest values (R,S)."""
    lowest = float("-inf")
    order = values.masked_fill(~graph.possible, lowest).flatten().argsort(descending=True)
    mask = torch.zeros(len(order), dtype=torch.bool)
    mask[order[:size]] = True
    return mask.view_as(graph.possible) & graph.possible


def connected(graph: Layout, mask: Tensor) -> Tensor:
    """The mask without the edges on no path from the embedding to the logits."""
    names = [*graph.senders, "logits"]
    node_of = torch.tensor([names.index(node) for node in graph.nodes])  # (R,)
    # An edge that goes may leave another node without input, or unread: until nothing changes.
    while True:
        reads = torch.zeros(len(names), dtype=torch.bool)
        reads[node_of[mask.any(1)]] = True
        reads[0] = True  # the embedding reads the text
        is_read = torch.ones(len(names), dtype=torch.bool)  # the logits are: they are the answer
        is_read[:-1] = mask.any(0)
        connected = mask & reads[:-1] & is_read[node_of][:, None]
        if connected.equal(mask):
            return mask
        mask = connected


def _without(mask, reader, sender):
    """A copy of the mask without one edge."""
    mask = mask.clone()
    mask[reader, sender] = False
    return mask


@dataclass
class Circuit:
    """Some edges of a model, with their scores.

    What they are worth is measured on the pairs that the circuit was found on, or on the `task`
    that a method is given: other pairs, as find_circuit takes them.
    """

    model: GPT
    runs: TaskRuns  # of the pairs that the circuit was found on
    mask: Tensor  # bool (R,S), as in `layout`
    scores: Tensor  # (R,S): of all edges that the method scored, in logits
    method: str

    @property
    def edges(self) -> list[Edge]:
        """[Edge], the largest effect first."""
        graph = self.runs.graph
        edges = [
            Edge(graph.senders[s], graph.readers[r], self.scores[r, s].item())
            for r, s in self.mask.nonzero().tolist()
        ]
        return sorted(edges, key=lambda edge: -abs(edge.score))

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes that have edges, from the embedding to the logits."""
        graph = self.runs.graph
        names: set[str] = set()
        for r, s in self.mask.nonzero().tolist():
            names |= {graph.nodes[r], graph.senders[s]}
        return [name for name in [*graph.senders, "logits"] if name in names]

    def faithfulness(self, task: Task | None = None) -> float:
        """The share of the metric's fall that is undone with all outside the circuit corrupted.

        0: the metric is as in the corrupted run; 1: as in the clean run.
        """
        return self.runs_of(task).share(self.mask)

    def completeness(self, task: Task | None = None) -> float:
        """The same with the circuit corrupted and all else clean; near 0 = nothing is missing.

        Source: Marks et al. 2024.
        """
        others = self.runs.graph.possible & ~self.mask
        return self.runs_of(task).share(others)

    def minimality(self, task: Task | None = None) -> dict[tuple[str, str], float]:
        """{(sender, reader): faithfulness lost without this edge}; near 0 = it is not needed."""
        graph = self.runs.graph
        runs = self.runs_of(task)
        whole = runs.share(self.mask)
        edges = self.mask.nonzero().tolist()
        lost = {}
        for r, s in progress_bar(edges, desc="minimality", unit="edge"):
            without = runs.share(_without(self.mask, r, s))
            lost[graph.senders[s], graph.readers[r]] = whole - without
        return lost

    def curve(
        self,
        sizes: Iterable[int] = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
        task: Task | None = None,
    ) -> list[tuple[int, float]]:
        """[(edges, faithfulness)] of so many of the largest edges, as far as they connect."""
        runs = self.runs_of(task)
        masks = [self._top(size) for size in sizes if size <= self._n_scored()]
        return [(int(mask.sum()), runs.share(mask)) for mask in masks]

    def without(self, edges: Iterable[tuple[str, str]]) -> "Circuit":
        """A Circuit without some edges, [(sender, reader)], and without what they connected."""
        graph = self.runs.graph
        mask = self.mask.clone()
        for sender, reader in edges:
            if sender not in graph.senders or reader not in graph.readers:
                raise ValueError(
                    f"no edge from {sender!r} to {reader!r}; an edge goes from embed, 3.5 or mlp 3 "
                    "to 3.5.q (or .k or .v), mlp 3 or logits"
                )
            mask[graph.readers.index(reader), graph.senders.index(sender)] = False
        return replace(self, mask=connected(graph, mask))

    def smaller(self, faithfulness: float = 0.9) -> "Circuit":
        """A Circuit of few edges that is this faithful, not guaranteed to be the smallest.

        Binary search on the number of top-scored edges, of all that were scored; then greedy
        removal: each edge is tried once, the least score first, and goes if it can. ValueError if
        all together are not so faithful.
        """
        # All the time `many` edges are enough and `few` are not.
        few = 0
        many = self._n_scored()
        reached = self.runs.share(self._top(many))
        if not reached >= faithfulness:
            raise ValueError(
                f"all {many} edges with a score are {reached:.3f} faithful, not {faithfulness}; "
                "ask for less"
            )
        while many - few > 1:
            size = (few + many) // 2
            if self.runs.share(self._top(size)) >= faithfulness:
                many = size
            else:
                few = size
        mask = self._remove_edges(self._top(many), faithfulness)
        return replace(self, mask=mask)

    def to_json(self, path: AnyPath, form: str = "own") -> None:
        """Write method, shape and edges; form "eap-ig": as the field's tools read and write it."""
        write_circuit(self, path, form)

    @classmethod
    def from_json(cls, path: AnyPath, model: GPT, task: Task) -> "Circuit":
        """The Circuit of to_json, or of a file of EAP-IG's.

        ValueError where the model has another shape.
        """
        method, mask, scores = read_circuit(path, layout(model))
        return cls(model, record_task(model, task), mask, scores, method)

    def plot(self, path: AnyPath | None = None) -> "Figure":
        """The matplotlib Figure: the embedding at the top, arrows as wide as the edges' scores.

        Cost: as faithfulness, which stands in the title.
        """
        if not self.mask.any():
            raise ValueError("the circuit has no edges to draw; take a lower threshold")
        title = (
            f"Circuit of {self.model.name or 'a model'}: {len(self.edges)} edges ({self.method}), "
            f"faithfulness {self.faithfulness():.3f}"
        )
        return figures.shown(draw_circuit(self.nodes, self.edges, title), path)

    def _repr_png_(self):
        # More arrows are a tangle of megabytes, which plot() draws all the same.
        return results.picture(self) if self.mask.sum() <= MOST_ARROWS else None

    def to_dataframe(self) -> "DataFrame":
        """The pandas DataFrame of the edges: sender, reader, score; the largest effect first."""
        return results.data_frame(self.edges, Edge._fields)

    def __repr__(self):
        return f"Circuit({self.method}, {int(self.mask.sum())} edges, {len(self.nodes)} nodes)"

    def runs_of(self, task: Task | None) -> TaskRuns:
        """The base runs of other pairs, or of the circuit's own."""
        if task is None:
            return self.runs
        return record_task(self.model, task)

    def _n_scored(self):
        """How many edges have a score: all, or with acdc those that stayed."""
        return int(self.scores.count_nonzero())

    def _top(self, size):
        """The mask of the `size` largest edges, as far as they connect."""
        graph = self.runs.graph
        return connected(graph, first_edges(graph, self.scores.abs(), size))

    def _remove_edges(self, mask, faithfulness):
        """The mask without each edge that it can do without, tried once, the least score first."""
        edges = mask.nonzero().tolist()
        edges.sort(key=lambda edge: abs(self.scores[tuple(edge)].item()))
        for r, s in progress_bar(edges, desc="shrinking", unit="edge"):
            # An edge may have gone already, with another one that connected it.
            if mask[r, s]:
                fewer = connected(self.runs.graph, _without(mask, r, s))
                if self.runs.share(fewer) >= faithfulness:
                    mask = fewer
        return mask
