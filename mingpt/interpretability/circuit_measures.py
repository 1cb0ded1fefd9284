"""How good is an order of edges? The measures by which the field compares its methods.

A method that finds circuits puts a model's edges into an order. CPR and CMD ask what circuits of
all sizes, cut from that order, are worth on the pairs. AUROC asks whether known edges come first.
None of them says whether another circuit does as well.
Source: the MIB benchmark (Mueller et al. 2025, arXiv 2504.13151), section 3, and its code. Differs:
AUROC there goes by circuits of ten sizes, here by all sizes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from mingpt.interpretability.circuits import Circuit, connected, first_edges
from mingpt.interpretability.tasks import Task

SHARES = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1,
)  # of all edges, as MIB takes them


@dataclass
class CurveAreas:
    """Faithfulness of circuits of growing size, cut from two orders of the edges."""

    shares: tuple[float, ...]  # of all edges
    by_sign: list[float]  # faithfulness at each share, the most positive score first
    by_size: list[float]  # the same, the largest |score| first

    @property
    def cpr(self) -> float:
        """Circuit performance ratio: the area under by_sign. Larger is better.

        A circuit without the edges that hurt the answer may be worth more than 1.
        """
        return self._area(self.by_sign)

    @property
    def cmd(self) -> float:
        """Circuit-model distance: the area of |1 - by_size|. 0 is best: as the whole model."""
        return self._area([abs(1 - faithfulness) for faithfulness in self.by_size])

    def _area(self, heights):
        return torch.trapezoid(torch.tensor(heights), torch.tensor(self.shares)).item()


def curve_areas(circuit: Circuit, task: Task | None = None) -> CurveAreas:
    """CurveAreas of the order that a Circuit's scores give, on its own pairs or on a task's.

    Edges that the method gave no score, as acdc's that went, come in no particular order. Cost:
    20 runs along a part of the edges.
    """
    graph = circuit.runs.graph
    runs = circuit.runs_of(task)
    n_edges = int(graph.possible.sum())

    def faithfulness(values):
        sizes = [int(share * n_edges) for share in SHARES]
        masks = [connected(graph, first_edges(graph, values, size)) for size in sizes]
        return [runs.share(mask) for mask in masks]

    by_sign = faithfulness(circuit.scores)
    by_size = faithfulness(circuit.scores.abs())
    return CurveAreas(SHARES, by_sign, by_size)


def auroc(circuit: Circuit, known: Iterable[tuple[str, str]]) -> float:
    """The probability that a known edge has a larger |score| than another edge; 0.5 = by chance.

    known: [(sender, reader)], the edges of a circuit that is known, such as a hand-written model's.
    Equal scores count one half.
    """
    graph = circuit.runs.graph
    in_known = torch.zeros_like(graph.possible)
    for sender, reader in known:
        in_known[graph.readers.index(reader), graph.senders.index(sender)] = True
    scores = circuit.scores.abs()
    others = scores[graph.possible & ~in_known]
    ranks = [(score > others).sum() + (score == others).sum() / 2 for score in scores[in_known]]
    better = torch.stack(ranks)
    return (better.sum() / (len(better) * len(others))).item()
