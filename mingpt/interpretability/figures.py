"""Pictures and tables on disk, each whole or not there at all.

A heatmap is read from top to bottom, as the model runs: layer 0 is the top row.
"""

import csv
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from math import floor, log10
from pathlib import Path
from textwrap import wrap
from typing import IO, TYPE_CHECKING, NamedTuple

from torch import Tensor

from mingpt.common import AnyPath, atomic_write

if TYPE_CHECKING:  # it imports matplotlib
    from mingpt.interpretability.notebook_figure import Figure

Columns = Sequence[str] | range  # the labels of columns: texts, or the numbers of heads

SUFFIXES = (".png", ".svg", ".pdf")
DPI = 150  # dots of an inch, in a file
PAGE_INCHES = 24  # of a side: what can still be read as one picture
MAX_INCHES = 60  # where each cell needs its place: a larger file nobody can open
MOST_WORDS = 80  # columns, which fill those inches with words
# The least value that is drawn in full colour, in logits, nats or shares: what is far smaller is
# pale, however small all others are.
FAINT = 0.05


def check_output(path: AnyPath, suffixes: Sequence[str] = SUFFIXES) -> None:
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


def quote(text: str, most: int = 160) -> str:
    """The text as Python writes it; of a long one the beginning and the end, with "..." between."""
    if len(text) > most:
        text = f"{text[: most * 2 // 3]} ... {text[-most // 3 :]}"
    return repr(text)


def token_labels(tokens: Iterable[str]) -> list[str]:
    """["0 Michelle", "1  Jones", ...]: position, a space, the token as in visible_text."""
    return [f"{position} {visible_text(token)}" for position, token in enumerate(tokens)]


def visible_text(token: str) -> str:
    """The token with line ends and the like written as escapes."""
    return repr(token)[1:-1]


class Scale(NamedTuple):
    """Which colours values have: those of `cmap`, from low * reach to high * reach."""

    cmap: str = "RdBu_r"  # red above 0, white at 0, blue below
    low: int = -1
    high: int = 1
    reach: float | None = None  # without it the largest |value|, but no less than FAINT


def draw_heatmap(
    values: Tensor,
    columns: Columns,
    title: str,
    quantity: str,
    rows: Sequence[str] | None = None,
    xlabel: str = "position and token",
    scale: Scale | None = None,
    marks: Mapping[str, float] | None = None,
) -> "Figure":
    """The matplotlib Figure of values (rows, columns), row 0 at the top.

    title, quantity (of the colour bar) and the labels are shown to the letter. rows: "layer.head"
    labels; without them the rows are the layers from 0. scale: without it, Scale(). marks:
    {name: value}, up to two values that are marked on the colour bar, and lie on the scale.
    """
    marks = marks or {}
    scale = scale or Scale()
    if scale.reach is None:
        largest = max(map(abs, [values.min().item(), values.max().item(), *marks.values()]))
        # What is marked, the unpatched runs, fills most of a long picture: not in the darkest red.
        room = 1.25 if marks else 1
        scale = scale._replace(reach=max(room * largest, FAINT))
    figure = _draw_image(values, columns, title, quantity, scale, rows, xlabel)
    # In more cells than these the numbers would run into each other.
    if len(columns) <= 24 and len(values) <= 60:
        _write_in_cells(figure, values, _numbers(values), fontsize=7)
    _mark(figure.axes[1], marks)
    return figure


def save_heatmap(
    values: Tensor,
    tokens: Sequence[str],
    title: str,
    quantity: str,
    path: AnyPath,
    marks: Mapping[str, float] | None = None,
) -> tuple[Path, Path]:
    """Write draw_heatmap of values (L,T), and beside it the same as a CSV, both or neither.

    -> the two paths. ValueError if one cannot be written: then both files are as they were.
    """
    picture = Path(path)
    table = picture.with_suffix(".csv")
    columns = token_labels(tokens)
    figure = draw_heatmap(values, columns, title, quantity, marks=marks)
    before = table.read_bytes() if table.exists() else None
    try:
        with atomic_write(picture) as temporary_picture, atomic_write(table) as temporary_table:
            save_figure(figure, temporary_picture)
            save_csv(values, columns, temporary_table)
    except BaseException:
        # The table is in its place first. Where the picture then cannot be, the table goes back.
        _put_back(table, before)
        raise
    return picture, table


def _put_back(path, before):
    """Make a file what it was: these bytes, or with None not there."""
    if before is None:
        path.unlink(missing_ok=True)
    elif path.read_bytes() != before:
        with atomic_write(path) as temporary:
            temporary.write_bytes(before)


def plot_effects(
    values: Tensor,
    tokens: Sequence[str] | None = None,
    title: str = "",
    quantity: str = "effect (logits)",
    path: AnyPath | None = None,
) -> "Figure":
    """The matplotlib Figure of effects, layers down: (L,H), or with the T tokens (L,T) or (L,H,T).

    Red above 0, blue below. path (.png, .svg, .pdf): written there. For what ablate_heads,
    path_patching and attribution_patching give.
    """
    values, rows, columns, xlabel = as_table(values, tokens)
    return shown(draw_heatmap(values, columns, title, quantity, rows, xlabel), path)


def as_table(
    values: Tensor, tokens: Sequence[str] | None = None
) -> tuple[Tensor, list[str] | None, Columns, str]:
    """(values (rows, columns), labels of rows or None for layers, of columns, of the axis).

    values: (L,) or (L,H); with the T tokens (L,T) or (L,H,T).
    """
    sizes = tuple(getattr(values, "shape", ()))
    given = "no tokens" if tokens is None else f"{len(tokens)} tokens"
    known = (1, 2) if tokens is None else (1, 2, 3)  # numbers of axes
    fits = tokens is None or len(sizes) == 1 or sizes[-1:] == (len(tokens),)
    if len(sizes) not in known or not fits:
        raise ValueError(
            "give a tensor of effects (L,H), or (L,T) or (L,H,T) with the T tokens; "
            f"got {sizes or type(values).__name__}, and {given}"
        )
    if len(sizes) == 1:
        return values[:, None], None, ["all positions"], ""
    if tokens is None:
        return values, None, range(sizes[1]), "head"
    rows = None
    if len(sizes) == 3:
        rows = [f"{layer}.{head}" for layer in range(sizes[0]) for head in range(sizes[1])]
        values = values.flatten(0, 1)
    return values, rows, token_labels(tokens), "position and token"


def draw_words(
    values: Tensor, columns: list[str], words: list[str], title: str, quantity: str, largest: float
) -> "Figure":
    """The matplotlib Figure of values (L,T) with a word in each cell, layer 0 at the top.

    Colours: from white at 0 to dark blue at `largest`. words: L*T texts, a row after the other. In
    more than 80 columns no word can be read: they are left out, and the title says so.
    """
    scale = Scale("Blues", 0, 1, largest)
    if len(columns) > MOST_WORDS:
        title += f"\nmore than {MOST_WORDS} positions: the tokens themselves are on the .html page"
        return _draw_image(values, columns, title, quantity, scale)
    figure = _draw_image(values, columns, title, quantity, scale, widest=MAX_INCHES)
    _write_in_cells(figure, values, words, fontsize=6.5)
    return figure


def _draw_image(
    values,
    columns,
    title,
    quantity,
    scale,
    rows=None,
    xlabel="position and token",
    widest=16,
):
    """A Figure of values as an image, row 0 at the top, with its ticks, title and colour bar.

    scale, with its reach, rows, xlabel: as in draw_heatmap. widest: how many inches it may be.
    """
    from mingpt.interpretability.notebook_figure import Figure

    height, width = values.shape
    # Wide enough for the cells and, where there are few, for the title.
    across = min(max(9, 0.62 * width + 2.6), widest)
    down = min(max(4.4, 0.34 * height + 2.6), PAGE_INCHES)
    figure = Figure((across, down), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        values.cpu().double().numpy(),
        scale.cmap,
        vmin=scale.low * scale.reach,
        vmax=scale.high * scale.reach,
        aspect="auto",
    )
    slanted = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
    has_words = not isinstance(columns, range)  # which are the numbers of heads
    _name_ticks(axes.xaxis, columns, 60, **(slanted if has_words else {}))
    _name_ticks(axes.yaxis, rows or range(height), 120)
    axes.set(xlabel=xlabel, ylabel="layer.head" if rows else "layer")
    axes.set_title(title, fontsize="medium", wrap=True, parse_math=False)
    # In a tall picture a bar of the whole height could not be seen at once.
    bar = figure.colorbar(image, shrink=min(1, 8 / down))
    # Along a short bar a long quantity takes two lines.
    lines = wrap(quantity, int(12 * down), replace_whitespace=False)
    bar.set_label("\n".join(lines), parse_math=False)
    return figure


def _name_ticks(axis, labels, most, **style):
    """Put the labels at 0, 1, ...; of more than `most`, only every second, third ... is shown."""
    count = len(labels)
    step = -(-count // most)  # rounded up
    axis.set_ticks(range(0, count, step), labels[::step], parse_math=False, **style)


def _numbers(values):
    """The values as texts, a row after the other, with about two digits of the largest."""
    largest = values.abs().max().item() or 1
    decimals = min(4, max(1, 1 - floor(log10(largest / 2))))
    # Adding 0 makes 0.0 of -0.0.
    return [f"{round(value, decimals) + 0.0:.{decimals}f}" for value in values.flatten().tolist()]


def _write_in_cells(figure, values, texts, fontsize):
    """Write texts into the cells of values (rows, columns), a row after the other.

    White on dark cells.
    """
    axes = figure.axes[0]
    colours = axes.images[0].to_rgba(values.cpu().double().numpy())  # (rows, columns, 4)
    brightness = colours[..., :3] @ (0.3, 0.6, 0.1)  # as the eye weighs red, green and blue
    for number, text in enumerate(texts):
        row, column = divmod(number, values.size(1))
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=fontsize,
            color="white" if brightness[row, column] < 0.5 else "black",
            parse_math=False,
            # They lie within the axes, so the layout need not ask for their sizes.
            in_layout=False,
        )


def _mark(bar, marks):
    """Draw a line across the axes of a colour bar at each of the marks, its name to the left."""
    names = sorted(marks, key=marks.get)
    # Below the lower line and above the upper one, where they cannot meet.
    for name, side in zip(names, ("top", "bottom")):
        value = marks[name]
        bar.axhline(value, -0.3, color="black", linewidth=2, clip_on=False)
        bar.text(-0.4, value, name, ha="right", va=side, transform=bar.get_yaxis_transform())


def shown(figure: "Figure", path: AnyPath | None = None) -> "Figure":
    """The figure, as it is; written to path (.png, .svg, .pdf) if there is one.

    ValueError, as check_output, if it cannot be written.
    """
    if path:
        check_output(path)
        with atomic_write(path) as temporary:
            save_figure(figure, temporary)
    return figure


def save_figure(figure: "Figure", path: AnyPath | IO[bytes]) -> None:
    """Write the figure; the suffix of path decides the format.

    Says on stderr if the font lacks some of the characters.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(path, dpi=DPI)
    if any("missing from font" in str(warning.message) for warning in caught):
        print(
            "Some characters are boxes in the picture, which has no font for them.", file=sys.stderr
        )


def save_csv(
    values: Tensor,
    columns: Iterable[object],
    path: AnyPath,
    rows: Iterable[object] | None = None,
    corner: str = "layer",
) -> None:
    """Write values (rows, columns) in full precision.

    A header `layer,<columns>`, then each row after its label; layer 0 first. corner: what stands
    there in place of "layer", where rows are something else.
    """
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([corner, *columns])
        for label, cells in zip(rows or range(len(values)), values.tolist()):
            table.writerow([label, *cells])
