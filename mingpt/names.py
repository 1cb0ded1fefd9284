"""The text of the embedded model `names`: passages about people whose names come back, and pairs.

Pairs are held out of training: a (first, last) combination or a sentence form that they use never
occurs in a passage, so that a right answer was copied from the context, not remembered.

words.txt, beside the model, has the words and the sentence forms. In a form {slot} stands for a
word of that section and N for a person's full name; a form with * before it is held out. A person
is a pair (first, last); rng is a random.Random, which decides everything.
"""

import re
from random import Random

from mingpt.hub import EMBEDDED

# {section: its text} of words.txt, where a line [section] begins each; comments stand above the
# first one.
SECTIONS = dict(
    re.findall(r"\[(\w+)\]([^[]*)", (EMBEDDED / "words.txt").read_text(encoding="utf-8"))
)


def words_of(section: str) -> list[str]:
    """The words of a section, a list."""
    return SECTIONS[section].split()


def forms_of(section: str) -> list[str]:
    """The sentence forms of a section, a list: one a line."""
    return SECTIONS[section].strip().splitlines()


# Sentences that introduce a person, that have none, and in which one comes back.
OPENINGS = forms_of("openings")
MIDDLES = forms_of("middles")
RETURNS = forms_of("returns")
FIRST = words_of("first")
LAST = words_of("last")


def held_out_combination(first: str, last: str) -> bool:
    """True for the fifth of all combinations that training never sees."""
    # Among them are those of the experiment's default texts.
    if first in ("Michelle", "Jessica") and last in ("Jones", "Smith"):
        return True
    return (7 * FIRST.index(first) + 3 * LAST.index(last)) % 5 == 0


def pick_form(rng: Random, forms: list[str], held_out: bool = False) -> str:
    """One of the forms, held out or not, its slots filled with words."""
    candidates = [form for form in forms if form.startswith("*") == held_out]
    form = rng.choice(candidates).lstrip("*")

    sentence = re.sub(r"{(\w+)}", lambda slot: rng.choice(words_of(slot[1])), form)
    # The word that was filled in decides between "a" and "an".
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)


def pick_person(rng: Random, held_out: bool = False) -> tuple[str, str]:
    """A person whose combination of names is held out or not."""
    while True:
        person = rng.choice(FIRST), rng.choice(LAST)
        if held_out_combination(*person) == held_out:
            return person


def tell(form: str, person: tuple[str, str], rng: Random | None = None) -> str:
    """The sentence with the person's name in it; with an rng, one time in ten the first alone."""
    first, last = person

    def name(slot):
        if rng and rng.random() < 0.1:
            return first
        return f"{first} {last}"

    return re.sub(r"\bN\b", name, form)


def passage(rng: Random) -> str:
    """A training passage: one to three people are introduced, then come back again and again."""
    count = rng.choice((1, 1, 1, 2, 2, 3))
    people = [pick_person(rng) for _ in range(count)]
    sentences = []
    for person in people:
        sentences.append(tell(pick_form(rng, OPENINGS), person))
        if rng.random() < 0.4:
            sentences.append(pick_form(rng, MIDDLES))
    for _ in range(count * rng.randint(1, 3)):
        if rng.random() < 0.3:
            sentences.append(pick_form(rng, MIDDLES))
        sentences.append(tell(pick_form(rng, RETURNS), rng.choice(people), rng))
    return " ".join(sentences)


def held_out_pair(rng: Random) -> tuple[str, str, str, str]:
    """(clean, corrupted, clean answer, corrupted answer), all texts.

    clean and corrupted end where a person's last name is due, and differ in that name alone.
    """
    opening = pick_form(rng, OPENINGS, held_out=True)
    closing = pick_form(rng, RETURNS, held_out=True)
    count = rng.randint(0, 2)
    middles = [pick_form(rng, MIDDLES, held_out=True) for _ in range(count)]
    first, clean = pick_person(rng, held_out=True)
    others = [last for last in LAST if last != clean and held_out_combination(first, last)]
    corrupted = rng.choice(others)
    # The closing sentence breaks off after the first name; the opening alone has the whole one.
    ending = closing[: closing.index("N")] + first
    form = " ".join([opening, *middles, ending])
    clean_text = tell(form, (first, clean))
    corrupted_text = tell(form, (first, corrupted))
    return clean_text, corrupted_text, f" {clean}", f" {corrupted}"
