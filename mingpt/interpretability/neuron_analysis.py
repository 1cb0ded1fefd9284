"""What does a neuron answer to, and what does it do to the output?

A neuron is one entry of mlp_post, after the activation function. Texts: a list or a generator, of
texts or of ids, which windows.py cuts into windows.

Strong examples do not show that a neuron answers to nothing else (Bolukbasi et al. 2021, arXiv
2104.07143), nor that the model uses it.
Sources: Geva et al. 2021 (2012.14913), examples; Geva et al. 2022 (2203.14680), output weights;
Voita et al. 2023 (2309.04827), dead neurons.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mingpt.common import AnyPath
from mingpt.interpretability import results, web_pages
from mingpt.interpretability.attribution import important_neurons as important_neurons
from mingpt.interpretability.inputs import Texts, token_texts
from mingpt.interpretability.reports import name_model
from mingpt.interpretability.web_pages import Page
from mingpt.interpretability.windows import Window, are_below, site_activations
from mingpt.model import GPT
from mingpt.sites import as_int

TokenValues = list[tuple[str, float]]


@dataclass(repr=False)
class Example:
    """A window of a text in which a neuron is large."""

    activation: float  # the largest in the window
    text: int  # which text it is, counted from 0
    position: int  # where in the text the largest is, counted from 0
    peak: int  # where in tokens it is
    tokens: list[str]  # the one of the largest activation, and some to each side
    activations: list[float]  # of these tokens
    before: bool  # whether the text has tokens before these
    after: bool  # whether it has tokens after these

    def __repr__(self):
        token = self.tokens[self.peak]
        place = f"text {self.text}, position {self.position}"
        return f"Example({self.activation:.3f} at {token!r}, {place})"


@dataclass(repr=False)
class TopExamples:
    """The strongest examples of neurons or features; top[layer, neuron] is the list of one's.

    Printed, a table: each example's text up to its largest activation, which is the last token's.
    """

    model: str  # its name
    examples: dict[tuple[int, int], list[Example]]  # of each (layer, neuron), the strongest first
    what: str = "neuron"  # or feature

    def __getitem__(self, neuron):
        return self.examples[neuron]

    def __repr__(self):
        lines = [f"layer.{self.what}  activation  text  position  tokens"]
        for (layer, neuron), examples in self.examples.items():
            for example in examples:
                words = "".join(example.tokens[max(0, example.peak - 5) : example.peak + 1])
                place = f"{example.text:6}{example.position:10}"
                number = f"{layer:5}.{neuron}"
                lines.append(f"{number:14}{example.activation:10.3f}{place}  {words!r}")
        return "\n".join(lines)

    def plot(self, path: AnyPath) -> Page:
        """Write a page (.html) of the examples, their tokens shaded by activation -> Page."""
        neurons = [
            {"neuron": f"{layer}.{neuron}", "examples": list(map(_page_data, examples))}
            for (layer, neuron), examples in self.examples.items()
        ]
        data = {"model": self.model, "what": self.what, "neurons": neurons}
        return web_pages.save_page("neurons", data, path)


def _page_data(example):
    """The example as the page shows it."""
    tokens = web_pages.page_texts(example.tokens)
    return vars(example) | {"tokens": tokens, "activations": torch.tensor(example.activations)}


@torch.no_grad()
def top_activating_examples(
    model: GPT, layer: int, neuron: int | Sequence[int], texts: Texts, k: int = 10, around: int = 16
) -> TopExamples:
    """TopExamples of a neuron, or of a list of them: the k windows where it is largest.

    Of equals the earlier. around: so many tokens to each side of the largest are shown.
    Cost: one pass over the texts, up to this layer; memory does not grow with them.
    """
    layer, neurons = _check_neurons(model, layer, neuron)
    names = [(layer, number) for number in neurons]
    found = site_activations(model, texts, [layer], "mlp_post")
    # (tokens,N) of the windows of each batch, the tokens of a window one after the other.
    acts = ((windows, x[is_token][:, neurons]) for _, windows, x, is_token in found)
    return strongest_examples(model, names, acts, k, around)


def strongest_examples(
    model: GPT,
    names: list[tuple[int, int]],
    activations: Iterable[tuple[list[Window], Tensor]],
    k: int,
    around: int,
) -> TopExamples:
    """TopExamples of anything that has an activation at every token.

    names: N of (layer, number). activations: (windows, (tokens,N)) of each batch of windows, which
    are asked for one by one. k, around: as in top_activating_examples.
    """
    if k < 1 or around < 0:
        raise ValueError(f"k must be at least 1 and around at least 0, got {k} and {around}")
    examples: dict[tuple[int, int], list[Example]] = {name: [] for name in names}
    for windows, acts in activations:
        lengths = [len(window.ids) for window in windows]
        pieces = acts.cpu().split(lengths)  # (T,N) of each window
        for window, piece in zip(windows, pieces):
            largest = piece.amax(0).tolist()  # (T,N) -> (N,)
            for n, (best, value) in enumerate(zip(examples.values(), largest)):
                if len(best) < k or value > best[-1].activation:
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


@dataclass(repr=False)
class ActivationStats:
    """How often and how much every neuron is active, over all tokens of the texts."""

    mean: Tensor  # (L,n_inner)
    variance: Tensor  # (L,n_inner), the mean squared distance from the mean
    active: Tensor  # (L,n_inner), the share of the tokens with a value above 0
    dead: Tensor  # (L,n_inner), whether there is no such token
    tokens: int  # how many there were

    __repr__ = results.summary


@torch.no_grad()
def activation_stats(model: GPT, texts: Texts) -> ActivationStats:
    """ActivationStats of all neurons.

    Cost: one pass over the texts; memory does not grow with them, since only sums are kept.
    """
    L = model.config.n_layer
    sums = torch.zeros(3, L, model.config.n_inner, dtype=torch.float64)
    tokens = 0
    for layer, _, x, is_token in site_activations(model, texts, range(L), "mlp_post"):
        acts = x[is_token]  # (B,T,4C) -> (tokens,4C)
        # Sums of squares in fp32 would lose the variance of a neuron with a large mean.
        if acts.device.type == "mps":  # which has no fp64
            acts = acts.cpu()
        acts = acts.double()
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
    matches: mlp_pre if the residual stream were the token's wte and nothing else; of neurons alone.
    """

    promotes: TokenValues
    suppresses: TokenValues
    matches: TokenValues | None = None


@torch.no_grad()
def neuron_logit_weights(model: GPT, layer: int, neuron: int, k: int = 10) -> LogitWeights:
    """LogitWeights of a neuron. Cost: no pass."""
    layer, (neuron,) = _check_neurons(model, layer, neuron)
    block = model.transformer.h[layer]
    promotes, suppresses = promoted_tokens(model, block.mlp.c_proj.weight[:, neuron], k)
    # What the neuron would read of each token, if nothing else were in the stream.
    embedded = block.ln_2(model.transformer.wte.weight)  # (V,C)
    c_fc = block.mlp.c_fc
    matches = embedded @ c_fc.weight[neuron] + c_fc.bias[neuron]  # (V,C) @ (C,) -> (V,)
    return LogitWeights(promotes, suppresses, _extremes(model, matches, k))


def promoted_tokens(model: GPT, direction: Tensor, k: int = 10) -> tuple[TokenValues, TokenValues]:
    """(promotes, suppresses), as in LogitWeights, of a direction (C,) of the residual stream."""
    rows = model.lm_head.weight  # (V,C)
    normed = (direction - direction.mean()) * model.transformer.ln_f.weight
    logits = (rows - rows.mean(0)) @ normed  # (V,C) @ (C,) -> (V,)
    return _extremes(model, logits, k), _extremes(model, logits, k, largest=False)


def _extremes(model, values, k, largest=True):
    """k [(token, value)] of values (V,), the largest or the smallest."""
    top = values.topk(min(k, len(values)), largest=largest)
    return list(zip(token_texts(model, top.indices), top.values.tolist()))


def _check_neurons(model, layer, neurons):
    """(layer, neurons, a list without repeats) as ints; ValueError if the model has none such."""
    if not isinstance(neurons, Sequence):
        neurons = [neurons]
    layers = [as_int(layer)]
    neurons = list(dict.fromkeys(map(as_int, neurons)))
    config = model.config
    for name, numbers, size in (
        ("layer", layers, config.n_layer),
        ("neuron", neurons, config.n_inner),
    ):
        if not numbers or not are_below(numbers, size):
            raise ValueError(f"no {name} {numbers}; the {name}s are 0 to {size - 1}")
    return layers[0], neurons
