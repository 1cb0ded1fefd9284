"""The text of the embedded model `names`: passages about people whose names come back, and pairs held out of training.

A (first, last) combination or a sentence form that the measures use never occurs in training, so that a right answer
was copied from the context.
"""

import re
import sys

from mingpt.hub import EMBEDDED, Unavailable
from mingpt.model import GPT


def read_sections(path):
    """{section: its text} of words.txt, in which a line [section] starts each."""
    _, *parts = re.split(r"^\[(\w+)\]\n", path.read_text(encoding="utf-8"), flags=re.M)
    return {section: text.strip() for section, text in zip(parts[::2], parts[1::2])}


SECTIONS = read_sections(
    EMBEDDED / "words.txt"
)  # which says what the marks in the sentence forms mean
OPENINGS, MIDDLES, RETURNS = (
    SECTIONS[name].splitlines() for name in ("openings", "middles", "returns")
)
FIRST, LAST = SECTIONS["first"].split(), SECTIONS["last"].split()


def held_out_combination(first, last):
    """True for the fifth of all combinations that training never sees, those of the default sentences among them."""
    default = first in ("Michelle", "Jessica") and last in ("Jones", "Smith")
    return default or (7 * FIRST.index(first) + 3 * LAST.index(last)) % 5 == 0


def pick_form(rng, forms, held_out):
    """One of the forms, its slots filled."""
    form = rng.choice([form for form in forms if form.startswith("*") == held_out]).lstrip("*")
    sentence = re.sub(r"{(\w+)}", lambda slot: rng.choice(SECTIONS[slot[1]].split()), form)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)


def pick_person(rng, held_out):
    while True:
        first, last = rng.choice(FIRST), rng.choice(LAST)
        if held_out_combination(first, last) == held_out:
            return first, last


def tell(form, person, rng=None):
    """The sentence with the person's name in it; with an rng, one time in ten the first name alone."""
    first, last = person
    return re.sub(
        r"\bN\b", lambda _: first if rng and rng.random() < 0.1 else f"{first} {last}", form
    )


def passage(rng):
    """A training passage: one to three people are introduced, then come back again and again."""
    people = [pick_person(rng, held_out=False) for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))]
    sentences = []
    for person in people:
        sentences.append(tell(pick_form(rng, OPENINGS, False), person))
        if rng.random() < 0.4:
            sentences.append(pick_form(rng, MIDDLES, False))
    for _ in range(rng.randint(1, 3) * len(people)):
        if rng.random() < 0.3:
            sentences.append(pick_form(rng, MIDDLES, False))
        sentences.append(tell(pick_form(rng, RETURNS, False), rng.choice(people), rng))
    return " ".join(sentences)


def held_out_pair(rng):
    """(clean, corrupted, clean answer, corrupted answer): texts that end where a last name is due and differ in one."""
    opening, closing = pick_form(rng, OPENINGS, True), pick_form(rng, RETURNS, True)
    middles = [pick_form(rng, MIDDLES, True) for _ in range(rng.randint(0, 2))]
    first, clean = pick_person(rng, True)
    corrupted = rng.choice(
        [last for last in LAST if last != clean and held_out_combination(first, last)]
    )
    end = [*middles, closing[: closing.index("N")] + first]
    texts = [" ".join([tell(opening, (first, last)), *end]) for last in (clean, corrupted)]
    return *texts, f" {clean}", f" {corrupted}"


# The experiment as it is shipped, which the embedded model can show where gpt2 cannot be had.
SHOWCASE = {
    "model": "gpt2",
    "clean": "Michelle Jones was a top-notch student. Michelle",
    "corrupted": "Michelle Smith was a top-notch student. Michelle",
    "clean_answer": " Jones",
    "corrupted_answer": " Smith",
}


def load_model(name, may_stand_in=False):
    """The named model; with may_stand_in, the embedded one where it cannot be had, and says so."""
    try:
        return GPT.from_pretrained(name)
    except Unavailable:
        if not may_stand_in:
            raise
        print(
            f"{name} is not in the cache and cannot be had from the hub: "
            "this is names, the embedded model.\n"
            f"With a network, `python interpretability.py --model {name}` downloads and shows it.",
            file=sys.stderr,
        )
        return GPT.from_pretrained("names")
