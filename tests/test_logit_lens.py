"""The lens against transformers' hidden states through its own norm and output matrix.

Attribution against its sum, TransformerLens's numbers and runs that leave a part out of the last
stream.
"""

import copy
import json
import math

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from mingpt.bpe import BPETokenizer, Encoder
from mingpt.interpretability.logit_lens import (
    analyze,
    compare_predictions,
    compare_to_bigram,
    logit_attribution,
    measure_convergence,
    plot_evolution,
)
from mingpt.model import GPT, GPTConfig

T, L, H, D, V = 5, 4, 3, 7, 11
SHAPES = {  # settings of GPT2Config that differ from L, H, D, V
    "tied": {},
    "untied, narrow relu MLP": {
        "tie_word_embeddings": False,
        "n_inner": 13,
        "activation_function": "relu",
    },
    "one layer, two heads": {"n_layer": 1, "n_head": 2, "n_embd": 10},
    "one head, scaled by layer": {
        "n_head": 1,
        "n_embd": 9,
        "scale_attn_by_inverse_layer_idx": True,
    },
    "unscaled, wide epsilon": {
        "scale_attn_weights": False,
        "layer_norm_epsilon": 1e-2,
        "n_inner": 50,
    },
}
IDS = torch.randint(V, (1, T), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=SHAPES)
def pair(request, tmp_path):
    """(our model, transformers' own) with the same random weights, biases and layer norms too."""
    torch.manual_seed(0)
    sizes = {"n_layer": L, "n_head": H, "n_embd": H * D, "vocab_size": V, "n_positions": 2 * T}
    config = GPT2Config(**sizes | {"bos_token_id": 0, "eos_token_id": 0} | SHAPES[request.param])
    theirs = GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    theirs.save_pretrained(tmp_path)
    return GPT.from_pretrained(tmp_path), theirs


def make_model(seed=0, **settings):
    torch.manual_seed(seed)
    sizes = {
        "n_layer": L,
        "n_head": H,
        "n_embd": H * D,
        "vocab_size": V,
        "block_size": 2 * T,
        "n_inner": 13,
    }
    model = GPT(GPTConfig(**sizes | settings)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("ln_" in name and "weight" in name), std=0.4)
    return model


def text_model(**settings):
    tokenizer = BPETokenizer(Encoder([]))
    model = make_model(**{"vocab_size": tokenizer.n_vocab, "block_size": 64} | settings)
    model.tokenizer = tokenizer
    return model


def unsorted(ids, values):
    """(..,V) in the order of the ids, from the V most probable."""
    return torch.empty_like(values).scatter(-1, ids, values)


@torch.no_grad()
def test_every_layer_reads_as_transformers_hidden_states_through_its_own_norm(pair):
    model, theirs = pair
    hidden = theirs(
        IDS, output_hidden_states=True
    ).hidden_states  # the last one is through ln_f already
    logits = [theirs.lm_head(theirs.transformer.ln_f(x)) for x in hidden[:-1]] + [
        theirs.lm_head(hidden[-1])
    ]
    expected = torch.cat(logits)  # (L+1,T,V)
    final = expected[-1].log_softmax(-1)
    for site, rows in (("resid_pre", expected[:-1]), ("resid_post", expected[1:])):
        found, log_probs = analyze(model, IDS, site, k=V), rows.log_softmax(-1)
        scale = rows.abs().max().item()  # fp32 through L blocks, in another order of sums
        torch.testing.assert_close(
            unsorted(found.ids, found.logits), rows, rtol=0, atol=2e-5 * scale
        )
        torch.testing.assert_close(
            unsorted(found.ids, found.probability), log_probs.exp(), rtol=1e-3, atol=1e-6
        )
        entropy = torch.distributions.Categorical(logits=rows).entropy()
        torch.testing.assert_close(found.entropy, entropy, rtol=1e-3, atol=1e-4)
        kl = F.kl_div(log_probs, final.expand_as(log_probs), log_target=True, reduction="none").sum(
            -1
        )
        torch.testing.assert_close(found.kl, kl, rtol=1e-3, atol=1e-4)
        assert (found.logits.diff(dim=-1) <= 0).all() and (found.kl >= 0).all()


def test_the_last_row_is_the_public_forward_to_the_bit(pair):
    model, _ = pair
    found = analyze(model, IDS, k=V)
    assert unsorted(found.ids, found.logits)[-1].equal(model(IDS)[0][0])
    assert (found.kl[-1] == 0).all()
    model.double()
    assert unsorted((found := analyze(model, IDS, k=V)).ids, found.logits)[-1].equal(
        model(IDS)[0][0]
    )
    names = GPT.from_pretrained("names")
    text = "Michelle Jones was a top-notch student. Michelle"
    found, logits = analyze(names, text), names(names.tokenizer(text))[0][0]
    assert found.logits[-1].equal(logits.topk(5).values) and found.logits.shape == (12, 11, 5)


@torch.no_grad()
def test_between_the_blocks_halves_and_for_what_a_layer_adds():
    model = make_model()
    model(IDS, store_activations=["resid_mid", "attn_out", "mlp_out"])
    kept = model.activations
    for site in ("resid_mid", "attn_out", "mlp_out"):
        x = torch.cat(list(kept[site].values()))  # (L,T,C)
        normed = (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        normed = normed * model.transformer.ln_f.weight + model.transformer.ln_f.bias
        found = analyze(model, IDS, site, k=V)
        torch.testing.assert_close(
            unsorted(found.ids, found.logits), normed @ model.lm_head.weight.T
        )
        final = model(IDS)[0].log_softmax(-1)
        read = unsorted(found.ids, found.logits).log_softmax(-1)
        torch.testing.assert_close(
            found.kl, (final.exp() * (final - read)).sum(-1), rtol=1e-4, atol=1e-5
        )


def test_a_hand_built_model_makes_up_its_mind_at_the_layer_where_its_mlp_writes_the_answer():
    model = make_model(n_embd=V, n_head=1, tie_word_embeddings=True)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        model.transformer.wte.weight.copy_(torch.eye(V))
        model.transformer.h[2].mlp.c_proj.bias[7] = 30.0  # after layer 2 all say 7
    found = analyze(model, IDS, k=1)
    assert found.ids[:2, :, 0].equal(IDS.expand(2, -1)) and (found.ids[2:] == 7).all()
    convergence = measure_convergence(model, IDS)
    expected = torch.where(IDS[0] == 7, 0, 2)
    assert convergence.layer.equal(expected)
    assert convergence.kl_layer.equal(torch.full((T,), 2))
    assert convergence.probability.equal(found.probability[expected, range(T), 0])


@pytest.mark.parametrize("threshold", [0.1, 1.0, 0])
def test_convergence_is_found_as_by_going_down_from_the_top(threshold):
    for seed in range(4):
        model = make_model(seed)
        found, convergence = analyze(model, IDS), measure_convergence(model, IDS, threshold)
        for t in range(T):
            layer = kl_layer = L
            while layer > 0 and found.ids[layer - 1, t, 0] == found.ids[-1, t, 0]:
                layer -= 1
            while kl_layer > 0 and found.kl[kl_layer - 1, t] < threshold:
                kl_layer -= 1
            assert (convergence.layer[t], convergence.kl_layer[t]) == (layer, kl_layer)
            assert convergence.probability[t] == found.probability[layer, t, 0]


def test_the_bigram_divergence_is_that_of_counting_pair_by_pair():
    model = make_model()
    rows = [[1, 2, 1, 2, 5], [3], [2, 1, 1, 9, 4, 1, 2]]
    pairs = [pair for row in rows for pair in zip(row, row[1:])]
    unigram = [sum(b == token for _, b in pairs) / len(pairs) for token in range(V)]
    expected = [0.0] * L
    for row in rows:
        found = analyze(model, torch.tensor([row]), k=V)
        shares = unsorted(found.ids, found.probability)
        for t, a in enumerate(row[:-1]):
            n = sum(first == a for first, _ in pairs)
            p = [(pairs.count((a, b)) + unigram[b]) / (n + 1) for b in range(V)]
            for l in range(L):
                expected[l] += sum(
                    p[b] * math.log(p[b] / shares[l, t, b]) for b in range(V) if p[b]
                ) / len(pairs)
    found = compare_to_bigram(model, [torch.tensor([row]) for row in rows])
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    together = compare_to_bigram(model, torch.tensor([rows[0], rows[2][:5]]))
    torch.testing.assert_close(
        together, compare_to_bigram(model, [torch.tensor([row]) for row in (rows[0], rows[2][:5])])
    )


def test_a_model_that_is_the_bigram_table_has_no_divergence_from_it():
    model = make_model(n_embd=V, n_head=1)
    ids = torch.tensor([[0, 1, 0, 2, 0, 1, 3, 3, 0]])
    pairs = list(zip(ids[0].tolist(), ids[0, 1:].tolist()))
    table = torch.full((V, V), 1e-12) + torch.tensor(
        [sum(b == t for _, b in pairs) / len(pairs) for t in range(V)]
    )
    for a, b in pairs:
        table[a, b] += 1
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        model.transformer.wte.weight.copy_(torch.eye(V))
        size = (
            1 / V * (1 - 1 / V) + 1e-5
        ) ** -0.5  # of a one-hot vector after the norm, which takes its mean away
        model.transformer.ln_f.bias.fill_(size / V)  # and here it comes back
        model.lm_head.weight.copy_((table / table.sum(-1, keepdim=True)).log().T / size)
    torch.testing.assert_close(compare_to_bigram(model, ids), torch.zeros(L), rtol=0, atol=1e-5)


def test_two_texts_side_by_side_and_where_they_part():
    model = text_model()
    texts = ["abcabd", "xyabcaed"]
    found = compare_predictions(model, texts)
    alone = [analyze(model, text) for text in texts]
    for t in range(-6, 0):
        differ = [l for l in range(L) if alone[0].ids[l, t, 0] != alone[1].ids[l, t, 0]]
        assert found.layer[t] == (differ[0] if differ else L)
    lines = found.table.splitlines()
    assert len(lines) == L + 1 and lines[0].split() == ["layer", "at", "'d'", "at", "'d'"]
    for layer, line in enumerate(lines[1:]):
        assert line.startswith(f"{layer} ")
        assert all(repr(each.top[layer][-1][0]) in line for each in alone)
        assert line.endswith("<- apart") == (layer == found.layer[-1])
    same = compare_predictions(model, ["abcx", "abcy", "abcz"]).layer
    assert same[:3].tolist() == [L] * 3 and same[3] < L  # attention looks only backwards
    with torch.no_grad():  # now each token is by itself
        model.transformer.wpe.weight.zero_()
        for block in model.transformer.h:
            block.attn.c_proj.weight.zero_()
    # from the end only "b" and "e" are not the same
    by_itself = compare_predictions(model, texts).layer
    assert by_itself[[0, 1, 2, 3, 5]].tolist() == [L] * 5 and by_itself[4] < L


@torch.no_grad()
def test_the_parts_sum_to_the_whole_on_every_shape(pair):
    model, _ = pair
    logits = model(IDS)[0][0, -1]
    for layer in range(model.config.n_layer):
        for other, whole in ((None, logits[3]), (5, logits[3] - logits[5])):
            for neurons in (None, layer):
                found = logit_attribution(model, IDS, 3, other, neurons)
                torch.testing.assert_close(found.total, whole, rtol=0, atol=1e-4)
                parts = [x for name, x in vars(found).items() if name != "total" and x is not None]
                assert len(parts) == (7 if neurons is None else 8)
                torch.testing.assert_close(sum(x.sum() for x in parts), whole, rtol=0, atol=1e-4)
                assert found.heads.shape == (model.config.n_layer, model.config.n_head)
        mlp = logit_attribution(model, IDS, 3, 5).mlps[layer]
        assert found.neurons.shape == (model.config.n_inner,) and found.mlps[layer] == 0
        torch.testing.assert_close(found.neurons.sum(), mlp, rtol=0, atol=1e-4)


@torch.no_grad()
def test_each_part_is_what_leaving_it_out_of_the_last_stream_takes_away():
    """By the definition, at the held scale: the stream's logit less that of it without the part."""
    model = make_model().double()
    gpt = model.transformer
    found = logit_attribution(model, IDS, 3, 5, neurons=1)
    model(IDS, store_activations=["z", "mlp_post", "mlp_out"])
    kept, stream = model.activations, model.layer_activations[L - 1][0, -1]
    scale = (stream.var(correction=0) + gpt.ln_f.eps).sqrt()

    def lost(part):
        with_and_without = torch.stack((stream, stream - part))
        normed = (with_and_without - with_and_without.mean(-1, keepdim=True)) / scale
        logits = model.lm_head(normed * gpt.ln_f.weight + gpt.ln_f.bias)
        differences = logits[:, 3] - logits[:, 5]
        return differences[0] - differences[1]

    torch.testing.assert_close(found.embedding, lost(gpt.wte.weight[IDS[0, -1]]))
    torch.testing.assert_close(found.position, lost(gpt.wpe.weight[T - 1]))
    for l, block in enumerate(gpt.h):
        for h in range(H):
            z = torch.zeros(H, D).double()
            z[h] = kept["z"][l][0, h, -1]
            part = F.linear(z.flatten(), block.attn.c_proj.weight)
            torch.testing.assert_close(found.heads[l, h], lost(part))
        torch.testing.assert_close(found.attention_biases[l], lost(block.attn.c_proj.bias))
        torch.testing.assert_close(found.mlp_biases[l], lost(block.mlp.c_proj.bias))
        if l != 1:
            part = kept["mlp_out"][l][0, -1] - block.mlp.c_proj.bias
            torch.testing.assert_close(found.mlps[l], lost(part))
    for n in range(13):
        part = kept["mlp_post"][1][0, -1, n] * gpt.h[1].mlp.c_proj.weight[:, n]
        torch.testing.assert_close(found.neurons[n], lost(part))


@torch.no_grad()
def test_the_parts_are_transformer_lenss():
    from benchmarks.make_fixtures import PATH, checkpoint

    expected = json.loads(PATH.read_text())["logit_attribution"]
    found = logit_attribution(
        checkpoint(), torch.tensor([expected["ids"]]), expected["answer"], expected["other"]
    )
    # TransformerLens counts an MLP with its bias, and the attention layers' biases together
    ours = {
        "heads": found.heads,
        "mlps": found.mlps + found.mlp_biases,
        "bias": found.attention_biases.sum(),
        "embed": found.embedding,
        "pos_embed": found.position,
        "final_bias": found.final_bias,
        "total": found.total,
    }
    for name, value in ours.items():
        torch.testing.assert_close(value, torch.tensor(expected[name]), rtol=0, atol=1e-4)


def test_texts_and_ids_are_read_alike_and_nothing_is_left_changed():
    model = text_model()
    before, kept = torch.get_rng_state(), model.last_token_logits
    ids = model.tokenizer("a</script>\n")
    found, by_ids = analyze(model, "a</script>\n"), analyze(model, ids)
    assert (
        found.tokens == list("a</script>\n")
        and found.top == by_ids.top
        and found.logits.equal(by_ids.logits)
    )
    assert found.top[1][2] == model.tokenizer.tokens(found.ids[1, 2])
    one = logit_attribution(model, "abc", "d", "e", 0)
    other = logit_attribution(model, model.tokenizer("abc"), *model.tokenizer.encode("de"), 0)
    assert all(part.equal(getattr(other, name)) for name, part in vars(one).items())
    assert (
        torch.get_rng_state().equal(before)
        and model.last_token_logits is kept
        and not model.activations
    )
    model.tokenizer = None
    assert analyze(model, ids).tokens == [str(i) for i in ids[0].tolist()]
    padded = text_model(vocab_size=300)  # more rows than tokens, as in checkpoints padded for speed
    assert {len(cell) for row in analyze(padded, "abc", k=300).top for cell in row} == {300}


def test_what_cannot_be_done_is_said():
    model = text_model()
    for call, words in {
        lambda: analyze(model, "abc", "z"): "resid_mid",
        lambda: analyze(model, "abc", k=0): "k must be 1 to 257",
        lambda: analyze(model, ["abc", "abd"]): "one text",
        lambda: analyze(model, "a" * 65): "takes 1 to 64",
        lambda: compare_predictions(model, ["abc"]): "two or more",
        lambda: compare_predictions(model, "abc"): "two or more",
        lambda: compare_predictions(model, ["abc", "ab"], position=-3): "-2 to -1",
        lambda: compare_to_bigram(model, ["a", "b"]): "two tokens",
        lambda: compare_to_bigram(model, "abc"): "two tokens",
        lambda: logit_attribution(model, "abc", "de"): "must be one",
        lambda: logit_attribution(model, "abc", None): "give an answer",
        lambda: logit_attribution(model, "abc", "d", neurons=4): "0 to 3",
        lambda: plot_evolution(analyze(model, "abc"), quantity="size"): "probability, entropy, kl",
        lambda: plot_evolution(analyze(model, "abc"), "grid.gif"): ".svg",
        lambda: analyze(text_model().train(), "abc"): "model.eval",
    }.items():
        with pytest.raises(ValueError, match=words):
            call()


def test_an_input_id_that_is_no_token_stands_as_a_number_in_the_text():
    model = text_model(vocab_size=300)
    first = model.tokenizer.encode("a")[0]
    found = analyze(model, torch.tensor([[first, 299]]))
    assert found.text == "a<299>" and found.tokens == ["a", "<299>"]


@pytest.mark.parametrize("quantity", ["probability", "entropy", "kl"])
def test_the_grid_has_the_top_tokens_in_its_cells_and_the_quantity_as_colours(quantity, tmp_path):
    found = analyze(text_model(), "a$b$\n")
    figure = plot_evolution(found, tmp_path / "grid.png", quantity)
    axes = figure.axes[0]
    values = getattr(found, quantity)
    values = values[..., 0] if quantity == "probability" else values
    assert torch.tensor(axes.images[0].get_array().tolist()).equal(values)
    assert axes.images[0].get_clim() == (0, 1 if quantity == "probability" else values.max().item())
    words = {text.get_position(): text.get_text() for text in axes.texts}
    assert words == {
        (t, l): repr(found.top[l][t][0])[1:-1][:10] for l in range(L) for t in range(5)
    }
    assert axes.images[0].origin == "upper"  # layer 0 is the top row
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "0 a",
        "1 $",
        "2 b",
        "3 $",
        r"4 \n",
    ]
    assert (tmp_path / "grid.png").read_bytes()[:4] == b"\x89PNG" and len(
        list(tmp_path.iterdir())
    ) == 1
    assert found.plot(quantity=quantity).axes[0].get_title() == axes.get_title()
    assert found.model in axes.get_title()


def test_the_page_shows_the_cell_under_the_mouse_and_under_the_keys(browser, tmp_path):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    text = "</script><img src=x onerror=document.title='bad'>\n"
    found = analyze(text_model(), text)
    page = plot_evolution(found, tmp_path / "lens.html", "entropy")
    browser.get(page.path.as_uri())

    def panel():
        lines = browser.find_elements(By.CSS_SELECTOR, ".panel li")
        return browser.find_element(By.CLASS_NAME, "where").text, [
            line.text.split("\n")[-1] for line in lines
        ]

    def expected(layer, t):
        return [f"{share:.3f}" for share in found.probability[layer, t].tolist()]

    cells = browser.find_elements(By.CSS_SELECTOR, "tbody td")
    assert len(cells) == L * len(text) and not browser.find_elements(By.TAG_NAME, "img")
    assert panel()[1] == expected(L - 1, len(text) - 1)
    ActionChains(browser).move_to_element(cells[2]).perform()  # the first row is layer 0
    where, shares = panel()
    assert where.startswith('Layer 0, position 2, input "s"') and shares == expected(0, 2)
    browser.execute_script("arguments[0].focus()", cells[2])
    ActionChains(browser).send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT).perform()
    where, shares = panel()
    assert where.startswith("Layer 1, position 3") and shares == expected(1, 3)
    ActionChains(browser).send_keys(Keys.END).perform()
    assert panel()[0].startswith(f"Layer 1, position {len(text) - 1}")
    ActionChains(browser).send_keys(Keys.HOME).perform()
    assert panel()[0].startswith("Layer 1, position 0")
    old = cells[0].value_of_css_property("background-color")
    browser.find_element(By.CSS_SELECTOR, "option[value=probability]").click()
    assert cells[0].value_of_css_property("background-color") != old
    assert browser.title == "Logit lens" and browser.get_log("browser") == []
    assert browser.find_element(By.CLASS_NAME, "text").text == text.strip()


def test_a_long_text_opens_at_the_chosen_cell_and_says_that_there_is_more(
    browser, tmp_path, set_window
):
    found = analyze(text_model(block_size=80), "0123456789" * 8)
    page = found.plot(tmp_path / "lens.html")
    for size in ((1280, 720), (360, 640)):
        set_window(*size)
        browser.get(page.path.as_uri())
        inside = browser.execute_script(
            "const cell = document.querySelector('td[aria-current]').getBoundingClientRect();"
            "const grid = document.querySelector('.grid').getBoundingClientRect();"
            "return grid.left <= cell.left && cell.right <= grid.right && grid.top <= cell.top"
            " && cell.bottom <= grid.bottom && grid.bottom <= innerHeight"
        )
        assert inside
        hint = browser.find_element("class name", "hint")
        assert hint.text == "← Scroll sideways: there are 80 tokens"


def test_the_parts_of_a_logit_are_drawn_with_every_head_and_mlp(tmp_path):
    model = make_model()
    parts = logit_attribution(model, torch.tensor([[1, 2, 3]]), 4)
    axes = parts.plot(tmp_path / "parts.svg").axes[0]
    shown = torch.as_tensor(axes.images[0].get_array())
    assert shown.shape == (model.config.n_layer, model.config.n_head + 1)
    assert shown[1, 0] == parts.heads[1, 0].item() and shown[1, -1] == parts.mlps[1].item()
    assert axes.images[0].origin == "upper"  # layer 0 is the top row
    assert (tmp_path / "parts.svg").exists()


def test_in_fp16_the_parts_sum_to_the_whole_where_the_stream_is_large():
    """A deviation above 256 has a variance above 65504, where fp16 ends."""
    model = make_model().half()
    model.transformer.h[1].mlp.c_proj.weight.data *= 3000
    model(IDS, store_activations=True)
    assert model.layer_activations[3][0, -1].float().std() > 300
    parts = logit_attribution(model, IDS, 3, 5)
    wide = logit_attribution(copy.deepcopy(model).double(), IDS, 3, 5)
    for name, value in vars(parts).items():
        if value is not None:
            expected = getattr(wide, name)
            # fp16 has 11 bits, and rounds the stream by some of them.
            torch.testing.assert_close(value.double(), expected, rtol=0.02, atol=0.01)
    added = sum(v.sum() for name, v in vars(parts).items() if name not in ("total", "neurons"))
    assert added.item() == pytest.approx(parts.total.item(), abs=0.01)


def test_results_show_as_short_tables():
    model = text_model()
    predictions = analyze(model, "abc")
    end = f"{predictions.top[-1][-1][0]!r} {predictions.probability[-1, -1, 0]:.2f}"
    assert repr(predictions) == f"Predictions(resid_post, 4 layers, 3 positions; at the end {end})"
    parts = logit_attribution(model, "abc", "d", neurons=1)
    head, *rows = repr(parts).splitlines()
    assert head.split() == ["layer", "heads", "MLP", "biases"] and len(rows) == L + 5
    cells = [float(cell) for row in rows[:L] for cell in row.split()[1:]]
    rest = [float(row.split()[-1]) for row in rows[L:]]
    assert sum(cells) + sum(rest[:-1]) == pytest.approx(rest[-1], abs=0.01)  # rounded to 0.001
    assert rest[-1] == pytest.approx(parts.total.item(), abs=1e-3)
    assert len(repr(logit_attribution(model, "abc", "d")).splitlines()) == 1 + L + 4
