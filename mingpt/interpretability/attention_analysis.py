"""Where does the model look? Every head's attention pattern, drawn, measured, and sorted by known kinds of heads.

A pattern says from which tokens a head collects, not what it takes there nor whether anything depends on it: patch or
ablate for that. A score says how much lies where a head of that kind would look on these inputs; on others it may not.
Sources: Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits), Olsson et al. 2022 (arXiv 2209.11895).
"""

import torch
from torch.nn import functional as F

from mingpt.interpretability import figures, runs
from mingpt.interpretability.inputs import encode, token_texts

KINDS = "previous_token duplicate_token induction first_token current_token positional delimiter".split()
THRESHOLDS = dict.fromkeys(KINDS, 0.4) | {
    "positional": 0.85
}  # the score from which a head is named
DELIMITERS = {
    ")": "(",
    "]": "[",
    "}": "{",
    '"': '"',
}  # closing: opening; curly quotes are bytes, not tokens


@torch.no_grad()
def extract_attention(model, text):
    """pattern (L,H,T,T), probabilities; rows are queries and sum to 1. text: one text, or ids (1,T). Cost: 1 pass."""
    ids = encode(model, text)
    if len(ids) != 1:
        raise ValueError(f"attention is read from one text at a time, got {len(ids)}")
    return torch.cat(
        list(runs.record(model, ids, ["pattern"])["pattern"].values())
    )  # L x (1,H,T,T) -> (L,H,T,T)


def plot_attention_head(model, text, layer, head, save_path=None):
    """plot_all_heads of one head alone: rows are queries, columns keys; on the .html page it is the first shown."""
    return plot_all_heads(model, text, save_path, (layer, head))


def plot_all_heads(model, text, save_path=None, only=None):
    """The matplotlib Figure of every head's pattern, layers down, heads across; or of the `only` one, (layer, head).

    save_path: .png, .svg, .pdf write that; .html instead writes a page to look around in, weights to 0.001, which needs
    no network, and gives None. ValueError above 20 million weights. Cost: 1 pass.
    """
    if save_path:
        figures.check_output(save_path, (*figures.SUFFIXES, ".html"))
    (layer, head), L, H = only or (0, 0), model.config.n_layer, model.config.n_head
    if layer not in range(L) or head not in range(H):
        raise ValueError(
            f"no head {layer}.{head}; the layers are 0 to {L - 1}, each with heads 0 to {H - 1}"
        )
    html, ids = str(save_path).endswith(".html"), encode(model, text)
    patterns = extract_attention(model, ids).cpu().float()  # (L,H,T,T)
    patterns = patterns[layer, head][None, None] if only and not html else patterns
    if patterns.numel() > 2e7:
        raise ValueError(
            f"{patterns.numel():,} weights are too many to show; draw one head, or give fewer tokens"
        )
    labels = figures.token_labels(token_texts(model, ids[0]))
    if not html:
        title = f"layer {layer}, head {head}" if only else "every head, as layer.head"
        return figures.shown(_draw(patterns, labels, title), save_path)
    data = {"text": model.tokenizer.decode(ids[0]) if model.tokenizer else "", "tokens": labels}
    data |= {
        "layer": int(layer),
        "head": int(head),
        "weights": (1000 * patterns).round().int().tolist(),
    }
    figures.save_page("attention", data, save_path)


def _draw(patterns, labels, title):
    """The Figure of patterns (R,K,T,T) side by side in one image, each named in its empty upper right corner."""
    from matplotlib.figure import Figure

    R, K, T, _ = patterns.shape
    tile = T + 1  # a pattern and the gap after it
    patterns = patterns.masked_fill(torch.ones(T, T).triu(1).bool(), torch.nan)
    tiles = F.pad(patterns, (0, 1, 0, 1), value=torch.nan).transpose(1, 2)  # (R,tile,K,tile)
    cell = min(
        max(0.13, 4.5 / (K * T)), 60 / (max(R, K) * tile)
    )  # inches; a picture must stay a file
    figure = Figure(figsize=(cell * K * tile + 2.4, cell * R * tile + 1.6), layout="compressed")
    axes = figure.subplots()
    axes.set_facecolor("#e6e6e6")  # seen where the image is NaN
    drawn = axes.imshow(
        tiles.reshape(R * tile, K * tile)[:-1, :-1].numpy(), "Blues", vmin=0, vmax=1
    )
    every = -int(
        -0.05 // cell
    )  # where cells are too small to label, every second, third ... token is named
    size = min(8, 64 * cell * every)
    for axis, panels, turned in ((axes.xaxis, K, 90), (axes.yaxis, R, 0)):
        places = [panel * tile + t for panel in range(panels) for t in range(0, T, every)]
        axis.set_ticks(
            places, labels[::every] * panels, parse_math=False, fontsize=size, rotation=turned
        )
    axes.set(xlabel="attended to (key)", ylabel="attending (query)", title=title)
    for r, k in [(r, k) for r in range(R) for k in range(K)] if R * K > 1 else ():
        axes.text(
            k * tile + T - 1,
            r * tile,
            f"{r}.{k}",
            ha="right",
            va="top",
            fontsize=min(14, 9 * cell * tile),
        )
    figure.colorbar(drawn, aspect=40, shrink=min(1, 8 / figure.get_figheight())).set_label(
        "attention weight"
    )
    return figure


def compute_attention_stats(model, text):
    """{name: (L,H)}, averages over the queries of one text. Cost: 1 pass.

    entropy of a query's weights, in nats; distance from the query back to its keys, in tokens; the mass on first_token,
    current_token, previous_token; largest: the largest weight of all. The last two leave the first query out.
    """
    pattern = extract_attention(model, text)  # (L,H,T,T)
    pattern, T = pattern.to(torch.promote_types(pattern.dtype, torch.float32)), pattern.size(-1)
    return {
        "entropy": torch.special.entr(pattern).sum(-1).mean(-1),
        "distance": (T - 1) / 2
        - (pattern @ torch.arange(T).to(pattern)).mean(-1),  # mean query - mean key
        "first_token": pattern[..., 0].mean(-1),
        "current_token": pattern.diagonal(0, -2, -1).mean(-1),
        "previous_token": pattern.diagonal(-1, -2, -1).sum(-1) / max(T - 1, 1),
        "largest": pattern[..., min(1, T - 1) :, :].amax((-2, -1)),
    }


def find_attention_patterns(
    model,
    dataset=None,
    thresholds=THRESHOLDS,
    measure=None,
    exclude_bos=False,
    exclude_current_token=False,
):
    """{kind: [(layer, head, score), ...]} of the heads at or above the kind's threshold, the highest score first.

    dataset: a text, texts of any lengths, or ids (B,T); None: 8 rows of up to 50 different random tokens, twice over.
    thresholds: {kind: number}, in place of those in THRESHOLDS, or one number for all; -1 keeps nearly every head.
    measure: "mean", the weight on the expected keys, of the queries that have any (on random tokens, the means of the
    diagonals at 1, n, n - 1); "mul", their share of all weight; "abs", 1 - the mean over queries of the summed
    |pattern - expected|, to 3 decimals. "mul" and "abs" are TransformerLens's detect_head on the same ids (it puts a
    token before texts), averaged over texts. None: "mean" without a dataset, else "mul".
    Whatever it is, "positional" is 1 - the total variation between the patterns of the tokens and of the same shuffled,
    "delimiter" the mean from closing brackets and quotes to their opening ones, [] without a dataset.
    exclude_bos, exclude_current_token: the first column, the diagonal count for nothing. Cost: 2 passes for each text.
    """
    limits = (
        THRESHOLDS | thresholds
        if isinstance(thresholds, dict)
        else dict.fromkeys(KINDS, thresholds)
    )
    if measure not in (None, "mean", "mul", "abs") or limits.keys() != THRESHOLDS.keys():
        raise ValueError(
            f"measure must be mean, mul or abs, thresholds for {KINDS}; got {measure!r} and {thresholds}"
        )
    generator, random, V = (
        torch.Generator().manual_seed(0),
        dataset is None,
        model.config.vocab_size,
    )
    if random:
        n = min(50, model.block_size // 2, V)
        dataset = torch.rand(8, V, generator=generator).argsort(-1)[:, :n].repeat(1, 2)  # (8,2n)
    texts = [dataset] if isinstance(dataset, (str, torch.Tensor)) else dataset
    scores = {kind: [] for kind in KINDS}
    for ids in (row for text in texts for row in encode(model, text).split(1)):  # (1,T)
        T = ids.size(1)
        if T < 2:
            raise ValueError("one token can only look at itself; give texts of two or more")
        counted = torch.ones(T, T, device=ids.device).tril(-1 if exclude_current_token else 0)
        counted[:, 0] *= not exclude_bos
        shuffled = ids[:, torch.randperm(T, generator=generator)]
        pattern, other = (
            extract_attention(model, each) * counted for each in (ids, shuffled)
        )  # (L,H,T,T) each
        scores["positional"].append(1 - (pattern - other).abs().sum((-2, -1)) / (2 * (T - 1)))
        for kind, expected in _expected(
            ids[0], () if random else token_texts(model, ids[0])
        ).items():
            if kind != "delimiter" or expected.any():
                by = "mean" if kind == "delimiter" else measure or ("mean" if random else "mul")
                scores[kind].append(_score(pattern, expected * counted, by))
    if not scores["positional"]:
        raise ValueError("the dataset is empty; give a text, texts, or ids (B,T)")
    means = {kind: sum(some) / len(some) for kind, some in scores.items() if some}  # (L,H) each
    found = {
        k: [(l, h, x[l, h].item()) for l, h in (x >= limits[k]).nonzero().tolist()]
        for k, x in means.items()
    }
    return {kind: sorted(found.get(kind, []), key=lambda head: -head[2]) for kind in KINDS}


def _expected(ids, tokens):
    """{kind: (T,T)}: 1 at the keys to which a head of the kind would attend."""
    eye, opening, unclosed = (
        torch.eye(len(ids)).to(ids.device),
        torch.zeros(len(ids), len(ids)).to(ids.device),
        {},
    )
    same = (ids[:, None] == ids).float().tril(-1)  # keys that are earlier copies of the query
    for position, character in (
        (p, character) for p, token in enumerate(tokens) for character in token
    ):
        if unclosed.get(DELIMITERS.get(character)):
            opening[position, unclosed[DELIMITERS[character]].pop()] = 1
        elif character in DELIMITERS.values():
            unclosed.setdefault(character, []).append(position)
    masks = (
        F.pad(eye, (0, 0, 1, -1)),
        same,
        F.pad(same, (1, -1)),
        eye[0].expand_as(eye),
        eye,
        opening.tril(-1),
    )
    return dict(zip([kind for kind in KINDS if kind != "positional"], masks))


def _score(pattern, expected, measure):
    """(L,H) of pattern (L,H,T,T) and expected (T,T), by a measure of find_attention_patterns."""
    if measure == "abs":
        return 1 - (pattern - expected).abs().sum((-2, -1)).div(len(expected)).round(decimals=3)
    whole = pattern.sum((-2, -1)) if measure == "mul" else expected.any(-1).sum()
    return (pattern * expected).sum((-2, -1)) / whole.clamp_min(1e-9)


@torch.no_grad()
def composition_scores(model, kind="Q"):
    """score[l1, h1, l2, h2] (L,H,L,H), 0 to 1: how much of what the earlier head writes the later head reads.

    ||A B|| / (||A|| ||B||), Frobenius norms: B is the earlier head's OV matrix, A the later one's QK matrix from its
    queries' side (kind "Q") or its keys' ("K"), or its OV matrix ("V"); 0 unless l2 > l1. Random matrices do not give
    0. The weights as they are: no biases, layer norms not folded in. Cost: no pass. Source: Elhage et al. 2021.
    """
    if kind not in ("Q", "K", "V"):
        raise ValueError(f'kind must be "Q", "K" or "V", got {kind!r}')
    L, H = model.config.n_layer, model.config.n_head
    weights = [
        torch.cat((block.attn.c_attn.weight, block.attn.c_proj.weight.T))
        for block in model.transformer.h
    ]
    weights = torch.stack(weights).unflatten(1, (4, H, -1))  # (L,4,H,D,C)
    q, k, v, out = weights.to(torch.promote_types(weights.dtype, torch.float32)).unbind(
        1
    )  # (L,H,D,C) each
    inner, outer = {"Q": (q, k), "K": (k, q), "V": (v, out)}[
        kind
    ]  # A = outer^T @ inner, B = out^T @ v
    a = (
        torch.linalg.qr(outer.mT, mode="r").R @ inner
    )  # (L,H,D,C): A but for a rotation, which no norm sees
    b = torch.linalg.qr(v.mT, mode="r").R @ out  # (L,H,D,C): so B^T
    a, b = (x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-30) for x in (a, b))
    scores = a.new_zeros(L, H, L, H)
    for l1, h1 in ((l, h) for l in range(L - 1) for h in range(H)):
        scores[l1, h1, l1 + 1 :] = (a[l1 + 1 :] @ b[l1, h1].T).norm(
            dim=(-2, -1)
        )  # (l,H,D,C) @ (C,D)
    return scores
