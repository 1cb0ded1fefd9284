"""The published numbers about edges: EAP-IG's scores and circuits on IOI and greater-than.

The scores are those of edges.py, with two differences in what EAP-IG's code does: its runs go from
0/m to (m-1)/m of the way to the clean text, where ours go from 1/m to m/m; and on greater-than its
metric is a difference of probabilities.
"""

import csv
from dataclasses import dataclass, replace

import torch
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
    batch = base.batch._replace(clean=base.batch.corrupted, corrupted=base.batch.clean)
    swapped = replace(
        base, batch=batch, clean=base.corrupted, corrupted=base.clean, change=-base.change
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
    start = tokenizer_of(model).encode(END_OF_TEXT, allow_special=True)
    return torch.cat((torch.tensor(start).expand(len(ids), -1).to(ids), ids), 1)


def largest_edges(model, given):
    """(2,): the share of the published edges among as many of ours; Spearman's rank correlation."""
    graph = layout(model)
    scores = 0
    for batch in load_task(model, "ioi", given["pairs"]):
        batch = Batch(*(_with_start(model, ids) for ids in batch[:2]), batch.direction)
        of_batch = their_scores(record_base_runs(model, batch))["eap-ig"]
        scores = scores + of_batch * len(batch.clean)
    published = []
    places = []
    for sender, reader, score in given["edges"]:
        published.append(score)
        places.append((graph.readers.index(reader), graph.senders.index(sender)))
    ours = torch.stack([scores[place] for place in places])
    smallest = scores.abs()[graph.possible].topk(len(places)).values[-1]
    share = (ours.abs() >= smallest).double().mean()
    return torch.stack((share, rank_correlation(ours, torch.tensor(published))))


def rank_correlation(x, y):
    """(): Spearman's, of two (n,) without ties."""
    ranks = torch.stack((x.argsort().argsort(), y.to(x).argsort().argsort())).double()
    return torch.corrcoef(ranks)[0, 1]


@dataclass
class GreaterThanRuns(BaseRuns):
    """BaseRuns whose metric is the probability of later years less that of the others."""

    signs: torch.Tensor = None  # (B,V): 1 for a year above the text's, -1 for another, else 0

    def metric(self, ends):
        """(...,B) of ends (...,B,C)."""
        logits = self.model.lm_head(self.model.transformer.ln_f(ends))
        return (logits.softmax(-1) * self.signs).sum(-1)


def greater_than(model, given):
    """(5,): the metric of the model and of circuits by three methods; the first one's edges."""
    rows = read_rows(given["pairs"])
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
    circuits = [
        connected(graph, first_edges(graph, scores.abs().cpu(), given["edges"]))
        for scores in totals.values()
    ]
    metrics = []
    for base in record_rows(model, rows):
        masks = [graph.possible, *circuits]
        metrics.append(torch.stack([run_circuit(base, mask) for mask in masks]))
    means = torch.cat(metrics, 1).mean(1)
    return torch.cat((means.cpu(), circuits[0].sum()[None]))


def read_rows(source):
    """[(clean, corrupted, year)] of EAP-IG's file, from the cache or its address; NotCompared."""
    try:
        path = download("eap-ig", source["address"], source["sha256"])
    except ValueError as error:
        raise NotCompared(f"its texts could not be downloaded: {error}") from error
    with open(path, encoding="utf-8", newline="") as file:
        return [(row["clean"], row["corrupted"], int(row["label"])) for row in csv.DictReader(file)]


def record_rows(model, rows):
    """Yield GreaterThanRuns of a few rows of one length at a time."""
    encode = tokenizer_of(model).encode
    years = torch.tensor([encode(f"{year:02}")[0] for year in range(100)])
    by_length = {}
    for row in rows:
        by_length.setdefault(len(encode(row[0])), []).append(row)
    for alike in by_length.values():
        for start in range(0, len(alike), AT_ONCE):
            few = alike[start : start + AT_ONCE]
            clean, corrupted, labels = zip(*few)
            ids = [_with_start(model, torch.tensor([*map(encode, t)])) for t in (clean, corrupted)]
            signs = torch.zeros(len(few), model.config.vocab_size)
            for row, label in zip(signs, labels):
                row[years[: label + 1]] = -1
                row[years[label + 1 :]] = 1
            base = record_base_runs(model, Batch(*ids, None))
            yield GreaterThanRuns(**vars(base), signs=signs.to(base.change))
