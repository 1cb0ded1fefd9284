"""The explorer's features of autoencoders: the numbers are those of forwards with a Patch."""

import pytest
import torch

from mingpt.explorer import cell_view, feature_view, models
from mingpt.explorer.worker import Cache
from mingpt.interpretability import runs
from mingpt.interpretability.autoencoder_config import AUTOENCODER_SITES, AutoencoderConfig
from mingpt.interpretability.autoencoders import Autoencoder, as_vectors
from mingpt.interpretability.feature_patches import change_feature
from mingpt.interpretability.features import feature_logit_weights
from mingpt.interpretability.web_pages import page_texts
from mingpt.model import GPT

TEXTS = {
    "clean": "Michelle Jones was a top-notch student. Michelle",
    "corrupted": "Michelle Smith was a top-notch student. Michelle",
}
ANSWERS = {"clean": " Jones", "corrupted": " Smith"}
# What each site's features write into the stream through, so that its change can be read there.
WRITES = {"z": "attn_out", "mlp_pre": "mlp_out", "mlp_post": "mlp_out"}


@pytest.fixture(scope="module")
def model():
    return GPT.from_pretrained("names").double()


@pytest.fixture(scope="module")
def shipped():
    return Autoencoder.from_pretrained("names").double()


def at_random(site="resid_post", **options):
    """A random autoencoder of layer 4, in fp64."""
    torch.manual_seed(0)
    width = 512 if site in ("mlp_pre", "mlp_post") else 128
    options = {"activation": "topk", "k": 8, "normalization": "layer_norm"} | options
    config = AutoencoderConfig(width, 64, 4, site, **options)
    return Autoencoder(config).requires_grad_(False).double()


def ask(model, autoencoders, **fields):
    """The events of a cell, without the breaths."""
    body = TEXTS | {"clean_answer": None, "corrupted_answer": None, "site": "resid_post"}
    body |= {"direction": "denoise", "layer": 4, "position": 10, "head": None} | fields
    events = cell_view.cell(model, body, Cache(autoencoders=autoencoders))
    return [event for event in events if event]


def features_in(events):
    return [event for event in events if "features" in event]


def assert_same(found, expected):
    """Equal in the six digits that are sent."""
    expected = torch.tensor([float(f"{value:.6g}") for value in expected], dtype=torch.float64)
    found = torch.tensor(found, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-9)


def answer_vector(model):
    """(C,): along which, after ln_f, the corrupted answer is ahead."""
    clean, corrupted = (model.tokenizer.encode(text)[0] for text in ANSWERS.values())
    return model.lm_head.weight[corrupted] - model.lm_head.weight[clean]


def check_against_forwards(model, autoencoder, event, direction, position):
    """Each number of an event, by runs of the whole model and nothing else."""
    site, layer = autoencoder.config.site, autoencoder.config.layer
    ids = {name: model.tokenizer(text) for name, text in TEXTS.items()}
    source, target = ("clean", "corrupted") if direction == "denoise" else ("corrupted", "clean")
    values = {}
    for name in TEXTS:
        recorded = runs.record(model, ids[name], [site])[site][layer]
        values[name] = autoencoder.encode(as_vectors(recorded, site)[0, position])
    reads = answer_vector(model)
    place = WRITES.get(site, site)

    def forward(patches):
        """(the logit difference at the end, what is written or is at the site, the last stream)."""
        stored = {place: {}, "resid_post": {}}
        stream = runs.run(model, ids[target], patches, stored)
        end = model.transformer.ln_f(stream[0, -1]) @ reads
        return end, stored[place][layer][0, position], stream[0, position]

    _, intact, last = forward([])
    # The final norm with its scale held: linear, but for the bias, which cancels.
    reads_held = reads * model.transformer.ln_f.weight
    reads_held = (reads_held - reads_held.mean()) / last.std(correction=0)
    patched = {}
    direct = {}
    for feature in (values["clean"] != values["corrupted"]).nonzero()[:, 0].tolist():
        value = values[source][feature]
        patch = change_feature(autoencoder, feature, value, position=position)
        patched[feature], changed, _ = forward([patch])
        direct[feature] = (changed - intact) @ reads_held
    shown = [row["feature"] for row in event["features"]]
    assert shown == sorted(direct, key=lambda feature: -abs(direct[feature]))[:10]
    for name in TEXTS:
        assert_same([row[name] for row in event["features"]], values[name][shown])
    found = [row["patched"] for row in event["features"]]
    assert_same(found, [patched[feature] for feature in shown])
    written = torch.tensor([row["direct"] for row in event["features"]], dtype=torch.float64)
    expected = torch.stack([direct[feature] for feature in shown])
    torch.testing.assert_close(written, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("position", [1, 10])
@pytest.mark.parametrize("site, direction", [("resid_post", "denoise"), ("pattern", "noise")])
def test_a_cell_has_the_features_of_its_layer_whatever_its_site(
    model, shipped, site, direction, position
):
    place = {"site": site, "direction": direction, "layer": 6, "position": position}
    events = ask(model, {"one": shipped}, **place, head=2 if site == "pattern" else None)
    (event,) = features_in(events)
    assert event is events[-1] and "neurons" in events[-2]
    assert (event["autoencoder"], event["site"], event["note"]) == ("one", "resid_post", None)
    check_against_forwards(model, shipped, event, direction, position)


@pytest.mark.parametrize("site", AUTOENCODER_SITES)
def test_features_of_every_site_are_patched_and_read_exactly(model, site):
    autoencoder = at_random(site)
    (event,) = features_in(ask(model, {"one": autoencoder}))
    assert len(event["features"]) >= 2
    check_against_forwards(model, autoencoder, event, "denoise", 10)


def test_features_that_run_one_by_one_are_the_same(model, shipped, monkeypatch):
    place = {"layer": 6, "position": 1}
    (expected,) = features_in(ask(model, {"one": shipped}, **place))
    monkeypatch.setattr(cell_view, "MOST", 1)
    (found,) = features_in(ask(model, {"one": shipped}, **place))
    for name in ("feature", "patched"):
        columns = [[row[name] for row in event["features"]] for event in (found, expected)]
        assert_same(*columns)


def test_each_autoencoder_of_the_layer_has_its_event_and_other_layers_have_none(model, shipped):
    two = {"a": at_random(), "b": at_random("z"), "of layer 6": shipped}
    found = features_in(ask(model, two))
    assert [(event["autoencoder"], event["site"]) for event in found] == [
        ("a", "resid_post"),
        ("b", "z"),
    ]
    assert not features_in(ask(model, two, layer=5)) and not features_in(ask(model, {}))


def test_where_both_runs_are_the_same_no_feature_is_shown(model, shipped):
    (event,) = features_in(ask(model, {"one": shipped}, layer=6, position=0))
    assert event["features"] == []


def test_one_that_expects_a_beginning_token_says_so(model):
    (event,) = features_in(ask(model, {"one": at_random(beginning_token=True)}))
    assert "trained on texts that begin with <|endoftext|>, and these do not" in event["note"]


def test_a_feature_shows_what_it_promotes_and_suppresses(model, shipped):
    cache = Cache(autoencoders={"one": shipped})
    (found,) = feature_view.feature(model, {"autoencoder": "one", "feature": 248}, cache)
    weights = feature_logit_weights(model, shipped, 248, 8)
    assert found == {
        "promotes": page_texts([token for token, _ in weights.promotes]),
        "suppresses": page_texts([token for token, _ in weights.suppresses]),
    }
    assert "␣Smith" in found["promotes"]


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"autoencoder": "/etc/passwd", "feature": 0}, "autoencoder must be one of one"),
        ({"autoencoder": ["one"], "feature": 0}, "got a list or object"),
        ({"autoencoder": "one", "feature": 2048}, "feature must be a whole number from 0 to 2047"),
        ({"autoencoder": "of mlp_pre", "feature": 0}, "no direction"),
    ],
)
def test_a_feature_that_is_not_there_is_a_sentence(model, shipped, fields, sentence):
    cache = Cache(autoencoders={"one": shipped, "of mlp_pre": at_random("mlp_pre")})
    with pytest.raises(ValueError, match=sentence):
        list(feature_view.feature(model, fields, cache))


def test_names_has_its_own_autoencoder_and_the_first_model_those_of_the_command(tmp_path):
    folder = str(tmp_path / "one")
    at_random().float().save_pretrained(folder)
    chosen = models.Models(autoencoders=[folder, folder, "names"])
    chosen.read("names")
    loaded = chosen.get("names")
    (described,) = models.describe(loaded.model, {"model": "names"}, loaded.cache)
    titles = ["names: 2048 features of resid_post of layer 6, topk"]
    titles.append(f"{folder}: 64 features of resid_post of layer 4, topk")
    assert described["model"]["autoencoders"] == [
        {"title": titles[0], "layer": 6, "site": "resid_post"},
        {"title": titles[1], "layer": 4, "site": "resid_post"},
    ]
    other = models.Models(["another"], autoencoders=[folder])
    other.read("names")
    assert list(other.get("names").cache.autoencoders) == titles[:1]
