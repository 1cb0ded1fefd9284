"""The training loop of a GPT.

It has minGPT's interface (get_default_config, callbacks, run); what is added is a schedule of the
learning rate, evaluation, and checkpoints from which a run goes on as if it had never stopped. For
that, batch number s is drawn from a generator that is seeded by (seed, s) alone. Under torchrun
several processes train together: each takes a part of every batch, and the first one evaluates,
calls the callbacks and writes.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from mingpt import checkpointing, pretrained, processes
from mingpt.common import check_device, progress_bar
from mingpt.hub import steps_in
from mingpt.model import GPT


@dataclass(slots=True)
class TrainerConfig:
    """The settings of a Trainer, with minGPT's defaults; a step is one batch."""

    # "auto" is cuda if there is one, else cpu.
    device: str = "auto"
    # Processes that prepare batches; 0: this one does.
    num_workers: int = 0
    # Steps in all, those before a resume included. None: until a callback raises StopIteration.
    max_iters: int | None = None
    batch_size: int = 64
    # A batch goes through the model in so many parts, to save memory; the gradient is the same.
    accumulation: int = 1
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    grad_norm_clip: float = 1.0
    # Steps in which the rate rises in a line from 0 to learning_rate.
    warmup_iters: int = 0
    # Where a cosine from learning_rate ends, at max_iters. None: the rate stays.
    final_learning_rate: float | None = None
    # Of the order of the batches.
    seed: int = 3407
    # Steps between evaluations on eval_dataset, and batches in one.
    eval_interval: int | None = None
    eval_batches: int = 10
    # The folder for checkpoints, of which the newest two stay, and the steps between them.
    checkpoint_dir: str | None = None
    checkpoint_interval: int = 1000
    # Steps whose models stay as well; 0 is the untrained model.
    kept_steps: tuple[int, ...] = ()


def draw_batches(size: int, batch_size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Endless batches of dataset indices, drawn with replacement, from batch number start on."""
    for step in count(start):
        # The factor keeps neighbouring seeds apart; the generator takes 32 bits.
        generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + step) % 2**32)
        yield torch.randint(size, (batch_size,), generator=generator).tolist()


Callback = Callable[["Trainer"], object]


class Trainer:
    """Trainer(config, model, train_dataset).run(); a dataset gives (x, y), LongTensors (T,) each.

    Callbacks f(trainer) are called on "on_batch_end" and "on_eval_end"; one that raises
    StopIteration ends the run. They may read iter_num (steps done), loss, eval_loss, iter_dt (the
    seconds of the last step), seconds (of all), model and optimizer, and write what they like into
    history, a list that checkpoints keep.
    """

    iter_num = 0
    iter_dt = 0.0
    seconds = 0.0
    loss: Tensor | None = None
    eval_loss: float | None = None
    # When the last step ended; whether resume has read a checkpoint.
    iter_time = 0.0
    resumed = False

    @staticmethod
    def get_default_config() -> TrainerConfig:
        return TrainerConfig()

    def __init__(
        self,
        config: TrainerConfig,
        model: GPT,
        train_dataset: Dataset[Any],
        eval_dataset: Dataset[Any] | None = None,
    ):
        if config.final_learning_rate is not None and config.max_iters is None:
            raise ValueError("a cosine to final_learning_rate ends at max_iters; set it")
        if config.eval_interval and eval_dataset is None:
            raise ValueError("eval_interval needs an eval_dataset; give one to Trainer")
        self.config = config
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.device = config.device
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.process = processes.this_process()
        self.device = self.process.own_device(self.device)
        check_device(self.device)
        if config.batch_size < self.process.count:
            raise ValueError(
                f"{self.process.count} processes cannot share a batch of {config.batch_size}; "
                "give a larger batch_size, or start fewer"
            )
        processes.join(self.process, self.device)
        # To its device first: the optimizer chooses its implementation by it.
        self.model = model.to(self.device)
        self.optimizer: torch.optim.Optimizer = self.model.configure_optimizers(config)
        # It averages the gradients of all processes while they are computed.
        self.parallel: Any = DistributedDataParallel(model) if self.process.count > 1 else model
        self.callbacks: dict[str, list[Callback]] = defaultdict(list)
        self.history: list[Any] = []

    def add_callback(self, onevent: str, callback: Callback) -> None:
        self.callbacks[onevent].append(callback)

    def set_callback(self, onevent: str, callback: Callback) -> None:
        """Put this one in the place of all others of the event."""
        self.callbacks[onevent] = [callback]

    def trigger_callbacks(self, onevent: str) -> None:
        """Call them in the order in which they were added."""
        for callback in self.callbacks[onevent]:
            callback(self)

    def learning_rate(self) -> float:
        """The schedule's value for the coming step: a line up, then a half cosine down."""
        config = self.config
        if self.iter_num < config.warmup_iters:
            return config.learning_rate * (self.iter_num + 1) / config.warmup_iters
        if config.final_learning_rate is None:
            return config.learning_rate
        # __init__ has seen to it that there are max_iters.
        steps = max(1, config.max_iters - config.warmup_iters)  # type: ignore[operator]
        progress = (self.iter_num - config.warmup_iters) / steps  # from 0 to 1
        height = (1 + math.cos(math.pi * progress)) / 2  # from 1 to 0
        fall = config.learning_rate - config.final_learning_rate
        return config.final_learning_rate + fall * height

    def run(self) -> None:
        """Train from iter_num to max_iters; with a checkpoint_dir it ends with a checkpoint.

        The model is in train mode afterwards. ValueError where the loss or a gradient is no number,
        or the folder has checkpoints of another run, or another process trains in it.
        """
        config = self.config
        is_fresh = self.iter_num == 0 and not self.resumed
        # The first process alone writes.
        folder = None if self.process.rank else config.checkpoint_dir
        if folder and is_fresh and steps_in(folder):
            raise ValueError(
                f"{folder} has another run's checkpoints; call resume(), or take another folder"
            )
        with checkpointing.locked(folder) if folder else nullcontext():
            self._run()

    def _run(self):
        """Train, as run says."""
        config = self.config
        # The untrained model, if step 0 is one of them.
        if self.iter_num in config.kept_steps:
            self.save_checkpoint()
        self.model.train()
        if self.process.rank:
            # Each process has its own dropout; the first goes on with the generator that it has.
            torch.manual_seed(hash((config.seed, self.process.rank, self.iter_num)) % 2**32)
        self.iter_time = time.monotonic()
        batches = self._batches(self.train_dataset, config.seed, self.iter_num)
        tokens = self._tokens_in_batch()
        with self._progress_bar(tokens) as bar:
            while config.max_iters is None or self.iter_num < config.max_iters:
                self._step(*next(batches))
                bar.update(tokens)
                bar.set_postfix(step=self.iter_num + 1, loss=f"{self.loss:.3f}", refresh=False)
                if self._after_step():
                    break
        self.save_checkpoint()

    def _tokens_in_batch(self):
        return self.config.batch_size * len(self.train_dataset[0][1])

    def _progress_bar(self, tokens):
        """A bar that counts tokens, so many a step."""
        total = self.config.max_iters and self.config.max_iters * tokens
        return progress_bar(
            initial=self.iter_num * tokens,
            total=total,
            unit=" tokens",
            unit_scale=True,
            dynamic_ncols=True,
            shown=not self.process.rank,
        )

    def _batches(self, dataset, seed, start=0):
        """Endless batches x, y (B,T) of the dataset, on the device, from batch number start on."""
        loader = DataLoader(
            dataset,
            batch_sampler=draw_batches(len(dataset), self.config.batch_size, seed, start),
            num_workers=self.config.num_workers,
            # The loader's own draws must not move the global generator, which dropout reads.
            generator=torch.Generator(),
        )
        for x, y in loader:
            yield x.to(self.device), y.to(self.device)

    def _step(self, *batch):
        """One step of the optimizer.

        self.loss becomes the batch's mean loss, as it was before the step.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.model.zero_grad(set_to_none=True)
        self.loss = processes.add_up(self.process, self._backward(*batch))
        clip = self.config.grad_norm_clip
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        # Before the weights change: no checkpoint may have weights that are no numbers.
        if not norm.isfinite():
            raise ValueError(
                f"step {self.iter_num + 1} has the loss {self.loss} and a gradient of size {norm}; "
                "look at the targets, or lower learning_rate and take another folder"
            )
        self.optimizer.step()

    def _backward(self, x, y):
        """This process's share of the mean loss in nats, of a batch x, y (B,T).

        Its gradients are in the parameters then, averaged with those of the other processes.
        """
        targets = (y != -1).sum()
        count = self.process.count
        parts = [self.process.own(rows).chunk(self.config.accumulation) for rows in (x, y)]
        share_of_loss = torch.zeros((), device=self.device)
        for number, (x_part, y_part) in enumerate(zip(*parts), 1):
            # A part weighs as much as it has targets; those that are -1 do not count.
            share = (y_part != -1).sum() / targets
            is_alone = count == 1 or number == len(parts[0])
            # The gradients go to the other processes once a step, with the last part.
            with nullcontext() if is_alone else self.parallel.no_sync():
                logits, loss = self.parallel(x_part, y_part)
                # Without any target there is no mean, but the other processes wait for this one.
                loss = loss * share if share else logits.sum() * 0
                (loss * count).backward()
            share_of_loss += loss.detach()
        return share_of_loss

    def _after_step(self):
        """Count the step; evaluate, call the callbacks and write a checkpoint when it is time.

        True if a callback ends the run.
        """
        self.iter_num += 1
        self.iter_dt = time.monotonic() - self.iter_time
        self.seconds += self.iter_dt
        is_end = torch.zeros((), device=self.device)
        if not self.process.rank:
            try:
                self._look_at_step()
            except StopIteration:
                is_end += 1
        is_end = processes.add_up(self.process, is_end)
        # Evaluation and writing are no part of the next step's time.
        self.iter_time = time.monotonic()
        return bool(is_end)

    def _look_at_step(self):
        """What the first process alone does after a step."""
        config = self.config
        if config.eval_interval and self.iter_num % config.eval_interval == 0:
            self.eval_loss = self.evaluate()
            self.trigger_callbacks("on_eval_end")
        self.trigger_callbacks("on_batch_end")
        is_due = self.iter_num % config.checkpoint_interval == 0
        # After the callbacks: a resumed run must not draw their random numbers again.
        if is_due or self.iter_num in config.kept_steps:
            self.save_checkpoint()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss in nats over eval_batches batches of eval_dataset, the same ones each time."""
        was_training = self.model.training
        self.model.eval()
        batches = self._batches(self.eval_dataset, self.config.seed + 1)
        losses = []
        for x, y in islice(batches, self.config.eval_batches):
            _, loss = self.model(x, y)
            losses.append(loss.item())  # type: ignore[union-attr]  # with y there is one
        self.model.train(was_training)
        return sum(losses) / len(losses)

    def save_checkpoint(self) -> None:
        """Write checkpoint_dir/step-N, from which resume goes on; of older ones the newest stays.

        Without a checkpoint_dir there is nothing to do.
        """
        if self.config.checkpoint_dir and not self.process.rank:
            checkpointing.save(self)

    def write_model(self, folder: Path) -> None:
        """Write what is trained into a new folder, a checkpoint."""
        pretrained.save(self.model, folder)

    def read_model(self, folder: Path) -> None:
        """Put what write_model wrote back in its place."""
        self.model.load_state_dict(GPT.from_pretrained(folder).state_dict())

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint in checkpoint_dir; False if there is none.

        ValueError if there are some, and all are damaged.
        """
        if not self.config.checkpoint_dir:
            raise ValueError("resume reads from checkpoint_dir; set it")
        # The first one sets damaged checkpoints aside.
        with processes.first_alone(self.process):
            self.resumed = checkpointing.load_newest(self)
        return self.resumed
