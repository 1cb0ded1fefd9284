"""Features seen, patched, attributed and measured: against loops over the public forward.

And against autoencoders built by hand, which reconstruct everything, or nothing but the mean.
"""

import copy
import math

import pytest
import torch

from mingpt.bpe import END_OF_TEXT, BPETokenizer, Encoder
from mingpt.interpretability import windows
from mingpt.interpretability.activation_patching import patch_activation
from mingpt.interpretability.answer_features import answer_features
from mingpt.interpretability.autoencoder_quality import evaluate, ratio
from mingpt.interpretability.autoencoders import Autoencoder, AutoencoderConfig
from mingpt.interpretability.feature_patches import change_feature, reconstruct
from mingpt.interpretability.features import (
    feature_logit_weights,
    features,
    top_feature_examples,
)
from mingpt.model import GPT, GPTConfig
from mingpt.sites import Patch

L, H, D, INNER, V, BLOCK, N = 4, 3, 7, 13, 11, 8, 17
C = H * D
LAYER = 2
WIDTHS = {
    "resid_pre": C,
    "resid_mid": C,
    "resid_post": C,
    "attn_out": C,
    "mlp_out": C,
    "mlp_pre": INNER,
    "mlp_post": INNER,
    "z": C,
}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
OTHER = torch.tensor([[3, 1, 4, 8, 5, 9, 2]])
END = 256  # of a tokenizer without merges


def make_model(**options):
    """A random model in fp64, so that nothing but the order of sums is left to differ."""
    sizes = {"n_layer": L, "n_head": H, "n_embd": C, "n_inner": INNER, "vocab_size": V}
    torch.manual_seed(0)
    model = GPT(GPTConfig(**sizes | {"block_size": BLOCK} | options)).eval().double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def with_tokenizer(**options):
    model = make_model(vocab_size=257, **options)
    model.tokenizer = BPETokenizer(Encoder([]))
    assert model.tokenizer.encoder.ids[END_OF_TEXT] == END
    return model


def make_autoencoder(site="resid_post", layer=LAYER, **options):
    """A random one, of which about a third of the features is active."""
    torch.manual_seed(1)
    autoencoder = Autoencoder(AutoencoderConfig(WIDTHS[site], N, layer, site, **options))
    autoencoder.b_enc.data.normal_(mean=-0.3, std=0.3)
    autoencoder.b_dec.data.normal_(std=0.3)
    autoencoder.W_dec.data *= torch.rand(N, 1) + 0.5
    return autoencoder.double()


def whole(model, site="resid_post", layer=LAYER, **options):
    """One that reconstructs everything: a feature for each channel, up and down."""
    d = WIDTHS[site]
    eye = torch.eye(d)
    weights = {
        "W_enc": torch.cat((eye, -eye), 1),
        "b_enc": torch.zeros(2 * d),
        "W_dec": torch.cat((eye, -eye)),
        "b_dec": torch.zeros(d),
    }
    config = AutoencoderConfig(d, 2 * d, layer, site, **options)
    return Autoencoder(config, weights).double()


def constant(vector, site="resid_post", **options):
    """One without features, whose reconstruction is the vector."""
    d = len(vector)
    weights = {
        "W_enc": torch.zeros(d, N),
        "b_enc": -torch.ones(N),
        "W_dec": torch.zeros(N, d),
        "b_dec": vector,
    }
    return Autoencoder(AutoencoderConfig(d, N, LAYER, site, **options), weights).double()


def at_site(model, ids, site, layer=LAYER):
    """(T,d) at the site in a plain run, the heads of z side by side."""
    model(ids, store_activations=[site])
    x = model.activations[site][layer][0]
    return x.transpose(0, 1).flatten(1) if site == "z" else x


def as_site(x, site):
    """(T,d) -> what the site has of one text, (1,T,d) or (1,H,T,D)."""
    return x.unflatten(1, (H, D)).transpose(0, 1)[None] if site == "z" else x[None]


def difference(model, ids, patch=None, right=3, wrong=5):
    model(ids, patch_params=patch)
    return (model.last_token_logits[0, right] - model.last_token_logits[0, wrong]).item()


def make_texts(lengths=(3, 14, 1, 6, 8, 2, 12, 5)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(V, (length,), generator=generator) for length in lengths]


NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
EVERY = [(site, "none") for site in WIDTHS]
EVERY += [("resid_post", "layer_norm"), ("z", "constant_norm_rescale"), ("mlp_out", "layer_norm")]


# seen


@torch.no_grad()
@pytest.mark.parametrize("site", WIDTHS)
def test_features_of_a_text_are_those_of_what_is_at_the_site(site):
    model, autoencoder = make_model(), make_autoencoder(site)
    found = features(model, autoencoder, IDS)
    expected = autoencoder.encode(at_site(model, IDS, site))
    assert found.values.is_sparse and found.values.to_dense().equal(expected)
    assert 0 < (expected > 0).sum() < expected.numel()
    assert found.tokens == [str(i) for i in IDS[0].tolist()]
    values, order = expected[4].sort(descending=True)
    assert found.strongest(4, 2) == list(zip(order.tolist(), values.tolist()))[:2]
    head, *rows = repr(found).splitlines()
    assert head.split()[:3] == ["position", "token", "active"] and len(rows) == len(IDS[0])


def by_full_sort(model, autoencoder, feature, texts, size, beginning=None):
    """[(activation, text, position)] of each window, run by itself, the strongest first."""
    found = []
    for number, ids in enumerate(texts):
        for start in range(0, len(ids), size):
            window = ids[start : start + size]
            first = [] if beginning is None else [beginning]
            run = torch.cat((torch.tensor(first, dtype=torch.long), window))[None]
            x = at_site(model, run, autoencoder.config.site)[len(first) :]
            acts = autoencoder.encode(x)[:, feature]
            if acts.max() > 0:
                found.append((acts.max().item(), number, start + acts.argmax().item()))
    return sorted(found, key=lambda one: -one[0])


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 20, 4096])
@pytest.mark.parametrize("site", ["resid_pre", "z"])
def test_the_examples_of_a_feature_are_those_of_a_full_sort(site, at_once, monkeypatch):
    monkeypatch.setattr(windows, "AT_ONCE", at_once)
    model, autoencoder, texts = make_model(), make_autoencoder(site), make_texts()
    top = top_feature_examples(model, autoencoder, [5, 0, 9], texts, k=4)
    for feature in (5, 0, 9):
        expected = by_full_sort(model, autoencoder, feature, texts, BLOCK)[:4]
        found = [(e.activation, e.text, e.position) for e in top[LAYER, feature]]
        assert [one[1:] for one in found] == [one[1:] for one in expected]
        for (ours, *_), (theirs, *_) in zip(found, expected):
            assert ours == pytest.approx(theirs, abs=1e-9)
    assert repr(top).startswith("layer.feature")


@torch.no_grad()
def test_windows_begin_and_are_as_long_as_in_training_but_the_beginning_is_no_example():
    model = with_tokenizer()
    autoencoder = make_autoencoder(beginning_token=True, context=5)
    texts = [text + 40 for text in make_texts()]
    top = top_feature_examples(model, autoencoder, 3, texts, k=4, beginning=True)
    expected = by_full_sort(model, autoencoder, 3, texts, size=4, beginning=END)[:4]
    assert [(e.text, e.position) for e in top[LAYER, 3]] == [one[1:] for one in expected]
    # A text that begins with it already gets no second one: its tokens lie one place further.
    begun = [torch.cat((torch.tensor([END]), text)) for text in texts]
    again = top_feature_examples(model, autoencoder, 3, begun, k=4)
    assert [(e.text, e.position - 1) for e in again[LAYER, 3]] == [one[1:] for one in expected]


def test_the_page_of_features_says_where_one_is_active_nowhere(browser, tmp_path):
    from selenium.webdriver.support.select import Select

    autoencoder = make_autoencoder()
    autoencoder.b_enc.data[3] = -100
    top = top_feature_examples(make_model(), autoencoder, [3, 5], make_texts())
    assert top[LAYER, 3] == [] and top[LAYER, 5]
    browser.get(top.plot(tmp_path / "features.html").path.as_uri())
    assert browser.find_element("tag name", "h1").text == "Where is a feature largest?"
    readout = browser.find_element("class name", "readout")
    assert readout.text == "It is active in none of the texts."
    Select(browser.find_element("tag name", "select")).select_by_visible_text("2.5")
    assert readout.text.endswith(f": {top[LAYER, 5][0].activation:.4f}")
    assert not browser.get_log("browser")


@torch.no_grad()
@pytest.mark.parametrize("site", ["resid_post", "mlp_post", "z"])
def test_what_a_feature_promotes_is_what_its_direction_adds_to_the_logits(site):
    model, autoencoder = make_model(), make_autoencoder(site, layer=L - 1)
    direction = autoencoder.W_dec[4]
    block = model.transformer.h[L - 1]
    if site == "z":
        direction = direction @ block.attn.c_proj.weight.T
    if site == "mlp_post":
        direction = direction @ block.mlp.c_proj.weight.T
    logits = model.lm_head((direction - direction.mean()) * model.transformer.ln_f.weight)
    logits -= logits.mean()
    found = feature_logit_weights(model, autoencoder, 4, k=3)
    assert [int(token) for token, _ in found.promotes] == logits.topk(3).indices.tolist()
    assert [value for _, value in found.suppresses] == pytest.approx(
        sorted(logits.tolist())[:3], abs=1e-9
    )
    with pytest.raises(ValueError, match="through the activation function"):
        feature_logit_weights(model, make_autoencoder("mlp_pre"), 4)


# patched


@torch.no_grad()
@pytest.mark.parametrize(("site", "normalization"), EVERY)
def test_with_its_error_and_no_change_a_reconstruction_changes_nothing(site, normalization):
    model = make_model()
    autoencoder = make_autoencoder(site, normalization=normalization)
    logits, _ = model(IDS)
    same, _ = model(IDS, patch_params=reconstruct(autoencoder, keep_error=True))
    assert same.equal(logits)


@torch.no_grad()
@pytest.mark.parametrize("position", [None, 3, -1, slice(1, 5)])
@pytest.mark.parametrize(("site", "normalization"), EVERY)
def test_a_reconstruction_is_put_in_at_the_positions_asked_for(site, normalization, position):
    model = make_model()
    autoencoder = make_autoencoder(site, normalization=normalization)
    x = at_site(model, IDS, site)
    new = x.clone()
    rows = slice(None) if position is None else position
    new[rows] = autoencoder(x)[rows]
    expected = patch_activation(model, IDS, LAYER, None, as_site(new, site), site)
    found = patch_activation(model, IDS, *reconstruct(autoencoder, position))
    torch.testing.assert_close(found, expected)
    assert not found.allclose(model(IDS)[0][:, -1])


@torch.no_grad()
@pytest.mark.parametrize("options", [{"value": 0.0}, {"value": 2.5}, {"scale": -3.0}])
@pytest.mark.parametrize(("site", "normalization"), EVERY)
def test_a_feature_set_scaled_or_removed_adds_its_direction(site, normalization, options):
    model = make_model()
    autoencoder = make_autoencoder(site, normalization=normalization)
    x = at_site(model, IDS, site)
    active = autoencoder.encode(x)  # (T,n)
    feature = active[3].argmax().item()
    old = active[3, feature]
    wanted = options["value"] if "value" in options else options["scale"] * old
    d = WIDTHS[site]
    scales = {
        "none": 1,
        "layer_norm": x[3].std(),
        "constant_norm_rescale": x[3].norm() / d**0.5,
    }
    new = x.clone()
    new[3] += (wanted - old) * autoencoder.W_dec[feature] * scales[normalization]
    expected = patch_activation(model, IDS, LAYER, None, as_site(new, site), site)
    patch = change_feature(autoencoder, feature, position=3, **options)
    torch.testing.assert_close(patch_activation(model, IDS, *patch), expected)
    # Without the error it is the reconstruction that is changed.
    new[3] += autoencoder(x)[3] - x[3]
    expected = patch_activation(model, IDS, LAYER, None, as_site(new, site), site)
    patch = change_feature(autoencoder, feature, position=3, keep_error=False, **options)
    torch.testing.assert_close(patch_activation(model, IDS, *patch), expected)


@torch.no_grad()
def test_features_of_several_texts_are_changed_side_by_side():
    model, autoencoder = make_model(), make_autoencoder("z")
    patch = change_feature(autoencoder, [2, 5], 1.5)
    both, _ = model(torch.cat((IDS, OTHER)), patch_params=patch)
    for row, ids in enumerate((IDS, OTHER)):
        torch.testing.assert_close(both[row], model(ids, patch_params=patch)[0][0])


@torch.no_grad()
@pytest.mark.parametrize("site", ["resid_post", "attn_out"])
def test_on_raw_weights_one_of_a_centred_stream_does_what_it_does_on_centred_ones(site):
    model = make_model(tie_word_embeddings=False)
    centred = copy.deepcopy(model)
    gpt = centred.transformer
    writing = [gpt.wte.weight, gpt.wpe.weight]
    for block in gpt.h:
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            writing += [layer.weight.T, layer.bias]
    for weight in writing:
        weight -= weight.mean(-1, keepdim=True)
    torch.testing.assert_close(centred(IDS)[0], model(IDS)[0])
    assert at_site(centred, IDS, site).mean(-1).abs().max() < 1e-9
    plain = make_autoencoder(site)
    flagged = make_autoencoder(site, centered_stream=True)
    torch.testing.assert_close(
        flagged.encode(at_site(model, IDS, site)), plain.encode(at_site(centred, IDS, site))
    )
    for keep_error in (True, False):
        expected, _ = centred(
            IDS, patch_params=change_feature(plain, 3, 2.0, keep_error=keep_error)
        )
        found, _ = model(IDS, patch_params=change_feature(flagged, 3, 2.0, keep_error=keep_error))
        torch.testing.assert_close(found, expected)


# the answer


@torch.no_grad()
@pytest.mark.parametrize(("site", "normalization"), EVERY)
def test_what_a_feature_adds_to_the_answer_is_what_a_run_without_it_loses(site, normalization):
    model = make_model()
    autoencoder = make_autoencoder(site, normalization=normalization)
    found = answer_features(model, autoencoder, IDS, 3, 5, max_tokens=9)
    active = autoencoder.encode(at_site(model, IDS, site))
    assert len(found.exact) == (active > 0).sum() > 10
    assert found.total == pytest.approx(difference(model, IDS), abs=1e-9)
    assert found.exact.abs().diff().max() <= 0
    rows = zip(*(column.tolist() for column in (found.position, found.feature, found.activation)))
    for (position, feature, activation), exact in zip(rows, found.exact.tolist()):
        assert activation == pytest.approx(active[position, feature].item(), abs=1e-9)
        patch = change_feature(autoencoder, feature, 0, position=position)
        assert exact == pytest.approx(found.total - difference(model, IDS, patch), abs=1e-9)


@torch.no_grad()
@pytest.mark.parametrize(("site", "normalization"), EVERY)
def test_the_gradient_is_that_of_finite_differences(site, normalization):
    model = make_model()
    autoencoder = make_autoencoder(site, normalization=normalization)
    found = answer_features(model, autoencoder, IDS, 3, 5)
    h = 1e-5
    for i in (0, 5, len(found.exact) - 1):
        place = {"position": found.position[i].item()}
        feature = found.feature[i].item()
        up = difference(model, IDS, change_feature(autoencoder, feature, scale=1 + h, **place))
        down = difference(model, IDS, change_feature(autoencoder, feature, scale=1 - h, **place))
        assert found.gradient[i].item() == pytest.approx((up - down) / (2 * h), abs=1e-6)


@torch.no_grad()
def test_beside_another_text_a_feature_gets_its_value_there():
    model, autoencoder = make_model(), make_autoencoder()
    found = answer_features(model, autoencoder, IDS, 3, 5, corrupted=OTHER)
    there = autoencoder.encode(at_site(model, OTHER, "resid_post"))
    assert found.position.min() == 3  # the first token that differs
    for i in (0, 4):
        position, feature = found.position[i].item(), found.feature[i].item()
        assert found.replaced_by[i] == there[position, feature]
        patch = change_feature(autoencoder, feature, there[position, feature], position=position)
        loss = found.total - difference(model, IDS, patch)
        assert found.exact[i].item() == pytest.approx(loss, abs=1e-9)
    with pytest.raises(ValueError, match="equally many tokens, got 7 and 6"):
        answer_features(model, autoencoder, IDS, 3, 5, corrupted=OTHER[:, :6])


def test_one_answer_is_its_logit_and_no_active_feature_is_no_row():
    model = make_model()
    found = answer_features(model, make_autoencoder(), IDS, 3)
    assert found.total == pytest.approx(model(IDS)[0][0, -1, 3].item(), abs=1e-9)
    lines = repr(found).splitlines()
    assert lines[1].split() == ["position", "token", "feature", "activation", "exact", "gradient"]
    nothing = answer_features(model, constant(torch.zeros(C)), IDS, 3, 5)
    assert len(nothing.exact) == 0 and "0 features" in repr(nothing)


# measured


@torch.no_grad()
def by_loop(model, autoencoder, texts, size, beginning=None):
    """(l0, fvu, {run: loss}) by their definitions, each window run by itself."""
    site = autoencoder.config.site
    first = [] if beginning is None else [beginning]
    n = len(first)
    cut = []
    for ids in texts:
        for start in range(0, len(ids), size):
            window = torch.cat((torch.tensor(first, dtype=torch.long), ids[start : start + size]))
            cut.append(window[None])
    x = torch.cat([at_site(model, ids, site)[n:] for ids in cut])
    mean = x.mean(0)
    fvu = ((x - autoencoder(x)) ** 2).sum() / ((x - mean) ** 2).sum()
    losses = {"clean": [], "reconstructed": [], "mean_ablated": [], "zero_ablated": []}
    for ids in cut:
        old = at_site(model, ids, site)
        news = [old, autoencoder(old), mean.expand_as(old), torch.zeros_like(old)]
        for name, new in zip(losses, news):
            new = torch.cat((old[:n], new[n:]))
            patch = Patch(LAYER, None, as_site(new, site), site)
            log_probs = model(ids, patch_params=patch)[0][0].log_softmax(-1)
            losses[name] += [-log_probs[t, ids[0, t + 1]].item() for t in range(n, ids.size(1) - 1)]
    means = {name: sum(values) / len(values) for name, values in losses.items()}
    return (autoencoder.encode(x) > 0).sum(-1).double().mean().item(), fvu.item(), means


@pytest.mark.parametrize("at_once", [1, 4096])
@pytest.mark.parametrize("site", ["resid_post", "z", "mlp_post"])
def test_the_measures_are_those_of_their_definitions(site, at_once, monkeypatch):
    monkeypatch.setattr(windows, "AT_ONCE", at_once)
    model, autoencoder, texts = make_model(), make_autoencoder(site), make_texts()
    found = evaluate(model, autoencoder, texts)
    l0, fvu, losses = by_loop(model, autoencoder, texts, BLOCK)
    assert found.l0.value == pytest.approx(l0) and found.fvu.value == pytest.approx(fvu)
    for name, loss in losses.items():
        assert found.losses[name].value == pytest.approx(loss)
    for ablated, recovered in (
        ("mean_ablated", found.recovered_mean),
        ("zero_ablated", found.recovered_zero),
    ):
        share = (losses[ablated] - losses["reconstructed"]) / (losses[ablated] - losses["clean"])
        assert recovered.value == pytest.approx(share)
    assert (found.tokens, found.windows, found.beginning) == (51, 10, False)


def test_the_beginning_token_is_there_but_neither_replaced_nor_counted():
    model, texts = with_tokenizer(), make_texts()
    autoencoder = make_autoencoder(beginning_token=True, context=6)
    found = evaluate(model, autoencoder, texts, beginning=True)
    l0, fvu, losses = by_loop(model, autoencoder, texts, size=5, beginning=END)
    assert found.l0.value == pytest.approx(l0) and found.fvu.value == pytest.approx(fvu)
    assert {name: loss.value for name, loss in found.losses.items()} == pytest.approx(losses)
    assert found.tokens == 51 and found.beginning
    assert "left out" in repr(found)


@pytest.mark.parametrize("is_centered", [False, True])
def test_predicting_the_mean_leaves_all_of_the_variance_and_recovers_nothing(is_centered):
    model, texts = make_model(), make_texts()
    x = []
    for ids in texts:
        for start in range(0, len(ids), BLOCK):
            x.append(at_site(model, ids[None, start : start + BLOCK], "resid_post"))
    mean = torch.cat(x).mean(0)
    if is_centered:
        mean -= mean.mean()
    found = evaluate(model, constant(mean, centered_stream=is_centered), texts)
    assert found.fvu.value == pytest.approx(1, abs=1e-12)
    assert found.fvu.error == pytest.approx(0, abs=1e-12)
    if not is_centered:  # else the mean over the channels is kept, which the later layers lose
        assert found.recovered_mean.value == pytest.approx(0, abs=1e-9)
    assert found.l0.value == 0 and found.dead == N and found.dense == 0


def test_a_whole_reconstruction_leaves_nothing_and_recovers_everything():
    model = make_model()
    for site in ("resid_post", "z"):
        found = evaluate(model, whole(model, site), make_texts())
        assert found.fvu.value == pytest.approx(0, abs=1e-12)
        assert found.recovered_mean.value == pytest.approx(1)
        assert found.recovered_zero.value == pytest.approx(1)
        assert found.losses["reconstructed"] == pytest.approx(found.losses["clean"])
        assert found.l0.value == C  # each channel is up or down
    nothing = evaluate(model, constant(torch.zeros(C)), make_texts())
    assert nothing.recovered_zero.value == pytest.approx(0, abs=1e-9)


def test_dead_and_dense_features_are_counted_over_all_tokens():
    model, autoencoder, texts = make_model(), make_autoencoder(), make_texts()
    autoencoder.b_enc.data[:3] = -100
    autoencoder.b_enc.data[3:5] = 100
    found = evaluate(model, autoencoder, texts)
    counts = torch.zeros(N)
    for ids in texts:
        for start in range(0, len(ids), BLOCK):
            x = at_site(model, ids[None, start : start + BLOCK], "resid_post")
            counts += (autoencoder.encode(x) > 0).sum(0)
    torch.testing.assert_close(found.frequency.float(), counts / 51)
    assert found.dead == (counts == 0).sum() >= 3
    assert found.dense == (counts > 5.1).sum() >= 2
    assert found.frequency[3] == 1


def test_the_standard_error_is_the_usual_one_where_windows_are_of_one_length():
    generator = torch.Generator().manual_seed(3)
    means = torch.rand(20, generator=generator, dtype=torch.float64)
    found = ratio(means * 7, torch.full((20,), 7.0, dtype=torch.float64))
    assert found.value == pytest.approx(means.mean().item())
    assert found.error == pytest.approx(means.std().item() / 20**0.5)
    assert math.isnan(ratio(means[:1], means[:1]).error)
    # Where a ratio is the same in every window, nothing is uncertain.
    assert ratio(3 * means, means).error == pytest.approx(0, abs=1e-12)


# bad input


def test_an_autoencoder_of_another_model_is_refused():
    model = make_model()
    wide = Autoencoder(AutoencoderConfig(C + 1, N, LAYER))
    deep = Autoencoder(AutoencoderConfig(C, N, L))
    for function in (
        lambda autoencoder: features(model, autoencoder, IDS),
        lambda autoencoder: evaluate(model, autoencoder, make_texts()),
        lambda autoencoder: answer_features(model, autoencoder, IDS, 3),
        lambda autoencoder: top_feature_examples(model, autoencoder, 3, make_texts()),
        lambda autoencoder: feature_logit_weights(model, autoencoder, 3),
    ):
        with pytest.raises(ValueError, match="takes 22 numbers at each token, but resid_post of"):
            function(wide)
        with pytest.raises(ValueError, match="is of layer 4; this model's layers are 0 to 3"):
            function(deep)
    with pytest.raises(ValueError, match="takes 22 numbers at each token, got 21"):
        model(IDS, patch_params=reconstruct(wide))
    with pytest.raises(ValueError, match="no layer 4"):
        model(IDS, patch_params=reconstruct(deep))


def test_an_autoencoder_on_another_device_is_refused():
    elsewhere = make_autoencoder().to("meta")
    with pytest.raises(ValueError, match="the autoencoder is on meta, the model on cpu; move one"):
        features(make_model(), elsewhere, IDS)


def test_a_beginning_that_is_expected_and_not_there_is_an_error_until_one_says_what_to_do():
    model = with_tokenizer()
    autoencoder = make_autoencoder(beginning_token=True)
    for function in (
        lambda **options: features(model, autoencoder, "text", **options),
        lambda **options: answer_features(model, autoencoder, "text", "a", **options),
        lambda **options: evaluate(model, autoencoder, ["text"], **options),
        lambda **options: top_feature_examples(model, autoencoder, 3, ["text"], **options),
    ):
        with pytest.raises(
            ValueError, match="begin with <.endoftext.>, and .* give beginning=True"
        ):
            function()
        function(beginning=True)
        function(beginning=False)
    ids = torch.tensor([[END, *model.tokenizer.encode("text")]])
    begun = features(model, autoencoder, ids)
    put = features(model, autoencoder, "text", beginning=True)
    assert begun.tokens == put.tokens == [END_OF_TEXT, "t", "e", "x", "t"]
    assert begun.values.to_dense().equal(put.values.to_dense())
    assert features(model, autoencoder, ids, beginning=True).tokens == put.tokens
    # One that expects none gets none, but on demand.
    assert len(features(model, make_autoencoder(), "text").tokens) == 4
    assert len(features(model, make_autoencoder(), "text", beginning=True).tokens) == 5
    with pytest.raises(ValueError, match="has no tokenizer with <.endoftext.>, which should stand"):
        features(make_model(), autoencoder, IDS)
    with pytest.raises(ValueError, match="has 9 tokens; this model takes 1 to 8"):
        features(model, autoencoder, "12345678", beginning=True)


def test_features_values_and_texts_that_there_are_not_get_their_sentence():
    model, autoencoder = make_model(), make_autoencoder()
    for feature in (N, -1, True, [], "3"):
        with pytest.raises(ValueError, match="the features are 0 to 16"):
            change_feature(autoencoder, feature, 0)
    for options in ({}, {"value": 1, "scale": 2}):
        with pytest.raises(ValueError, match="give a value, 0 to remove the feature, or a scale"):
            change_feature(autoencoder, 3, **options)
    for number in (float("nan"), float("inf"), torch.ones(4)):
        with pytest.raises(ValueError, match="must be a finite number, got"):
            change_feature(autoencoder, 3, value=number)
    with pytest.raises(ValueError, match="every text is one token"):
        evaluate(model, autoencoder, [[3], [5]])
    with pytest.raises(ValueError, match="the texts have no tokens"):
        evaluate(model, autoencoder, [])
    with pytest.raises(ValueError, match="are read twice; give them as a list"):
        evaluate(model, autoencoder, (text for text in make_texts()))
    broken = make_model()
    broken.transformer.h[0].mlp.c_fc.weight.data[0, 0] = float("nan")
    for function in (features, lambda *args: evaluate(args[0], args[1], [IDS[0]])):
        with pytest.raises(ValueError, match="NaN or infinite"):
            function(broken, autoencoder, IDS)
