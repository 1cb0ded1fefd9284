"""A view as a picture, and as a table."""

import base64
import io
import tempfile
from pathlib import Path

import torch

from mingpt.explorer import requests
from mingpt.explorer.grid import compute, layers_of, read_grid, result_of
from mingpt.interpretability import figures
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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        figures.save_csv(values, columns, path, rows)
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


# {name of a view: f(model, request, cache), a generator that yields breaths}: a Figure, a text
PICTURES = {"sweep": draw_sweep}
TABLES = {"sweep": write_sweep}
