"""What does each edge between two parts of the model carry?"""

from typing import NamedTuple

import torch
from torch.nn import functional as F
from tqdm import tqdm

from mingpt.interpretability import partial_runs, runs
from mingpt.interpretability.inputs import answer_pair, encode_pair, parse_component
from mingpt.interpretability.readout import answer_direction, logit_diff
from mingpt.interpretability.tasks import as_batches
from mingpt.sites import HEAD_SITES, Patch


class Layout(NamedTuple):
    """The graph of a model, in order: per layer its heads (2.1: layer, head) and its MLP."""

    senders: list  # embed, 0.0, ..., mlp 0, 1.0, ...
    readers: list  # 0.0.q, ..., 0.0.k, ..., 0.0.v, ..., mlp 0, 1.0.q, ..., logits
    nodes: list  # of each reader, the node that it belongs to: 2.1.q -> 2.1
    possible: torch.Tensor  # bool (readers, senders): the edges that exist


def layout(model):
    """The model's Layout."""
    senders, readers, nodes, seen = ["embed"], [], [], []
    for layer in range(model.config.n_layer):
        heads, mlp = [f"{layer}.{head}" for head in range(model.config.n_head)], f"mlp {layer}"
        readers += [*(f"{head}.{site}" for site in "qkv" for head in heads), mlp]
        nodes += [*heads * 3, mlp]
        seen += [len(senders)] * 3 * len(heads) + [len(senders) + len(heads)]
        senders += [*heads, mlp]
    possible = torch.arange(len(senders)) < torch.tensor([*seen, len(senders)])[:, None]
    return Layout(senders, [*readers, "logits"], [*nodes, "logits"], possible)


def _outputs(model, ids, sites=()):
    """(what the run keeps, what each sender writes to the residual stream (S,B,T,C); biases are no sender's)."""
    kept = runs.record(model, ids, ("resid_pre", "resid_mid", "resid_post", "z", "mlp_out", *sites))
    written = [kept["resid_pre"][0][None]]
    for layer, block in enumerate(model.transformer.h):
        written += [_through_heads(block.attn, kept["z"][layer]), kept["mlp_out"][layer][None]]
    return kept, torch.cat(written)


def _through_heads(attn, z):
    """(H,B,T,C): what each head adds to the residual stream, of z (B,H,T,D)."""
    weight = attn.c_proj.weight.unflatten(1, (attn.n_head, -1))  # (C,H,D)
    return torch.einsum("bhtd,chd->hbtc", z, weight)


def _metric(model, direction, ends):
    """The metric of final residual vectors (...,B,C): (...,B), in logits; positive = the right answer is ahead."""
    wide = torch.promote_types(ends.dtype, torch.float32)
    return (model.transformer.ln_f(ends).to(wide) * direction.to(wide)).sum(-1)


@torch.no_grad()
def run_circuit(model, batch, mask, start=0):
    """(B,): the metric when along the edges in mask (readers, senders) the clean run goes, and along all others not.

    Over the other edges each reader gets what the sender has in the corrupted run. Cost: 2 passes, with 3H copies of
    the stream, since each head's q, k and v may read another one. start: the layer below which mask has all edges, so
    that it is the clean run.
    """
    (kept, old), (_, clean) = _outputs(model, batch.corrupted), _outputs(model, batch.clean)
    H, L, mask = model.config.n_head, model.config.n_layer, mask.to(old)
    change = torch.zeros_like(old)  # of each sender's output, (S,B,T,C)
    change[: 1 + start * (H + 1)] = (clean - old)[: 1 + start * (H + 1)]
    for layer, block in list(enumerate(model.transformer.h))[start:]:
        n, rows = 1 + layer * (H + 1), mask[layer * (3 * H + 1) :]
        read = kept["resid_pre"][layer] + torch.einsum(
            "rs,sbtc->rbtc", rows[: 3 * H, :n], change[:n]
        )
        weight = block.attn.c_attn.weight.view(3, H, -1, old.size(-1))  # (3C,C) -> (3,H,D,C)
        qkv = torch.einsum("xhbtc,xhdc->xbhtd", block.ln_1(read).unflatten(0, (3, H)), weight)
        q, k, v = qkv + block.attn.c_attn.bias.view(3, 1, H, 1, -1)  # (B,H,T,D) each
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=block.attn.scale)
        change[n : n + H] = _through_heads(block.attn, z) - old[n : n + H]
        read = kept["resid_mid"][layer] + torch.einsum(
            "s,sbtc->btc", rows[3 * H, : n + H], change[: n + H]
        )
        change[n + H] = block.mlp(block.ln_2(read)) - old[n + H]
    end = kept["resid_post"][L - 1][:, -1] + torch.einsum("s,sbc->bc", mask[-1], change[:, :, -1])
    return _metric(model, batch.direction, end)


@torch.no_grad()
def _unpatched(model, batches):
    """The metric of each pair's clean and of its corrupted run, 2 x (pairs,)."""
    runs = [torch.cat((batch.clean, batch.corrupted)) for batch in batches]
    ends = [
        model.stream(ids)[:, -1].view(2, len(batch.clean), -1) for ids, batch in zip(runs, batches)
    ]
    return torch.cat([_metric(model, batch.direction, end) for end, batch in zip(ends, batches)], 1)


def edge_attribution(model, task, method="eap-ig-inputs", steps=5, max_tokens=4096):
    """Score of every edge, (readers, senders) as in `layout`, in logits, averaged over the pairs; 0 where none is.

    How far the metric falls when in the clean run the edge alone carries what it carries in the corrupted run;
    positive = the edge speaks for the right answer. method "exact": each edge patched. "eap": to first order, (clean -
    corrupted output) times the gradient at the reader in the clean run. "eap-ig-inputs": the gradient averaged over
    runs whose embeddings lie k/steps of the way from corrupted to clean, k = 1 ... steps.
    Cost: 2 passes; and exact, the tails of a run per edge; eap, a pass and a backward; eap-ig-inputs, steps of them.
    """
    if method not in ("exact", "eap", "eap-ig-inputs") or steps < 1:
        raise ValueError(
            f'method must be "exact", "eap" or "eap-ig-inputs", steps from 1; got {method!r}, {steps}'
        )
    runs.check_model(model)
    batches = as_batches(model, task)
    total = sum(len(batch.clean) for batch in batches)
    scores = 0
    for batch in tqdm(batches, desc=method, unit="batch", disable=None):
        if method == "exact":
            scores = scores + _exact_scores(model, batch, max_tokens)
        else:
            scores = scores + _gradient_scores(model, batch, 1 if method == "eap" else steps)
    return scores / total


def _gradient_scores(model, batch, steps):
    """Summed over the pairs; steps = 1 is the gradient of the clean run itself."""
    with torch.no_grad():
        (_, clean), (_, corrupted) = _outputs(model, batch.clean), _outputs(model, batch.corrupted)
    scores = 0
    for step in range(1, steps + 1):
        embedding = torch.lerp(corrupted[0], clean[0], step / steps)
        gradients = _gradients(model, batch, embedding)
        scores = scores + torch.cat(
            [torch.einsum("rbtc,sbtc->rs", g, clean - corrupted) for g in gradients]
        )
    return scores * layout(model).possible.to(scores) / steps


def _gradients(model, batch, embedding):
    """The metric's gradient by what each reader reads, in pieces (some readers,B,T,C), in the order of `layout`."""
    H, sites = (
        model.config.n_head,
        ("resid_pre", "q", "k", "v", "resid_mid", "mlp_pre", "resid_post"),
    )
    with torch.enable_grad():
        start = [Patch(0, None, embedding, "resid_pre")]
        end, kept = runs.record_with_gradient(model, batch.clean, sites, start)
        metric = _metric(model, batch.direction, end[:, -1]).sum()
        by = dict(zip(kept, torch.autograd.grad(metric, list(kept.values()))))
    pieces = []
    for layer, block in enumerate(model.transformer.h):
        qkv = torch.stack([by[site, layer] for site in "qkv"])  # (3,B,H,T,D)
        weight = block.attn.c_attn.weight.detach().view(3, H, -1, embedding.size(-1))
        by_norm = torch.einsum("xbhtd,xhdc->xhbtc", qkv, weight).flatten(0, 1)  # (3H,B,T,C)
        pieces.append(_through_norm(block.ln_1, kept["resid_pre", layer], by_norm))
        by_norm = (
            by["mlp_pre", layer] @ block.mlp.c_fc.weight.detach()
        )  # (B,T,4C) @ (4C,C) -> (B,T,C)
        pieces.append(_through_norm(block.ln_2, kept["resid_mid", layer], by_norm[None]))
    return [*pieces, by["resid_post", model.config.n_layer - 1][None]]


def _through_norm(norm, x, gradients):
    """Gradients (R,B,T,C) by the layer norm's output -> by its input x (B,T,C)."""
    x = x.detach().expand_as(gradients).requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(norm(x), x, gradients)[0]


@torch.no_grad()
def _exact_scores(model, batch, max_tokens):
    """Summed over the pairs, by patched runs that all end in `tails.finish`."""
    kept, clean = _outputs(model, batch.clean, ("q", "k", "v"))
    change = _outputs(model, batch.corrupted)[1] - clean  # (S,B,T,C)
    base, (B, T), H = kept, batch.clean.shape, model.config.n_head
    intact = _metric(
        model, batch.direction, kept["resid_post"][model.config.n_layer - 1][:, -1]
    ).sum()
    scores = []

    def fall(end):  # (B,R,1,C) -> (R,)
        return intact - _metric(model, batch.direction, end[:, :, 0].transpose(0, 1)).sum(-1)

    for layer in range(model.config.n_layer):
        n = 1 + layer * (H + 1)
        for n_runs, senders, read in ((3 * H, n, _heads_read), (1, n + H, _mlp_reads)):
            at_once = max(1, max_tokens // (B * T * n_runs))
            found = []
            for some in change[:senders].split(at_once):

                def inject(start, positions, some=some, read=read):
                    return {0: read(model, base, start - 1, some)}

                ends = partial_runs.run_patched(
                    model, base, inject, [layer + 1], [0], n_runs * len(some), read=fall
                )
                found.append(ends[0, 0])
            scores.append(
                F.pad(torch.cat(found).view(senders, n_runs).T, (0, len(change) - senders))
            )
    ends = kept["resid_post"][model.config.n_layer - 1][:, -1] + change[:, :, -1]  # (S,B,C)
    return torch.cat([*scores, fall(ends.transpose(0, 1)[:, :, None])[None]])


def _heads_read(model, base, layer, changes):
    """(B,S*3H,T,C): the stream after the block when one head's q, k or v reads a stream changed by one of (S,B,T,C)."""
    block = model.transformer.h[layer]
    qkv = block.attn.c_attn(block.ln_1(base["resid_pre"][layer] + changes)).unflatten(
        -1, (3, model.config.n_head, -1)
    )
    streams = []
    for one in qkv:  # (B,T,3,H,D)
        for site, new in zip("qkv", one.permute(2, 0, 3, 1, 4)):  # (B,H,T,D)
            streams.append(
                partial_runs.patched_stream(model, base, layer, site, new, 0, slice(None))
            )
    return torch.cat(streams, 1)


def _mlp_reads(model, base, layer, changes):
    """(B,S,T,C): the same for the MLP."""
    block, mid = model.transformer.h[layer], base["resid_mid"][layer]
    return (mid + block.mlp(block.ln_2(mid + changes))).transpose(0, 1)


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
    """Effect of a head, (layer, head), along its direct paths to the receiver, in logits; sender None: of all, (L,H).

    The clean run with one head's output taken from the corrupted run, as far as the receiver reads it: all other heads
    stay as in the clean run, MLPs on the way are computed anew, or stay too with freeze_mlps. Then the clean run with
    what the receiver makes of it, and all else above computed anew. effect = logit_diff of that run - logit_diff of
    the clean run, where logit_diff = logit(corrupted answer) - logit(clean answer) at the last position, averaged over
    the pairs; positive = the path carries the clean answer. 0 where no path leads from the head to the receiver.
    receiver: "logits", (layer, "mlp"), (layer, head, "q") or "k" or "v", or a list of these, received together.
    Inputs and answers as in patch_layers. Cost: 2 passes, and for each head the MLPs below the receiver and 1 pass.
    Source: Wang et al. 2022 (arXiv 2211.00593), appendix B.
    """
    runs.check_model(model)
    clean, corrupted = encode_pair(model, clean_input, corrupted_input)
    right, wrong = answer_pair(model, clean, corrupted, target_token, corrupted_token)
    receivers = _receivers(model, receiver)
    if len(receivers) > 1 and any(site == "logits" for _, site, _ in receivers):
        raise ValueError(
            '"logits" receive by themselves: what else received would reach them a second time'
        )
    if sender is not None and not (isinstance(sender, tuple) and len(sender) == 2):
        raise ValueError(f"sender must be (layer, head) or None, got {sender!r}")
    senders = [parse_component(model, sender)[1:3]] if sender else None
    base = runs.record(model, clean, ("resid_pre", "resid_mid", "resid_post", "mlp_out", "z"))
    z = runs.record(model, corrupted, ("z",))["z"]
    direction = answer_direction(model, right, wrong)[:, None]
    measure = lambda streams: -logit_diff(model, streams[:, :, -1], direction).mean(0)
    L, H, (B, T) = model.config.n_layer, model.config.n_head, clean.shape
    unpatched = measure(base["resid_post"][L - 1][:, None])
    effect = unpatched.new_zeros(L, H)
    top = max(layer for layer, _, _ in receivers)
    senders = senders or [(layer, head) for layer in range(min(top + 1, L)) for head in range(H)]
    at_once = max(1, max_tokens // (B * T))
    for start in tqdm(
        range(0, len(senders), at_once), desc="path patching", unit="batch", disable=None
    ):
        some = senders[start : start + at_once]
        patches, change = _received(model, base, z, some, receivers, freeze_mlps)
        ids = clean.expand(len(some), B, T).reshape(-1, T)  # runs side by side, each with all pairs
        end = runs.run(model, ids, patches)[:, -1].view(len(some), B, -1) + change[:, :, -1]
        effect[tuple(zip(*some))] = measure(end.transpose(0, 1)[:, :, None]) - unpatched
    return effect[senders[0]].item() if sender else effect


def _receivers(model, receiver):
    """[(layer, site, head)]: where receivers are put into a run; the logits as layer L."""
    found = []
    for each in receiver if isinstance(receiver, list) and receiver else [receiver]:
        pieces = tuple(each) if isinstance(each, (tuple, list)) else ()
        if each == "logits":
            found.append((model.config.n_layer, "logits", None))
        elif len(pieces) == 2 and pieces[1] == "mlp":
            found.append((parse_component(model, pieces).layer, "mlp_out", None))
        elif len(pieces) == 3 and pieces[2] in ("q", "k", "v"):
            _, layer, head, _ = parse_component(model, pieces)
            found.append((layer, pieces[2], head))
        else:
            raise ValueError(
                f'no receiver {each!r}; write "logits", (3, "mlp"), (3, 5, "q"), or "k" or "v", or a list'
            )
    return found


def _received(model, base, z, senders, receivers, freeze_mlps):
    """(patches with what each receiver makes of the senders, what reaches the logits directly (R,B,T,C)).

    base: of the clean run; z: of the corrupted one. The patches are for R*B inputs, run after run.
    """
    heads = {
        layer: [(i, head) for i, (at, head) in enumerate(senders) if at == layer]
        for layer, _ in senders
    }
    change = base["resid_pre"][0].new_zeros(
        len(senders), *base["resid_pre"][0].shape
    )  # of the stream, (R,B,T,C)
    patches = []
    for layer, block in enumerate(model.transformer.h):
        here = [(site, head) for at, site, head in receivers if at == layer]
        if any(site in HEAD_SITES for site, _ in here):
            qkv = block.attn.c_attn(block.ln_1(base["resid_pre"][layer] + change)).flatten(
                0, 1
            )  # (RB,T,3C)
            qkv = qkv.unflatten(-1, (3, model.config.n_head, -1))  # (RB,T,3,H,D)
        for i, head in heads.get(layer, ()):
            weight = block.attn.c_proj.weight.view(change.size(-1), model.config.n_head, -1)[
                :, head
            ]  # (C,D)
            change[i] += (
                z[layer][:, head] - base["z"][layer][:, head]
            ) @ weight.T  # (B,T,D) @ (D,C) -> (B,T,C)
        mlp_out = block.mlp(block.ln_2(base["resid_mid"][layer] + change))  # (R,B,T,C)
        for site, head in here:
            new = mlp_out.flatten(0, 1) if site == "mlp_out" else qkv[:, :, "qkv".index(site), head]
            patches.append(Patch(layer, None, new, site, head))
        if not freeze_mlps:
            change = change + mlp_out - base["mlp_out"][layer]
    if not any(site == "logits" for _, site, _ in receivers):
        change = torch.zeros_like(change)
    return patches, change
