"""Run many patched forwards at once, computing only what each patch can change.

A patch in a block, at a position, changes nothing below that block and nothing left of that
position. So a patched run is only its tail: the residual stream from the position on, which starts
above the patched block. What lies left of it is read, as keys and values, from the run that the
patch goes into, the base run. On the way up, runs that start higher join those already under way,
and each linear layer sees the tokens of all of them as one matrix. In the last block only the last
token is needed. No approximation: the results are those of one patched forward per run, to
rounding.

Where a run starts is a number from 0 to L: before that block; L is after the last one.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from mingpt.common import progress_bar
from mingpt.model import GPT, CausalSelfAttention
from mingpt.sites import SITES_WITH_HEADS, Activations

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}]"


def base_sites(site: str) -> tuple[str, ...]:
    """The sites that must be recorded of the base run for patches of this site."""
    sites = ("resid_pre", "resid_post", "k", "v")
    if site in SITES_WITH_HEADS:
        return (*sites, "resid_mid", "z")
    return sites


def stream_at(base: Activations, start: int) -> Tensor:
    """The base run's residual stream (B,T,C) before block `start`; for start = L after the last."""
    if start in base["resid_pre"]:
        return base["resid_pre"][start]
    return base["resid_post"][start - 1]


def last_token(end: Tensor) -> Tensor:
    """(B,R,n,C) -> (R,B,C): the final residual vector of each run."""
    return end[:, :, -1].transpose(0, 1)


@dataclass
class PatchedRuns:
    """Which patched runs there are, R for each start and position, and what they start with."""

    starts: list[int]  # ascending, each from 0 to L
    positions: Sequence[int]  # ascending
    R: int
    # f(start, positions) -> {position: (B,R,T-position,C)}, residual streams.
    inject: Callable[[int, Sequence[int]], dict[int, Tensor]]


def run_patched(
    model: GPT,
    base: Activations,
    patched: PatchedRuns,
    max_tokens: int = 4096,
    read: Callable[[Tensor], Tensor] = last_token,
    every_token: bool = False,
    desc: str | None = None,
) -> Tensor:
    """(starts, positions, R, ...): what `read` gives of the PatchedRuns at their end.

    base: {site: {layer: tensor}} of the base run of B inputs, with the sites of base_sites.
    read: f((B,r,n,C)) -> (r,...), of some of these runs' final residual streams, before ln_f;
    n = 1, the last token, or with every_token n = T - position.
    max_tokens: how many tokens may be under way at once, which bounds the memory; one run of all B
    inputs is never cut. desc: the progress bar's name; None shows none.
    """
    B, T, _ = stream_at(base, 0).shape
    L = model.config.n_layer
    ends = defaultdict(list)  # {(start, position): [(r,...), ...]}
    total = len(patched.starts) * len(patched.positions) * patched.R
    is_shown = desc is not None
    with progress_bar(total=total, desc=desc, bar_format=BAR, shown=is_shown) as bar:
        for starts, positions, chosen in _split(patched, B, T, max_tokens):
            n_runs = len(range(patched.R)[chosen])
            share = len(starts) * len(positions) * n_runs
            steps = range(starts[0], L + 1)
            work = sum(range(1, len(steps) + 1))  # it grows as runs join: step s is s of it
            tails: dict[int, Tensor] = {}  # {position: (B,r,n,C)}, of the runs under way
            for step, start in enumerate(steps, 1):
                if start in starts:
                    # Behind the last block only the last token is left of the runs under way.
                    tokens = slice(None) if every_token or start < L else slice(-1, None)
                    for position, tail in patched.inject(start, positions).items():
                        _join(tails, position, tail[:, chosen, tokens])
                if start < L:
                    last_only = start == L - 1 and not every_token
                    tails = _through_block(model, base, start, tails, last_only)
                bar.update(share * step / work)
            for position, tail in tails.items():
                by_start = tail.chunk(len(starts), dim=1)
                for start, end in zip(starts, by_start):
                    ends[start, position].append(read(end))
    cells = product(patched.starts, patched.positions)
    results = torch.stack([torch.cat(ends[cell]) for cell in cells])
    return results.unflatten(0, (len(patched.starts), -1))


def _split(patched, B, T, max_tokens):
    """Cut the runs into chunks (starts, positions, slice of R).

    A chunk has at most max_tokens tokens, or is a single run.
    """
    everything = slice(0, patched.R)
    chunk: list[int] = []
    tokens = 0  # of the chunk
    for position in patched.positions:
        length = B * (T - position)  # of one run
        more = length * len(patched.starts) * patched.R
        if chunk and tokens + more > max_tokens:
            yield patched.starts, chunk, everything
            chunk = []
            tokens = 0
        if more <= max_tokens:
            chunk.append(position)
            tokens += more
            continue
        # This position alone is too much: some starts at a time, and if need be some of the R runs.
        starts_at_once = max(1, max_tokens // (length * patched.R))
        for first in range(0, len(patched.starts), starts_at_once):
            starts = patched.starts[first : first + starts_at_once]
            runs_at_once = max(1, max_tokens // (length * len(starts)))
            for run in range(0, patched.R, runs_at_once):
                yield starts, [position], slice(run, run + runs_at_once)
    if chunk:
        yield patched.starts, chunk, everything


def _join(tails, position, tail):
    """Put the runs that start here behind those under way at the same position."""
    if position in tails:
        tail = torch.cat((tails[position], tail), 1)
    tails[position] = tail


def _through_block(model, base, layer, tails, last_only):
    """The tails {position: (B,R,n,C)} after one more block; with last_only the last token, n = 1.

    Block.forward itself cannot serve: left of a tail, keys and values are the base run's.
    """
    block = model.transformer.h[layer]
    attn = block.attn
    sizes = [tail[..., 0].numel() for tail in tails.values()]
    x = _as_matrix(tails)  # (N,C): all tokens of all runs, so that each weight is read once
    qkv = attn.c_attn(block.ln_1(x)).split(sizes)  # (N,C) -> (N,3C), cut into the tails
    if last_only:
        tails = {position: tail[:, :, -1:] for position, tail in tails.items()}
        x = _as_matrix(tails)

    z = []
    for tail_qkv, (position, tail) in zip(qkv, tails.items()):
        B, R, m, C = tail.shape
        heads = tail_qkv.view(B, R, -1, 3, attn.n_head, C // attn.n_head)
        q, k, v = heads.permute(3, 0, 4, 1, 2, 5)  # (BRn,3C) -> 3 x (B,H,R,n,D)
        q = q[:, :, :, -m:]  # (B,H,R,m,D)
        base_k = base["k"][layer][:, :, :position]
        base_v = base["v"][layer][:, :, :position]
        tail_z = _attend(q, k, v, base_k, base_v, attn.scale)
        tail_z = tail_z.permute(0, 2, 3, 1, 4)  # (B,R,m,H,D)
        z.append(tail_z.reshape(-1, C))  # heads side by side again

    x = x + attn.c_proj(torch.cat(z))
    x = x + block.mlp(block.ln_2(x))
    sizes = [tail[..., 0].numel() for tail in tails.values()]
    pieces = zip(tails, x.split(sizes))
    return {position: piece.view_as(tails[position]) for position, piece in pieces}


def _attend(q, k, v, base_k, base_v, scale):
    """z (B,H,R,m,D) of the queries q of the last m tokens of a tail.

    Keys and values left of the tail are the base run's, base_k and base_v (B,H,p,D), the same for
    all R runs; those from the position p on, k and v (B,H,R,n,D), are each run's own. One softmax
    goes over both.
    """
    R, m, _ = q.shape[2:]
    left = q.flatten(2, 3) @ base_k.mT  # (B,H,Rm,D) @ (B,H,D,p) -> (B,H,Rm,p)
    own = q @ k.mT  # (B,H,R,m,D) @ (B,H,R,D,n) -> (B,H,R,m,n)
    # A single token, the last one, has no token in its future.
    if m > 1:
        future = torch.ones_like(own[0, 0, 0], dtype=torch.bool).triu(1)
        own.masked_fill_(future, float("-inf"))
    left = left.unflatten(2, (R, m))  # (B,H,Rm,p) -> (B,H,R,m,p)
    scores = torch.cat((left, own), -1)  # (B,H,R,m,T)
    del left, own  # the scores are the largest tensors under way
    scores *= scale
    pattern = scores.softmax(-1)
    del scores
    p = base_k.size(2)
    to_left = pattern[..., :p].flatten(2, 3)
    left_z = to_left @ base_v  # (B,H,Rm,p) @ (B,H,p,D) -> (B,H,Rm,D)
    own_z = pattern[..., p:] @ v  # (B,H,R,m,n) @ (B,H,R,n,D) -> (B,H,R,m,D)
    return left_z.unflatten(2, (R, m)) + own_z


def _as_matrix(tails):
    """(N,C): the tokens of all tails, one after the other."""
    return torch.cat([tail.flatten(0, 2) for tail in tails.values()])


def patch_site(
    model: GPT,
    base: Activations,
    new: dict[int, Tensor],
    site: str,
    positions: Sequence[int],
    each_position: bool = True,
    layers: Iterable[int] | None = None,
    head: int | None = None,
) -> PatchedRuns:
    """The PatchedRuns in which `site` of one layer is replaced by `new`, for each of the layers.

    new: {layer: the site's tensor over all positions}. A run takes what is at its position, or with
    each_position=False all from its position on. layers: ascending; None for all. At the sites with
    heads there are R = H runs, one for each head, or the one of `head`; else R = 1.
    """
    layers = range(model.config.n_layer) if layers is None else layers
    # The block above a run's start is the first that reads what was patched.
    above = 0 if site == "resid_pre" else 1
    starts = [layer + above for layer in layers]
    chosen = slice(None) if head is None else slice(head, head + 1)
    R = model.config.n_head if head is None and site in SITES_WITH_HEADS else 1

    def inject(start, positions):
        layer = start - above

        def replace(rows, columns=slice(None)):  # (B,R,rows,C)
            return patched_stream(model, base, layer, site, new[layer], rows, columns, chosen)

        if not each_position:
            return {position: replace(slice(position, None)) for position in positions}
        if site in ("k", "v"):  # every later token reads them
            return {p: replace(slice(p, None), [p]) for p in positions}
        # Every other site changes its own position alone: one go serves all positions.
        changed = replace(positions)
        unpatched = stream_at(base, start)[:, None]  # (B,1,T,C)
        unpatched = unpatched.expand(-1, R, -1, -1)
        tails = {}
        for i, position in enumerate(positions):
            own = changed[:, :, [i]]  # (B,R,1,C)
            rest = unpatched[:, :, position + 1 :]
            tails[position] = torch.cat((own, rest), 2)
        return tails

    return PatchedRuns(starts, positions, R, inject)


def patched_stream(
    model: GPT,
    base: Activations,
    layer: int,
    site: str,
    new: Tensor,
    rows: slice | Sequence[int] = slice(None),
    columns: slice | Sequence[int] = slice(None),
    heads: slice = slice(None),
) -> Tensor:
    """(B,R,rows,C): the residual stream after a block with the site replaced, at some positions.

    new: the site's tensor over all positions, of which the positions `columns` are put in. rows:
    the positions whose stream is asked for.
    At the sites with heads there is a run for each of the heads, in which it alone is replaced:
    R = H, or as many as the slice `heads` takes; else R = 1. At resid_pre it is the stream before
    the block that comes back.
    """
    if site in ("resid_pre", "resid_post"):
        return new[:, None, rows]
    block = model.transformer.h[layer]
    before = base["resid_pre"][layer]  # (B,T,C)
    seen = {"z": new}  # where the site is z itself, it is known

    def tap(name, x):
        if name == site:
            x = x.clone()
            x[..., columns, :] = new[..., columns, :]
        seen[name] = x
        return x

    if site not in SITES_WITH_HEADS:
        return block(before, tap)[:, None, rows]
    # Heads do not read each other: one attention with all of them replaced gives what each alone
    # would write.
    if site != "z":
        block.attn(block.ln_1(before), tap)
    change = seen["z"] - base["z"][layer]  # (B,H,T,D)
    written = written_by_heads(block.attn, change[:, :, rows])  # (H,B,n,C)
    mid = base["resid_mid"][layer][:, None, rows]
    mid = mid + written[heads].transpose(0, 1)  # (B,1,n,C) + (B,R,n,C)
    return mid + block.mlp(block.ln_2(mid))


def written_by_heads(attn: CausalSelfAttention, z: Tensor) -> Tensor:
    """(H,B,T,C): what each head adds to the residual stream, of z (B,H,T,D)."""
    weight = attn.c_proj.weight.unflatten(1, (attn.n_head, -1))  # (C,C) -> (C,H,D)
    return torch.einsum("bhtd,chd->hbtc", z, weight)
