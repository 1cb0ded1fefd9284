"""Run many patched forwards at once, computing only what each patch can change.

A patch in a block, at a position, changes nothing below that block and nothing left of that position. So a patched run
is only its tail: the residual stream from the position on, which starts above the patched block. What lies left of it
is read, as keys and values, from the run that the patch goes into, the base run. On the way up, runs that start higher
join those already under way, and each linear layer sees the tokens of all of them as one matrix. In the last block
only the last token is needed. No approximation: the results are those of one patched forward per run, to rounding.

Where a run starts is a number from 0 to L: before that block; L is after the last one.
"""

import torch
from tqdm import tqdm

from mingpt.sites import SITES_WITH_HEADS

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total} [{elapsed}<{remaining}]"


def base_sites(site):
    """The sites that must be recorded of the base run for patches of this site."""
    sites = ("resid_pre", "resid_post", "k", "v")
    return (*sites, "resid_mid", "z") if site in SITES_WITH_HEADS else sites


def stream_at(base, start):
    """The base run's residual stream (B,T,C) before block `start`; after the last block for start = L."""
    return base["resid_pre"][start] if start in base["resid_pre"] else base["resid_post"][start - 1]


def last_token(end):
    """(B,R,n,C) -> (R,B,C): the final residual vector of each run."""
    return end[:, :, -1].transpose(0, 1)


def run_patched(
    model,
    base,
    inject,
    starts,
    positions,
    R,
    max_tokens=4096,
    read=last_token,
    every_token=False,
    desc=None,
):
    """{(start, position): (R,...)}: what `read` gives of the R patched runs that start there.

    base: {site: {layer: tensor}} of the base run of B inputs, with the sites of base_sites.
    inject: f(start, positions) -> {position: (B,R,T-position,C)}, the residual stream that the patched runs start with.
    starts, positions: ascending lists; there are R runs for each of their combinations.
    read: f((B,r,n,C)) -> (r,...), of some of these runs' final residual streams, before ln_f; n = 1, the last token, or
    with every_token n = T - position.
    max_tokens bounds the tokens under way at once, and so the memory; one run of all B inputs is never cut.
    desc: the progress bar's name; None shows none.
    """
    B, T, _ = stream_at(base, starts[0]).shape
    L = model.config.n_layer
    results = {}
    total = len(starts) * len(positions) * R
    with tqdm(total=total, desc=desc, bar_format=BAR, disable=None if desc else True) as bar:
        for chunk in _split(starts, positions, T, B, R, max_tokens):
            some_starts, some_positions, runs = chunk
            cells = len(some_starts) * len(some_positions) * len(range(R)[runs])
            steps = L + 1 - some_starts[0]
            tails = {}  # {position: (B,runs,n,C)}, of the runs under way
            for step, start in enumerate(range(some_starts[0], L + 1), 1):
                if start in some_starts:
                    tokens = slice(None) if every_token or start < L else slice(-1, None)
                    for position, tail in inject(start, some_positions).items():
                        _join(tails, position, tail[:, runs, tokens])
                if start < L:
                    block = model.transformer.h[start]
                    last_only = start == L - 1 and not every_token
                    tails = _through_block(
                        block, base["k"][start], base["v"][start], tails, last_only
                    )
                # The work grows as runs join: step s of n is s / (1 + ... + n) of it.
                bar.update(cells * 2 * step / (steps * (steps + 1)))
            for position, tail in tails.items():
                for start, end in zip(some_starts, tail.chunk(len(some_starts), dim=1)):
                    results.setdefault((start, position), []).append(read(end))
    return {cell: torch.cat(parts) for cell, parts in results.items()}


def _split(starts, positions, T, B, R, max_tokens):
    """Cut the runs into chunks (starts, positions, slice of R) of at most max_tokens tokens, or of a single run."""
    everything = slice(0, R)
    chunk = []
    tokens = 0  # of the chunk
    for position in positions:
        length = B * (T - position)  # of one run
        more = length * len(starts) * R
        if chunk and tokens + more > max_tokens:
            yield starts, chunk, everything
            chunk = []
            tokens = 0
        if more <= max_tokens:
            chunk.append(position)
            tokens += more
            continue
        # This position alone is too much: a few starts at a time, and if need be a few of the R runs.
        starts_at_once = max(1, max_tokens // (length * R))
        for first in range(0, len(starts), starts_at_once):
            some_starts = starts[first : first + starts_at_once]
            runs_at_once = max(1, max_tokens // (length * len(some_starts)))
            for run in range(0, R, runs_at_once):
                yield some_starts, [position], slice(run, run + runs_at_once)
    if chunk:
        yield starts, chunk, everything


def _join(tails, position, tail):
    """Put the runs that start here behind those under way at the same position."""
    if position in tails:
        tail = torch.cat((tails[position], tail), 1)
    tails[position] = tail


def _through_block(block, base_k, base_v, tails, last_only):
    """The tails {position: (B,R,n,C)} after one more block; with last_only their last token alone, n = 1.

    Block.forward itself cannot serve: left of a tail, keys and values (B,H,T,D) are the base run's.
    """
    attn = block.attn
    H = attn.n_head
    C = attn.c_attn.in_features
    sizes = [tail[..., 0].numel() for tail in tails.values()]
    x = _as_matrix(tails.values())  # (N,C)
    q, k, v = (
        part.split(sizes) for part in attn.c_attn(block.ln_1(x)).chunk(3, -1)
    )  # (N,3C) -> 3 x (N,C)
    if last_only:
        x = _as_matrix(tail[:, :, -1:] for tail in tails.values())

    z = []
    shapes = []
    for i, (position, tail) in enumerate(tails.items()):
        B, R, n, _ = tail.shape
        m = 1 if last_only else n  # tokens of each run that go on
        # (B*R*n,C) -> (B,H,R,n,D)
        tail_q, tail_k, tail_v = (
            part[i].view(B, R, n, H, C // H).permute(0, 3, 1, 2, 4) for part in (q, k, v)
        )
        tail_q = tail_q[:, :, :, n - m :]  # (B,H,R,m,D)
        flat_q = tail_q.reshape(B, H, R * m, -1)
        left = flat_q @ base_k[:, :, :position].mT  # (B,H,Rm,D) @ (B,H,D,p) -> (B,H,Rm,p)
        own = tail_q @ tail_k.mT  # (B,H,R,m,D) @ (B,H,R,D,n) -> (B,H,R,m,n)
        if m > 1:
            future = torch.ones(m, n, dtype=torch.bool, device=x.device).triu(1)
            own.masked_fill_(future, float("-inf"))
        scores = torch.cat((left.view(B, H, R, m, position), own), -1).mul_(
            attn.scale
        )  # (B,H,R,m,T)
        del left, own  # the scores are the largest tensors under way
        pattern = scores.softmax(-1)
        del scores
        to_left = pattern[..., :position].reshape(B, H, R * m, position)
        from_left = to_left @ base_v[:, :, :position]  # (B,H,Rm,p) @ (B,H,p,D) -> (B,H,Rm,D)
        tail_z = from_left.view(B, H, R, m, -1) + pattern[..., position:] @ tail_v  # (B,H,R,m,D)
        z.append(tail_z.permute(0, 2, 3, 1, 4).reshape(-1, C))  # heads side by side again
        shapes.append((B, R, m, C))

    x = x + attn.c_proj(torch.cat(z))
    x = x + block.mlp(block.ln_2(x))
    pieces = x.split([B * R * m for B, R, m, _ in shapes])
    return {position: piece.view(shape) for position, piece, shape in zip(tails, pieces, shapes)}


def _as_matrix(tails):
    return torch.cat([tail.reshape(-1, tail.size(-1)) for tail in tails])


def inject_site(model, base, new, site, each_position=True):
    """`inject` for run_patched: runs that start with `site` replaced by `new`, in the block below (resid_pre: above).

    new: {layer: the site's tensor over all positions}. A run takes what is at its position, or with
    each_position=False all from its position on. R = H runs at the sites with heads, one per head; else R = 1.
    """

    def inject(start, positions):
        layer = start if site == "resid_pre" else start - 1

        def patched(first, columns):  # (B,R,T-first,C)
            return patched_stream(model, base, layer, site, new[layer], first, columns)

        if not each_position:
            return {position: patched(position, slice(None)) for position in positions}
        if site in ("k", "v"):  # every later token reads them
            return {position: patched(position, [position]) for position in positions}
        # Every other site changes the stream at its own position alone: one go serves all positions.
        first = positions[0]
        changed = patched(first, slice(None))
        rest = stream_at(base, start)[:, None].expand(-1, changed.size(1), -1, -1)
        return {
            position: torch.cat((changed[:, :, [position - first]], rest[:, :, position + 1 :]), 2)
            for position in positions
        }

    return inject


def patched_stream(model, base, layer, site, new, first, columns):
    """(B,R,T-first,C): the residual stream from position `first` on after a block in which the site is replaced.

    At the positions `columns` it is `new`, its tensor over all positions; resid_pre is itself what comes back.
    At the sites with heads there is a run for each head, in which that head alone is replaced: R = H; else R = 1.
    """
    if site in ("resid_pre", "resid_post"):
        return new[:, None, first:]
    block = model.transformer.h[layer]
    before = base["resid_pre"][layer]  # (B,T,C)
    seen = {}

    def tap(name, x):
        if name == site:
            x = x.clone()
            x[..., columns, :] = new[..., columns, :]
        seen[name] = x
        return x

    if site not in SITES_WITH_HEADS:
        return block(before, tap)[:, None, first:]
    # Heads do not read each other: one attention with all of them replaced gives what each alone would write.
    block.attn(block.ln_1(before), tap)
    change = (seen["z"] - base["z"][layer])[:, :, first:]  # (B,H,n,D)
    weight = block.attn.c_proj.weight.unflatten(1, (block.attn.n_head, -1))  # (C,C) -> (C,H,D)
    mid = base["resid_mid"][layer][:, None, first:] + torch.einsum("bhnd,chd->bhnc", change, weight)
    return mid + block.mlp(block.ln_2(mid))
