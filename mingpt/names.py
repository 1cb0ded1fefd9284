"""The embedded model `names`: the text it learns from, how it is trained, and what it must be able to do.

    python -m mingpt.names OUTPUT [--austen FOLDER] [--minutes N]

Each row of a batch is one of three things: passages about people whose names come back, Austen's prose, or a chunk of
uniformly random tokens again and again. A (first, last) combination or a sentence form that the measures use never
occurs in training, so that a right answer was copied from the context.
"""

import random
import re

FIRST = (
    "James Mary Robert Patricia John Jennifer Michael Linda David Elizabeth William Barbara Richard Susan Joseph Jessica "
    "Thomas Sarah Charles Karen Daniel Lisa Matthew Nancy Anthony Betty Mark Sandra Donald Margaret Steven Ashley Paul "
    "Kimberly Andrew Emily Joshua Donna Kenneth Michelle Kevin Carol Brian Amanda George Melissa Edward Deborah Ronald "
    "Stephanie Timothy Rebecca Jason Laura Jeffrey Helen Ryan Sharon Jacob Cynthia Gary Kathleen Nicholas Amy Eric Angela "
    "Jonathan Shirley Stephen Anna Larry Brenda Justin Pamela Scott Emma Brandon Nicole Benjamin Samantha Samuel Katherine "
    "Gregory Christine Frank Rachel Alexander Catherine Raymond Carolyn Patrick Janet Jack Ruth Dennis Maria Jerry Heather "
    "Tyler Diane Aaron Virginia Jose Julie Adam Joyce Henry Victoria Nathan Olivia Douglas Kelly Zachary Christina Peter "
    "Lauren Kyle Joan Walter Evelyn Ethan Judith"
).split()
LAST = (
    "Smith Johnson Williams Brown Jones Garcia Miller Davis Rodriguez Martinez Hernandez Lopez Gonzalez Wilson Anderson "
    "Taylor Moore Jackson Martin Lee Perez Thompson White Harris Sanchez Clark Ramirez Lewis Robinson Walker Young Allen "
    "King Wright Torres Nguyen Hill Flores Green Adams Nelson Baker Hall Rivera Campbell Mitchell Carter Roberts Gomez "
    "Phillips Evans Turner Diaz Parker Cruz Edwards Collins Reyes Stewart Morris Morales Murphy Cook Rogers Gutierrez Ortiz "
    "Morgan Cooper Peterson Bailey Reed Howard Ramos Kim Cox Ward Richardson Watson Brooks Chavez Wood Bennett Gray Mendoza "
    "Ruiz Hughes Price Alvarez Castillo Sanders Patel Myers Long Ross Foster Jimenez Powell Jenkins Perry Russell Sullivan "
    "Bell Coleman Butler Henderson Barnes Fisher Simmons Graham Patterson Jordan Reynolds Hamilton Wallace Woods Cole West "
    "Owens Gibson Ellis Harrison"
).split()

SLOTS = {
    "role": "teacher doctor student painter farmer lawyer writer pilot nurse baker singer sailor driver judge gardener "
    "neighbour soldier player cook clerk builder dancer poet guide",
    "trait": "quiet clever kind young famous careful strange proud honest patient brave cheerful serious gentle curious "
    "tall busy tired happy lucky polite lonely calm good",
    "place": "garden village market station library school harbour kitchen theatre hospital office museum church park "
    "factory hotel valley street town castle forest bank",
    "thing": "letter book boat horse lamp clock coat ring map ticket basket bicycle camera piano table key watch hat "
    "picture knife bottle guitar chair box",
    "time": "morning evening summer winter week month year night spring autumn day afternoon",
    "act": "left laughed waited smiled slept agreed won arrived sang cried listened refused returned worked spoke ran",
    "verb": "bought found lost sold wanted painted kept carried cleaned needed liked hid",
    "many": "two three four five six seven eight nine ten many few several",
}
SLOTS = {slot: words.split() for slot, words in SLOTS.items()}

# The forms of sentences. N is a person's full name; a mark * stands before those that only the measures use.
OPENINGS = """
N was a {trait} {role}.
N lived near the {place}.
N worked as a {role} in the {place}.
N {verb} a {trait} {thing}.
N had {many} friends in the {place}.
N came from a {trait} family.
N went to the {place} every {time}.
N was born in the {place}.
N and the {role} {verb} the {thing} together.
N never spoke about the {place}.
N is known as a {trait} {role} in this town.
N said that the {thing} was too small.
N looked {trait} that {time}.
N wrote to the {role} about the {thing}.
N, the {role}, {verb} a {thing}.
N, who was {trait}, lived in the {place}.
N used to be the {role} of the {place}.
N had been {trait} for {many} years.
N does not like the {place}.
N took the {thing} to the {place}.
N, a {trait} {role}, {act} first.
N played the {thing} well.
N will be a {role} some day.
N opened the door of the {place}.
N asked for a {thing}.
N?
N!
Everyone in the {place} knew N.
One {time}, N {verb} a {thing}.
It was N who {verb} the {thing}.
The {role} was called N.
In the {place} we met N.
This is the story of N.
The {trait} {role} was married to N.
Last {time} the {role} wrote to N.
Do you know N?
The {thing} belonged to N.
There was once a {role} named N.
We heard about N.
Dear N,
The {place} was full, and N {act}.
*N was a top-notch {role}.
*N seemed {trait} to the old {role}.
*N walked from the {place} with a {thing}.
*N met the {role} at noon.
*N, tired of the {place}, {verb} another {thing}.
*N kept {many} secrets.
*N gave a {thing} to the {role}.
*N hardly ever {act}.
*N ran the {place} for {many} years.
*N owned the only {thing} there.
*N could be {trait} at times.
*Nothing in the {place} pleased N.
*People in the {place} talked of N.
*At the {place} stood N.
""".strip().splitlines()
MIDDLES = """
The {thing} was {trait}.
It rained all {time}.
The {place} was closed.
The {role} {act}.
There were {many} people in the {place}.
It was a {trait} {time}.
Nobody {act}.
The {role} {verb} the {thing}.
The {role} of the {place} was {trait}.
A {trait} {role} {act} near the {place}.
In the {time} the {place} was empty.
They {verb} {many} things.
It happened in the {time}.
The {thing} came from the {place}.
The {time} was long.
We {verb} a {thing} there.
That was {many} years ago.
What a {trait} {time}!
*By then the {place} had grown {trait}.
*Somebody broke the {thing} at night.
*For a {time} all went well.
*Then the {role} fell ill.
*Each {thing} cost {many} coins.
""".strip().splitlines()
RETURNS = """
N {act}.
N was {trait}.
N {verb} the {thing}.
N was seen in the {place}.
N and the {role} {act}.
N had a {thing}.
N went home.
N, yes, N.
N {verb} it twice.
Then N {act}.
Later N {verb} a {thing}.
So N was {trait}.
But N {act} at last.
And N?
The {role} thanked N.
The {thing} was for N.
Nobody saw N again.
Everyone liked N.
The {role} and N {act}.
We all remember N.
That {time} N {act}.
After a {time}, N {verb} the {thing}.
I think N is {trait}.
The {place} was named after N.
The {role} said that N {act}.
When N {act}, the {role} {act}.
"Where is N?" said the {role}.
"You are {trait}," said N.
*N knew it.
*In the end N {act}.
*Only N stayed.
*The {role} never forgot N.
*Who else but N could help?
*With a {thing} came N.
*Suddenly N {act}.
*It must be N.
""".strip().splitlines()


def held_out_combination(first, last):
    """True for the fifth of the (first, last) combinations that training never sees, the default sentences' among them."""
    default = first in ("Michelle", "Jessica") and last in ("Jones", "Smith")
    return default or (7 * FIRST.index(first) + 3 * LAST.index(last)) % 5 == 0


def pick_form(rng, forms, held_out):
    """One of the forms, its slots filled."""
    form = rng.choice([form for form in forms if form.startswith("*") == held_out]).lstrip("*")
    sentence = re.sub(r"{(\w+)}", lambda slot: rng.choice(SLOTS[slot[1]]), form)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", sentence)


def pick_person(rng, held_out):
    while True:
        first, last = rng.choice(FIRST), rng.choice(LAST)
        if held_out_combination(first, last) == held_out:
            return first, last


def tell(form, person, rng=None):
    """The sentence with the person's name in it; with an rng, one time in ten the first name alone."""
    first, last = person
    return re.sub(r"\bN\b", lambda _: first if rng and rng.random() < 0.1 else f"{first} {last}", form)


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
    corrupted = rng.choice([last for last in LAST if last != clean and held_out_combination(first, last)])
    closing = closing[: closing.index("N")] + first
    texts = [" ".join([tell(opening, (first, last)), *middles, closing]) for last in (clean, corrupted)]
    return *texts, f" {clean}", f" {corrupted}"
