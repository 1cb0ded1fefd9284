"""What does the model say if only some edges carry what they should?

The model as a graph: its nodes are the embedding, the heads, the MLPs and the logits. Each node but
the logits is a sender, which adds its output to the residual stream. A reader is what takes in a
sum of senders' outputs: the queries, the keys or the values of a head, an MLP, the logits. An edge
is one sender's part of what one reader reads. Biases belong to no sender.
Sources: Elhage et al. 2021 (transformer-circuits.pub), the residual stream as a sum; Conmy et al.
2023 (ACDC, arXiv 2304.14997), heads that read by queries, keys and values separately.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt.interpretability import partial_runs, runs
from mingpt.interpretability.readout import logit_diff
from mingpt.interpretability.tasks import Batch, Task, load_task
from mingpt.model import GPT
from mingpt.sites import Activations

SITES = partial_runs.base_sites("z")  # what is recorded of a base run


@dataclass
class Layout:
    """The graph of a model, in the order of its computation: S senders, R readers."""

    n_layer: int
    n_head: int
    senders: list[str]  # embed, 0.0, 0.1, ..., mlp 0, 1.0, ...
    readers: list[str]  # 0.0.q, 0.1.q, ..., 0.0.k, ..., 0.0.v, ..., mlp 0, 1.0.q, ..., logits
    nodes: list[str]  # of each reader, the node that it belongs to: of 2.1.q, 2.1
    possible: Tensor  # bool (R,S): the edges that exist

    def first_sender(self, layer: int) -> int:
        """The layer's first head's number among the senders: so many lie below the layer."""
        return 1 + layer * (self.n_head + 1)

    def first_reader(self, layer: int) -> int:
        """The layer's first query's number among the readers."""
        return layer * (3 * self.n_head + 1)

    def layer_of(self, reader: int) -> int:
        """The layer of the reader with this number; L for the logits."""
        return reader // (3 * self.n_head + 1)


def layout(model: GPT) -> Layout:
    """The model's Layout."""
    L = model.config.n_layer
    H = model.config.n_head
    senders = ["embed"]
    readers = []
    below = []  # of each reader, how many senders it can read
    for layer in range(L):
        heads = [f"{layer}.{head}" for head in range(H)]
        # Heads of one layer do not read each other; their MLP reads them all.
        readers += [f"{head}.{role}" for role in "qkv" for head in heads]
        below += 3 * H * [len(senders)]
        senders += heads
        mlp = f"mlp {layer}"
        readers.append(mlp)
        below.append(len(senders))
        senders.append(mlp)
    readers.append("logits")
    below.append(len(senders))
    # Only the readers of a head are not named as their node: 2.1.q belongs to 2.1.
    nodes = [reader.rstrip(".qkv") for reader in readers]
    possible = torch.arange(len(senders)) < torch.tensor(below)[:, None]  # (S,) < (R,1) -> (R,S)
    return Layout(L, H, senders, readers, nodes, possible)


@dataclass
class BaseRuns:
    """The clean and the corrupted run of one batch, of which runs along some edges are made.

    They are of the model as it is when they are recorded.
    """

    model: GPT
    graph: Layout
    batch: Batch
    clean: Activations  # with the sites of SITES
    corrupted: Activations
    change: Tensor  # (S,B,T,C): what each sender adds to the stream, clean - corrupted

    @property
    def first(self) -> int:
        """The first position at which some pair's texts differ; left of it the runs are equal."""
        differs = (self.batch.clean != self.batch.corrupted).any(0)  # (T,)
        return int(differs.int().argmax())

    def metric(self, ends: Tensor) -> Tensor:
        """logit(clean answer) - logit(corrupted answer), in logits, (...,B) of ends (...,B,C)."""
        return logit_diff(self.model, ends, self.batch.direction)

    def unpatched(self) -> Tensor:
        """The metric of the clean and of the corrupted run: (2,B)."""
        last = self.graph.n_layer - 1
        ends = [run["resid_post"][last][:, -1] for run in (self.clean, self.corrupted)]
        return self.metric(torch.stack(ends))  # (2,B,C) -> (2,B)


@torch.no_grad()
def record_base_runs(model: GPT, batch: Batch) -> BaseRuns:
    """The BaseRuns of a batch. Cost: 2 passes; memory: (S + 14 L) * 4 C bytes for each token."""
    clean, corrupted = runs.record_pair(model, batch.clean, batch.corrupted, SITES)
    for run in (clean, corrupted):
        # Not the site mlp_out: a patch that is in force (patched_models.py) is the MLP's too.
        run["mlp_out"] = {
            layer: run["resid_post"][layer] - run["resid_mid"][layer] for layer in run["resid_mid"]
        }

    def change(site, layer):
        return clean[site][layer] - corrupted[site][layer]

    changes = [change("resid_pre", 0)[None]]
    for layer, block in enumerate(model.transformer.h):
        heads = partial_runs.written_by_heads(block.attn, change("z", layer))
        changes += [heads, change("mlp_out", layer)[None]]
    return BaseRuns(model, layout(model), batch, clean, corrupted, torch.cat(changes))


@torch.no_grad()
def run_circuit(base: BaseRuns, mask: Tensor, start: int = 0) -> Tensor:
    """Metric (B,), in logits, with clean values on the edges in mask and corrupted on all others.

    base: BaseRuns. mask: (R,S), bool, or numbers from 0 to 1 for shares of the clean value.
    start: a layer below which the mask has every edge, so that all there is as in the clean run;
    it is not computed again.
    Cost: at most a pass with 3 H residual streams, since each head's q, k and v may read another
    one.
    """
    graph = base.graph
    corrupted = base.corrupted
    mask = mask.to(base.change)
    # How far each sender's output is from its output in the corrupted run.
    change = torch.zeros_like(base.change)  # (S,B,T,C)
    below = graph.first_sender(start)
    change[:below] = base.change[:below]
    for layer in range(start, graph.n_layer):
        block = base.model.transformer.h[layer]
        heads = graph.first_sender(layer)
        mlp = heads + graph.n_head
        first = graph.first_reader(layer)
        last = first + 3 * graph.n_head
        # Where no clean value comes in, the output stays that of the corrupted run.
        edges = mask[first:last, :heads]  # to the layer's queries, keys and values
        if edges.any():
            streams = corrupted["resid_pre"][layer] + _sum_along(edges, change[:heads])
            z = _attend(block, streams)
            change[heads:mlp] = partial_runs.written_by_heads(block.attn, z - corrupted["z"][layer])
        edges = mask[last, :mlp]  # to the MLP
        if edges.any():
            stream = corrupted["resid_mid"][layer] + _sum_along(edges, change[:mlp])
            change[mlp] = block.mlp(block.ln_2(stream)) - corrupted["mlp_out"][layer]
    end = corrupted["resid_post"][graph.n_layer - 1][:, -1]  # (B,C)
    return base.metric(end + _sum_along(mask[-1], change[:, :, -1]))


def _sum_along(edges, change):
    """The sum of the changes (S,...) that the edges let through.

    edges: (S,) of one reader, or (R,S), which gives (R,...).
    """
    return torch.tensordot(edges, change, 1)


def _attend(block, streams):
    """z (B,H,T,D) of heads that read streams (3H,B,T,C), one for each head's q, k and v.

    CausalSelfAttention.forward cannot serve: there all heads read the same stream.
    """
    attn = block.attn
    H = attn.n_head
    normed = block.ln_1(streams).unflatten(0, (3, H))  # (3H,B,T,C) -> (3,H,B,T,C)
    weight = attn.c_attn.weight.unflatten(0, (3, H, -1))  # (3C,C) -> (3,H,D,C)
    bias = attn.c_attn.bias.view(3, 1, H, 1, -1)
    qkv = torch.einsum("xhbtc,xhdc->xbhtd", normed, weight) + bias  # (3,B,H,T,D)
    q, k, v = qkv
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=attn.scale)


@dataclass
class TaskRuns:
    """The base runs of all batches of a task, and what its pairs say along some edges."""

    graph: Layout
    batches: list[BaseRuns]

    def unpatched(self) -> Tensor:
        """The metric of each pair's clean and of its corrupted run: (2,pairs)."""
        metrics = [base.unpatched() for base in self.batches]
        return torch.cat(metrics, 1)

    def metric(self, mask: Tensor, start: int = 0) -> float:
        """run_circuit's metric, the mean over the pairs, a float."""
        metrics = [run_circuit(base, mask, start) for base in self.batches]
        return torch.cat(metrics).mean().item()

    def share(self, mask: Tensor) -> float:
        """(metric along the edges in mask - corrupted) / (clean - corrupted), of the means."""
        clean, corrupted = self.unpatched().mean(1).tolist()
        return (self.metric(mask) - corrupted) / (clean - corrupted)


def record_task(model: GPT, task: Task) -> TaskRuns:
    """The TaskRuns of a task, as load_task takes it. Cost: as record_base_runs, for each batch."""
    bases = [record_base_runs(model, batch) for batch in load_task(model, task)]
    return TaskRuns(bases[0].graph, bases)
