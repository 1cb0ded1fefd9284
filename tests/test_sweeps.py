"""Sweeps over many pairs: each pair against patch_layers, averages against torch, any number of
processes against one."""

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mingpt.interpretability import shards, sweeps
from mingpt.interpretability.activation_patching import patch_layers
from mingpt.interpretability.edges import edge_attribution
from mingpt.interpretability.pairs import Pair, load_pairs, write_pairs
from mingpt.model import GPT

ROOT = Path(__file__).parent.parent
PAIRS = [
    Pair("Anna Jones was a student. Anna", "Anna Smith was a student. Anna", " Jones", " Smith"),
    Pair("Anna Brown was a student. Anna", "Anna Lee was a student. Anna", " Brown", " Lee"),
    # The other way round, the model prefers the wrong answer.
    Pair("Anna Smith was a student. Anna", "Anna Jones was a student. Anna", " Jones", " Smith"),
    Pair("Then Anna Jones sat. Anna", "Then Anna Smith sat. Anna", " Jones", " Smith"),
    Pair("Then Anna Lee sat. Anna", "Then Anna Jones sat. Anna", " Lee", " Jones"),
]


@pytest.fixture(scope="module")
def model():
    return GPT.from_pretrained("names")


@pytest.fixture
def file(tmp_path):
    write_pairs(PAIRS, tmp_path / "pairs.jsonl")
    return tmp_path / "pairs.jsonl"


def run(file, output, *flags):
    return sweeps.main([str(file), "--model", "names", "--output", str(output), *flags])


def stored(output):
    """{shard: {name: tensor}}."""
    return {path.name: load_file(path) for path in sorted((output / "shards").iterdir())}


def test_each_pair_is_patched_as_patch_layers_does(model, file, tmp_path, capsys):
    assert run(file, tmp_path / "out", "--sites", "resid_post,z", "--eap") == 0
    first, second = stored(tmp_path / "out").values()
    assert len(first["clean"]) == 3 and len(second["clean"]) == 2
    for values, pairs in ((first, PAIRS[:3]), (second, PAIRS[3:])):
        for i, pair in enumerate(pairs):
            for site in ("resid_post", "z"):
                result = patch_layers(model, *pair[:4], site=site)
                torch.testing.assert_close(values[site][i], result.logit_diff, rtol=0, atol=2e-4)
            torch.testing.assert_close(values["clean"][i], result.clean, rtol=0, atol=2e-4)
            torch.testing.assert_close(values["corrupted"][i], result.corrupted, rtol=0, atol=2e-4)
            scores = edge_attribution(model, [pair[:4]], "eap")
            torch.testing.assert_close(values["edges eap"][i], scores, rtol=1e-4, atol=1e-4)

    # The averages are of the pairs on which the model is right.
    kept = [first["clean"][0], first["clean"][1], *second["clean"]]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["pairs"] == 4 and summary["failures"] == 1 and not summary["failures_kept"]
    assert summary["clean"]["mean"] == pytest.approx(torch.stack(kept).mean().item())
    with (tmp_path / "out" / "cells.csv").open() as table:
        rows = list(csv.DictReader(table))
    last = [first["resid_post"][i, 5, -1] for i in (0, 1)]
    last = torch.stack([*last, *second["resid_post"][:, 5, -1]]).double()
    (row,) = (
        row
        for row in rows
        if (row["site"], row["kind"], row["place"], row["layer"])
        == ("resid_post", "from the end", "-1", "5")
    )
    assert float(row["mean"]) == pytest.approx(last.mean().item())
    assert float(row["standard_error"]) == pytest.approx(last.std().item() / 2)
    assert row["n"] == "4"
    printed = capsys.readouterr().out
    assert "4 pairs" in printed and "left out: 1 pairs" in printed and "embed -> 0.3.v" in printed
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        f"{site}_from_the_{what}.png"
        for site in ("resid_post", "z")
        for what in ("end", "difference")
    }


def test_failures_can_be_kept(file, tmp_path, capsys):
    assert run(file, tmp_path / "out", "--failures", "keep") == 0
    assert "5 pairs" in capsys.readouterr().out
    # The folder is the same work: only the averages are other.
    assert run(file, tmp_path / "out") == 0
    assert "4 pairs" in capsys.readouterr().out


def test_roles_stand_where_their_tokens_are(model, tmp_path):
    pairs = [pair._replace(roles={"name": [1, 2], "end": -1}) for pair in PAIRS[:2]]
    write_pairs(pairs, tmp_path / "roles.jsonl")
    assert run(tmp_path / "roles.jsonl", tmp_path / "out") == 0
    with (tmp_path / "out" / "cells.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert {(row["kind"], row["place"]) for row in rows} == {("role", "name"), ("role", "end")}
    results = [patch_layers(model, *pair[:4]).logit_diff for pair in pairs]
    expected = torch.stack(results).mean(0)[3, 1].item()
    (row,) = (row for row in rows if row["place"] == "name" and row["layer"] == "3")
    assert float(row["mean"]) == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_used_is_listed_and_too_much_of_it_is_an_error(tmp_path, capsys):
    unequal = Pair("Anna Jones sat. Anna", "Anna Jones sat here. Anna", " Jones", " Smith")
    write_pairs([*PAIRS, unequal], tmp_path / "pairs.jsonl")
    assert run(tmp_path / "pairs.jsonl", tmp_path / "out") == 2
    assert "1 of 6 pairs cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run(tmp_path / "pairs.jsonl", tmp_path / "out", "--max-skipped", "0.2") == 0
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    skipped = json.loads(line)
    assert skipped["line"] == 6 and "equally many tokens" in skipped["reason"]


def test_a_stopped_run_goes_on_and_other_work_in_the_folder_is_refused(
    file, tmp_path, capsys, monkeypatch
):
    whole = tmp_path / "whole"
    assert run(file, whole) == 0
    calls = []

    def full_disk(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save_file(*arguments)

    save_file = shards.save_file
    monkeypatch.setattr(shards, "save_file", full_disk)
    assert run(file, tmp_path / "out") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert len(stored(tmp_path / "out")) == 1 and not (tmp_path / "out" / "cells.csv").exists()
    # The shard that is there is not computed again; a damaged one is.
    assert run(file, tmp_path / "out") == 0 and len(calls) == 3
    path = tmp_path / "out" / "shards" / "000000.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert run(file, tmp_path / "out") == 0 and len(calls) == 4
    assert_same(tmp_path / "out", whole)
    assert run(file, tmp_path / "out", "--direction", "noise") == 2
    assert "another direction" in capsys.readouterr().err


def assert_same(output, other):
    for name in ("cells.csv", "summary.json", "settings.json", "skipped.jsonl"):
        assert (output / name).read_bytes() == (other / name).read_bytes(), name
    assert sorted(stored(output)) == sorted(stored(other))
    for path in (output / "shards").iterdir():
        assert path.read_bytes() == (other / "shards" / path.name).read_bytes(), path.name


def test_parts_by_hand_make_the_same_folder(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweeps, "SHARD_PAIRS", 1)
    assert run(file, tmp_path / "one") == 0
    for part in ("2/3", "0/3"):
        assert run(file, tmp_path / "out", "--shard", part) == 0
        assert "still to be done" in capsys.readouterr().out
        assert not (tmp_path / "out" / "cells.csv").exists()
    assert run(file, tmp_path / "out", "--shard", "1/3") == 0
    assert_same(tmp_path / "out", tmp_path / "one")


@pytest.mark.skipif(
    os.name == "nt", reason="torchrun needs libuv, which PyTorch for Windows has not"
)
@pytest.mark.parametrize("count", [2, 3])
def test_torchrun_makes_the_same_folder_as_one_process(file, tmp_path, count):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    module = ["-m", "mingpt.interpretability.sweeps", str(file), "--model", "names", "--output"]
    one = [sys.executable, *module, str(tmp_path / "one")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    many = [*launcher, f"--nproc-per-node={count}", *module, str(tmp_path / "many")]
    for command in (one, many, many):
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
    # The last start had nothing left to do, and one process said so.
    assert ended.stdout.count("Wrote ") == 1
    assert_same(tmp_path / "many", tmp_path / "one")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--sites", "resid"], "site"),
        (["--shard", "3/3"], "i from 0 to n - 1"),
        (["--device", "nothing"], "device"),
        (["--max-skipped", "nan"], "max_skipped"),
    ],
)
def test_bad_options_are_refused_before_a_folder_is_made(file, tmp_path, capsys, flags, message):
    assert run(file, tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_if_the_model_is_always_wrong_there_is_no_average(tmp_path, capsys):
    write_pairs([PAIRS[2]] * 2, tmp_path / "pairs.jsonl")
    assert run(tmp_path / "pairs.jsonl", tmp_path / "out") == 2
    assert "--failures keep" in capsys.readouterr().err
    assert len(load_pairs(tmp_path / "pairs.jsonl")) == 2
