"""Work cut into shards, for any number of processes, on any number of machines.

The shards follow from the work alone, not from the processes. Each is a file that is there whole or
not at all, and a shard that is there is not computed again. So a killed process, a second start, or
a start with another number of processes all end in the same folder. The processes need not talk to
each other: each takes every n-th shard.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mingpt.common import atomic_write, remove


@dataclass
class Process:
    """Which of how many processes this is."""

    rank: int
    count: int
    local_rank: int  # among those on this machine: the number of its GPU

    def own(self, work):
        """The part of a list that this process does."""
        return work[self.rank :: self.count]


def this_process(shard=None):
    """The Process that a launcher, or `shard` = "i/n" with i from 0, says that this is.

    Launchers: torchrun, and SLURM's srun. Without any it is the only one.
    """
    environment = os.environ
    if shard:
        match = re.fullmatch(r"(\d+)/(\d+)", shard)
        if not match or int(match[1]) >= int(match[2]):
            raise ValueError(f"shard must be i/n, i from 0 to n - 1; got {shard!r}")
        return Process(int(match[1]), int(match[2]), 0)
    # Beside torchrun's own: what srun sets for each task. sbatch alone does not set the first.
    for names in (
        ("WORLD_SIZE", "RANK", "LOCAL_RANK"),
        ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
    ):
        if all(name in environment for name in names):
            count, rank, local_rank = (int(environment[name]) for name in names)
            return Process(rank, count, local_rank)
    return Process(0, 1, 0)


class ShardFolder:
    """A folder of shards, of one piece of work, which its settings name.

    ValueError where the folder holds other work, or files that are not ours.
    """

    def __init__(self, folder, settings):
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))  # as they come back from the file
        self.file = self.folder / "settings.json"
        if not self.file.exists():
            self._check_empty()
            (self.folder / "shards").mkdir(parents=True, exist_ok=True)
            with atomic_write(self.file) as temporary:
                temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        self._check_settings()

    def _check_empty(self):
        """ValueError where there are files that another process of this work has not made."""
        ours = re.compile(r"shards|\.?settings\..*")
        is_file = self.folder.is_file()
        if is_file or any(not ours.fullmatch(path.name) for path in self.folder.glob("*")):
            raise ValueError(f"{self.folder} holds other files; give a new folder")

    def _check_settings(self):
        """ValueError unless the folder's settings are those of this work."""
        try:
            stored = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.file} cannot be read: {error}; give a new folder") from error
        if stored != self.settings:
            names = sorted(stored.keys() | self.settings.keys())
            other = [name for name in names if stored.get(name) != self.settings.get(name)]
            raise ValueError(
                f"{self.folder} holds work with another {', '.join(other)}; give a new folder"
            )

    def path(self, number):
        """Where a shard is, or will be."""
        return self.folder / "shards" / f"{number:06}.safetensors"

    def read(self, number):
        """{name: tensor} of a shard; None where it is not there, or is damaged."""
        try:
            with safe_open(self.path(number), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                written = (file.metadata() or {}).get("sha256")
        except (OSError, SafetensorError):
            return None
        return tensors if written == _digest(tensors) else None

    def write(self, number, tensors):
        """Write a shard, {name: tensor}."""
        # Another job may have begun in the same folder at the same moment.
        self._check_settings()
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with atomic_write(self.path(number)) as temporary:
            save_file(tensors, temporary, {"sha256": _digest(tensors)})

    def tidy(self):
        """Remove what killed processes left of shards; for when all shards are there."""
        for path in (self.folder / "shards").glob(".*"):
            remove(path)


def _digest(tensors):
    """The sha256 of names, shapes and numbers."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
