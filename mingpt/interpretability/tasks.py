"""Which pairs of texts ask the model to do something? The built-in tasks, and the user's own pairs, as batches."""

import random
from typing import NamedTuple

import torch

from mingpt import names
from mingpt.interpretability.inputs import answer_ids, encode, encode_pair


class Batch(NamedTuple):
    """Pairs of equal length. The metric is the last normalised vector times direction: logit(right) - logit(wrong)."""

    clean: torch.Tensor  # (B,T)
    corrupted: torch.Tensor  # (B,T)
    direction: torch.Tensor  # (B,C), a difference of rows of the output matrix, or of means of rows


def as_batches(model, task, count=100, seed=0):
    """A task or the user's pairs, as find_circuit takes them, in Batches of pairs of equal length."""
    if task and isinstance(task, list) and all(isinstance(batch, Batch) for batch in task):
        return task
    pairs = (
        [_read(model, pair) for pair in task]
        if not isinstance(task, str)
        else _draw(model, task, count, seed)
    )
    if not pairs:
        raise ValueError("the task has no pairs; give at least one")
    groups = {}
    for pair in pairs:
        groups.setdefault(pair.clean.size(1), []).append(pair)
    cut = [
        (T, some[i : i + 512 // T + 1])
        for T, some in groups.items()
        for i in range(0, len(some), 512 // T + 1)
    ]
    return [Batch(*(torch.cat(parts) for parts in zip(*some))) for _, some in cut]


def _read(model, pair):
    """One pair, as a Batch of one; ValueError if it cannot be compared token by token or an answer is no token."""
    if len(pair) != 4 or any(answer is None or answer == [] for answer in pair[2:]):
        raise ValueError(f"a pair is (clean, corrupted, right answer, wrong answer), got {pair}")
    clean, corrupted = encode_pair(model, *pair[:2])
    if len(clean) != 1:
        raise ValueError(
            f"a pair has one clean and one corrupted text, got {len(clean)}; give each as a pair"
        )
    means = []
    for answer, name in zip(pair[2:], ("right", "wrong")):
        tokens = answer if isinstance(answer, list) else [answer]
        ids = torch.cat([answer_ids(model, token, clean, corrupted, name) for token in tokens])
        means.append(model.lm_head.weight[ids].detach().mean(0, keepdim=True))
    return Batch(clean, corrupted, means[0] - means[1])


def _draw(model, task, count, seed):
    """So many pairs of a built-in task; those that are not token-aligned for this tokenizer are drawn again."""
    if task not in TASKS:
        raise ValueError(
            f"no task {task!r}; the tasks are {', '.join(TASKS)}, or give pairs of your own"
        )
    rng, pairs, why = random.Random(seed), [], ""
    for _ in range(50 * count):
        try:
            pairs.append(_read(model, TASKS[task](model, rng)))
        except ValueError as error:
            why = error
        if len(pairs) == count:
            return pairs
    could = f"{len(pairs)} of {50 * count} pairs could be used"
    raise ValueError(f"{task} does not suit this model: {could}; the last: {why}")


def _induction(model, rng):
    """Random tokens and their beginning again; corrupted, other random tokens."""
    V, n = model.config.vocab_size, min(10, model.config.vocab_size // 2, model.block_size // 2)
    if n < 2:
        raise ValueError(
            f"{V} tokens and {model.block_size} positions leave no room to repeat something"
        )
    tokens = rng.sample(range(V), 2 * n)
    clean, corrupted = (torch.tensor([some + some[: n - 1]]) for some in (tokens[:n], tokens[n:]))
    return clean, corrupted, tokens[n - 1], tokens[-1]


def _ioi(model, rng):
    """Indirect object identification (Wang et al. 2022), with the giver swapped in the corrupted text."""
    one, other = rng.sample(
        "Mary John Tom James Anna David Paul Mark Sarah Alice Peter George Kate Emma".split(), 2
    )
    place, thing = (
        rng.choice(["store", "park", "school", "office"]),
        rng.choice(["drink", "book", "ring", "letter"]),
    )
    start, end = f"When {one} and {other} went to the {place}, ", f" gave a {thing} to"
    return start + other + end, start + one + end, f" {one}", f" {other}"


def _greater_than(model, rng):
    """Which years may follow (Hanna et al. 2023, arXiv 2305.00586); corrupted, the year is 01 and all may."""
    event, century, year = (
        rng.choice(["war", "project", "trial", "siege"]),
        rng.randint(11, 17),
        rng.randint(2, 98),
    )
    whole, *pieces = (
        encode(model, text)[0].tolist()
        for text in (f" {century}{year:02}", f" {century}", f"{year:02}")
    )
    if whole != sum(pieces, []):
        raise ValueError(f"{century}{year:02} is not {century} and {year:02} for the tokenizer")
    start, end = f"The {event} lasted from the year {century}", f" to the year {century}"
    later, earlier = (
        [f"{y:02}" for y in years] for years in (range(year + 1, 100), range(year + 1))
    )
    return f"{start}{year:02}{end}", f"{start}01{end}", later, earlier


TASKS = {
    "induction": _induction,
    "name_recall": lambda model, rng: names.held_out_pair(rng),
    "ioi": _ioi,
    "greater_than": _greater_than,
}
