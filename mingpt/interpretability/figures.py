"""Pictures and tables on disk, each whole or not there at all."""

import csv
import json
import sys
import warnings
from pathlib import Path

from mingpt.common import atomic_write

SUFFIXES = (".png", ".svg", ".pdf")


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
    _try_writing(path)


def _try_writing(path):
    """ValueError if no file can be made beside path."""
    probe = path.with_name(f".{path.name}.probe")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {error.strerror or error}; choose another folder"
        ) from error


def token_labels(tokens):
    """["0 Michelle", "1  Jones", ...]: position, a space, the token with line ends and the like written as escapes."""
    return [f"{position} {repr(token)[1:-1]}" for position, token in enumerate(tokens)]


def draw_heatmap(values, columns, title, quantity, rows=None):
    """The matplotlib Figure of values (rows, columns), row 0 at the bottom; red above 0, white at 0, blue below.

    title, quantity (of the colour bar) and the labels are shown to the letter. rows: "layer.head" labels; without
    them the rows are the layers from 0.
    """
    from matplotlib.colors import CenteredNorm
    from matplotlib.figure import Figure

    height, width = values.shape
    inches = (
        min(max(6.4, 0.62 * width + 2.6), 60),
        min(max(4.4, 0.34 * height + 2.6), 60),
    )  # a picture must stay a file
    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        values.cpu().double().numpy(),
        cmap="RdBu_r",
        norm=CenteredNorm(0),
        aspect="auto",
        origin="lower",
    )
    for axis, labels, most in (
        (axes.xaxis, columns, 95),
        (axes.yaxis, rows or [*range(height)], 170),
    ):
        every = -(
            -len(labels) // most
        )  # where there are too many to read, every second, third ... is named
        axis.set_ticks(range(0, len(labels), every), labels[::every])
    axes.tick_params(axis="x", labelrotation=60)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_xlabel("position and token")
    axes.set_ylabel("layer.head" if rows else "layer")
    axes.set_title(title, fontsize="medium", wrap=True, parse_math=False)
    figure.colorbar(image).set_label(quantity, parse_math=False)
    if width <= 24 and height <= 60:
        dark = 0.6 * values.abs().max().item()
        for row, cells in enumerate(values.tolist()):
            for column, value in enumerate(cells):
                colour = "white" if abs(value) > dark else "black"
                axes.text(
                    column,
                    row,
                    f"{value:.1f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=colour,
                    in_layout=False,
                )
    return figure


def save_heatmap(values, tokens, title, quantity, path):
    """Write draw_heatmap of values (L,T), and beside it the same as a CSV, both or neither.

    -> the two paths.
    """
    picture = Path(path)
    table = picture.with_suffix(".csv")
    columns = token_labels(tokens)
    with atomic_write(picture) as temporary_picture, atomic_write(table) as temporary_table:
        save_figure(draw_heatmap(values, columns, title, quantity), temporary_picture)
        save_csv(values, columns, temporary_table)
    return picture, table


def shown(figure, path=None):
    """The figure; written to path (.png, .svg, .pdf) if there is one."""
    if path:
        check_output(path)
        with atomic_write(path) as temporary:
            save_figure(figure, temporary)
    return figure


def save_page(name, data, path):
    """Write one self-contained page: pages/<name>.html with the data, which JSON can write, in the place of DATA."""
    check_output(path, (".html",))
    text = json.dumps(data, ensure_ascii=True, allow_nan=False)
    for (
        character
    ) in "<>&":  # so that no text in the data can end the script element or begin another
        text = text.replace(character, f"\\u{ord(character):04x}")
    page = (Path(__file__).parent / "pages" / f"{name}.html").read_text(encoding="utf-8")
    with atomic_write(path) as temporary:
        temporary.write_text(page.replace('"DATA"', text, 1), encoding="utf-8")


def save_figure(figure, path):
    """Write the figure; the suffix of path decides the format. Says on stderr if the font lacks some characters."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(path, dpi=150)
    if any("missing from font" in str(warning.message) for warning in caught):
        print(
            "Some characters are boxes in the picture, which has no font for them.", file=sys.stderr
        )


def save_csv(values, columns, path, rows=None):
    """Write values (rows, columns) in full precision: a header `layer,<columns>`, then each row after its label."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["layer", *columns])
        table.writerows(
            [row, *cells] for row, cells in zip(rows or range(len(values)), values.tolist())
        )
