"""What does the model do with a feature set, scaled or removed, or with nothing but the features?

Each function gives an ordinary mingpt.sites.Patch, computed from what is at the site in the run
that it goes into. The features are those that the autoencoder finds there; what it does not explain
of the activation, the error, is left in or out. No patch looks at how the text begins: put the
token before it (features.encode_text) where the autoencoder expects it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mingpt.interpretability.autoencoders import Autoencoder, as_vectors, from_vectors
from mingpt.interpretability.features import check_features
from mingpt.sites import Patch, Position

Change = Callable[[Tensor], Tensor]  # of features (...,n)


def reconstruct(
    autoencoder: Autoencoder,
    position: Position = None,
    keep_error: bool = False,
    change: Change | None = None,
) -> Patch:
    """A Patch: the site at the position as its features say it is.

    change: f(features (...,n)) -> features, applied before; it gets a copy. keep_error: add what
    the autoencoder does not explain of the activation, so that without a change all stays as it is.
    position: as in Patch.
    """
    config = autoencoder.config

    def activation(old):
        x = as_vectors(old, config.site).to(autoencoder.W_enc)
        new = rebuilt(autoencoder, x, keep_error, change or torch.Tensor.clone)
        return from_vectors(new, old, config.site)

    return Patch(config.layer, position, activation, config.site)


def rebuilt(autoencoder: Autoencoder, x: Tensor, keep_error: bool, change: Change) -> Tensor:
    """(...,d): activations x (...,d) with their features changed, with or without the error."""
    normed, scale, mean = autoencoder.normalize(x)
    features = autoencoder.activate(autoencoder.pre_activations(normed))
    changed = change(features.clone())
    if keep_error:
        # What the change writes is added: no difference of two large sums is taken.
        return x + (changed - features) @ autoencoder.W_dec * scale
    return autoencoder.decode(changed) * scale + mean


def change_feature(
    autoencoder: Autoencoder,
    feature: int | Sequence[int],
    value: float | None = None,
    scale: float | None = None,
    position: Position = None,
    keep_error: bool = True,
) -> Patch:
    """A Patch: a feature, or a list of them, set to a value or times a scale at the position.

    Give one of the two; value=0 removes the feature. All else, the error too, stays as it is; with
    keep_error=False the error is left out.
    """
    numbers = check_features(autoencoder, feature)
    if (value is None) == (scale is None):
        raise ValueError(
            f"give a value, 0 to remove the feature, or a scale; got {value!r} and {scale!r}"
        )
    number = torch.as_tensor(scale if value is None else value)
    if number.ndim or not number.isfinite():
        raise ValueError(f"a feature's value or scale must be a finite number, got {number}")

    def change(features):
        if value is None:
            features[..., numbers] *= scale
        else:
            features[..., numbers] = value
        return features

    return reconstruct(autoencoder, position, keep_error, change)
