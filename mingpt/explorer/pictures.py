"""A view as a picture, and as a table."""

import base64
import io
import tempfile
from pathlib import Path

import torch

from mingpt.explorer import requests
from mingpt.explorer.attention_view import explained, read_head, read_run
from mingpt.explorer.circuit_view import choose_edges
from mingpt.explorer.grid import compute, layers_of, read_grid, result_of
from mingpt.interpretability import figures
from mingpt.interpretability.attention_analysis import extract_attention, plot_attention_head
from mingpt.interpretability.inputs import token_texts
from mingpt.interpretability.patching_result import MEASURES


@torch.no_grad()
def picture(model, body, cache):
    """The view: a PNG of the view that the field `of` names, for the same request, as base64."""
    draw = PICTURES[requests.one_of(body, "of", PICTURES)]
    figure = yield from draw(model, body, cache)
    file = io.BytesIO()
    figures.save_figure(figure, file)
    yield {"png": base64.b64encode(file.getvalue()).decode()}


@torch.no_grad()
def csv(model, body, cache):
    """The view: a table of the view that the field `of` names, for the same request."""
    write = TABLES[requests.one_of(body, "of", TABLES)]
    text = yield from write(model, body, cache)
    yield {"text": text}


def draw_sweep(model, body, cache):
    """The Figure of a heatmap; computes what is not there yet, with breaths."""
    result, measure, table = yield from read_sweep(model, body, cache)
    values, rows, columns, xlabel = table
    _, scale = MEASURES[measure]
    marks = result.unpatched(measure)
    title = result.title()
    quantity = result.describe(measure)
    return figures.draw_heatmap(values, columns, title, quantity, rows, xlabel, scale, marks)


def write_sweep(model, body, cache):
    """The table of a heatmap, as CSV in full precision; computes what is not there yet."""
    _, _, (values, rows, columns, _) = yield from read_sweep(model, body, cache)
    return as_csv(values, rows, columns)


def as_csv(values, rows, columns, corner="layer"):
    """The text of a table of numbers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        figures.save_csv(values, columns, path, rows, corner)
        return path.read_bytes().decode()


def read_sweep(model, body, cache):
    """(PatchingResult, measure, what figures.as_table gives) of a heatmap."""
    measure = requests.one_of(body, "measure", MEASURES)
    grid = read_grid(model, body)
    steps = compute(model, grid, cache)
    ends, _ = next(steps)
    for _ in steps:
        yield {}
    result = result_of(model, grid, ends, layers_of(model, grid)[::-1])
    values, rows, columns, xlabel = figures.as_table(
        result.mean(measure), result.tokens if grid.has_positions else None
    )
    if grid.at is not None:
        rows = [f"{grid.at[0]}.{grid.at[1]}"]
    return result, measure, (values, rows, columns, xlabel)


def draw_attention(model, body, cache):
    """The Figure of one head's pattern."""
    yield {}
    return plot_attention_head(model, read_run(model, body), *read_head(model, body))


def write_attention(model, body, cache):
    """The table of one head's pattern: a row for each query."""
    ids = read_run(model, body)
    layer, head = read_head(model, body)
    yield {}
    tokens = figures.token_labels(token_texts(model, ids[0]))
    return as_csv(extract_attention(model, ids)[layer, head], tokens, tokens, "query")


def draw_explanation(model, body, cache):
    """The Figure of the parts that make a head look there."""
    yield {}
    return explained(model, body).plot()


def write_explanation(model, body, cache):
    """The whole table: what wrote the query down, what wrote the key across."""
    yield {}
    found = explained(model, body)
    return as_csv(found.table, found.parts, found.parts, "wrote the query")


def draw_chosen_circuit(model, body, cache):
    """The Figure of the chosen edges, as far as they connect."""
    _, chosen = yield from choose_edges(model, body, cache)
    return chosen.plot()


def write_circuit(model, body, cache):
    """The table of the chosen edges, as far as they connect, the largest first."""
    _, chosen = yield from choose_edges(model, body, cache)
    names = [f"{edge.sender} to {edge.reader}" for edge in chosen.edges]
    scores = torch.tensor([[edge.score] for edge in chosen.edges])
    return as_csv(scores.view(-1, 1), names, ["score in logits"], "edge")


# {name of a view: f(model, request, cache), a generator that yields breaths}: a Figure, a text
PICTURES = {
    "sweep": draw_sweep,
    "attention": draw_attention,
    "explain": draw_explanation,
    "circuit": draw_chosen_circuit,
}
TABLES = {
    "sweep": write_sweep,
    "attention": write_attention,
    "explain": write_explanation,
    "circuit": write_circuit,
}
