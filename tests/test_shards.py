"""Shards: whole or not there, of one piece of work, shared out among processes."""

import pytest
import torch

from mingpt.interpretability.shards import ShardFolder
from mingpt.processes import Process, this_process

TENSORS = {"values": torch.arange(6.0).view(2, 3), "pairs": torch.tensor([4, 5])}


def test_a_shard_comes_back_as_it_was_written_and_the_work_goes_on_in_its_folder(tmp_path):
    folder = ShardFolder(tmp_path / "new" / "work", {"sites": ("z",), "n": 1})
    assert folder.read(0) is None
    folder.write(0, TENSORS)
    again = ShardFolder(tmp_path / "new" / "work", {"sites": ("z",), "n": 1})
    for name, tensor in again.read(0).items():
        assert tensor.equal(TENSORS[name])
    assert sorted(path.name for path in (tmp_path / "new" / "work" / "shards").iterdir()) == [
        "000000.safetensors"
    ]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_shard_counts_as_not_there(tmp_path, damage):
    folder = ShardFolder(tmp_path / "work", {})
    folder.write(3, TENSORS)
    data = folder.path(3).read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    folder.path(3).write_bytes({"cut": data[:-5], "flipped": flipped, "empty": b""}[damage])
    assert folder.read(3) is None
    folder.write(3, TENSORS)
    assert folder.read(3)["pairs"].equal(TENSORS["pairs"])


def test_a_folder_with_other_work_or_other_files_is_refused(tmp_path):
    folder = ShardFolder(tmp_path / "work", {"sites": ["z"], "direction": "noise"})
    with pytest.raises(ValueError, match="another direction; give a new folder"):
        ShardFolder(tmp_path / "work", {"sites": ["z"], "direction": "denoise"})
    # A job with other settings that began at the same moment is found out when it writes.
    folder.file.write_text('{"sites": ["q"]}')
    with pytest.raises(ValueError, match="another direction, sites"):
        folder.write(0, TENSORS)
    folder.file.write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        folder.write(0, TENSORS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    for other in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(ValueError, match="other files"):
            ShardFolder(other, {})
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="cannot write to .*give another folder"):
        ShardFolder(tmp_path / "mine" / "thesis.txt" / "nowhere", {})


def test_launchers_and_the_option_say_which_process_this_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert this_process() == Process(0, 1, 0)
    # In a batch script of SLURM's, outside srun, there is one process, whatever was asked for.
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert this_process() == Process(0, 1, 0)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert this_process() == Process(5, 8, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert this_process() == Process(2, 3, 0)
    assert this_process("1/4") == Process(1, 4, 0)
    for wrong in ("4/4", "1", "-1/4", "a/b"):
        with pytest.raises(ValueError, match="i from 0 to n - 1"):
            this_process(wrong)


def test_the_processes_share_out_all_of_the_work():
    work = list(range(10))
    parts = [Process(rank, 3, 0).own(work) for rank in range(3)]
    assert sorted(sum(parts, [])) == work and max(map(len, parts)) == 4
