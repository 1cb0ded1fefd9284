"""How good is an autoencoder: how few features, how much of the activation, how much of the loss?

A low error does not show that the features mean something, nor a recovered loss that the model
uses them as they are named. The fraction of variance unexplained is taken over all tokens, with the
mean of each channel: predicting that mean gives exactly 1. (An average of each token's own fraction
is another number, often much smaller.)
Sources: Gao et al. 2024 (arXiv 2406.04093); Bricken et al. 2023 (transformer-circuits.pub), dense
and dead features, loss recovered.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mingpt.interpretability import runs
from mingpt.interpretability.autoencoders import Autoencoder, as_vectors, from_vectors
from mingpt.interpretability.features import check_fits, encode_texts, feature_batches
from mingpt.interpretability.inputs import Texts
from mingpt.interpretability.readout import wide_dtype
from mingpt.interpretability.windows import batches
from mingpt.model import GPT
from mingpt.sites import Activations, Patch

DENSE = 0.1  # a feature that is active at more than this share of the tokens
LOSSES = ("clean", "reconstructed", "mean_ablated", "zero_ablated")


class Measured(NamedTuple):
    """A number and its standard error over the windows; NaN where there is one window alone."""

    value: float
    error: float

    def __str__(self):
        return f"{self.value:.4f} +- {self.error:.4f}"


@dataclass(repr=False)
class Quality:
    """What `evaluate` measures; printed, a table."""

    l0: Measured  # features active at a token
    fvu: Measured  # fraction of variance unexplained: sum |x - x^|^2 / sum |x - mean|^2
    losses: dict[str, Measured]  # one for each of LOSSES, of the next token, in nats
    recovered_mean: Measured  # (mean-ablated - reconstructed) / (mean-ablated - clean)
    recovered_zero: Measured  # the same of the zero-ablated run
    frequency: Tensor  # (n,): the share of the tokens at which each feature is active
    tokens: int
    windows: int
    beginning: bool  # whether a beginning token, which is not counted, stood before each window

    @property
    def dead(self) -> int:
        """How many features are active at none of the tokens."""
        return int((self.frequency == 0).sum())

    @property
    def dense(self) -> int:
        """How many features are active at more than a tenth of the tokens."""
        return int((self.frequency > DENSE).sum())

    def __repr__(self):
        put = "left out" if self.beginning else "none: the first token of each window counts"
        rows = {
            "active features (L0)": self.l0,
            "variance unexplained (FVU)": self.fvu,
            **{f"loss, {name.replace('_', '-')}": loss for name, loss in self.losses.items()},
            "loss recovered, mean-ablated = 0": self.recovered_mean,
            "loss recovered, zero-ablated = 0": self.recovered_zero,
            f"dead features of {len(self.frequency)}": self.dead,
            f"active at more than {DENSE:.0%}": self.dense,
            "n": f"{self.tokens} tokens in {self.windows} windows",
            "beginning token": put,
        }
        return "\n".join(f"{name:34}{value}" for name, value in rows.items())


@torch.no_grad()
def evaluate(
    model: GPT, autoencoder: Autoencoder, texts: Texts, beginning: bool | None = None
) -> Quality:
    """Quality of an autoencoder on texts, a list of texts or of ids.

    Texts are cut into windows as long as those of the training. beginning: as in features.features;
    the beginning token is neither replaced nor counted. Losses are of the tokens whose predecessor
    is replaced. Cost: 5 passes over the texts, of which 1 goes only up to the layer.
    """
    check_fits(model, autoencoder)
    if not isinstance(texts, (str, list, tuple)):
        raise ValueError("the texts are read twice; give them as a list")
    mean, counts, tokens = _mean_and_counts(model, autoencoder, texts, beginning)
    encoded, options = encode_texts(model, autoencoder, texts, beginning)
    parts: dict[str, list[Tensor]] = {}  # (B,) of each batch
    for _, ids, is_token in batches(model, encoded, **options):
        for name, values in _measure(model, autoencoder, ids, is_token, mean).items():
            parts.setdefault(name, []).append(values)
    sums = {name: torch.cat(values) for name, values in parts.items()}  # (W,) each
    if not sums["predictions"].any():
        raise ValueError(
            "every text is one token, which has no next one to be wrong about; give longer texts"
        )
    losses = {name: ratio(sums[name], sums["predictions"]) for name in LOSSES}
    return Quality(
        ratio(sums["active"], sums["tokens"]),
        ratio(sums["error"], sums["variance"]),
        losses,
        _recovered(sums, "mean_ablated"),
        _recovered(sums, "zero_ablated"),
        frequency=counts / tokens,
        tokens=tokens,
        windows=len(sums["tokens"]),
        beginning=options["beginning"] is not None,
    )


def _mean_and_counts(model, autoencoder, texts, beginning):
    """(mean (d,) at the site, how often each feature is active (n,), tokens), in fp64."""
    config = autoencoder.config
    total = torch.zeros(config.width, dtype=torch.float64)
    counts = torch.zeros(config.n_features, dtype=torch.float64)
    tokens = 0
    for _, x in feature_batches(model, autoencoder, texts, beginning):
        total += x.cpu().double().sum(0)
        counts += (autoencoder.encode(x) > 0).sum(0).cpu()
        tokens += len(x)
    return total / tokens, counts, tokens


def _measure(model, autoencoder, ids, is_token, mean):
    """{name: (B,)}: sums over the tokens of each window of what `evaluate` averages.

    ids, is_token: of windows.batches. mean: (d,), what the mean-ablated run has at the site.
    """
    config = autoencoder.config
    stored: Activations = {config.site: {}}
    is_replaced = is_token[..., None]  # (B,T,1)

    def replaced(new):
        """The Patch that puts new(x) in the place of x (B,T,d) at the tokens of the text."""

        def activation(old):
            x = as_vectors(old, config.site)
            mixed = torch.where(is_replaced, new(x).to(x), x)
            return from_vectors(mixed, old, config.site)

        return Patch(config.layer, None, activation, config.site)

    patches = {
        "clean": [],
        "reconstructed": [replaced(autoencoder)],
        "mean_ablated": [replaced(lambda x: mean.to(x).expand_as(x))],
        "zero_ablated": [replaced(torch.zeros_like)],
    }
    sums = {}
    has_next = is_token[:, :-1] & is_token[:, 1:]
    for name, patch in patches.items():
        end = runs.run(model, ids, patch, stored if name == "clean" else None)
        sums[name] = (_losses(model, end, ids) * has_next).sum(1)
    x = as_vectors(stored[config.site][config.layer], config.site)
    sums |= _errors(autoencoder, x, is_token, mean)
    sums |= {"tokens": is_token.sum(1), "predictions": has_next.sum(1)}
    return {name: value.cpu().double() for name, value in sums.items()}


def _losses(model, end, ids):
    """(B,T-1): the loss of each next token of ids (B,T), in nats, of final streams (B,T,C)."""
    normed = model.transformer.ln_f(end[:, :-1])
    logits = model.lm_head(normed).to(wide_dtype(model))  # (B,T-1,C) -> (B,T-1,V)
    targets = ids[:, 1:]
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view_as(targets)


def _errors(autoencoder, x, is_token, mean):
    """{name: (B,)}: sums over the tokens of each window, of activations x (B,T,d)."""
    normed, scale, channel_mean = autoencoder.normalize(x)
    features = autoencoder.activate(autoencoder.pre_activations(normed))
    reconstruction = autoencoder.decode(features) * scale + channel_mean
    # Sums in fp64, which some devices do not have.
    x = x.cpu().double()
    error = x - reconstruction.cpu().double()
    # Of a centred stream, what was put aside is not explained by the features.
    if autoencoder.config.centered_stream:
        x = x - x.mean(-1, keepdim=True)
        mean = mean - mean.mean()
    sums = {
        "active": (features > 0).sum(-1).cpu(),
        "error": (error**2).sum(-1),
        "variance": ((x - mean) ** 2).sum(-1),
    }
    is_token = is_token.cpu()
    return {name: (value * is_token).sum(1) for name, value in sums.items()}


def ratio(numerators: Tensor, denominators: Tensor) -> Measured:
    """Measured sum of numerators (W,) / sum of denominators (W,), of W windows drawn at random."""
    value = numerators.sum() / denominators.sum()
    W = len(numerators)
    if W == 1:
        return Measured(value.item(), float("nan"))
    # Of a ratio of two sums, to first order (Cochran 1977, Sampling Techniques, sec. 6.4).
    spread = (numerators - value * denominators).square().sum() * W / (W - 1)
    return Measured(value.item(), (spread.sqrt() / denominators.sum()).abs().item())


def _recovered(sums, ablated):
    """The share of the loss that the reconstruction wins back of what this ablation costs."""
    return ratio(sums[ablated] - sums["reconstructed"], sums[ablated] - sums["clean"])
