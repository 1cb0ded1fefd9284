"""Checkpoints of a training run: folders from which it goes on as if it had never stopped.

A checkpoint is checkpoint_dir/step-N, N with eight digits: what the trainer's write_model writes, a
model that from_pretrained takes, and trainer_state.pt. It gets its name when all of it is on the
disk, and loses it before it is removed: what has the name is whole, after a kill at any moment too.
The newest two are there to go on from, the second in case the first is damaged later.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

from mingpt.common import AnyPath, atomic_write, one_line, remove, say
from mingpt.hub import steps_in

if TYPE_CHECKING:  # it imports this module
    from mingpt.trainer import Trainer

STATE = ("iter_num", "seconds", "history")  # what a trainer needs besides optimizer and generators


# The folders that this process has locked.
LOCKED: set[Path] = set()


@contextmanager
def locked(folder: AnyPath) -> Iterator[None]:
    """The folder, made if need be, for this process alone while the block runs.

    The lock is the system's: it goes with the process, however that ends. A block inside another
    one of the same process passes. ValueError if another process has the folder, or none can.
    """
    folder = Path(folder).resolve()
    if folder in LOCKED:
        yield
        return
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _lock(folder)
    except OSError as error:
        raise ValueError(
            f"cannot write to {folder}: {error.strerror}; give another folder"
        ) from error
    LOCKED.add(folder)
    try:
        yield
    finally:
        LOCKED.remove(folder)
        os.close(handle)
        # A run that could not begin leaves no empty folder; one with files is not removed.
        with suppress(OSError):
            for path in new:
                path.rmdir()


def _lock(folder):
    """An open file that is the folder's lock; ValueError if another process has it."""
    try:
        if fcntl is None:
            # Windows removes this file when its process ends.
            return os.open(folder / ".lock", os.O_CREAT | os.O_EXCL | os.O_TEMPORARY)
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle
    except (BlockingIOError, FileExistsError) as error:
        raise ValueError(
            f"another training is writing to {folder}; wait for its end, or give another folder"
        ) from error


def save(trainer: "Trainer") -> None:
    """Write the checkpoint of the trainer's step; of older ones the newest stays, and kept models.

    ValueError if the folder cannot be written.
    """
    root = Path(trainer.config.checkpoint_dir)  # type: ignore[arg-type]  # who saves has one
    folder = root / f"step-{trainer.iter_num:08d}"
    # A run that was killed while it wrote or removed left a folder that nobody reads.
    for leftover in root.glob(".step-*.partial"):
        remove(leftover)
    if not folder.exists():
        with atomic_write(folder) as temporary:
            _write(trainer, temporary)
    steps = sorted(steps_in(root).items())
    older = [(step, path) for step, path in steps if step < trainer.iter_num]
    for step, path in older[:-1]:
        if step in trainer.config.kept_steps:
            (path / "trainer_state.pt").unlink(missing_ok=True)
        else:
            # Gone at once for those who read the run, who would find a half of it else.
            remove(path.rename(root / f".{path.name}.old.partial"))


def _write(trainer, folder):
    """Put model and state into the new folder; when it returns, the disk has them.

    Otherwise a machine that loses power could have the folder's new name, but not its contents.
    """
    folder.mkdir(parents=True)
    trainer.write_model(folder)
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


def load_newest(trainer: "Trainer") -> bool:
    """Put the newest whole checkpoint into the trainer; False if the folder has none at all.

    Newer ones that are damaged get another name, and a line says so. ValueError if all are.
    """
    faults = []
    root = Path(trainer.config.checkpoint_dir)  # type: ignore[arg-type]  # who loads has one
    steps = sorted(steps_in(root).items(), reverse=True)
    for position, (step, folder) in enumerate(steps):
        try:
            _load(trainer, step, folder)
        # For a file that is cut short or altered the readers raise errors of many types.
        except Exception as error:
            reason = one_line(f"{type(error).__name__} {error}")[:200]
            faults.append(f"{folder.name} ({reason})")
            continue
        for (_, damaged), fault in zip(steps[:position], faults):
            _set_aside(damaged)
            say(f"{fault} cannot be gone on from: it is damaged-{damaged.name} now")
        if faults:
            say(f"going on from {folder}")
        return True
    if faults:
        raise ValueError(
            f"{trainer.config.checkpoint_dir} has no checkpoint to go on from: "
            f"{'; '.join(faults[:2])}; take another folder, or move this one away"
        )
    return False


def _load(trainer, step, folder):
    """Put a checkpoint's weights and state into the trainer.

    The global random numbers go on as well, those that dropout and callbacks draw.
    """
    state = torch.load(folder / "trainer_state.pt", map_location="cpu", weights_only=True)
    if state["iter_num"] != step:
        raise ValueError(f"its state is that of step {state['iter_num']}")
    trainer.read_model(folder)
    trainer.optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"]["cpu"])
    # A run may go on where there is no such device.
    if _on_cuda(trainer) and state["rng"]["cuda"] is not None:
        torch.cuda.set_rng_state(state["rng"]["cuda"], trainer.device)
    for name in STATE:
        setattr(trainer, name, state[name])


def _set_aside(folder):
    """Rename the folder, so that nobody takes it for the newest checkpoint."""
    other = folder.with_name(f"damaged-{folder.name}")
    remove(other)
    folder.rename(other)


def _on_cuda(trainer):
    return torch.device(trainer.device).type == "cuda"
