"""The cells of a heatmap, and their runs, piece by piece.

The rows come from the last layer up, where a patched run is short, and in pieces, between which a
newer request can stop them. What is kept for the next request are the last vectors: every measure
is read from them.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from mingpt.explorer import requests
from mingpt.explorer.memory import check_runs
from mingpt.interpretability.activation_patching import DIRECTIONS, Sweep
from mingpt.interpretability.inputs import token_texts
from mingpt.interpretability.patching_result import PatchingResult
from mingpt.sites import SITES, SITES_WITH_HEADS

# Floating point operations that run as one piece: few at first, so that the first rows come at
# once, then four times as many each time, up to a fraction of a second on two cores. Every piece
# reads the weights of its blocks, so that many small ones take longer.
START = 2e9
GROWTH = 4
MOST = 3.2e10


class Grid(NamedTuple):
    """The cells of a heatmap.

    At a site with heads they are (L,H), all positions patched at once, or with `at`, a layer and a
    head, its positions (1,T); at any other site (L,T).
    """

    pair: requests.Pair
    site: str
    direction: str
    at: tuple[int, int] | None

    @property
    def has_positions(self):
        return self.at is not None or self.site not in SITES_WITH_HEADS

    @property
    def key(self):
        """What the last vectors depend on."""
        ids = (self.pair.clean, self.pair.corrupted)
        return ("sweep", *(tuple(row[0].tolist()) for row in ids), *self[1:])


@dataclass
class Ends:
    """What is kept of a sweep: the last vectors, after the final norm."""

    # "clean" and "corrupted", (1,C) each.
    unpatched: dict[str, torch.Tensor] = field(default_factory=dict)
    # {layer: (1,cells,C)}.
    rows: dict[int, torch.Tensor] = field(default_factory=dict)


def read_grid(model, body):
    """The Grid that a request asks for; ValueError if there is none."""
    site = requests.one_of(body, "site", SITES)
    at = body.get("at")
    if at is not None:
        if site not in SITES_WITH_HEADS:
            raise ValueError(f"{site} has no heads, of which one could be looked at by position")
        if not isinstance(at, dict):
            raise ValueError("at must be null, or a layer and a head")
        layer = requests.number(at, "layer", 0, model.config.n_layer - 1)
        head = requests.number(at, "head", 0, model.config.n_head - 1)
        at = (layer, head)
    direction = requests.one_of(body, "direction", DIRECTIONS)
    return Grid(requests.read_pair(model, body), site, direction, at)


def layers_of(model, grid):
    """The layers that have a row, from the last one down."""
    return [grid.at[0]] if grid.at else list(range(model.config.n_layer))[::-1]


def compute(model, grid, cache):
    """Run what has not been run; yields (Ends, layers that it has got).

    The first are, after the unpatched runs, those that it had. An empty list is a breath.
    """
    ends = cache.get(grid.key, Ends)
    layers = layers_of(model, grid)
    missing = [layer for layer in layers if layer not in ends.rows]
    if missing:
        check_runs(model, grid.pair.clean.size(1), [grid.site])
        runs = Sweep(model, grid.pair.clean, grid.pair.corrupted, grid.direction, [grid.site])
        ends.unpatched = runs.unpatched
    yield ends, [layer for layer in layers if layer in ends.rows]
    if missing:
        for rows in run_pieces(model, grid, runs, missing):
            ends.rows.update(rows)
            yield ends, list(rows)


def run_pieces(model, grid, runs, layers):
    """Yields {layer: (1,cells,C)}, from the last layer down; an empty dict is a breath."""
    T = grid.pair.clean.size(1)
    # What of a layer can run by itself: {a position, or a head with all positions: its tokens}.
    parts = {position: T - position for position in runs.positions}
    if not grid.has_positions:
        parts = dict.fromkeys(range(model.config.n_head), len(runs.positions))
    tokens_of_layer = sum(parts.values())
    costs = {layer: operations(model, layer, tokens_of_layer, T) for layer in layers}
    for some in groups(costs, START, MOST):
        some.reverse()  # ascending
        pieces = [list(parts)]
        if costs[some[0]] > MOST:
            of_parts = {part: operations(model, some[0], parts[part], T) for part in parts}
            pieces = groups(of_parts, MOST, MOST)
        found = []
        for piece in pieces:
            found.append(run_piece(grid, runs, some, piece))
            yield {}
        vectors = torch.cat(found, 3 if grid.has_positions else 2)  # (1,l,R,P,C)
        if grid.has_positions:
            vectors = runs.with_unchanged(vectors)
        rows = vectors.flatten(2, 3).unbind(1)  # l x (1,cells,C)
        yield dict(zip(some[::-1], rows[::-1]))


def run_piece(grid, runs, layers, parts):
    """(1,l,R,P,C): the last vectors of these layers' runs, at some positions or of some heads."""
    if grid.has_positions:
        return runs.run(grid.site, layers, parts, grid.at and grid.at[1])
    return run_heads(runs, grid.site, layers, None, parts)


def run_heads(runs, site, layers, positions, heads):
    """Sweep.run of some heads: of all in one go, of fewer one after the other."""
    if len(heads) == runs.model.config.n_head:
        return runs.run(site, layers, positions)
    return torch.cat([runs.run(site, layers, positions, head) for head in heads], 2)


def operations(model, layer, tokens, T):
    """About how many floating point operations so many tokens of runs patched at a layer take."""
    config = model.config
    C = config.n_embd
    of_block = 8 * C * C + 4 * C * config.n_inner + 4 * C * T  # of one token in one block
    return of_block * tokens * (config.n_layer - layer)


def groups(costs, limit, most):
    """Yields lists of the items of {item: cost}, each of at most `limit`, or a single item.

    With every list the limit grows, up to `most`.
    """
    group: list[int] = []
    total = 0
    for item, cost in costs.items():
        if group and total + cost > limit:
            yield group
            limit = min(GROWTH * limit, most)
            group = []
            total = 0
        group.append(item)
        total += cost
    if group:
        yield group


def result_of(model, grid, ends, layers):
    """The PatchingResult of these layers' cells, from which every measure can be read."""
    vectors = dict(ends.unpatched)
    if layers:
        vectors["patched"] = torch.stack([ends.rows[layer] for layer in layers], 1)  # (1,l,cells,C)
    pair = grid.pair
    return PatchingResult(
        model,
        vectors,
        answers=torch.stack(pair.answers, 1),
        tokens=token_texts(model, pair.corrupted[0]),
        texts={"clean": pair.clean_text, "corrupted": pair.corrupted_text},
        site=grid.site,
        direction=grid.direction,
        single=True,
    )
