"""The explorer's views of patches: every number is the library's; bad texts are sentences."""

import pytest
import torch

from mingpt.explorer import cell_view, grid, memory, sweep_view
from mingpt.explorer.worker import Cache
from mingpt.interpretability import logit_lens
from mingpt.interpretability.activation_patching import (
    Sweep,
    get_activations,
    patch_activation,
    patch_layers,
)
from mingpt.interpretability.attribution import logit_attribution
from mingpt.model import GPT, Patch
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
    event, *others = ask(sweep_view.sweep, model, **fields)
    # Of texts that can be run, what follows them: from there answers can be named.
    assert [set(other) for other in others] in ([], [{"tops"}])
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


def runs_of(model, direction):
    """(ids of the run from which is taken, of the one into which is put), (1,T) each."""
    ids = [model.tokenizer(CLEAN), model.tokenizer(CORRUPTED)]
    return ids if direction == "denoise" else ids[::-1]


def effect(model, logits):
    """logit(corrupted answer) - logit(clean answer) of last-token logits (1,V)."""
    encode = model.tokenizer.encode
    (clean,) = encode(" Jones")
    (corrupted,) = encode(" Smith")
    return logits[0, corrupted] - logits[0, clean]


def ask_cell(model, cache=None, **fields):
    """The events of a cell as one dict."""
    answer = {}
    for event in ask(cell_view.cell, model, cache, **fields):
        answer |= event
    return answer


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", SITES)
def test_a_cell_has_the_numbers_of_single_patched_runs(model, site, direction):
    source, target = runs_of(model, direction)
    head = 2 if site in SITES_WITH_HEADS else None
    place = {"site": site, "direction": direction, "layer": 4, "position": 3, "head": head}
    cell = ask_cell(model, **place)
    recorded = get_activations(model, source, [site, "z", "mlp_post"])
    patch = Patch(4, 3, None, site, head)
    logits = patch_activation(model, target, 4, 3, recorded[site][4][patch.index], site, head)
    assert_same(cell["value"], effect(model, logits))
    for name, ids in (("unpatched", target), ("patched", None)):
        expected = logits if ids is None else model(ids)[0][:, -1]
        top = cell["tops"][name]
        assert [token["id"] for token in top] == expected[0].topk(20).indices.tolist()
        assert_same([token["logit"] for token in top], expected[0].topk(20).values)
    for number, value in enumerate(cell["heads"]):
        new = recorded["z"][4][:, number, 3]
        logits = patch_activation(model, target, 4, 3, new, "z", number)
        assert_same(value, effect(model, logits))
    assert len(cell["heads"]) == 4 and len(cell["neurons"]) == 10
    for neuron in cell["neurons"]:

        def put_in(acts, number=neuron["neuron"]):
            acts[..., number] = recorded["mlp_post"][4][:, 3, number]
            return acts

        logits = model(target, patch_params=Patch(4, 3, put_in, "mlp_post"))[0][:, -1]
        assert_same(neuron["patched"], effect(model, logits))


def test_a_cell_shows_where_heads_look_what_the_lens_reads_and_the_neurons_of_both_runs(model):
    cell = ask_cell(model, layer=7, position=10)
    for name, text in (("clean", CLEAN), ("corrupted", CORRUPTED)):
        recorded = get_activations(model, text, ["pattern", "mlp_post"])
        assert_same(cell["looks"][name], recorded["pattern"][7][0, :, 10, :11])
        lens = logit_lens.analyze(model, text, k=3)
        for layer, shown in enumerate(cell["lens"][name]):
            words = [token["text"].replace("␣", " ") for token in shown["top"]]
            assert words == lens.top[layer][10]
            probabilities = [token["probability"] for token in shown["top"]]
            assert_same(probabilities, lens.probability[layer, 10])
        assert_same(
            cell["lens"][name][-1]["logit_diff"],
            effect(model, model(model.tokenizer(text))[0][:, -1]),
        )
        for neuron in cell["neurons"]:
            assert_same(neuron[name], recorded["mlp_post"][7][0, 10, neuron["neuron"]])


def test_what_a_neuron_writes_directly_is_its_part_of_the_logit_difference(model):
    cell = ask_cell(model, layer=7, position=10)
    parts = logit_attribution(model, CORRUPTED, " Smith", " Jones", neurons=7).neurons
    acts = {
        text: get_activations(model, text, "mlp_post")["mlp_post"][7][0, 10]
        for text in (CLEAN, CORRUPTED)
    }
    direct = parts * (acts[CLEAN] / acts[CORRUPTED] - 1)
    best = direct.abs().topk(10).indices
    assert [neuron["neuron"] for neuron in cell["neurons"]] == best.tolist()
    assert_same([neuron["direct"] for neuron in cell["neurons"]], direct[best])


def test_the_sentence_says_what_was_put_where(model):
    cell = ask_cell(model, layer=5, position=1)
    assert cell["sentence"] == (
        "the clean resid_post of layer 5 at position 1 (' Jones') was put into the corrupted run"
    )
    cell = ask_cell(model, layer=5, position=1, head=3, site="z", direction="noise")
    assert cell["sentence"] == (
        "the corrupted z of head 5.3 at position 1 (' Smith') was put into the clean run"
    )


@pytest.mark.parametrize("site", SITES_WITH_HEADS)
def test_a_head_that_is_patched_at_all_positions_has_the_number_of_the_heatmap(model, site):
    cell = ask_cell(model, site=site, layer=5, head=3, position=None)
    result = patch_layers(model, CLEAN, CORRUPTED, site=site, each_position=False)
    assert_same(cell["value"], result.logit_diff[5, 3])
    assert cell["position"] == 10 and "at all positions" in cell["sentence"]
    assert len(cell["looks"]["clean"][0]) == 11


def test_the_next_cell_of_a_pair_needs_no_unpatched_run(model, monkeypatch):
    cache = Cache()
    ask_cell(model, cache, layer=5, position=1)

    def must_not_run(*_):
        raise AssertionError("a run")

    with monkeypatch.context() as context:
        context.setattr(cell_view, "Sweep", must_not_run)
        ask_cell(model, cache, layer=6, position=2)
    # Nothing large is kept.
    monkeypatch.setattr(cell_view, "MOST_KEPT", 1000)
    ask_cell(model, cache, layer=6, position=2, direction="noise")
    assert not cache.get("unpatched runs", dict)


def test_texts_whose_runs_would_fill_the_memory_are_refused(model, monkeypatch):
    """At T = 11, of 12 layers: 6 * 128 numbers a token; for a cell 512 neurons, 4 * 11 weights."""
    for view, width in ((sweep_view.sweep, 6 * 128), (cell_view.cell, 6 * 128 + 512 + 4 * 11)):
        site = "z" if view is sweep_view.sweep else "resid_post"
        fields = {"site": site, "layer": 5, "position": 1}
        monkeypatch.setattr(memory, "ROOM", 0)
        needed = 2 * 4 * 12 * 11 * width
        monkeypatch.setattr(memory, "free_memory", iter([needed, needed - 1]).__next__)
        assert len(ask(view, model, **fields)) > 2
        with pytest.raises(ValueError, match="take shorter texts"):
            ask(view, model, **fields)


def test_heads_and_neurons_that_run_one_by_one_are_the_same(model, monkeypatch):
    expected = ask_cell(model, layer=3, position=2)
    monkeypatch.setattr(cell_view, "MOST", 1)
    found = ask_cell(model, layer=3, position=2)
    assert_same(found["heads"], torch.tensor(expected["heads"]))
    values = torch.tensor([neuron["patched"] for neuron in expected["neurons"]])
    assert_same([neuron["patched"] for neuron in found["neurons"]], values)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", ["resid_post", "z", "pattern", "k"])
def test_the_joint_patch_is_one_forward_with_all_cells(model, site, direction):
    source, target = runs_of(model, direction)
    has_heads = site in SITES_WITH_HEADS
    cells = [(2, 1, 3), (5, 1, 0), (7, 10, 2)]
    if has_heads:
        cells.append((3, None, 1))
    asked = [
        {"layer": layer, "position": position, "head": head if has_heads else None}
        for layer, position, head in cells
    ]
    (answer,) = ask(cell_view.joint, model, site=site, direction=direction, cells=asked)
    recorded = get_activations(model, source, site)[site]
    patches = []
    for layer, position, head in cells:
        patch = Patch(layer, position, None, site, head if has_heads else None)
        patches.append(patch._replace(activation=recorded[layer][patch.index]))
    single = []
    for patch in patches:
        single.append(effect(model, model(target, patch_params=patch)[0][:, -1]))
    single = torch.stack(single)
    assert_same(answer["single"], single)
    assert_same(answer["joint"], effect(model, model(target, patch_params=patches)[0][:, -1]))
    unpatched = effect(model, model(target)[0][:, -1])
    assert_same(answer["sum"], unpatched + (single - unpatched).sum())
    into = "corrupted" if direction == "denoise" else "clean"
    assert_same(answer["unpatched"][into], unpatched)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"cells": [{"layer": 1, "position": 1}]}, "cells must be a list of 2 to 64"),
        ({"cells": [{"layer": 1, "position": 1}] * 65}, "cells must be a list of 2 to 64"),
        ({"cells": [{"layer": 1, "position": 1}] * 2}, "a cell is there twice"),
        ({"cells": [{"layer": 1, "position": 1}, 3]}, "cells must be a list"),
        ({"cells": None}, "cells must be a list"),
        ({"corrupted": CLEAN, "cells": []}, "the same"),
    ],
)
def test_cells_that_cannot_be_put_in_together_are_a_sentence(model, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        ask(cell_view.joint, model, **fields)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"layer": 12, "position": 0}, "layer must be a whole number from 0 to 11"),
        ({"layer": 0, "position": 11}, "position must be a whole number from 0 to 10"),
        ({"layer": 0, "position": None}, "position must be a whole number"),
        ({"layer": 0, "position": 1, "site": "z"}, "head must be a whole number from 0 to 3"),
    ],
)
def test_a_cell_that_is_none_is_a_sentence(model, fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        ask(cell_view.cell, model, **fields)
