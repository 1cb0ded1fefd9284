"""The picture of a circuit: from the embedding at the top down to the logits at the bottom.

A row for each layer's heads and one for each MLP, as far as they have edges; the MLPs stand to the
right. The arrows are the circuit's edges. An arrow goes around the nodes that it does not touch.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:  # it imports matplotlib
    from mingpt.interpretability.notebook_figure import Figure

# Colours that colour-blind people tell apart, by what a head reads.
ROLES = {
    "q": ("#0072b2", "read as query"),
    "k": ("#d55e00", "read as key"),
    "v": ("#009e73", "read as value"),
    "": ("#555555", "read by an MLP or the logits"),
}
# All in inches, from the middle of the nodes in the top row, y downwards.
PITCH = 1.15  # from a node to its neighbour
ROW = 0.8  # from a row to the next
HALF_WIDTH = 0.3  # of a node
HALF_HEIGHT = 0.14
AROUND = 0.1  # least distance of an arrow that goes around a node


def draw_circuit(
    nodes: Sequence[str], edges: Sequence[tuple[str, str, float]], title: str
) -> "Figure":
    """The matplotlib Figure of a graph, the first node at the top, with an arrow for each edge.

    nodes: names as "embed", "3.5", "mlp 3", "logits", from the embedding to the logits. edges:
    [(sender, reader, score)], a reader being a node or a head's "3.5.q". An arrow is as wide as its
    score, and dashed where that is negative.
    """
    from mingpt.interpretability.notebook_figure import Figure

    # "3.5" and "3.6" have the same part before the point, so they share a row.
    groups = groupby(nodes, key=lambda node: node.partition(".")[0])
    rows = [list(group) for _, group in groups]
    places = _place_nodes(rows)
    columns = [x for x, _ in places.values()]
    left = min(columns)
    right = max(columns)
    # Room for the layers' names at the left, the title above and the legend below.
    width = max(right - left + 2.4, 6.4)
    height = (len(rows) - 1) * ROW + 1.7
    margin = (width - (right - left)) / 2
    figure = Figure((width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(left - margin, right + margin)
    axes.set_ylim(height - 0.9, -0.9)
    axes.axis("off")
    _name_layers(axes, rows, left - 1)
    largest = max(abs(score) for _, _, score in edges)
    paths = _route_edges(places, edges)
    # Arrows first, so that they end under the nodes and not over their names.
    for (_, reader, score), points in zip(edges, paths):
        _draw_arrow(axes, points, reader, score / largest)
    box = {"boxstyle": "round", "fc": "white", "ec": "black"}
    for node, (x, y) in places.items():
        axes.text(x, y, node, ha="center", va="center", bbox=box)

    title += f"\nan arrow is as wide as its score, up to {largest:.2f} logits"
    figure.suptitle(title, y=1 - 0.1 / height, fontsize="medium", parse_math=False)
    _draw_legend(figure, edges)
    return figure


def _place_nodes(rows):
    """{node: (x, y)}: heads in the middle, MLPs to the right of them."""
    columns = max(len(row) for row in rows)
    places = {}
    for number, row in enumerate(rows):
        x = (1 - len(row)) / 2 * PITCH
        if row[0].startswith("mlp"):
            x = (columns + 1) / 2 * PITCH
            # In turn a little to the right, so that what passes one does not meet the next.
            x += 0.3 * (number % 2)
        for node in row:
            places[node] = (x, number * ROW)
            x += PITCH
    return places


def _name_layers(axes, rows, x):
    """Write each layer's name to the left of its first row."""
    named = {"embed", "logits"}
    for number, row in enumerate(rows):
        layer = row[0].removeprefix("mlp ").partition(".")[0]
        if layer not in named:
            named.add(layer)
            axes.annotate(f"layer {layer}", (x, number * ROW), va="center", color="grey")


def _route_edges(places, edges):
    """For each edge the points of its way, a list of (x, y)."""
    senders = [sender for sender, _, _ in edges]
    # The arrow to "3.5.q" ends at the node "3.5".
    readers = [reader.rstrip(".qkv") for _, reader, _ in edges]
    starts = _spread(places, senders, readers)
    ends = _spread(places, readers, senders)
    paths = []
    for number in range(len(edges)):
        x, y = starts[number]
        start = (x, y + HALF_HEIGHT)
        x, y = ends[number]
        end = (x, y - HALF_HEIGHT)
        # Not all at the same distance, so that they do not lie on each other.
        distance = AROUND + 0.05 * (number % 4)
        paths.append(_route(start, end, places.values(), distance))
    return paths


def _spread(places, nodes, others):
    """{number of an edge: where it meets its node}: side by side, in the order in which they come.

    nodes: of each edge, the node that it meets; others: the node at its other end.
    """
    meeting: dict[str, list[tuple[float, int]]] = {}
    for number, node in enumerate(nodes):
        x, y = places[node]
        other_x, other_y = places[others[number]]
        slope = (other_x - x) / abs(other_y - y)
        meeting.setdefault(node, []).append((slope, number))
    found = {}
    for node, slopes in meeting.items():
        x, y = places[node]
        # As far as the node is wide: some 0.1 inches for each letter.
        step = min(0.1, 0.08 * len(node) / len(slopes))
        first = x - step * (len(slopes) - 1) / 2
        for rank, (_, number) in enumerate(sorted(slopes)):
            found[number] = (first + rank * step, y)
    return found


def _route(start, end, places, distance):
    """The points of a way down from start to end: straight, but around the nodes between.

    distance: to the side of a node.
    """
    start_x, start_y = start
    end_x, end_y = end
    slope = (end_x - start_x) / (end_y - start_y)
    clear = HALF_WIDTH + distance
    for x, y in places:
        top = y - HALF_HEIGHT - AROUND
        bottom = y + HALF_HEIGHT + AROUND
        if not start_y < top < bottom < end_y:
            continue
        # How far to the right of the node's middle a straight way would pass its top and bottom.
        at_top = start_x + slope * (top - start_y) - x
        at_bottom = start_x + slope * (bottom - start_y) - x
        if min(at_top, at_bottom) < clear and max(at_top, at_bottom) > -clear:
            beside = x + clear
            if at_top + at_bottom < 0:
                beside = x - clear
            above = _route(start, (beside, top), places, distance)
            below = _route((beside, bottom), end, places, distance)
            return above + below
    return [start, end]


def _draw_arrow(axes, points, reader, score):
    """Draw an arrow through the points, with round corners; score: from -1 to 1."""
    from matplotlib.patches import FancyArrowPatch

    colour, _ = ROLES[_role(reader)]
    points_wide = 0.6 + 3.4 * abs(score)
    arrow = FancyArrowPatch(
        path=_round_corners(points),
        arrowstyle="-|>",
        mutation_scale=7 + 2 * points_wide,  # the size of its head
        alpha=0.8,
        lw=points_wide,
        ls="-" if score >= 0 else "--",
        fc=colour,
        ec=colour,
    )
    axes.add_patch(arrow)


def _round_corners(points):
    """The matplotlib Path through the points, whose corners are curves."""
    from matplotlib.path import Path

    vertices = [points[0]]
    codes = [Path.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:]):
        vertices += [_towards(corner, before), corner, _towards(corner, after)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    return Path([*vertices, points[-1]], [*codes, Path.LINETO])


def _towards(point, other):
    """The point that lies 0.12 inches from `point` on the way to the other, at most half-way."""
    way = numpy.subtract(other, point)
    share = min(0.5, 0.12 / numpy.hypot(*way))
    return point + share * way


def _draw_legend(figure, edges):
    """Say below the picture what the colours and the dashes in it mean."""
    from matplotlib.lines import Line2D

    lines = []
    for role, (colour, label) in ROLES.items():
        if any(_role(reader) == role for _, reader, _ in edges):
            lines.append(Line2D([], [], color=colour, lw=2, label=label))
    if any(score < 0 for _, _, score in edges):
        lines.append(Line2D([], [], color="k", ls="--", label="against the right answer"))
    figure.legend(
        handles=lines,
        loc="lower center",
        ncols=3,
        frameon=False,
        fontsize="small",
    )


def _role(reader):
    """What a reader is to its head: of "3.5.q", "q"; of an MLP and the logits, ""."""
    return reader[-1] if "." in reader else ""
