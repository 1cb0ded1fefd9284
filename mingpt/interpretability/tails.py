"""How do many patched runs end? All of them in one pass up through the blocks, each at the least work.

A patch at layer l and position p changes nothing below layer l and nothing left of p. So a patched run is only its
tail: the residual stream from p on, from block l + 1 up; what lies left of p it reads, as keys and values, from the
run that it was patched into, the base run. After each block the runs patched there join those already on their way,
and the linear layers see the tokens of all of them as one matrix. In the last block only the last token is needed.
No approximation: the results are those of one patched forward per run, to rounding.
"""

from functools import partial

import torch
from torch.nn import functional as F

from mingpt.interpretability.inputs import check_mode
from mingpt.model import ATTENTION_SITES, HEAD_SITES, Patch, as_store


def needed(site):
    """The sites of the base run from which `patched_tails` works out what a patch at this site does."""
    inside = () if site in ("resid_pre", "resid_post") else ("resid_mid", "q", "z")
    return ("resid_pre", "resid_post", "k", "v", *inside)


def as_base(recorded):
    """What `record` gave for the sites needed, with the stream before the first block as layer -1 of resid_post."""
    return recorded | {"resid_post": {-1: recorded["resid_pre"][0], **recorded["resid_post"]}}


def run(model, ids, patches=(), stored=None):
    """model.stream, (B,T,C), checked: ValueError in training mode, and where what comes out is not finite."""
    check_mode(model)
    x = model.stream(ids, patches, stored)
    if not model.transformer.ln_f(x[:, -1]).isfinite().all():
        raise ValueError("the runs give values that are NaN or infinite; check the weights and the dtype")
    return x


def record(model, ids, sites):
    """{site: {layer: tensor}} of one run, copies; without the output matrix. The model itself keeps nothing of it."""
    stored = as_store(sites)
    run(model, ids, stored=stored)
    return stored


def record_with_gradient(model, ids, sites, patches=()):
    """(final residual stream (B,T,C), {(site, layer): tensor}) of one run, by which autograd can differentiate it."""
    kept = {}

    def keep(site, layer, x):
        kept[site, layer] = x if x.requires_grad else x.requires_grad_()
        return x

    layers = range(model.config.n_layer)
    return run(model, ids, [*patches, *(Patch(l, None, partial(keep, s, l), s) for l in layers for s in sites)]), kept


def finish(model, base, join, layers, positions, R, max_tokens=4096, every_token=False, read=lambda end: end, bar=None):
    """{(layer, position): read(end)}; end (B,R,1,C): the final residual vectors, before ln_f, of the runs patched.

    base: as_base of the run that the patches go into.
    join(layer, positions) -> {position: (B,R,T-p,C)}: the residual stream after block `layer`, from the position on,
    of the R runs that are patched there; layer -1 stands for the stream before the first block.
    every_token: end is (B,R,T-p,C), at all tokens of the tails, instead of the last token alone.
    max_tokens bounds the tokens under way at once, and so the memory; one run of all B inputs is never cut.
    """
    B, T, _ = base["resid_post"][0].shape
    ends = {}
    for some_layers, some_positions in _portions(layers, positions, T, B * R, max_tokens):
        tokens = sum(T - position for position in some_positions) * B * len(some_layers)  # of one of the R runs
        at_once = max(1, max_tokens // tokens)
        pieces = []
        for start in range(0, R, at_once):
            runs = slice(start, start + at_once)
            share = len(some_layers) * len(some_positions) * len(range(R)[runs]) / R
            pieces.append(_climb(model, base, join, some_layers, some_positions, runs, every_token, bar, share))
        for position in some_positions:
            ways = [tails[position].chunk(len(some_layers), dim=1) for tails in pieces]
            for layer, *end in zip(some_layers, *ways):
                ends[layer, position] = read(torch.cat(end, 1))
    return ends


def _portions(layers, positions, T, runs, max_tokens):
    """Cut layers x positions into pieces of at most max_tokens tokens, or of one layer and position."""
    portion, tokens = [], 0
    for position in positions:
        more = (T - position) * runs * len(layers)
        if portion and tokens + more > max_tokens:
            yield layers, portion
            portion, tokens = [], 0
        if more > max_tokens:
            at_once = max(1, max_tokens // ((T - position) * runs))
            for start in range(0, len(layers), at_once):
                yield layers[start : start + at_once], [position]
        else:
            portion, tokens = [*portion, position], tokens + more
    if portion:
        yield layers, portion


def _climb(model, base, join, layers, positions, runs, every_token, bar, share):
    """{position: (B,R*len(layers),n,C)}: these of the runs of these layers, in order, after the last block.

    The bar goes forward by share, after each block by the part of the work that is done.
    """
    tails, top = {}, len(model.transformer.h) - 1
    steps = top + 1 - layers[0]
    for layer in range(layers[0], top + 1):
        last_only = layer == top and not every_token
        if tails:
            tails = _through_block(model.transformer.h[layer], base["k"][layer], base["v"][layer], tails, last_only)
        if layer in layers:
            for position, tail in join(layer, positions).items():
                tail = tail[:, runs, -1:] if last_only else tail[:, runs]
                tails[position] = torch.cat((tails[position], tail), 1) if position in tails else tail
        if bar is not None:
            bar.update(share * 2 * (layer - layers[0] + 1) / (steps * (steps + 1)))
    return tails


def _through_block(block, base_k, base_v, tails, last_only):
    """The tails {position: (B,R,n,C)} after one more block; with last_only their last token alone, n = 1."""
    attn, C = block.attn, block.attn.c_attn.in_features
    x = _as_one_matrix(tails)
    normed = block.ln_1(x)
    if last_only:
        k, v = F.linear(normed, attn.c_attn.weight[C:], attn.c_attn.bias[C:]).chunk(2, -1)
        x = _as_one_matrix({position: tail[:, :, -1:] for position, tail in tails.items()})
        q = F.linear(block.ln_1(x), attn.c_attn.weight[:C], attn.c_attn.bias[:C])
    else:
        q, k, v = attn.c_attn(normed).chunk(3, -1)  # (N,3C) -> 3 x (N,C)
    z, asked, read = torch.empty_like(x), 0, 0
    shapes = {}
    for position, tail in tails.items():
        B, R, n, _ = tail.shape
        m = 1 if last_only else n
        rows, columns = slice(asked, asked + B * R * m), slice(read, read + B * R * n)
        asked, read, shapes[position] = rows.stop, columns.stop, (B, R, m, C)
        z[rows] = _attend(
            q[rows].view(B, R, m, C),
            k[columns].view(B, R, n, C),
            v[columns].view(B, R, n, C),
            base_k,
            base_v,
            position,
            attn,
        ).flatten(0, 2)
    x = x + attn.c_proj(z)
    x = x + block.mlp(block.ln_2(x))
    pieces = x.split([B * R * m for B, R, m, _ in shapes.values()])
    return {position: piece.view(shape) for (position, shape), piece in zip(shapes.items(), pieces)}


def _attend(q, k, v, base_k, base_v, p, attn):
    """z (B,R,m,C) of the last m tokens of each tail: keys and values left of p from the base run, from p on its own."""
    B, R, m, C = q.shape
    n, H = k.size(2), attn.n_head
    q, k, v = (x.view(B, R, -1, H, C // H).permute(0, 3, 1, 2, 4) for x in (q, k, v))  # (B,H,R,.,D)
    flat = q.reshape(B, H, R * m, -1)
    left = flat @ base_k[:, :, :p].mT  # (B,H,Rm,D) @ (B,H,D,p) -> (B,H,Rm,p)
    own = q @ k.mT  # (B,H,R,m,D) @ (B,H,R,D,n) -> (B,H,R,m,n)
    if m > 1:
        future = torch.ones(m, n, dtype=torch.bool, device=q.device).triu(1)
        own.masked_fill_(future, float("-inf"))
    scores = torch.cat((left.view(B, H, R, m, p), own), -1).mul_(attn.scale)  # (B,H,R,m,T)
    del left, own  # the scores are the largest tensors under way
    pattern = scores.softmax(-1)
    del scores
    z = (pattern[..., :p].reshape(B, H, R * m, p) @ base_v[:, :, :p]).view(B, H, R, m, -1)
    z = z + pattern[..., p:] @ v  # (B,H,R,m,n) @ (B,H,R,n,D) -> (B,H,R,m,D)
    return z.permute(0, 2, 3, 1, 4).reshape(B, R, m, C)


def _as_one_matrix(tails):
    return torch.cat([tail.reshape(-1, tail.size(-1)) for tail in tails.values()])


def patched_tails(model, base, new, site, layer, positions, each_position=True):
    """{position: (B,R,T-p,C)}: the residual stream after block `layer`, from each position on, with `site` patched.

    new: {layer: the site's tensor over all positions}, of which a run takes what is at its position, or with
    each_position=False all from its position on. R = H runs at the sites with heads, one per head; else R = 1.
    resid_pre is patched before block layer + 1.
    """
    old = base["resid_post"][layer]
    new, T = new[layer + 1 if site == "resid_pre" else layer], old.size(1)
    if each_position and site not in ("k", "v"):  # a row changes itself alone: all positions in one go
        changed = _replaced(model, base, site, layer, new, positions, positions)  # (B,R,P,C)
        rest = old[:, None].expand(-1, changed.size(1), -1, -1)
        return {p: torch.cat((changed[:, :, i : i + 1], rest[:, :, p + 1 :]), 2) for i, p in enumerate(positions)}
    rows = {p: list(range(p, T)) for p in positions}
    return {p: _replaced(model, base, site, layer, new, rows[p], [p] if each_position else rows[p]) for p in positions}


def _replaced(model, base, site, layer, new, rows, columns):
    """(B,R,n,C): the residual stream after block `layer` at the rows, with the site replaced by `new` there.

    k and v are replaced at the columns, and the rows read them.
    """
    block = model.transformer.h[layer]
    if site in ("resid_pre", "resid_post"):
        return new[:, None, rows]  # of block layer + 1 and of block layer
    mid = base["resid_mid"][layer][:, None, rows]  # (B,1,n,C)
    if site in HEAD_SITES + ATTENTION_SITES:
        old_z, C = base["z"][layer][:, :, rows], mid.size(-1)
        change = _new_z(block.attn, base, site, layer, new, rows, columns) - old_z  # (B,H,n,D)
        weight = block.attn.c_proj.weight.view(C, *change.shape[1::2])  # (C,C) -> (C,H,D)
        mid = mid + torch.einsum("bhnd,chd->bhnc", change, weight)
    elif site == "attn_out":
        mid = base["resid_pre"][layer][:, None, rows] + new[:, None, rows]
    elif site == "resid_mid":
        mid = new[:, None, rows]
    if site == "mlp_out":
        return mid + new[:, None, rows]
    if site == "mlp_post":
        return mid + block.mlp.c_proj(new[:, None, rows])
    if site == "mlp_pre":
        return mid + block.mlp.c_proj(block.mlp.activation(new[:, None, rows]))
    return mid + block.mlp(block.ln_2(mid))


def _new_z(attn, base, site, layer, new, rows, columns):
    """z (B,H,n,D) at the rows, with the site replaced."""
    if site == "z":
        return new[:, :, rows]
    q, k, v = (base[name][layer] for name in ("q", "k", "v"))  # (B,H,T,D)
    if site == "k":
        k = k.clone()
        k[:, :, columns] = new[:, :, columns]
    if site == "v":
        v = v.clone()
        v[:, :, columns] = new[:, :, columns]
    q = (new if site == "q" else q)[:, :, rows]
    if site == "pattern":
        return new[:, :, rows] @ v
    if site == "scores":
        return new[:, :, rows].softmax(-1) @ v
    future = torch.arange(k.size(2), device=q.device) > torch.as_tensor(rows, device=q.device)[:, None]  # (n,T)
    scores = (q @ k.mT * attn.scale).masked_fill(future, float("-inf"))  # (B,H,n,T)
    return scores.softmax(-1) @ v
