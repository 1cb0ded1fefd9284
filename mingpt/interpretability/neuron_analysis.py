"""What does a neuron answer to, and what does it do to the output?

A neuron is one entry of mlp_post, after the activation function. Texts are a list or a generator, of texts or of ids. A
text longer than the block size is cut into windows, one after the other: each token is in exactly one, and a window's
first tokens see nothing of the window before. Windows run together, padded on the right, where no token looks.
A neuron's strongest examples do not show that it answers to nothing else (Bolukbasi et al. 2021, arXiv 2104.07143), nor
that the model uses it. Sources: Geva et al. 2021 (2012.14913), examples; Geva et al. 2022 (2203.14680), output weights;
Elhage et al. 2021 (transformer-circuits.pub), direct contributions; Voita et al. 2023 (2309.04827), dead neurons.
"""

from collections import namedtuple

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from mingpt.interpretability import figures, tails
from mingpt.interpretability.inputs import answer_ids, check_mode, encode
from mingpt.model import Patch, plain

AT_ONCE = 4096  # tokens that run together, padding included, which bounds the memory; a single window is never cut
Example = namedtuple("Example", "activation text position peak tokens activations")  # see top_activating_examples


class TopExamples(dict):
    """{(layer, neuron): [Example, the strongest first]}"""

    def plot(self, path):
        """Write a page (.html) of the examples, their tokens shaded by activation."""
        data = [{"layer": l, "neuron": n, "examples": [e._asdict() for e in found]} for (l, n), found in self.items()]
        figures.save_page("neurons", data, path)

    def __str__(self):
        rows = ((f"{l}.{n}", *each) for (l, n), found in self.items() for each in found)
        row = "{:8} {:7.3f}  text {}, position {}: {!r} in {!r}".format
        return "\n".join(row(name, a, text, at, tokens[i], "".join(tokens)) for name, a, text, at, i, tokens, _ in rows)


@torch.no_grad()
def top_activating_examples(model, layer, neuron, texts, k=10, around=16):
    """TopExamples of a neuron, or of a list of them: the k windows where it is largest.

    An Example has the largest activation in its window; where it is: the text's number and the position in the text,
    from 0; up to `around` tokens to each side, the activation at each, and which of them it is (peak). So the k are k
    places; of equals the earlier is kept. Cost: one pass over the texts, up to this layer; memory does not grow.
    """
    (layer,), neurons = _numbers(model, layer, "layer"), _numbers(model, neuron, "neuron")
    if k < 1 or around < 0:
        raise ValueError(f"k must be at least 1 and around at least 0, got {k} and {around}")
    best, least = [[] for _ in neurons], torch.full((len(neurons),), -torch.inf, dtype=torch.float64)
    for _, windows, acts in _mlp_post(model, texts, [layer]):
        for (text, start, ids), rows in zip(windows, acts[:, neurons].cpu().split([len(ids) for *_, ids in windows])):
            peaks, at = rows.max(0)  # (T,N) -> (N,)
            for n in (peaks > least).nonzero()[:, 0].tolist():
                peak = at[n].item()
                some = slice(max(0, peak - around), peak + around + 1)
                shown = _tokens(model, ids[some]), rows[some, n].tolist()
                found = Example(peaks[n].item(), text, start + peak, peak - some.start, *shown)
                best[n] = sorted([*best[n], found], key=lambda each: -each.activation)[:k]
                least[n] = best[n][-1].activation if len(best[n]) == k else -torch.inf
    return TopExamples(zip([(layer, n) for n in neurons], best))


@torch.no_grad()
def activation_stats(model, texts):
    """{"mean", "variance", "active", "dead"} of every neuron over all tokens of the texts, (L, n_inner); and "tokens".

    variance: the mean squared distance from the mean. active: the share of the tokens at which the neuron is above 0.
    dead: True if there is none in these texts. tokens: how many there were. Cost: one pass over the texts; memory does
    not grow: sums in fp64, wide enough that the squares of fp32 values cancel without harm.
    """
    sums, tokens = torch.zeros(3, model.config.n_layer, model.config.n_inner, dtype=torch.float64), 0
    for layer, _, acts in _mlp_post(model, texts, range(model.config.n_layer)):
        acts = acts.cpu().double() if acts.device.type == "mps" else acts.double()  # (tokens,4C)
        sums[:, layer] += torch.stack([x.sum(0) for x in (acts, acts**2, acts > 0)]).cpu()
        tokens += len(acts) if layer == 0 else 0
    mean, square, active = sums / tokens
    stats = {"mean": mean, "variance": (square - mean**2).clamp(min=0), "active": active, "dead": active == 0}
    return stats | {"tokens": tokens}


@torch.no_grad()
def neuron_logit_weights(model, layer, neuron, k=10):
    """{"promotes", "suppresses", "matches"}: k [(token, value)] each, the most extreme first. No pass.

    promotes, suppresses: the logit, less the mean over the vocabulary, that one unit of activation adds directly, times
    the standard deviation by which ln_f divides in a run: without that division ln_f is linear, it takes off the mean
    and multiplies by its weight. matches: mlp_pre if the residual stream were the token's wte and nothing else.
    """
    (layer,), (neuron,) = _numbers(model, layer, "layer"), _numbers(model, neuron, "neuron")
    block, fc = model.transformer.h[layer], model.transformer.h[layer].mlp.c_fc
    out = block.mlp.c_proj.weight[:, neuron]  # (C,)
    logits = model.lm_head.weight @ ((out - out.mean()) * model.transformer.ln_f.weight)  # (V,C) @ (C,) -> (V,)
    logits = logits - logits.mean()
    matches = block.ln_2(model.transformer.wte.weight) @ fc.weight[neuron] + fc.bias[neuron]  # (V,C) @ (C,) -> (V,)
    kinds = (("promotes", logits, True), ("suppresses", logits, False), ("matches", matches, True))
    tops = {name: values.topk(min(k, len(values)), largest=largest) for name, values, largest in kinds}
    return {name: list(zip(_tokens(model, top.indices), top.values.tolist())) for name, top in tops.items()}


class ImportantNeurons(namedtuple("ImportantNeurons", "quantity neurons activation direct ablation disagree")):
    """See important_neurons; printed, it is a table."""

    def __str__(self):
        lines = [self.quantity, "layer.neuron  activation    direct  ablation"]
        for (l, n), *values, apart in zip(*self[1:]):
            lines.append(f"{l:5}.{n:<8}" + "".join(f"{x:10.3f}" for x in values) + "  disagree" * bool(apart))
        return "\n".join(lines)


@torch.no_grad()
def important_neurons(model, text, answer, other=None, k=10):
    """ImportantNeurons: the k with the largest direct contributions to logit(answer), or logit(answer) - logit(other).

    At the last position of a text or ids (1,T). neurons: [(layer, neuron)], by |direct|. The rest is (k,): activation;
    direct = activation x (output weights . unembedding direction), the final norm's scale held at this run's value;
    ablation = intact - ablated, with 0 at every position, so with what later blocks make of it; disagree: one of these
    is less than half of the other, or of the other sign. In logits. A neuron that works through later blocks alone may
    not be among the k. Cost: 1 + k passes.
    """
    check_mode(model)
    ids = encode(model, text)
    if len(ids) != 1:
        raise ValueError(f"give one text, or ids (1, T); got {len(ids)}")
    answers = torch.cat([answer_ids(model, each, ids, ids, "given") for each in (answer, other) if each is not None])
    unembedding = model.lm_head.weight[answers[0]] - model.lm_head.weight[answers[1:]].sum(0)  # (C,)
    kept, ln_f, blocks = tails.record(model, ids, ["mlp_post"]), model.transformer.ln_f, model.transformer.h
    end = kept["resid_post"][len(blocks) - 1][0, -1]  # (C,)
    direction = (ln_f.weight * unembedding) / (end.var(correction=0) + ln_f.eps).sqrt()
    acts = torch.stack([x[0, -1] for x in kept["mlp_post"].values()])  # (L,4C)
    weights = torch.stack([(direction - direction.mean()) @ block.mlp.c_proj.weight for block in blocks])  # (L,4C)
    top = (acts * weights).abs().flatten().topk(min(k, acts.numel())).indices
    neurons = [divmod(i, acts.size(1)) for i in top.tolist()]

    patches = [
        Patch(l, None, lambda old, n=n: old.index_fill(-1, n, 0), "mlp_post")
        for (l, _), n in zip(neurons, top % acts.size(1))
    ]
    ablated = torch.stack([model.stream(ids, [patch])[0, -1] for patch in patches])  # (k,C)
    ablation = (ln_f(end) - ln_f(ablated)) @ unembedding  # (k,C) @ (C,) -> (k,)
    direct = (acts * weights).flatten()[top]
    disagree = (direct - ablation).abs() > torch.maximum(direct.abs(), ablation.abs()) / 2
    quantity = " - ".join(f"logit({token!r})" for token in _tokens(model, answers))
    return ImportantNeurons(quantity, neurons, acts.flatten()[top], direct, ablation, disagree)


def _numbers(model, numbers, name):
    """The layers or neurons that are given, one or several, as a list of ints; ValueError if there is no such."""
    size = model.config.n_layer if name == "layer" else model.config.n_inner
    found = [plain(n) for n in (numbers if isinstance(numbers, (list, tuple, range)) else [numbers])]
    if not found or not all(type(n) is int and 0 <= n < size for n in found):
        raise ValueError(f"no {name} {numbers!r}; the {name}s are 0 to {size - 1}")
    return list(dict.fromkeys(found))


def _tokens(model, ids):
    return [str(i) for i in ids.tolist()] if model.tokenizer is None else model.tokenizer.tokens(ids)


def _mlp_post(model, texts, layers):
    """(layer, windows, mlp_post (tokens,4C) at their tokens, in order) for each batch and each of the layers."""
    check_mode(model)
    for windows in _batches(model, texts):
        ids = pad_sequence([ids for *_, ids in windows], True, -1).to(model.lm_head.weight.device)  # (B,T)
        x = model.transformer.wte(ids.clamp(min=0)) + model.transformer.wpe.weight[: ids.size(1)]  # (B,T,C)
        for layer, block in enumerate(model.transformer.h[: max(layers) + 1]):
            kept = {}
            x = block(x, lambda site, x, kept=kept: kept.setdefault(site, x))
            if layer in layers:
                yield layer, windows, kept["mlp_post"][ids >= 0]
        if not x.isfinite().all():
            raise ValueError("the runs give values that are NaN or infinite; check the weights and the dtype")


def _batches(model, texts):
    """Lists of windows (text's number, start, ids (T,)); a text is asked for when the one before it is used up."""
    V, size, batch, longest = model.config.vocab_size, model.block_size, [], 0
    texts = [texts] if isinstance(texts, str) else texts
    for number, text in enumerate(tqdm(texts, desc="neurons", unit="text", disable=None)):
        if isinstance(text, str) and model.tokenizer is None:
            raise ValueError("this model has no tokenizer; give ids instead of texts")
        ids = torch.as_tensor(model.tokenizer.encode(text) if isinstance(text, str) else text, device="cpu")
        if ids.ndim != 1 or (len(ids) and (ids.is_floating_point() or not 0 <= ids.min() <= ids.max() < V)):
            raise ValueError(f"text {number} must be a text, or ids (T,) from 0 to {V - 1}; got {text!r:.80}")
        for start, window in zip(range(0, len(ids), size), ids.long().split(size)):
            longest = max(longest, len(window))
            if batch and (len(batch) + 1) * longest > AT_ONCE:
                yield batch
                batch, longest = [], len(window)
            batch.append((number, start, window))
    if not batch:
        raise ValueError("the texts have no tokens; mind that a generator gives its texts only once")
    yield batch
