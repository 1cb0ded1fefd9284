"""Pictures and tables on disk, each whole or not there at all.

A heatmap is read from top to bottom, as the model runs: layer 0 is the top row.
"""

import csv
import sys
import warnings
from itertools import product
from pathlib import Path

import torch
from torch.nn import functional as F

from mingpt.common import atomic_write

SUFFIXES = (".png", ".svg", ".pdf")
MAX_INCHES = 60  # of a side: a larger picture is a file that nobody can open


def check_output(path, suffixes=SUFFIXES):
    """ValueError unless a picture (or a page) can be written to path, and its table beside it."""
    path = Path(path)
    if path.suffix not in suffixes:
        raise ValueError(
            f"cannot write {str(path)!r}: the name must end in one of {', '.join(suffixes)}"
        )
    if not path.parent.is_dir():
        raise ValueError(
            f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; make it first"
        )
    for file in (path, path.with_suffix(".csv")):
        if file.is_dir():
            raise ValueError(f"cannot write {str(file)!r}: it is a folder")
    # Asked by doing it: permissions do not tell of read-only disks and of folders such as /proc.
    probe = path.with_name(f".{path.name}.probe")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {error.strerror or error}; choose another folder"
        ) from error


def token_labels(tokens):
    """["0 Michelle", "1  Jones", ...]: position, a space, the token as in visible_text."""
    return [f"{position} {visible_text(token)}" for position, token in enumerate(tokens)]


def visible_text(token):
    """The token with line ends and the like written as escapes."""
    return repr(token)[1:-1]


def draw_heatmap(values, columns, title, quantity, rows=None, xlabel="position and token"):
    """The matplotlib Figure of values (rows, columns), row 0 at the top.

    Colours: red above 0, white at 0, blue below. title, quantity (of the colour bar) and the labels
    are shown to the letter. rows: "layer.head" labels; without them the rows are the layers from 0.
    """
    largest = values.abs().max().item()
    colours = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
    figure = _draw_image(values, columns, title, quantity, rows, xlabel, **colours)
    # In more cells than these the numbers would run into each other.
    if len(columns) <= 24 and len(values) <= 60:
        numbers = [f"{value:.1f}" for value in values.flatten().tolist()]
        _write_in_cells(figure, values, numbers, 0.6 * largest, fontsize=7)
    return figure


def save_heatmap(values, tokens, title, quantity, path):
    """Write draw_heatmap of values (L,T), and beside it the same as a CSV, both or neither.

    -> the two paths.
    """
    picture = Path(path)
    table = picture.with_suffix(".csv")
    columns = token_labels(tokens)
    figure = draw_heatmap(values, columns, title, quantity)
    with atomic_write(picture) as temporary_picture, atomic_write(table) as temporary_table:
        save_figure(figure, temporary_picture)
        save_csv(values, columns, temporary_table)
    return picture, table


def draw_words(values, columns, words, title, quantity, largest):
    """The matplotlib Figure of values (L,T) with a word in each cell, layer 0 at the top.

    Colours: from white at 0 to dark blue at `largest`. words: L*T texts, a row after the other.
    """
    colours = {"cmap": "Blues", "vmin": 0, "vmax": largest}
    figure = _draw_image(values, columns, title, quantity, **colours)
    # In more columns than these no word can be read.
    if len(columns) <= 80:
        _write_in_cells(figure, values, words, 0.7 * largest, fontsize=6.5)
    return figure


def _draw_image(
    values, columns, title, quantity, rows=None, xlabel="position and token", **colours
):
    """A Figure of values as an image, row 0 at the top, with its ticks, title and colour bar.

    rows, xlabel: as in draw_heatmap. colours: what imshow takes as cmap, vmin and vmax.
    """
    from mingpt.interpretability.notebook_figure import Figure

    height, width = values.shape
    # Large enough for the cells, and for the title where there are few of them.
    across = max(6.4, 0.62 * width + 2.6)
    down = max(4.4, 0.34 * height + 2.6)
    inches = (min(across, MAX_INCHES), min(down, MAX_INCHES))
    figure = Figure(inches, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values.cpu().double().numpy(), aspect="auto", **colours)
    _name_ticks(axes.xaxis, columns, 95, rotation=60, ha="right", rotation_mode="anchor")
    _name_ticks(axes.yaxis, rows or range(height), 170)
    axes.set(xlabel=xlabel, ylabel="layer.head" if rows else "layer")
    axes.set_title(title, fontsize="medium", wrap=True, parse_math=False)
    figure.colorbar(image).set_label(quantity, parse_math=False)
    return figure


def _name_ticks(axis, labels, most, **style):
    """Put the labels at 0, 1, ...; of more than `most`, only every second, third ... is shown."""
    count = len(labels)
    step = -(-count // most)  # rounded up
    axis.set_ticks(range(0, count, step), labels[::step], parse_math=False, **style)


def _write_in_cells(figure, values, texts, dark, fontsize):
    """Write texts into the cells of values (rows, columns), a row after the other.

    White where the value is beyond `dark`, above or below 0, so that it is read on a dark cell.
    """
    axes = figure.axes[0]
    for number, text in enumerate(texts):
        row, column = divmod(number, values.size(1))
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=fontsize,
            color="white" if values[row, column].abs() > dark else "black",
            parse_math=False,
            # They lie within the axes, so the layout need not ask for their sizes.
            in_layout=False,
        )


def draw_patterns(patterns, labels, title):
    """The matplotlib Figure of attention patterns (R,K,T,T), R rows of K, in one image.

    labels: of the T tokens, on both axes. If there are several patterns, each is named "row.column"
    in its upper right corner, which is empty: no token sees a later one.
    """
    from mingpt.interpretability.notebook_figure import Figure

    R, K, T, _ = patterns.shape
    tile = T + 1  # a pattern and the gap after it
    future = torch.ones(T, T).triu(1).bool()
    patterns = patterns.masked_fill(future, torch.nan)
    tiles = F.pad(patterns, (0, 1, 0, 1), value=torch.nan)  # (R,K,tile,tile)
    image = tiles.transpose(1, 2).reshape(R * tile, K * tile)
    image = image[:-1, :-1].numpy()  # without the gaps at the edges
    # Large enough to read where there are few patterns, and no larger than a picture may be.
    cell = max(0.13, 4.5 / (K * T))  # inches
    cell = min(cell, MAX_INCHES / (max(R, K) * tile))
    inches = (cell * K * tile + 2.4, cell * R * tile + 1.6)
    figure = Figure(inches, layout="compressed")
    axes = figure.subplots()
    axes.set_facecolor("#e6e6e6")  # seen where the image is NaN
    drawn = axes.imshow(image, "Blues", vmin=0, vmax=1)
    _name_tokens(axes.xaxis, labels, K, cell, rotation=90)
    _name_tokens(axes.yaxis, labels, R, cell, rotation=0)
    axes.set(xlabel="attended to (key)", ylabel="attending (query)", title=title)
    if R * K > 1:
        size = min(14, 9 * cell * tile)
        for row, column in product(range(R), range(K)):
            corner = (column * tile + tile - 2, row * tile)
            axes.text(*corner, f"{row}.{column}", ha="right", va="top", fontsize=size)
    # In a tall picture of many patterns a bar of the whole height could not be seen at once.
    shrink = min(1, 8 / figure.get_figheight())
    figure.colorbar(drawn, aspect=40, shrink=shrink, label="attention weight")
    return figure


def _name_tokens(axis, labels, panels, cell, rotation):
    """Name the tokens of each of the panels along an axis; cell: its width in inches."""
    # Where cells are too small for a label each, only every second, third ... token is named.
    step = -int(-0.05 // cell)
    T = len(labels)
    places = []
    for panel in range(panels):
        first = panel * (T + 1)
        places += range(first, first + T, step)
    size = min(8, 64 * cell * step)
    names = labels[::step] * panels
    axis.set_ticks(places, names, parse_math=False, fontsize=size, rotation=rotation)


def shown(figure, path=None):
    """The figure, as it is; written to path (.png, .svg, .pdf) if there is one.

    ValueError, as check_output, if it cannot be written.
    """
    if path:
        check_output(path)
        with atomic_write(path) as temporary:
            save_figure(figure, temporary)
    return figure


def save_figure(figure, path):
    """Write the figure; the suffix of path decides the format.

    Says on stderr if the font lacks some of the characters.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(path, dpi=150)
    if any("missing from font" in str(warning.message) for warning in caught):
        print(
            "Some characters are boxes in the picture, which has no font for them.", file=sys.stderr
        )


def save_csv(values, columns, path, rows=None):
    """Write values (rows, columns) in full precision.

    A header `layer,<columns>`, then each row after its label; layer 0 first.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["layer", *columns])
        for label, cells in zip(rows or range(len(values)), values.tolist()):
            table.writerow([label, *cells])
