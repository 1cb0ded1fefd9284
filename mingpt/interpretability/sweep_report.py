"""The pictures, the tables and the text of a sweep over many pairs, from its shards.

The pictures and the text are of the places that at least half of the pairs have; cells.csv has all.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mingpt.common import atomic_write
from mingpt.interpretability import figures
from mingpt.interpretability.graph import Layout, layout
from mingpt.interpretability.pairs import Usable
from mingpt.interpretability.shards import ShardFolder
from mingpt.interpretability.sweep_summary import Running, SiteSummary, places_of, write_table
from mingpt.model import GPT

SHOWN = 5  # of the largest cells, and of the largest edges


@dataclass
class Totals:
    """What the pairs of all shards say together."""

    unpatched: dict[str, Running] = field(default_factory=dict)  # by "clean" and "corrupted"
    sites: dict[str, SiteSummary] = field(default_factory=dict)  # by site
    edges: dict[str, Running] = field(default_factory=dict)  # by method, (R,S)
    failures: dict[str, Running] = field(default_factory=dict)  # as unpatched, of failing pairs


def report(model: GPT, folder: ShardFolder, work: list[list[Usable]], keep_failures: bool) -> None:
    """Write cells.csv, a picture of each site, edges.csv and summary.json; print the largest."""
    totals = add_up(folder, work, keep_failures)
    if not totals.unpatched:
        raise ValueError(
            "the model prefers the wrong answer on every pair: there is nothing to average; "
            "--failures keep averages them all the same"
        )
    write_report(model, folder, totals, keep_failures)
    print_report(model, folder.settings, totals, keep_failures)
    print(f"Wrote {folder.folder}.")


def add_up(folder: ShardFolder, work: list[list[Usable]], keep_failures: bool) -> Totals:
    """The Totals of all shards, which are read one at a time."""
    totals = Totals()
    lengths = {one.length for shard in work for one in shard}
    for number, shard in enumerate(work):
        values = folder.read(number)
        if values is None:
            raise ValueError(f"{folder.path(number)} is damaged; start again, which computes it")
        for i, one in enumerate(shard):
            own = {name: tensor[i] for name, tensor in values.items()}
            is_failure = own["clean"] >= 0  # the corrupted answer is ahead, or none
            if is_failure:
                add_unpatched(totals.failures, own)
            if not is_failure or keep_failures:
                add_unpatched(totals.unpatched, own)
                add_pair(totals, folder.settings, own, one, len(lengths) == 1)
    return totals


def add_unpatched(unpatched: dict[str, Running], own: dict[str, Tensor]) -> None:
    """Add what one pair's unpatched runs say: unpatched as in Totals, own {name: its tensor}."""
    for name in ("clean", "corrupted"):
        unpatched.setdefault(name, Running()).add(own[name].double())


def add_pair(
    totals: Totals, settings: dict[str, Any], own: dict[str, Tensor], one: Usable, same_length: bool
) -> None:
    """Add one pair's cells and edges: own {name: its tensor}, one its Usable."""
    places = places_of(one.roles, one.length, one.first, same_length)
    for site in settings["sites"]:
        totals.sites.setdefault(site, SiteSummary(site)).add(own[site], places)
    for method in settings["edges"]:
        totals.edges.setdefault(method, Running()).add(own[f"edges {method}"].double())


def write_report(model: GPT, folder: ShardFolder, totals: Totals, keep_failures: bool) -> None:
    """Write the tables and the pictures."""
    with atomic_write(folder.folder / "cells.csv") as temporary:
        write_table(totals.sites.values(), temporary)
    for site, summary in totals.sites.items():
        for kind in summary.by_place:
            name = f"{site} {kind}".replace(" ", "_")
            draw(model, summary, kind, totals, folder.folder / f"{name}.png")
    if totals.edges:
        with atomic_write(folder.folder / "edges.csv") as temporary:
            write_edges(layout(model), totals.edges, temporary)
    numbers: dict[str, Any] = {
        "pairs": totals.unpatched["clean"].n,
        "failures": totals.failures["clean"].n if totals.failures else 0,
        "failures_kept": keep_failures,
    }
    for name, running in totals.unpatched.items():
        numbers[name] = {"mean": running.mean.item(), "standard_error": running.error.item()}
    with atomic_write(folder.folder / "summary.json") as temporary:
        temporary.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def draw(model: GPT, summary: SiteSummary, kind: str, totals: Totals, path: Path) -> None:
    """Write the picture of a site's means by one kind of place."""
    # A column of few pairs beside columns of all of them would mislead.
    n = totals.unpatched["clean"].n
    places, mean, _ = summary.table(kind, n / 2)
    rows = None
    if mean.ndim == 3:  # (L,H,K)
        L, H, _ = mean.shape
        rows = [f"{layer}.{head}" for layer in range(L) for head in range(H)]
        mean = mean.flatten(0, 1)
    title = f"{model.name}: {summary.site}, mean of {n} pairs"
    quantity = "logit(corrupted answer) - logit(clean answer)"
    labels = [str(place) for place in places]
    marks = {name: running.mean.item() for name, running in totals.unpatched.items()}
    figure = figures.draw_heatmap(mean, labels, title, quantity, rows, kind, marks=marks)
    with atomic_write(path) as temporary:
        figures.save_figure(figure, temporary)


def edge_rows(graph: Layout, running: Running) -> list[tuple[str, str, float, float]]:
    """[(sender, reader, mean, standard error)] of all edges, the largest |mean| first."""
    error = running.error
    rows = []
    for r, s in graph.possible.nonzero().tolist():
        sender = graph.senders[s]
        reader = graph.readers[r]
        rows.append((sender, reader, running.mean[r, s].item(), error[r, s].item()))
    return sorted(rows, key=lambda row: -abs(row[2]))


def write_edges(graph: Layout, by_method: dict[str, Running], path: Path) -> None:
    """Write every edge's score by each method as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "sender", "reader", "mean", "standard_error", "n"])
        for method, running in by_method.items():
            for row in edge_rows(graph, running):
                writer.writerow([method, *row, running.n])


def print_report(model: GPT, settings: dict[str, Any], totals: Totals, keep_failures: bool) -> None:
    """Print the unpatched runs, and the largest cells of each site and edges of each method."""
    n = totals.unpatched["clean"].n
    print(f"{n} pairs; logit(corrupted answer) - logit(clean answer), mean +- standard error")
    print_unpatched(totals.unpatched)
    if totals.failures:
        what = "kept" if keep_failures else "left out"
        failed = totals.failures["clean"].n
        print(f"  {what}: {failed} pairs on which the model prefers the wrong answer")
        print_unpatched(totals.failures)

    # How far a cell moves the run that it is put into tells how much it carries.
    run_into = "corrupted" if settings["direction"] == "denoise" else "clean"
    unpatched = totals.unpatched[run_into].mean
    for site, summary in totals.sites.items():
        for kind in summary.by_place:
            print(f"{site}, the cells that move the {run_into} run most, by {kind}:")
            for line in largest_cells(summary, kind, unpatched, n / 2):
                print(f"  {line}")
    for method, running in totals.edges.items():
        print(f"edges, {method}, the largest:")
        for sender, reader, mean, error in edge_rows(layout(model), running)[:SHOWN]:
            print(f"  {sender:>8} -> {reader:8} {mean:8.3f} +- {error:.3f}")


def print_unpatched(unpatched: dict[str, Running]) -> None:
    """Print a line for the clean and one for the corrupted run."""
    for name, running in unpatched.items():
        print(f"  {name:9} {running.mean:8.3f} +- {running.error:.3f}")


def largest_cells(
    summary: SiteSummary, kind: str, unpatched: Tensor, least: float
) -> Iterator[str]:
    """Lines of the cells whose mean is farthest from that of the unpatched run.

    Of the places that at least so many pairs have: a mean of few says little.
    """
    places, mean, error = summary.table(kind, least)
    order = (mean - unpatched).abs().flatten().argsort(descending=True)[:SHOWN]
    for number in order.tolist():
        layer, *head, k = (int(i) for i in torch.unravel_index(torch.tensor(number), mean.shape))
        name = f"layer {layer}" if not head else f"head {layer}.{head[0]}"
        cell = (layer, *head, k)
        n = summary.by_place[kind][places[k]].n
        yield f"{name:10} {places[k]!s:>10} {mean[cell]:8.3f} +- {error[cell]:.3f} (n = {n})"
