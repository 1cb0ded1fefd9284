"""Which role does each head play, and what of in-context learning is lost without induction heads?

    python -m experiments.head_roles MODEL [--text TEXT] --output FOLDER

FOLDER gets roles.csv, the score of every head in every role beside a control; roles.png, score
minus control; and in_context.csv, the losses without all heads that are named induction heads. It
prints the heads with a clear role, and those losses. A score is a mean over texts, with its
standard error; ROLES says what it and its control are.

A role is a place to look at. That a head looks there does not show what it takes from there, nor
that anything depends on it. One head may look at several places.
"""

import random
import signal
import sys
from dataclasses import astuple, dataclass, fields
from itertools import product
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # While the imports below take their seconds, Ctrl-C ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import torch

from experiments.corpora import CORPORA, read_corpus, read_text, split_text
from experiments.in_context import print_losses, study_losses
from experiments.induction_figures import dotted
from experiments.train import check_folder, write_rows
from mingpt.bpe import END_OF_TEXT
from mingpt.common import command_parser, progress_bar, run_command
from mingpt.hub import MODEL_HELP
from mingpt.interpretability import figures, induction
from mingpt.interpretability.attention_analysis import expected_keys, extract_attention, likeness
from mingpt.interpretability.inputs import token_texts, tokenizer_of
from mingpt.model import GPT
from mingpt.names import passage

# {role: (what the score is, what its control is)}; all are of one text, and 0 to 1. The weight is
# averaged over the queries that have such a key.
ROLES = {
    "previous_token": ("weight on the token before", "on the one before that"),
    "current_token": ("weight on the token itself", "on the token before"),
    "first_token": ("weight on the first token", "on the second"),
    "duplicate_token": ("weight on earlier copies of the token", "between others as far apart"),
    "delimiter": ('weight of ) ] } " on their opening one', "between others as far apart"),
    "positional": ("likeness of patterns, tokens shuffled", "each query's weights shuffled"),
    "induction": ("weight on what followed, in repeats", "in control prompts"),
}
# What makes a role clear. The size is for the reader, the rest is against chance: 5 standard errors
# of 20 texts are passed once in 25,000 times, and there are some hundred heads and roles.
SIZE = 0.1  # of score - control
ERRORS = 5  # standard errors that score - control is above 0
LEAST = 20  # texts
LEAST_SCORE = {"positional": 0.5}  # most of the pattern stays, whatever the tokens
LEAST_TOKENS = 4  # in a text: from the third token on each role has other keys than its control


@dataclass
class Row:
    """One line of the table: means over n texts, each with its standard error."""

    head: str  # "3.5"
    role: str
    score: float
    score_error: float
    control: float
    control_error: float
    difference: float  # score - control
    difference_error: float
    n: int
    is_clear: bool


def read_texts(model_name, text, count):
    """The texts to measure on, a list of str.

    text: a file, which is one text; or a corpus of experiments.train, of which it is the last
    tenth, file by file. None: `count` passages for the model names, ValueError for others.
    """
    if text is None and model_name == "names":
        rng = random.Random(1)  # the training text has 0
        return [passage(rng) for _ in range(count)]
    if text is None:
        raise ValueError(
            "this model needs texts; give --text, a file that it was not trained on, or "
            f"{', '.join([*CORPORA, 'python'])} for the last tenth of that corpus"
        )
    if text in (*CORPORA, "python"):
        _, held_out = split_text(END_OF_TEXT.join(read_corpus(text)))
        return held_out.split(END_OF_TEXT)
    return [read_text(text)]


def draw_rows(model, texts, count):
    """Ids (1,T), a list of at most `count`, spread evenly over the texts.

    A text of more tokens than the block size gives windows of that size, and what is left at its
    end belongs to none; a shorter one is taken whole.
    """
    encode = tokenizer_of(model).encode
    T = model.block_size
    rows = []
    for text in texts:
        ids = torch.tensor(encode(text), dtype=torch.long)
        if len(ids) >= LEAST_TOKENS:
            rows += ids.unfold(0, T, T) if len(ids) > T else [ids]
    step = max(1, len(rows) // count)
    rows = [row[None] for row in rows[::step][:count]]
    if len(rows) < 2:
        raise ValueError(
            f"the texts have {len(rows)} windows of up to {T} tokens, needs 2; give longer ones"
        )
    return rows


def measure_roles(model, rows, prompts):
    """{role: (scores (n,L,H), controls (n,L,H))}; n texts, of those that have what it is about.

    rows: ids (1,T) each; prompts: of induction.draw_prompts. Cost: 2 passes for each text, and 1
    over the prompts.
    """
    generator = torch.Generator().manual_seed(0)
    found = {role: [] for role in ROLES}
    for ids in progress_bar(rows, desc="roles", unit="text"):
        for role, pair in score_text(model, ids, generator).items():
            found[role].append(torch.stack(pair).cpu().float())  # (2,L,H)
    study = induction.study_induction(model, prompts, kinds=())
    pairs = torch.stack((study.attention_repeats, study.attention_controls), 1)  # (B,2,L,H)
    found["induction"] = [*pairs]
    return {role: torch.stack(pairs, 1) for role, pairs in found.items() if pairs}  # (2,n,L,H)


def score_text(model, ids, generator):
    """{role: (score (L,H), control (L,H))} of one text, ids (1,T); roles that it can show."""
    pattern = extract_attention(model, ids)  # (L,H,T,T)
    order = torch.randperm(ids.size(1), generator=generator)
    shuffled = extract_attention(model, ids[:, order])
    # Query 2 is the first one with three keys.
    itself, before, second = (
        pattern.diagonal(-back, -2, -1)[..., 2 - back :].mean(-1) for back in range(3)
    )
    columns = pattern[..., 2:, :2].mean(-2)  # (L,H,2)
    found = {
        "previous_token": (before, second),
        "current_token": (itself, before),
        "first_token": (columns[..., 0], columns[..., 1]),
        "positional": (likeness(pattern, shuffled), likeness(pattern, deal(pattern, generator))),
    }
    expected = expected_keys(ids[0], token_texts(model, ids[0]))
    for role in ("duplicate_token", "delimiter"):
        if role in expected:
            found[role] = compare_pairs(pattern, expected[role].bool())
    return {role: pair for role, pair in found.items() if pair}


def deal(pattern, generator):
    """The pattern (...,T,T) with each query's weights dealt to the keys that it sees, at random.

    All heads get the same deal. What stays alike are weights that are all of one size.
    """
    T = pattern.size(-1)
    lots = torch.rand(T, T, generator=generator)
    unseen = torch.ones(T, T).triu(1)
    order = (lots + unseen).argsort(-1)  # a query's own keys first, in random order
    return pattern.gather(-1, order.to(pattern.device).expand_as(pattern))


def compare_pairs(pattern, expected):
    """(score, control), (L,H) each: weight (L,H,T,T) on expected pairs (T,T), and on others.

    For each expected pair the control has the mean weight of the pairs that are not expected and as
    far apart. Where there is no such pair it is left out; None if none is left.
    """
    score = 0
    control = 0
    queries = torch.zeros(len(expected), dtype=torch.bool)
    for back in range(1, len(expected)):
        hit = expected.diagonal(-back)  # (T-back,)
        if hit.any() and not hit.all():
            weights = pattern.diagonal(-back, -2, -1)  # (L,H,T-back)
            score = score + weights[..., hit].sum(-1)
            control = control + weights[..., ~hit].mean(-1) * hit.sum()
            queries[back:] |= hit.cpu()
    count = queries.sum().item()
    return (score / count, control / count) if count else None


def summarize(measured):
    """A list of Row of what measure_roles gives, role by role, head by head."""
    rows = []
    for role, pairs in measured.items():
        values = torch.cat((pairs, pairs[:1] - pairs[1:]))  # (3,n,L,H)
        mean, error = induction.mean_error(values.transpose(0, 1))  # (3,L,H) each
        n, L, H = values.shape[1:]
        is_clear = (mean[2] >= SIZE) & (mean[2] > ERRORS * error[2])
        is_clear &= mean[0] >= LEAST_SCORE.get(role, 0)
        for head in product(range(L), range(H)):
            # score, its error, control, its error, difference, its error
            numbers = torch.stack((mean, error), 1)[(..., *head)].flatten().tolist()
            clear = n >= LEAST and is_clear[head].item()
            rows.append(Row(dotted(head), role, *numbers, n, clear))
    return rows


def clear_heads(rows, role):
    """The Rows of the heads whose role this clearly is, the largest difference first."""
    clear = [row for row in rows if row.role == role and row.is_clear]
    return sorted(clear, key=lambda row: -row.difference)


def print_roles(rows):
    """Print the heads with a clear role, and what was measured."""
    print(
        f"Heads whose score is {SIZE} and {ERRORS} standard errors above its control, in {LEAST} "
        f"texts or more (positional: and {LEAST_SCORE['positional']} or more):"
    )
    for role, (score, control) in ROLES.items():
        counts = [row.n for row in rows if row.role == role]
        n = counts[0] if counts else 0
        print(f"\n{role}: {score}; control: {control}; n = {n}")
        for row in clear_heads(rows, role):
            print(
                f"{row.head:>6}  {row.score:.3f} +- {row.score_error:.3f}  "
                f"control {row.control:.3f} +- {row.control_error:.3f}  "
                f"difference {row.difference:.3f} +- {row.difference_error:.3f}"
            )
        if not clear_heads(rows, role):
            print("  none")


def write_records(records, path):
    """Write a CSV with a line for each of some objects of a dataclass, a column for each field."""
    names = [field.name for field in fields(records[0])]
    write_rows(path, [names, *map(astuple, records)])


def plot_roles(measured, title, path=None):
    """The Figure of score minus control in each role, layers down and heads across."""
    from mingpt.interpretability.notebook_figure import Figure

    figure = Figure(figsize=(2.2 * len(measured) + 1, 5), layout="constrained")
    figure.suptitle(title, parse_math=False)
    panels = figure.subplots(1, len(measured), squeeze=False)[0]
    for axes, (role, (scores, controls)) in zip(panels, measured.items()):
        difference = (scores - controls).mean(0)  # (L,H)
        # One scale, so that the panels can be compared.
        image = axes.imshow(difference.numpy(), "RdBu_r", vmin=-1, vmax=1, aspect="auto")
        axes.set_title(f"{role}\nn = {len(scores)}", fontsize="medium")
        axes.set(xlabel="head", xticks=range(difference.size(1)), yticks=range(len(difference)))
    panels[0].set_ylabel("layer")
    figure.colorbar(image, ax=panels, label="score - control")
    return figures.shown(figure, path)


def report(name, output, text, texts):
    """Measure the named model on so many texts, write tables and picture, print what is clear."""
    folder = Path(output)
    check_folder(folder, "roles.png")
    if texts < 2:
        raise ValueError(f"an error needs 2 texts or more; got --texts {texts}")
    model = GPT.from_pretrained(name)
    contents = read_texts(name, text, texts)
    rows = draw_rows(model, contents, texts)
    # Without a text as in induction_study: random tokens.
    prompts = induction.draw_prompts(model, text="\n".join(contents) if text else None)
    measured = measure_roles(model, rows, prompts)
    table = summarize(measured)
    heads = [tuple(map(int, row.head.split("."))) for row in clear_heads(table, "induction")]
    losses = study_losses(model, rows, prompts, heads)

    folder.mkdir(parents=True, exist_ok=True)
    print_roles(table)
    print_losses(losses)
    write_records(table, folder / "roles.csv")
    write_records(losses, folder / "in_context.csv")
    plot_roles(measured, f"Roles of heads: {model.name or name}", folder / "roles.png")
    print(f"\nWrote roles.csv, roles.png and in_context.csv into {folder}.")


def main(arguments=None):
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("name", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--output", required=True, help="folder for roles.csv, roles.png and in_context.csv"
    )
    parser.add_argument(
        "--text",
        help=f"a file; or {', '.join(CORPORA)} or python, the last tenth of that corpus; "
        "default: passages, for the model names alone",
    )
    parser.add_argument(
        "--texts",
        type=int,
        default=200,
        help="passages, or windows of the text; default: %(default)s, or as many as there are",
    )
    return run_command(lambda options: report(**vars(options)), parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
