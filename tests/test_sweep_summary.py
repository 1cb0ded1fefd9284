"""Averages over pairs against torch's own mean and deviation, and by hand."""

import csv

import pytest
import torch

from mingpt.interpretability.sweep_summary import Running, SiteSummary, places_of, write_table


def test_mean_and_standard_error_are_torchs():
    values = torch.randn(7, 2, 3, dtype=torch.float64) + 1000
    running = Running()
    for value in values:
        running.add(value)
    torch.testing.assert_close(running.mean, values.mean(0))
    torch.testing.assert_close(running.error, values.std(0) / 7**0.5)
    single = Running()
    single.add(values[0])
    assert single.error.isnan().all()


def test_texts_of_one_length_are_averaged_by_position_others_by_distance():
    assert places_of({}, 3, 1, True) == {"position": {0: [0], 1: [1], 2: [2]}}
    assert places_of({}, 3, 1, False) == {
        "from the end": {-3: [0], -2: [1], -1: [2]},
        "from the difference": {-1: [0], 0: [1], 1: [2]},
    }
    roles = {"name": range(1, 3), "end": range(4, 5)}
    assert places_of(roles, 5, 1, True) == {"role": {"name": [1, 2], "end": [4]}}


def test_a_place_has_as_many_pairs_as_texts_that_reach_it():
    summary = SiteSummary("resid_post")
    short = torch.tensor([[1.0, 2, 3]])  # (L,T)
    long = torch.tensor([[5.0, 6, 7, 8]])
    summary.add(short, places_of({}, 3, 1, False))
    summary.add(long, places_of({}, 4, 2, False))
    places, mean, error = summary.table("from the end")
    assert places == [-4, -3, -2, -1] and mean.tolist() == [[5, 3.5, 4.5, 5.5]]
    assert [summary.by_place["from the end"][place].n for place in places] == [1, 2, 2, 2]
    places, mean, error = summary.table("from the difference")
    assert places == [-2, -1, 0, 1] and mean.tolist() == [[5, 3.5, 4.5, 5.5]]
    assert error[0, 1].item() == pytest.approx(2.5)  # (6 - 1) / 2


def test_a_role_of_several_tokens_counts_as_their_mean_and_roles_keep_their_order():
    summary = SiteSummary("z")
    values = torch.arange(24.0).view(2, 3, 4)  # (L,H,T)
    for shift in (0, 1):
        summary.add(values + shift, {"role": {"late": [2, 3], "early": [0]}})
    places, mean, _ = summary.table("role")
    assert places == ["late", "early"] and mean.shape == (2, 3, 2)
    assert mean[1, 2].tolist() == [(22 + 23) / 2 + 0.5, 20.5]


def test_the_table_has_a_line_for_each_cell(tmp_path):
    heads = SiteSummary("z")
    stream = SiteSummary("resid_post")
    for i in range(3):
        heads.add(torch.full((2, 3, 4), float(i)), places_of({}, 4, 1, True))
        stream.add(torch.full((2, 4), float(i)), places_of({}, 4, 1, True))
    write_table([heads, stream], tmp_path / "cells.csv")
    with (tmp_path / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 4 + 2 * 4
    assert float(rows[0].pop("standard_error")) == pytest.approx(1 / 3**0.5)
    assert rows[0] == {
        "site": "z",
        "kind": "position",
        "place": "0",
        "layer": "0",
        "head": "0",
        "mean": "1.0",
        "n": "3",
    }
    assert rows[-1]["head"] == "" and rows[-1]["layer"] == "1"
