"""Neurons against full sorts and sums of all activations, and runs of the public forward.

And against neurons built by hand.
"""

import copy
import gc
import re
from dataclasses import astuple

import pytest
import torch

from mingpt.bpe import BPETokenizer, Encoder
from mingpt.interpretability import windows
from mingpt.interpretability.activation_patching import ablate_component
from mingpt.interpretability.neuron_analysis import (
    Example,
    TopExamples,
    activation_stats,
    important_neurons,
    neuron_logit_weights,
    top_activating_examples,
)
from mingpt.model import GPT, GPTConfig, Patch

L, H, D, V, N, BLOCK = 4, 3, 7, 11, 13, 6
RIGHT, WRONG = 3, 5


def make_model(dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    sizes = {
        "n_layer": L,
        "n_head": H,
        "n_embd": H * D,
        "vocab_size": V,
        "block_size": BLOCK,
        "n_inner": N,
    }
    model = GPT(GPTConfig(**sizes | options)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def with_tokenizer(model):
    model.tokenizer = BPETokenizer(Encoder([]))
    return model


def make_texts(lengths=(3, 14, 1, 6, 7, 2, 12, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(V, (length,), generator=generator) for length in lengths]


def windows_of(texts):
    """[(text, start, ids)]: the definition of the windows."""
    cut = [
        (number, start, ids[start : start + BLOCK])
        for number, ids in enumerate(texts)
        for start in range(0, 99, BLOCK)
    ]
    return [window for window in cut if len(window[2])]


def activations(model, ids, site="mlp_post"):
    """(L,T,.) of one window by itself, through the public forward."""
    model(ids[None], store_activations=[site])
    return torch.stack([model.activations[site][layer][0] for layer in range(L)])


def by_full_sort(model, layer, neuron, texts, k, around):
    """All windows one by one, every activation kept, sorted at the end."""
    found = []
    for text, start, ids in windows_of(texts):
        acts = activations(model, ids)[layer, :, neuron]
        peak = acts.argmax().item()
        shown = range(max(0, peak - around), min(len(ids), peak + around + 1))
        near = [str(ids[i].item()) for i in shown], [acts[i].item() for i in shown]
        found.append((acts[peak].item(), text, start + peak, peak - shown[0], *near))
    return sorted(found, key=lambda each: -each[0])[:k]


# Strongest examples


@pytest.mark.parametrize("at_once", [1, 9, 20, 4096])  # one window at a time, few, many, all
@pytest.mark.parametrize(("k", "around"), [(1, 0), (3, 2), (99, 16)])
def test_the_examples_are_those_of_a_full_sort(k, around, at_once, monkeypatch):
    monkeypatch.setattr(windows, "AT_ONCE", at_once)
    model, texts, neurons = make_model(), make_texts(), [5, 0, 12, 7]
    result = top_activating_examples(model, 2, neurons, (text for text in texts), k, around)
    assert list(result.examples) == [(2, neuron) for neuron in neurons]
    for neuron in neurons:
        expected = by_full_sort(model, 2, neuron, texts, k, around)
        assert len(result[2, neuron]) == len(expected) == min(k, len(windows_of(texts)))
        for found, right in zip(result[2, neuron], expected):
            assert astuple(found)[1:5] == right[1:5]
            assert found.activation == found.activations[found.peak]
            assert found.activation == pytest.approx(right[0], abs=1e-12)
            # fp64: sums in another order
            assert found.activations == pytest.approx(right[5], abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layer_of_one_neuron_with_the_rows_of_one_tensor(dtype):
    model, ids = make_model(dtype), torch.stack(make_texts((6, 6, 6)))
    for layer in range(L):
        found = top_activating_examples(model, layer, 3, ids, 3)[layer, 3]
        expected = by_full_sort(model, layer, 3, list(ids), 3, 16)
        tolerance = (
            1e-5 if dtype is torch.float32 else 0.05
        )  # batched sums round otherwise; bf16 has 8 bits
        assert [each.activation for each in found] == pytest.approx(
            [each[0] for each in expected], abs=tolerance
        )


def test_of_equal_activations_the_earlier_is_kept():
    text = torch.tensor([4, 2])
    found = top_activating_examples(make_model(), 1, 2, [text] * 7, k=3)[1, 2]
    assert [each.text for each in found] == [0, 1, 2]


def test_no_token_of_a_text_is_skipped_or_changed():
    model, texts = with_tokenizer(make_model(vocab_size=257)), ["abc\n", "", "hello </script>", "z"]
    found = top_activating_examples(model, 0, 1, iter(texts), k=99)[0, 1]
    placed = {(each.text, each.position - each.peak): "".join(each.tokens) for each in found}
    assert placed == {
        (0, 0): "abc\n",
        (2, 0): "hello ",
        (2, 6): "</scri",
        (2, 12): "pt>",
        (3, 0): "z",
    }
    [one] = top_activating_examples(model, 0, 1, "hello", k=9)[0, 1]  # a str is one text
    assert "".join(one.tokens) == "hello" and one.text == 0


@pytest.mark.parametrize(
    "analysis", [lambda *a: top_activating_examples(a[0], 1, [0, 4], a[1], k=2), activation_stats]
)
def test_texts_are_asked_for_one_by_one_and_not_kept(analysis, monkeypatch):
    monkeypatch.setattr(windows, "AT_ONCE", 3 * BLOCK)
    model, asked, ahead, alive = make_model(), [0], [], []

    def stream(texts):
        for text in make_texts([BLOCK]) * texts:
            asked[0] += 1
            yield text.clone()

    def at_each_run(module, inputs, output):
        ahead.append(asked[0] - 3 * len(ahead))
        alive.append(
            sum(type(thing) is torch.Tensor for thing in gc.get_objects())
            if len(ahead) in (3, 40)
            else 0
        )

    hook = model.transformer.wte.register_forward_hook(at_each_run)
    analysis(model, stream(120))
    hook.remove()
    assert len(ahead) == 40 and max(ahead) == 4  # the three that run, and the one that did not fit
    assert (
        0 < alive[39] <= alive[2] + 3
    )  # after 120 texts no more tensors than after 9, but for a window of each neuron


@pytest.mark.parametrize("at_once", [1, 9, 14, 50])
def test_no_more_tokens_run_together_than_allowed(at_once, monkeypatch):
    monkeypatch.setattr(windows, "AT_ONCE", at_once)
    model, sizes = make_model(), []
    hook = model.transformer.wte.register_forward_hook(
        lambda module, inputs, output: sizes.append(inputs[0].shape)
    )
    activation_stats(model, make_texts())
    hook.remove()
    assert all(at_once >= B * T or B == 1 for B, T in sizes)
    assert sum(B for B, _ in sizes) == len(windows_of(make_texts())) and (len(sizes) == 2) == (
        at_once == 50
    )


def test_a_neuron_built_by_hand_is_found_by_what_it_reads_and_writes():
    model = make_model(n_layer=L, activation_function="relu")
    layer, neuron, read, written = 2, 5, 7, 4
    for name, parameter in model.named_parameters():
        torch.nn.init.constant_(parameter, 1.0 if "ln_" in name and "weight" in name else 0.0)
    with torch.no_grad():
        model.transformer.wte.weight.copy_(torch.eye(V, H * D))
        model.lm_head.weight.copy_(torch.eye(V, H * D))
        model.transformer.h[layer].mlp.c_fc.weight[neuron, read] = 1
        model.transformer.h[layer].mlp.c_proj.weight[written, neuron] = 2
    texts = [
        torch.tensor(ids) for ids in ([1, 2, 3], [0, read, 1], [9], [6, 6, 6, 6, 6, 6, 8, read])
    ]
    found = top_activating_examples(model, layer, list(range(N)), texts, k=2)
    assert [
        (each.text, each.position, each.tokens[each.peak]) for each in found[layer, neuron]
    ] == [
        (1, 1, "7"),
        (3, 7, "7"),
    ]
    weights = neuron_logit_weights(model, layer, neuron, k=1)
    assert weights.promotes[0][0] == str(written) and weights.matches[0][0] == str(read)
    important = important_neurons(model, torch.tensor([[0, 1, read]]), written, read, k=3)
    assert (
        important.neurons[0] == (layer, neuron)
        and important.direct[0] > 1
        and (important.direct[1:] == 0).all()
    )
    stats = activation_stats(model, texts)
    assert stats.dead.sum() == L * N - 1 and not stats.dead[layer, neuron]
    assert stats.active[layer, neuron] == 2 / 15


def test_examples_show_as_a_table_of_the_text_up_to_the_largest():
    model = with_tokenizer(make_model(vocab_size=257, block_size=20))
    found = top_activating_examples(model, 1, [3, 4], ["some text", "and another one"], k=2)
    head, *rows = repr(found).splitlines()
    assert head.split() == ["layer.neuron", "activation", "text", "position", "tokens"]
    assert len(rows) == 4
    for row, example in zip(rows[2:], found[1, 4]):
        assert row.startswith("    1.4 ")
        shown = "".join(example.tokens[max(0, example.peak - 5) : example.peak + 1])
        assert row.endswith(
            f"{example.activation:.3f}{example.text:6}{example.position:10}  {shown!r}"
        )
    token = example.tokens[example.peak]
    place = f"text {example.text}, position {example.position}"
    assert repr(example) == f"Example({example.activation:.3f} at {token!r}, {place})"


# Statistics


@pytest.mark.parametrize("at_once", [1, 20, 4096])
def test_the_statistics_are_those_of_all_activations_together(at_once, monkeypatch):
    monkeypatch.setattr(windows, "AT_ONCE", at_once)
    model, texts = make_model(), make_texts()
    acts = torch.cat(
        [activations(model, ids) for _, _, ids in windows_of(texts)], 1
    )  # (L,tokens,N)
    stats = activation_stats(model, iter(texts))
    assert stats.tokens == acts.size(1) == sum(map(len, texts))
    torch.testing.assert_close(stats.mean, acts.mean(1), rtol=0, atol=1e-12)
    variance = torch.var(acts, 1, correction=0)
    torch.testing.assert_close(stats.variance, variance, rtol=0, atol=1e-12)
    torch.testing.assert_close(stats.active, (acts > 0).double().mean(1), rtol=0, atol=1e-12)
    assert torch.equal(stats.dead, ~(acts > 0).any(1))
    assert stats.dead.any() and not stats.dead.all()


def test_the_variance_holds_where_the_mean_is_a_thousand_deviations():
    model = make_model(torch.float32, activation_function="relu")
    for block in model.transformer.h:
        torch.nn.init.constant_(block.mlp.c_fc.bias, 1000.0)
        torch.nn.init.normal_(block.mlp.c_proj.weight, std=1e-5)
    texts = make_texts()
    acts = torch.cat([activations(model, ids) for _, _, ids in windows_of(texts)], 1).double()
    expected = torch.var(acts, 1, correction=0)
    assert (acts.mean(1) / expected.sqrt()).min() > 200
    # the fp32 activations themselves are known to 6e-5 at 1000, so their variance of about 1 to
    # some 1e-4
    variance = activation_stats(model, texts).variance
    torch.testing.assert_close(variance, expected, rtol=1e-3, atol=0)


# Weights


def test_the_logit_weights_are_the_slope_of_the_logits_at_a_fixed_scale():
    model, layer, neuron = make_model(), 1, 6
    ln_f, out = model.transformer.ln_f, model.transformer.h[layer].mlp.c_proj.weight[:, neuron]
    stream = torch.randn(H * D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def logits(x):  # ln_f with the scale that it has at `stream`
        fixed = (stream.var(correction=0) + ln_f.eps).sqrt()
        return model.lm_head(ln_f.weight * (x - x.mean()) / fixed + ln_f.bias), fixed

    assert torch.allclose(logits(stream)[0], model.lm_head(ln_f(stream)), atol=1e-12)
    slope = (logits(stream + out)[0] - logits(stream)[0]) * logits(stream)[1]
    slope = slope - slope.mean()
    order = slope.argsort(descending=True).tolist()
    found = neuron_logit_weights(model, layer, neuron, k=4)
    assert [token for token, _ in found.promotes] == [str(i) for i in order[:4]]
    assert [token for token, _ in found.suppresses] == [str(i) for i in order[::-1][:4]]
    for token, value in found.promotes + found.suppresses:
        assert value == pytest.approx(slope[int(token)].item(), abs=1e-12)


def test_matches_are_mlp_pre_of_a_stream_that_is_the_embedding():
    model, layer, neuron = make_model(), 2, 9
    found = dict(neuron_logit_weights(model, layer, neuron, k=99).matches)
    assert len(found) == V
    for token in range(V):
        alone = Patch(layer, 0, model.transformer.wte.weight[token], "resid_mid")
        model(torch.tensor([[0]]), store_activations=["mlp_pre"], patch_params=alone)
        assert found[str(token)] == pytest.approx(
            model.activations["mlp_pre"][layer][0, 0, neuron].item(), abs=1e-12
        )
    assert list(found.values()) == sorted(found.values(), reverse=True)


# Contributions and ablations


def frozen_read(model, ids, other):
    """f(vector): what a part of the final stream adds to the logit (difference).

    By autograd, the scale detached.
    """
    model(ids, store_activations=True)
    end = model.layer_activations[L - 1][0, -1].clone().requires_grad_()
    ln_f = model.transformer.ln_f
    normed = (
        ln_f.weight * (end - end.mean()) / (end.var(correction=0) + ln_f.eps).sqrt().detach()
        + ln_f.bias
    )
    logits = model.lm_head(normed)
    value = logits[RIGHT] - (0 if other is None else logits[other])
    return lambda part: part @ torch.autograd.grad(value, end, retain_graph=True)[0]


@pytest.mark.parametrize("other", [None, WRONG])
def test_direct_contributions_and_biases_are_the_mlps_contribution(other):
    model, ids = make_model(), make_texts((5,))[0][None]
    read = frozen_read(model, ids, other)
    result = important_neurons(model, ids, RIGHT, other, k=9999)
    assert sorted(result.neurons) == [(layer, neuron) for layer in range(L) for neuron in range(N)]
    acts = activations(model, ids[0])[:, -1]
    for (layer, neuron), activation, direct in zip(
        result.neurons, result.activation, result.direct
    ):
        assert activation == pytest.approx(acts[layer, neuron].item(), abs=1e-12)
        out = model.transformer.h[layer].mlp.c_proj.weight[:, neuron]
        assert direct.item() == pytest.approx(read(acts[layer, neuron] * out).item(), abs=1e-12)
    biases = sum(read(block.mlp.c_proj.bias) for block in model.transformer.h)
    mlps = read(activations(model, ids[0], "mlp_out")[:, -1].sum(0))
    assert (result.direct.sum() + biases).item() == pytest.approx(mlps.item(), abs=1e-11)
    assert (result.direct.abs().diff() <= 0).all()


def test_the_ablations_are_those_of_the_public_forward():
    model, ids = make_model(), make_texts((5,))[0][None]
    for other in (None, WRONG):
        result = important_neurons(model, ids, RIGHT, other, k=7)
        intact = model(ids)[0][0, -1].detach()
        assert len(result.neurons) == len(result.ablation) == 7
        columns = (result.neurons, result.ablation, result.direct, result.disagree)
        for (layer, neuron), ablation, direct, apart in zip(*columns):
            mask = torch.arange(N) != neuron
            ablated = model(
                ids, patch_params=Patch(layer, None, lambda x, mask=mask: x * mask, "mlp_post")
            )[0][0, -1]
            lost = intact - ablated.detach()
            lost = lost[RIGHT] - (0 if other is None else lost[other])
            assert ablation.item() == pytest.approx(lost.item(), abs=1e-12)
            small, large = sorted([direct.item(), ablation.item()], key=abs)
            assert apart == (small / large < 0.5)
            if other is not None:
                same = -ablate_component(
                    model, ids, (layer, "neuron", neuron), answers=(RIGHT, WRONG)
                )
                assert ablation.item() == pytest.approx(same, abs=1e-12)
    assert 0 < sum(important_neurons(model, ids, RIGHT, WRONG, k=52).disagree) < 52


def test_direct_parts_in_fp16_are_right_where_the_stream_is_large():
    """A deviation above 256 has a variance above 65504, where fp16 ends."""
    model, ids = make_model(torch.float16), make_texts((5,))[0][None]
    model.transformer.h[1].mlp.c_proj.weight.data *= 3000
    found = important_neurons(model, ids, RIGHT, WRONG, k=4)
    right = important_neurons(copy.deepcopy(model).double(), ids, RIGHT, WRONG, k=4)
    assert found.neurons == right.neurons and right.direct.abs().max() > 0.1
    for name in ("direct", "ablation"):
        values = getattr(found, name).double()
        # fp16 has 11 bits, and rounds the stream by some of them.
        torch.testing.assert_close(values, getattr(right, name), rtol=0.05, atol=0.01)


def test_the_table_says_where_the_two_disagree():
    model = with_tokenizer(make_model(vocab_size=257))
    result = important_neurons(model, "abc", "d", "e", k=20)
    assert repr(result) == str(result)
    head, *rows = str(result).splitlines()
    assert head.split() == ["layer.neuron", "activation", "direct", "ablation"]
    columns = vars(result).values()
    for row, (layer, neuron), *values, apart in zip(rows, *columns):
        at, *shown = row.split()
        assert at == f"{layer}.{neuron}" and shown[3:] == ["disagree"] * int(apart)
        assert [float(x) for x in shown[:3]] == pytest.approx([x.item() for x in values], abs=6e-4)
    assert len(rows) == 20 and 0 < sum(result.disagree) < 20


# What holds for all


def test_nothing_of_the_callers_is_touched():
    model, texts = make_model(torch.float32), make_texts()
    model(texts[0][None], store_activations=["z"])
    kept, logits = dict(model.activations["z"]), model.last_token_logits
    weights, before = (
        {n: p.clone() for n, p in model.named_parameters()},
        [text.clone() for text in texts],
    )
    random = torch.get_rng_state()
    top_activating_examples(model, 0, 1, texts)
    activation_stats(model, texts)
    neuron_logit_weights(model, 0, 1)
    important_neurons(model, texts[0][None], RIGHT)
    assert (
        model.activations["z"] == kept
        and model.last_token_logits is logits
        and torch.is_grad_enabled()
    )
    assert all(torch.equal(p, weights[n]) and p.grad is None for n, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), random) and all(map(torch.equal, texts, before))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: top_activating_examples(m, 4, 0, t), "no layer .4.; the layers are 0 to 3"),
        (lambda m, t: top_activating_examples(m, True, 0, t), "no layer .True."),
        (
            lambda m, t: top_activating_examples(m, 0, [1, 13], t),
            "no neuron .1, 13.; the neurons are 0 to 12",
        ),
        (lambda m, t: top_activating_examples(m, 0, [], t), "no neuron"),
        (lambda m, t: neuron_logit_weights(m, 0, -1), "no neuron .-1."),
        (lambda m, t: top_activating_examples(m, 0, 0, t, k=0), "k must be at least 1"),
        (lambda m, t: top_activating_examples(m, 0, 0, t, around=-1), "around at least 0"),
        (lambda m, t: activation_stats(m, []), "no tokens"),
        (lambda m, t: activation_stats(m, "abc"), "no tokenizer"),
        (
            lambda m, t: activation_stats(m, [[1, 2], [3, 11]]),
            r"text 1 must be .* 0 to 10; got \[3, 11\]",
        ),
        (lambda m, t: activation_stats(m, torch.tensor([1, 2])), "text 0 must be"),
        (lambda m, t: activation_stats(m, [torch.tensor([0.5])]), "text 0 must be"),
        (lambda m, t: activation_stats(m.train(), t), "training mode"),
        (lambda m, t: important_neurons(m.train(), t[0][None], 1), "training mode"),
        (lambda m, t: important_neurons(m, torch.stack([t[3], t[3]]), 1), "give one text"),
        (lambda m, t: important_neurons(m, t[3][None], 11), "no token"),
        (
            lambda m, t: top_activating_examples(m, 0, 0, t).plot("page.png"),
            "must end in one of .html",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_with_a_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_model(), make_texts())


def test_weights_that_give_no_numbers_are_refused():
    model = make_model()
    torch.nn.init.constant_(model.transformer.h[1].mlp.c_fc.bias, float("nan"))
    for analysis in (
        lambda: top_activating_examples(model, 1, 0, make_texts()),
        lambda: activation_stats(model, make_texts()),
    ):
        with pytest.raises(ValueError, match="NaN"):
            analysis()


# The page


def test_the_page_shows_the_tokens_and_answers_mouse_and_keys(browser, tmp_path):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.select import Select

    model = with_tokenizer(make_model(vocab_size=257, block_size=40))
    texts = ["</script><img src=x onerror=alert(1)>", "a\nb\t&amp; 'é'", "one"]
    result = top_activating_examples(model, 1, [2, 9], texts, k=3, around=99)
    assert result.plot(tmp_path / "page.html").path == tmp_path / "page.html"
    browser.get((tmp_path / "page.html").as_uri())

    def tokens(row):
        return browser.find_elements(
            "css selector", f".examples li:nth-child({row + 1}) .tokens span"
        )

    def readout():
        return browser.find_element("class name", "readout").text

    most = max(abs(value) for example in result[1, 2] for value in example.activations)
    for row, example in enumerate(result[1, 2]):
        shown = [span.get_property("textContent") for span in tokens(row)]
        written = {"\n": "\\n", "\t": "\\t", " ": "␣"}
        assert shown == [written.get(t, t) for t in example.tokens]
        for span, value in zip(tokens(row), example.activations):
            end, share = ((230, 159, 0) if value > 0 else (86, 180, 233)), abs(value) / most
            colour = [
                int(x)
                for x in re.findall(r"\d+", span.value_of_css_property("background-color"))[:3]
            ]
            assert colour == pytest.approx([255 + (c - 255) * share for c in end], abs=1)
    assert not browser.find_elements("tag name", "img")

    first = result[1, 2][0]
    ActionChains(browser).move_to_element(tokens(0)[1]).perform()
    assert readout().endswith(f"{first.activations[1]:.4f}")
    browser.execute_script("document.querySelector('select').focus()")
    ActionChains(browser).send_keys(Keys.TAB).perform()
    assert readout().endswith(f"{first.activation:.4f}")
    ActionChains(browser).send_keys(Keys.HOME, Keys.ARROW_DOWN).perform()
    below = result[1, 2][1]
    assert readout().endswith(f"{below.activations[0]:.4f}")
    ActionChains(browser).send_keys(Keys.END).perform()
    assert readout().endswith(f"{below.activations[-1]:.4f}")
    ActionChains(browser).send_keys(Keys.ARROW_UP, Keys.ARROW_LEFT).perform()
    Select(browser.find_element("tag name", "select")).select_by_visible_text("1.9")
    assert f"{result[1, 9][0].activation:.3f}" in browser.find_element("class name", "where").text
    assert not browser.get_log("browser")


def test_a_window_that_is_cut_ends_in_an_ellipsis(browser, tmp_path):
    model = with_tokenizer(make_model(vocab_size=257, block_size=8))
    texts = ["abcdefghijk", "abc"]  # the first is two windows
    result = top_activating_examples(model, 1, 2, texts, k=3, around=1)
    browser.get(result.plot(tmp_path / "page.html").path.as_uri())
    lines = browser.find_elements("class name", "tokens")
    assert len(lines) == 3
    for line, example in zip(lines, result[1, 2]):
        text = texts[example.text]
        shown = "".join(example.tokens)
        start = example.position - example.peak
        before = "… " if start else ""
        after = " …" if start + len(shown) < len(text) else ""
        assert line.text == f"{before}{shown}{after}"
    assert any("…" in line.text for line in lines)


def test_the_scale_goes_from_the_smallest_to_the_largest_and_no_further(browser, tmp_path):
    result = top_activating_examples(make_model(), 1, 2, make_texts())
    values = [value for example in result[1, 2] for value in example.activations]
    browser.get(result.plot(tmp_path / "page.html").path.as_uri())
    low, high = (float(browser.find_element("class name", end).text) for end in ("low", "high"))
    assert low == pytest.approx(min(0, *values), abs=0.006)
    assert high == pytest.approx(max(0, *values), abs=0.006)
    assert low >= -0.17  # GELU's smallest value


def test_a_page_of_very_many_tokens_is_shown(browser, tmp_path):
    # More than a browser takes as the arguments of one call.
    tokens = ["a"] * 130_000
    example = Example(0.5, 0, 3, 3, tokens, [0.5] * len(tokens), before=False, after=False)
    page = TopExamples("a model", {(0, 0): [example]}).plot(tmp_path / "page.html")
    browser.get(page.path.as_uri())
    assert browser.find_element("class name", "readout").text == '"a" at 3: 0.5000'
    count = "return document.querySelectorAll('.tokens span').length"
    assert browser.execute_script(count) == len(tokens)
    assert not browser.get_log("browser")


def test_a_value_that_rounds_to_zero_has_no_sign(browser, tmp_path):
    example = Example(-1e-5, 0, 0, 0, ["a"], [-1e-5], before=False, after=False)
    page = TopExamples("a model", {(0, 0): [example]}).plot(tmp_path / "page.html")
    browser.get(page.path.as_uri())
    assert browser.find_element("class name", "where").text.startswith("0.000,")
    assert browser.find_element("class name", "readout").text == '"a" at 0: 0.0000'
    assert browser.find_element("class name", "low").text == "0.00"
