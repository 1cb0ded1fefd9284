"""The heatmap: what does the answer do when one cell of the other run is put in?

First come the tokens, before any run; then the two unpatched runs; then the rows as they are done.
"""

from itertools import zip_longest

import torch

from mingpt.explorer import requests
from mingpt.explorer.events import numbers, tokens, top_tokens
from mingpt.explorer.grid import compute, groups, read_grid, result_of
from mingpt.explorer.requests import RUNS
from mingpt.interpretability import runs
from mingpt.interpretability.inputs import token_texts, tokenizer_of
from mingpt.interpretability.patching_result import MEASURES
from mingpt.interpretability.web_pages import page_texts

MOST_CELLS = 512  # that are read at once: a measure may need the logits of each


@torch.no_grad()
def sweep(model, body, cache):
    """The view: tokens, the most probable next tokens of both runs, then rows of the heatmap."""
    event = show_texts(model, body)
    yield event
    if event["problem"]:
        T = {len(texts) for texts in event["tokens"].values()}
        if len(T) == 1 and 0 < max(T) <= model.block_size:
            yield {"tops": say_next(model, event["tokens"])}
        return
    grid = read_grid(model, body)
    measure = requests.one_of(body, "measure", MEASURES)
    steps = compute(model, grid, cache)
    ends, known = next(steps)
    yield describe(model, grid, ends, measure)
    cells = dict.fromkeys(known, len(columns_of(model, grid)))
    for layers in groups(cells, MOST_CELLS, MOST_CELLS):
        yield values(model, grid, ends, layers, measure)
    for ends, layers in steps:
        yield values(model, grid, ends, layers, measure) if layers else {}


def show_texts(model, body):
    """The first event: both texts' tokens, where they differ, and what speaks against a sweep."""
    rows = {}
    problems = []
    for name in RUNS:
        try:
            text = requests.text(body, name)
            rows[name] = torch.tensor(tokenizer_of(model).encode(text), dtype=torch.long)
        except ValueError as error:
            rows[name] = torch.tensor([], dtype=torch.long)
            problems.append(str(error))
    pairs = zip_longest(*(ids.tolist() for ids in rows.values()))
    differs = [clean != corrupted for clean, corrupted in pairs]
    return {
        "tokens": {name: tokens(model, ids) for name, ids in rows.items()},
        "differs": differs,
        "first": differs.index(True) if True in differs else None,
        "problem": problems[0] if problems else find_problem(model, body, rows),
    }


def find_problem(model, body, rows):
    """A sentence if the texts cannot be compared token by token, else None.

    rows: {"clean", "corrupted": ids (T,)}.
    """
    for name, ids in rows.items():
        if not len(ids):
            return f"the {name} text is empty; type one"
    longest = max(map(len, rows.values()))
    if longest > model.block_size:
        return f"a text has {longest} tokens; this model takes up to {model.block_size}"
    try:
        requests.read_pair(model, body)
    except ValueError as error:
        return str(error)
    return None


def say_next(model, texts):
    """{"clean", "corrupted": the most probable next tokens}, from which answers can be named.

    texts: the tokens of both, equally many.
    """
    rows = []
    for name in RUNS:
        rows.append([token["id"] for token in texts[name]])
    streams = runs.record(model, torch.tensor(rows), ["resid_post"])["resid_post"]
    ends = streams[model.config.n_layer - 1][:, -1]  # (2,T,C) -> (2,C)
    return dict(zip(RUNS, top_tokens(model, model.transformer.ln_f(ends))))


def columns_of(model, grid):
    """The labels of the columns: positions with their tokens, or heads."""
    if not grid.has_positions:
        return [str(head) for head in range(model.config.n_head)]
    texts = page_texts(token_texts(model, grid.pair.corrupted[0]))
    return [f"{position} {text}" for position, text in enumerate(texts)]


def describe(model, grid, ends, measure):
    """The second event: what both unpatched runs say, and what the heatmap will show."""
    result = result_of(model, grid, ends, [])
    rows = [f"{grid.at[0]}.{grid.at[1]}"] if grid.at else map(str, range(model.config.n_layer))
    first = (grid.pair.clean != grid.pair.corrupted).nonzero()[0, 1].item()
    answers = zip(RUNS, grid.pair.answers)
    vectors = torch.cat([ends.unpatched[name] for name in RUNS])  # (2,C)
    return {
        "tops": dict(zip(RUNS, top_tokens(model, vectors))),
        "answers": {name: tokens(model, answer)[0] for name, answer in answers},
        "unpatched": {name: numbers(v) for name, v in result.unpatched(measure).items()},
        "quantity": result.describe(measure),
        "rows": list(rows),
        "columns": columns_of(model, grid),
        "first": first if grid.has_positions else 0,
    }


def values(model, grid, ends, layers, measure):
    """An event of rows: the measure of all cells of these layers."""
    cells = result_of(model, grid, ends, layers).mean(measure)  # (l,cells)
    return {"layers": layers, "values": numbers(cells)}
