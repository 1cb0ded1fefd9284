"""The explorer's requests: each reader gives a checked value, or says what was expected."""

import pytest

from mingpt.explorer import requests
from mingpt.model import GPT

CLEAN = "Michelle Jones was a top-notch student. Michelle"
CORRUPTED = "Michelle Smith was a top-notch student. Michelle"


@pytest.fixture(scope="module")
def model():
    return GPT.from_pretrained("names")


def test_a_body_is_read_as_it_is():
    body = requests.read_body('{"a": "東\U0001f642", "b": [1, -2, 0.5], "c": null}'.encode())
    assert body == {"a": "東\U0001f642", "b": [1, -2, 0.5], "c": None}


@pytest.mark.parametrize("digits", ["9" * 20, "-" + "9" * 20, "9" * 5000])
def test_a_number_that_nothing_here_can_be_is_refused(digits):
    with pytest.raises(ValueError, match="a number too large, which is no number"):
        requests.read_body(f'{{"a": {digits}}}'.encode())


def test_a_pair_has_its_texts_ids_and_answers(model):
    pair = requests.read_pair(model, {"clean": CLEAN, "corrupted": CORRUPTED})
    assert pair.clean_text == CLEAN and pair.clean.shape == pair.corrupted.shape == (1, 11)
    assert [model.tokenizer.decode(ids) for ids in pair.answers] == [" Jones", " Smith"]


@pytest.mark.parametrize("given", [" Brown", None])
def test_an_answer_is_a_text_or_an_id(model, given):
    given = given or model.tokenizer.encode(" Brown")[0]
    body = {"clean": CLEAN, "corrupted": CORRUPTED, "clean_answer": given}
    answer, _ = requests.read_pair(model, body).answers
    assert model.tokenizer.decode(answer) == " Brown"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"clean": None}, "clean must be a text"),
        ({"clean": ["a"]}, "clean must be a text, got a list"),
        ({"clean": ""}, "the clean text has 0 tokens"),
        ({"clean": "a" * 20_001}, "clean has 20,001 characters; at most 20,000"),
        ({"clean": " a" * 300}, "this model takes 1 to 256"),
        ({"clean": CORRUPTED}, "the same"),
        ({"clean": "Jones"}, "equally many tokens"),
        ({"clean_answer": 1.5}, "clean_answer must be a text"),
        ({"clean_answer": True}, "clean_answer must be a text"),
        ({"clean_answer": [1]}, "clean_answer must be a text"),
        ({"clean_answer": -1}, "no token"),
        ({"clean_answer": 10**18}, "no token"),
        ({"clean_answer": " Jones Smith"}, "it must be one"),
        ({"clean_answer": "a" * 65}, "65 characters"),
        ({"clean_answer": " Smith"}, "two different tokens"),
    ],
)
def test_a_pair_that_cannot_be_compared_is_refused(model, changes, words):
    with pytest.raises(ValueError, match=words):
        requests.read_pair(model, {"clean": CLEAN, "corrupted": CORRUPTED} | changes)


@pytest.mark.parametrize("value", [None, 1, "c", "A", [], {}, ["a"], "x" * 500])
def test_a_choice_is_one_of_those_that_are_named(value):
    assert requests.one_of({"site": "a"}, "site", ("a", "b")) == "a"
    with pytest.raises(ValueError, match="site must be one of a, b; got") as error:
        requests.one_of({"site": value}, "site", ("a", "b"))
    assert len(str(error.value)) < 120


@pytest.mark.parametrize("value", [None, True, 1.0, "1", -1, 12, 10**19, [1], {}])
def test_a_number_is_whole_and_in_its_range(value):
    assert requests.number({"layer": 11}, "layer", 0, 11) == 11
    with pytest.raises(ValueError, match="layer must be a whole number from 0 to 11; got"):
        requests.number({"layer": value}, "layer", 0, 11)


def test_a_cell_has_a_head_where_its_site_has_heads(model):
    body = {"layer": 1, "position": 2, "head": 3}
    assert requests.cell(body, model, "resid_post", 11) == (1, 2, None)
    assert requests.cell(body, model, "z", 11) == (1, 2, 3)
    with pytest.raises(ValueError, match="head must be a whole number from 0 to 3"):
        requests.cell(body | {"head": None}, model, "z", 11)
    with pytest.raises(ValueError, match="position must be a whole number from 0 to 1"):
        requests.cell(body, model, "z", 2)


@pytest.mark.parametrize("value", [None, 1, {}, [], [1], [{"layer": 0, "position": 0}] * 65])
def test_cells_are_a_list_of_a_few(model, value):
    cells = [{"layer": 0, "position": 1}] * 2
    assert requests.cells({"cells": cells}, model, "resid_post", 11) == [(0, 1, None)] * 2
    with pytest.raises(ValueError, match="cells must be a list of 1 to 64"):
        requests.cells({"cells": value}, model, "resid_post", 11)


def test_a_lane_is_the_view_unless_it_is_named():
    assert requests.read_lane({"tab": "t"}, "sweep") == ("t", "sweep")
    assert requests.read_lane({"tab": "t", "lane": "detail"}, "sweep") == ("t", "detail")
