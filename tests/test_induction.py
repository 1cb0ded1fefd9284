"""Induction heads: scores and ablations against plain forwards, known heads, the command line."""

import csv
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from matplotlib.text import Text

from experiments import induction_seeds, induction_study
from experiments.induction_figures import columns, plot_curve, plot_study
from mingpt import pretrained
from mingpt.bpe import BPETokenizer, Encoder
from mingpt.interpretability.induction import (
    Candidates,
    HeadAblations,
    InductionStudy,
    draw_prompts,
    induction_curve,
    mean_error,
    name_candidates,
    study_induction,
)
from mingpt.model import GPT, GPTConfig, Patch
from tests.handmade import INDUCTION_HEAD, PREVIOUS_TOKEN_HEAD, induction_model

L, H, N, B = 4, 3, 5, 4  # n is the length of a base, so T = 20
TEXT = "It rained all week. " * 3


def random_model(vocab_size=11, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT(
            GPTConfig(n_layer=L, n_head=H, n_embd=21, vocab_size=vocab_size, block_size=4 * N + 1)
        ).eval()
        for parameter in model.parameters():
            parameter.data += 0.3 * torch.randn_like(
                parameter
            )  # so that heads look at something and matter
    return model


def byte_model(seed=0):
    model = random_model(257, seed)
    model.tokenizer = BPETokenizer(Encoder([]))
    return model


@pytest.fixture(scope="module")
def handmade():
    model = induction_model()
    return model, study_induction(model, draw_prompts(model))


def test_a_repeat_is_its_base_four_times_and_a_control_shares_only_the_first():
    repeat, control = draw_prompts(random_model(), N, B)
    assert repeat.shape == control.shape == (B, 4 * N)
    pieces = repeat.view(B, 4, N)
    assert (pieces == pieces[:, :1]).all()
    assert torch.equal(control[:, :N], repeat[:, :N])
    assert all(len(set(piece.tolist())) == N for piece in control.view(-1, N))
    assert len({tuple(piece.tolist()) for piece in control.view(-1, N)}) == 4 * B


def test_bases_are_uniform_over_the_vocabulary():
    counts = draw_prompts(random_model(), N, 1000)[1].flatten().bincount(minlength=11)
    assert (counts - 20_000 / 11).abs().max() < 5 * (20_000 / 11) ** 0.5  # standard deviations


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    model = random_model()
    before = torch.get_rng_state()
    draws = [draw_prompts(model, N, B, seed) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(before, torch.get_rng_state())


def test_with_a_text_everything_is_a_piece_of_it():
    model = byte_model()
    text = "".join(chr(i) for i in range(33, 127))  # each byte once: a piece of it counts up
    repeat, control, texts = draw_prompts(model, N, B, text=text)
    assert (texts.diff() == 1).all()
    assert (control.view(B, 4, N).diff() == 1).all()
    assert torch.equal(repeat, control[:, :N].repeat(1, 4))
    assert len(texts[:, 0].unique()) > 1
    assert draw_prompts(model, N, 1000, text=text)[2].max() == 93  # the last place is drawn too


def test_lengths_texts_kinds_and_modes_that_do_not_fit_are_refused():
    model = random_model()
    for length, bases in ((1, B), (6, B), (N, 1)):
        with pytest.raises(ValueError, match="2 bases or more, of 2 to 5 tokens"):
            draw_prompts(model, length, bases)
    for other, text, message in (
        (model, TEXT, "has no tokenizer; leave the text out"),
        (byte_model(), "short", "needs 20; give a longer one"),
    ):
        with pytest.raises(ValueError, match=message):
            draw_prompts(other, N, B, text=text)
    alone = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=7, vocab_size=11, block_size=20)).eval()
    assert study_induction(alone, draw_prompts(alone, N, B), ()).delta.shape == (B,)
    with pytest.raises(ValueError, match="take a model with two heads"):
        study_induction(alone, draw_prompts(alone, N, B))
    with pytest.raises(ValueError, match='kinds must be of "zero" and "mean"'):
        study_induction(model, draw_prompts(model, N, B), ("resample",))
    with pytest.raises(ValueError, match="training mode"):
        study_induction(model.train(), draw_prompts(model, N, B))


def run(model, ids, patches=None):
    """(A (B,L,H) query by query, losses (B,T-1)) of the public forward."""
    logits, _ = model(ids, store_activations=["pattern"], patch_params=patches)
    stripe = torch.zeros(len(ids), L, H)
    for layer, pattern in model.activations["pattern"].items():
        for query in range(N, 4 * N):
            stripe[:, layer] += pattern[:, :, query, query - N + 1] / (3 * N)
    return stripe, -logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]


def icl(losses):
    """Loss on tokens 18 and 19 of 20 minus loss on tokens 3 and 4, (B,)."""
    return losses[:, [17, 18]].mean(1) - losses[:, [2, 3]].mean(1)


def run_all(model, prompts, patches=None):
    """Every quantity by itself, of the public forward."""
    runs = [run(model, ids, patches) for ids in prompts]
    stripes = [stripe for stripe, _ in runs]
    losses = [loss.detach() for _, loss in runs]
    return {
        "A(r)": stripes[0],
        "A(c)": stripes[1],
        "A(r)-A(c)": stripes[0] - stripes[1],
        "loss(r)": losses[0][:, N:].mean(1),
        "loss(c)": losses[1][:, N:].mean(1),
        "loss(text)": losses[-1][:, N:].mean(1),
        "ICL": icl(losses[-1] if len(prompts) == 3 else losses[0]),
    }


@pytest.mark.parametrize("text", [None, TEXT])
def test_all_values_are_those_of_plain_forwards(text):
    model = byte_model() if text else random_model()
    prompts = draw_prompts(model, N, 120, text=text)  # more than fit in one go
    study = study_induction(model, prompts)
    expected = run_all(model, prompts)
    learned = expected["ICL"]
    delta = expected["A(r)-A(c)"].mean(0).max()
    learns = bool(learned.mean() < -4 * learned.std() / 120**0.5)
    assert learns == bool(text)  # so that both cases are seen
    for kind in ("zero", "mean"):
        model(prompts[1], store_activations=["z"])
        means = {layer: z.mean((0, 2)) for layer, z in model.activations["z"].items()}  # (H,D)
        for layer, head in ((0, 1), (2, 2), (3, 0)):
            new = means[layer][head] if kind == "mean" else torch.zeros(7)
            ablated = run_all(model, prompts, Patch(layer, None, new, "z", head))
            found = HeadAblations(
                *(values[:, layer, head] for values in vars(study.ablations[kind]).values())
            )
            others = [
                ablated["A(r)-A(c)"].mean(0)[l, h]
                for l in range(L)
                for h in range(H)
                if (l, h) != (layer, head)
            ]
            change = (max(others) - delta).item()
            assert found.change_of_delta.mean().item() == pytest.approx(change, abs=1e-6)
            change = ablated["loss(r)"] - expected["loss(r)"]
            torch.testing.assert_close(found.change_of_loss_repeats, change, **close)
            change = ablated["loss(c)"] - expected["loss(c)"]
            torch.testing.assert_close(found.change_of_loss_controls, change, **close)
            share = (1 - ablated["ICL"].mean() / learned.mean()).item() if learns else torch.nan
            assert found.in_context_share_lost.mean().item() == pytest.approx(
                share, abs=1e-5 / abs(learned.mean().item()), nan_ok=True
            )
    if not text:
        expected.pop("loss(text)")
    values = columns(study)
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value, **close)
    assert study.delta.mean().item() == pytest.approx(delta.item(), abs=1e-6)
    changes = {f"{name}, {kind}" for kind in ("zero", "mean") for name in CHANGES}
    assert values.keys() == {"Delta", *expected} | changes


def test_every_column_is_the_field_that_its_name_stands_for():
    """The table of InductionStudy's docstring, which columns follows."""
    fields = [name for name in InductionStudy.__dataclass_fields__ if name != "ablations"]
    changes = HeadAblations(*(torch.full((B, L, H), 10.0 + i) for i in range(4)))
    study = InductionStudy(*(torch.tensor(float(i)) for i in range(8)), {"zero": changes})
    values = columns(study)
    for line in InductionStudy.__doc__.splitlines():
        words = line.split()
        if words and words[0] in fields:
            assert values.pop(words[2]) == fields.index(words[0])
    assert [value.unique().tolist() for value in values.values()] == [[10], [11], [12], [13]]
    assert list(values) == [f"{name}, zero" for name in CHANGES]


close = {"atol": 2e-5, "rtol": 0}  # fp32 sums of about 20 terms of size 1, in another order
CHANGES = ("change of Delta", "ICL share lost", "change of loss(r)", "change of loss(c)")


def test_the_loss_on_the_repeats_is_that_of_forward_with_targets():
    model = random_model()
    prompts = draw_prompts(model, N, B)
    ids, targets = prompts[0, :, :-1], prompts[0, :, 1:].clone()
    targets[:, :N] = -1  # up to the first of the second base, which nothing foretells
    found = study_induction(model, prompts, ()).loss_repeats.mean()
    torch.testing.assert_close(found, model(ids, targets)[1].detach(), **close)


def test_without_prompts_it_draws_them():
    model = random_model()
    found = columns(study_induction(model, kinds=()))
    drawn = columns(study_induction(model, draw_prompts(model), ()))
    assert all(torch.equal(found[name], value) for name, value in drawn.items())


def test_it_leaves_model_and_prompts_as_they_were():
    model = random_model()
    prompts = draw_prompts(model, N, B)
    model(prompts[0], store_activations=True)
    before = prompts.clone()
    streams = dict(model.layer_activations)
    logits = model.last_token_logits
    with torch.enable_grad():
        study_induction(model, prompts)
        assert torch.is_grad_enabled()
    assert model.layer_activations == streams
    assert model.last_token_logits is logits
    assert torch.equal(prompts, before)


def test_mean_and_standard_error():
    mean, error = mean_error(torch.tensor([[1.0, 0], [2, 0], [6, 0]]))
    assert mean.tolist() == [3, 0]
    assert error.tolist() == pytest.approx([((4 + 1 + 9) / 2 / 3) ** 0.5, 0])


def test_the_induction_head_of_the_handmade_model_is_found(handmade):
    _, study = handmade
    difference = study.attention_difference.mean(0)
    assert divmod(difference.argmax().item(), 4) == INDUCTION_HEAD
    assert difference.max() > 0.9
    # All others look the same way whatever the tokens are.
    assert difference.flatten().sort().values[-2].abs() < 1e-6
    assert study.in_context.mean() < -5


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_ablating_either_head_of_the_handmade_circuit_breaks_it_and_no_other(handmade, kind):
    _, study = handmade
    changes = study.ablations[kind]
    delta = changes.change_of_delta.mean(0)
    loss = changes.change_of_loss_repeats.mean(0)
    share = changes.in_context_share_lost.mean(0)
    circuit = (PREVIOUS_TOKEN_HEAD, INDUCTION_HEAD)
    for layer in range(2):
        for head in range(4):
            if (layer, head) in circuit:
                assert study.delta.mean() + delta[layer, head] < 0.01
                assert loss[layer, head] > 2
                assert share[layer, head] > 0.9
            else:
                assert max(abs(x[layer, head]) for x in (delta, loss, share)) < 1e-6
    named = name_candidates(study, kind)
    assert [set(heads) for heads in (named.delta, named.loss, named.both)] == [set(circuit)] * 3


def test_of_two_induction_heads_the_other_one_remains():
    model = induction_model()
    for twin in (0, 3):
        for weight in model.transformer.h[1].attn.c_attn.parameters():
            heads = weight.data.view(3, 4, 32, *weight.shape[1:])
            # The same pattern; without a value, not the same effect.
            heads[:2, twin] = heads[:2, INDUCTION_HEAD[1]]
    study = study_induction(model, draw_prompts(model), ("zero",))
    changes = study.ablations["zero"]
    assert changes.change_of_delta.mean(0)[INDUCTION_HEAD].abs() < 1e-6
    assert changes.change_of_loss_repeats.mean(0)[INDUCTION_HEAD] > 2
    expected = Candidates(delta=[(0, 1)], loss=[(0, 1), (1, 2)], both=[(0, 1)])
    assert name_candidates(study) == expected


def test_a_change_must_be_large_and_sure_to_be_named():
    noise = torch.tensor([-1.0, 1]).repeat(8)[:, None]
    loss = torch.tensor([0.09, 0.11, 0.5, 0.5]) + noise * torch.tensor([0, 0, 0.6, 0.3])  # (16,4)
    changes = HeadAblations(-loss[:, None], None, loss[:, None], None)
    study = InductionStudy(
        None, None, None, torch.zeros(16), torch.ones(16), None, None, torch.ones(16)
    )
    study.ablations["zero"] = changes
    assert name_candidates(study).both == [(0, 3), (0, 1)]
    assert name_candidates(study, share=0.05).both == [(0, 3), (0, 1), (0, 0)]
    study.loss_controls = torch.zeros(16)  # repeating saves nothing
    assert name_candidates(study).loss == []


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run in which the induction head forms between steps 3 and 20."""
    folder = tmp_path_factory.mktemp("run")
    model = induction_model()
    pretrained.save(model, folder / "step-00000020")
    model.transformer.h[1].attn.c_attn.weight.data.zero_()
    pretrained.save(model, folder / "step-00000003")
    return folder


def test_the_curve_shows_when_the_head_forms(run_folder):
    curve = induction_curve(run_folder, bases=B)
    assert list(curve) == [3, 20]
    first, last = (study.delta.mean().item() for study in curve.values())
    assert first < 0.1
    assert last > 0.9
    assert curve[20].loss_repeats.mean() < 0.1 < curve[3].loss_repeats.mean()
    again = study_induction(induction_model(), draw_prompts(induction_model(), bases=B), ())
    values = columns(curve[20])
    assert all(torch.equal(values[name], value) for name, value in columns(again).items())
    (run_folder / "curve.csv").write_text(
        "step,train_loss,validation_loss\n3,5.0,6.0\n20,1.0,2.0\n"
    )
    assert induction_study.read_losses(run_folder / "none") is None
    losses = induction_study.read_losses(run_folder)
    above, below, in_context, training = plot_curve(curve, losses=losses).axes
    assert [line.get_ydata().tolist() for line in training.lines] == [[5, 1], [6, 2]]
    assert above.get_legend_handles_labels()[1][0] == "head 1.2"
    assert len(above.lines) == 8
    assert above.lines[0].get_ydata().tolist() == pytest.approx([first, last])
    assert below.get_legend_handles_labels()[1] == ["loss(r)", "loss(c)"]
    assert in_context.get_legend_handles_labels()[1] == ["ICL"]
    # One loss may lie on the other, and is still seen.
    for axes in (below, training):
        assert len({line.get_linestyle() for line in axes.lines}) == len(axes.lines)
    _, errors = mean_error(
        torch.stack([curve[step].attention_difference[:, 1, 2] for step in curve], 1)
    )
    bars = above.collections[0].get_segments()
    assert [(top - bottom) / 2 for (_, bottom), (_, top) in bars] == pytest.approx(errors.tolist())


def maps_of(figure):
    """{name: Axes} of the maps in a picture, without their colour bars; the name is the first line
    of the title, and what it means the second.
    """
    return {axes.get_title().split("\n")[0]: axes for axes in figure.axes if axes.images}


def test_the_picture_shows_the_means_and_the_stripe(handmade):
    model, study = handmade
    maps = maps_of(plot_study(model, draw_prompts(model), study))
    shown = {title: axes.images[0].get_array() for title, axes in maps.items()}
    for name, value in columns(study).items():
        if value.ndim == 3:
            torch.testing.assert_close(torch.from_numpy(shown[name].data), value.mean(0))
    assert shown["in a whole repeat"].shape == (32, 32)
    repeat, control = (shown[f"{name}, from piece 2 to piece 1"] for name in ("repeat", "control"))
    assert repeat.shape == (8, 8)
    assert repeat.diagonal(1).min() > 0.99 > 0.5 > control.diagonal(1).max()


def texts_in(figure):
    """Every text that stands in a figure."""
    return [text.get_text() for text in figure.findobj(Text)]


def bars_of(figure):
    """The labels of the colour bars in a figure."""
    labels = (axes.get_ylabel() for axes in figure.axes if not axes.images)
    return sorted(label for label in labels if label)


def test_the_picture_says_what_it_shows_of_which_model_and_in_which_units(handmade):
    model, study = handmade
    model.name = "my $model$_1"
    figure = plot_study(model, draw_prompts(model), study)
    text = "\n".join(texts_in(figure))
    assert "my $model$_1\n32 pieces of 8 random tokens" in text
    assert "r, a repeat: a piece four times; c, its control: the piece, then three others" in text
    assert "Delta = largest A(r)-A(c) of the others" in text
    assert "head 1.2: its mean pattern" in text
    bars = ["nats per token"] * 4 + ["share of attention"] * 8 + ["share that is lost"] * 2
    assert bars_of(figure) == bars


def test_the_control_is_drawn_on_the_scale_of_the_repeats(handmade):
    model, study = handmade
    maps = maps_of(plot_study(model, draw_prompts(model), study))
    for kind in ("zero", "mean"):
        limits = [maps[f"change of loss({prompt}), {kind}"].images[0].get_clim() for prompt in "rc"]
        assert limits[0] == limits[1]


def test_a_map_of_zeros_has_no_scale_and_noise_is_pale(handmade):
    model, study = handmade
    noise = torch.linspace(-1e-4, 1e-4, B)[:, None, None].expand(B, 2, 4) + 1e-5
    changes = replace(
        study.ablations["zero"],
        change_of_delta=torch.zeros(B, 2, 4),
        in_context_share_lost=noise,
    )
    figure = plot_study(model, draw_prompts(model), replace(study, ablations={"zero": changes}))
    maps = maps_of(figure)
    assert "0 everywhere" in texts_in(maps["change of Delta, zero"])
    assert bars_of(figure).count("share of attention") == 6
    drawn = maps["ICL share lost, zero"].images[0]
    assert abs(drawn.get_array()).max() < 0.1 * drawn.get_clim()[1]


def test_layer_0_is_the_top_row_and_a_map_without_numbers_is_left_out(handmade):
    model, study = handmade
    drawn = maps_of(plot_study(model, draw_prompts(model), study))
    assert len(drawn) == 14
    for axes in drawn.values():
        bottom, top = axes.get_ylim()
        assert bottom > top
    nothing = torch.full_like(study.attention_repeats, torch.nan)
    mean = replace(study.ablations["mean"], in_context_share_lost=nothing)
    study = replace(study, ablations=study.ablations | {"mean": mean})
    left = maps_of(plot_study(model, draw_prompts(model), study))
    assert drawn.keys() - left.keys() == {"ICL share lost, mean"}


def test_the_command_writes_pictures_and_table_and_prints_the_largest(run_folder, tmp_path, capsys):
    output = tmp_path / "new" / "folder"
    arguments = [str(run_folder), "--output", str(output), "--bases", "8", "--seed", "3"]
    assert induction_study.main(arguments) == 0
    assert sorted(file.name for file in output.iterdir()) == [
        "induction.csv",
        "induction.png",
        "induction_curve.png",
    ]
    printed = capsys.readouterr().out
    model = induction_model()
    study = study_induction(model, draw_prompts(model, bases=8, seed=3))
    mean, error = (x[INDUCTION_HEAD].item() for x in mean_error(study.attention_difference))
    row = next(line for line in printed.splitlines() if line.startswith(" 1.2"))
    assert row.endswith(f"{mean:.3f} +- {error:.3f}")
    assert f"{run_folder}\n8 pieces of 8 random tokens; means +- standard errors\n" in printed
    assert "{" not in printed and max(map(len, printed.splitlines()[1:-1])) < 80
    files = [output / name for name in ("induction.png", "induction_curve.png", "induction.csv")]
    assert printed.endswith("Wrote {}, {} and {}.\n".format(*files))
    assert "needed (zero): by Delta 0.1 1.2; " in printed
    with open(output / "induction.csv", encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    steps = {"3": [], "20": []}
    for row in table:
        steps[row["step"]].append(row)
    assert len(steps["3"]) == 3 * 8 + 4
    assert len(steps["20"]) == 11 * 8 + 4
    assert len(table) == 28 + 92
    assert {(row["n"], row["length"], row["seed"], row["text"]) for row in table} == {
        ("8", "8", "3", "")
    }
    values = columns(study)
    for row in steps["20"]:
        found = mean_error(values[row["quantity"]])
        place = tuple(map(int, row["layer.head"].split("."))) if row["layer.head"] else ()
        numbers = [float(row["mean"]), float(row["standard error"])]
        assert numbers == [x[place].item() for x in found]


def test_the_command_takes_one_model_and_a_text(tmp_path):
    pretrained.save(byte_model(), tmp_path / "model")
    byte_model().tokenizer.save(tmp_path / "model")
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    text = str(tmp_path / "a.txt")
    arguments = [str(tmp_path / "model"), "--text", text, "--bases", "2", "--output"]
    assert induction_study.main([*arguments, str(tmp_path / "out")]) == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "induction.csv",
        "induction.png",
    ]
    assert "loss(text)" in (tmp_path / "out" / "induction.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--length", "9"], "2 to 8 tokens"),
        (["--text", "missing.txt"], "missing.txt cannot be read as utf-8 text"),
        (["--text", os.devnull], f"{os.devnull} is no regular file; give a text file"),
        (["--text", __file__], "this model has no tokenizer"),
    ],
)
def test_the_command_says_what_is_wrong_and_exits_with_2(
    run_folder, tmp_path, capsys, flags, message
):
    assert induction_study.main([str(run_folder), "--output", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_leaves_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert induction_study.main(["./nothere", "--output", "new/study2"]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_is_found_out_before_the_work(
    run_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(induction_study.induction, "study_induction", None)
    for name in ("induction.png", "induction_curve.png", "induction.csv"):
        (tmp_path / name).mkdir()
        assert induction_study.main([str(run_folder), "--output", str(tmp_path)]) == 2
        assert f"{name}': it is a folder" in capsys.readouterr().err
        (tmp_path / name).rmdir()


def test_ctrl_c_ends_the_command_without_a_traceback(run_folder, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(induction_study.induction, "study_induction", interrupt)
    assert induction_study.main([str(run_folder), "--output", str(tmp_path / "out")]) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_an_error(run_folder, tmp_path, capsys):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    assert induction_study.main([str(run_folder), "--output", str(tmp_path / "out")]) == 2
    assert "error: " in capsys.readouterr().err
    assert (tmp_path / "out").read_text(encoding="utf-8") == "mine"


@pytest.fixture(scope="module")
def two_runs(run_folder, tmp_path_factory):
    """Folders of two runs for 40 steps: seed 5 stopped at step 20, seed 6 at step 3."""
    folder = tmp_path_factory.mktemp("seeds")
    for seed, name in ((5, "first"), (6, "second")):
        shutil.copytree(run_folder, folder / name)
        settings = {"seed": seed, "max_iters": 40, "text": "", "merges": ""}
        (folder / name / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    shutil.rmtree(folder / "second" / "step-00000020")
    return [str(folder / "first"), str(folder / "second")]


def largest_difference(model):
    """(head, mean A(r)-A(c), standard error), the largest of all heads, one prompt at a time."""
    repeats, controls = draw_prompts(model)
    n = repeats.size(1) // 4
    differences = {(layer, head): [] for layer in range(2) for head in range(4)}
    for pair in zip(repeats, controls):
        stripes = []
        for ids in pair:
            model(ids[None], store_activations=["pattern"])
            pattern = torch.stack([*model.activations["pattern"].values()])[:, 0]  # (L,H,T,T)
            rows = range(n, 4 * n)
            stripes.append(sum(pattern[:, :, t, t - n + 1] for t in rows) / len(rows))
        for head, values in differences.items():
            values.append((stripes[0] - stripes[1])[head].item())
    head = max(differences, key=lambda head: sum(differences[head]))
    values = torch.tensor(differences[head])
    return head, values.mean().item(), values.std().item() / len(values) ** 0.5


@torch.no_grad()
def test_the_runs_are_compared_by_their_largest_head_at_every_step(two_runs, tmp_path, capsys):
    output = tmp_path / "new" / "out"
    assert induction_seeds.main([*two_runs, "--output", str(output), "--threshold", "0.2"]) == 0
    with open(output / "seeds.csv", encoding="utf-8", newline="") as file:
        header, *rows = [*csv.reader(file)]
    assert header[:5] == ["run", "seed", "step", "head", "A(r)-A(c)"]
    runs = [(two_runs[0], "5", "3"), (two_runs[0], "5", "20"), (two_runs[1], "6", "3")]
    assert [tuple(row[:3]) for row in rows] == runs
    for name, _, step, *found in rows:
        model = GPT.from_pretrained(f"{name}/step-{int(step):08}")
        head, mean, error = largest_difference(model)
        assert found[0] == "{}.{}".format(*head)
        assert [*map(float, found[1:3])] == pytest.approx([mean, error], abs=1e-6)
        study = study_induction(model, kinds=())
        saved, error = mean_error(study.loss_controls - study.loss_repeats)
        assert [*map(float, found[3:])] == pytest.approx([saved.item(), error.item()])
    printed = capsys.readouterr().out
    assert (
        f"seed 5 ({two_runs[0]}), up to step 20 of 40\n  passed: head 1.2 at step 20, " in printed
    )
    assert "the step measured before: 3\n  leads: head 1.2, " in printed
    assert f"seed 6 ({two_runs[1]}), up to step 3 of 40\n  passed: none\n" in printed


def test_the_picture_of_the_runs_has_a_line_for_each_as_far_as_it_went(two_runs):
    runs = {name: induction_seeds.read_run(name, None, B) for name in two_runs}
    above, below = induction_seeds.plot_runs(runs, 0.2, "Two runs").axes
    labels = ["seed 5, step 20 of 40", "seed 6, step 3 of 40"]
    assert [text.get_text() for text in above.get_legend().get_texts()] == labels
    for axes in (above, below):
        steps = [bars.lines[0].get_xdata() for bars in axes.containers]
        assert [list(line) for line in steps] == [[3, 20], [3]]


def test_what_is_no_run_is_refused_and_leaves_no_folder(two_runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    cases = [
        ([two_runs[0], str(tmp_path / "empty")], "has no run with step-N folders"),
        ([f"{two_runs[0]}/step-00000003"], "files that are not of a training run"),
        ([two_runs[0], "--text", "missing.txt"], "missing.txt cannot be read"),
        ([two_runs[0], "--length", "9"], "2 to 8 tokens"),
    ]
    for arguments, message in cases:
        assert induction_seeds.main([*arguments, "--output", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
