"""Which pairs of texts ask the model to do something?

They are built-in tasks or the user's own pairs, and come as batches of one length. The clean text
of a pair asks for one answer, the clean answer; the corrupted text, which has as many tokens, asks
for another one, or leaves it open. What a task is done by is found only as far as its two texts
differ.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mingpt.interpretability.inputs import Answer, Inputs, answer_ids, encode_pair, tokenizer_of
from mingpt.interpretability.readout import answer_direction
from mingpt.model import GPT

MAX_TOKENS = 512  # of a batch, which bounds the memory that its runs take
TRIES = 50  # for each pair that is drawn: not every text suits every tokenizer


class Batch(NamedTuple):
    """Pairs of texts of equal token lengths, and what is measured at their ends."""

    clean: Tensor  # ids (B,T)
    corrupted: Tensor  # ids (B,T)
    direction: Tensor  # (B,C), of readout.answer_direction; of several answers, the mean


TextPair = tuple[Inputs, Inputs, Answer, Answer]  # clean, corrupted, and the answer to each
Task = str | Sequence[TextPair] | Sequence[Batch]  # the name of a built-in one, or pairs


def load_task(model: GPT, task: Task, count: int = 100, seed: int = 0) -> list[Batch]:
    """The Batches of a task, a list; each has pairs of one length.

    task: the name of a built-in task, of which `count` pairs are drawn; or a list of pairs (clean,
    corrupted, clean answer, corrupted answer), whose texts are texts or ids (1,T), and each answer
    a token or a list of tokens; or a list of Batches, which comes back as it is. ValueError if a
    pair cannot be compared token by token.
    """
    given: list[Any] = draw_pairs(model, task, count, seed) if isinstance(task, str) else list(task)
    if given and all(isinstance(batch, Batch) for batch in given):
        return given
    pairs = [read_pair(model, pair) for pair in given]
    if not pairs:
        raise ValueError("the task has no pairs; give at least one")

    # Only texts of equal length can be run side by side.
    by_length: dict[int, list[Batch]] = {}
    for pair in pairs:
        by_length.setdefault(pair.clean.size(1), []).append(pair)
    batches: list[Batch] = []
    for T, alike in by_length.items():
        size = MAX_TOKENS // T + 1
        columns = [torch.cat(column).split(size) for column in zip(*alike)]
        batches += map(Batch, *columns)
    return batches


def draw_pairs(model: GPT, name: str, count: int = 100, seed: int = 0) -> list[TextPair]:
    """`count` pairs (clean, corrupted, clean answer, corrupted answer) of a built-in task."""
    if name not in TASKS:
        raise ValueError(
            f"no task {name!r}; the tasks are {', '.join(TASKS)}, or give pairs of your own"
        )
    if count < 1:
        raise ValueError(f"a task needs 1 pair or more, got {count}")
    rng = random.Random(seed)
    pairs = []
    reason: ValueError | str = ""
    for _ in range(TRIES * count):
        # Where a word is several tokens, the texts may not match; then others are drawn.
        try:
            pair = TASKS[name](model, rng)
            read_pair(model, pair)
            pairs.append(pair)
        except ValueError as error:
            reason = error
        if len(pairs) == count:
            return pairs
    raise ValueError(
        f"{name} does not suit this model: {len(pairs)} of {TRIES * count} pairs could be used; "
        f"the last: {reason}"
    )


def read_pair(model: GPT, pair: TextPair) -> Batch:
    """One pair as a Batch of one; ValueError if its texts do not match or an answer is no token."""
    if len(pair) != 4 or any(answer in (None, []) for answer in pair[2:]):
        raise ValueError(
            f"a pair is (clean, corrupted, right answer, wrong answer), all given; got {pair}"
        )
    clean, corrupted = encode_pair(model, *pair[:2])
    if len(clean) != 1:
        raise ValueError(
            f"a pair has one clean and one corrupted text, got {len(clean)}; give each as a pair"
        )
    # Several tokens may be right, or wrong: what counts is the mean of their logits.
    directions = []
    for answer, name in zip(pair[2:], ("right", "wrong")):
        tokens = answer if isinstance(answer, list) else [answer]
        ids = torch.cat([answer_ids(model, token, clean, corrupted, name) for token in tokens])
        direction = answer_direction(model, ids).detach()
        directions.append(direction.mean(0, keepdim=True))  # (tokens,C) -> (1,C)
    return Batch(clean, corrupted, directions[0] - directions[1])


def _induction(model, rng):
    """Random tokens and their beginning again; corrupted, other random tokens."""
    V = model.config.vocab_size
    n = min(10, V // 2, model.block_size // 2)
    if n < 2:
        raise ValueError(
            f"{V} tokens and {model.block_size} positions leave no room to repeat something"
        )
    tokens = torch.tensor(rng.sample(range(V), 2 * n)).view(2, n)
    # The last of the tokens is what comes next, when all the others have come again.
    ids = tokens.repeat(1, 2)[:, :-1]  # (2,n) -> (2,2n-1)
    return *ids.split(1), *tokens[:, -1].tolist()


def _name_recall(model, rng):
    """A full name, and later the first name again; the corrupted text has another last name."""
    # Imported here: it reads the embedded model's word lists, which no other task needs.
    from mingpt import names

    return names.held_out_pair(rng)


def _ioi(model, rng):
    """Indirect object identification (Wang et al. 2022); the corrupted text swaps the giver."""
    names = "Mary John Tom James Anna David Paul Mark Sarah Alice Peter George Kate Emma".split()
    receiver, giver = rng.sample(names, 2)
    place = rng.choice(["store", "park", "school", "office"])
    thing = rng.choice(["drink", "book", "ring", "letter"])
    # The giver is named twice, so that the answer is the other one.
    start = f"When {receiver} and {giver} went to the {place}, "
    end = f" gave a {thing} to"
    return start + giver + end, start + receiver + end, f" {receiver}", f" {giver}"


def _greater_than(model, rng):
    """Which years may follow? In the corrupted text the year is 01, and all may.

    Source: Hanna et al. 2023, arXiv 2305.00586.
    """
    event = rng.choice(["war", "project", "trial", "siege"])
    century = rng.randint(11, 17)
    year = rng.randint(2, 98)
    encode = tokenizer_of(model).encode
    # The answer is the second half of a year, so it must be a token of its own.
    if encode(f" {century}{year:02}") != encode(f" {century}") + encode(f"{year:02}"):
        raise ValueError(f"{century}{year:02} is not {century} and {year:02} for the tokenizer")
    start = f"The {event} lasted from the year {century}"
    end = f" to the year {century}"
    years = [f"{number:02}" for number in range(100)]
    return f"{start}{year:02}{end}", f"{start}01{end}", years[year + 1 :], years[: year + 1]


# Each takes a model and a random generator and gives a pair, as load_task takes it; a ValueError
# says that this pair, or any, does not suit the model.
TASKS = {
    "induction": _induction,
    "name_recall": _name_recall,
    "ioi": _ioi,
    "greater_than": _greater_than,
}
