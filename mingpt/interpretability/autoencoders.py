"""Which few features is an activation made of? A sparse autoencoder says so, and puts it together.

A site's activations (...,d) become features (...,n), of which few are not 0, and a weighted sum of
the features' directions is the activation again, but for an error. That a feature is active shows
neither that the model uses it, nor that its name fits at every strength of it.
Sources: Bricken et al. 2023 (transformer-circuits.pub), Cunningham et al. 2023 (arXiv 2309.08600);
Gao et al. 2024 (TopK, 2406.04093), Rajamanoharan et al. 2024 (JumpReLU, 2407.14435).
"""

import torch
from torch import Tensor, nn

from mingpt.common import AnyPath
from mingpt.interpretability.autoencoder_config import AutoencoderConfig as AutoencoderConfig

EPSILON = 1e-5  # of layer_norm, added to the deviation


class Autoencoder(nn.Module):
    """Activations (...,d) of one site -> features (...,n) -> the activations again.

    features = activation((x - b_dec) @ W_enc + b_enc), of x normalised; the reconstruction is
    features @ W_dec + b_dec with the normalisation undone. At z the heads lie side by side.
    """

    W_enc: nn.Parameter  # (d,n)
    b_enc: nn.Parameter  # (n,)
    W_dec: nn.Parameter  # (n,d)
    b_dec: nn.Parameter  # (d,)
    threshold: nn.Parameter  # (n,), of jumprelu alone

    @classmethod
    def from_pretrained(
        cls,
        name: AnyPath,
        layer: int | None = None,
        site: str | None = None,
        centered_stream: bool | None = None,
    ) -> "Autoencoder":
        """The named autoencoder in fp32, its weights without gradient.

        name: names, the embedded one; a folder as SAELens or sparsify writes it, a .pt file as
        OpenAI has them, a hub id (owner/name), or one with the folder in it (owner/name/folder).
        layer, site: which of several, or where the files do not say so. centered_stream: whether it
        was trained on a centred stream, where the files do not say so.
        hub.Unavailable as for a model; ValueError for files that are not whole, or ask for what
        there is not here.
        """
        # Only here: it loads what downloads need.
        from mingpt.interpretability import autoencoder_files

        config, weights = autoencoder_files.read(name, layer, site, centered_stream)
        return cls(config, weights).requires_grad_(False)

    def save_pretrained(self, folder: AnyPath, dtype: torch.dtype = torch.float32) -> None:
        """Write cfg.json and sae_weights.safetensors, as SAELens 6 reads them too."""
        from mingpt.interpretability import autoencoder_files

        autoencoder_files.save(self, folder, dtype)

    def __init__(self, config: AutoencoderConfig, weights: dict[str, Tensor] | None = None):
        """A new one with random directions, or one of these weights {name: tensor}."""
        super().__init__()
        self.config = config
        for name, weight in (weights or random_weights(config)).items():
            self.register_parameter(name, nn.Parameter(weight))

    def extra_repr(self) -> str:
        """What print shows of it."""
        config = self.config
        place = f"{config.site} of layer {config.layer}"
        return f"{config.n_features} features of {place}, {config.activation}"

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction (...,d) of x (...,d): what `decode` gives, made like x again."""
        normed, scale, mean = self.normalize(x)
        return self.decode(self.activate(self.pre_activations(normed))) * scale + mean

    def encode(self, x: Tensor) -> Tensor:
        """Features (...,n) of activations x (...,d), none below 0."""
        normed, _, _ = self.normalize(x)
        return self.activate(self.pre_activations(normed))

    def decode(self, features: Tensor) -> Tensor:
        """(...,d) of features (...,n), still normalised: how x was is not in its features."""
        return features @ self.W_dec + self.b_dec  # (...,n) @ (n,d) -> (...,d)

    def normalize(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(normed (...,d), scale (...,1), mean (...,1)); x is normed * scale + mean.

        With layer_norm that is so but for EPSILON.
        """
        config = self.config
        if x.size(-1) != config.width:
            raise ValueError(
                f"this autoencoder takes {config.width} numbers at each token, "
                f"got {x.size(-1)}; was it trained on this model and site?"
            )
        x = x.to(self.W_enc)
        scale = torch.ones_like(x[..., :1])
        mean = torch.zeros_like(scale)
        if config.centered_stream or config.normalization == "layer_norm":
            mean = x.mean(-1, keepdim=True)
            x = x - mean
        if config.normalization == "layer_norm":
            scale = x.std(-1, keepdim=True)  # by d - 1, as those that are published have it
            x = x / (scale + EPSILON)
        elif config.normalization == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / config.width**0.5
            x = x / scale.clamp(min=torch.finfo(x.dtype).tiny)  # a vector of zeros stays one
        return x, scale, mean

    def pre_activations(self, normed: Tensor) -> Tensor:
        """(...,n) of normalised activations (...,d)."""
        if self.config.subtract_b_dec:
            normed = normed - self.b_dec
        return normed @ self.W_enc + self.b_enc  # (...,d) @ (d,n) -> (...,n)

    def activate(self, pre: Tensor) -> Tensor:
        """Features (...,n) of their pre-activations."""
        features = pre.relu()
        if self.config.activation == "jumprelu":
            return features * (pre > self.threshold)
        if self.config.k is not None:  # topk
            top = features.topk(self.config.k, sorted=False)
            return torch.zeros_like(features).scatter(-1, top.indices, top.values)
        return features


def random_weights(config: AutoencoderConfig) -> dict[str, Tensor]:
    """{name: tensor} of a new autoencoder: the encoder reads what the decoder writes."""
    directions = torch.randn(config.n_features, config.width)
    directions = nn.functional.normalize(directions, dim=-1)
    weights = {
        "W_enc": directions.T.clone(memory_format=torch.contiguous_format),  # (d,n)
        "b_enc": torch.zeros(config.n_features),
        "W_dec": directions,  # (n,d), rows of length 1
        "b_dec": torch.zeros(config.width),
    }
    if config.activation == "jumprelu":
        weights["threshold"] = torch.zeros(config.n_features)
    return weights


def as_vectors(x: Tensor, site: str) -> Tensor:
    """What is at a site, (B,T,d): at z (B,H,T,D) or (B,H,D) the heads are put side by side."""
    return x.movedim(1, -2).flatten(-2) if site == "z" else x


def from_vectors(x: Tensor, like: Tensor, site: str) -> Tensor:
    """(B,T,d) as the site has it, with the heads of `like` apart at z."""
    if site != "z":
        return x
    return x.unflatten(-1, (like.size(1), -1)).movedim(-2, 1)
