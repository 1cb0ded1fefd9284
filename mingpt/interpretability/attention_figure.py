"""The picture of attention patterns: one head's, or every head's, layers down, heads across."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt.interpretability.figures import DPI, MAX_INCHES, PAGE_INCHES

if TYPE_CHECKING:  # it loads matplotlib
    from mingpt.interpretability.notebook_figure import Figure


def draw_patterns(patterns: Tensor, labels: list[str], title: str) -> "Figure":
    """The matplotlib Figure of attention patterns (R,K,T,T), R rows of K, in one image.

    labels: of the T tokens, on both axes. If there are several patterns, each is named "row.column"
    in its upper right corner, which is empty: no token sees a later one.
    """
    from mingpt.interpretability.notebook_figure import Figure

    R, K, T, _ = patterns.shape
    tile = T + 1  # a pattern and the gap after it
    cell = _cell_inches(R, K, tile)
    width = K * tile * cell
    height = R * tile * cell
    figure = Figure((width + 2.4, height + 1.6), layout="compressed")
    axes = figure.subplots()
    axes.set_facecolor("#e6e6e6")  # seen where the image is NaN
    pixels = _tile(patterns)
    image = axes.imshow(pixels, "Blues", vmin=0, vmax=1)
    _name_tokens(axes.xaxis, labels, K, cell, rotation=90)
    _name_tokens(axes.yaxis, labels, R, cell, rotation=0)
    axes.set_title(title)
    axes.set_xlabel("attended to (key)")
    axes.set_ylabel("attending (query)")
    if R * K > 1:
        _name_patterns(axes, R, K, tile, cell)
    # In a tall picture of many patterns a bar of the whole height could not be seen at once.
    shrink = min(1, 8 / figure.get_figheight())
    bar = figure.colorbar(image, aspect=40, shrink=shrink)
    bar.set_label("attention weight")
    return figure


def _cell_inches(R, K, tile):
    """How large a cell is drawn, in inches.

    Large enough to read where there are few patterns. Of many it is a page, or two dots for each
    cell where that is more; and no larger than a picture may be.
    """
    longest = max(R, K) * tile
    readable = max(0.13, 4.5 / (K * tile))
    two_dots = 2 / DPI
    fitting = max(PAGE_INCHES / longest, two_dots)
    return min(readable, fitting, MAX_INCHES / longest)


def _tile(patterns):
    """The patterns (R,K,T,T) side by side, NaN at later tokens and in gaps of one cell between."""
    R, K, T, _ = patterns.shape
    tile = T + 1
    future = torch.ones(T, T).triu(1).bool()
    patterns = patterns.masked_fill(future, torch.nan)
    tiles = F.pad(patterns, (0, 1, 0, 1), value=torch.nan)  # (R,K,tile,tile)
    rows = tiles.transpose(1, 2)  # (R,tile,K,tile)
    image = rows.reshape(R * tile, K * tile)
    return image[:-1, :-1].numpy()  # without the gaps at the edges


def _name_patterns(axes, R, K, tile, cell):
    """Write "row.column" into the upper right corner of each of the R rows of K patterns."""
    style = {"ha": "right", "va": "top", "fontsize": min(14, 9 * tile * cell)}
    for row in range(R):
        for column in range(K):
            axes.text(
                (column + 1) * tile - 2,
                row * tile,
                f"{row}.{column}",
                **style,
            )


def _name_tokens(axis, labels, panels, cell, rotation):
    """Name the tokens of each of the panels along an axis; cell: its width in inches."""
    # Where cells are too small for a label each, only every second, third ... token is named.
    step = -int(-0.11 // cell)
    T = len(labels)
    places: list[int] = []
    for panel in range(panels):
        first = panel * (T + 1)
        places += range(first, first + T, step)
    names = labels[::step] * panels
    size = min(8, 64 * cell * step)
    axis.set_ticks(
        places,
        names,
        parse_math=False,
        fontsize=size,
        rotation=rotation,
    )
