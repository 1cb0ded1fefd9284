"""What does a neuron answer to, and what does it do to the output?

A neuron is one entry of mlp_post, after the activation function. Texts: a list or a generator, of
texts or of ids. One that is longer than the block size is cut into windows, one after the other:
each token is in exactly one, and sees nothing of the window before. Windows run together, padded on
the right, where no token looks.

Strong examples do not show that a neuron answers to nothing else (Bolukbasi et al. 2021, arXiv
2104.07143), nor that the model uses it.
Sources: Geva et al. 2021 (2012.14913), examples; Geva et al. 2022 (2203.14680), output weights;
Voita et al. 2023 (2309.04827), dead neurons.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mingpt.common import progress_bar
from mingpt.interpretability import runs, web_pages
from mingpt.interpretability.attribution import important_neurons  # noqa: F401, found here too
from mingpt.interpretability.inputs import token_texts, tokenizer_of
from mingpt.interpretability.reports import name_model
from mingpt.sites import as_int

# Tokens that run together, padding included. It bounds the memory; a single window is never cut.
AT_ONCE = 1024


@dataclass(repr=False)
class Example:
    """A window of a text in which a neuron is large."""

    activation: float  # the largest in the window
    text: int  # which text it is, counted from 0
    position: int  # where in the text the largest is, counted from 0
    peak: int  # where in tokens it is
    tokens: list  # texts: the one of the largest activation, and some to each side
    activations: list  # of these tokens
    before: bool  # whether the text has tokens before these
    after: bool  # whether it has tokens after these

    def __repr__(self):
        token = self.tokens[self.peak]
        place = f"text {self.text}, position {self.position}"
        return f"Example({self.activation:.3f} at {token!r}, {place})"


@dataclass(repr=False)
class TopExamples:
    """The strongest examples of neurons; top[layer, neuron] is the list of one neuron's.

    Printed, a table: each example's text up to its largest activation, which is the last token's.
    """

    model: str  # its name
    examples: dict  # {(layer, neuron): [Example, ...]}, the strongest first

    def __getitem__(self, neuron):
        return self.examples[neuron]

    def __repr__(self):
        lines = ["layer.neuron  activation  text  position  tokens"]
        for (layer, neuron), examples in self.examples.items():
            for example in examples:
                words = "".join(example.tokens[max(0, example.peak - 5) : example.peak + 1])
                place = f"{example.text:6}{example.position:10}"
                lines.append(f"{layer:5}.{neuron:<8}{example.activation:10.3f}{place}  {words!r}")
        return "\n".join(lines)

    def plot(self, path):
        """Write a page (.html) of the examples, their tokens shaded by activation -> Page."""
        neurons = [
            {"neuron": f"{layer}.{neuron}", "examples": list(map(_page_data, examples))}
            for (layer, neuron), examples in self.examples.items()
        ]
        data = {"model": self.model, "neurons": neurons}
        return web_pages.save_page("neurons", data, path)


def _page_data(example):
    """The example as the page shows it."""
    tokens = web_pages.page_texts(example.tokens)
    return vars(example) | {"tokens": tokens, "activations": torch.tensor(example.activations)}


@torch.no_grad()
def top_activating_examples(model, layer, neuron, texts, k=10, around=16):
    """TopExamples of a neuron, or of a list of them: the k windows where it is largest.

    Of equals the earlier. around: so many tokens to each side of the largest are shown.
    Cost: one pass over the texts, up to this layer; memory does not grow with them.
    """
    layer, neurons = _check_neurons(model, layer, neuron)
    if k < 1 or around < 0:
        raise ValueError(f"k must be at least 1 and around at least 0, got {k} and {around}")
    examples = {(layer, number): [] for number in neurons}
    for _, windows, acts in _mlp_post(model, texts, [layer]):
        lengths = [len(window.ids) for window in windows]
        pieces = acts[:, neurons].cpu().split(lengths)  # (T,N) of each window
        for window, piece in zip(windows, pieces):
            for n, largest in enumerate(piece.amax(0).tolist()):  # (T,N) -> (N,)
                best = examples[layer, neurons[n]]
                if len(best) < k or largest > best[-1].activation:
                    best.append(_example(model, window, piece[:, n], around))
                    # Sorting keeps the order of equals, so the earlier stays before the later.
                    best.sort(key=lambda example: -example.activation)
                    del best[k:]
    return TopExamples(name_model(model), examples)


def _example(model, window, activations, around):
    """The Example of a window with the activations (T,) of one neuron."""
    peak = activations.argmax().item()
    first = max(0, peak - around)
    ids = window.ids[first : peak + around + 1]
    start = window.start + first  # in the text
    return Example(
        activations[peak].item(),
        window.text,
        window.start + peak,
        peak - first,
        token_texts(model, ids),
        activations[first : first + len(ids)].tolist(),
        before=start > 0,
        after=start + len(ids) < window.length,
    )


@dataclass
class ActivationStats:
    """How often and how much every neuron is active, over all tokens of the texts."""

    mean: Tensor  # (L,n_inner)
    variance: Tensor  # (L,n_inner), the mean squared distance from the mean
    active: Tensor  # (L,n_inner), the share of the tokens with a value above 0
    dead: Tensor  # (L,n_inner), whether there is no such token
    tokens: int  # how many there were


@torch.no_grad()
def activation_stats(model, texts):
    """ActivationStats of all neurons.

    Cost: one pass over the texts; memory does not grow with them, since only sums are kept.
    """
    L = model.config.n_layer
    sums = torch.zeros(3, L, model.config.n_inner, dtype=torch.float64)
    tokens = 0
    for layer, _, acts in _mlp_post(model, texts, range(L)):
        # Sums of squares in fp32 would lose the variance of a neuron with a large mean.
        if acts.device.type == "mps":  # which has no fp64
            acts = acts.cpu()
        acts = acts.double()  # (tokens,4C)
        columns = [acts.sum(0), (acts**2).sum(0), (acts > 0).sum(0)]
        sums[:, layer] += torch.stack(columns).cpu()
        if layer == 0:
            tokens += len(acts)
    mean, square, active = sums / tokens
    variance = (square - mean**2).clamp(0)
    return ActivationStats(mean, variance, active, active == 0, tokens)


@dataclass
class LogitWeights:
    """The tokens that one neuron has most to do with: k (token, value) each, most extreme first.

    promotes, suppresses: the logit, less the mean over the vocabulary, that one unit of activation
    adds directly, times the standard deviation by which ln_f divides in a run: without that
    division ln_f is linear, it takes off the mean and multiplies by its weight.
    matches: mlp_pre if the residual stream were the token's wte and nothing else.
    """

    promotes: list
    suppresses: list
    matches: list


@torch.no_grad()
def neuron_logit_weights(model, layer, neuron, k=10):
    """LogitWeights of a neuron. Cost: no pass."""
    layer, (neuron,) = _check_neurons(model, layer, neuron)
    block = model.transformer.h[layer]
    rows = model.lm_head.weight  # (V,C)
    out = block.mlp.c_proj.weight[:, neuron]  # (C,)
    normed = (out - out.mean()) * model.transformer.ln_f.weight
    logits = (rows - rows.mean(0)) @ normed  # (V,C) @ (C,) -> (V,)
    # What the neuron would read of each token, if nothing else were in the stream.
    embedded = block.ln_2(model.transformer.wte.weight)  # (V,C)
    c_fc = block.mlp.c_fc
    matches = embedded @ c_fc.weight[neuron] + c_fc.bias[neuron]  # (V,C) @ (C,) -> (V,)
    return LogitWeights(
        _extremes(model, logits, k),
        _extremes(model, logits, k, largest=False),
        _extremes(model, matches, k),
    )


def _extremes(model, values, k, largest=True):
    """k [(token, value)] of values (V,), the largest or the smallest."""
    top = values.topk(min(k, len(values)), largest=largest)
    return list(zip(token_texts(model, top.indices), top.values.tolist()))


def _check_neurons(model, layer, neurons):
    """(layer, neurons, a list without repeats) as ints; ValueError if the model has none such."""
    if not isinstance(neurons, (list, tuple, range)):
        neurons = [neurons]
    layers = [as_int(layer)]
    neurons = list(dict.fromkeys(map(as_int, neurons)))
    config = model.config
    for name, numbers, size in (
        ("layer", layers, config.n_layer),
        ("neuron", neurons, config.n_inner),
    ):
        if not numbers or not _are_below(numbers, size):
            raise ValueError(f"no {name} {numbers}; the {name}s are 0 to {size - 1}")
    return layers[0], neurons


def _are_below(numbers, size):
    """Whether all the numbers are ints from 0 to size - 1; True is none."""
    return all(type(number) is int and 0 <= number < size for number in numbers)


def _mlp_post(model, texts, layers):
    """(layer, windows, mlp_post (tokens,4C) at their tokens, in order) of each batch and layer.

    The blocks are run here, one by one, where other analyses record a whole run: a sweep over many
    texts would waste the blocks above the layer that it asks for, and no more than one layer's
    activations are ever held.
    """
    runs.check_model(model)
    recorded = {}

    # No longer kept than until the next block writes its own.
    def tap(site, x):
        if site == "mlp_post":
            recorded[site] = x
        return x

    for windows in _batches(model, texts):
        rows = [window.ids for window in windows]
        ids = pad_sequence(rows, True, padding_value=-1).to(model.lm_head.weight.device)  # (B,T)
        is_token = ids >= 0  # the padding is -1
        positions = model.transformer.wpe.weight[: ids.size(1)]  # (T,C)
        x = model.transformer.wte(ids.clamp(min=0)) + positions  # (B,T,C)
        for layer, block in enumerate(model.transformer.h[: max(layers) + 1]):
            x = block(x, tap)
            if layer in layers:
                yield layer, windows, recorded["mlp_post"][is_token]  # (B,T,4C) -> (tokens,4C)
        runs.check_finite(x)


class Window(NamedTuple):
    """As many tokens of a text as the model takes at once, or what is left of it."""

    text: int  # the text's number
    start: int  # the position of its first token in the text
    ids: Tensor  # (T,)
    length: int  # of the whole text


def _batches(model, texts):
    """Lists of windows that run together: at most AT_ONCE tokens, or a single window."""
    batch = []
    longest = 0  # length of a window in the batch, to which the others are padded
    for window in _windows(model, texts):
        longest = max(longest, len(window.ids))
        # The padding counts too: it is computed as the tokens are.
        if batch and (len(batch) + 1) * longest > AT_ONCE:
            yield batch
            batch = []
            longest = len(window.ids)
        batch.append(window)
    if not batch:
        raise ValueError("the texts have no tokens; a generator gives its texts only once")
    yield batch


def _windows(model, texts):
    """The texts' windows; a text is asked for when the one before it is used up."""
    texts = [texts] if isinstance(texts, str) else texts
    for number, text in enumerate(progress_bar(texts, unit="text")):
        ids = _ids_of_text(model, text, number)
        for start in range(0, len(ids), model.block_size):
            yield Window(number, start, ids[start : start + model.block_size], len(ids))


def _ids_of_text(model, text, number):
    """Ids (T,) of a text, or of ids in a list or tensor; (0,) where it is empty."""
    ids = tokenizer_of(model).encode(text) if isinstance(text, str) else text
    ids = torch.as_tensor(ids, device="cpu")  # where windows wait for their batch
    V = model.config.vocab_size
    # The numbers and not the dtype are looked at, since an empty list becomes a tensor of floats.
    if ids.ndim != 1 or not _are_below(ids.tolist(), V):
        raise ValueError(
            f"text {number} must be a text, or ids (T,) from 0 to {V - 1}; got {text!r:.80}"
        )
    return ids.long()
