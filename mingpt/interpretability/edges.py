"""What does each edge between two parts of the model carry?

An edge is what one reader takes from one sender's output in the residual stream (see graph.py). Its
score says what the answer loses when this edge alone carries the corrupted run's value. An edge
with a score near 0 may still be needed where another one, which can stand in for it, is corrupted
too.
Sources: Wang et al. 2022 (arXiv 2211.00593), Syed et al. 2023 (EAP, arXiv 2310.10348), Hanna et al.
2024 (EAP-IG, arXiv 2403.17806).
"""

from functools import partial

import torch
from torch.nn import functional as F
from tqdm import tqdm

from mingpt.interpretability import partial_runs, runs
from mingpt.interpretability.graph import layout, record_base_runs, run_circuit  # noqa: F401
from mingpt.interpretability.inputs import answer_pair, encode_pair, parse_component
from mingpt.interpretability.readout import answer_direction, logit_diff
from mingpt.interpretability.tasks import load_task
from mingpt.sites import Patch

METHODS = ("exact", "eap", "eap-ig-inputs")


def edge_attribution(model, task, method="eap-ig-inputs", steps=5, max_tokens=4096):
    """Score of every edge, (R,S) as in `layout`, in logits, averaged over the pairs; 0 where none
    is.

    The score is the drop of the metric when this one edge gets its corrupted value in the clean
    run; positive = it supports the right answer. task: as in find_circuit.
    method "exact": each edge patched. "eap": to first order, (clean - corrupted output) times the
    gradient at the reader in the clean run. "eap-ig-inputs": the gradient averaged over runs whose
    embeddings lie k/steps of the way from corrupted to clean, k = 1 ... steps.
    Cost: 2 passes; and exact, the tails of a run per edge; eap, a pass and a backward;
    eap-ig-inputs, steps of them.
    """
    if method not in METHODS or steps < 1:
        known = 'method must be "exact", "eap" or "eap-ig-inputs", steps from 1'
        raise ValueError(f"{known}; got {method!r}, {steps}")
    batches = tqdm(load_task(model, task), desc=method, unit="batch", disable=None)
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
    last = base.graph.n_layer - 1
    rows = []
    for layer in range(last + 1):
        rows += [_drops(base, layer, role, max_tokens) for role in ("q", "k", "v", "mlp")]
    ends = base.clean["resid_post"][last][:, -1] - base.change[:, :, -1]  # (S,B,C)
    rows.append((base.unpatched()[0] - base.metric(ends)).sum(-1)[None])  # the logits' row
    S = len(base.change)
    return torch.cat([F.pad(row, (0, S - row.size(1))) for row in rows])


def _drops(base, layer, role, max_tokens):
    """(n,senders): drop of the metric, summed over the pairs, for n readers of a layer: its heads'
    q, or its MLP.
    """
    B, T = base.batch.clean.shape
    n = 1 if role == "mlp" else base.graph.n_head
    senders = base.graph.first_sender(layer)
    if role == "mlp":
        senders += base.graph.n_head  # the MLP reads the heads of its own layer too
    intact = base.unpatched()[0].sum()

    def drop(ends):  # (B,r,1,C) -> (r,)
        return intact - base.metric(partial_runs.last_token(ends)).sum(-1)

    columns = []
    for changes in base.change[:senders].split(max(1, max_tokens // (B * T * n))):
        streams = _corrupt_reads(base, layer, role, changes)  # (B,s*n,T,C)
        ends = partial_runs.run_patched(
            base.model,
            base.clean,
            lambda start, positions, streams=streams: {0: streams},
            [layer + 1],
            [0],
            streams.size(1),
            max_tokens,
            read=drop,
        )
        columns.append(ends[layer + 1, 0].view(-1, n))
    return torch.cat(columns).T


def _corrupt_reads(base, layer, role, changes):
    """(B,s*n,T,C): the stream after the block, in runs in which one of n readers reads one of s
    senders corrupted.

    changes: (s,B,T,C), clean - corrupted outputs of the senders. All else that the block reads is
    clean.
    """
    block = base.model.transformer.h[layer]
    if role == "mlp":
        mid = base.clean["resid_mid"][layer]
        return (mid + block.mlp(block.ln_2(mid - changes))).transpose(0, 1)
    H = base.graph.n_head
    read = base.clean["resid_pre"][layer] - changes  # (s,B,T,C)
    qkv = block.attn.c_attn(block.ln_1(read)).unflatten(-1, (3, H, -1))  # (s,B,T,3,H,D)
    new = qkv[:, :, :, "qkv".index(role)].transpose(2, 3)  # (s,B,H,T,D)
    streams = [
        partial_runs.patched_stream(base.model, base.clean, layer, role, one, 0, slice(None))
        for one in new
    ]
    return torch.cat(streams, 1)


def _gradient_scores(base, steps):
    """(R,S), summed over the pairs; steps = 1 is the gradient of the clean run itself."""
    clean = base.clean["resid_pre"][0]
    corrupted = base.corrupted["resid_pre"][0]
    scores = 0
    for step in range(1, steps + 1):
        embedding = torch.lerp(corrupted, clean, step / steps)
        rows = [
            torch.einsum("rbtc,sbtc->rs", gradient, base.change)
            for gradient in _gradients(base, embedding)
        ]
        scores = scores + torch.cat(rows)
    return scores * base.graph.possible.to(scores) / steps


def _gradients(base, embedding):
    """The metric's gradient by what each reader reads: pieces (readers,B,T,C), in the order of
    `layout`.
    """
    put_in = Patch(0, None, embedding, "resid_pre")
    sites = ("resid_pre", "q", "k", "v", "resid_mid", "mlp_pre", "resid_post")
    with torch.enable_grad():
        end, x = runs.record_with_gradient(base.model, base.batch.clean, sites, [put_in])
        metric = base.metric(end[:, -1]).sum()
        by = dict(zip(x, torch.autograd.grad(metric, list(x.values()))))

    # The gradient by the stream is that of all readers together; by q, k, v and mlp_pre it is one
    # reader's own, and goes back from there to what the reader read: linear layer, then layer norm.
    pieces = []
    for layer, block in enumerate(base.model.transformer.h):
        weight = block.attn.c_attn.weight.detach().unflatten(0, (3, base.graph.n_head, -1))
        by_qkv = torch.stack([by[role, layer] for role in "qkv"])  # (3,B,H,T,D)
        by_normed = torch.einsum("xbhtd,xhdc->xhbtc", by_qkv, weight).flatten(0, 1)  # (3H,B,T,C)
        pieces.append(_back_through_norm(block.ln_1, x["resid_pre", layer], by_normed))
        by_normed = by["mlp_pre", layer] @ block.mlp.c_fc.weight.detach()  # (B,T,4C) -> (B,T,C)
        pieces.append(_back_through_norm(block.ln_2, x["resid_mid", layer], by_normed[None]))
    pieces.append(by["resid_post", layer][None])
    return pieces


def _back_through_norm(norm, x, gradients):
    """Gradients (R,B,T,C) by the layer norm's output -> by its input x (B,T,C)."""
    x = x.detach().expand_as(gradients).requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(norm(x), x, gradients)[0]


@torch.no_grad()
def path_patching(
    model,
    clean_input,
    corrupted_input,
    sender,
    receiver,
    target_token,
    corrupted_token=None,
    freeze_mlps=False,
    max_tokens=4096,
):
    """Effect of a head along its direct paths to the receiver, in logits, a float; sender None: of
    all heads, (L,H).

    First a run with all heads as in the clean run, but the sender as in the corrupted one; MLPs are
    computed anew, or stay clean too with freeze_mlps. Then the clean run with the receiver as in
    that run, and all above it computed anew. effect = logit_diff of the second run - logit_diff of
    the clean run, where logit_diff = logit(corrupted answer) - logit(clean answer) at the last
    position, averaged over the pairs; positive = the path carries the clean answer. 0 where no path
    leads from the head to the receiver. sender: a head, "3.5". receiver: "logits", "mlp 3", "3.5.q"
    (or .k or .v), or a list of these, received together; or as tuples: (3, 5), (3, "mlp"), (3, 5,
    "q"). Inputs and answers as in patch_layers. max_tokens: how many tokens may be under way at
    once, which bounds the memory.
    Cost: 2 passes; for each head the layers from its own up to the receiver, and those from the
    receiver up.
    Source: Wang et al. 2022 (arXiv 2211.00593), appendix B.
    """
    clean_ids, corrupted_ids = encode_pair(model, clean_input, corrupted_input)
    answers = answer_pair(model, clean_ids, corrupted_ids, target_token, corrupted_token)
    receivers = _read_receivers(model, receiver)
    senders = _read_senders(model, sender)
    clean = runs.record(model, clean_ids, ("resid_pre", "z", "mlp_out"))
    corrupted_z = runs.record(model, corrupted_ids, ("z",))["z"]

    L = model.config.n_layer
    direction = answer_direction(model, *answers)  # (B,C)
    intact = logit_diff(model, clean["resid_post"][L - 1][:, -1], direction)  # (B,)
    effect = intact.new_zeros(L, model.config.n_head)
    at_once = max(1, max_tokens // clean_ids.numel())
    for layer in tqdm(senders, desc="path patching", unit="layer", disable=None):
        for first in range(0, len(senders[layer]), at_once):
            heads = senders[layer][first : first + at_once]
            patches = _receive(model, clean, corrupted_z, layer, heads, receivers, freeze_mlps)
            if patches:
                ends = _run_received(model, clean, patches, len(heads))  # (R,B,C)
                effect[layer, heads] = (intact - logit_diff(model, ends, direction)).mean(1)
    return effect[layer, heads[0]].item() if sender else effect


def _read_senders(model, sender):
    """{layer: its heads}, of one head, or with None of all."""
    if sender is None:
        heads = list(range(model.config.n_head))
        return dict.fromkeys(range(model.config.n_layer), heads)
    kind, layer, head, role = parse_component(model, sender)
    if kind != "head" or role:
        raise ValueError(f'sender must be a head, "3.5" or (3, 5), or None; got {sender!r}')
    return {layer: [head]}


def _read_receivers(model, receiver):
    """[(layer, site, head)]: where what receives is put into a run."""
    names = receiver if isinstance(receiver, list) and receiver else [receiver]
    places = []
    for name in names:
        kind, layer, head, role = parse_component(model, name)
        if kind == "logits":
            places.append((model.config.n_layer - 1, "resid_post", None))
        elif kind == "mlp":
            places.append((layer, "mlp_out", None))
        elif role:
            places.append((layer, role, head))
        else:
            known = '"logits", "mlp 3", "3.5.q", or .k or .v, or a list'
            raise ValueError(f"no receiver {name!r}; write {known}")
    if len(places) > 1 and any(site == "resid_post" for _, site, _ in places):
        raise ValueError(
            '"logits" receive by themselves: what else received would reach them a second time'
        )
    return places


def _receive(model, clean, corrupted_z, layer, heads, receivers, freeze_mlps):
    """Patches with what the receivers compute in R runs, in each of which one of a layer's heads is
    corrupted.

    All other heads are as in the clean run. The patches are (R*B,...), run after run; of receivers
    below the layer, where no path leads, there are none.
    """
    R = len(heads)
    patches = []

    def tap(at, site, x):
        for place in receivers:
            if place[:2] == (at, site):
                head = place[2]
                patches.append(Patch(at, None, x if head is None else x[:, head], site, head))
        if site == "z":
            x = _side_by_side(clean["z"][at], R)
            if at == layer:
                new = corrupted_z[layer][:, heads].transpose(0, 1)  # (B,R,T,D) -> (R,B,T,D)
                x.unflatten(0, (R, -1))[range(R), :, heads] = new
        if site == "mlp_out" and freeze_mlps:
            x = _side_by_side(clean["mlp_out"][at], R)
        return x

    top = max(place[0] for place in receivers)
    _run_blocks(model, _side_by_side(clean["resid_pre"][layer], R), range(layer, top + 1), tap)
    return patches


def _run_received(model, clean, patches, R):
    """(R,B,C): the final residual vectors of R clean runs with these patches, of _receive."""

    def tap(at, site, x):
        for patch in patches:
            if (patch.layer, patch.site) == (at, site):
                x = patch.apply(x)
        return x

    # Below the lowest receiver all is as in the clean run.
    start = min(patch.layer for patch in patches)
    layers = range(start, model.config.n_layer)
    x = _run_blocks(model, _side_by_side(clean["resid_pre"][start], R), layers, tap)
    return x[:, -1].unflatten(0, (R, -1))


def _run_blocks(model, x, layers, tap):
    """The residual stream x (B,T,C) after these layers, with tap(layer, site, tensor) at every
    site.
    """
    for layer in layers:
        x = model.transformer.h[layer](x, partial(tap, layer))
    return x


def _side_by_side(x, R):
    """(R*B,...): R copies of x (B,...)."""
    return x.repeat(R, *[1] * (x.ndim - 1))
