"""Where does the model look? Every head's attention pattern, drawn, measured, and sorted by known kinds of heads.

A pattern says from which tokens a head collects, not what it takes from there nor whether anything depends on it: for
that, patch or ablate the head. A score says how much of the attention lies where a head of that kind would put it on
these inputs; on others the same head may do something else. Sources: Elhage et al. 2021 (A Mathematical Framework for
Transformer Circuits), Olsson et al. 2022 (arXiv 2209.11895), TransformerLens 3.9's head_detector.
"""

from pathlib import Path

import torch
from torch.nn import functional as F

from mingpt.interpretability import figures, tails
from mingpt.interpretability.inputs import check_mode, encode

KINDS = "previous_token duplicate_token induction first_token current_token positional delimiter".split()
THRESHOLDS = dict.fromkeys(KINDS, 0.4) | {"positional": 0.9}  # the score from which a head is named
DELIMITERS = {")": "(", "]": "[", "}": "{", "”": "“", "»": "«", '"': '"'}  # closing: opening


def extract_attention(model, text):
    """pattern (L,H,T,T), probabilities; rows are queries and sum to 1. text: one text, or ids (1,T). Cost: 1 pass."""
    ids = encode(model, text)
    if len(ids) != 1:
        raise ValueError(f"attention is read from one text at a time, got {len(ids)}")
    return _patterns(model, ids)[0]


@torch.no_grad()
def _patterns(model, ids):
    check_mode(model)
    patterns = torch.stack(list(tails.record(model, ids, ["pattern"])["pattern"].values()), 1)  # (B,L,H,T,T)
    if patterns.isnan().any():
        raise ValueError("the attention has weights that are NaN; check the model's weights and dtype")
    return patterns


def plot_attention_head(model, text, layer, head, save_path=None):
    """The matplotlib Figure of one head's pattern: a row for each query, a column for each key, the future grey.

    save_path: .png, .svg, .pdf write that; .html writes plot_all_heads's page, open at this head. Cost: 1 pass.
    """
    L, H = model.config.n_layer, model.config.n_head
    if layer not in range(L) or head not in range(H):
        raise ValueError(f"no head {layer}.{head}; the layers are 0 to {L - 1}, each with heads 0 to {H - 1}")
    return _plot(model, text, save_path, int(layer), int(head))


def plot_all_heads(model, text, save_path=None):
    """The matplotlib Figure of all patterns, layers down, heads across, each as plot_attention_head draws it.

    save_path: .png, .svg, .pdf write that; .html instead writes a page to look around in, weights to 0.001, which needs
    no network, and gives None. ValueError above 20 million weights. Cost: 1 pass.
    """
    return _plot(model, text, save_path)


def _plot(model, text, path, layer=None, head=None):
    if path:
        figures.check_output(path, (*figures.SUFFIXES, ".html"))
    html, ids, title = bool(path) and Path(path).suffix == ".html", encode(model, text), "every head, as layer.head"
    patterns = extract_attention(model, ids).cpu().float()  # (L,H,T,T)
    if layer is not None and not html:
        patterns, title = patterns[layer, head][None, None], f"layer {layer}, head {head}"
    if patterns.numel() > 2e7:
        raise ValueError(f"{patterns.numel():,} weights are too many to show; draw one head, or give fewer tokens")
    tokens = [str(i) for i in ids[0].tolist()] if model.tokenizer is None else model.tokenizer.tokens(ids[0])
    labels = figures.token_labels(tokens)
    if not html:
        return figures.shown(_draw(patterns, labels, title), path)
    data = {
        "text": "".join(tokens) if model.tokenizer else "",
        "tokens": labels,
        "layer": layer or 0,
        "head": head or 0,
    }
    figures.save_page("attention", data | {"weights": (1000 * patterns).round().int().tolist()}, path)


def _draw(patterns, labels, title):
    """The Figure of patterns (R,K,T,T) side by side in one image, each named in its empty upper right corner."""
    from matplotlib.figure import Figure

    R, K, T, _ = patterns.shape
    tile = T + 1  # a pattern and the gap after it
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    tiles = F.pad(patterns.masked_fill(future, torch.nan), (0, 1, 0, 1), value=torch.nan)  # (R,K,tile,tile)
    cell = min(max(0.13, 4.5 / (K * T)), 60 / (max(R, K) * tile))  # inches; a picture must stay a file
    figure = Figure(figsize=(cell * K * tile + 2.4, cell * R * tile + 1.6), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(tiles.transpose(1, 2).reshape(R * tile, K * tile)[:-1, :-1], "cividis_r", vmin=0, vmax=1)
    drawn.cmap.set_bad("#eeeeee")
    every = -int(-0.05 // cell)  # where cells are too small to label, every second, third ... token is named
    size = min(8, 64 * cell * every)
    for axis, panels in ((axes.xaxis, K), (axes.yaxis, R)):
        places = [panel * tile + t for panel in range(panels) for t in range(0, T, every)]
        axis.set_ticks(places, labels[::every] * panels, parse_math=False, fontsize=size)
    axes.tick_params(axis="x", labelrotation=90)
    axes.set(xlabel="attended to (key)", ylabel="attending (query)", title=title)
    font = {"ha": "right", "va": "top", "fontsize": max(size, min(14, 9 * cell * T))}
    for row, column in [(row, column) for row in range(R) for column in range(K)] if R * K > 1 else ():
        axes.text(column * tile + T - 1, row * tile, f"{row}.{column}", font)
    figure.colorbar(drawn, aspect=40, shrink=min(1, 8 / figure.get_figheight())).set_label("attention weight")
    return figure


def compute_attention_stats(model, text):
    """{name: (L,H)}, averages over the queries of one text. Cost: 1 pass.

    entropy: of a query's weights, in nats; distance: from the query back to its keys, in tokens; first_token,
    current_token, previous_token: the mass there; largest: the largest weight of all. The first query can attend only
    to itself, so the last two are of the others.
    """
    pattern = extract_attention(model, text)  # (L,H,T,T)
    T = pattern.size(-1)
    back = torch.arange(T).view(-1, 1) - torch.arange(T)  # (T,T): from the query to the key
    return {
        "entropy": torch.special.entr(pattern).sum(-1).mean(-1),
        "distance": (pattern * back.to(pattern)).sum(-1).mean(-1),
        "first_token": pattern[..., 0].mean(-1),
        "current_token": pattern.diagonal(0, -2, -1).mean(-1),
        "previous_token": pattern.diagonal(-1, -2, -1).sum(-1) / max(T - 1, 1),
        "largest": pattern[..., min(1, T - 1) :, :].amax((-2, -1)),
    }


def find_attention_patterns(
    model, dataset=None, thresholds=None, measure=None, exclude_bos=False, exclude_current_token=False
):
    """{kind: [(layer, head, score), ...]} of the heads at or above the kind's threshold, the highest score first.

    dataset: a text, texts of any lengths, or ids (B,T); None: 8 rows of up to 50 different random tokens, twice over.
    thresholds: one number, or {kind: number} in place of some of THRESHOLDS; -1 keeps nearly every head.
    measure: "mean", the weight on the expected keys, of the queries that have any (on random tokens, the means of the
    diagonals at 1, n and n - 1); "mul", their share of all weight; "abs", 1 - the mean over queries of the summed
    |pattern - expected|, to 3 decimals. "mul" and "abs" are TransformerLens's detect_head on the same ids (it puts a
    token before texts), averaged over texts. None: "mean" without a dataset, else "mul".
    exclude_bos, exclude_current_token: the first column, the diagonal count for nothing.
    Whatever the measure, "positional" is 1 - the total variation between the patterns of the tokens and of the same
    tokens shuffled; "delimiter" the mean from closing brackets and quotes to their opening ones, and [] without any.
    Cost: 1 pass over each text and its shuffling. Nothing is written to.
    """
    limits = (
        thresholds if isinstance(thresholds, dict) else {} if thresholds is None else dict.fromkeys(KINDS, thresholds)
    )
    limits = THRESHOLDS | limits
    if measure not in (None, "mean", "mul", "abs") or limits.keys() != THRESHOLDS.keys():
        raise ValueError(f"measure must be mean, mul or abs, thresholds for {KINDS}; got {measure!r} and {thresholds}")
    generator = torch.Generator().manual_seed(0)
    measure = measure or ("mean" if dataset is None else "mul")
    if dataset is None:
        n = min(50, model.block_size // 2, model.config.vocab_size)
        dataset = torch.rand(8, model.config.vocab_size, generator=generator).argsort(-1)[:, :n].repeat(1, 2)
    texts = [dataset] if isinstance(dataset, (str, torch.Tensor)) else dataset
    rows = [row for text in texts for row in encode(model, text).split(1)]  # (1,T) each
    if not rows or min(row.size(1) for row in rows) < 2:
        raise ValueError("give at least one text, and texts of at least two tokens: one can attend only to itself")
    scores = {kind: [] for kind in KINDS}
    for ids in rows:
        T = ids.size(1)
        patterns = _patterns(model, torch.cat((ids, ids[:, torch.randperm(T, generator=generator)])))
        counted = torch.ones(T, T).tril(-1 if exclude_current_token else 0).to(patterns)
        counted[:, 0] *= not exclude_bos
        pattern, shuffled = patterns * counted  # (L,H,T,T) each
        scores["positional"].append(1 - (pattern - shuffled)[..., 1:, :].abs().sum(-1).mean(-1) / 2)
        for kind, expected in _expected(model, ids[0]).items():
            if kind != "delimiter" or expected.any():
                of = "mean" if kind == "delimiter" else measure
                scores[kind].append(_score(pattern, expected * counted, of))
    means = {kind: torch.stack(some).mean(0).tolist() for kind, some in scores.items() if some}
    heads = [(l, h) for l in range(model.config.n_layer) for h in range(model.config.n_head)]
    scored = {kind: [(l, h, means[kind][l][h]) for l, h in heads if kind in means] for kind in KINDS}
    return {k: sorted((x for x in some if x[2] >= limits[k]), key=lambda x: -x[2]) for k, some in scored.items()}


def _expected(model, ids):
    """{kind: (T,T)}: 1 at the keys to which a head of the kind would attend."""
    eye, unclosed = torch.eye(len(ids), device=ids.device), {}
    same = (ids[:, None] == ids).float().tril(-1)  # keys that are earlier copies of the query
    delimiter = torch.zeros_like(eye)
    for position, token in enumerate(model.tokenizer.tokens(ids) if model.tokenizer else ()):
        for character in token:
            if unclosed.get(DELIMITERS.get(character)):
                delimiter[position, unclosed[DELIMITERS[character]].pop()] = 1
            elif character in DELIMITERS.values():
                unclosed.setdefault(character, []).append(position)
    masks = eye.roll(-1, 1).tril(), same, F.pad(same, (1, -1)), eye[0].expand_as(eye), eye, delimiter
    return dict(
        zip(["previous_token", "duplicate_token", "induction", "first_token", "current_token", "delimiter"], masks)
    )


def _score(pattern, expected, measure):
    """(L,H) of pattern (L,H,T,T) and expected (T,T), by a measure of find_attention_patterns."""
    if measure == "abs":
        return 1 - (pattern - expected).abs().sum((-2, -1)).div(len(expected)).round(decimals=3)
    whole = pattern.sum((-2, -1)) if measure == "mul" else expected.any(-1).sum()
    return (pattern * expected).sum((-2, -1)) / whole.clamp_min(1e-9)


@torch.no_grad()
def composition_scores(model, kind="Q"):
    """score[l1, h1, l2, h2] (L,H,L,H), 0 to 1: how much of what the earlier head writes the later head reads.

    ||A B|| / (||A|| ||B||), Frobenius norms: B is the earlier head's OV matrix, A the later one's QK matrix from the
    side of its queries (kind "Q") or keys ("K"), or its OV matrix ("V"); 0 unless l2 > l1. Random matrices do not give
    0, so compare with other pairs. The weights as they are: no biases, and layer norms not folded in. Cost: no pass.
    Source: Elhage et al. 2021.
    """
    if kind not in ("Q", "K", "V"):
        raise ValueError(f'kind must be "Q", "K" or "V", got {kind!r}')
    L, H = model.config.n_layer, model.config.n_head
    weights = [torch.cat((block.attn.c_attn.weight, block.attn.c_proj.weight.T)) for block in model.transformer.h]
    weights = torch.stack(weights).unflatten(1, (4, H, -1))  # (L,4,H,D,C)
    q, k, v, out = weights.to(torch.promote_types(weights.dtype, torch.float32)).unbind(1)  # (L,H,D,C) each
    inner, outer = {"Q": (q, k), "K": (k, q), "V": (v, out)}[kind]  # A = outer^T @ inner, B = out^T @ v

    def root(x):  # (D,D) with |root(x) @ y| = |x^T @ y|
        return torch.linalg.qr(x.mT, mode="r").R

    a, b = root(outer) @ inner, root(v) @ out  # (L,H,D,C): A, B^T but for a rotation that no norm sees
    scores = a.new_zeros(L, H, L, H)
    for l1, h1 in ((l, h) for l in range(L - 1) for h in range(H)):
        norms = a[l1 + 1 :].norm(dim=(-2, -1)) * b[l1, h1].norm()  # (l,H)
        scores[l1, h1, l1 + 1 :] = (a[l1 + 1 :] @ b[l1, h1].T).norm(dim=(-2, -1)) / norms.clamp_min(1e-30)
    return scores
