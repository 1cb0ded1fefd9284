"""How is an autoencoder trained? TopK, BatchTopK or ReLU with an L1 penalty, by mingpt/trainer.py.

Schedule, checkpoints, resuming and several processes are the Trainer's. Here is what is an
autoencoder's own: its loss, the auxiliary loss that revives dead features, the decoder's norm.
Sources: Bricken et al. 2023 (ReLU and L1; transformer-circuits.pub), Gao et al. 2024 (TopK, the
auxiliary loss; arXiv 2406.04093), Bussmann et al. 2024 (BatchTopK; 2412.06410).
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mingpt import processes
from mingpt.interpretability.activation_stream import ActivationStream
from mingpt.interpretability.autoencoder_config import AutoencoderConfig
from mingpt.interpretability.autoencoders import Autoencoder
from mingpt.interpretability.sparse_features import (
    Encode,
    decode,
    top_of_batch,
    top_of_token,
)
from mingpt.trainer import Trainer, TrainerConfig

# What each kind is in use: BatchTopK's features each have one threshold then, for any batch.
KINDS = {"topk": "topk", "batchtopk": "jumprelu", "relu": "relu"}
# The encoder begins as the decoder, times this: the k largest of n features overlap, and their sum
# would be far larger than the activation. Measured: with 0.3 the error after 80 steps is a third
# smaller than with 1 at layer 6 of names, a fifth at layer 2, a quarter in a random model; beside
# 0.1 an eighth, a tenth and a sixteenth.
ENCODER_START = 0.3
STATE = "training.pt"  # in a checkpoint, beside the autoencoder itself


@dataclass
class SparsityConfig:
    """What is trained, and how few features are to be active."""

    kind: str = "topk"  # of KINDS
    n_features: int = 2048
    k: int = 16  # topk, batchtopk: active features at a token, at batchtopk on average
    l1: float = 0.0  # relu: weight of the sum of a token's features, beside its squared error
    auxiliary: float = 1 / 32  # weight of what dead features reconstruct of the error
    dead_steps: int = 200  # a feature that was not active for so many is dead
    # batchtopk: of the moving average of the smallest value. Measured after 80 steps on names, with
    # k 16: at 0.01 the average lags and 24 features are active at a token, at 0.1 it is 15.9.
    threshold_rate: float = 0.1

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r:.40}")
        if not 1 <= self.k <= self.n_features:
            raise ValueError(f"k must be 1 to the {self.n_features} features, got {self.k}")
        for name in ("l1", "auxiliary"):
            # Neither may a nan pass.
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number from 0, got {getattr(self, name)}")
        if self.kind == "relu" and not self.l1:
            raise ValueError("without an l1 above 0 nothing makes relu's features few; give one")
        if self.dead_steps < 1:
            raise ValueError(f"dead_steps must be from 1, got {self.dead_steps}")


class TrainedAutoencoder(nn.Module):
    """An autoencoder on the way: its weights, what the training knows of it, and its loss.

    It learns activations that are scaled, so that their deviation is 1 a channel: rates and
    penalties mean the same for every model and layer. `finished` undoes the scaling.
    """

    scale: Tensor  # (): by so much activations are multiplied
    threshold: Tensor  # ()
    silent_steps: Tensor  # (n,): for so many each feature was not active

    def __init__(self, place: AutoencoderConfig, sparsity: SparsityConfig):
        """place: the AutoencoderConfig; sparsity: the SparsityConfig."""
        super().__init__()
        self.place = place
        self.sparsity = sparsity
        new = Autoencoder(replace(place, activation="relu", k=None))
        # Kept as (n,d), so that a feature's numbers lie side by side: gradients come so.
        self.W_enc = nn.Parameter((ENCODER_START * new.W_dec.detach()).T)
        self.b_enc = new.b_enc
        self.W_dec = new.W_dec
        self.b_dec = new.b_dec
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("silent_steps", torch.zeros(place.n_features, dtype=torch.long))
        self.active_now = torch.zeros(0)  # (n,): which features the last batch had

    @torch.no_grad()
    def fit_scale(self, x: Tensor) -> None:
        """Take over the mean and the deviation of activations x (N,d)."""
        mean = x.mean(0)
        variance = (x - mean).square().mean()
        if not variance > 0 or not variance.isfinite():
            raise ValueError(
                f"the activations have the variance {variance}, so there is nothing to learn; "
                "check the model, the site and the text"
            )
        self.scale.copy_(variance.rsqrt())
        self.b_dec.copy_(mean * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """The loss of activations x (N,d): the error's square beside the deviation's."""
        x = x * self.scale
        centred = x - self.b_dec.detach()
        # The value is b_enc; b_dec gets the gradient that it has in the encoder, at one product.
        b_enc = self.b_enc - (self.b_dec - self.b_dec.detach()) @ self.W_enc.detach()
        if self.sparsity.kind == "relu":
            features = torch.addmm(b_enc, centred, self.W_enc).relu()  # (N,d) @ (d,n) -> (N,n)
            total = features @ self.W_dec
            penalty = self.sparsity.l1 * features.sum(-1).mean() / x.size(-1) ** 0.5
            self.active_now = (features.detach() > 0).any(0)
        else:
            total = self._few_features(centred, b_enc)
            penalty = 0
        error = x - self.b_dec - total
        loss = error.square().mean() + penalty
        dead = (self.silent_steps >= self.sparsity.dead_steps).nonzero()[:, 0]
        if len(dead) and self.sparsity.auxiliary:
            missed = error.detach() - self._from_dead(centred, b_enc, dead)
            loss = loss + self.sparsity.auxiliary * missed.square().mean()
        return loss

    def _few_features(self, centred, b_enc):
        """(N,d): what the k active features of each token add up to; for topk and batchtopk."""
        k = self.sparsity.k
        with torch.no_grad():
            pre = torch.addmm(b_enc, centred, self.W_enc)  # (N,d) @ (d,n) -> (N,n)
            if self.sparsity.kind == "topk":
                active = top_of_token(pre, k)
            else:
                active = top_of_batch(pre, k, guess=0.8 * self.threshold)
        values = Encode.apply(centred, self.W_enc, b_enc, pre, active).relu()
        with torch.no_grad():
            self.active_now = torch.zeros_like(self.silent_steps, dtype=torch.bool)
            self.active_now[active.features[values > 0]] = True
            if self.training and self.sparsity.kind == "batchtopk":
                self._follow_threshold(values)
        return decode(values, self.W_dec, active)

    def _follow_threshold(self, values):
        """Move the threshold a little towards the smallest value above 0 that was active."""
        smallest = values.masked_fill(values <= 0, float("inf")).min()
        if smallest.isfinite():
            is_first = self.threshold == 0
            rate = 1.0 if is_first else self.sparsity.threshold_rate
            self.threshold.lerp_(smallest, rate)

    def _from_dead(self, centred, b_enc, dead):
        """(N,d): what the d / 2 dead features with the largest pre-activations add up to.

        Below 0 too: else what is dead for good would get no gradient.
        """
        pre = centred @ self.W_enc[:, dead] + b_enc[dead]  # (N,d) @ (d,m) -> (N,m)
        k = min(len(dead), self.place.width // 2)
        top = pre.topk(max(1, k), sorted=False)
        features = torch.zeros_like(pre).scatter(1, top.indices, top.values)
        return features @ self.W_dec[dead]  # (N,m) @ (m,d) -> (N,d)

    @torch.no_grad()
    def after_step(self, active_now: Tensor) -> None:
        """Give the decoder's rows length 1 again, and count; active_now (n,): of all processes."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-8))
        self.silent_steps.add_(1)[active_now] = 0

    @torch.no_grad()
    def finished(self) -> Autoencoder:
        """The Autoencoder, for activations as the model has them; a copy, without gradient."""
        kind = KINDS[self.sparsity.kind]
        k = self.sparsity.k if kind == "topk" else None
        autoencoder = Autoencoder(replace(self.place, activation=kind, k=k)).to(self.W_dec.device)
        autoencoder.W_enc.copy_(self.W_enc)
        autoencoder.W_dec.copy_(self.W_dec)
        autoencoder.b_enc.copy_(self.b_enc / self.scale)
        autoencoder.b_dec.copy_(self.b_dec / self.scale)
        if kind == "jumprelu":
            autoencoder.threshold.fill_(self.threshold / self.scale)
        return autoencoder.requires_grad_(False)

    def configure_optimizers(self, config: TrainerConfig) -> torch.optim.Adam:
        """Adam, whose state lies as the weights do."""
        has_fused = self.W_dec.device.type in ("cpu", "cuda")
        return torch.optim.Adam(
            self.parameters(), lr=config.learning_rate, betas=config.betas, fused=has_fused
        )


class AutoencoderTrainer(Trainer):
    """AutoencoderTrainer(config, stream, sparsity).run(): the Trainer, of an autoencoder.

    config: a TrainerConfig, whose batch_size is the stream's, in tokens. stream: an
    ActivationStream. `autoencoder()` is what it has learned so far. Its checkpoints are folders
    that Autoencoder.from_pretrained takes.
    """

    model: TrainedAutoencoder  # type: ignore[assignment]  # the Trainer's is a GPT
    train_dataset: ActivationStream  # type: ignore[assignment]  # the Trainer's, a Dataset

    def __init__(self, config: TrainerConfig, stream: ActivationStream, sparsity: SparsityConfig):
        settings = stream.config
        place = AutoencoderConfig(
            stream.width,
            sparsity.n_features,
            settings.layer,
            settings.site,
            beginning_token=settings.beginning_token,
            context=settings.context,
            model=stream.model.name,
        )
        torch.manual_seed(config.seed)
        config.batch_size = settings.tokens
        model = TrainedAutoencoder(place, sparsity)
        super().__init__(config, model, stream)  # type: ignore[arg-type]  # as said above
        stream.model.to(self.device)

    def _run(self):
        # Of a new run; of a resumed one the checkpoint has them.
        if not self.iter_num and not self.resumed:
            self.model.fit_scale(self.train_dataset.round(0))
        super()._run()

    def _tokens_in_batch(self):
        return self.config.batch_size

    def _batches(self, dataset, seed, start=0):
        for batch in dataset.from_batch(start):
            yield (batch,)

    def _step(self, x):
        super()._step(x)
        active_now = processes.add_up(self.process, self.model.active_now.long())
        self.model.after_step(active_now > 0)

    def _backward(self, x):  # type: ignore[override]  # a batch has no targets
        """This process's share of the loss of a batch x (N,d); the gradients are averaged."""
        own = self.process.own(x)
        share = len(own) / len(x)
        loss = self.parallel(own) * share
        (loss * self.process.count).backward()
        return loss.detach()

    def autoencoder(self) -> Autoencoder:
        """The Autoencoder as it is now; a copy."""
        return self.model.finished()

    def write_model(self, folder: Path) -> None:
        self.autoencoder().cpu().save_pretrained(folder)
        # Bit for bit, which its scaled copy is not.
        torch.save(self.model.state_dict(), folder / STATE)

    def read_model(self, folder: Path) -> None:
        weights = torch.load(folder / STATE, map_location=self.device, weights_only=True)
        self.model.load_state_dict(weights)
