"""Does this project give the numbers that others have published of GPT-2?

    python experiments/reproduce.py

downloads gpt2, or takes it from the cache, and prints one line for each number or table of
experiments/published: what it is, pass or FAIL, the cell that is furthest off with both values, the
tolerance and why it is so, and the seconds. At the end: how many were reproduced, and what was not
compared. Each file says where its numbers come from and by which conventions. On two cores the last
file, 1,000 texts, takes more than an hour, and all others a quarter of one; a folder with some of
the files (--published) compares these.

The exit code is 0 if all pass, 1 if one fails, 2 if the model cannot be had.
"""

import json
import sys
import time
from pathlib import Path

import torch

# Run as a file, Python looks for packages in this folder, not in the one above.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.published_edges import NotCompared
from experiments.published_measures import MEASURES
from mingpt.common import CheckFailed, command_parser, run_command
from mingpt.model import GPT

PUBLISHED = Path(__file__).parent / "published"
KEYS = {"what", "measure", "values", "tolerance", "why"}  # of every number


def read_published(folder):
    """[the content of each .json file of a folder], by name; ValueError where one is not whole."""
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        raise ValueError(f"{folder} has no .json files; give a folder such as {PUBLISHED}")
    contents = []
    for path in files:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for number in content["numbers"]:
                missing = KEYS - number.keys()
                if missing or number["measure"] not in MEASURES:
                    raise ValueError(f"{number.get('what')}: no {missing or number['measure']}")
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is no file of published numbers: {error}") from error
        contents.append(content)
    return contents


def compare(published, ours, tolerance):
    """(whether all of ours lie within the tolerance, the place of the one that is furthest off)."""
    if ours.shape != published.shape:
        raise ValueError(
            f"the published table is {tuple(published.shape)}, ours {tuple(ours.shape)}; "
            "give the model that it was made with"
        )
    tolerance = torch.as_tensor(tolerance, dtype=torch.float64).expand_as(ours)
    excess = (ours - published).abs() - tolerance
    place = torch.unravel_index(excess.argmax(), ours.shape)
    # Asked so that NaN fails.
    passes = (excess <= 0).all().item()
    return passes, tuple(map(int, place))


def describe(number, ours, seconds):
    """(whether it passes, the line) of one number, or of a table at its worst cell."""
    published = torch.tensor(number["values"], dtype=torch.float64)
    ours = torch.as_tensor(ours).detach().cpu().double()
    passes, place = compare(published, ours, number["tolerance"])
    tolerance = torch.as_tensor(number["tolerance"]).expand_as(ours)[place]
    where = f"{'x'.join(map(str, ours.shape))}, furthest off at {list(place)}: " if place else ""
    verdict = "pass" if passes else "FAIL"
    line = (
        f"{verdict}  {number['name']}: {number['what']}; {where}"
        f"published {published[place]:.6g}, ours {ours[place]:.6g}, "
        f"tolerance {tolerance:.3g} ({number['why']}); {seconds:.1f} s"
    )
    return passes, line


def reproduce(options):
    """Print a line for each published number; CheckFailed if one is not reproduced."""
    contents = read_published(options.published)
    model = GPT.from_pretrained(options.model)
    verdicts = []
    for content in contents:
        skipped = list(content["not_compared"])
        for number in content["numbers"]:
            # What a file says once holds for each of its numbers.
            given = content | number
            start = time.perf_counter()
            try:
                ours = MEASURES[number["measure"]](model, given)
            except NotCompared as error:
                skipped.append({"what": number["what"], "why": str(error)})
                continue
            passes, line = describe(given, ours, time.perf_counter() - start)
            verdicts.append(passes)
            print(line, flush=True)
        for number in skipped:
            print(f"not compared  {content['name']}: {number['what']}: {number['why']}")
    failed = verdicts.count(False)
    print(f"{len(verdicts) - failed} of {len(verdicts)} reproduced by {model.source}.")
    if failed:
        raise CheckFailed(f"{failed} published numbers are not reproduced")


def main(arguments=None):
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("--model", default="gpt2", help="or a folder; default: %(default)s")
    parser.add_argument("--published", default=PUBLISHED, help="the folder with the numbers")
    return run_command(reproduce, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
