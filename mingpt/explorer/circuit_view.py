"""Which edges carry the difference between two texts, and what are some of them worth?

The sign is that of the circuits: positive = towards the clean answer.
"""

import torch

from mingpt.explorer.requests import LONGEST_NAME, number, one_of, read_pair
from mingpt.interpretability import tasks
from mingpt.interpretability.circuits import Circuit, check_answers, first_edges
from mingpt.interpretability.edges import exact_pieces, score_edges
from mingpt.interpretability.graph import layout, record_task

METHODS = ("eap", "exact")
MOST_EDGES = 400  # that are shown, and that a circuit can have here
MOST_BYTES = 2**30  # that the base runs of a pair may take
AT_ONCE = 512  # tokens under way: few, so that a search can be stopped soon
QUANTITY = (
    "logit(clean answer) - logit(corrupted answer), in logits; the score of an edge is how much of "
    "it is lost when this edge alone carries the corrupted run's value: positive = the edge "
    "supports the clean answer"
)


def circuit(model, body, cache):
    """Yield how far the search is; then the largest edges, and the metric of the two runs."""
    found = yield from find_edges(model, body, cache)
    clean, corrupted = found.runs.unpatched()[:, 0].tolist()
    yield {
        "edges": [edge._asdict() for edge in found.edges],
        "total": int(found.runs.graph.possible.sum()),
        "clean": clean,
        "corrupted": corrupted,
        "quantity": QUANTITY,
    }


def faithfulness(model, body, cache):
    """Yield which of the `size` largest edges, without the removed ones, connect, and their worth.

    As shares of the fall from the clean to the corrupted metric, and as the metric itself.
    """
    found, chosen = yield from choose_edges(model, body, cache)
    kept = {edge[:2] for edge in chosen.edges}
    share = chosen.faithfulness()
    clean, corrupted = found.runs.unpatched()[:, 0].tolist()
    yield {
        "edges": [i for i, edge in enumerate(found.edges) if edge[:2] in kept],
        "faithfulness": share,
        "metric": corrupted + share * (clean - corrupted),
    }


def choose_edges(model, body, cache):
    """Yield how far it is; comes back: find_edges' Circuit, and that of a request's size."""
    size, removed = read_choice(body)
    found = yield from find_edges(model, body, cache)
    smaller = [edge[:2] for edge in found.edges[size:]]
    return found, found.without(smaller + removed)


def read_choice(body):
    """(size, [(sender, reader)] of the edges that are taken out) of a request."""
    size = number(body, "size", 1, MOST_EDGES)
    removed = body.get("removed", [])
    is_list = isinstance(removed, list) and len(removed) <= MOST_EDGES
    if not is_list or not all(map(_is_edge, removed)):
        raise ValueError(
            f"removed must be a list of edges, {MOST_EDGES} at most, "
            'such as {"sender": "embed", "reader": "3.5.q"}'
        )
    return size, [(edge["sender"], edge["reader"]) for edge in removed]


def _is_edge(item):
    """Does a request's item have the names of two parts, of whatever model?"""
    names = [item.get("sender"), item.get("reader")] if isinstance(item, dict) else [None]
    return all(isinstance(name, str) and len(name) <= LONGEST_NAME for name in names)


def find_edges(model, body, cache):
    """Yield how far it is; comes back: the Circuit of the pair's largest edges, connected or not.

    A pair's edges are scored once for each method. Its runs, and a search that was broken off, are
    held until another pair comes: then the search goes on where it was.
    """
    pair = read_pair(model, body)
    method = one_of(body, "method", METHODS)
    texts = (pair.clean, pair.corrupted)
    answers = [ids.item() for ids in pair.answers]
    batch = tasks.read_pair(model, (*texts, *answers))
    key = str([*(ids.tolist() for ids in texts), answers])
    check_memory(model, batch.clean.size(1))
    pairs = cache.get("pair of the circuits", dict)
    if key not in pairs:
        pairs.clear()
        pairs[key] = {"runs": record_task(model, [batch])}
    # This pair's own: searches for several pairs may take turns.
    held = pairs[key]
    runs = held["runs"]
    check_answers(*runs.unpatched())
    scores = cache.get(f"edges {key}", dict)
    if method not in scores:
        search = held.get(method) or score(runs, method, scores)
        for share in search:
            held[method] = search
            yield {"share": share}
            # What fails now cannot be gone on with.
            held.pop(method, None)
        if method not in scores:  # another request shared the search, and it failed there
            raise ValueError("the search was broken off; ask again")
    mask = first_edges(runs.graph, scores[method].abs(), MOST_EDGES)
    return Circuit(model, runs, mask, scores[method], method)


def check_memory(model, T):
    """ValueError where the runs of two texts of T tokens would take too much memory."""
    config = model.config
    # As record_base_runs says.
    vectors = len(layout(model).senders) + 14 * config.n_layer
    most = MOST_BYTES // (4 * config.n_embd * vectors)
    if most < T:
        raise ValueError(
            f"a circuit of this model takes texts of up to {most} tokens, got {T}: what each part "
            "writes is kept for every token; take shorter texts or a smaller model"
        )


def score(runs, method, scores):
    """Yield the share that is done, from 0; in the end scores[method] are all edges', (R,S)."""
    base = runs.batches[0]
    possible = base.graph.possible
    yield 0.0
    if method == "eap":
        scores[method] = score_edges([base], method).cpu()
        return
    found = torch.zeros(possible.shape)
    done = 0
    for readers, senders, drops in exact_pieces(base, AT_ONCE):
        found[readers, senders] = drops.cpu().to(found.dtype)
        done += drops.numel()
        yield done / possible.sum().item()
    scores[method] = found
