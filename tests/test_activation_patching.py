"""Sweeps against the brute-force loop over the public forward, cell by cell; ablations against
single patched runs."""

import pickle

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mingpt import common
from mingpt.bpe import BPETokenizer, Encoder
from mingpt.common import CheckFailed
from mingpt.interpretability import partial_runs
from mingpt.interpretability.activation_patching import (
    Sweep,
    ablate_component,
    ablate_heads,
    attribution_patching,
    check_cells,
    get_activations,
    patch_activation,
    patch_layers,
    patch_loop,
    path_patching,
)
from mingpt.interpretability.edges import edge_attribution
from mingpt.model import GPT, SITES, GPTConfig, Patch
from mingpt.sites import SITES_WITH_HEADS

V = 11
RIGHT, WRONG = 3, 5  # the clean and the corrupted answer


def make_model(L=4, H=3, D=7, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    model = GPT(
        GPTConfig(n_layer=L, n_head=H, n_embd=H * D, vocab_size=V, block_size=12, **options)
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def loop(model, source, target, site, each_position):
    """The definition: one patched forward per cell, (B,cells)."""
    acts = get_activations(model, source, site)[site]
    heads = range(model.config.n_head) if site in SITES_WITH_HEADS else [None]
    positions = range(source.size(1)) if each_position else [None]
    table = []
    for layer in acts:
        for head in heads:
            new = acts[layer] if head is None else acts[layer][:, head]
            for p in positions:
                logits = patch_activation(
                    model, target, layer, p, new if p is None else new[:, p], site, head
                )
                table.append(logits[:, WRONG] - logits[:, RIGHT])
    shape = (
        [len(acts)] + [len(heads)] * (site in SITES_WITH_HEADS) + [len(positions)] * each_position
    )
    return torch.stack(table, 1).view(len(source), *shape)


def pairs(B, T, differ, seed=0):
    """Ids (B,T) twice, different at the positions of each row of differ."""
    clean = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))
    corrupted = clean.clone()
    for row, positions in zip(corrupted, differ):
        for p in positions:
            row[p] = (row[p] + 1) % V
    return clean, corrupted


def tolerance(table, dtype):
    """fp64, fp32: rounding of sums in another order. bf16 has 8 bits: rounding the stream moves a
    logit by 1 %."""
    spread = (table.max() - table.min()).item()
    return {
        torch.float64: 1e-10,
        torch.float32: 1e-4 * spread + 1e-5,
        torch.bfloat16: 0.05 * spread + 0.05,
    }[dtype]


def assert_equals_loop(
    model, clean, corrupted, site, direction, each_position=True, max_tokens=4096
):
    source, target = (clean, corrupted) if direction == "denoise" else (corrupted, clean)
    result = patch_layers(
        model, clean, corrupted, RIGHT, WRONG, site, direction, each_position, max_tokens
    )
    expected = loop(model, source, target, site, each_position)
    found = result.logit_diff[None] if len(clean) == 1 else result.logit_diff
    assert found.shape == expected.shape and found.dtype == torch.promote_types(
        model.lm_head.weight.dtype, torch.float32
    )
    assert (found - expected).abs().max() <= tolerance(expected, expected.dtype)


@pytest.mark.parametrize("each_position", [True, False])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_site_and_direction_equals_the_loop(site, direction, each_position, dtype):
    clean, corrupted = pairs(1, 6, [[1, 4]])
    assert_equals_loop(make_model(dtype=dtype), clean, corrupted, site, direction, each_position)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_length_difference_and_bound_equals_the_loop(data):
    draw = data.draw
    L, H, D, T, B = (draw(st.integers(1, n)) for n in (4, 3, 5, 9, 3))
    differ = draw(st.lists(st.sets(st.integers(0, T - 1), min_size=1), min_size=B, max_size=B))
    options = {
        "tie_word_embeddings": draw(st.booleans()),
        "scale_attn_by_inverse_layer_idx": draw(st.booleans()),
    }
    options["n_inner"] = draw(st.sampled_from([None, 6]))
    model = make_model(L, H, D, seed=draw(st.integers(0, 99)), **options)
    clean, corrupted = pairs(B, T, differ, seed=draw(st.integers(0, 99)))
    site, direction = draw(st.sampled_from(SITES)), draw(st.sampled_from(["denoise", "noise"]))
    assert_equals_loop(
        model, clean, corrupted, site, direction, draw(st.booleans()), draw(st.integers(1, 80))
    )


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", SITES)
def test_layers_positions_and_heads_that_run_by_themselves_equal_the_whole_sweep(site, direction):
    model = make_model()
    clean, corrupted = pairs(2, 6, [[2], [1, 4]])
    whole = patch_layers(model, clean, corrupted, RIGHT, WRONG, site, direction).vectors["patched"]
    at_once = patch_layers(model, clean, corrupted, RIGHT, WRONG, site, direction, False)
    at_once = at_once.vectors["patched"]
    if site not in SITES_WITH_HEADS:
        whole = whole[:, :, None]
        at_once = at_once[:, :, None]

    sweep = Sweep(model, clean, corrupted, direction, [site])
    assert list(sweep.positions) == [1, 2, 3, 4, 5]
    assert_close = torch.testing.assert_close
    assert_close(
        sweep.with_unchanged(sweep.run(site, [1, 3], list(sweep.positions))), whole[:, [1, 3]]
    )
    assert_close(sweep.run(site, [2], [3, 5]), whole[:, [2]][..., [3, 5], :])
    assert_close(sweep.run(site, [0, 1])[:, :, :, 0], at_once[:, :2])
    if site in SITES_WITH_HEADS:
        assert_close(sweep.run(site, [3], [4], head=1), whole[:, [3], 1:2, 4:5])


def test_a_batch_of_pairs_equals_pair_by_pair():
    model = make_model()
    clean, corrupted = pairs(3, 6, [[2], [0, 5], [4]])
    answers = ([1, 2, 3], [4, 5, 6])
    batch = patch_layers(model, clean, corrupted, *answers)
    for b in range(3):
        one = patch_layers(
            model, clean[b : b + 1], corrupted[b : b + 1], answers[0][b], answers[1][b]
        )
        for measure in (
            "logit_diff",
            "normalized",
            "probability",
            "log_prob",
            "kl",
            "clean",
            "corrupted",
        ):
            torch.testing.assert_close(
                getattr(batch, measure)[b], getattr(one, measure), rtol=1e-9, atol=1e-10
            )
    torch.testing.assert_close(batch.mean(), batch.logit_diff.mean(0))


def test_the_measures_are_those_of_the_patched_runs_logits():
    model = make_model()
    clean, corrupted = pairs(1, 5, [[1]])
    result = patch_layers(model, clean, corrupted, RIGHT, WRONG)
    model(clean)
    clean_log_probs = model.last_token_logits[0].log_softmax(-1)
    stream = get_activations(model, clean)["resid_post"]
    for layer in range(4):
        for p in range(5):
            log_probs = patch_activation(model, corrupted, layer, p, stream[layer][:, p])[
                0
            ].log_softmax(-1)
            kl = F.kl_div(log_probs, clean_log_probs, log_target=True, reduction="sum")
            expected = {
                "log_prob": log_probs[RIGHT],
                "probability": log_probs[RIGHT].exp(),
                "kl": kl,
            }
            for measure, value in expected.items():
                torch.testing.assert_close(
                    getattr(result, measure)[layer, p], value, rtol=1e-8, atol=1e-10
                )
    for name, ids in (("clean", clean), ("corrupted", corrupted)):
        model(ids)
        logits = model.last_token_logits[0]
        torch.testing.assert_close(getattr(result, name), logits[WRONG] - logits[RIGHT])
    expected = (result.logit_diff - result.corrupted) / (result.clean - result.corrupted)
    torch.testing.assert_close(result.normalized, expected)
    assert (
        result.normalized[-1, -1].item() == pytest.approx(1)
        and abs(result.normalized[0, 0]) < 1e-10
    )


def text_model():
    tokenizer = BPETokenizer(Encoder([]))
    torch.manual_seed(0)
    config = GPTConfig(n_layer=2, n_head=2, n_embd=8, vocab_size=tokenizer.n_vocab, block_size=12)
    model = GPT(config).eval()
    model.tokenizer = tokenizer
    return model


def test_texts_and_ids_give_the_same_and_the_corrupted_answer_is_the_differing_token():
    model = text_model()
    by_text = patch_layers(model, "abcab", "axcab", "b")
    by_list = patch_layers(model, ["abcab"], ["axcab"], ["b"], ["x"])
    encode = model.tokenizer
    by_ids = patch_layers(
        model, encode("abcab"), encode("axcab"), encode("b").item(), encode("x").item()
    )
    assert torch.equal(by_text.logit_diff, by_ids.logit_diff) and torch.equal(
        by_text.logit_diff[None], by_list.logit_diff
    )
    assert by_text.tokens == list("axcab") and by_text.quantity == "logit('x') - logit('b')"


def test_the_picture_of_a_result_names_the_model_the_texts_and_the_unpatched_values():
    model = text_model()
    model.name = "some model"
    result = patch_layers(model, "abcab", "axcab", "b", "x")
    axes, bar = result.plot().axes
    for words in ("some model", "clean: 'abcab'", "corrupted: 'axcab'", "resid_post"):
        assert words in axes.get_title()
    marks = {text.get_text(): text.get_position()[1] for text in bar.texts}
    assert marks == {"clean": result.clean.item(), "corrupted": result.corrupted.item()}
    heads = patch_layers(model, "abcab", "axcab", "b", "x", "z", "noise", each_position=False)
    axes = heads.plot().axes[0]
    assert axes.get_xlabel() == "head" and "corrupted z put into the clean run" in axes.get_title()
    pairs = patch_layers(model, ["abcab"] * 2, ["axcab"] * 2, "b", "x")
    assert "2 pairs" in pairs.plot().axes[0].get_title()
    ids = torch.tensor([[1, 2, 3]])
    by_ids = patch_layers(make_model(), ids, torch.tensor([[1, 4, 3]]), 2, 4)
    assert "clean: '[1, 2, 3]'" in by_ids.plot().axes[0].get_title()


@pytest.mark.parametrize("measure", ["logit_diff", "normalized", "probability", "log_prob", "kl"])
def test_every_measure_is_drawn_and_written_with_its_name_and_scale(measure, tmp_path):
    result = patch_layers(text_model(), "abcab", "axcab", "b", "x")
    values = getattr(result, measure)
    axes, bar = result.plot(measure=measure).axes
    image = axes.images[0]
    assert torch.as_tensor(image.get_array()).equal(values.double())
    low, high = image.get_clim()
    assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6  # rounding
    assert (low == -high) == (measure in ("logit_diff", "normalized"))
    expected = {
        "logit_diff": "logit('x') - logit('b')",
        "normalized": "share restored",
        "probability": "probability of the clean answer",
        "log_prob": "nats",
        "kl": "nats",
    }
    assert expected[measure] in bar.get_ylabel()
    # Patched at the last layer and position, the corrupted run ends as the clean one.
    marks = {text.get_text(): text.get_position()[1] for text in bar.texts}
    assert marks["clean"] == pytest.approx(values[-1, -1].item(), abs=1e-5)
    assert marks["corrupted"] == pytest.approx(values[0, 0].item(), abs=1e-5)
    result.to_csv(tmp_path / "table.csv", measure)
    line = (tmp_path / "table.csv").read_text().splitlines()[1]
    assert [float(cell) for cell in line.split(",")[1:]] == values[0].tolist()
    with pytest.raises(ValueError, match="logit_diff, normalized.*'size'"):
        result.plot(measure="size")


def test_a_result_plots_itself_writes_itself_and_says_what_it_is(tmp_path):
    model = text_model()
    for site, each, rows, columns in (
        ("resid_post", True, 2, 5),
        ("z", True, 4, 5),
        ("z", False, 2, 2),
        ("mlp_out", False, 2, 1),
    ):
        result = patch_layers(model, "abcab", "axcab", "b", site=site, each_position=each)
        figure = result.plot()
        assert figure.axes[0].images[0].get_array().shape == (rows, columns)
        result.plot(tmp_path / "plot.svg")
        result.to_csv(tmp_path / "table.csv")
        lines = (tmp_path / "table.csv").read_text().splitlines()
        assert len(lines) == rows + 1
        cells = torch.tensor(
            [[float(cell) for cell in line.split(",")[1:]] for line in lines[1:]],
            dtype=torch.float64,
        )
        assert torch.equal(cells.flatten(), result.logit_diff.double().flatten())
        assert repr(result).startswith(f"PatchingResult({site}, denoise, ") and "\n" not in repr(
            result
        )


def test_nothing_of_the_callers_is_changed():
    model = make_model()
    clean, corrupted = pairs(1, 5, [[1]])
    copies, state = (
        (clean.clone(), corrupted.clone()),
        {k: v.clone() for k, v in model.state_dict().items()},
    )
    torch.manual_seed(5)
    rng = torch.get_rng_state()
    for site in SITES:
        result = patch_layers(model, clean, corrupted, RIGHT, WRONG, site)
        assert not result.logit_diff.requires_grad
    ablate_heads(model, clean)
    assert torch.is_grad_enabled() and torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(clean, copies[0]) and torch.equal(corrupted, copies[1])
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert model(clean, clean)[1].requires_grad  # gradients still flow


def test_activations_are_copies_of_what_the_sites_hold():
    model = make_model()
    clean, corrupted = pairs(2, 5, [[1], [2]])
    kept = get_activations(model, clean, ["z", "resid_pre"])
    assert set(kept) == {"z", "resid_pre"} and kept["z"][2].shape == (2, 3, 5, 7)
    before = get_activations(model, clean, ["z", "resid_pre", "resid_post"])
    changed = get_activations(model, clean, ["resid_post", "resid_pre"])
    for tensor in changed["resid_post"].values():
        tensor.zero_()  # block l's resid_post is block l + 1's resid_pre
    assert all(changed["resid_pre"][layer].equal(before["resid_pre"][layer]) for layer in range(4))
    get_activations(model, corrupted, ["z"])
    assert torch.equal(kept["z"][2], before["z"][2])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"site": "resid"}, "sites are resid_pre"),
        ({"direction": "up"}, 'must be "denoise" or "noise"'),
        ({"target_token": 11}, "ids are 0 to 10"),
        ({"target_token": [1, 2]}, "one for each of the 1 inputs"),
        ({"corrupted_token": None}, r"differ at positions \[0, 1\], not at one"),
        (
            {"corrupted_input": torch.zeros(1, 6, dtype=torch.long)},
            "equally many tokens, got 5 and 6",
        ),
        ({"corrupted_input": torch.tensor([[0, 1, 2, 3, 4]])}, "are the same"),
        ({"clean_input": "text"}, "no tokenizer"),
        ({"clean_input": torch.zeros(1, 13, dtype=torch.long)}, "takes 1 to 12"),
        ({"clean_input": torch.zeros(5, dtype=torch.long)}, r"whole numbers \(B, T\)"),
    ],
)
def test_bad_input_is_a_clear_error(change, message):
    ids = torch.tensor([[0, 1, 2, 3, 4]])
    arguments = {
        "clean_input": ids,
        "corrupted_input": ids + 1,
        "target_token": RIGHT,
        "corrupted_token": WRONG,
    } | change
    arguments["corrupted_input"] = arguments["corrupted_input"].clone()
    if change.get("corrupted_token", WRONG) is None:
        arguments["corrupted_input"][0, 2:] = ids[0, 2:]
    with pytest.raises(ValueError, match=message):
        patch_layers(make_model(), **arguments)


def test_nan_and_training_mode_are_errors():
    clean, corrupted = pairs(1, 5, [[1]])
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        patch_layers(make_model().train(), clean, corrupted, RIGHT, WRONG)
    model = make_model()
    model.transformer.h[1].mlp.c_fc.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        patch_layers(model, clean, corrupted, RIGHT, WRONG)


def test_the_wrong_linear_of_one_pytorch_on_mps_is_refused(monkeypatch):
    from mingpt.common import check_mps

    check_mps("mps")
    monkeypatch.setattr(torch, "__version__", "2.8.0")
    check_mps("cpu")
    with pytest.raises(ValueError, match="PyTorch 2.8"):
        check_mps("mps")


def loss_of(model, ids, patches):
    logits, _ = model(ids, patch_params=patches)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def difference_of(model, ids, patches):
    model(ids, patch_params=patches)
    return (model.last_token_logits[:, RIGHT] - model.last_token_logits[:, WRONG]).mean()


@pytest.mark.parametrize("answers, measure", [(None, loss_of), ((RIGHT, WRONG), difference_of)])
@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_ablations_equal_runs_in_which_the_part_is_replaced(kind, answers, measure):
    model = make_model()
    ids, reference = pairs(2, 6, [[0, 3], [1, 2]])
    kept = get_activations(model, reference, ["z", "mlp_out", "attn_out", "mlp_post"])

    def value(x):  # (B,T,...) -> what replaces it
        return {
            "zero": torch.zeros_like(x),
            "mean": x.mean((0, 1), keepdim=True).expand_as(x),
            "resample": x,
        }[kind]

    def neuron(old):
        old[..., 9] = value(kept["mlp_post"][2][..., 9, None])[..., 0]
        return old

    head = Patch(1, None, value(kept["z"][1][:, 2]), "z", 2)
    mlp = Patch(2, None, value(kept["mlp_out"][2]), "mlp_out")
    attention = Patch(2, None, value(kept["attn_out"][2]), "attn_out")
    cases = {
        "layer_1_head_2": [head],
        (1, "head", 2): [head],
        "layer_2_mlp": [mlp],
        (2, "mlp"): [mlp],
        "layer_2": [attention, mlp],
        (2,): [attention, mlp],
        "layer_2_neuron_9": [Patch(2, None, neuron, "mlp_post")],
        (2, "neuron", 9): [Patch(2, None, neuron, "mlp_post")],
    }
    plain = measure(model, ids, None)
    for component, patches in [*cases.items(), (["layer_1_head_2", (2, "mlp")], [head, mlp])]:
        found = ablate_component(
            model, ids, component, kind, answers, None if kind == "zero" else reference
        )
        assert found == pytest.approx((measure(model, ids, patches) - plain).item(), abs=1e-10)


@pytest.mark.parametrize("answers", [None, (RIGHT, WRONG)])
@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_all_heads_at_once_equal_one_by_one(kind, answers):
    model = make_model()
    ids, reference = pairs(2, 6, [[0, 3], [1, 2]])
    reference = None if kind == "zero" else reference
    table = ablate_heads(model, ids, kind, answers, reference, max_tokens=40)
    assert table.shape == (4, 3)
    for layer in range(4):
        for head in range(3):
            one = ablate_component(model, ids, (layer, "head", head), kind, answers, reference)
            assert table[layer, head].item() == pytest.approx(one, abs=1e-10)


@pytest.mark.parametrize(
    "component",
    [
        "layer_9",
        "layer_1_head",
        "layer_0_head_3",
        (1, "head"),
        (1, "foo", 3),
        (7,),
        (1, "mlp", 3),
        "x",
        (),
        (3, "head", 2, 9),
        1.2,
        (1, "2"),
        ("1", 2),
        3,
        [],
    ],
)
def test_an_unknown_component_is_refused_by_name(component):
    with pytest.raises(ValueError, match="no component .*write layer_3"):
        ablate_component(make_model(), torch.tensor([[1, 2, 3]]), component)


def test_ablations_say_what_they_need():
    model, ids = make_model(), torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match="give them as reference"):
        ablate_heads(model, ids, "mean")
    with pytest.raises(ValueError, match=r"must be \(1, 3\) tokens"):
        ablate_heads(model, ids, "resample", reference=torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match='kind must be "zero"'):
        ablate_heads(model, ids, "none")
    with pytest.raises(ValueError, match="longer inputs, or answers"):
        ablate_component(model, torch.tensor([[1]]), "layer_0")


def four_passes(model, clean, corrupted, sender, receivers, freeze_mlps):
    """Path patching as Wang et al. describe it, with the public forward alone: the change of the
    logit difference."""
    layer, head = sender
    acts = get_activations(model, clean, ["z", "mlp_out"])
    new_z = get_activations(model, corrupted, "z")["z"][layer][:, head]
    frozen = [Patch(at, None, z, "z") for at, z in acts["z"].items()] + [
        Patch(layer, None, new_z, "z", head)
    ]
    mlps = (
        [Patch(at, None, out, "mlp_out") for at, out in acts["mlp_out"].items()]
        if freeze_mlps
        else []
    )
    unpatched = model(clean)[0][:, -1]
    direct = model(clean, patch_params=frozen + mlps)[0][:, -1]
    patches = []
    for receiver in receivers:
        at, site = (receiver[0], "mlp_out" if receiver[1] == "mlp" else receiver[2])
        head = None if site == "mlp_out" else receiver[1]
        below = [
            patch for patch in mlps if patch.layer < at
        ]  # an MLP that receives is not frozen itself
        model(clean, store_activations=[site], patch_params=frozen + below)
        new = model.activations[site][at]
        patches.append(Patch(at, None, new if head is None else new[:, head], site, head))
    last = model(clean, patch_params=patches)[0][:, -1] if receivers else direct
    return (last - unpatched)[:, WRONG].sub((last - unpatched)[:, RIGHT]).mean().item()


@pytest.mark.parametrize("freeze_mlps", [False, True])
@pytest.mark.parametrize(
    "receiver",
    [
        "logits",
        (2, 1, "q"),
        (2, 0, "k"),
        (3, 2, "v"),
        (1, "mlp"),
        [(2, 1, "v"), (2, 2, "q"), (3, "mlp")],
    ],
)
def test_path_patching_is_the_four_passes_of_the_paper(receiver, freeze_mlps):
    model = make_model()
    clean, corrupted = pairs(2, 6, [[1], [0, 3]])
    effect = path_patching(
        model, clean, corrupted, None, receiver, RIGHT, WRONG, freeze_mlps, max_tokens=60
    )
    receivers = (
        [] if receiver == "logits" else receiver if isinstance(receiver, list) else [receiver]
    )
    right = torch.tensor(
        [
            [
                four_passes(model, clean, corrupted, (layer, head), receivers, freeze_mlps)
                for head in range(3)
            ]
            for layer in range(4)
        ],
        dtype=torch.float64,
    )
    assert effect.sub(right).abs().max() < 1e-12 and right[0].abs().max() > 1e-6
    one = path_patching(model, clean, corrupted, (0, 1), receiver, RIGHT, WRONG, freeze_mlps)
    assert abs(one - right[0, 1].item()) < 1e-12


def test_path_patching_says_which_receivers_there_are():
    model, (clean, corrupted) = make_model(), pairs(1, 5, [[1]])
    for receiver in (
        "logit",
        [],
        ["logits", (2, "mlp")],
        (2, 1),
        (2, 1, "z"),
        (4, "mlp"),
        (2, 3, "q"),
        7,
    ):
        with pytest.raises(ValueError, match="no receiver|no component|by themselves"):
            path_patching(model, clean, corrupted, None, receiver, RIGHT, WRONG)


@pytest.mark.parametrize(
    "receivers",
    [
        ["2.1.q", "layer_2_head_1_q", (2, 1, "q"), ["2.1.q"], [[2, 1, "q"]]],
        ["mlp 2", "layer_2_mlp", (2, "mlp"), ["mlp 2"]],
        [["3.0.k", "mlp 2"], ["layer_3_head_0_k", (2, "mlp")]],
    ],
)
def test_path_patching_reads_all_spellings_of_a_component(receivers):
    model = make_model()
    clean, corrupted = pairs(1, 5, [[1]])
    effects = {
        path_patching(model, clean, corrupted, sender, receiver, RIGHT, WRONG)
        for sender in ("1.2", "layer_1_head_2", (1, 2), (1, "head", 2))
        for receiver in receivers
    }
    assert len(effects) == 1 and abs(effects.pop()) > 1e-6


def test_path_patching_says_which_senders_there_are():
    model = make_model()
    clean, corrupted = pairs(1, 5, [[1]])
    for sender in ("1.2.q", "mlp 1", "logits", (1,), "4.0", "x"):
        with pytest.raises(ValueError, match="sender must be a head|no component"):
            path_patching(model, clean, corrupted, sender, "logits", RIGHT, WRONG)


def test_attribution_patching_is_the_slope_where_a_patch_begins():
    """Every site: central differences of a patch that puts in a small share of the difference."""
    model, step = make_model(), 1e-6
    clean, corrupted = pairs(1, 5, [[1, 2]])
    estimates = attribution_patching(model, clean, corrupted, RIGHT, WRONG, SITES)
    assert set(estimates) == set(SITES)
    for site, table in estimates.items():
        new, old = (get_activations(model, ids, site)[site] for ids in (clean, corrupted))
        heads = range(3) if site in SITES_WITH_HEADS else [None]
        for layer, head, p in ((0, heads[0], 1), (2, heads[-1], 3), (3, heads[0], 4)):
            change = (
                (new[layer] - old[layer]).nan_to_num()
                if head is None
                else (new[layer] - old[layer])[:, head]
            )
            change, ends = change.nan_to_num()[:, p], []
            for share in (-step, step):
                patch = Patch(layer, p, lambda x, c=change, s=share: x + s * c, site, head)
                logits = model(corrupted, patch_params=patch)[0][0, -1]
                ends.append((logits[WRONG] - logits[RIGHT]).item())
            cell = (layer, p) if head is None else (layer, head, p)
            assert table[cell].item() == pytest.approx(
                (ends[1] - ends[0]) / (2 * step), abs=1e-7
            ), (site, cell)


def test_attribution_patching_is_exact_where_the_model_is_linear_above_the_patch():
    """The last layer's stream, with a final layer norm whose epsilon drowns the variance."""
    model = make_model(layer_norm_epsilon=1e8)
    model.transformer.ln_f.weight.data.mul_(1e4)
    clean, corrupted = pairs(2, 6, [[1, 5], [0, 5]])
    estimate = attribution_patching(model, clean, corrupted, RIGHT, WRONG)["resid_post"]
    result = patch_layers(model, clean, corrupted, RIGHT, WRONG)
    change = (result.logit_diff - result.corrupted[:, None, None]).mean(0)
    assert (
        estimate[3].sub(change[3]).abs().max() < 1e-6 * change[3].abs().max()
        and change[3].abs().max() > 1e-3
    )


def test_components_take_the_numbers_of_other_libraries():
    model, ids = make_model(), torch.tensor([[1, 2, 3]])
    same = ablate_component(model, ids, (1, "head", 2))
    assert ablate_component(model, ids, (torch.tensor(1), "head", numpy.int64(2))) == same


@pytest.mark.parametrize(
    "call",
    [
        lambda model, ids, other: get_activations(model, ids),
        lambda model, ids, other: patch_activation(model, ids, 1, 2, torch.zeros(())),
        lambda model, ids, other: patch_layers(model, ids, other, RIGHT, WRONG),
        lambda model, ids, other: ablate_component(model, ids, (1, "mlp")),
        lambda model, ids, other: ablate_heads(model, ids),
        lambda model, ids, other: path_patching(model, ids, other, None, "logits", RIGHT, WRONG),
        lambda model, ids, other: attribution_patching(model, ids, other, RIGHT, WRONG),
    ],
)
def test_nan_and_training_mode_are_errors_everywhere(call):
    model, (ids, other) = make_model(), pairs(1, 5, [[1]])
    call(model, ids, other)
    with pytest.raises(ValueError, match="training mode"):
        call(model.train(), ids, other)
    model.eval().transformer.h[2].mlp.c_fc.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        call(model, ids, other)
    model.transformer.h[2].mlp.c_fc.bias.data[0] = 0
    call(model, ids, other)
    model.lm_head.weight.data[7, 2] = float("nan")  # the row of a token that is no answer
    with pytest.raises(ValueError, match="NaN or infinite"):
        call(model, ids, other)


def test_autocast_and_gradients_in_inference_mode_are_refused_in_a_sentence():
    model, pair = make_model(dtype=torch.float32), pairs(1, 5, [[1]])
    with torch.autocast("cpu"), pytest.raises(ValueError, match="autocast.*turn it off"):
        patch_layers(model, *pair, RIGHT, WRONG)
    circuit = [(*pair, RIGHT, WRONG)]
    calls = [
        lambda model: attribution_patching(model, *pair, RIGHT, WRONG),
        lambda model: edge_attribution(model, circuit, "eap"),
    ]
    for call in calls:
        with torch.no_grad():
            call(model)
        with torch.inference_mode(), pytest.raises(ValueError, match="no gradients.*outside"):
            call(model)
    with torch.inference_mode():
        result = patch_layers(model, *pair, RIGHT, WRONG)
        born = make_model(dtype=torch.float32)
    assert result.kl.min() >= 0
    with pytest.raises(ValueError, match="no gradients.*outside"):
        calls[0](born)


def test_answers_that_cannot_be_meant_are_refused():
    model, (clean, corrupted) = make_model(), pairs(1, 5, [[1]])
    for answers in ("ab", (1,), (1, 2, 3), 4):
        with pytest.raises(ValueError, match=r"answers must be two, \(right, wrong\)"):
            ablate_heads(model, clean, answers=answers)
    for call in (patch_layers, attribution_patching):
        with pytest.raises(ValueError, match="must be two different tokens"):
            call(model, clean, corrupted, RIGHT, RIGHT)
    with pytest.raises(ValueError, match="answer 5.7 is no token"):
        patch_layers(model, clean, corrupted, 5.7, WRONG)
    with pytest.raises(ValueError, match="takes nothing from a reference"):
        ablate_heads(model, clean, reference=corrupted)
    by_tensor = patch_layers(model, clean, corrupted, torch.tensor(RIGHT), torch.tensor(WRONG))
    assert by_tensor.logit_diff.equal(
        patch_layers(model, clean, corrupted, RIGHT, WRONG).logit_diff
    )


@pytest.mark.parametrize("B", [1, 2])
@pytest.mark.parametrize("max_tokens", [12, 40, 200])
def test_no_more_tokens_are_under_way_than_allowed(monkeypatch, max_tokens, B):
    """Whatever the heads, layers and positions; one run of all inputs is never cut."""
    model, seen, through = make_model(), [], partial_runs._through_block
    clean, corrupted = pairs(B, 6, [[1]] * B)

    def watched(model, base, layer, tails, last_only):
        seen.append(sum(tail[..., 0].numel() for tail in tails.values()))
        return through(model, base, layer, tails, last_only)

    monkeypatch.setattr(partial_runs, "_through_block", watched)
    for site in ("resid_post", "z", "v"):
        whole = patch_layers(model, clean, corrupted, RIGHT, WRONG, site).logit_diff
        most, seen[:] = max(seen), []
        table = patch_layers(
            model, clean, corrupted, RIGHT, WRONG, site, max_tokens=max_tokens
        ).logit_diff
        assert max(seen) <= max(max_tokens, 6 * B) and max(seen) <= most
        assert table.sub(whole).abs().max() < 1e-10  # fp64
    seen[:] = []
    ablate_heads(model, clean, max_tokens=max_tokens)
    assert max(seen) <= max(max_tokens, 6 * B)


def test_a_bf16_result_can_be_drawn(tmp_path):
    model, (clean, corrupted) = make_model(dtype=torch.bfloat16), pairs(1, 5, [[1]])
    patch_layers(model, clean, corrupted, RIGHT, WRONG).plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_ablations_in_bf16_are_near_those_in_fp64():
    """A difference of two losses that were rounded to bf16 would be 0 or 1/128; they are taken in
    fp32."""
    model, (ids, _) = make_model(), pairs(1, 12, [[1]])
    right = ablate_heads(model, ids)
    rounded = ablate_heads(make_model(dtype=torch.bfloat16), ids)
    assert rounded.dtype == torch.float32
    assert (
        rounded.double().sub(right).abs().max() < 0.1 * right.abs().max()
    )  # bf16 inside the model: some percent


def test_the_progress_bar_moves_while_one_portion_is_under_way(monkeypatch):
    steps = []
    monkeypatch.setattr(common.Bar, "update", lambda bar, n=1: steps.append(n))
    clean, corrupted = pairs(1, 6, [[1]])
    patch_layers(make_model(), clean, corrupted, RIGHT, WRONG)
    assert len(steps) == 4 and sum(steps) == pytest.approx(4 * 5) and steps == sorted(steps)


PAIRS = [  # the changed token decides the answer, or hardly matters
    ("Michelle Jones was a top-notch student. Michelle", " Jones", " Smith"),
    ("The garden was cold. Then the", " garden", " town"),
    ("The garden was cold. Anna Brown went out, and", " garden", " town"),
]


def lower_logits(model, shift):
    """Make every logit so much lower: one number of the normalised stream becomes a constant 1."""
    model.requires_grad_(False)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    model.requires_grad_(False)
    model.transformer.ln_f.weight[0] = 0
    model.transformer.ln_f.bias[0] = 1
    model.lm_head.weight[:, 0] = -shift
    return model


@pytest.mark.parametrize("shift", [0, 60, 100, 300])
def test_the_check_of_a_sweep_knows_rounding_from_a_wrong_cell_however_large_the_logits(shift):
    """GPT-2's logits lie near -100; what they round away is no fault of the sweep."""
    model = lower_logits(GPT.from_pretrained("names"), shift)
    for clean, *answers in PAIRS:
        ids = [model.tokenizer(text) for text in (clean, clean.replace(*answers))]
        result = patch_layers(model, *ids, *answers)
        assert "3 cells" in check_cells(model, *ids, result)
        right = result.vectors["patched"]
        unpatched = result.vectors["corrupted"]
        for wrong in (right.roll(1, 1), right.roll(1, 2), right + 0.05 * (right - unpatched)):
            result.vectors["patched"] = wrong
            with pytest.raises(CheckFailed, match="more than rounding"):
                check_cells(model, *ids, result)


def test_what_comes_back_is_of_the_own_run_whatever_else_the_model_runs_meanwhile():
    """Another thread's run between the forward call and its caller; here a hook's."""
    model = make_model()
    clean, corrupted = pairs(1, 5, [[1]])
    answers = torch.tensor([RIGHT]), torch.tensor([WRONG])

    def results():
        result = patch_layers(model, clean, corrupted, *answers)
        check_cells(model, clean, corrupted, result)
        return [
            patch_activation(model, corrupted, 1, 2, torch.zeros(())),
            patch_loop(model, clean, corrupted, *answers),
            get_activations(model, clean)["resid_post"][2],
            result.logit_diff,
        ]

    alone = results()
    runs_other = model.register_forward_hook(
        lambda *call: GPT.forward(model, corrupted.flip(1), store_activations=True) and None
    )
    meanwhile = results()
    runs_other.remove()
    assert all(map(torch.equal, alone, meanwhile))


def changed_elsewhere(model):
    """A row of the output matrix that is no answer's, changed as PyTorch does not count it."""
    model.lm_head.weight.data[7] += 1


def trained(model):
    model(torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]]))[1].backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


@pytest.mark.parametrize("change", [GPT.half, GPT.float, changed_elsewhere, trained])
def test_what_happens_to_the_model_later_does_not_change_a_result(change):
    model, (clean, corrupted) = make_model(), pairs(2, 5, [[1], [2]])
    result = patch_layers(model, clean, corrupted, RIGHT, WRONG)
    same = ["logit_diff", "clean", "corrupted", "normalized"]
    whole = ["probability", "log_prob", "kl"]
    before = {name: getattr(result, name) for name in same + whole}
    change(model)
    # In the place of its weights a model may get new ones; changed in place, they are lost.
    is_in_place = change in (changed_elsewhere, trained)
    for name, value in before.items():
        if is_in_place and name in whole:
            with pytest.raises(ValueError, match="has changed since the runs.*run patch_layers ag"):
                getattr(result, name)
        else:
            torch.testing.assert_close(getattr(result, name), value, rtol=0, atol=0)


def test_a_pickled_result_is_without_the_model():
    model, (clean, corrupted) = make_model(), pairs(1, 5, [[1]])
    result = patch_layers(model, clean, corrupted, RIGHT, WRONG)
    again = pickle.loads(pickle.dumps(result))
    assert b"GPT" not in pickle.dumps(result)
    assert again.logit_diff.equal(result.logit_diff) and repr(again) == repr(result)
    assert again.normalized.equal(result.normalized)
    for measure in ("kl", "probability"):
        with pytest.raises(ValueError, match="without the output matrix.*run patch_layers again"):
            getattr(again, measure)
    assert result.kl.shape == (4, 5)  # the result itself keeps its own


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_no_divergence_is_negative(direction):
    for seed in range(5):
        model = make_model(dtype=torch.float32, seed=seed)
        clean, corrupted = pairs(2, 6, [[4], [5]])
        result = patch_layers(model, clean, corrupted, RIGHT, WRONG, direction=direction)
        assert result.kl.min() >= 0 and result.kl.max() > 0


def test_nothing_can_be_normalized_where_both_runs_say_the_same():
    model, (clean, corrupted) = make_model(), pairs(2, 5, [[1], [2]])
    model.lm_head.weight.data[WRONG] = model.lm_head.weight.data[RIGHT]
    result = patch_layers(model, clean, corrupted, RIGHT, WRONG)
    with pytest.raises(ValueError, match="the same logit difference.*read logit_diff"):
        result.normalized  # noqa: B018


def test_measures_in_bf16_are_not_rounded_to_bf16():
    """At -100 bf16 knows halves alone."""
    model = lower_logits(make_model(dtype=torch.bfloat16), 100)
    clean, corrupted = pairs(1, 5, [[1]])
    result = patch_layers(model, clean, corrupted, RIGHT, WRONG)
    logits = result.vectors["patched"][0].double() @ model.lm_head.weight.double().T
    assert logits.max() < -90
    found = result.log_prob.double()
    assert found.sub(logits.log_softmax(-1)[..., RIGHT]).abs().max() < 1e-4
    expected = logits[..., WRONG] - logits[..., RIGHT]
    assert result.logit_diff.double().sub(expected).abs().max() < 1e-4


def test_answers_that_are_left_out_are_the_differing_tokens():
    model = text_model()
    pair = ("abcab", "axcab")
    for call in (
        lambda *answers: patch_layers(model, *pair, *answers).logit_diff,
        lambda *answers: patch_loop(model, *pair, *answers),
        lambda *answers: attribution_patching(model, *pair, *answers)["resid_post"],
        lambda *answers: path_patching(model, *pair, None, "logits", *answers),
    ):
        assert torch.equal(call(), call("b", "x"))
    with pytest.raises(ValueError, match=r"differ at positions \[1, 2\].*name the clean answer"):
        patch_layers(model, "abcab", "axxab")


@pytest.mark.parametrize(
    "answer, advice",
    [
        (" Jones Smith", r"is 2 tokens \( Jones\| Smith\); it must be one: give one of them"),
        ("Jones", "it must be one: mind the leading space: ' Jones' is one"),
    ],
)
def test_an_answer_of_several_tokens_is_told_what_to_do(answer, advice):
    model = GPT.from_pretrained("names")
    with pytest.raises(ValueError, match=advice):
        patch_layers(model, "Anna Jones", "Anna Smith", answer)


def test_texts_that_are_the_same_are_numbered_where_there_are_several():
    model = text_model()
    with pytest.raises(ValueError, match="the corrupted text are the same"):
        patch_layers(model, "ab", "ab")
    with pytest.raises(ValueError, match="the corrupted text 1 are the same"):
        patch_layers(model, ["ab", "ab"], ["xb", "ab"])
