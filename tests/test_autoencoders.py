"""Are others' autoencoders read as they are meant, and refused where they cannot be?

The oracle is sae-lens: fixtures/sae_lens.json, which benchmarks/make_autoencoder_fixtures.py makes.
Of sparsify's and OpenAI's files it is their definition, written out here.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mingpt.hub import Unavailable
from mingpt.interpretability.autoencoder_config import hook_of, place_of
from mingpt.interpretability.autoencoders import Autoencoder, AutoencoderConfig
from tests.hub import COMMIT

FIXTURE = Path(__file__).parent / "fixtures" / "sae_lens.json"
SAE_LENS = json.loads(FIXTURE.read_text())
D, N = 6, 10
# fp32 rounds at 6e-8 of a number, and sums of ten of them differ in order. A deviation over n in
# place of n - 1 is off by a tenth.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def write(folder, kind="relu", **edits):
    """The fixture's files of a kind in the folder; edits are of cfg.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(SAE_LENS[kind]["cfg"] | edits))
    weights = {name: torch.tensor(values) for name, values in SAE_LENS[kind]["weights"].items()}
    save_file(weights, folder / "sae_weights.safetensors")
    return folder


def edit_weights(folder, **changed):
    """Put other tensors into the folder's weights; None takes one away."""
    path = folder / "sae_weights.safetensors"
    weights = load_file(path) | changed
    save_file({name: w for name, w in weights.items() if w is not None}, path)


def linear(n=N, d=D):
    """Random tensors as linear layers have them, n features of width d."""
    generator = torch.Generator().manual_seed(2)
    return {
        "encoder.weight": torch.randn(n, d, generator=generator),
        "encoder.bias": torch.randn(n, generator=generator),
        "W_dec": torch.randn(n, d, generator=generator),
        "b_dec": torch.randn(d, generator=generator),
    }


def write_sparsify(folder, tensors, **edits):
    folder.mkdir(parents=True)
    fields = {"activation": "topk", "expansion_factor": 32, "num_latents": N, "k": 3, "d_in": D}
    (folder / "cfg.json").write_text(json.dumps(fields | edits))
    save_file(tensors, folder / "sae.safetensors")
    return folder


def openai_state(**edits):
    tensors = linear()
    return {
        "encoder.weight": tensors["encoder.weight"],
        "latent_bias": tensors["encoder.bias"],
        "pre_bias": tensors["b_dec"],
        "decoder.weight": tensors["W_dec"].T.contiguous(),
        "stats_last_nonzero": torch.zeros(N, dtype=torch.long),
        "activation": "TopK",
        "activation_state_dict": {"k": 3, "postact_fn": "ReLU"},
    } | edits


def write_openai(path, **edits):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(openai_state(**edits), path)
    return path


def largest(pre, k):
    """Features of pre-activations (T,n): of each row the k largest that are above 0."""
    features = torch.zeros_like(pre)
    for row, values in enumerate(pre):
        for i in values.argsort(descending=True)[:k].tolist():
            features[row, i] = max(values[i].item(), 0)
    return features


# the arithmetic


@pytest.mark.parametrize("kind", SAE_LENS)
def test_features_and_reconstruction_are_those_of_sae_lens(kind, tmp_path):
    autoencoder = Autoencoder.from_pretrained(write(tmp_path / "sae", kind))
    theirs = {name: torch.tensor(SAE_LENS[kind][name]) for name in ("x", "reconstruction")}
    x = theirs["x"].flatten(1)  # at hook_z they have the heads apart
    features = autoencoder.encode(x)
    torch.testing.assert_close(features, torch.tensor(SAE_LENS[kind]["features"]), **CLOSE)
    torch.testing.assert_close(autoencoder(x), theirs["reconstruction"].flatten(1), **CLOSE)
    assert (features > 0).any() and (features == 0).any()
    assert not autoencoder.W_enc.requires_grad


def test_what_a_file_says_of_place_and_training_is_kept(tmp_path):
    config = Autoencoder.from_pretrained(write(tmp_path)).config
    assert (config.layer, config.site, config.width, config.n_features) == (3, "resid_post", D, N)
    assert config.beginning_token and config.context == 64 and config.model == "gpt2-small"
    old = Autoencoder.from_pretrained(write(tmp_path, "topk, before version 6")).config
    assert (old.site, old.k, old.beginning_token, old.context) == ("resid_pre", 3, True, 128)
    assert old.subtract_b_dec


def test_the_number_of_features_may_be_a_multiple_of_the_width(tmp_path):
    tensors = linear(n=2 * D)
    fields = {"num_latents": 0, "expansion_factor": 2}
    sparsify = write_sparsify(tmp_path / "h.6", tensors, **fields)
    assert Autoencoder.from_pretrained(sparsify).config.n_features == 2 * D
    old = write(tmp_path / "old", "topk, before version 6", d_sae=None, expansion_factor=2)
    with pytest.raises(ValueError, match="its settings make it .6, 12."):
        Autoencoder.from_pretrained(old)


@pytest.mark.parametrize("kind", SAE_LENS)
def test_what_is_saved_is_read_again_as_it_was(kind, tmp_path):
    first = Autoencoder.from_pretrained(write(tmp_path / "sae", kind))
    first.save_pretrained(tmp_path / "saved")
    again = Autoencoder.from_pretrained(tmp_path / "saved")
    assert again.config == first.config
    assert all(weight.equal(again.state_dict()[name]) for name, weight in first.named_parameters())
    first.save_pretrained(tmp_path / "half", torch.float16)
    half = Autoencoder.from_pretrained(tmp_path / "half")
    torch.testing.assert_close(half.W_dec, first.W_dec, rtol=1e-3, atol=1e-3)  # of fp16
    assert half.W_dec.dtype == torch.float32
    assert {path.name for path in (tmp_path / "half").iterdir()} == {
        "cfg.json",
        "sae_weights.safetensors",
    }


def test_a_small_one_computes_what_one_computes_by_hand():
    weights = {
        "W_enc": torch.tensor([[1.0, 0, -1], [0, 2, 1]]),
        "b_enc": torch.tensor([0.0, -1, 0.5]),
        "W_dec": torch.tensor([[1.0, 0], [0, 3], [5, 5]]),
        "b_dec": torch.tensor([1.0, 1]),
    }
    config = AutoencoderConfig(2, 3, layer=0)
    # x - b_dec = (2, 1); times W_enc (2, 2, -1); with b_enc (2, 1, -0.5).
    autoencoder = Autoencoder(config, weights)
    assert autoencoder.encode(torch.tensor([3.0, 2])).tolist() == [2, 1, 0]
    assert autoencoder(torch.tensor([3.0, 2])).tolist() == [3, 4]
    above = Autoencoder(
        AutoencoderConfig(2, 3, layer=0, activation="jumprelu"),
        weights | {"threshold": torch.tensor([0.5, 1, 0])},
    )
    assert above.encode(torch.tensor([3.0, 2])).tolist() == [2, 0, 0]


def test_the_channels_mean_is_put_aside_and_put_back_where_the_stream_was_centred():
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(D, N, layer=0, centered_stream=True))
    x = torch.randn(4, D)
    shifted = x + torch.tensor([[5.0], [-3], [0], [100]])
    # A channel of 100 has digits to 1e-5.
    torch.testing.assert_close(
        autoencoder.encode(shifted), autoencoder.encode(x), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        autoencoder(shifted) - shifted, autoencoder(x) - x, atol=1e-4, rtol=0
    )


def test_a_vector_of_zeros_has_finite_features_under_every_normalization():
    for normalization in ("none", "layer_norm", "constant_norm_rescale"):
        autoencoder = Autoencoder(AutoencoderConfig(D, N, 0, normalization=normalization))
        assert autoencoder(torch.zeros(2, D)).isfinite().all()


def test_a_new_one_reads_what_it_writes():
    autoencoder = Autoencoder(AutoencoderConfig(D, N, 0, activation="topk", k=3))
    assert autoencoder.W_enc.T.equal(autoencoder.W_dec)
    torch.testing.assert_close(autoencoder.W_dec.norm(dim=-1), torch.ones(N))
    assert (autoencoder.encode(torch.randn(7, D)) > 0).sum(-1).max() <= 3


# sparsify and OpenAI


@pytest.mark.parametrize("is_turned", [False, True])
def test_sparsify_is_read_whichever_way_its_decoder_lies(is_turned, tmp_path):
    tensors = linear()
    stored = dict(tensors)
    if is_turned:
        stored["W_dec"] = tensors["W_dec"].T.contiguous()
    autoencoder = Autoencoder.from_pretrained(write_sparsify(tmp_path / "h.6.mlp", stored))
    assert (autoencoder.config.layer, autoencoder.config.site) == (6, "mlp_out")
    x = torch.randn(4, D)
    pre = (x - tensors["b_dec"]) @ tensors["encoder.weight"].T + tensors["encoder.bias"]
    features = largest(pre, 3)
    torch.testing.assert_close(autoencoder.encode(x), features)
    torch.testing.assert_close(autoencoder(x), features @ tensors["W_dec"] + tensors["b_dec"])


def test_openai_is_read_with_its_layer_norm_and_its_place(tmp_path):
    path = write_openai(tmp_path / "resid_post_mlp_v5_32k" / "autoencoders" / "6.pt")
    autoencoder = Autoencoder.from_pretrained(path)
    assert (autoencoder.config.layer, autoencoder.config.site) == (6, "resid_post")
    x = 3 * torch.randn(4, D) + 2
    state = openai_state()
    mean = x.mean(-1, keepdim=True)
    deviation = ((x - mean) ** 2).sum(-1, keepdim=True).div(D - 1).sqrt()
    normed = (x - mean) / (deviation + 1e-5)
    pre = (normed - state["pre_bias"]) @ state["encoder.weight"].T + state["latent_bias"]
    features = largest(pre, 3)
    torch.testing.assert_close(autoencoder.encode(x), features)
    decoded = features @ state["decoder.weight"].T + state["pre_bias"]
    torch.testing.assert_close(autoencoder(x), decoded * deviation + mean)


def test_openai_relu_has_no_layer_norm_and_asks_where_it_belongs(tmp_path):
    path = write_openai(tmp_path / "one.pt", activation="ReLU", activation_state_dict={})
    with pytest.raises(ValueError, match="do not say where in the model it belongs"):
        Autoencoder.from_pretrained(path)
    config = Autoencoder.from_pretrained(path, layer=2, site="mlp_post").config
    assert (config.activation, config.normalization, config.site) == ("relu", "none", "mlp_post")


def test_hooks_and_modules_name_our_sites():
    places = {
        "blocks.11.hook_resid_pre": (11, "resid_pre"),
        "blocks.3.hook_resid_mid": (3, "resid_mid"),
        "blocks.3.hook_attn_out": (3, "attn_out"),
        "blocks.3.hook_mlp_out": (3, "mlp_out"),
        "blocks.3.attn.hook_z": (3, "z"),
        "blocks.3.mlp.hook_post": (3, "mlp_post"),
        "transformer.h.6": (6, "resid_post"),
        "h.6.mlp": (6, "mlp_out"),
        "h.6.attn": (6, "attn_out"),
        "layers.10": (10, "resid_post"),
        "gpt_neox.layers.10.mlp": (10, "mlp_out"),
        "blocks.3.ln1.hook_normalized": None,
        "hook_embed": None,
        "embed_tokens": None,
        "transformer.h.6.ln_1": None,
    }
    assert {name: place_of(name) for name in places} == places
    assert all(place_of(hook_of(4, site)) == (4, site) for site in ("resid_post", "z", "mlp_pre"))


# bad input

REFUSED = {
    "gated": ({"architecture": "gated"}, "architecture 'gated'"),
    "batch topk in training": ({"architecture": "batchtopk"}, "architecture 'batchtopk'"),
    "another function": ({"activation_fn": "tanh-relu"}, "'tanh-relu' is not read"),
    "a factor that is not there": (
        {"normalize_activations": "expected_average_only_in"},
        "let SAELens fold it into the weights",
    ),
    "the same, of old": ({"normalize_activations": True}, "expected_average_only_in"),
    "one head": ({"hook_head_index": 4}, "of head 4 alone"),
    "a hook that is no site": ({"metadata": {"hook_name": "hook_embed"}}, "'hook_embed' is no"),
    "no place": ({"metadata": {}}, "give layer and site"),
    "no width": ({"d_in": None}, "width must be a number from 1, got None"),
    "another width": ({"d_in": 7}, "W_enc has shape (6, 10), its settings make it (7, 10)"),
    "too large a k": ({"architecture": "topk", "k": 11}, "topk needs a k from 1 to the 10"),
    "no k": ({"architecture": "topk"}, "got None"),
    "a threshold missing": ({"architecture": "jumprelu"}, "threshold is missing"),
    "another z": (
        {
            "metadata": {
                "hook_name": "blocks.3.attn.hook_z",
                "model_from_pretrained_kwargs": {"fold_value_biases": True},
            }
        },
        "another z than this model's (fold_value_biases)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(case, tmp_path):
    edits, message = REFUSED[case]
    folder = write(tmp_path, **edits)
    with pytest.raises(ValueError) as error:
        Autoencoder.from_pretrained(folder)
    assert message in str(error.value) and str(tmp_path) in str(error.value)


WEIGHTS = {
    "NaN": ({"b_enc": torch.full((N,), float("nan"))}, "b_enc has values that are NaN"),
    "an unknown one": ({"W_skip": torch.zeros(D, D)}, "W_skip is no weight of such"),
    "whole numbers": ({"b_dec": torch.zeros(D, dtype=torch.int)}, "b_dec must be floats"),
    "a shape": ({"W_dec": torch.zeros(D, N)}, "W_dec has shape (6, 10)"),
    "one missing": ({"b_dec": None}, "b_dec is missing"),
    "a factor": ({"scaling_factor": torch.full((N,), 2.0)}, "scaling_factor is not 1"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_do_not_fit_are_named(case, tmp_path):
    tensors, message = WEIGHTS[case]
    edit_weights(write(tmp_path), **tensors)
    with pytest.raises(ValueError) as error:
        Autoencoder.from_pretrained(tmp_path)
    assert message in str(error.value) and "does not fit its settings" in str(error.value)


def test_a_factor_of_one_from_an_older_version_changes_nothing(tmp_path):
    edit_weights(write(tmp_path), scaling_factor=torch.ones(N))
    assert Autoencoder.from_pretrained(tmp_path).config.n_features == N


def test_files_that_are_cut_short_or_not_there_get_their_sentence(tmp_path):
    folder = write(tmp_path / "cut")
    stored = folder / "sae_weights.safetensors"
    stored.write_bytes(stored.read_bytes()[:300])
    with pytest.raises(ValueError, match="cannot be read as weights"):
        Autoencoder.from_pretrained(folder)
    stored.unlink()
    with pytest.raises(ValueError, match="has no sae_weights.safetensors or sae.safetensors"):
        Autoencoder.from_pretrained(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(ValueError, match="is no whole JSON file"):
        Autoencoder.from_pretrained(folder)
    path = write_openai(tmp_path / "6.pt")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="it is cut short, or no such file"):
        Autoencoder.from_pretrained(path, 6, "resid_post")
    with pytest.raises(ValueError, match="there is no folder ./nowhere"):
        Autoencoder.from_pretrained("./nowhere")
    with pytest.raises(ValueError, match="must be a folder or a hub id, got None"):
        Autoencoder.from_pretrained(None)


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return print, ("code ran",)


def test_code_in_a_file_of_openai_is_not_run(tmp_path, capsys):
    path = write_openai(tmp_path / "6.pt", activation=Code())
    with pytest.raises(ValueError, match="cannot be read"):
        Autoencoder.from_pretrained(path, 6, "resid_post")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["transcode", "skip_connection"])
def test_sparsify_transcoders_are_refused(name, tmp_path):
    folder = write_sparsify(tmp_path / "h.6", linear(), **{name: True})
    with pytest.raises(ValueError, match=f"it sets {name}"):
        Autoencoder.from_pretrained(folder)


def test_an_input_of_another_width_is_refused():
    autoencoder = Autoencoder(AutoencoderConfig(D, N, 0))
    with pytest.raises(ValueError, match="takes 6 numbers at each token, got 5"):
        autoencoder.encode(torch.zeros(2, 5))


def test_an_old_file_that_leaves_the_centring_open_asks_for_it(tmp_path):
    write(tmp_path, "topk, before version 6", model_from_pretrained_kwargs=None)
    with pytest.raises(ValueError, match="give centered_stream=True or False"):
        Autoencoder.from_pretrained(tmp_path)
    for is_centered in (True, False):
        autoencoder = Autoencoder.from_pretrained(tmp_path, centered_stream=is_centered)
        assert autoencoder.config.centered_stream is is_centered
    write(tmp_path, "topk, before version 6", hook_point="blocks.3.mlp.hook_post")
    assert not Autoencoder.from_pretrained(tmp_path).config.centered_stream


ODD = (None, [], {}, [1], {"a": 1}, "x", "", -1, 0, 1.5, True, 10**12, "topk")


@pytest.mark.parametrize("kind", ["relu", "topk, before version 6"])
def test_whatever_stands_in_a_field_the_result_is_an_autoencoder_or_a_sentence(kind, tmp_path):
    write(tmp_path, kind)
    fields = SAE_LENS[kind]["cfg"]
    inner = fields.get("metadata", {})
    read = 0
    for odd in ODD:
        edited = [fields | {name: odd} for name in (*fields, "k", "hook_head_index")]
        edited += [fields | {"metadata": inner | {name: odd}} for name in inner]
        edited.append(odd)
        for cfg in edited:
            (tmp_path / "cfg.json").write_text(json.dumps(cfg))
            try:
                read += isinstance(Autoencoder.from_pretrained(tmp_path), Autoencoder)
            except ValueError as error:
                assert str(tmp_path) in str(error)
    assert read > 20
    folder = write_sparsify(tmp_path / "all" / "h.6", linear())
    plain = json.loads((folder / "cfg.json").read_text())
    for odd in ODD:
        for name in plain:
            (folder / "cfg.json").write_text(json.dumps(plain | {name: odd}))
            for place in (folder, tmp_path / "all"):
                try:
                    Autoencoder.from_pretrained(place)
                except ValueError as error:
                    assert str(tmp_path) in str(error)


# one of several


def test_one_of_several_folders_is_chosen_by_its_place(tmp_path):
    for layer in (2, 5):
        for site in ("resid_post", "mlp_out"):
            metadata = {"hook_name": hook_of(layer, site)}
            write(tmp_path / "all" / f"{site} {layer}", metadata=metadata)
    config = Autoencoder.from_pretrained(tmp_path / "all", 5, "mlp_out").config
    assert (config.layer, config.site) == (5, "mlp_out")
    with pytest.raises(ValueError, match="has 2 autoencoders of layer 5 and site None"):
        Autoencoder.from_pretrained(tmp_path / "all", layer=5)
    with pytest.raises(ValueError, match="has no autoencoders of layer 7"):
        Autoencoder.from_pretrained(tmp_path / "all", layer=7)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is none"):
        Autoencoder.from_pretrained(tmp_path / "empty")
    with pytest.raises(
        ValueError, match="it is of resid_post of layer 2, not resid_post of layer 5"
    ):
        Autoencoder.from_pretrained(tmp_path / "all" / "resid_post 2", layer=5)


# the hub


def published(folder, name=""):
    """{path on the hub: bytes} of a folder's files."""
    start = f"{name}/" if name else ""
    return {f"{start}{path.name}": path.read_bytes() for path in folder.iterdir()}


def test_saelens_layout_on_the_hub_loads_and_comes_from_the_cache_the_second_time(start, tmp_path):
    files = published(write(tmp_path / "sae"), "blocks.3.hook_resid_post")
    hub = start({"owner/saes": files})
    config = Autoencoder.from_pretrained("owner/saes", layer=3, site="resid_post").config
    assert config.layer == 3 and hub.count("GET", "sae_weights.safetensors") == 1
    asked = len(hub.requests)
    Autoencoder.from_pretrained("owner/saes", layer=3, site="resid_post")
    Autoencoder.from_pretrained("owner/saes/blocks.3.hook_resid_post")
    assert len(hub.requests) == asked
    # Later files are of the commit of the first.
    assert any(COMMIT in path for _, path, _ in hub.requests if path.endswith(".safetensors"))


def test_the_published_gpt2_autoencoders_are_known_to_be_of_a_centred_stream(start, tmp_path):
    folder = write(tmp_path / "sae", "topk, before version 6", model_from_pretrained_kwargs=None)
    repo = "jbloom/GPT2-Small-SAEs-Reformatted"
    start({repo: published(folder, "blocks.3.hook_resid_pre")})
    assert Autoencoder.from_pretrained(repo, 3, "resid_pre").config.centered_stream
    assert Autoencoder.from_pretrained(f"{repo}/blocks.3.hook_resid_pre").config.centered_stream


def test_openai_by_saelens_sparsify_and_openai_load_from_the_hub(start, tmp_path):
    mirror = write(tmp_path / "sae", "topk, layer_norm")
    sparsify = write_sparsify(tmp_path / "h.6.mlp", linear())
    pt = write_openai(tmp_path / "6.pt").read_bytes()
    openai = "resid_delta_mlp_v5_128k/autoencoders/6.pt"
    start(
        {
            "owner/mirror": published(mirror, "v5_32k_layer_3"),
            "owner/sparsify": published(sparsify, "transformer.h.6.mlp"),
            "owner/openai": {openai: pt},
            "owner/one": published(mirror),
        }
    )
    assert Autoencoder.from_pretrained("owner/mirror", 3, "resid_post").config.k == 4
    assert Autoencoder.from_pretrained("owner/sparsify", 6, "mlp_out").config.k == 3
    assert Autoencoder.from_pretrained(f"owner/openai/{openai}").config.site == "mlp_out"
    assert Autoencoder.from_pretrained("owner/one").config.k == 4


def test_what_the_hub_does_not_have_gets_its_sentence(start, tmp_path):
    start({"owner/saes": published(write(tmp_path / "sae"), "blocks.3.hook_resid_post")})
    with pytest.raises(ValueError, match="has no cfg.json in blocks.4.hook_resid_post, v5_32k"):
        Autoencoder.from_pretrained("owner/saes", 4, "resid_post")
    with pytest.raises(ValueError, match="owner/saes has no cfg.json"):
        Autoencoder.from_pretrained("owner/saes")
    with pytest.raises(Unavailable, match="no such model"):
        Autoencoder.from_pretrained("owner/nothing", 4, "resid_post")
    for name in ("gpt2", "owner/saes/../secret"):
        with pytest.raises(ValueError, match="there is no folder"):
            Autoencoder.from_pretrained(name)


def test_without_a_network_it_says_so(start, monkeypatch):
    start({})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE is set"):
        Autoencoder.from_pretrained("owner/saes", 4, "resid_post")
