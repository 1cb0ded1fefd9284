"""Neurons against full sorts and sums of all activations, hand-built neurons, autograd, and ablations by the public forward."""

import gc
import weakref

import pytest
import torch

from mingpt.bpe import BPETokenizer, Encoder
from mingpt.interpretability import neuron_analysis
from mingpt.interpretability.neuron_analysis import (
    activation_stats,
    important_neurons,
    neuron_logit_weights,
    top_activating_examples,
)
from mingpt.model import GPT, GPTConfig, Patch

L, H, D, V, N, BLOCK = 4, 3, 7, 11, 13, 6


def make_model(dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"n_layer": L, "n_head": H, "n_embd": H * D, "vocab_size": V, "block_size": BLOCK, "n_inner": N}
    model = GPT(GPTConfig(**sizes | options)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def make_texts(lengths=(3, 14, 1, 6, 7, 2, 12, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(V, (length,), generator=generator) for length in lengths]


def windows_of(texts, block=BLOCK):
    """[(text, start, ids)]: the definition of the windows."""
    cut = [(number, start, ids[start : start + block]) for number, ids in enumerate(texts) for start in range(0, 99, block)]
    return [window for window in cut if len(window[2])]


def mlp_post(model, ids):
    """(L,T,N) of one window by itself, through the public forward."""
    model(ids[None], store_activations=["mlp_post"])
    return torch.stack([model.activations["mlp_post"][layer][0] for layer in range(L)])


def by_full_sort(model, layer, neuron, texts, k, around):
    """All windows one by one, every activation kept, sorted at the end."""
    found = []
    for text, start, ids in windows_of(texts):
        acts = mlp_post(model, ids)[layer, :, neuron]
        peak = acts.argmax().item()
        shown = range(max(0, peak - around), min(len(ids), peak + around + 1))
        near = ([str(ids[i].item()) for i in shown], [acts[i].item() for i in shown])
        found.append((acts[peak].item(), text, start + peak, peak - shown[0], *near))
    return sorted(found, key=lambda each: -each[0])[:k]


@pytest.mark.parametrize("at_once", [1, 9, 20, 4096])
@pytest.mark.parametrize(("k", "around"), [(1, 0), (3, 2), (99, 16)])
def test_the_examples_are_those_of_a_full_sort(k, around, at_once, monkeypatch):
    monkeypatch.setattr(neuron_analysis, "AT_ONCE", at_once)
    model, texts = make_model(), make_texts()
    neurons = [5, 0, 12, 7]
    result = top_activating_examples(model, 2, neurons, (text for text in texts), k, around)
    assert list(result) == [(2, neuron) for neuron in neurons]
    for neuron in neurons:
        expected = by_full_sort(model, 2, neuron, texts, k, around)
        assert len(result[2, neuron]) == len(expected) == min(k, len(windows_of(texts)))
        for found, right in zip(result[2, neuron], expected):
            assert found[1:5] == right[1:5]
            assert found.activation == found.activations[found.peak] == pytest.approx(right[0], abs=1e-12)
            assert found.activations == pytest.approx(right[5], abs=1e-12)


def test_one_neuron_ids_as_rows_and_every_layer():
    model, ids = make_model(), torch.stack(make_texts((6, 6, 6)))
    for layer in range(L):
        found = top_activating_examples(model, layer, 3, ids, 2)[layer, 3]
        expected = by_full_sort(model, layer, 3, list(ids), 2, 16)
        assert [each[1:5] for each in found] == [each[1:5] for each in expected]


def test_of_equal_activations_the_earlier_text_is_kept():
    model, text = make_model(), torch.tensor([4, 2])
    found = top_activating_examples(model, 1, 2, [text] * 7, k=3)[1, 2]
    assert [each.text for each in found] == [0, 1, 2]


def test_texts_and_their_tokens_escaped_nowhere_but_where_shown():
    model = make_model(vocab_size=257)
    model.tokenizer = BPETokenizer(Encoder([]))
    texts = ["abc\n", "", "hello </script>", "z"]
    result = top_activating_examples(model, 0, [1, 2], texts, k=4, around=1)
    pieces = [list(text[start : start + BLOCK]) for text in texts for start in range(0, len(text), BLOCK)]
    assert {len(each.tokens) for each in result[0, 1]} <= {1, 2, 3}
    for example in result[0, 1] + result[0, 2]:
        whole = texts[example.text]
        first = example.position - example.peak
        assert "".join(example.tokens) == whole[first : first + len(example.tokens)]
    assert len(result[0, 1]) == len(pieces) == 5 or len(result[0, 1]) == 4
    assert str(result).count("\n") == 7
    one = top_activating_examples(model, 0, 1, texts[2], k=1)[0, 1][0]  # a str is one text
    assert one.text == 0 and one.tokens[one.peak] == texts[2][one.position]


class Text:
    """Ids that can be asked whether they are still there; as_tensor takes them by their buffer."""


def test_texts_are_read_one_by_one_and_not_kept(monkeypatch):
    monkeypatch.setattr(neuron_analysis, "AT_ONCE", 3 * BLOCK)
    model, alive, asked, run = make_model(dtype=torch.float32), [], [], []
    generator = torch.Generator().manual_seed(0)
    inside = model.transformer.wte.register_forward_hook(lambda module, ids, x: run.append((len(asked), ids[0].size(0))))

    def stream(texts):
        for number in range(texts):
            ids = torch.randint(V, (BLOCK,), generator=generator)
            alive.append(weakref.ref(ids.untyped_storage()) if False else weakref.ref(ids))
            asked.append(number)
            yield ids

    for analysis in (lambda texts: top_activating_examples(model, 1, [0, 4], texts, k=2), lambda t: activation_stats(model, t)):
        for texts in (10, 200):
            alive.clear(), asked.clear(), run.clear()
            analysis(stream(texts))
            gc.collect()
            assert len(asked) == texts and all(n <= 3 for _, n in run)
            assert all(seen - n * (i + 1) <= 1 for i, (seen, n) in enumerate(run[:-1]))  # no more than one ahead
    inside.remove()
