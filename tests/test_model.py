"""The transformer itself: what a run returns, what it stores, what a patch does."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from mingpt.model import GPT, SITES, GPTConfig, Patch
from mingpt.sites import ATTENTION_SITES, HEAD_SITES
from mingpt.trainer import Trainer

# Every axis has its own size, so that a swapped axis cannot pass.
B, T, L, H, D, V = 2, 5, 4, 3, 7, 11
SHAPES = {
    **dict.fromkeys(("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"), (B, T, H * D)),
    **dict.fromkeys(("q", "k", "v", "z"), (B, H, T, D)),
    **dict.fromkeys(("scores", "pattern"), (B, H, T, T)),
    **dict.fromkeys(("mlp_pre", "mlp_post"), (B, T, 4 * H * D)),
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPTConfig(n_layer=L, n_head=H, n_embd=H * D, vocab_size=V, block_size=9)
    model = GPT(config).eval()
    # Larger than at initialisation, so that every part matters.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def clean():
    return torch.tensor([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])


@pytest.fixture
def corrupted():
    return torch.tensor([[0, 1, 9, 3, 4], [5, 6, 1, 8, 9]])  # differs at position 2


def logits_of(model, idx, **arguments):
    return model(idx, **arguments)[0]


@pytest.mark.parametrize("store", [True, ["z", "pattern"], SITES])
def test_storing_leaves_the_logits_bit_for_bit(model, clean, store):
    assert torch.equal(logits_of(model, clean, store_activations=store), logits_of(model, clean))


@pytest.mark.parametrize("patch_params", [None, [], [(1, 0, lambda old: old)]])
def test_an_empty_patch_is_the_plain_forward_bit_for_bit(model, clean, patch_params):
    assert torch.equal(logits_of(model, clean, patch_params=patch_params), logits_of(model, clean))


def test_every_site_is_stored_with_its_shape(model, clean):
    model(clean, store_activations=SITES)
    assert set(SITES) == set(SHAPES) == set(model.activations)
    for site, shape in SHAPES.items():
        assert [tuple(model.activations[site][layer].shape) for layer in range(L)] == [shape] * L


def test_true_stores_the_residual_stream_after_each_block_only(model, clean):
    model(clean, store_activations=True)
    shapes = {layer: tuple(x.shape) for layer, x in model.layer_activations.items()}
    assert shapes == dict.fromkeys(range(L), (B, T, H * D))
    assert model.activations == {}


def test_stored_tensors_are_copies_that_no_later_call_touches(model, clean, corrupted):
    model(clean, store_activations=SITES)
    stored = model.activations
    logits = model.last_token_logits
    before = copy.deepcopy(stored)
    logits_before = logits.clone()
    model(corrupted, store_activations=SITES, patch_params=(1, 2, torch.zeros(H * D)))
    for site in SITES:
        for layer in range(L):
            assert torch.equal(stored[site][layer], before[site][layer])
            assert not stored[site][layer].requires_grad
    assert torch.equal(logits, logits_before) and not logits.requires_grad
    # None shares its memory with another, or with the model's.
    tensors = [x for layers in stored.values() for x in layers.values()]
    storages = [x.untyped_storage().data_ptr() for x in tensors]
    assert len(set(storages)) == len(storages)


def test_a_plain_run_keeps_the_last_token_logits_and_nothing_else(model, clean, corrupted):
    model(clean, store_activations=True)
    stored = model.layer_activations
    logits, loss = model(corrupted)
    assert loss is None and model.layer_activations is stored
    assert torch.equal(model.last_token_logits, logits[:, -1])
    # Its own memory, not a view of all logits.
    assert model.last_token_logits.untyped_storage().nbytes() == B * V * 4


def test_the_sites_are_what_their_names_say(model, clean):
    """Each site's tensor follows from the others by the equations of the transformer."""
    model(clean, store_activations=SITES)
    at = {site: [model.activations[site][layer] for layer in range(L)] for site in SITES}
    positions = torch.arange(T)
    embedded = model.transformer.wte(clean) + model.transformer.wpe(positions)
    for layer, block in enumerate(model.transformer.h):
        x = {site: tensors[layer] for site, tensors in at.items()}
        below = at["resid_post"][layer - 1] if layer else embedded
        assert_close(x["resid_pre"], below)
        assert_close(x["resid_mid"], below + x["attn_out"])
        assert_close(x["resid_post"], x["resid_mid"] + x["mlp_out"])
        scores = torch.einsum("bhqd,bhkd->bhqk", x["q"], x["k"]) / D**0.5
        future = positions > positions[:, None]  # (queries, keys)
        assert_close(x["scores"], scores.masked_fill(future, -torch.inf))
        assert_close(x["pattern"].sum(-1), torch.ones(B, H, T))
        assert_close(x["z"], torch.einsum("bhqk,bhkd->bhqd", x["pattern"], x["v"]))
        assert_close(x["mlp_post"], F.gelu(x["mlp_pre"], approximate="tanh"))
        assert_close(x["mlp_out"], block.mlp.c_proj(x["mlp_post"]))


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post"])
@pytest.mark.parametrize("layer", range(L))
def test_patching_the_whole_residual_stream_gives_the_clean_logits(
    model, clean, corrupted, site, layer
):
    model(clean, store_activations=[site])
    patch = Patch(layer, None, model.activations[site][layer], site)
    patched = logits_of(model, corrupted, patch_params=patch)
    assert torch.equal(patched, logits_of(model, clean))


@pytest.mark.parametrize("site", SITES)
def test_a_patch_left_of_the_first_difference_changes_nothing(model, clean, corrupted, site):
    model(clean, store_activations=[site])
    stored = model.activations[site][1]
    has_heads = site in HEAD_SITES + ATTENTION_SITES
    patch = Patch(1, slice(0, 2), stored[:, :, 0:2] if has_heads else stored[:, 0:2], site)
    assert torch.equal(logits_of(model, corrupted, patch_params=patch), logits_of(model, corrupted))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("position", [2, -1, slice(1, 4), None])
def test_a_patch_replaces_what_it_says_and_nothing_else(model, clean, site, position):
    """A patched run stores the plain run's tensor with the addressed part replaced.

    So it patches first, then stores.
    """
    model(clean, store_activations=SITES)
    expected = model.activations[site][2].clone()
    where = slice(None) if position is None else position
    heads = site in HEAD_SITES + ATTENTION_SITES
    index = (slice(None), 1, where) if heads else (slice(None), where)
    expected[index] = expected[index] * 0.5 + 1
    patch = Patch(2, position, lambda old: old * 0.5 + 1, site, head=1 if heads else None)
    model(clean, store_activations=SITES, patch_params=patch)
    assert torch.equal(model.activations[site][2], expected)


@pytest.mark.parametrize("site", SITES)
def test_a_patch_reaches_the_output(model, clean, site):
    plain = logits_of(model, clean)
    patched = logits_of(model, clean, patch_params=Patch(2, None, lambda old: old * 0.5, site))
    assert (patched - plain).abs().max() > 1e-3


def test_the_short_form_is_the_residual_stream_after_the_block(model, clean):
    new = torch.randn(H * D)
    short = logits_of(model, clean, patch_params=(1, 3, new))
    for patch in (Patch(1, 3, new, site="resid_post"), Patch(2, 3, new, site="resid_pre")):
        assert torch.equal(short, logits_of(model, clean, patch_params=patch))


def test_patches_in_a_list_are_all_applied_in_order(model, clean):
    one = torch.randn(H * D)
    two = torch.randn(H * D)
    both = logits_of(model, clean, patch_params=[(1, 3, one), (2, 0, two)])
    model(clean, patch_params=(1, 3, one), store_activations=["resid_post"])
    after = model.layer_activations[2]
    after[:, 0] = two
    assert torch.equal(both, logits_of(model, clean, patch_params=(2, None, after)))
    last_wins = logits_of(model, clean, patch_params=[(1, 3, one), (1, 3, two)])
    assert torch.equal(last_wins, logits_of(model, clean, patch_params=(1, 3, two)))


def test_a_patch_per_position_gives_the_clean_logits(model, clean, corrupted):
    model(clean, store_activations=True)
    patches = [(1, position, model.layer_activations[1][:, position]) for position in range(T)]
    assert torch.equal(logits_of(model, corrupted, patch_params=patches), logits_of(model, clean))


def test_numbers_of_numpy_and_torch_are_numbers(model, clean):
    new = torch.randn(H * D)
    plain = logits_of(model, clean, patch_params=(1, 3, new))
    other = logits_of(model, clean, patch_params=(np.int64(1), torch.tensor(3), new))
    assert torch.equal(plain, other)


def test_a_patch_writes_into_no_tensor_of_the_caller(model, clean):
    new = torch.randn(H * D)
    before = new.clone()
    ids = clean.clone()

    def destroy(old):
        return old.zero_()

    model(clean, patch_params=[(1, 3, new), Patch(1, None, destroy, "z")])
    assert torch.equal(new, before) and torch.equal(clean, ids)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "patch, message",
    [
        (Patch(4, 0, torch.zeros(1)), "layers are 0 to 3"),
        (Patch(-1, 0, torch.zeros(1)), "layers are 0 to 3"),
        (Patch(0, 5, torch.zeros(1)), "positions are 0 to 4"),
        (Patch(0, -6, torch.zeros(1)), "positions are 0 to 4"),
        (Patch(0, slice(3, 3), torch.zeros(1)), "selects none"),
        (Patch(0, 1.0, torch.zeros(1)), "int, a slice or None"),
        (Patch(0, 0, torch.zeros(1), "resid"), "sites are resid_pre"),
        (Patch(0, 0, torch.zeros(1), "z", 3), "heads are 0 to 2"),
        (Patch(0, 0, torch.zeros(1), "resid_pre", 0), "has no heads"),
        (Patch(0, 0, 1.0), "tensor or a function"),
        (Patch(0, 0, lambda old: None), "must return a tensor"),
        (Patch(True, 0, torch.zeros(1)), "no layer True"),
        (Patch(0, True, torch.zeros(1)), "int, a slice or None"),
        (Patch(0, 0, torch.zeros(1), "z", True), "no head True"),
        (Patch(0, slice(None, None, -1), torch.zeros(1)), "must be positive"),
        ((), "a Patch, or a list"),
        ((0, 1), "a Patch, or a list"),
        ([0, 1, torch.zeros(1)], "a Patch, or a list"),
        (Patch(0, 0, torch.zeros(8)), r"\(8,\).*does not broadcast to the \(2, 21\)"),
        (Patch(0, 0, torch.zeros(3, 2, 21)), "does not broadcast"),
    ],
)
def test_a_wrong_patch_says_what_the_right_ones_are(model, clean, patch, message):
    with pytest.raises(ValueError, match=message):
        model(clean, patch_params=patch)


@pytest.mark.parametrize(
    "store, message", [(["zz"], "no site 'zz'; the sites are resid_pre"), (1, "a list of sites")]
)
def test_a_wrong_site_to_store_says_what_the_right_ones_are(model, clean, store, message):
    with pytest.raises(ValueError, match=message):
        model(clean, store_activations=store)


def test_sites_may_come_from_any_iterable_once(model, clean):
    model(clean, store_activations=(site for site in ("z", "q")))
    assert set(model.activations) == {"resid_post", "z", "q"}


@pytest.mark.parametrize(
    "idx, message",
    [
        (torch.zeros(5, dtype=torch.long), r"token ids \(B, T\)"),
        (torch.zeros(1, 5), r"token ids \(B, T\)"),
        (torch.tensor([[0, 11]]), "ids must be 0 to 10, got 0 to 11"),
        ("Hello", r"got 'Hello'; model.tokenizer\(text\) gives the ids"),
        ([[0, 1]], r"must be a tensor of token ids \(B, T\), got \[\[0, 1\]\]"),
    ],
)
def test_an_input_that_is_no_token_ids_is_refused(model, idx, message):
    for run in (model, lambda ids: model.generate(ids, 1)):
        with pytest.raises(ValueError, match=message):
            run(idx)


@pytest.mark.parametrize("length", [0, 10])
def test_an_input_of_a_wrong_length_is_refused(model, length):
    with pytest.raises(ValueError, match=f"has {length} tokens; this model takes 1 to 9"):
        model(torch.zeros(1, length, dtype=torch.long))


def test_the_loss_is_the_mean_over_the_targets_that_count(model, clean):
    targets = torch.tensor([[1, 2, -1, 4, 5], [-1, -1, 8, 9, 10]])
    logits, loss = model(clean, targets)
    log_probs = logits.log_softmax(-1)
    losses = []
    for b in range(B):
        for t in range(T):
            if targets[b, t] >= 0:
                losses.append(-log_probs[b, t, targets[b, t]])
    assert_close(loss, torch.stack(losses).mean())


def test_gradients_flow_to_every_weight_in_training_and_through_a_patch(model, clean):
    model.train()
    model(clean, clean)[1].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    new = torch.randn(H * D, requires_grad=True)
    model(clean, clean, patch_params=(1, 3, new))[1].backward()
    assert new.grad.abs().sum() > 0


def test_fused_attention_in_training_agrees_with_the_pattern(model, clean):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    fused = logits_of(model.train(), clean)
    assert_close(fused, logits_of(model.eval(), clean), rtol=1e-4, atol=1e-4)


def test_greedy_generation_is_the_argmax_again_and_again(model, clean):
    expected = clean
    for _ in range(7):  # past the context of 9, where the oldest tokens fall off
        logits = logits_of(model, expected[:, -9:])
        expected = torch.cat((expected, logits[:, -1].argmax(-1, keepdim=True)), 1)
    assert torch.equal(model.generate(clean, 7), expected)


def test_sampling_draws_from_the_top_k_alone(model, clean):
    allowed = logits_of(model, clean)[:, -1].topk(2).indices
    drawn = set()
    for _ in range(40):
        drawn.add(tuple(model.generate(clean, 1, do_sample=True, top_k=2)[:, -1].tolist()))
    assert len(drawn) > 1
    assert all(pair[row] in allowed[row].tolist() for pair in drawn for row in range(B))


def test_a_low_temperature_samples_the_most_probable_token(model, clean):
    cold = model.generate(clean, 5, temperature=1e-4, do_sample=True)
    assert torch.equal(cold, model.generate(clean, 5))
    for wrong in ({"temperature": 0}, {"temperature": -1.0}, {"top_k": 0}):
        with pytest.raises(ValueError, match="temperature must be above 0 and top_k from 1"):
            model.generate(clean, 1, **wrong)


def test_weight_decay_falls_on_linear_matrices_alone(model):
    groups = model.configure_optimizers(Trainer.get_default_config()).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = sorted(names[id(parameter)] for parameter in groups[0]["params"])
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight", "lm_head.weight")
    assert decayed == sorted(name for name in names.values() if name.endswith(linear))
    assert groups[0]["weight_decay"] == 0.1 and groups[1]["weight_decay"] == 0.0
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_a_model_type_is_its_shape_and_must_not_be_contradicted():
    config = GPT.get_default_config()
    config.model_type = "gpt-nano"
    config.vocab_size = 3
    config.block_size = 11
    completed = GPT(config).config
    assert (completed.n_layer, completed.n_head, completed.n_embd) == (3, 3, 48)
    config.n_layer = 4
    with pytest.raises(ValueError, match="n_layer"):
        GPT(config)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n_layer": None}, "set n_layer"),
        ({"vocab_size": None}, "set vocab_size"),
        ({"n_head": 4}, "not a multiple"),
        ({"n_layer": -1}, "n_layer must be a whole number from 1"),
        ({"model_type": "gpt2-xxl"}, "no model_type 'gpt2-xxl'; known are openai-gpt"),
        ({"activation_function": "gelu_fast"}, "gelu_fast.*known are gelu_new"),
    ],
)
def test_an_incomplete_configuration_is_refused_by_name(change, message):
    sizes = {"n_layer": L, "n_head": H, "n_embd": H * D, "vocab_size": V, "block_size": 9}
    settings = sizes | change
    with pytest.raises(ValueError, match=message):
        GPT(GPTConfig(**settings))


def test_a_misspelt_setting_is_no_setting():
    with pytest.raises(AttributeError):
        GPT.get_default_config().n_layers = 3


def test_a_tied_output_matrix_is_one_tensor():
    sizes = {"n_layer": 1, "n_head": H, "n_embd": H * D, "vocab_size": V, "block_size": 9}
    model = GPT(GPTConfig(**sizes, tie_word_embeddings=True))
    assert model.lm_head.weight is model.transformer.wte.weight
    groups = model.configure_optimizers(Trainer.get_default_config()).param_groups
    # As an embedding it has no weight decay.
    assert any(parameter is model.lm_head.weight for parameter in groups[1]["params"])
