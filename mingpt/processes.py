"""Several processes on one piece of work: which one is this, and how they train together.

torchrun or srun starts them, watches over them and starts them again; nothing of that is here.
"""

import atexit
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

Work = TypeVar("Work", list[Any], Tensor)


@dataclass
class Process:
    """Which of how many processes this is."""

    rank: int
    count: int
    local_rank: int  # among those on this machine: the number of its GPU

    def own(self, work: Work) -> Work:
        """The part of a list, or of a tensor's rows, that this process does."""
        return work[self.rank :: self.count]

    def own_device(self, name: str) -> str:
        """cuda as this process's own GPU, where there are several; else the name as it is."""
        return f"cuda:{self.local_rank}" if name == "cuda" and self.count > 1 else name


def this_process(shard: str | None = None) -> Process:
    """The Process that a launcher, or `shard` = "i/n" with i from 0, says that this is.

    Launchers: torchrun, and SLURM's srun. Without any it is the only one.
    """
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
        if all(name in os.environ for name in names):
            count, rank, local_rank = (int(os.environ[name]) for name in names)
            return Process(rank, count, local_rank)
    return Process(0, 1, 0)


def join(process: Process, device: str) -> None:
    """Let this process talk to the others, over gloo, or on GPUs nccl.

    ValueError where they cannot find each other: only torchrun says where.
    """
    if process.count == 1 or distributed.is_initialized():
        return
    if "MASTER_ADDR" not in os.environ:
        raise ValueError(
            f"there are {process.count} processes that cannot find each other; start them with "
            "torchrun --nproc-per-node=..."
        )
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if is_cuda else "gloo")
    atexit.register(distributed.destroy_process_group)


@contextmanager
def first_alone(process: Process) -> Iterator[None]:
    """The first process goes through the block before the others do."""
    if process.rank:
        distributed.barrier()
    yield
    if process.count > 1 and not process.rank:
        distributed.barrier()


def add_up(process: Process, value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, the same for each."""
    if process.count > 1:
        distributed.all_reduce(value)
    return value
