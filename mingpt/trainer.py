"""The training loop of a GPT.

minGPT's interface (get_default_config, callbacks, run), and besides: a learning-rate schedule, evaluation, and
checkpoints that resume exactly. Batch number s is drawn from a generator seeded by (seed, s) alone, so that a
resumed run sees what the undisturbed one would have seen.
"""

import math
import os
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from mingpt import pretrained
from mingpt.common import check_device
from mingpt.hub import steps_in
from mingpt.model import GPT

KEPT = ("iter_num", "seconds", "history")  # of a trainer, in its checkpoints


@dataclass(slots=True)
class TrainerConfig:
    device: str = "auto"  # cuda if there is one, else cpu
    num_workers: int = 0  # processes that prepare batches
    max_iters: int | None = (
        None  # steps in all, resumed ones included; None: until a callback raises StopIteration
    )
    batch_size: int = 64
    accumulation: int = 1  # parts in which a batch goes through the model, for memory; the gradient is the whole one's
    learning_rate: float = 3e-4
    betas: tuple = (0.9, 0.95)
    weight_decay: float = 0.1
    grad_norm_clip: float = 1.0
    warmup_iters: int = 0  # steps of linear rise to learning_rate
    final_learning_rate: float | None = (
        None  # with max_iters: where a cosine from learning_rate ends; None is constant
    )
    seed: int = 3407  # of the batches' order
    eval_interval: int | None = None  # steps between evaluations on eval_dataset
    eval_batches: int = 10
    checkpoint_dir: str | None = None  # folder for checkpoints, the newest of which is kept
    checkpoint_interval: int = 1000  # steps between checkpoints
    kept_steps: tuple = ()  # steps whose weights are kept for good; 0 is the start


class StepSampler:
    """Endless batches of dataset indices, drawn with replacement, from batch number `start` on."""

    def __init__(self, size, batch_size, seed, start=0):
        self.size, self.batch_size, self.seed, self.start = size, batch_size, seed, start

    def __iter__(self):
        step = self.start
        while True:
            generator = torch.Generator().manual_seed(
                (self.seed * 0x9E3779B1 + step) % 2**32
            )  # it takes 32 bits
            yield torch.randint(self.size, (self.batch_size,), generator=generator).tolist()
            step += 1


class Trainer:
    """Trainer(config, model, train_dataset).run(); datasets give (x, y) pairs of LongTensors (T,).

    Callbacks f(trainer) are called "on_batch_end" and "on_eval_end"; one that raises StopIteration ends the run.
    Between steps iter_num, loss, eval_loss, iter_time, iter_dt, model and optimizer are there to read.
    """

    @staticmethod
    def get_default_config():
        return TrainerConfig()

    def __init__(self, config, model, train_dataset, eval_dataset=None):
        if config.final_learning_rate is not None and config.max_iters is None:
            raise ValueError("a cosine to final_learning_rate ends at max_iters; set it")
        if config.eval_interval and eval_dataset is None:
            raise ValueError("eval_interval needs an eval_dataset; give one to Trainer")
        self.config, self.train_dataset, self.eval_dataset = config, train_dataset, eval_dataset
        device = config.device
        self.device = (
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        )
        check_device(self.device)
        self.model = model.to(self.device)
        self.optimizer = model.configure_optimizers(config)
        self.callbacks = defaultdict(list)
        self.iter_num, self.loss, self.eval_loss, self.iter_time, self.iter_dt = (
            0,
            None,
            None,
            0.0,
            0.0,
        )
        self.resumed, self.seconds, self.history = (
            False,
            0.0,
            [],
        )  # history is the callbacks'; checkpoints have it too

    def add_callback(self, onevent, callback):
        self.callbacks[onevent].append(callback)

    def set_callback(self, onevent, callback):
        self.callbacks[onevent] = [callback]

    def trigger_callbacks(self, onevent):
        for callback in self.callbacks[onevent]:
            callback(self)

    def learning_rate(self):
        """The schedule's value for the coming step."""
        config = self.config
        if self.iter_num < config.warmup_iters:
            return config.learning_rate * (self.iter_num + 1) / config.warmup_iters
        if config.final_learning_rate is None:
            return config.learning_rate
        done = (self.iter_num - config.warmup_iters) / max(
            1, config.max_iters - config.warmup_iters
        )
        fall = (
            (config.learning_rate - config.final_learning_rate) * (1 + math.cos(math.pi * done)) / 2
        )
        return config.final_learning_rate + fall

    def run(self):
        """Train from iter_num to max_iters. It ends in train mode, with a checkpoint if there is a checkpoint_dir."""
        config = self.config
        fresh = self.iter_num == 0 and not self.resumed
        if config.checkpoint_dir and fresh and steps_in(config.checkpoint_dir):
            todo = "call resume(), or take another folder"
            raise ValueError(f"{config.checkpoint_dir} has another run's checkpoints; {todo}")
        if config.checkpoint_dir and self.iter_num in config.kept_steps:
            self.save_checkpoint()
        self.model.train()
        self.iter_time = time.monotonic()
        batches = iter(self._loader(self.train_dataset, config.seed, self.iter_num))
        tokens = config.batch_size * len(self.train_dataset[0][1])  # in a batch
        total = config.max_iters and config.max_iters * tokens
        bar = {
            "initial": self.iter_num * tokens,
            "total": total,
            "unit": " tokens",
            "unit_scale": True,
        }
        with tqdm(**bar, disable=None, dynamic_ncols=True) as progress:
            while config.max_iters is None or self.iter_num < config.max_iters:
                self._step(*(tensor.to(self.device) for tensor in next(batches)))
                progress.update(tokens)
                progress.set_postfix(
                    step=self.iter_num + 1, loss=f"{self.loss.item():.3f}", refresh=False
                )
                try:
                    self._after_step()
                except StopIteration:
                    break
        if config.checkpoint_dir:
            self.save_checkpoint()

    def _loader(self, dataset, seed, start):
        sampler = StepSampler(len(dataset), self.config.batch_size, seed, start)
        own = (
            torch.Generator()
        )  # the loader's own draws must not move the global generator, which dropout reads
        return DataLoader(
            dataset, batch_sampler=sampler, num_workers=self.config.num_workers, generator=own
        )

    def _step(self, x, y):
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.model.zero_grad(set_to_none=True)
        self.loss, parts = torch.zeros((), device=self.device), self.config.accumulation
        for x_part, y_part in zip(x.chunk(parts), y.chunk(parts)):
            share = (y_part != -1).sum() / (y != -1).sum() if parts > 1 else 1.0  # of the targets
            if share:
                loss = self.model(x_part, y_part)[1] * share
                loss.backward()
                self.loss = self.loss + loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_norm_clip)
        if not norm.isfinite():
            what = f"step {self.iter_num + 1} has the loss {self.loss.item()} and a gradient of size {norm.item()}"
            raise ValueError(
                f"{what}; look at the targets, or lower learning_rate and take another folder"
            )
        self.optimizer.step()

    def _after_step(self):
        config = self.config
        self.iter_num += 1
        now = time.monotonic()
        self.iter_dt, self.iter_time = now - self.iter_time, now
        self.seconds += self.iter_dt
        if config.eval_interval and self.iter_num % config.eval_interval == 0:
            self.eval_loss = self.evaluate()
            self.trigger_callbacks("on_eval_end")
        self.trigger_callbacks("on_batch_end")
        due = self.iter_num % config.checkpoint_interval == 0 or self.iter_num in config.kept_steps
        if config.checkpoint_dir and due:
            self.save_checkpoint()  # after the callbacks: the random numbers that they draw are drawn
        self.iter_time = time.monotonic()  # what was done between steps is not the next one's time

    @torch.no_grad()
    def evaluate(self):
        """Mean loss in nats over eval_batches batches of eval_dataset, the same ones each time."""
        was_training = self.model.training
        self.model.eval()
        batches = islice(
            self._loader(self.eval_dataset, self.config.seed + 1, 0), self.config.eval_batches
        )
        losses = [self.model(x.to(self.device), y.to(self.device))[1].item() for x, y in batches]
        self.model.train(was_training)
        return sum(losses) / len(losses)

    def save_checkpoint(self):
        """Write checkpoint_dir/step-N: a folder that from_pretrained takes, with trainer_state.pt; drop the older ones.

        Of those at kept_steps the model stays, without trainer_state.pt.
        It is written under another name and renamed when whole, so a kill at any moment leaves a whole newest one.
        """
        root = Path(self.config.checkpoint_dir)
        final = root / f"step-{self.iter_num:08d}"
        if not final.exists():
            self._write_checkpoint(root / "partial")
            (root / "partial").rename(final)
        for step, older in steps_in(root).items():
            if step in self.config.kept_steps and step < self.iter_num:
                (older / "trainer_state.pt").unlink(missing_ok=True)
            elif step < self.iter_num:
                shutil.rmtree(older)

    def _write_checkpoint(self, folder):
        """Put model and state into the folder, anew and all of it on disk."""
        shutil.rmtree(folder, ignore_errors=True)
        pretrained.save(self.model, folder)
        rng = {"cpu": torch.get_rng_state()}
        rng["cuda"] = (
            torch.cuda.get_rng_state(self.device)
            if torch.device(self.device).type == "cuda"
            else None
        )
        state = {name: getattr(self, name) for name in KEPT} | {
            "optimizer": self.optimizer.state_dict(),
            "rng": rng,
        }
        try:
            torch.save(state, folder / "trainer_state.pt")
        except RuntimeError as error:  # its word for a full disk
            raise ValueError(
                f"cannot write to {folder} ({error}); make room, or give another folder"
            ) from error
        for file in folder.iterdir():
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())  # on disk before its new name says that it is whole

    def resume(self):
        """Go on from the newest checkpoint: model, optimizer, random numbers, step. False if there is none."""
        if not self.config.checkpoint_dir:
            raise ValueError("resume reads from checkpoint_dir; set it")
        if not (steps := steps_in(self.config.checkpoint_dir)):
            return False
        newest = steps[max(steps)]
        self.model.load_state_dict(GPT.from_pretrained(newest).state_dict())
        state = torch.load(newest / "trainer_state.pt", map_location="cpu", weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"]["cpu"])
        if torch.device(self.device).type == "cuda" and state["rng"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)
        for name in KEPT:
            setattr(self, name, state[name])
        self.resumed = True
        return True
