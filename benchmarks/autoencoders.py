"""How fast are autoencoders trained, beside sae-lens, and how well do they fit after equal steps?

    python -m venv peers && peers/bin/pip install -r requirements.txt sae-lens
    peers/bin/python -m benchmarks.autoencoders [--kind topk] [--size names]

sae-lens brings 150 packages, so it gets an environment of its own. Both train with the same
activations, batches, sizes and steps, in turns in one process: a machine that slows down slows
both. sae-lens has its own defaults else. Their parametrisations differ: try several rates, each is
to be judged at its best. What counts is the step of the training: loss, gradients, optimizer. The
activations are made before. FVU and L0 are measured on activations that neither has seen, by the
formula of experiments.train_autoencoder.
"""

import statistics
import sys
import time
from argparse import SUPPRESS
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from experiments.corpora import read_corpus
from mingpt.common import command_parser, run_command
from mingpt.interpretability.activation_stream import ActivationStream, StreamConfig
from mingpt.interpretability.autoencoder_training import AutoencoderTrainer, SparsityConfig
from mingpt.model import GPT
from mingpt.trainer import TrainerConfig


@dataclass
class Size:
    """What is trained, and how large its steps are."""

    width: int
    n_features: int
    k: int
    tokens: int  # in a step
    steps: int
    learning_rate: float


SIZES = {
    "names": Size(128, 2048, 16, 2048, 200, 1e-3),
    "gpt2": Size(768, 24576, 32, 2048, 12, 4e-4),
}
WARMUP = 0.1  # share of the steps


class Planted(ActivationStream):
    """Activations of width d that are sums of few of 4 d directions: no model of that size is here.

    Only its speed is that of real ones; how well they are fitted says little.
    """

    def __init__(self, model, config, width):
        self.model = model
        self.config = config
        self.width = width
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(4 * width, width, generator=generator)
        self.directions = F.normalize(directions, dim=1)

    def round(self, number):
        generator = torch.Generator().manual_seed(1 + number)
        shape = (self.config.tokens * self.config.batches, len(self.directions))
        active = torch.rand(shape, generator=generator) < 20 / shape[1]
        strength = 1 + torch.rand(shape, generator=generator)
        return (active * strength) @ self.directions


def make_stream(name, size, layer):
    """The stream of activations of a size: of a layer of names, or planted ones."""
    model = GPT.from_pretrained("names")
    config = StreamConfig(layer, tokens=size.tokens, batches=min(16, size.steps))
    if name == "names":
        return ActivationStream(model, config, read_corpus("names")[:8000])
    return Planted(model, config, size.width)


class Ours:
    """This project's training, a step at a time."""

    name = "mingpt"

    def __init__(self, stream, kind, size, l1):
        config = TrainerConfig(
            device="cpu",
            max_iters=size.steps,
            learning_rate=size.learning_rate,
            final_learning_rate=size.learning_rate / 100,
            warmup_iters=round(WARMUP * size.steps),
            betas=(0.9, 0.999),
        )
        l1 = l1 if kind == "relu" else 0.0
        sparsity = SparsityConfig(kind, size.n_features, size.k, l1=l1)
        self.trainer = AutoencoderTrainer(config, stream, sparsity)
        self.trainer.model.fit_scale(stream.round(0))
        self.trainer.model.train()

    def step(self, x):
        self.trainer._step(x)
        self.trainer.iter_num += 1

    def reconstruct(self, x):
        """(reconstruction (N,d), features (N,n))."""
        autoencoder = self.trainer.autoencoder()
        return autoencoder(x), autoencoder.encode(x)


class Peer:
    """sae-lens's SAETrainer on activations that are scaled as it would scale them."""

    name = "sae-lens"

    def __init__(self, stream, kind, size, l1):
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
        from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer

        classes = {
            "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
            "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
            "relu": (StandardTrainingSAE, StandardTrainingSAEConfig),
        }
        # The same weight: theirs adds the squared error over the channels, where ours is their mean
        # and the penalty is divided by the root of d.
        options = {"l1_coefficient": l1 * size.width**0.5} if kind == "relu" else {"k": size.k}
        sae_class, config_class = classes[kind]
        torch.manual_seed(0)
        sae = sae_class(
            config_class(
                d_in=size.width,
                d_sae=size.n_features,
                normalize_activations="expected_average_only_in",
                **options,
            )
        )
        config = SAETrainerConfig(
            total_training_samples=size.steps * size.tokens,
            train_batch_size_samples=size.tokens,
            lr=size.learning_rate,
            lr_end=size.learning_rate / 100,
            lr_scheduler_name="cosineannealing",
            lr_warm_up_steps=round(WARMUP * size.steps),
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.trainer = SAETrainer(config, sae, iter(()))
        self.scale = size.width**0.5 / stream.round(0).norm(dim=-1).mean()
        self.trainer.activation_scaler.scaling_factor = self.scale.item()

    def step(self, x):
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def reconstruct(self, x):
        """(reconstruction (N,d), features (N,n))."""
        sae = self.trainer.sae.eval()
        features = sae.encode(x * self.scale)
        return sae.decode(features) / self.scale, features


def compare(kind, name, l1, layer, at_once=4, **changes):
    """Train both in turns, so many steps at once, and print a line for each.

    l1: of relu. layer: of names. changes: values of the Size's fields, in place of its own.
    """
    size = replace(SIZES[name], **changes)
    stream = make_stream(name, size, layer)
    ways = [way(stream, kind, size, l1) for way in (Ours, Peer)]
    seconds = {way.name: [] for way in ways}
    batches = stream.from_batch(0)
    for _ in range(size.steps // at_once):
        group = [next(batches) for _ in range(at_once)]
        for way in ways:
            for x in group:
                start = time.perf_counter()
                way.step(x)
                seconds[way.name].append(time.perf_counter() - start)
    x = stream.round(10**6)[:4096]
    peers = statistics.median(seconds["sae-lens"])
    for way in ways:
        median = statistics.median(seconds[way.name])
        with torch.no_grad():
            reconstruction, features = way.reconstruct(x)
        fvu = (x - reconstruction).square().sum() / (x - x.mean(0)).square().sum()
        l0 = (features > 0).sum(-1).float().mean()
        print(
            f"{name:6} {kind:10} {way.name:9} {size.tokens / median:8,.0f} tokens/s, "
            f"{peers / median:.2f} times sae-lens's; {size.steps} steps, "
            f"rate {size.learning_rate:g}, FVU {fvu:.4f}, L0 {l0:.1f}",
            flush=True,
        )


def main():
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("--kind", choices=("topk", "batchtopk", "relu"), default="topk")
    parser.add_argument("--size", dest="name", choices=SIZES, default="names")
    parser.add_argument("--steps", type=int, default=SUPPRESS, help="default: by size")
    # The two have other parametrisations: each is to be judged at the rate that is best for it.
    parser.add_argument("--learning-rate", type=float, default=SUPPRESS, help="default: by size")
    parser.add_argument("--l1", type=float, default=0.05, help="of relu; default: %(default)s")
    parser.add_argument("--layer", type=int, default=6, help="of names; default: %(default)s")
    options = parser.parse_args()
    return run_command(lambda given: compare(**vars(given)), options)


if __name__ == "__main__":
    sys.exit(main())
