"""The published numbers about edges: EAP-IG's scores and circuits on IOI and greater-than.

The scores are those of edges.py, with two differences in what EAP-IG's code does: its runs go from
0/m to (m-1)/m of the way to the clean text, where ours go from 1/m to m/m; and on greater-than its
metric is a difference of probabilities.
"""

import csv
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F
from tqdm import tqdm

from experiments.corpora import download
from mingpt.bpe import END_OF_TEXT
from mingpt.interpretability.circuits import connected, first_edges
from mingpt.interpretability.edges import score_edges
from mingpt.interpretability.graph import BaseRuns, layout, record_base_runs, run_circuit
from mingpt.interpretability.inputs import tokenizer_of
from mingpt.interpretability.tasks import Batch, load_task

STEPS = 5  # of EAP-IG, in all that is compared
AT_ONCE = 24  # texts under way: a thousand would not fit the memory


class NotCompared(Exception):
    """A number cannot be compared here and now: why."""


def their_scores(base):
    """{method: (R,S)} of BaseRuns as EAP-IG's code has them; the mean over the pairs."""
    # Of swapped texts the way goes from the clean to the corrupted one, and takes in the latter.
    batch = base.batch
    swapped = replace(
        base,
        batch=batch._replace(clean=batch.corrupted, corrupted=batch.clean),
        clean=base.corrupted,
        corrupted=base.clean,
        change=-base.change,
    )
    clean = score_edges([base], "eap")
    corrupted = -score_edges([swapped], "eap")
    return {
        "eap-ig": -score_edges([swapped], "eap-ig-inputs", STEPS),
        "eap": clean,
        "clean-corrupted": (clean + corrupted) / 2,
    }


def _with_start(model, ids):
    """Ids (B,T) after <|endoftext|>."""
    tokenizer = tokenizer_of(model)
    [start] = tokenizer.encode(END_OF_TEXT, allow_special=True)
    return F.pad(ids, (1, 0), value=start)


def largest_edges(model, given):
    """(2,): the share of the published edges among as many of ours; Spearman's rank correlation."""
    graph = layout(model)
    scores = 0
    for batch in load_task(model, "ioi", given["pairs"]):
        clean = _with_start(model, batch.clean)
        corrupted = _with_start(model, batch.corrupted)
        base = record_base_runs(model, Batch(clean, corrupted, batch.direction))
        scores = scores + their_scores(base)["eap-ig"] * len(clean)
    scores = scores.cpu()
    published = []
    ours = []
    found = []
    mask = first_edges(graph, scores.abs(), len(given["edges"]))
    for sender, reader, score in given["edges"]:
        r = graph.readers.index(reader)
        s = graph.senders.index(sender)
        published.append(score)
        ours.append(scores[r, s].item())
        found.append(mask[r, s].item())
    share = sum(found) / len(found)
    return torch.tensor([share, rank_correlation(ours, published)])


def rank_correlation(x, y):
    """Spearman's, a float, of two lists without ties."""
    values = torch.tensor([x, y], dtype=torch.float64)
    order = values.argsort(1)
    ranks = order.argsort(1).double()
    return torch.corrcoef(ranks)[0, 1].item()


@dataclass
class GreaterThanRuns(BaseRuns):
    """BaseRuns whose metric is the probability of later years less that of the others."""

    signs: torch.Tensor = None  # (B,V): 1 for a year above the text's, -1 for another, else 0

    def metric(self, ends):
        """(...,B) of ends (...,B,C)."""
        normed = self.model.transformer.ln_f(ends)
        probabilities = self.model.lm_head(normed).softmax(-1)
        signed = probabilities * self.signs
        return signed.sum(-1)


def greater_than(model, given):
    """(5,): the metric of the model and of circuits by three methods; the first one's edges."""
    rows = read_rows(given["file"])
    totals = {}
    starts = range(0, len(rows), given["batch"])
    for start in tqdm(starts, desc="scoring edges", unit="batch", disable=None):
        group = rows[start : start + given["batch"]]
        # EAP-IG averages within a batch and adds the batches up, of whatever size the last one is.
        for base in record_rows(model, group):
            share = len(base.batch.clean) / len(group)
            for method, scores in their_scores(base).items():
                totals[method] = totals.get(method, 0) + scores * share
    graph = layout(model)
    masks = [graph.possible]
    for scores in totals.values():
        largest = first_edges(graph, scores.abs().cpu(), given["edges"])
        masks.append(connected(graph, largest))
    metrics = []
    for base in record_rows(model, rows):
        of_masks = [run_circuit(base, mask) for mask in masks]
        metrics.append(torch.stack(of_masks))
    means = torch.cat(metrics, 1).mean(1)
    n_edges = int(masks[1].sum())
    return torch.tensor([*means.tolist(), n_edges])


def read_rows(source):
    """[(clean, corrupted, year)] of EAP-IG's file, from the cache or its address; NotCompared."""
    try:
        path = download("eap-ig", source["address"], source["sha256"])
    except ValueError as error:
        raise NotCompared(f"its texts could not be downloaded: {error}") from error
    rows = []
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            year = int(row["label"])
            rows.append((row["clean"], row["corrupted"], year))
    return rows


def record_rows(model, rows):
    """Yield GreaterThanRuns of a few rows of one length at a time."""
    encode = tokenizer_of(model).encode
    by_length = {}
    for clean, corrupted, year in rows:
        ids = torch.tensor([encode(clean), encode(corrupted)])
        alike = by_length.setdefault(ids.size(1), [])
        alike.append((ids, year))
    for alike in by_length.values():
        for start in range(0, len(alike), AT_ONCE):
            pairs, labels = zip(*alike[start : start + AT_ONCE])
            texts = _with_start(model, torch.cat(pairs))  # (2B,T)
            batch = Batch(texts[0::2], texts[1::2], None)
            base = record_base_runs(model, batch)
            signs = _signs(model, labels).to(base.change)
            yield GreaterThanRuns(**vars(base), signs=signs)


def _signs(model, labels):
    """(B,V): 1 at the tokens of years above each label, -1 at those of the others, else 0."""
    encode = tokenizer_of(model).encode
    years = [encode(f"{year:02}")[0] for year in range(100)]
    signs = torch.zeros(len(labels), model.config.vocab_size)
    for row, label in zip(signs, labels):
        row[years] = -1
        row[years[label + 1 :]] = 1
    return signs
