"""Which edges can go, one after the other, from the logits down?

An edge goes for good if the metric falls by less than a threshold without it. What is left depends
on the order, and of two edges that can stand in for each other one goes.
Source: Conmy et al. 2023 (ACDC, arXiv 2304.14997); differs: the metric is a logit difference.

Most edges go. So some are tried side by side: the first run is without the first of them, the next
one without the first two, and so on, up to the first that must stay. And of a run only the nodes
are computed that the reader's change comes to.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt.common import progress_bar
from mingpt.interpretability.graph import BaseRuns, TaskRuns

FEW = 8  # edges that are tried side by side at first


@torch.no_grad()
def prune_edges(runs: TaskRuns, smallest: float, max_tokens: int = 4096) -> tuple[Tensor, Tensor]:
    """(scores, mask of the edges that stay), (R,S); a score is the drop of the metric without it.

    runs: TaskRuns. smallest: the least drop for which an edge stays, in logits. max_tokens: how
    many tokens may be under way at once.
    Cost: for each edge to a node that is still read, the nodes above that it comes to; memory: what
    the base runs hold for each sender, once more.
    """
    graph = runs.graph
    mask = graph.possible.clone()
    scores = torch.zeros(mask.shape)
    batches = [PrunedRun(base) for base in runs.batches]
    largest = max(base.batch.clean.numel() for base in runs.batches)
    most = max(1, max_tokens // largest)
    metric = runs.unpatched()[0].mean().item()
    readers = reversed(range(len(graph.readers)))
    for reader in progress_bar(list(readers), desc="acdc", unit="reader"):
        node = graph.nodes[reader]
        if node != "logits":
            is_read = mask[:, graph.senders.index(node)].any()
            mask[reader] &= is_read  # what nobody reads need not read
        left = mask[reader].nonzero()[:, 0].tolist()
        left.reverse()
        size = FEW
        while left:
            tried = left[: min(size, most)]
            trials = [run.try_without(mask, reader, tried) for run in batches]
            without = torch.cat(trials, 1)  # (n,B), ... -> (n,pairs)
            metrics = [metric, *without.mean(1).tolist()]
            gone = _count_gone(metrics, smallest)
            metric = metrics[gone]
            for run in batches:
                run.take_out(gone)
            mask[reader, tried[:gone]] = False
            left = left[gone:]
            size *= 2
            if gone < len(tried):
                stays = left.pop(0)
                scores[reader, stays] = metric - metrics[gone + 1]
                size = FEW
    return scores, mask


def _count_gone(metrics, smallest):
    """How many edges can go, one after the other, up to the first that must stay.

    metrics: with all edges, without the first, without the first two, ...
    """
    for gone, before in enumerate(metrics[:-1]):
        drop = before - metrics[gone + 1]
        if not drop < smallest:
            return gone
    return len(metrics) - 1


class PrunedRun:
    """One batch's run along the edges that are still there, and trials without some more."""

    def __init__(self, base: BaseRuns):
        self.base = base
        self.change = base.change.clone()  # (S,B,T,C): each sender's output, less the corrupted one
        # Of the last trial: {sender: (n,B,T,C)}, where the change is another.
        self.new: dict[int, Tensor] = {}
        graph = base.graph
        self.names = [*graph.senders, "logits"]
        self.nodes = [self.names.index(node) for node in graph.nodes]  # of each reader
        self.readers: list[list[int]] = [[] for _ in self.names]  # of each node
        for reader, node in enumerate(self.nodes):
            self.readers[node].append(reader)

    def try_without(self, mask: Tensor, reader: int, senders: list[int]) -> Tensor:
        """Metric (n,B): without the first of the reader's n senders, the first two, ..., all."""
        self.new = {}
        gone = self.change[senders].cumsum(0)  # (n,B,T,C)
        for node in range(self.nodes[reader], len(self.names)):
            readers = self.readers[node]
            is_first = reader in readers
            reads_change = mask[readers][:, list(self.new)].any()
            if not is_first and not reads_change:
                continue
            streams = [self._read(mask, other) for other in readers]
            if is_first:
                place = readers.index(reader)
                streams[place] = streams[place] - gone
            if self.names[node] == "logits":
                end = streams[0][..., -1, :]
                return self.base.metric(end)
            self.new[node] = self._write(readers[0], node, streams)
        # The change came to nobody who reaches the logits.
        end = self._read(mask, -1)[None, :, -1]  # (1,B,C)
        return self.base.metric(end).expand(len(senders), -1)

    def take_out(self, n: int) -> None:
        """Go on from the last trial's run without the first n senders."""
        if n:
            for sender, change in self.new.items():
                self.change[sender] = change[n - 1]

    def _read(self, mask, reader):
        """The stream, (B,T,C) or in the trial's runs (n,B,T,C), that the reader reads."""
        graph = self.base.graph
        corrupted = self.base.corrupted
        layer = graph.layer_of(reader % len(graph.readers))
        if layer == graph.n_layer:
            stream = corrupted["resid_post"][layer - 1]
        elif graph.nodes[reader].startswith("mlp"):
            stream = corrupted["resid_mid"][layer]
        else:
            stream = corrupted["resid_pre"][layer]
        senders = mask[reader].nonzero()[:, 0].tolist()
        stream = stream + self.change[senders].sum(0)
        for sender in self.new.keys() & set(senders):
            difference = self.new[sender] - self.change[sender]
            stream = stream + difference
        return stream

    def _write(self, reader, node, streams):
        """(n,B,T,C): what the node's output is, less the corrupted one. streams: q's, k's, v's."""
        graph = self.base.graph
        layer = graph.layer_of(reader)
        block = self.base.model.transformer.h[layer]
        corrupted = self.base.corrupted
        if len(streams) == 1:
            out = block.mlp(block.ln_2(streams[0]))
            return out - corrupted["mlp_out"][layer]
        head = node - graph.first_sender(layer)
        attn = block.attn
        by_head = (3, graph.n_head, -1)
        weights = attn.c_attn.weight.unflatten(0, by_head)[:, head]  # (3C,C) -> (3,D,C)
        biases = attn.c_attn.bias.unflatten(0, by_head)[:, head]  # (3C,) -> (3,D)
        qkv = []
        for stream, weight, bias in zip(streams, weights, biases):
            read = block.ln_1(stream)
            qkv.append(F.linear(read, weight, bias))
        q, k, v = torch.broadcast_tensors(*qkv)  # (n,B,T,D)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=attn.scale)
        change = z - corrupted["z"][layer][:, head]
        weight = attn.c_proj.weight.chunk(graph.n_head, dim=1)[head]  # (C,C) -> (C,D)
        return change @ weight.T
