"""Files of pairs: a clean and a corrupted text, and what the model should say after each.

A file is recognised by its columns. Known are our own, as JSON lines or CSV, and those of EAP-IG,
auto-circuit and feature-circuits. Every line becomes a Pair; `usable_pairs` keeps those that a
model can run, and says of each other one why it cannot.
"""

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mingpt.common import AnyPath, atomic_write
from mingpt.interpretability.tasks import Batch, draw_pairs, read_pair
from mingpt.model import GPT

OWN = ("clean", "corrupted", "clean_answer", "corrupted_answer")
MAX_SKIPPED = 0.1  # of the pairs; where more cannot be used, an average would be of other texts


class Pair(NamedTuple):
    """Two texts of equal token length, and the answers after each.

    Texts may be token ids, and an answer a list of several tokens that are all right.
    """

    clean: str | list[int]
    corrupted: str | list[int]
    clean_answer: str | list[str]
    corrupted_answer: str | list[str]
    # {role: [start, stop]}: which tokens play it, half-open; -1 alone is the last token. Tokens,
    # not characters: a cell of a sweep is a token, and auto-circuit's files count tokens too.
    roles: dict[str, int | list[int]] = {}
    line: int | None = None  # in its file


class Usable(NamedTuple):
    """A pair that a model can run.

    Its ids are read again when they are needed, since there may be very many pairs.
    """

    pair: Pair
    length: int  # of each of its texts, in tokens
    first: int  # the first position in which they differ
    roles: dict[str, range]  # the positions of each


def load_pairs(path: AnyPath) -> list[Pair]:
    """The Pairs of a file, a list. ValueError where it is no file of pairs, with what is known.

    path: .jsonl, .json or .csv. Columns, by which the format is recognised:
    our own: clean, corrupted, clean_answer, corrupted_answer, and roles if there are any;
    EAP-IG: clean, corrupted, label (a later year must be above it); or clean, corrupted,
    corrupted_hard, correct_idx, incorrect_idx, whose answers are read from the text, since the ids
    are those of another tokenizer;
    auto-circuit: prompts with clean, corrupt, answers, wrong_answers; word_idxs are the roles;
    feature-circuits: clean_prefix, patch_prefix, clean_answer, patch_answer.
    """
    # A folder, a pipe or nothing at all.
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}; give a file of pairs")
    rows = list(_read_rows(Path(path)))
    if not rows:
        raise ValueError(f"{path} has no pairs")
    columns = set(rows[0][1])
    for needed, read in FORMATS.items():
        if set(needed) <= columns:
            return [_read_row(read, row, line) for line, row in rows]
    known = "\n".join("  " + ", ".join(needed) for needed in FORMATS)
    found = ", ".join(sorted(map(str, columns)))
    raise ValueError(
        f"{path} is no file of pairs; it has the columns\n  {found}\nknown are\n{known}"
    )


def _read_row(read, row, line):
    try:
        return read(row, line)
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"line {line} is no pair: {error!r}; it has {row}") from error


def draw_task(model: GPT, name: str, count: int = 100, seed: int = 0) -> list[Pair]:
    """The Pairs of a built-in task: what load_task draws, to be written to a file."""
    pairs = []
    drawn: list[Any] = draw_pairs(model, name, count, seed)
    for *texts, clean_answer, corrupted_answer in drawn:
        clean, corrupted = (text if isinstance(text, str) else text[0].tolist() for text in texts)
        pairs.append(Pair(clean, corrupted, clean_answer, corrupted_answer))
    return pairs


def write_pairs(pairs: Iterable[Pair], path: AnyPath) -> None:
    """Write pairs as JSON lines with our own columns."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for pair in pairs:
            row = dict(zip(OWN, pair))
            if pair.roles:
                row["roles"] = pair.roles
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def usable_pairs(
    model: GPT, pairs: Sequence[Pair], max_skipped: float = MAX_SKIPPED
) -> tuple[list[Usable], list[tuple[Pair, str]]]:
    """([Usable], [(Pair, reason)]): the pairs that this model can run, and the others.

    ValueError where more than this share cannot be used.
    """
    if not 0 <= max_skipped <= 1:
        raise ValueError(f"max_skipped is a share, 0 to 1; got {max_skipped}")
    usable = []
    skipped = []
    for pair in pairs:
        try:
            batch = read_batch(model, pair)
            differs = (batch.clean != batch.corrupted)[0]
            roles = _read_roles(pair.roles, len(differs))
            first = int(differs.nonzero()[0])
            usable.append(Usable(pair, len(differs), first, roles))
        except ValueError as error:
            skipped.append((pair, str(error)))
    if len(skipped) > max_skipped * len(pairs):
        pair, reason = skipped[0]
        raise ValueError(
            f"{len(skipped)} of {len(pairs)} pairs cannot be used, more than {max_skipped:.0%}; "
            f"the first, line {pair.line}: {reason}\n"
            "with a larger max_skipped the others are used, and skipped.jsonl lists these"
        )
    return usable, skipped


def read_batch(model: GPT, pair: Pair) -> Batch:
    """A Pair as a Batch of one; ValueError where the model cannot run it."""
    texts = [_as_input(model, text) for text in pair[:2]]
    return read_pair(model, (*texts, *pair[2:4]))


def _as_input(model, text):
    """A text as it is; token ids, a list in a file, as a tensor (1,T)."""
    if isinstance(text, str):
        return text
    last = model.config.vocab_size - 1
    if not all(type(i) is int and 0 <= i <= last for i in text):
        raise ValueError(f"the ids must be 0 to {last}, got {text}")
    return torch.tensor([text])


def _read_roles(roles, T):
    """{role: range of positions} in a text of T tokens."""
    ranges = {}
    for role, place in roles.items():
        start, stop = place if isinstance(place, list) else (place, place + 1)
        if start < 0:  # counted from the end
            start, stop = start + T, stop + T if stop else T
        if not 0 <= start < stop <= T:
            raise ValueError(
                f"role {role!r} is at {place}; give [start, stop] or a position within {T} tokens"
            )
        ranges[role] = range(start, stop)
    return ranges


def _read_rows(path):
    """Yield (line, {column: value}) of a file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            reader = csv.DictReader(text.splitlines())
            for row in reader:
                yield reader.line_num, row
        elif text.lstrip().startswith("{") and '"prompts"' in text:
            yield from _auto_circuit_rows(json.loads(text))
        else:
            for line, row in enumerate(text.splitlines(), 1):
                if row.strip():
                    yield line, dict(json.loads(row))
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise ValueError(f"{path} is no .jsonl, .json or .csv file of pairs: {error}") from error


def _auto_circuit_rows(data):
    """Yield (number, row) of auto-circuit's layout, its roles in every row."""
    roles = data.get("word_idxs", {})
    for number, prompt in enumerate(data["prompts"], 1):
        yield number, prompt | {"roles": roles}


def _own(row, line):
    roles = row.get("roles") or {}
    if isinstance(roles, str):  # in a CSV
        roles = json.loads(roles)
    texts = {column: row[column] for column in OWN}
    return Pair(**texts, roles=roles, line=line)


def _greater_than(row, line):
    """EAP-IG's: all two-digit ends of a year above the label are right, the others wrong."""
    year = int(row["label"])
    years = [f"{number:02}" for number in range(100)]
    return Pair(row["clean"], row["corrupted"], years[year + 1 :], years[: year + 1], {}, line)


def _ioi(row, line):
    """EAP-IG's: the giver is the word in which the texts differ; the other name is the answer.

    Answers that cannot be read from the text stay empty, and the pair is not usable.
    """
    clean = row["clean"]
    differing = [
        word for word, other in zip(clean.split(), row["corrupted"].split()) if word != other
    ]
    giver = differing[0] if len(differing) == 1 else ""
    people = re.search(r"(\w+) and (\w+)", clean)
    names = list(people.groups()) if people else []
    if giver not in names:
        return Pair(clean, row["corrupted"], [], [], {}, line)
    names.remove(giver)
    return Pair(clean, row["corrupted"], f" {names[0]}", f" {giver}", {}, line)


def _auto_circuit(row, line):
    return Pair(
        row["clean"], row["corrupt"], row["answers"], row["wrong_answers"], row["roles"], line
    )


def _feature_circuits(row, line):
    return Pair(
        row["clean_prefix"], row["patch_prefix"], row["clean_answer"], row["patch_answer"], {}, line
    )


# The columns by which a format is recognised, and what makes a Pair of a row.
FORMATS = {
    OWN: _own,
    ("clean", "corrupted", "label"): _greater_than,
    ("clean", "corrupted", "corrupted_hard", "correct_idx", "incorrect_idx"): _ioi,
    ("clean", "corrupt", "answers", "wrong_answers"): _auto_circuit,
    ("clean_prefix", "patch_prefix", "clean_answer", "patch_answer"): _feature_circuits,
}
