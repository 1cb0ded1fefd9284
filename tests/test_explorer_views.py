"""The explorer's views of patches: every number is the library's; bad texts are sentences."""

import pytest
import torch

from mingpt.explorer import grid, sweep_view
from mingpt.explorer.worker import Cache
from mingpt.interpretability.activation_patching import Sweep, patch_layers
from mingpt.model import GPT
from mingpt.sites import SITES, SITES_WITH_HEADS

CLEAN = "Michelle Jones was a top-notch student. Michelle"
CORRUPTED = "Michelle Smith was a top-notch student. Michelle"
MEASURES = ("logit_diff", "normalized", "probability", "kl")


@pytest.fixture(scope="module")
def model():
    return GPT.from_pretrained("names").double()


def request(**fields):
    body = {
        "model": "names",
        "clean": CLEAN,
        "corrupted": CORRUPTED,
        "clean_answer": None,
        "corrupted_answer": None,
        "site": "resid_post",
        "direction": "denoise",
        "measure": "logit_diff",
        "at": None,
    }
    return body | fields


def ask(view, model, cache=None, **fields):
    """The events of a view, without the breaths."""
    events = view(model, request(**fields), cache or Cache())
    return [event for event in events if event]


def heatmap(events):
    """{layer: its values} of a sweep's events."""
    rows = {}
    for event in events[2:]:
        rows |= dict(zip(event["layers"], event["values"]))
    return rows


def assert_same(found, expected):
    """Equal in the six digits that are sent."""
    found = torch.tensor(found, dtype=torch.float64)
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", SITES)
def test_the_heatmap_has_the_numbers_of_patch_layers_in_every_measure(model, site, direction):
    cache = Cache()
    has_heads = site in SITES_WITH_HEADS
    result = patch_layers(
        model, CLEAN, CORRUPTED, site=site, direction=direction, each_position=not has_heads
    )
    for measure in MEASURES:
        fields = {"site": site, "direction": direction, "measure": measure}
        events = ask(sweep_view.sweep, model, cache, **fields)
        rows = heatmap(events)
        assert list(rows) == list(range(12))[::-1]
        assert_same([rows[layer] for layer in range(12)], getattr(result, measure))
        for name, value in result.unpatched(measure).items():
            assert events[1]["unpatched"][name] == pytest.approx(value, rel=1e-4, abs=1e-6)
        assert len(events[1]["rows"]) == 12 and len(events[1]["columns"]) == len(rows[0])


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", SITES_WITH_HEADS)
def test_the_positions_of_one_head_have_the_numbers_of_patch_layers(model, site, direction):
    cache = Cache()
    result = patch_layers(model, CLEAN, CORRUPTED, site=site, direction=direction)
    for measure in MEASURES:
        at = {"layer": 5, "head": 2}
        fields = {"site": site, "direction": direction, "measure": measure, "at": at}
        events = ask(sweep_view.sweep, model, cache, **fields)
        assert_same(heatmap(events)[5], getattr(result, measure)[5, 2])
        assert events[1]["rows"] == ["5.2"] and events[1]["first"] == 1


def test_the_first_events_name_tokens_differences_answers_and_what_is_most_probable(model):
    first, second, *_ = ask(sweep_view.sweep, model)
    assert first["tokens"]["clean"][1] == {"text": "␣Jones", "id": model.tokenizer(CLEAN)[0, 1]}
    assert first["differs"] == [False, True] + [False] * 9 and first["first"] == 1
    assert first["problem"] is None
    assert second["answers"]["corrupted"]["text"] == "␣Smith" and second["first"] == 1
    assert second["columns"][1] == "1 ␣Smith" and second["quantity"].startswith("logit(")
    model(model.tokenizer(CLEAN))
    logits = model.last_token_logits[0]
    top = second["tops"]["clean"]
    assert [token["id"] for token in top] == logits.topk(20).indices.tolist()
    assert_same([token["probability"] for token in top], logits.softmax(-1).topk(20).values)
    assert_same([token["logit"] for token in top], logits.topk(20).values)


def test_a_pair_that_came_before_and_another_measure_need_no_new_run(model, monkeypatch):
    cache = Cache()
    before = ask(sweep_view.sweep, model, cache)

    def must_not_run(*_):
        raise AssertionError("a run")

    monkeypatch.setattr(grid, "Sweep", must_not_run)
    assert heatmap(ask(sweep_view.sweep, model, cache)) == heatmap(before)
    assert len(heatmap(ask(sweep_view.sweep, model, cache, measure="kl"))) == 12
    # Nor do other answers.
    ask(sweep_view.sweep, model, cache, clean_answer=" was", corrupted_answer=" a")


def test_the_tokens_come_before_any_run_and_a_sweep_that_was_stopped_goes_on(model, monkeypatch):
    monkeypatch.setattr(grid, "START", 1)
    monkeypatch.setattr(grid, "MOST", 1)
    made = []

    class Watched(Sweep):
        def __init__(self, *arguments):
            made.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(grid, "Sweep", Watched)
    cache = Cache()
    events = sweep_view.sweep(model, request(), cache)
    assert "tokens" in next(events) and not made
    # Each position of each layer is a piece of its own, after which it could be stopped.
    breaths = 0
    for event in events:
        breaths += not event
        if "layers" in event and event["layers"] == [7]:
            break
    events.close()
    assert breaths >= 5 * 10
    whole = ask(sweep_view.sweep, model, cache)
    # What was there comes at once.
    assert whole[2]["layers"] == [11, 10, 9, 8, 7]
    result = patch_layers(model, CLEAN, CORRUPTED)
    rows = heatmap(whole)
    assert_same([rows[layer] for layer in range(12)], result.logit_diff)


@pytest.mark.parametrize("site", ["z", "pattern"])
def test_heads_that_run_one_by_one_give_the_same(model, monkeypatch, site):
    monkeypatch.setattr(grid, "MOST", 1)
    rows = heatmap(ask(sweep_view.sweep, model, site=site))
    result = patch_layers(model, CLEAN, CORRUPTED, site=site, each_position=False)
    assert_same([rows[layer] for layer in range(12)], result.logit_diff)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"clean": ""}, "the clean text is empty; type one"),
        ({"corrupted": CLEAN}, "the same"),
        ({"corrupted": CORRUPTED + " was"}, "11 tokens and the corrupted one 12"),
        ({"corrupted": "a" * 20_001}, "20,001 characters"),
        ({"corrupted": None}, "corrupted must be a text"),
        ({"corrupted": "a \ud800 b"}, "surrogate"),
        ({"clean": " was" * 300, "corrupted": " a" * 300}, "300 tokens; this model takes up to"),
        ({"clean_answer": 9_999_999}, "is no token"),
        ({"clean_answer": " was a top"}, "it must be one"),
        ({"clean_answer": "x" * 65}, "65 characters"),
        ({"corrupted": "Michelle Smith is a top-notch student. Michelle"}, "name the clean answer"),
        ({"clean_answer": " was", "corrupted_answer": " was"}, "two different tokens"),
    ],
)
def test_a_pair_of_no_use_gets_a_sentence_and_both_token_rows_where_there_are(
    model, fields, sentence
):
    (event,) = ask(sweep_view.sweep, model, **fields)
    assert sentence in event["problem"] and "\n" not in event["problem"]
    for name in ("clean", "corrupted"):
        text = request(**fields)[name]
        is_usable = isinstance(text, str) and len(text) <= 20_000 and "\ud800" not in text
        assert len(event["tokens"][name]) == (len(model.tokenizer.encode(text)) if is_usable else 0)
    assert len(event["differs"]) == max(map(len, event["tokens"].values()))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"site": "nowhere"}, "site must be one of resid_pre"),
        ({"site": {}}, "site must be one of"),
        ({"direction": "up"}, "direction must be one of denoise, noise"),
        ({"measure": "size"}, "measure must be one of logit_diff"),
        ({"at": {"layer": 0, "head": 0}}, "resid_post has no heads"),
        ({"site": "z", "at": 3}, "a layer and a head"),
        ({"site": "z", "at": {"layer": 12, "head": 0}}, "layer must be a whole number from 0 to"),
        ({"site": "z", "at": {"layer": 0, "head": True}}, "head must be a whole number"),
    ],
)
def test_a_request_that_is_wrong_is_a_sentence(model, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        ask(sweep_view.sweep, model, **fields)


def test_bytes_that_are_no_character_and_line_ends_can_be_seen(model):
    event = next(iter(ask(sweep_view.sweep, model, clean="a\n\t€", corrupted="a")))
    texts = "".join(token["text"] for token in event["tokens"]["clean"])
    assert r"\n" in texts and r"\t" in texts and "\n" not in texts
