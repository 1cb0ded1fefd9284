"""Where does each head look in one of the two texts, and why?"""

from mingpt.explorer.requests import RUNS, number, one_of, text
from mingpt.interpretability.attention_analysis import page_data
from mingpt.interpretability.attention_explanation import explain_attention
from mingpt.interpretability.inputs import encode

MOST_PARTS = 12


def attention(model, body, cache):
    """Yield what every head's pattern on one of the texts is, as the attention page has it."""
    data = page_data(model, read_run(model, body))
    yield {name: data[name] for name in ("tokens", "heads", "across", "weights")}


def explain(model, body, cache):
    """Yield why a head looks from a query to a key: which parts, that wrote the two, say so."""
    found = explained(model, body)
    names = ("query", "key", "value")
    largest = [dict(zip(names, entry)) for entry in found.largest(MOST_PARTS)]
    yield {
        "score": found.score,
        "baseline": found.baseline,
        "weight": found.weight,
        "largest": largest,
        "by_query": _largest(found.parts, found.table.sum(1)),
        "by_key": _largest(found.parts, found.table.sum(0)),
    }


def explained(model, body):
    """The AttentionExplanation that a request asks for."""
    ids = read_run(model, body)
    layer, head = read_head(model, body)
    query, key, against = read_weight(body, ids.size(1))
    return explain_attention(model, ids, layer, head, query, key, against)


def read_head(model, body):
    """(layer, head) of a request."""
    layer = number(body, "layer", 0, model.config.n_layer - 1)
    return layer, number(body, "head", 0, model.config.n_head - 1)


def read_weight(body, T):
    """(query, key, [other keys that it is explained against]) of a text of T tokens."""
    query = number(body, "query", 0, T - 1)
    key = number(body, "key", 0, query)
    return query, key, read_against(body, query, key)


def read_run(model, body):
    """Ids (1,T) of the text whose run a request is about; the other one may be of any length."""
    run = one_of(body, "run", RUNS)
    return encode(model, text(body, run), run)


def read_against(body, query, key):
    """The positions of the keys whose mean score is taken off: none, or all others."""
    if body.get("against") is None:
        return []
    one_of(body, "against", ["others"])
    if query == 0:
        raise ValueError("the first token sees itself alone: there are no other keys")
    return [other for other in range(query + 1) if other != key]


def _largest(parts, sums):
    """[{"part", "value"}]: the largest of the sums (S,), then what all others sum to."""
    order = sums.abs().argsort(descending=True)
    largest = []
    for i in order[:MOST_PARTS].tolist():
        largest.append({"part": parts[i], "value": sums[i].item()})
    if len(parts) > MOST_PARTS:
        rest = sums.sum().item() - sum(entry["value"] for entry in largest)
        largest.append({"part": "all others", "value": rest})
    return largest
