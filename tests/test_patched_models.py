"""Analyses of a model in which a patch is in force, against single forwards with both patches."""

import random

import pytest
import torch

from mingpt.config import GPTConfig
from mingpt.interpretability.ablation import ablate_component, ablate_heads
from mingpt.interpretability.activation_patching import patch_layers
from mingpt.interpretability.autoencoders import Autoencoder, AutoencoderConfig
from mingpt.interpretability.circuits import find_circuit
from mingpt.interpretability.edges import edge_attribution
from mingpt.interpretability.feature_patches import change_feature, reconstruct
from mingpt.interpretability.patched_models import patched_model
from mingpt.model import GPT
from mingpt.names import held_out_pair
from mingpt.sites import SITES_WITH_HEADS, Patch

L, H, D, V, T = 4, 2, 5, 13, 6
C, INNER, N = H * D, 17, 23
LAYER = 1  # of the autoencoder
CLEAN = torch.tensor([[3, 1, 4, 1, 5, 9]])
CORRUPTED = torch.tensor([[3, 1, 8, 1, 5, 9]])
SITES = ("resid_pre", "resid_mid", "resid_post", "mlp_out", "mlp_pre", "mlp_post")


@pytest.fixture(scope="module")
def model():
    """A random model in fp64, so that nothing but the order of sums is left to differ."""
    torch.manual_seed(0)
    sizes = {"n_layer": L, "n_head": H, "n_embd": C, "n_inner": INNER, "vocab_size": V}
    model = GPT(GPTConfig(**sizes, block_size=8)).eval().double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def feature_patch(site, layer=LAYER):
    """The patch of a reconstruction, without the error, by a random autoencoder."""
    torch.manual_seed(1)
    width = INNER if site in ("mlp_pre", "mlp_post") else C
    autoencoder = Autoencoder(AutoencoderConfig(width, N, layer, site)).double()
    return reconstruct(autoencoder)


def difference(model, ids, patches):
    """logit(5) - logit(7) at the last position of a single forward."""
    logits = model(ids, patch_params=patches)[0][0, -1]
    return (logits[5] - logits[7]).item()


@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_a_run_of_it_is_a_run_with_the_patch_and_the_model_stays_as_it_was(model, site):
    before = model(CLEAN)[0]
    patch = feature_patch(site)
    patched = patched_model(model, patch)
    expected = model(CLEAN, patch_params=patch)[0]
    assert (expected - before).abs().max() > 0.1
    torch.testing.assert_close(patched(CLEAN)[0], expected)
    assert torch.equal(model(CLEAN)[0], before)
    assert patched.lm_head.weight is model.lm_head.weight


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("swept", ["resid_post", "mlp_out", "attn_out", "z", "v"])
@torch.no_grad()
def test_a_sweep_of_it_is_single_forwards_with_both_patches(model, site, swept):
    patch = feature_patch(site)
    result = patch_layers(patched_model(model, patch), CLEAN, CORRUPTED, 5, 7, site=swept)
    model(CLEAN, store_activations=[swept], patch_params=patch)
    stored = model.activations[swept]
    heads = range(H) if swept in SITES_WITH_HEADS else [None]
    found = result.logit_diff.view(L, len(heads), T)
    for layer, clean in stored.items():
        for row, head in enumerate(heads):
            for position in range(T):
                value = clean[:, position] if head is None else clean[:, head, position]
                cell = Patch(layer, position, value, swept, head)
                # The published sign: the corrupted answer's logit comes first.
                expected = -difference(model, CORRUPTED, [patch, cell])
                assert found[layer, row, position].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("site", SITES)
@torch.no_grad()
def test_an_ablation_in_it_is_a_single_forward_with_both_patches(model, site):
    patch = feature_patch(site)
    patched = patched_model(model, patch)
    zero = torch.zeros(())
    intact = difference(model, CLEAN, patch)
    for layer in range(L):
        for name, place, head in ((f"mlp {layer}", "mlp_out", None), (f"{layer}.1", "z", 1)):
            # What is put in for the MLP goes through a patch of the same site, or above it.
            ablation = Patch(layer, None, zero, place, head)
            cost = ablate_component(patched, CLEAN, name, answers=(5, 7))
            expected = difference(model, CLEAN, [patch, ablation]) - intact
            assert cost == pytest.approx(expected, abs=1e-9)
    heads = ablate_heads(patched, CLEAN, answers=(5, 7))
    assert heads[L - 1, 1].item() == pytest.approx(expected, abs=1e-9)


@torch.no_grad()
def written_by(model, patch, ids, layer, head):
    """(1,T,C): what a head adds to the stream in a run with the patch."""
    model(ids, store_activations=["z"], patch_params=patch)
    weight = model.transformer.h[layer].attn.c_proj.weight[:, head * D : (head + 1) * D]
    return model.activations["z"][layer][:, head] @ weight.T


@pytest.mark.parametrize("site", SITES)
def test_the_edges_of_it_are_single_forwards_with_both_patches(model, site):
    patch = feature_patch(site)
    patched = patched_model(model, patch)
    scores = edge_attribution(patched, [(CLEAN, CORRUPTED, 5, 7)], "exact")
    senders = ["embed", *(f"{layer}.{i}" for layer in range(L) for i in [*range(H), "mlp"])]
    intact = difference(model, CLEAN, patch)
    head = written_by(model, patch, CLEAN, 0, 1) - written_by(model, patch, CORRUPTED, 0, 1)
    # The head's edges to the logits, to the MLP that the patch belongs to, and to one above it.
    at_end = [patch, Patch(L - 1, None, lambda x: x - head)]
    expected = {-1: intact - difference(model, CLEAN, at_end)}
    own = LAYER - 1 if site == "resid_pre" else LAYER
    for layer in (own, LAYER + 1):
        # It alone reads the head's other value: behind it the stream has the right one again.
        read = Patch(layer, None, lambda x: x - head, "resid_mid")
        # A patch of what the block leaves comes before that.
        place = "resid_pre" if site == "resid_pre" else "resid_post"
        behind = Patch(layer + (site == "resid_pre"), None, lambda x: x + head, place)
        last_reader = (layer + 1) * (3 * H + 1) - 1
        expected[last_reader] = intact - difference(model, CLEAN, [read, patch, behind])
    for reader, score in expected.items():
        found = scores[reader, senders.index("0.1")].item()
        assert found == pytest.approx(score, abs=1e-9)
        assert abs(score) > 1e-6


def test_a_circuit_of_it_goes_from_its_corrupted_answer_to_its_clean_one():
    names = GPT.from_pretrained("names")
    autoencoder = Autoencoder.from_pretrained("names")
    pair = held_out_pair(random.Random(1))
    patched = patched_model(names, reconstruct(autoencoder))
    circuit = find_circuit(patched, [pair], "eap", n_edges=50)
    clean, corrupted = circuit.runs.unpatched()[:, 0].tolist()
    for text, found in ((pair[0], clean), (pair[1], corrupted)):
        logits = names(names.tokenizer(text), patch_params=reconstruct(autoencoder))[0][0, -1]
        right, wrong = (names.tokenizer.encode(answer)[0] for answer in pair[2:])
        assert found == pytest.approx((logits[right] - logits[wrong]).item(), abs=1e-3)
    everything = circuit.runs.graph.possible
    assert circuit.runs.share(everything) == pytest.approx(1, abs=1e-4)
    assert circuit.runs.share(~everything) == pytest.approx(0, abs=1e-4)


def test_a_patch_that_cannot_always_be_in_force_is_refused(model):
    torch.manual_seed(1)
    autoencoder = Autoencoder(AutoencoderConfig(C, N, LAYER)).double()
    for patch, message in (
        (change_feature(autoencoder, 3, value=0, position=2), "of all positions"),
        (Patch(LAYER, None, torch.zeros(C)), "a function; got position None and Tensor"),
        (Patch(LAYER, None, torch.relu, "z"), "a patch of z cannot always be in force"),
        (Patch(LAYER, None, torch.relu, "attn_out"), "a patch of attn_out cannot always be"),
        (Patch(0, None, torch.relu, "resid_pre"), "no block writes resid_pre of layer 0"),
        (Patch(L, None, torch.relu), "no layer 4"),
    ):
        with pytest.raises(ValueError, match=message):
            patched_model(model, patch)
