"""What does a neuron answer to, and what does it do to the output?

A neuron is one entry of mlp_post, after the activation function. Texts: a list or a generator, of texts or of ids; one
that is longer than the block size is cut into windows, one after the other: each token is in exactly one, and sees
nothing of the window before. Windows run together, padded on the right, where no token looks. Strong examples do not
show that a neuron answers to nothing else (Bolukbasi et al. 2021, arXiv 2104.07143), nor that the model uses it.
Sources: Geva et al. 2021 (2012.14913), examples; Geva et al. 2022 (2203.14680), output weights; Elhage et al. 2021
(transformer-circuits.pub), direct contributions; Voita et al. 2023 (2309.04827), dead neurons.
"""

from collections import namedtuple

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from mingpt.interpretability import figures, runs
from mingpt.interpretability.inputs import encode, token_texts
from mingpt.interpretability.logit_lens import read_directly
from mingpt.sites import Patch, as_int

AT_ONCE = 1024  # tokens that run together, padding included, which bounds the memory; a single window is never cut
Example = namedtuple(
    "Example", "activation text position peak tokens activations"
)  # see top_activating_examples


class TopExamples(dict):
    """{(layer, neuron): [Example, the strongest first]}"""

    def plot(self, path):
        """Write a page (.html) of the examples, their tokens shaded by activation."""
        figures.save_page("neurons", [[*neuron, found] for neuron, found in self.items()], path)


@torch.no_grad()
def top_activating_examples(model, layer, neuron, texts, k=10, around=16):
    """TopExamples of a neuron, or of a list of them: the k windows where it is largest; of equals the earlier.

    An Example: activation, the largest in the window; text and position, where that token is, counted from 0; tokens,
    up to `around` to each side of it, and activations, theirs; peak, its index among them. Cost: one pass over the
    texts, up to this layer; memory does not grow with them.
    """
    layer, neurons = _checked(model, layer, neuron)
    if k < 1 or around < 0:
        raise ValueError(f"k must be at least 1 and around at least 0, got {k} and {around}")
    best, least = (
        [[] for _ in neurons],
        torch.full((len(neurons),), -torch.inf, dtype=torch.float64),
    )
    for _, windows, acts in _mlp_post(model, texts, [layer]):
        for (text, start, ids), rows in zip(
            windows, acts[:, neurons].cpu().split([len(ids) for *_, ids in windows])
        ):
            peaks, at = rows.max(0)  # (T,N) -> (N,)
            for n in (peaks > least).nonzero()[:, 0].tolist():
                peak, first = at[n].item(), max(0, at[n].item() - around)
                shown = (
                    token_texts(model, ids[first : peak + around + 1]),
                    rows[first : peak + around + 1, n].tolist(),
                )
                found = [
                    *best[n],
                    Example(peaks[n].item(), text, start + peak, peak - first, *shown),
                ]
                best[n] = sorted(found, key=lambda example: -example.activation)[:k]
                least[n] = best[n][-1].activation if len(best[n]) == k else -torch.inf
    return TopExamples(zip([(layer, n) for n in neurons], best))


@torch.no_grad()
def activation_stats(model, texts):
    """{"mean", "variance", "active", "dead"} of every neuron over all tokens of the texts, (L, n_inner); and "tokens".

    variance: the mean squared distance from the mean. active: the share of the tokens with a value above 0. dead: there
    is none. tokens: how many there were. Cost: one pass over the texts; memory does not grow with them (fp64 sums).
    """
    sums, n = torch.zeros(3, model.config.n_layer, model.config.n_inner, dtype=torch.float64), 0
    for layer, _, acts in _mlp_post(model, texts, range(model.config.n_layer)):
        acts = acts.cpu().double() if acts.device.type == "mps" else acts.double()  # (tokens,4C)
        sums[:, layer] += torch.stack([x.sum(0) for x in (acts, acts**2, acts > 0)]).cpu()
        n += len(acts) if layer == 0 else 0
    mean, square, active = sums / n
    return {
        "mean": mean,
        "variance": (square - mean**2).clamp(0),
        "active": active,
        "dead": active == 0,
        "tokens": n,
    }


@torch.no_grad()
def neuron_logit_weights(model, layer, neuron, k=10):
    """{"promotes", "suppresses", "matches"}: k [(token, value)] each, the most extreme first. No pass.

    promotes, suppresses: the logit, less the mean over the vocabulary, that one unit of activation adds directly, times
    the standard deviation by which ln_f divides in a run: without that division ln_f is linear, it takes off the mean
    and multiplies by its weight. matches: mlp_pre if the residual stream were the token's wte and nothing else.
    """
    layer, (neuron,) = _checked(model, layer, neuron)
    mlp, ln_2, W = (
        model.transformer.h[layer].mlp,
        model.transformer.h[layer].ln_2,
        model.lm_head.weight,
    )
    out = mlp.c_proj.weight[:, neuron]  # (C,)
    logits = (W - W.mean(0)) @ (
        (out - out.mean()) * model.transformer.ln_f.weight
    )  # (V,C) @ (C,) -> (V,)
    matches = (
        ln_2(model.transformer.wte.weight) @ mlp.c_fc.weight[neuron] + mlp.c_fc.bias[neuron]
    )  # (V,)
    kinds = {"promotes": (logits, True), "suppresses": (logits, False), "matches": (matches, True)}
    tops = {
        name: values.topk(min(k, len(values)), largest=largest)
        for name, (values, largest) in kinds.items()
    }
    return {
        name: list(zip(token_texts(model, top.indices), top.values.tolist()))
        for name, top in tops.items()
    }


class ImportantNeurons(
    namedtuple("ImportantNeurons", "neurons activation direct ablation disagree")
):
    """See important_neurons; printed, it is a table."""

    def __str__(self):
        rows = [
            f"{l:5}.{n:<8}{a:10.3f}{d:10.3f}{w:10.3f}{'  disagree' * bool(x)}"
            for (l, n), a, d, w, x in zip(*self)
        ]
        return "\n".join(["layer.neuron  activation    direct  ablation", *rows])


@torch.no_grad()
def important_neurons(model, text, answer, other=None, k=10):
    """ImportantNeurons: the k of largest |direct| for logit(answer) [- logit(other)] at the last position; in logits.

    direct: activation x (output weights . unembedding direction), the final norm's scale held at this run's value.
    ablation: intact - ablated (0 at every position), with all that later blocks make of it; a neuron that works through
    them alone may be missed. disagree: one is less than half of the other, or of the other sign. Cost: 1 + k passes.
    """
    runs.check_model(model)
    ids = encode(model, text)
    if len(ids) != 1 or k < 1:
        raise ValueError(
            f"give one text, or ids (1, T), and k of at least 1; got {len(ids)} and {k}"
        )
    kept, ln_f, blocks = (
        runs.record(model, ids, ["mlp_post"]),
        model.transformer.ln_f,
        model.transformer.h,
    )
    end = kept["resid_post"][len(blocks) - 1][0, -1]  # (C,)
    row, reads = read_directly(model, ids, end, answer, other)
    weights = torch.stack([reads @ block.mlp.c_proj.weight for block in blocks])  # (L,4C)
    acts = torch.stack([x[0, -1] for x in kept["mlp_post"].values()])  # (L,4C)
    top = (acts * weights).abs().flatten().topk(min(k, acts.numel())).indices
    layers, at = (top // acts.size(1)).tolist(), top % acts.size(1)
    zeroed = [
        Patch(l, None, lambda x, n=n: x.index_fill(-1, n, 0), "mlp_post")
        for l, n in zip(layers, at)
    ]
    ablated = torch.stack([runs.run(model, ids, [patch])[0, -1] for patch in zeroed])  # (k,C)
    direct, ablation = (acts * weights).flatten()[top], (ln_f(end) - ln_f(ablated)) @ row  # (k,)
    disagree = (direct - ablation).abs() > torch.maximum(direct.abs(), ablation.abs()) / 2
    return ImportantNeurons(
        [*zip(layers, at.tolist())], acts.flatten()[top], direct, ablation, disagree
    )


def _checked(model, layer, neurons):
    config, many = model.config, neurons if isinstance(neurons, (list, tuple, range)) else [neurons]
    for name, numbers, size in (
        ("layer", [layer], config.n_layer),
        ("neuron", many, config.n_inner),
    ):
        if not numbers or not all(type(as_int(n)) is int and 0 <= n < size for n in numbers):
            raise ValueError(f"no {name} {numbers}; the {name}s are 0 to {size - 1}")
    return as_int(layer), list(dict.fromkeys(map(as_int, many)))


def _mlp_post(model, texts, layers):
    """(layer, windows, mlp_post (tokens,4C) at their tokens, in order) for each batch and each of the layers."""
    runs.check_model(model)
    kept, take = {}, lambda site, x: kept.update({site: x}) or x
    for windows in _batches(model, texts):
        ids = pad_sequence([ids for *_, ids in windows], True, -1).to(
            model.lm_head.weight.device
        )  # (B,T)
        x = (
            model.transformer.wte(ids.clamp(min=0)) + model.transformer.wpe.weight[: ids.size(1)]
        )  # (B,T,C)
        for layer, block in enumerate(model.transformer.h[: max(layers) + 1]):
            x = block(x, take)
            if layer in layers:
                yield layer, windows, kept["mlp_post"][ids >= 0]
        if not x.isfinite().all():
            raise ValueError(
                "the runs give values that are NaN or infinite; check the weights and the dtype"
            )


def _batches(model, texts):
    """Lists of windows (text's number, start, ids (T,)); a text is asked for when the one before it is used up."""
    V, size, batch, longest = model.config.vocab_size, model.block_size, [], 0
    for number, text in enumerate(
        tqdm([texts] if isinstance(texts, str) else texts, unit="text", disable=None)
    ):
        if isinstance(text, str) and model.tokenizer is None:
            raise ValueError("this model has no tokenizer; give ids instead of texts")
        ids = torch.as_tensor(
            model.tokenizer.encode(text) if isinstance(text, str) else text, device="cpu"
        )
        if ids.ndim != 1 or (
            len(ids) and (ids.is_floating_point() or not 0 <= ids.min() <= ids.max() < V)
        ):
            raise ValueError(
                f"text {number} must be a text, or ids (T,) from 0 to {V - 1}; got {text!r:.80}"
            )
        for start, window in zip(range(0, len(ids), size), ids.long().split(size)):
            if batch and (len(batch) + 1) * max(longest, len(window)) > AT_ONCE:
                yield batch
                batch, longest = [], 0
            batch, longest = [*batch, (number, start, window)], max(longest, len(window))
    if not batch:
        raise ValueError(
            "the texts have no tokens; mind that a generator gives its texts only once"
        )
    yield batch
