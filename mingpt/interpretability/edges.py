"""What does each edge between two parts of the model carry?

An edge is what one reader takes from one sender's output in the residual stream (see graph.py). Its
score says what the answer loses when this edge alone carries the corrupted run's value. An edge
with a score near 0 may still be needed where another one, which can stand in for it, is corrupted
too.
Sources: Wang et al. 2022 (arXiv 2211.00593), Syed et al. 2023 (EAP, arXiv 2310.10348), Hanna et al.
2024 (EAP-IG, arXiv 2403.17806).
"""

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt.common import progress_bar
from mingpt.interpretability import partial_runs, runs
from mingpt.interpretability.graph import BaseRuns, record_base_runs
from mingpt.interpretability.tasks import MAX_TOKENS, Task, load_task
from mingpt.model import GPT

METHODS = ("exact", "eap", "eap-ig-inputs")
GRADIENT_SITES = ("q", "k", "v", "resid_mid", "resid_post")


def edge_attribution(
    model: GPT, task: Task, method: str = "eap-ig-inputs", steps: int = 5, max_tokens: int = 4096
) -> Tensor:
    """Score of every edge, (R,S) as in `layout`, in logits, averaged over the pairs; else 0.

    The score is the drop of the metric when this one edge gets its corrupted value in the clean
    run; positive = it supports the clean answer. task: as in find_circuit.
    method "exact": each edge patched. "eap": to first order, (clean - corrupted output) times the
    gradient at the reader in the clean run. "eap-ig-inputs": the gradient averaged over runs whose
    embeddings lie k/steps of the way from corrupted to clean, k = 1 ... steps.
    Cost: 2 passes; and exact, the tails of a run per edge; eap, a pass and a backward;
    eap-ig-inputs, steps of them.
    """
    if method not in METHODS or steps < 1:
        known = 'method must be "exact", "eap" or "eap-ig-inputs", steps from 1'
        raise ValueError(f"{known}; got {method!r}, {steps}")
    batches = progress_bar(load_task(model, task), desc=method, unit="batch")
    # One at a time: the base runs of many pairs together would take much memory.
    bases = (record_base_runs(model, batch) for batch in batches)
    return score_edges(bases, method, steps, max_tokens)


@torch.no_grad()
def score_edges(
    bases: Iterable[BaseRuns], method: str, steps: int = 5, max_tokens: int = 4096
) -> Tensor:
    """edge_attribution of batches whose BaseRuns are there already: (R,S)."""
    if method == "eap":
        steps = 1
    scores = torch.zeros(())
    pairs = 0
    for base in bases:
        if method == "exact":
            found = _exact_scores(base, max_tokens)
        else:
            found = _gradient_scores(base, steps)
        scores = scores + found
        pairs += len(base.batch.clean)
    return scores / pairs


def _exact_scores(base, max_tokens):
    """(R,S), summed over the pairs: each edge is patched in a run of its own."""
    scores = base.unpatched().new_zeros(base.graph.possible.shape)
    for readers, senders, drops in exact_pieces(base, max_tokens):
        scores[readers, senders] = drops
    return scores


@torch.no_grad()
def exact_pieces(base: BaseRuns, max_tokens: int = 4096) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the exact scores of some edges after the other: (readers, senders, drops).

    readers, senders: slices of (R,S); drops: (r,s), summed over the pairs.
    """
    graph = base.graph
    L = graph.n_layer
    H = graph.n_head
    for layer in range(L):
        below = graph.first_sender(layer)
        first = graph.first_reader(layer)
        for role in "qkv":
            readers = slice(first, first + H)
            yield from _drops(base, layer, role, readers, below, max_tokens)
            first += H
        # The MLP reads the heads of its own layer too.
        readers = slice(first, first + 1)
        yield from _drops(base, layer, "mlp", readers, below + H, max_tokens)
    # The logits read the stream after the last block.
    end = base.clean["resid_post"][L - 1][:, None]  # (B,1,T,C)
    streams = end - base.change.transpose(0, 1)  # (B,S,T,C)
    drops = _measure_drops(base, L, streams, max_tokens)
    yield slice(-1, None), slice(None), drops[None]


def _drops(base, layer, role, readers, senders, max_tokens):
    """exact_pieces of the first senders and some readers: the layer's heads' q, or its MLP."""
    B, T = base.batch.clean.shape
    n = readers.stop - readers.start
    tokens = B * (T - base.first) * n
    at_once = max(1, max_tokens // tokens)
    for first in range(0, senders, at_once):
        some = slice(first, min(first + at_once, senders))
        streams = _corrupt_reads(base, layer, role, base.change[some])
        drops = _measure_drops(base, layer + 1, streams, max_tokens)
        yield readers, some, drops.view(-1, n).T  # (s,n) -> (n,s)


def _corrupt_reads(base, layer, role, changes):
    """(B,s*n,t,C): the stream after the block, where one of n readers reads one sender corrupted.

    changes: (s,B,T,C), clean - corrupted outputs of s senders. All else that the block reads is
    clean. t: from the first token that can change on; after the last block the last one alone.
    """
    block = base.model.transformer.h[layer]
    is_last = layer == base.graph.n_layer - 1
    tokens = slice(-1, None) if is_last else slice(base.first, None)
    mid = base.clean["resid_mid"][layer][:, None, tokens]  # (B,1,t,C)
    if role == "mlp":
        read = mid - changes[:, :, tokens].transpose(0, 1)  # (B,s,t,C)
        return mid + block.mlp(block.ln_2(read))
    z = _attend_corrupted(base, layer, role, changes)
    change = z - base.clean["z"][layer]  # (s,B,H,T,D)
    # Heads do not read each other: what one changes, it writes into a run of its own.
    change = change[..., tokens, :].flatten(0, 1)  # (sB,H,t,D)
    written = partial_runs.written_by_heads(block.attn, change)
    written = written.unflatten(1, changes.shape[:2])  # (H,s,B,t,C)
    mid = mid + written.transpose(0, 2).flatten(1, 2)  # (B,s*H,t,C)
    return mid + block.mlp(block.ln_2(mid))


def _attend_corrupted(base, layer, role, changes):
    """z (s,B,H,T,D) of all heads, whose role, "q", "k" or "v", reads one of s senders corrupted."""
    block = base.model.transformer.h[layer]
    attn = block.attn
    clean = base.clean["resid_pre"][layer]  # (B,T,C)
    weights = attn.c_attn.weight.chunk(3)  # (3C,C) -> 3 x (C,C)
    biases = attn.c_attn.bias.chunk(3)
    qkv = []
    for part, weight, bias in zip("qkv", weights, biases):
        read = clean
        if part == role:
            read = clean - changes
        written = F.linear(block.ln_1(read), weight, bias)
        heads = attn.split_heads(written)
        heads = heads.expand(len(changes), -1, -1, -1, -1)  # (s,B,H,T,D)
        qkv.append(heads)
    q, k, v = qkv
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=attn.scale)


def _measure_drops(base, start, streams, max_tokens):
    """(R,): drop of the metric, summed over the pairs, of runs that go on from before a block.

    streams: (B,R,t,C), the residual stream before block `start`, of tokens as in _corrupt_reads.
    """
    intact = base.unpatched()[0].sum()

    def inject(start, positions):
        return {base.first: streams}

    def drop(ends):  # (B,R,1,C) -> (R,)
        ends = partial_runs.last_token(ends)
        metric = base.metric(ends)  # (R,B)
        return intact - metric.sum(-1)

    patched = partial_runs.PatchedRuns([start], [base.first], streams.size(1), inject)
    drops = partial_runs.run_patched(base.model, base.clean, patched, max_tokens, drop)
    return drops[0, 0]  # (1,1,R) -> (R,)


def _gradient_scores(base, steps):
    """(R,S), summed over the pairs; steps = 1 is the gradient of the clean run itself."""
    clean = base.clean["resid_pre"][0]
    corrupted = base.corrupted["resid_pre"][0]
    shares = torch.arange(1, steps + 1).to(clean) / steps
    # Runs side by side read the weights once; a bound on them bounds the memory.
    at_once = max(1, MAX_TOKENS // base.batch.clean.numel())
    scores = torch.zeros(())
    for some in shares.split(at_once):
        embeddings = torch.lerp(corrupted, clean, some.view(-1, 1, 1, 1))  # (n,B,T,C)
        rows = list(_score_rows(base, embeddings))
        scores = scores + torch.cat(rows)
    return scores / steps


def _score_rows(base, embeddings):
    """Yield the scores of the readers, in order, some at a time: (r,S), summed over the n runs.

    embeddings: (n,B,T,C), with which the runs begin.
    """
    graph = base.graph
    n = len(embeddings)
    found, by = _run_with_gradient(base, embeddings)

    def multiply(gradients, senders):  # (r,B,T,C) -> (r,S)
        below = base.change[:senders].flatten(1)
        scores = gradients.flatten(1) @ below.T  # (r,BTC) @ (BTC,s) -> (r,s)
        return F.pad(scores, (0, len(graph.senders) - senders))

    def sum_runs(gradient):  # (nB,T,C) -> (1,B,T,C)
        return gradient.unflatten(0, (n, -1)).sum(0, keepdim=True)

    for layer, block in enumerate(base.model.transformer.h):
        x = found["resid_pre", layer].unflatten(0, (n, -1))
        qkv = torch.stack([found[role, layer] for role in "qkv"])  # (3,nB,H,T,D)
        by_qkv = torch.stack([by[role, layer] for role in "qkv"])
        qkv = qkv.unflatten(1, (n, -1))
        by_qkv = by_qkv.unflatten(1, (n, -1))
        by_x = _back_to_stream(block, x, qkv, by_qkv)
        senders = graph.first_sender(layer)
        yield multiply(by_x, senders)
        # The stream goes past the MLP too: what comes back besides, comes through the MLP.
        by_mlp = by["resid_mid", layer] - by["resid_post", layer]
        yield multiply(sum_runs(by_mlp), senders + graph.n_head)
    yield multiply(sum_runs(by["resid_post", graph.n_layer - 1]), len(graph.senders))


def _run_with_gradient(base, embeddings):
    """({(site, layer): tensor} of runs that begin with them, the metric's gradients by these).

    embeddings: (n,B,T,C); runs and pairs are one axis in what comes back, nB.
    """
    runs.check_gradient(base.model)
    found = {}

    def keep(layer, site, x):
        found[site, layer] = x
        return x

    with torch.enable_grad():
        stream = embeddings.flatten(0, 1).requires_grad_()
        for layer, block in enumerate(base.model.transformer.h):
            stream = block(stream, partial(keep, layer))
        ends = stream[:, -1].view_as(embeddings[:, :, -1])  # (nB,T,C) -> (n,B,C)
        metric = base.metric(ends).sum()
    asked = {place: x for place, x in found.items() if place[0] in GRADIENT_SITES}
    gradients = torch.autograd.grad(metric, list(asked.values()))
    found = {place: x.detach() for place, x in found.items()}
    return found, dict(zip(asked, gradients))


def _back_to_stream(block, x, qkv, by_qkv):
    """(3H,B,T,C): the gradient by what each head's q, k and v read of the stream, before the norm.

    x: (n,B,T,C), what the n runs read. qkv, by_qkv: (3,n,B,H,T,D), what they made of it, and the
    gradient by it. The sum over the runs comes back.
    With normed = (x - mean) / std and by_normed the gradient by it, the gradient by x is
    (by_normed - its mean - normed * the mean of normed * by_normed) / std, with means over C.
    """
    norm = block.ln_1
    linear = block.attn.c_attn
    _, n, B, H, T, D = qkv.shape
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)  # (n,B,T,1)
    std = (variance + norm.eps).sqrt()
    normed = (x - mean) / std
    by_qkv = by_qkv / std[:, :, None]  # (n,B,T,1) -> (n,B,1,T,1)
    # by_normed is by_qkv @ weight; what is left without its mean is that of the weight without its.
    weight = linear.weight * norm.weight  # (3C,C)
    weight -= weight.mean(-1, keepdim=True)
    # normed * by_normed, summed over C, is by_qkv times what normed adds to q, k and v, which
    # have biases besides.
    added = qkv - linear(norm.bias).view(3, 1, 1, H, 1, D)
    mean_product = (by_qkv * added).sum(-1) / x.size(-1)  # (3,n,B,H,T)

    runs_together = by_qkv.sum(1).transpose(1, 2)  # (3,n,B,H,T,D) -> (3,H,B,T,D)
    by_x = runs_together.reshape(3 * H, B * T, D) @ weight.view(3 * H, D, -1)
    by_x = by_x.view(3 * H, B, T, -1)
    for run in range(n):
        share = mean_product[:, run].transpose(1, 2).reshape(3 * H, B, T, 1)
        by_x.addcmul_(share, normed[run], value=-1)
    return by_x
