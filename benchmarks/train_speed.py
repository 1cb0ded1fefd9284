"""How fast is training, beside a plain loop over transformers' GPT-2? For benchmarks.speed --train.

Both start from the same weights and see the same batches: bytes of this package's own source. In
each round first one, then the other makes some steps. There is no dropout, which transformers also
puts on the attention.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from experiments.train import PRESETS, shared_fields, windows
from mingpt import pretrained
from mingpt.config import GPTConfig
from mingpt.model import GPT
from mingpt.trainer import Trainer, TrainerConfig, draw_batches


def train_beside_transformers(preset_name, rounds, steps=8):
    """Print tokens a second and losses of both, and how far apart the losses are at most.

    Losses that stay together say that both did the same work.
    """
    torch.manual_seed(0)
    preset = replace(PRESETS[preset_name], warmup_iters=0, dropout=0.0)
    rows = windows(source_bytes(), preset.block_size)
    trainer = make_trainer(preset, rows)
    peer = Peer(trainer, rows)
    seconds = defaultdict(list)
    losses = defaultdict(list)

    def record(trainer):
        seconds["mingpt"].append(trainer.iter_dt)
        losses["mingpt"].append(trainer.loss.item())

    trainer.add_callback("on_batch_end", record)
    # By turns, so that a machine that slows down slows both.
    for _ in range(rounds):
        trainer.config.max_iters += steps
        trainer.run()
        for _ in range(steps):
            start = time.perf_counter()
            losses["transformers"].append(peer.step())
            seconds["transformers"].append(time.perf_counter() - start)
    print_rates(seconds, losses, preset.batch_size * preset.block_size)


def source_bytes():
    """The bytes of this package's source, as ids (N,): a text that is always there."""
    files = sorted(Path(pretrained.__file__).parent.rglob("*.py"))
    return torch.tensor([*b"".join(file.read_bytes() for file in files)])


def make_trainer(preset, rows):
    """The Trainer of a new model of the preset, which has made no step."""
    sizes = shared_fields(preset, GPTConfig)
    no_dropout = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT(GPTConfig(**sizes, **no_dropout, tie_word_embeddings=True))
    config = TrainerConfig(**shared_fields(preset, TrainerConfig))
    config.device = "cpu"
    config.max_iters = 0
    return Trainer(config, model, rows)


class Peer:
    """transformers' GPT2LMHeadModel with the trainer's weights, optimizer settings and batches."""

    def __init__(self, trainer, rows):
        from transformers import GPT2LMHeadModel

        config = trainer.config
        # By way of a file, since the two keep linear weights in different layouts.
        with tempfile.TemporaryDirectory() as folder:
            pretrained.save(trainer.model, folder)
            self.model = GPT2LMHeadModel.from_pretrained(folder, use_cache=False).train()
        # Decayed as configure_optimizers does, so that the losses can be compared.
        decayed = []
        others = []
        for name, parameter in self.model.named_parameters():
            is_embedding = "wte" in name or "wpe" in name
            is_linear = parameter.ndim == 2 and not is_embedding
            (decayed if is_linear else others).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, config.learning_rate, config.betas)
        sampler = draw_batches(len(rows), config.batch_size, config.seed)
        self.batches = iter(torch.utils.data.DataLoader(rows, batch_sampler=sampler))

    def step(self):
        """Make one step, as the Trainer does; the loss of its batch, as it was before."""
        x, y = next(self.batches)
        logits = self.model(x).logits  # (B,T,V)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


def print_rates(seconds, losses, tokens):
    """A line for each way; seconds, losses: {way: [of each step]}; tokens: in a step."""
    rates = {way: tokens / statistics.median(times) for way, times in seconds.items()}
    theirs = losses["transformers"]
    for way, rate in rates.items():
        ratio = rate / rates["transformers"]
        apart = max(abs(a - b) for a, b in zip(losses[way], theirs))
        print(
            f"{way:20}{rate:8,.0f} tokens/s, {ratio:.2f} times transformers'; "
            f"loss {losses[way][0]:.4f} to {losses[way][-1]:.4f}, at most {apart:.4f} apart"
        )
