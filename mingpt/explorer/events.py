"""Numbers and tokens as a page gets them: plain lists, and texts in which all can be seen."""

from mingpt.interpretability import readout
from mingpt.interpretability.inputs import token_texts
from mingpt.interpretability.web_pages import page_texts

MOST_PROBABLE = 20  # so many next tokens are shown


def numbers(values):
    """A tensor, or a number, as lists of numbers with six significant digits."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(values, list):
        return [numbers(value) for value in values]
    return float(f"{values:.6g}") + 0.0  # which makes -0 a 0


def tokens(model, ids):
    """[{"id", "text"}, ...] of ids (T,)."""
    texts = page_texts(token_texts(model, ids))
    return [{"id": i, "text": text} for i, text in zip(ids.tolist(), texts)]


def top_tokens(model, vectors, k=MOST_PROBABLE):
    """For each of n last vectors (n,C), after the final norm, the k most probable next tokens.

    n lists of {"id", "text", "probability", "logit"}.
    """
    logits = model.lm_head(vectors).to(readout.wide_dtype(model))  # (n,V)
    best = logits.topk(min(k, logits.size(-1)))
    probabilities = logits.softmax(-1).gather(-1, best.indices)
    lists = []
    for ids, *columns in zip(best.indices, probabilities, best.values):
        shown = tokens(model, ids)
        for token, probability, logit in zip(shown, *map(numbers, columns)):
            token["probability"] = probability
            token["logit"] = logit
        lists.append(shown)
    return lists
