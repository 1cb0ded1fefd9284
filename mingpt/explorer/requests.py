"""What does a request ask for? Each reader gives a checked value, or a ValueError of one sentence.

A body is a dict of what a page sent as JSON; nothing in it is trusted.
"""

import json
from dataclasses import dataclass
from math import isfinite

import torch

from mingpt.interpretability.inputs import answer_pair, encode, encode_pair
from mingpt.sites import SITES_WITH_HEADS

LONGEST_TEXT = 20_000  # characters
LONGEST_NAME = 64  # characters of a tab's or a lane's name
MOST_CELLS = 64
RUNS = ("clean", "corrupted")


@dataclass
class Pair:
    """Two texts of equal token lengths and their answers."""

    clean_text: str
    corrupted_text: str
    clean: torch.Tensor  # ids (1,T)
    corrupted: torch.Tensor  # ids (1,T)
    answers: tuple[torch.Tensor, torch.Tensor]  # the clean and the corrupted answer, ids (1,) each


def read_body(data):
    """The dict of a request's bytes; ValueError unless they are a plain JSON object."""
    try:
        body = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_as_dict,
            parse_constant=_refuse,
            parse_float=_as_float,
            parse_int=_as_int,
        )
        # A half of a surrogate pair is no character: no text that could be sent on has one.
        json.dumps(body, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("the request is nested too deeply") from error
    except UnicodeError as error:
        raise ValueError("the request has what is no Unicode text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"the request is no JSON ({error})") from error
    if not isinstance(body, dict):
        raise ValueError("the request must be a JSON object")
    return body


def _as_dict(pairs):
    body = dict(pairs)
    if len(body) != len(pairs):
        raise ValueError("the request has a field twice")
    return body


def _refuse(constant):
    raise ValueError(f"the request has {constant}, which is no number")


def _as_float(digits):
    number = float(digits)
    if not isfinite(number):
        _refuse("a number too large for a float")
    return number


def _as_int(digits):
    # Python refuses, slowly, what has thousands of digits; no id or number here has twenty.
    return int(digits) if len(digits) < 20 else _refuse("a number too large")


def text(body, name, longest=LONGEST_TEXT):
    """A text of the body."""
    value = body.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a text, got {_kind(value)}")
    if len(value) > longest:
        raise ValueError(f"{name} has {len(value):,} characters; at most {longest:,} are taken")
    return value


def one_of(body, name, choices):
    """A value of the body that is one of the choices, which are texts."""
    value = body.get(name)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {_kind(value)}")
    return value


def number(body, name, low, high):
    """A whole number of the body, from low to high."""
    value = body.get(name)
    # type() and not isinstance: True is no number here.
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}; got {_kind(value)}")
    return value


def _kind(value):
    """A value in an error message: short, whatever was sent."""
    return f"{value!r:.60}" if isinstance(value, str | int | float | None) else "a list or object"


def answer(body, name):
    """An answer as the library takes it: None for the differing token, an id, or a text."""
    value = body.get(name)
    if value is None or type(value) is int:
        return value
    return text(body, name, LONGEST_NAME)


def read_pair(model, body):
    """The Pair of a body; ValueError where the texts cannot be compared token by token."""
    clean_text = text(body, "clean")
    corrupted_text = text(body, "corrupted")
    clean = encode(model, clean_text, "clean")
    corrupted = encode(model, corrupted_text, "corrupted")
    # The library shows all tokens of both, which is more than a sentence.
    if clean.shape != corrupted.shape:
        raise ValueError(
            f"the clean text has {clean.size(1)} tokens and the corrupted one "
            f"{corrupted.size(1)}; change one until both have equally many tokens"
        )
    clean, corrupted = encode_pair(model, clean, corrupted)
    given = answer(body, "clean_answer"), answer(body, "corrupted_answer")
    answers = answer_pair(model, clean, corrupted, *given)
    return Pair(clean_text, corrupted_text, clean, corrupted, answers)


def cell(body, model, site, T):
    """(layer, position, head) of a cell of a text of T tokens.

    At sites without heads head is None. At those with heads position may be: all of them.
    """
    layer = number(body, "layer", 0, model.config.n_layer - 1)
    if site not in SITES_WITH_HEADS:
        return layer, number(body, "position", 0, T - 1), None
    head = number(body, "head", 0, model.config.n_head - 1)
    if body.get("position") is None:
        return layer, None, head
    return layer, number(body, "position", 0, T - 1), head


def cells(body, model, site, T, least=1):
    """A list of (layer, position, head), from the field "cells"."""
    items = body.get("cells")
    is_list = isinstance(items, list) and all(isinstance(item, dict) for item in items)
    if not is_list or not least <= len(items) <= MOST_CELLS:
        raise ValueError(f"cells must be a list of {least} to {MOST_CELLS} cells")
    return [cell(item, model, site, T) for item in items]


def read_lane(body, view):
    """(tab, lane): whose request it is, and of which part of the page; the view's name if none."""
    tab = text(body, "tab", LONGEST_NAME)
    if body.get("lane") is None:
        return tab, view
    return tab, text(body, "lane", LONGEST_NAME)
