"""The training loop: it learns, shows what it does, resumes exactly; a kill leaves it whole."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mingpt import processes
from mingpt.hub import Folder
from mingpt.model import GPT, GPTConfig
from mingpt.trainer import Trainer, draw_batches

ROOT = Path(__file__).parent.parent


class Counting(torch.utils.data.Dataset):
    """Each row counts on from a start: the next token is always this one plus one."""

    def __len__(self):
        return 100

    def __getitem__(self, index):
        row = (torch.arange(7) + index) % 11
        return row[:-1], row[1:]


def small_model():
    torch.manual_seed(0)
    # With dropout, which draws from the global generator.
    return GPT(GPTConfig(n_layer=2, n_head=3, n_embd=21, vocab_size=11, block_size=6))


def without_dropout():
    model = small_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def make_trainer(model=None, **settings):
    config = Trainer.get_default_config()
    settings = {"device": "cpu", "max_iters": 6, "batch_size": 4, "learning_rate": 1e-2} | settings
    for name, value in settings.items():
        setattr(config, name, value)
    return Trainer(config, model or small_model(), Counting(), Counting())


def test_it_learns_to_count():
    trainer = make_trainer(max_iters=150, batch_size=16, eval_interval=150)
    before = trainer.evaluate()
    trainer.run()
    assert before > 2
    assert trainer.eval_loss < 0.3


def test_evaluation_is_the_same_each_time_and_leaves_the_mode_as_it_was():
    trainer = make_trainer()
    trainer.model.train()
    assert trainer.evaluate() == trainer.evaluate()
    assert trainer.model.training
    trainer.model.eval()
    trainer.evaluate()
    assert not trainer.model.training


def test_the_gradient_is_clipped():
    trainer = make_trainer(max_iters=1, grad_norm_clip=0.01)
    trainer.run()
    norm = torch.stack([p.grad.norm() for p in trainer.model.parameters()]).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path):
    trainer = make_trainer(
        max_iters=60, learning_rate=1e30, checkpoint_dir=tmp_path, checkpoint_interval=1
    )
    fault = (
        "step .* has the loss nan and a gradient .*; look at the targets, or lower learning_rate"
    )
    with pytest.raises(ValueError, match=fault):
        trainer.run()
    trainer = make_trainer(checkpoint_dir=tmp_path)
    assert trainer.resume()  # pretrained.load takes no weights that are not finite


def test_a_device_that_is_not_there_is_refused():
    for device in ("warp", "meta:x"):
        with pytest.raises(ValueError, match="no device .* can be used here"):
            make_trainer(device=device)


def test_a_cleaning_that_was_cut_short_is_done_again(tmp_path):
    make_trainer(checkpoint_dir=tmp_path, max_iters=5).run()
    (tmp_path / "step-00000004").mkdir()  # what a kill left of an older checkpoint
    again = make_trainer(checkpoint_dir=tmp_path, max_iters=5)
    again.resume()
    again.run()
    assert names_in(tmp_path) == ["step-00000004", "step-00000005"]
    (tmp_path / "step-00000003").mkdir()
    (tmp_path / ".step-00000002.old.partial").mkdir()
    again.save_checkpoint()
    assert names_in(tmp_path) == ["step-00000004", "step-00000005"]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    (tmp_path / ".step-00000002.999.partial" / "deeper").mkdir(parents=True)
    make_trainer(checkpoint_dir=tmp_path, max_iters=3).run()
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-00000003"]


def test_callbacks_are_called_after_each_step_and_may_end_the_run():
    seen = []

    def stop(trainer):
        seen.append((trainer.iter_num, trainer.loss.item(), trainer.iter_dt > 0))
        if trainer.iter_num == 3:
            raise StopIteration

    trainer = make_trainer(max_iters=None)
    trainer.add_callback("on_batch_end", lambda trainer: seen.append("added"))
    trainer.set_callback("on_batch_end", stop)
    trainer.run()
    assert [step for step, _, _ in seen] == [1, 2, 3]
    assert all(timed for _, _, timed in seen)


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    trainer = make_trainer(
        max_iters=110, learning_rate=1.0, warmup_iters=10, final_learning_rate=0.2
    )
    rates = []
    for step in (0, 4, 9, 10, 60, 110):
        trainer.iter_num = step
        rates.append(trainer.learning_rate())
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.6, 0.2])


def test_a_batch_depends_on_the_seed_and_its_number_alone():
    from itertools import islice

    whole = list(islice(draw_batches(100, 4, seed=1), 6))
    assert list(islice(draw_batches(100, 4, seed=1, start=3), 3)) == whole[3:]
    assert whole != list(islice(draw_batches(100, 4, seed=2), 6))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(tmp_path, num_workers):
    undisturbed = make_trainer(num_workers=num_workers, final_learning_rate=1e-3)
    undisturbed.run()

    first = make_trainer(checkpoint_dir=tmp_path / "run", final_learning_rate=1e-3)
    first.add_callback("on_batch_end", stop_at_three)
    first.run()
    torch.manual_seed(999)  # another process would have other random numbers
    settings = {
        "num_workers": num_workers,
        "checkpoint_dir": tmp_path / "run",
        "final_learning_rate": 1e-3,
    }
    with pytest.raises(ValueError, match="another run's checkpoints; call resume"):
        make_trainer(**settings).run()
    second = make_trainer(model=other_model(), **settings)
    assert second.resume()
    assert second.iter_num == 3
    second.run()
    for name, weight in undisturbed.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name


def stop_at_three(trainer):
    if trainer.iter_num == 3:
        raise StopIteration


def other_model():
    model = small_model()
    torch.nn.init.normal_(model.transformer.wte.weight)
    return model


def test_a_callback_that_draws_random_numbers_does_not_disturb_resuming(tmp_path):
    def make(folder):
        trainer = make_trainer(checkpoint_dir=folder, checkpoint_interval=3)
        trainer.add_callback("on_batch_end", lambda trainer: torch.rand(1))
        return trainer

    whole = make(tmp_path / "whole")
    whole.run()
    half = make(tmp_path / "half")
    half.config.max_iters = 3
    half.run()
    rest = make(tmp_path / "half")
    rest.resume()
    rest.run()
    assert all(
        torch.equal(w, rest.model.state_dict()[name])
        for name, w in whole.model.state_dict().items()
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_iters": None, "final_learning_rate": 0.1}, "ends at max_iters"),
        ({"eval_interval": 1}, "needs an eval_dataset"),
    ],
)
def test_settings_that_lack_another_are_refused(settings, message):
    config = Trainer.get_default_config()
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=message):
        Trainer(config, small_model(), Counting())
    with pytest.raises(ValueError, match="checkpoint_dir; set it"):
        Trainer(Trainer.get_default_config(), small_model(), Counting()).resume()


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path):
    assert not make_trainer(checkpoint_dir=tmp_path / "none").resume()


def test_a_checkpoint_folder_is_a_model_for_from_pretrained_and_the_newest_two_are_kept(tmp_path):
    trainer = make_trainer(checkpoint_dir=tmp_path, checkpoint_interval=2)
    trainer.run()
    assert names_in(tmp_path) == ["step-00000004", "step-00000006"]
    for folder in (tmp_path, tmp_path / "step-00000006"):
        read = GPT.from_pretrained(folder).state_dict()
        assert all(
            torch.equal(weight, read[name]) for name, weight in trainer.model.state_dict().items()
        )


def lack_a_key(folder):
    state = torch.load(folder / "trainer_state.pt", weights_only=True)
    del state["optimizer"]
    torch.save(state, folder / "trainer_state.pt")


def be_of_another_step(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-00000004"), folder)


DAMAGES = {
    "truncated": lambda folder: os.truncate(folder / "trainer_state.pt", 999),
    "empty": lambda folder: os.truncate(folder / "trainer_state.pt", 0),
    "missing": lambda folder: (folder / "trainer_state.pt").unlink(),
    "lacking a key": lack_a_key,
    "of another step": be_of_another_step,
    "weights cut short": lambda folder: os.truncate(folder / "model.safetensors", 999),
    "only a file": lambda folder: (shutil.rmtree(folder), folder.touch()),
    "no folder at all": shutil.rmtree,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 6 steps, with a checkpoint at each second one."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    trainer = make_trainer(checkpoint_dir=folder, checkpoint_interval=2)
    trainer.run()
    return folder, trainer.model.state_dict()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_it_goes_on(
    damage, finished, tmp_path, capsys
):
    run, weights = finished
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    DAMAGES[damage](tmp_path / "step-00000006")
    resumed = make_trainer(model=other_model(), checkpoint_dir=tmp_path, checkpoint_interval=2)
    assert resumed.resume()
    assert resumed.iter_num == 4
    if damage != "no folder at all":
        out = capsys.readouterr().out
        assert out.startswith("step-00000006 (")
        assert "it is damaged-step-00000006 now" in out
        assert f"going on from {tmp_path / 'step-00000004'}" in out
        assert (tmp_path / "damaged-step-00000006").exists()
    resumed.run()
    read = GPT.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(weight, read[name]) for name, weight in weights.items())


def test_a_stray_checkpoint_does_not_hide_the_run(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "step-99999999").mkdir()
    trainer = make_trainer(checkpoint_dir=tmp_path)
    assert trainer.resume()
    assert trainer.iter_num == 6
    assert names_in(tmp_path) == ["damaged-step-99999999", "step-00000004", "step-00000006"]


def test_a_run_without_any_whole_checkpoint_says_why_and_stays_as_it_is(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    for step in (4, 6):
        DAMAGES["empty"](tmp_path / f"step-0000000{step}")
    before = names_in(tmp_path)
    message = (
        "no checkpoint to go on from: step-00000006 (.*); step-00000004 .*; take another folder"
    )
    with pytest.raises(ValueError, match=message):
        make_trainer(checkpoint_dir=tmp_path).resume()
    assert names_in(tmp_path) == before


def test_a_checkpoint_that_is_removed_while_it_is_read_gives_the_next_one(
    finished, tmp_path, monkeypatch
):
    run, weights = finished
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    (tmp_path / "step-00000006").rename(tmp_path / "later")
    find = Folder.find

    def go_on_training(files, *names):
        if (tmp_path / "later").exists() and "merges.txt" in names:
            (tmp_path / "later").rename(tmp_path / "step-00000006")
            shutil.rmtree(tmp_path / "step-00000004")
        return find(files, *names)

    monkeypatch.setattr(Folder, "find", go_on_training)
    model = GPT.from_pretrained(tmp_path)
    assert model.source == f"folder {tmp_path / 'step-00000006'}"
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])


KILLED = """
import sys, torch
sys.path.insert(0, "tests")
from test_trainer import make_trainer
trainer = make_trainer(checkpoint_dir=sys.argv[1], checkpoint_interval=1, max_iters=100000)
trainer.resume()
trainer.run()
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint_to_resume_from(tmp_path):
    """Checkpoints are written all the time: a kill is likely to fall into the writing of one."""
    reached = 0
    for pause in (0.31, 0.17):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stderr=subprocess.DEVNULL
        )
        while not any(int(folder.name[5:]) > reached for folder in tmp_path.glob("step-*")):
            assert process.poll() is None, "the training run ended by itself"
            time.sleep(0.05)
        time.sleep(pause)
        process.kill()
        process.wait()
        trainer = make_trainer(model=other_model(), checkpoint_dir=tmp_path)
        assert trainer.resume()
        assert trainer.iter_num > reached
        reached = trainer.iter_num
    weights = make_trainer(max_iters=reached)
    weights.run()
    resumed = make_trainer(model=other_model(), checkpoint_dir=tmp_path, max_iters=reached)
    resumed.resume()
    for name, weight in weights.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


TRAIN_IN_PROCESSES = """
import sys, torch
from tests.test_trainer import make_trainer, without_dropout
folder, steps, accumulation = sys.argv[1:]
trainer = make_trainer(without_dropout(), batch_size=6, checkpoint_dir=folder,
                       max_iters=int(steps), accumulation=int(accumulation))
calls = []
trainer.add_callback("on_batch_end", lambda trainer: calls.append(trainer.loss.item()))
trainer.resume()
trainer.run()
if not trainer.process.rank:
    print(*calls)
else:
    assert not calls
"""


def train_in_processes(count, folder, steps, accumulation=1):
    """The losses of the steps, of a training in `count` processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={count}", "--no-python", sys.executable, "-c"]
    command += [TRAIN_IN_PROCESSES, str(folder), str(steps), str(accumulation)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return [float(loss) for loss in ended.stdout.split()]


@pytest.mark.skipif(
    os.name == "nt", reason="torchrun needs libuv, which PyTorch for Windows has not"
)
def test_several_processes_train_as_one_does_and_any_number_goes_on(tmp_path):
    """Also with parts of a batch one after the other, and where the run goes on with others."""
    one = train_in_processes(1, tmp_path / "one", 8)
    two = train_in_processes(2, tmp_path / "two", 5, accumulation=2)
    two += train_in_processes(3, tmp_path / "two", 8)
    # Gradients are added in another order.
    assert two == pytest.approx(one, rel=1e-4) and len(one) == 8 and one[-1] < one[0]
    weights = GPT.from_pretrained(tmp_path / "one").state_dict()
    for name, weight in GPT.from_pretrained(tmp_path / "two").state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-4)


def test_more_processes_than_rows_in_a_batch_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "this_process", lambda: processes.Process(0, 9, 0))
    with pytest.raises(ValueError, match="9 processes cannot share a batch of 8"):
        make_trainer(batch_size=8)
    with pytest.raises(ValueError, match="torchrun --nproc-per-node"):
        make_trainer(batch_size=9)


def test_a_part_without_targets_counts_nothing():
    trainer = make_trainer(without_dropout(), batch_size=4, accumulation=2)
    x = torch.zeros(4, 5, dtype=torch.long)
    y = torch.ones_like(x)
    y[2:] = -1
    trainer._step(x, y)
    other = make_trainer(without_dropout(), batch_size=2)
    other._step(x[:2], y[:2])
    torch.testing.assert_close(trainer.loss, other.loss)
    for weight, same in zip(trainer.model.parameters(), other.model.parameters()):
        torch.testing.assert_close(weight, same)
