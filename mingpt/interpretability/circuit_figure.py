"""The picture of a circuit: from the embedding at the top down to the logits at the bottom.

A row for each layer's heads and one for each MLP; the arrows between them are the circuit's edges.
"""

from itertools import groupby

# Colours that colour-blind people tell apart, and how far an arrow bends, by what a head reads.
ROLES = {
    "q": ("#0072b2", 0.12, "read as query"),
    "k": ("#d55e00", -0.12, "as key"),
    "v": ("#009e73", 0.0, "as value"),
    "": ("#555555", 0.06, "by an MLP or the logits"),
}


def draw_circuit(nodes, edges, title):
    """The matplotlib Figure of a graph, the first node at the top, with an arrow for each edge.

    nodes: names as "embed", "3.5", "mlp 3", "logits", from the embedding to the logits. edges:
    [(sender, reader, score)], a reader being a node or a head's "3.5.q". An arrow is as wide as its
    score, and dashed where that is negative.
    """
    from matplotlib.figure import Figure

    # "3.5" and "3.6" have the same part before the point, so they share a row.
    groups = groupby(nodes, key=lambda node: node.partition(".")[0])
    rows = [list(group) for _, group in groups]
    widest = max(map(len, rows))
    inches = (2.2 + 1.6 * max(widest, 3), 1.6 + 0.85 * len(rows))
    figure = Figure(inches, layout="constrained")
    axes = figure.subplots()
    places = _place_nodes(rows)
    largest = max(abs(score) for _, _, score in edges)
    # Arrows first, so that they end under the nodes and not over their names.
    for sender, reader, score in edges:
        _draw_edge(axes, places, sender, reader, score / largest)
    box = {"boxstyle": "round", "fc": "white", "ec": "black"}
    for node, place in places.items():
        axes.text(*place, node, ha="center", va="center", bbox=box)

    axes.set_xlim(-widest / 2 - 0.6, widest / 2 + 0.6)
    axes.set_ylim(len(rows) - 0.3, -0.7)  # downwards
    axes.axis("off")
    axes.set_title(
        f"{title}: arrows as wide as their scores, up to {largest:.2f}", fontsize="medium"
    )
    _draw_legend(axes)
    return figure


def _place_nodes(rows):
    """{node: (x, y)}, y the number of its row."""
    places = {}
    for y, row in enumerate(rows):
        # Rows stand a little to the right and to the left of the middle in turn, so that arrows do
        # not run through the nodes of a row between.
        aside = -0.28 if y % 2 else 0.28
        for number, node in enumerate(row):
            places[node] = (number - (len(row) - 1) / 2 + aside, y)
    return places


def _draw_edge(axes, places, sender, reader, score):
    """Draw the arrow of an edge; score: from -1 to 1."""
    from matplotlib.patches import FancyArrowPatch

    # The arrow to "3.5.q" ends at the node "3.5", and has the colour of what it reads, "q".
    colour, bend, _ = ROLES.get(reader[-1], ROLES[""])
    arrow = FancyArrowPatch(
        places[sender],
        places[reader.rstrip(".qkv")],
        arrowstyle="-|>",
        connectionstyle=f"arc3,rad={bend}",
        shrinkA=13,
        shrinkB=13,
        mutation_scale=9,
        alpha=0.8,
        lw=0.6 + 3.4 * abs(score),
        ls="-" if score >= 0 else "--",
        color=colour,
    )
    axes.add_patch(arrow)


def _draw_legend(axes):
    """Say below the picture what the colours and the dashes mean."""
    # Lines without points are not seen, but have their entry in the legend.
    for colour, _, label in ROLES.values():
        axes.plot([], [], colour, lw=2, label=label)
    axes.plot([], [], "k--", lw=2, label="against the right answer")
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=3,
        frameon=False,
        fontsize="small",
    )
