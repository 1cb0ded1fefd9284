"""Checkpoints of a training run: folders from which it goes on as if it had never stopped.

A checkpoint is checkpoint_dir/step-N, N with eight digits: a model that from_pretrained takes, and
trainer_state.pt. It gets its name when all of it is on the disk, so that a kill at any moment
leaves a whole newest one.
"""

import os
import shutil
from pathlib import Path

import torch

from mingpt import pretrained
from mingpt.common import atomic_write, remove
from mingpt.hub import steps_in
from mingpt.model import GPT

STATE = ("iter_num", "seconds", "history")  # what a trainer needs besides optimizer and generators


def save(trainer):
    """Write the checkpoint of the trainer's step and remove older ones; of kept_steps models stay.

    ValueError if the folder cannot be written.
    """
    root = Path(trainer.config.checkpoint_dir)
    folder = root / f"step-{trainer.iter_num:08d}"
    if not folder.exists():
        # A run that was killed while it wrote left a folder that nobody reads.
        for leftover in root.glob(".step-*.partial"):
            remove(leftover)
        with atomic_write(folder) as temporary:
            _write(trainer, temporary)
    for step, older in steps_in(root).items():
        if step >= trainer.iter_num:
            continue
        if step in trainer.config.kept_steps:
            (older / "trainer_state.pt").unlink(missing_ok=True)
        else:
            shutil.rmtree(older)


def _write(trainer, folder):
    """Put model and state into the new folder; when it returns, the disk has them.

    Otherwise a machine that loses power could have the folder's new name, but not its contents.
    """
    folder.mkdir(parents=True)
    pretrained.save(trainer.model, folder)
    state = {name: getattr(trainer, name) for name in STATE}
    state["optimizer"] = trainer.optimizer.state_dict()
    # The generators that dropout and callbacks draw from.
    cuda = torch.cuda.get_rng_state(trainer.device) if _on_cuda(trainer) else None
    state["rng"] = {"cpu": torch.get_rng_state(), "cuda": cuda}
    try:
        torch.save(state, folder / "trainer_state.pt")
    except RuntimeError as error:  # torch's word for a full disk
        raise OSError(f"{error}; make room") from error
    for file in folder.iterdir():
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())


def load_newest(trainer):
    """Put the newest checkpoint's weights and state into the trainer; False if there is none.

    The global random numbers go on as well, those that dropout and callbacks draw.
    """
    steps = steps_in(trainer.config.checkpoint_dir)
    if not steps:
        return False
    newest = steps[max(steps)]
    trainer.model.load_state_dict(GPT.from_pretrained(newest).state_dict())
    state = torch.load(newest / "trainer_state.pt", map_location="cpu", weights_only=True)
    trainer.optimizer.load_state_dict(state["optimizer"])
    for name in STATE:
        setattr(trainer, name, state[name])
    torch.set_rng_state(state["rng"]["cpu"])
    # A run may go on where there is no such device.
    if _on_cuda(trainer) and state["rng"]["cuda"] is not None:
        torch.cuda.set_rng_state(state["rng"]["cuda"], trainer.device)
    return True


def _on_cuda(trainer):
    return torch.device(trainer.device).type == "cuda"
