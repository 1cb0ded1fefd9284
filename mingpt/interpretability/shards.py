"""Work cut into shards, for any number of processes, on any number of machines.

The shards follow from the work alone, not from the processes. Each is a file that is there whole or
not at all, and a shard that is there is not computed again. So a killed process, a second start, or
a start with another number of processes all end in the same folder. The processes need not talk to
each other: each takes every n-th shard.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mingpt.common import AnyPath, atomic_write, remove


class ShardFolder:
    """A folder of shards, of one piece of work, which its settings name.

    ValueError where the folder holds other work, or files that are not ours.
    """

    def __init__(self, folder: AnyPath, settings: dict[str, Any]):
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(settings))  # as they come back from the file
        self.file = self.folder / "settings.json"
        if not self.file.exists():
            self._check_empty()
            try:
                (self.folder / "shards").mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(
                    f"cannot write to {folder}: {error.strerror}; give another folder"
                ) from error
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

    def path(self, number: int) -> Path:
        """Where a shard is, or will be."""
        return self.folder / "shards" / f"{number:06}.safetensors"

    def read(self, number: int) -> dict[str, Tensor] | None:
        """{name: tensor} of a shard; None where it is not there, or is damaged."""
        try:
            with safe_open(self.path(number), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                written = (file.metadata() or {}).get("sha256")
        except (OSError, SafetensorError):
            return None
        return tensors if written == digest(tensors) else None

    def write(self, number: int, tensors: dict[str, Tensor]) -> None:
        """Write a shard, {name: tensor}."""
        # Another job may have begun in the same folder at the same moment.
        self._check_settings()
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        with atomic_write(self.path(number)) as temporary:
            save_file(tensors, temporary, {"sha256": digest(tensors)})

    def tidy(self) -> None:
        """Remove what killed processes left of shards; for when all shards are there."""
        for path in (self.folder / "shards").glob(".*"):
            remove(path)


def digest(tensors: dict[str, Tensor]) -> str:
    """The sha256 of names, dtypes, shapes and numbers of {name: tensor}."""
    hashed = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, since numpy has no bf16.
        hashed.update(tensor.cpu().flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()
