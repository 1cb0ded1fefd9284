"""What do the features of the embedded model's autoencoder stand for, and which carry the answer?

    python experiments/autoencoder_study.py [--autoencoder names] [--texts 600] [--pairs 60]

Texts are passages of names that training did not see. A feature stands for a label, such as "this
token is the last name Jones", as well as "it is above a quarter of its maximum" agrees with it: F1,
the harmonic mean of precision and recall. The best feature of a label is chosen on one half of the
texts and measured on the other. The control is an autoencoder of the same sizes with random
directions.

Pairs are of held-out names and sentences. In each, every active feature is removed by itself. Two
are looked at where the answer is read, at the last token: the one that carries most, and the one
that stands for "this last name is due" in the texts. The control of each is the active feature of
the nearest size at the same token.
"""

import random
import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a file, Python looks for packages in this folder, not in the one above.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from mingpt.common import command_parser, progress_bar, run_command
from mingpt.interpretability.answer_features import answer_features
from mingpt.interpretability.autoencoder_quality import evaluate
from mingpt.interpretability.autoencoders import Autoencoder
from mingpt.interpretability.features import feature_batches
from mingpt.model import GPT
from mingpt.names import FIRST, LAST, held_out_pair, passage

SEED = 1  # the training text has 0
LEAST = 5  # tokens with a label, in each half
POSITIONS = range(10)


def label_columns(model, texts):
    """{group: {label: (tokens,) bool}} over all tokens of the texts."""
    encode = model.tokenizer.encode
    last = {name: encode(f" {name}")[0] for name in LAST}
    first = {name: [encode(name)[0], encode(f" {name}")[0]] for name in FIRST}
    rows = [torch.tensor(encode(text)) for text in texts]
    ids = torch.cat(rows)
    after = torch.cat([torch.cat((row[1:], row.new_tensor([-1]))) for row in rows])
    # Whether the next token was in the text before: else no one can know which name is due.
    known = torch.cat([was_before(row) for row in rows])
    position = torch.cat([torch.arange(len(row)) for row in rows])
    is_last = torch.isin(after, torch.tensor([*last.values()]))
    return {
        "this token is the last name": {name: ids == i for name, i in last.items()},
        "this token is the first name": {
            name: torch.isin(ids, torch.tensor(both)) for name, both in first.items()
        },
        "this last name is due": {name: known & (after == i) for name, i in last.items()},
        "a last name is due": {"any": is_last, "one that was there before": is_last & known},
        "the position is": {str(p): position == p for p in POSITIONS},
    }


def was_before(row):
    """(T,) bool: is the token after each one there before it? Of ids (T,)."""
    seen = row[:, None] == row[None]  # (T,T)
    earlier = seen.tril(-1).any(1)  # is a token there before itself?
    return torch.cat((earlier[1:], earlier.new_tensor([False])))


@torch.no_grad()
def active_features(model, autoencoder, texts):
    """(tokens,n): 1 where a feature is above a quarter of its maximum, else 0."""
    found = feature_batches(model, autoencoder, texts)
    features = torch.cat([autoencoder.encode(x) for _, x in found])
    return (features > features.amax(0) / 4).float()


def best_f1(active, labels, is_first_half):
    """(feature (m,), F1 (m,)) of the best feature of each label; labels (tokens,m) bool."""
    scores = []
    for half in (is_first_half, ~is_first_half):
        there = labels[half].float()
        both = active[half].T @ there  # (n,tokens) @ (tokens,m) -> (n,m)
        total = active[half].sum(0)[:, None] + there.sum(0)
        scores.append(2 * both / total.clamp(min=1))
    chosen = scores[0].argmax(0)
    return chosen, scores[1].gather(0, chosen[None])[0]


def study_labels(model, autoencoder, texts):
    """Print how well the best features stand for each group of labels; the features found."""
    torch.manual_seed(0)
    untrained = Autoencoder(autoencoder.config)
    untrained.load_state_dict({"b_dec": autoencoder.b_dec}, strict=False)
    lengths = [len(model.tokenizer.encode(text)) for text in texts]
    number = torch.arange(len(texts)).repeat_interleave(torch.tensor(lengths))
    is_first_half = number % 2 == 0
    columns = label_columns(model, texts)
    trained = active_features(model, autoencoder, texts)
    control = active_features(model, untrained, texts)
    found = {}
    for group, by_name in columns.items():
        names = []
        for name, column in by_name.items():
            if min(column[is_first_half].sum(), column[~is_first_half].sum()) >= LEAST:
                names.append(name)
        labels = torch.stack([by_name[name] for name in names], 1)
        features, scores = best_f1(trained, labels, is_first_half)
        _, by_chance = best_f1(control, labels, is_first_half)
        found[group] = {
            name: (feature.item(), score.item())
            for name, feature, score in zip(names, features, scores)
        }
        print(
            f"{group:30} n {len(names):3}  F1 {mean_and_error(scores)}, above 0.9: "
            f"{(scores > 0.9).sum():3}; control {mean_and_error(by_chance)}, "
            f"above 0.9: {(by_chance > 0.9).sum()}; {len(features.unique())} features"
        )
        best = sorted(found[group].items(), key=lambda item: -item[1][1])[:6]
        print("   ", ", ".join(f"{name} {feature} ({f1:.2f})" for name, (feature, f1) in best))
    return found


def mean_and_error(values):
    """The mean over (m,) with its standard error, as text."""
    values = torch.as_tensor(values, dtype=torch.float)
    # Of one value alone 0 / 0: nan.
    error = (values.var(correction=0) / torch.tensor(len(values) - 1)).sqrt()
    return f"{values.mean():.3f} +- {error:.3f}"


def study_pairs(model, autoencoder, count, due):
    """Print what removing features does to the answer; due: {last name: (feature, F1)}."""
    rng = random.Random(SEED)
    effects = {"intact": [], "most": [], "control of it": [], "due": [], "control of that": []}
    is_due = []
    for _ in progress_bar(range(count), desc="pairs"):
        clean, _, answer, other = held_out_pair(rng)
        result = answer_features(model, autoencoder, clean, answer, other)
        at_end = result.position == len(result.tokens) - 1
        effects["intact"].append(result.total)
        most = result.exact.where(at_end, -torch.inf).argmax()
        effects["most"].append(result.exact[most].item())
        effects["control of it"].append(like(result, most, at_end))
        feature, _ = due.get(answer.strip(), (None, 0))
        is_due.append(float(result.feature[most] == feature))
        for cell in (at_end & (result.feature == feature)).nonzero()[:, 0]:
            effects["due"].append(result.exact[cell].item())
            effects["control of that"].append(like(result, cell, at_end))
    for name, values in effects.items():
        print(f"{name:16} n {len(values):3}: {mean_and_error(values)} logits")
    print(f"the one that carries most is that for 'due': {mean_and_error(is_due)} of the pairs")


def like(result, cell, at_end):
    """What the feature at the last token whose size is nearest to that of the cell carries."""
    gaps = (result.activation - result.activation[cell]).abs()
    gaps = gaps.where(at_end, torch.inf)
    gaps[cell] = torch.inf
    return result.exact[gaps.argmin()].item()


def study(options):
    """Print all of it."""
    model = GPT.from_pretrained("names")
    autoencoder = Autoencoder.from_pretrained(options.autoencoder)
    rng = random.Random(SEED)
    texts = [passage(rng) for _ in range(options.texts)]
    print(evaluate(model, autoencoder, texts))
    found = study_labels(model, autoencoder, texts)
    study_pairs(model, autoencoder, options.pairs, found["this last name is due"])
    clean = "Michelle Jones was a top-notch student. Michelle"
    print(answer_features(model, autoencoder, clean, " Jones", " Smith"))


def main():
    """The command line: its exit code."""
    parser = command_parser(__doc__)
    parser.add_argument("--autoencoder", default="names", help="of the model names; default: names")
    parser.add_argument("--texts", type=int, default=600, help="passages; default: 600")
    parser.add_argument("--pairs", type=int, default=60, help="pairs; default: 60")
    return run_command(study, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
