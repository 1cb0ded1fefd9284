"""Where does the model look? Every head's pattern, drawn, measured, and sorted by kinds of heads.

A pattern says from which tokens a head collects, not what it takes there nor whether anything
depends on it: patch or ablate for that. A score says how much of the pattern lies where a head of
that kind would look on these inputs; on others it may not.
Sources: Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits), Olsson et al. 2022
(arXiv 2209.11895).
"""

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt.common import AnyPath
from mingpt.interpretability import figures, readout, results, runs, web_pages
from mingpt.interpretability.attention_explanation import explain_attention as explain_attention
from mingpt.interpretability.attention_figure import draw_patterns
from mingpt.interpretability.composition import composition_scores as composition_scores
from mingpt.interpretability.inputs import (
    Head,
    Inputs,
    Text,
    check_head,
    encode,
    encode_one,
    text_of,
    token_texts,
)
from mingpt.interpretability.reports import name_model
from mingpt.interpretability.web_pages import Page
from mingpt.model import GPT

if TYPE_CHECKING:  # it loads matplotlib
    from mingpt.interpretability.notebook_figure import Figure

KINDS = (
    "previous_token duplicate_token induction first_token current_token positional delimiter"
).split()
# The score from which a head is named. Many heads keep half of their pattern on shuffled tokens, so
# "positional" asks for more.
THRESHOLDS = dict.fromkeys(KINDS, 0.4) | {"positional": 0.85}
# Closing: opening. Curly quotes are missing, since they are bytes, not tokens.
DELIMITERS = {")": "(", "]": "[", "}": "{", '"': '"'}
# How much of a pattern lies where a head of the kind would look, the expected keys.
MEASURES = {
    "mean": "the weight on the expected keys, averaged over the queries that have any",
    "mul": "the share of all weight that is on the expected keys",
    "abs": "1 - the sum over keys of |pattern - expected|, averaged over queries, to 3 decimals",
}
MAX_WEIGHTS = 20_000_000  # in one picture or page


@torch.no_grad()
def extract_attention(model: GPT, text: Text) -> Tensor:
    """pattern (L,H,T,T), probabilities; rows are queries and sum to 1.

    text: one text, or ids (1,T). Cost: 1 pass.
    """
    ids = encode_one(model, text)
    patterns = runs.record(model, ids, ["pattern"])["pattern"]
    return torch.cat(list(patterns.values()))  # L x (1,H,T,T) -> (L,H,T,T)


def plot_attention_head(
    model: GPT, text: Text, layer: int, head: int, save_path: AnyPath | None = None
) -> "Figure | Page":
    """plot_all_heads of one head alone: rows are queries, columns keys."""
    return plot_all_heads(model, text, save_path, (layer, head))


def plot_all_heads(
    model: GPT, text: Text, save_path: AnyPath | None = None, only: Head | None = None
) -> "Figure | Page":
    """The matplotlib Figure of every head's pattern, layers down, heads across.

    only: (layer, head), to draw that one alone. save_path: .png, .svg, .pdf write the figure; .html
    instead writes a page to look around in, weights to 0.001, which needs no network, and gives the
    Page. ValueError above 20 million weights. Cost: 1 pass.
    """
    if save_path:
        figures.check_output(save_path, (*figures.SUFFIXES, ".html"))
        if str(save_path).endswith(".html"):
            return web_pages.save_page("attention", page_data(model, text, only), save_path)
    ids = encode_one(model, text)
    patterns, heads = _named_patterns(model, ids, only)
    shown = f"head {heads[0]}" if only else "every head, as layer.head"
    labels = figures.token_labels(token_texts(model, ids[0]))
    figure = draw_patterns(patterns, labels, f"{name_model(model)}: {shown}")
    return figures.shown(figure, save_path)


def page_data(model: GPT, text: Text, only: Head | None = None) -> dict[str, Any]:
    """What a page shows of plot_all_heads: a dict of texts, names, and weights to 0.001."""
    ids = encode_one(model, text)
    patterns, heads = _named_patterns(model, ids, only)
    tokens = web_pages.page_texts(token_texts(model, ids[0]))
    return {
        "model": name_model(model),
        "text": text_of(model, ids),
        "tokens": [f"{t} {token}" for t, token in enumerate(tokens)],
        "heads": heads,
        "across": patterns.size(1),
        "weights": web_pages.pack_patterns(patterns),
    }


def _named_patterns(model, ids, only):
    """(patterns, names) of all heads, (L,H,T,T), or of the one named by only, (1,1,T,T)."""
    _check_heads(model, ids.size(1), only)
    patterns = extract_attention(model, ids).cpu().float()  # (L,H,T,T)
    if only:
        layer, head = only
        return patterns[layer, head][None, None], [f"{layer}.{head}"]
    L, H = patterns.shape[:2]
    return patterns, [f"{layer}.{head}" for layer, head in product(range(L), range(H))]


def _check_heads(model, T, only):
    """ValueError unless all heads, or the one named by only, can be drawn for T tokens."""
    count = model.config.n_layer * model.config.n_head * T * T
    what = "draw one head, or give fewer tokens"
    if only:
        check_head(model, *only)
        count = T * T
        what = "give fewer tokens"
    if count > MAX_WEIGHTS:
        raise ValueError(f"{count:,} weights are too many to show; {what}")


@dataclass(repr=False)
class AttentionStats:
    """What a head's pattern is like on average over the queries of one text; each (L,H)."""

    entropy: Tensor  # of a query's weights, in nats
    distance: Tensor  # from the query back to its keys, in tokens
    first_token: Tensor  # weight on it
    current_token: Tensor  # weight on the query itself
    previous_token: Tensor  # weight on it; the first query, which has none, is left out
    largest: Tensor  # the largest weight of all, the first query's left out

    __repr__ = results.summary


def compute_attention_stats(model: GPT, text: Text) -> AttentionStats:
    """The AttentionStats of one text. Cost: 1 pass."""
    pattern = extract_attention(model, text)  # (L,H,T,T)
    # In bf16 a sum over many weights would keep two digits.
    pattern = pattern.to(readout.wide_dtype(model))
    T = pattern.size(-1)
    positions = torch.arange(T).to(pattern)
    attended = pattern @ positions  # (L,H,T,T) @ (T,) -> (L,H,T), each query's mean key
    previous = pattern.diagonal(-1, -2, -1)  # (L,H,T-1)
    # The first query sees itself alone, and so has a weight of 1 in every head; it is left out,
    # unless there is no other.
    later_queries = pattern[..., 1 - T :, :]
    return AttentionStats(
        entropy=torch.special.entr(pattern).sum(-1).mean(-1),
        distance=(T - 1) / 2 - attended.mean(-1),
        first_token=pattern[..., 0].mean(-1),
        current_token=pattern.diagonal(0, -2, -1).mean(-1),
        previous_token=previous.sum(-1) / max(T - 1, 1),
        largest=later_queries.amax((-2, -1)),
    )


def find_attention_patterns(
    model: GPT,
    dataset: Inputs | None = None,
    thresholds: dict[str, float] | float = THRESHOLDS,
    measure: str | None = None,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
) -> dict[str, list[tuple[int, int, float]]]:
    """{kind: [(layer, head, score), ...]}: heads at or above the threshold, the highest first.

    dataset: a text, texts of any lengths, or ids (B,T); None: 8 rows of up to 50 different random
    tokens, twice over. thresholds: {kind: number}, in place of those in THRESHOLDS, or one number
    for all; -1 keeps nearly every head. measure: one of MEASURES, averaged over texts; None: "mean"
    without a dataset, else "mul". "mul" and "abs" are TransformerLens's detect_head on the same ids
    (it puts a token before texts). Two kinds are measured in their own way: "positional" by 1 - the
    total variation between the pattern on the text and on its shuffle; "delimiter" by the "mean"
    from closing brackets and quotes to their opening ones, and [] without a dataset.
    exclude_bos, exclude_current_token: the first column, the diagonal count for nothing.
    Cost: 2 passes for each text.
    """
    limits = _all_thresholds(thresholds)
    if measure not in (None, *MEASURES):
        raise ValueError(f"measure must be mean, mul or abs; got {measure!r}")
    generator = torch.Generator().manual_seed(0)
    is_random = dataset is None
    if is_random:
        dataset = _repeated_tokens(model, generator)
    measure = measure or ("mean" if is_random else "mul")

    scores: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}  # (L,H) of each text
    for ids in _rows(model, dataset):  # (1,T)
        counted = _counted_weights(ids, exclude_bos, exclude_current_token)  # (T,T)
        pattern = extract_attention(model, ids) * counted  # (L,H,T,T)
        # The same tokens in another order: a head that goes by position alone does not notice.
        order = torch.randperm(ids.size(1), generator=generator)
        shuffled = extract_attention(model, ids[:, order]) * counted
        scores["positional"].append(likeness(pattern, shuffled))
        # Random tokens close brackets by chance alone, so their texts are not asked for.
        tokens = [] if is_random else token_texts(model, ids[0])
        for kind, expected in expected_keys(ids[0], tokens).items():
            name = "mean" if kind == "delimiter" else measure
            scores[kind].append(_score(pattern, expected * counted, name))
    if not scores["positional"]:
        raise ValueError("the dataset is empty; give a text, texts, or ids (B,T)")
    return {kind: _heads_from(limits[kind], scores[kind]) for kind in KINDS}


def _all_thresholds(thresholds):
    """{kind: number} of thresholds as find_attention_patterns takes them."""
    if not isinstance(thresholds, dict):
        return dict.fromkeys(KINDS, thresholds)
    if not thresholds.keys() <= THRESHOLDS.keys():
        raise ValueError(f"there are thresholds for {KINDS}; got {thresholds}")
    return THRESHOLDS | thresholds


def _repeated_tokens(model, generator):
    """Ids (8,2n): random rows of n different tokens, each row twice over.

    Nothing but the repetition tells what comes next, so that a head which goes by it stands out.
    """
    V = model.config.vocab_size
    n = min(50, model.block_size // 2, V)
    # A random order of all tokens in each row.
    orders = torch.rand(8, V, generator=generator).argsort(-1)  # (8,V)
    return orders[:, :n].repeat(1, 2)


def _rows(model, dataset):
    """Each text of the dataset as ids (1,T)."""
    texts = [dataset] if isinstance(dataset, (str, Tensor)) else dataset
    for text in texts:
        ids = encode(model, text)
        if ids.size(1) < 2:
            raise ValueError("one token can only look at itself; give texts of two or more")
        yield from ids.split(1)


def _counted_weights(ids, exclude_bos, exclude_current_token):
    """(T,T): 1 where a weight counts, from a query to itself and earlier keys; else 0."""
    T = ids.size(1)
    counted = torch.ones(T, T, device=ids.device).tril(-int(exclude_current_token))
    if exclude_bos:
        counted[:, 0] = 0
    return counted


def expected_keys(ids: Tensor, tokens: list[str]) -> dict[str, Tensor]:
    """{kind: (T,T)}: 1 at the keys to which a head of the kind would attend, on ids (T,).

    "delimiter" is there only if the tokens, texts, have pairs of delimiters: a text without any
    says nothing about heads that match them.
    """
    same = torch.eye(len(ids), device=ids.device)
    copies = (ids[:, None] == ids).float().tril(-1)  # earlier copies of the query
    expected = {
        "previous_token": F.pad(same, (0, 0, 1, -1)),  # one row down
        "duplicate_token": copies,
        "induction": F.pad(copies, (1, -1)),  # one column right: what followed the copy
        "first_token": same[0].expand_as(same),
        "current_token": same,
    }
    pairs = _delimiter_pairs(tokens)
    if pairs:
        expected["delimiter"] = torch.zeros_like(same)
        expected["delimiter"][tuple(zip(*pairs))] = 1
    return expected


def _delimiter_pairs(tokens):
    """[(closing position, opening position)], matched as in writing, the innermost first."""
    pairs = []
    unclosed: dict[str, list[int]] = {}  # {opening character: its positions}
    for position, token in enumerate(tokens):
        for character in token:
            open_positions = unclosed.get(DELIMITERS.get(character, ""))
            # A quote closes where one is open, and else opens; so closing is tried first.
            if open_positions:
                pairs.append((position, open_positions.pop()))
            elif character in DELIMITERS.values():
                unclosed.setdefault(character, []).append(position)
    # A pair within one token says nothing about attention.
    return [pair for pair in pairs if pair[0] != pair[1]]


def _score(pattern, expected, measure):
    """(L,H) of pattern (L,H,T,T) and expected (T,T), by a measure of find_attention_patterns."""
    if measure == "abs":
        differences = (pattern - expected).abs().sum((-2, -1))
        return 1 - (differences / len(expected)).round(decimals=3)
    hit = (pattern * expected).sum((-2, -1))
    queries = expected.any(-1).sum()  # those that have an expected key
    whole = queries if measure == "mean" else pattern.sum((-2, -1))
    return hit / whole.clamp_min(1e-9)


def likeness(pattern: Tensor, other: Tensor) -> Tensor:
    """(L,H): 1 - the total variation between two patterns (L,H,T,T), averaged over queries.

    The first query is left out: it has one key, and so the same weight in both.
    """
    differences = (pattern - other).abs().sum((-2, -1))
    queries = pattern.size(-1) - 1
    return 1 - differences / (2 * queries)


def _heads_from(limit, scores):
    """[(layer, head, score)] where the mean of scores (L,H) is at least limit, highest first."""
    if not scores:
        return []
    mean = sum(scores) / len(scores)  # (L,H)
    heads = [
        (layer, head, mean[layer, head].item())
        for layer, head in (mean >= limit).nonzero().tolist()
    ]
    return sorted(heads, key=lambda head: -head[2])
