"""What does each edge between two parts of the model carry?

An edge is what one reader takes from one sender's output in the residual stream (see graph.py). Its
score says what the answer loses when this edge alone carries the corrupted run's value. An edge
with a score near 0 may still be needed where another one, which can stand in for it, is corrupted
too.
Sources: Wang et al. 2022 (arXiv 2211.00593), Syed et al. 2023 (EAP, arXiv 2310.10348), Hanna et al.
2024 (EAP-IG, arXiv 2403.17806).
"""

import torch
from torch.nn import functional as F

from mingpt.common import progress_bar
from mingpt.interpretability import partial_runs, runs
from mingpt.interpretability.graph import record_base_runs
from mingpt.interpretability.tasks import load_task
from mingpt.sites import Patch

METHODS = ("exact", "eap", "eap-ig-inputs")


def edge_attribution(model, task, method="eap-ig-inputs", steps=5, max_tokens=4096):
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
def score_edges(bases, method, steps=5, max_tokens=4096):
    """edge_attribution of batches whose BaseRuns are there already: (R,S)."""
    scores = 0
    pairs = 0
    for base in bases:
        if method == "exact":
            scores = scores + _exact_scores(base, max_tokens)
        else:
            scores = scores + _gradient_scores(base, 1 if method == "eap" else steps)
        pairs += len(base.batch.clean)
    return scores / pairs


def _exact_scores(base, max_tokens):
    """(R,S), summed over the pairs: each edge is patched in a run of its own."""
    L = base.graph.n_layer
    H = base.graph.n_head
    S = len(base.graph.senders)
    rows = []
    for layer in range(L):
        senders = base.graph.first_sender(layer)
        for role in "qkv":
            drops = _drops(base, layer, role, senders, max_tokens)
            rows.append(drops)
        # The MLP reads the heads of its own layer too.
        drops = _drops(base, layer, "mlp", senders + H, max_tokens)
        rows.append(drops)
    # The logits read the stream after the last block.
    end = base.clean["resid_post"][L - 1][:, None]  # (B,1,T,C)
    streams = end - base.change.transpose(0, 1)  # (B,S,T,C)
    drops = _measure_drops(base, L, streams, max_tokens)
    rows.append(drops[None])
    padded = [F.pad(row, (0, S - row.size(1))) for row in rows]
    return torch.cat(padded)


def _drops(base, layer, role, senders, max_tokens):
    """(n,senders): the drops for the first senders and n readers: the heads' q, or the MLP."""
    B, T = base.batch.clean.shape
    n = 1 if role == "mlp" else base.graph.n_head
    at_once = max(1, max_tokens // (B * T * n))
    columns = []
    for changes in base.change[:senders].split(at_once):
        streams = _corrupt_reads(base, layer, role, changes)
        drops = _measure_drops(base, layer + 1, streams, max_tokens)
        columns.append(drops.view(-1, n))
    return torch.cat(columns).T  # (senders,n) -> (n,senders)


def _corrupt_reads(base, layer, role, changes):
    """(B,s*n,T,C): the stream after the block, where one of n readers reads one sender corrupted.

    changes: (s,B,T,C), clean - corrupted outputs of s senders. All else that the block reads is
    clean.
    """
    block = base.model.transformer.h[layer]
    if role == "mlp":
        mid = base.clean["resid_mid"][layer]
        streams = mid + block.mlp(block.ln_2(mid - changes))  # (s,B,T,C)
        return streams.transpose(0, 1)
    # Heads do not read each other: one go serves all of a layer, for each sender.
    read = base.clean["resid_pre"][layer] - changes
    third = "qkv".index(role)  # of c_attn, which makes queries, keys and values
    weight = block.attn.c_attn.weight.chunk(3)[third]  # (3C,C) -> (C,C)
    bias = block.attn.c_attn.bias.chunk(3)[third]
    part = F.linear(block.ln_1(read), weight, bias)
    new = block.attn.split_heads(part)  # (s,B,T,C) -> (s,B,H,T,D)
    streams = []
    for of_sender in new:
        # For each head a stream in which that head alone has its new input: (B,H,T,C).
        streams.append(partial_runs.patched_stream(base.model, base.clean, layer, role, of_sender))
    return torch.cat(streams, 1)


def _measure_drops(base, start, streams, max_tokens):
    """(R,): drop of the metric, summed over the pairs, of runs that go on from before a block.

    streams: (B,R,T,C), the residual stream before block `start`.
    """
    intact = base.unpatched()[0].sum()

    def inject(start, positions):
        return {0: streams}

    def drop(ends):  # (B,R,1,C) -> (R,)
        return intact - base.metric(partial_runs.last_token(ends)).sum(-1)

    patched = partial_runs.PatchedRuns([start], [0], streams.size(1), inject)
    drops = partial_runs.run_patched(base.model, base.clean, patched, max_tokens, drop)
    return drops[0, 0]  # (1,1,R) -> (R,)


def _gradient_scores(base, steps):
    """(R,S), summed over the pairs; steps = 1 is the gradient of the clean run itself."""
    clean = base.clean["resid_pre"][0]
    corrupted = base.corrupted["resid_pre"][0]
    scores = 0
    for step in range(1, steps + 1):
        embedding = torch.lerp(corrupted, clean, step / steps)
        rows = []
        for gradient in _gradients(base, embedding):
            row = torch.einsum("rbtc,sbtc->rs", gradient, base.change)
            rows.append(row)
        scores = scores + torch.cat(rows) / steps
    return scores * base.graph.possible.to(scores)


def _gradients(base, embedding):
    """Yield the metric's gradient by what the readers read, in order: a few (r,B,T,C) at a time."""
    H = base.graph.n_head
    put_in = Patch(0, None, embedding, "resid_pre")
    sites = ("resid_pre", "q", "k", "v", "resid_mid", "mlp_pre", "resid_post")
    with torch.enable_grad():
        end, x = runs.record_with_gradient(base.model, base.batch.clean, sites, [put_in])
        metric = base.metric(end[:, -1]).sum()
    gradients = torch.autograd.grad(metric, list(x.values()))
    by = dict(zip(x, gradients))

    # The gradient by the stream is that of all readers together; by q, k, v and mlp_pre it is one
    # reader's own, and goes back from there to what the reader read: linear layer, then layer norm.
    for layer, block in enumerate(base.model.transformer.h):
        by_qkv = torch.stack([by[role, layer] for role in "qkv"])  # (3,B,H,T,D)
        weight = block.attn.c_attn.weight.unflatten(0, (3, H, -1))  # (3C,C) -> (3,H,D,C)
        by_normed = torch.einsum("xbhtd,xhdc->xhbtc", by_qkv, weight)  # (3,H,B,T,C)
        by_normed = by_normed.flatten(0, 1)  # (3H,B,T,C)
        yield _back_through_norm(block.ln_1, x["resid_pre", layer], by_normed)
        weight = block.mlp.c_fc.weight
        by_normed = by["mlp_pre", layer] @ weight  # (B,T,4C) @ (4C,C) -> (B,T,C)
        yield _back_through_norm(block.ln_2, x["resid_mid", layer], by_normed[None])
    yield by["resid_post", layer][None]


def _back_through_norm(norm, x, gradients):
    """Gradients (R,B,T,C) by the layer norm's output -> by its input x (B,T,C)."""
    x = x.detach().expand_as(gradients).requires_grad_()
    with torch.enable_grad():
        y = norm(x)
    return torch.autograd.grad(y, x, gradients)[0]
