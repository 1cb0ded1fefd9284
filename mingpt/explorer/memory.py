"""Does it fit into the memory that is free? Asked before weights are read, and before a run."""

from dataclasses import replace
from math import prod
from pathlib import Path

from mingpt.interpretability.partial_runs import base_sites
from mingpt.weights import stored_shapes

BYTES = 4  # of a weight in fp32
ROOM = 300e6  # bytes, for the runs
# Of a container: {file with what it may have: (file with what it has, name of what it can give
# back)}, in version 2 and in version 1 of Linux's control groups.
LIMITS = {
    "memory.max": ("memory.current", "inactive_file"),
    "memory.limit_in_bytes": ("memory.usage_in_bytes", "total_inactive_file"),
}


def count_weights(config):
    """How many numbers a model of this configuration has."""
    none, one = (_count(replace(config, n_layer=layers)) for layers in (0, 1))
    total = none + config.n_layer * (one - none)
    if config.tie_word_embeddings:
        total -= config.vocab_size * config.n_embd
    return total


def _count(config):
    return sum(map(prod, stored_shapes(config).values()))


def check_fits(name, config, going=()):
    """ValueError if the model's weights are larger than the memory that is free.

    going: the configurations of models that make room for it. Where nobody says how much is free,
    it may be tried.
    """
    needed = BYTES * count_weights(config) + ROOM
    free = free_memory()
    if free is None:
        return
    free += BYTES * sum(map(count_weights, going))
    if needed > free:
        raise ValueError(
            f"{name} needs {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free; "
            "take a smaller model, or close other programs"
        )


def check_runs(model, T, sites):
    """ValueError if what is kept of two runs over T tokens is larger than the memory that is free.

    sites: those that are recorded, beside what a sweep of them needs.
    """
    config = model.config
    # Of all other sites it is the stream's width, for each token.
    widths = dict.fromkeys(("mlp_pre", "mlp_post"), config.n_inner)
    widths |= dict.fromkeys(("scores", "pattern"), config.n_head * T)
    kept = set(sites).union(*map(base_sites, sites))
    width = sum(widths.get(site, config.n_embd) for site in kept)
    needed = 2 * BYTES * config.n_layer * T * width
    free = free_memory() if needed > ROOM else None
    if free is not None and needed > free:
        raise ValueError(
            f"two runs over {T} tokens need {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} "
            "GB are free; take shorter texts or a smaller model"
        )


def free_memory(proc=Path("/proc"), groups=Path("/sys/fs/cgroup")):
    """Bytes that may still be used: of the machine, or of the container; None if unknown."""
    found = [_of_machine(proc / "meminfo")]
    for folder in _groups_of_process(proc / "self" / "cgroup", groups):
        found += [_of_group(folder, name) for name in LIMITS]
    known = [number for number in found if number is not None]
    return min(known, default=None)


def _of_machine(meminfo):
    return _read_number(meminfo, "MemAvailable:", 1024)


def _groups_of_process(path, groups):
    """The folders of the control groups that bound this process, the outer ones too."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        folder = groups / controllers / inside.lstrip("/")
        while folder.is_relative_to(groups):
            yield folder
            folder = folder.parent


def _of_group(folder, name):
    """What a control group leaves free, None if it is not bounded."""
    used_name, given_back = LIMITS[name]
    limit = _read_number(folder / name)
    used = _read_number(folder / used_name)
    if limit is None or used is None:
        return None
    # Files that were read stay in the memory until it is needed.
    return limit - used + (_read_number(folder / "memory.stat", given_back) or 0)


def _read_number(path, name="", unit=1):
    """The number behind a name in a file of Linux; None if it is not there, or no number."""
    try:
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return int(line.removeprefix(name).split()[0]) * unit
    except (OSError, ValueError, IndexError):
        pass
    return None
