"""Which heads and MLPs, talking to which, produce the answer?

The model as a graph: its nodes are the embedding, the heads, the MLPs and the logits; an edge is what one node reads
of an earlier one's output in the residual stream, a head by its queries, keys and values separately. An edge is taken
out by giving its reader the output that the earlier node has in the corrupted run. A circuit is the set of edges that
suffices for the answer on the given pairs; it need not be the only one, nor what the model does on other texts.
Sources: Wang et al. 2022 (arXiv 2211.00593), Conmy et al. 2023 (ACDC, arXiv 2304.14997), Syed et al. 2023 (EAP, arXiv
2310.10348), Hanna et al. 2024 (EAP-IG, arXiv 2403.17806), Marks et al. 2024 (completeness, arXiv 2403.19647).
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from mingpt.common import atomic_write
from mingpt.interpretability import figures, runs
from mingpt.interpretability.edges import _unpatched, edge_attribution, layout, run_circuit
from mingpt.interpretability.tasks import TASKS, Batch, as_batches  # noqa: F401
from mingpt.model import GPT

METHODS = {
    "path_patching": "exact",
    "eap": "eap",
    "eap-ig": "eap-ig-inputs",
    "acdc": None,
}  # by which edge_attribution


def find_circuit(model, task, method="eap-ig", threshold=0.01, n_edges=None):
    """The Circuit whose edges matter at least threshold times the effect of corrupting everything.

    task: "induction", "name_recall", "ioi" or "greater_than" (100 pairs, seed 0), or pairs (clean, corrupted, right
    answer, wrong answer): texts or ids of equal token lengths, and for each answer a token or a list of tokens.
    method: "path_patching" keeps the edges whose exact score is so large, "eap" and "eap-ig" go by their estimate; with
    n_edges the so many largest are kept instead. "acdc" goes from the logits down and takes out for good each edge
    without which the metric falls by less. What is not on a way from the embedding to the logits is left out.
    ValueError, with the number, if the model prefers the wrong answer on most pairs. Cost: as edge_attribution; acdc,
    2 passes and the layers above for every edge.
    """
    if (
        method not in METHODS
        or not threshold >= 0
        or (n_edges is not None and (method == "acdc" or n_edges < 1))
    ):
        known = f"method must be one of {', '.join(METHODS)}, threshold from 0, n_edges from 1, not with acdc"
        raise ValueError(f"{known}; got {method!r}, {threshold}, {n_edges}")
    runs.check_model(model)
    batches = as_batches(model, task)
    clean, corrupted = _unpatched(model, batches)
    if not (clean > 0).float().mean() > 0.5:
        found = (
            f"{(clean > 0).sum()} of {len(clean)} pairs (mean logit difference {clean.mean():.2f})"
        )
        todo = "it does not do this task; take another task or model"
        raise ValueError(f"the model prefers the right answer on {found}: {todo}")
    if not clean.mean() > corrupted.mean():
        found = f"by {clean.mean():.2f} in the clean texts and by {corrupted.mean():.2f} in the corrupted ones"
        raise ValueError(
            f"the right answer is ahead {found}, on average; corrupt them so that it falls behind"
        )
    least = threshold * (clean - corrupted).mean().item()
    if method == "acdc":
        scores, mask = _acdc(model, batches, least)
    else:
        scores = edge_attribution(model, batches, METHODS[method]).cpu()
        possible = layout(model).possible
        mask = _top(scores, possible, n_edges) if n_edges else (scores.abs() >= least) & possible
    return Circuit(model, batches, _connected(model, mask), scores, method)


@torch.no_grad()
def _acdc(model, batches, least):
    """(scores, mask of the edges that stay); the score: how far the metric falls when the edge is tried, else 0."""
    senders, readers, nodes, mask = layout(model)
    scores, count = torch.zeros(mask.shape), sum(len(batch.clean) for batch in batches)

    def metric(layer):
        return sum(run_circuit(model, batch, mask, layer).sum().item() for batch in batches) / count

    now = metric(0)
    for reader in tqdm(range(len(readers) - 1, -1, -1), desc="acdc", unit="reader", disable=None):
        if reader < len(readers) - 1 and not mask[:, senders.index(nodes[reader])].any():
            mask[reader] = False  # nobody reads the node
        layer = min(reader // (3 * model.config.n_head + 1), model.config.n_layer - 1)
        for sender in mask[reader].nonzero()[:, 0].flip(0).tolist():
            mask[reader, sender] = False
            without = metric(layer)
            if now - without < least:
                now = without
            else:
                mask[reader, sender], scores[reader, sender] = True, now - without
    return scores, mask


def _top(scores, possible, size):
    """The mask of the so many possible edges with the largest |score|."""
    order = scores.abs().masked_fill(~possible, -1).flatten().argsort(descending=True)
    mask = torch.zeros(order.shape, dtype=torch.bool)
    mask[order[:size]] = True
    return mask.view_as(possible) & possible


def _connected(model, mask):
    """mask without the edges that are on no way from the embedding to the logits."""
    senders, _, nodes, _ = layout(model)
    inputs = {node: [r for r, name in enumerate(nodes) if name == node] for node in nodes}
    while True:
        fed = torch.tensor([name == "embed" or bool(mask[inputs[name]].any()) for name in senders])
        read = torch.tensor(
            [name == "logits" or bool(mask[:, senders.index(name)].any()) for name in nodes]
        )
        kept = mask & fed & read[:, None]
        if kept.equal(mask):
            return mask
        mask = kept


@dataclass
class Circuit:
    """Some edges of the model, with scores; what it is worth is measured on the task's pairs or on others."""

    model: torch.nn.Module
    task: list  # of Batch
    mask: torch.Tensor  # bool (readers, senders), as in `layout`
    scores: torch.Tensor  # of all edges that the method scored, in logits
    method: str

    @property
    def edges(self):
        """[(sender, reader, score)], the largest effect first."""
        senders, readers, _, _ = layout(self.model)
        found = [
            (senders[s], readers[r], self.scores[r, s].item())
            for r, s in self.mask.nonzero().tolist()
        ]
        return sorted(found, key=lambda edge: -abs(edge[2]))

    @property
    def nodes(self):
        """The names of the nodes that have edges, from the embedding up."""
        senders, _, nodes, _ = layout(self.model)
        found = {
            i for pair in self.mask.nonzero().tolist() for i in (nodes[pair[0]], senders[pair[1]])
        }
        return [name for name in [*senders, "logits"] if name in found]

    def faithfulness(self, task=None):
        """The metric with all outside the circuit corrupted: 0 as in the corrupted run, 1 as in the clean run."""
        return self._share(task)(self.mask)

    def completeness(self, task=None):
        """The same with the circuit corrupted and all else clean (Marks et al. 2024): near 0 = nothing is missing."""
        return self._share(task)(layout(self.model).possible & ~self.mask)

    def minimality(self, task=None):
        """{(sender, reader): faithfulness lost without this edge}; near 0 = the circuit does not need it."""
        senders, readers, _, _ = layout(self.model)
        share, lost = self._share(task), {}
        whole = share(self.mask)
        for r, s in tqdm(
            self.mask.nonzero().tolist(), desc="minimality", unit="edge", disable=None
        ):
            lost[senders[s], readers[r]] = whole - share(_without(self.mask, r, s))
        return lost

    def curve(self, sizes=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), task=None):
        """[(edges, faithfulness)] of the so many edges with the largest scores, as far as they connect."""
        share = self._share(task)
        masks = [self._largest(size) for size in sizes if size <= (self.scores != 0).sum()]
        return [(int(mask.sum()), share(mask)) for mask in masks]

    def smaller(self, faithfulness=0.9):
        """A Circuit of few edges that is this faithful: as many of the largest scores as it takes, of all that were
        scored; then each is tried once, the least first, and goes if it can. That there is no smaller one is not said.
        ValueError if all of them together are not as faithful.
        """
        share, few, many = self._share(), 0, int((self.scores != 0).sum())
        if not (reached := share(self._largest(many))) >= faithfulness:
            why = f"all {many} edges with a score are {reached:.3f} faithful, not {faithfulness}"
            raise ValueError(f"{why}; ask for less")
        while many - few > 1:
            size = (few + many) // 2
            few, many = (few, size) if share(self._largest(size)) >= faithfulness else (size, many)
        mask = self._largest(many)
        order = sorted(
            mask.nonzero().tolist(), key=lambda edge: abs(self.scores[tuple(edge)].item())
        )
        for r, s in tqdm(order, desc="shrinking", unit="edge", disable=None):
            fewer = _connected(self.model, _without(mask, r, s))
            if mask[r, s] and share(fewer) >= faithfulness:
                mask = fewer
        return Circuit(self.model, self.task, mask, self.scores, self.method)

    def to_json(self, path):
        """Write method, shape and edges."""
        config = self.model.config
        data = {
            "method": self.method,
            "layers": config.n_layer,
            "heads": config.n_head,
            "edges": self.edges,
        }
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path, model, task):
        """The Circuit of to_json; ValueError where the model has another shape."""
        senders, readers, _, possible = layout(model)
        scores, mask = torch.zeros(possible.shape), torch.zeros_like(possible)
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if (data["layers"], data["heads"]) != (model.config.n_layer, model.config.n_head):
                raise ValueError(f"the model has {data['layers']} layers of {data['heads']} heads")
            for sender, reader, score in data["edges"]:
                edge = readers.index(reader), senders.index(sender)
                scores[edge], mask[edge] = score, True
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no circuit of this model, as to_json writes it: {error}"
            ) from error
        return cls(model, as_batches(model, task), mask & possible, scores, data["method"])

    def plot(self, path=None):
        """The matplotlib Figure: layers upwards, an arrow per edge, as wide as its score; dashed if negative."""
        if not self.edges:
            raise ValueError("the circuit has no edges to draw; take a lower threshold")
        return figures.shown(draw_graph(self), path)

    def __repr__(self):
        return f"Circuit({self.method}, {int(self.mask.sum())} edges, {len(self.nodes)} nodes)"

    def _largest(self, size):
        """The mask of the so many edges with the largest scores, as far as they connect."""
        return _connected(self.model, _top(self.scores, layout(self.model).possible, size))

    def _share(self, task=None):
        """f(mask): (metric of the mask - corrupted) / (clean - corrupted), of the means over the pairs."""
        batches = self.task if task is None else as_batches(self.model, task)
        clean, corrupted = _unpatched(self.model, batches).mean(1).tolist()

        def share(mask):
            found = (
                torch.cat([run_circuit(self.model, batch, mask) for batch in batches]).mean().item()
            )
            return (found - corrupted) / (clean - corrupted)

        return share


def _without(mask, reader, sender):
    mask = mask.clone()
    mask[reader, sender] = False
    return mask


def draw_graph(circuit):
    """The Figure of a Circuit: its nodes in the layers' order, an arrow per edge, coloured by what reads it."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import FancyArrowPatch

    rows, ends = (
        {},
        {"embed": -0.5, "logits": circuit.model.config.n_layer},
    )  # height -> nodes, node -> height
    for node in circuit.nodes:
        layer = node.removeprefix("mlp ").split(".")[0]
        height = ends[node] if node in ends else int(layer) + 0.5 * node.startswith("mlp")
        rows.setdefault(height, []).append(node)
    place = {}
    for number, height in enumerate(sorted(rows)):
        for i, node in enumerate(rows[height]):
            side = (
                0.28 * (-1) ** number
            )  # neighbours in height a little apart, so that arrows do not run through nodes
            place[node] = (i - (len(rows[height]) - 1) / 2 + side, number)
    width = max(len(nodes) for nodes in rows.values())
    figure = Figure(
        figsize=(2.2 + 1.6 * max(width, 3), 1.6 + 0.85 * len(rows)), layout="constrained"
    )
    axes = figure.subplots()
    colours = {
        "q": "#0072b2",
        "k": "#d55e00",
        "v": "#009e73",
        "": "#555555",
    }  # told apart by colour-blind people too
    largest = max((abs(score) for _, _, score in circuit.edges), default=1)
    for sender, reader, score in circuit.edges:
        node, _, site = (
            reader.rpartition(".")
            if reader[-1] in "qkv" and reader[0].isdigit()
            else (reader, "", "")
        )
        bend = {"q": 0.12, "k": -0.12, "v": 0.0, "": 0.06}[site]
        shape = {
            "arrowstyle": "-|>",
            "connectionstyle": f"arc3,rad={bend}",
            "shrinkA": 13,
            "shrinkB": 13,
        }
        line = {
            "lw": 0.6 + 3.4 * abs(score) / largest,
            "ls": "-" if score >= 0 else "--",
            "color": colours[site],
        }
        axes.add_patch(
            FancyArrowPatch(
                place[sender], place[node], mutation_scale=9, alpha=0.8, **shape, **line
            )
        )
    for node, (x, y) in place.items():
        axes.text(
            x,
            y,
            node,
            ha="center",
            va="center",
            bbox={"boxstyle": "round", "fc": "white", "ec": "black"},
        )
    axes.set_xlim(-width / 2 - 0.6, width / 2 + 0.6)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.axis("off")
    words = {"q": "read as query", "k": "as key", "v": "as value", "": "by an MLP or the logits"}
    lines = [
        Line2D([], [], color=colour, lw=2, label=words[site]) for site, colour in colours.items()
    ]
    lines.append(Line2D([], [], color="black", lw=2, ls="--", label="against the right answer"))
    axes.legend(
        handles=lines,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=3,
        frameon=False,
        fontsize="small",
    )
    axes.set_title(
        f"{circuit!r}: arrows as wide as their scores, up to {largest:.2f}", fontsize="medium"
    )
    return figure


def main():
    """Find a small circuit on 100 pairs, measure it on others, write its picture and file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", help="a name or a folder, as GPT.from_pretrained takes it")
    parser.add_argument("--task", default="name_recall", choices=TASKS)
    parser.add_argument("--method", default="path_patching", choices=METHODS)
    parser.add_argument(
        "--keep", type=float, default=0.9, help="faithfulness of the circuit; default: %(default)s"
    )
    parser.add_argument(
        "--pairs", type=int, default=300, help="pairs to measure it on; default: %(default)s"
    )
    parser.add_argument(
        "--output", default="circuit.png", help="default: %(default)s; and a .json beside it"
    )
    options = parser.parse_args()
    try:
        figures.check_output(options.output)
        model = GPT.from_pretrained(options.model)
        others = as_batches(model, options.task, options.pairs, seed=1)
        circuit = find_circuit(model, options.task, options.method).smaller(options.keep)
        clean, corrupted = _unpatched(model, others)
        print(
            f"{options.pairs} other pairs: right on {(clean > 0).float().mean():.1%}, mean logit difference",
            end=" ",
        )
        print(f"{clean.mean():.2f}, corrupted {corrupted.mean():.2f}")
        print(
            f"{circuit} of {int(layout(model).possible.sum())} possible edges; faithfulness",
            end=" ",
        )
        print(
            f"{circuit.faithfulness():.3f}, on the other pairs {circuit.faithfulness(others):.3f};",
            end=" ",
        )
        print(f"completeness, on the other pairs, {circuit.completeness(others):.3f}")
        for sender, reader, score in circuit.edges:
            print(f"{sender:>8} -> {reader:8} {score:7.3f}")
        circuit.plot(options.output)
        circuit.to_json(Path(options.output).with_suffix(".json"))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
