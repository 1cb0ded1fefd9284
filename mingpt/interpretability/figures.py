"""Pictures and tables on disk, each whole or not there at all."""

import csv
import json
import sys
import warnings
from itertools import groupby
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


# Colours that colour-blind people tell apart, and how far an arrow bends, by what a head reads.
ROLES = {
    "q": ("#0072b2", 0.12, "read as query"),
    "k": ("#d55e00", -0.12, "as key"),
    "v": ("#009e73", 0.0, "as value"),
    "": ("#555555", 0.06, "by an MLP or the logits"),
}


def draw_graph(nodes, edges, title):
    """The matplotlib Figure of a graph: the first node at the top, an arrow for each edge, as wide as its score.

    nodes: names as "embed", "3.5", "mlp 3", "logits", from the embedding to the logits. edges: [(sender, reader,
    score)], a reader being a node or a head's "3.5.q". An arrow is dashed where its score is negative.
    """
    from matplotlib.figure import Figure

    # A row for each layer's heads, for each MLP, and for the two ends.
    groups = groupby(nodes, key=lambda node: node.partition(".")[0])
    rows = [list(group) for _, group in groups]
    widest = max(len(row) for row in rows)
    inches = (2.2 + 1.6 * max(widest, 3), 1.6 + 0.85 * len(rows))
    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.subplots()
    places = _place_nodes(rows)
    largest = max(abs(score) for _, _, score in edges)
    for sender, reader, score in edges:
        _draw_edge(axes, places, sender, reader, score, largest)
    box = {"boxstyle": "round", "fc": "white", "ec": "black"}
    for node, place in places.items():
        axes.text(*place, node, ha="center", va="center", bbox=box)

    axes.set_xlim(-widest / 2 - 0.6, widest / 2 + 0.6)
    axes.set_ylim(len(rows) - 0.3, -0.7)  # downwards
    axes.axis("off")
    axes.set_title(f"{title}: arrows as wide as their scores, up to {largest:.2f}", fontsize="medium")
    _draw_legend(axes)
    return figure


def _place_nodes(rows):
    """{node: (x, y)}, y the number of its row."""
    places = {}
    for y, row in enumerate(rows):
        # Every second row stands a little aside, so that arrows do not run through nodes.
        aside = -0.28 if y % 2 else 0.28
        for number, node in enumerate(row):
            places[node] = (number - (len(row) - 1) / 2 + aside, y)
    return places


def _draw_edge(axes, places, sender, reader, score, largest):
    from matplotlib.patches import FancyArrowPatch

    node = reader
    role = ""
    if reader not in places:
        node, _, role = reader.rpartition(".")  # "3.5.q" -> "3.5", "q"
    colour, bend, _ = ROLES[role]
    arrow = FancyArrowPatch(
        places[sender],
        places[node],
        arrowstyle="-|>",
        connectionstyle=f"arc3,rad={bend}",
        shrinkA=13,
        shrinkB=13,
        mutation_scale=9,
        alpha=0.8,
        lw=0.6 + 3.4 * abs(score) / largest,
        ls="-" if score >= 0 else "--",
        color=colour,
    )
    axes.add_patch(arrow)


def _draw_legend(axes):
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour, lw=2, label=label) for colour, _, label in ROLES.values()]
    lines.append(Line2D([], [], color="black", lw=2, ls="--", label="against the right answer"))
    axes.legend(
        handles=lines,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=3,
        frameon=False,
        fontsize="small",
    )
