"""What all modules share: progress bars where they can be seen; files and folders whole or not."""

import os
import signal
import subprocess
import sys

import pytest

from mingpt import common

COUNT = (
    "from mingpt.common import progress_bar, say; [say(f'at {i}') for i in progress_bar(range(3))]"
)
PATCH = """
import torch
from mingpt.interpretability.activation_patching import patch_layers
from mingpt.model import GPT
patch_layers(GPT.from_pretrained("names"), "Anna Brown. Anna", "Anna Smith. Anna", 1, 2)
print("done")
"""


class Terminal:
    """A stderr that is a terminal, and keeps what is written."""

    closed = False
    encoding = "utf-8"

    def __init__(self):
        self.written = ""

    def isatty(self):
        return True

    def write(self, text):
        self.written += text

    def flush(self):
        pass


def test_a_bar_is_shown_on_a_terminal_and_a_line_makes_it_give_way(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for i in common.progress_bar(range(2), desc="counting"):
        common.say(f"at {i}")
    assert "counting: 100%" in terminal.written
    assert capsys.readouterr().out == "at 0\nat 1\n"


def test_the_time_left_is_not_guessed_from_the_first_moments(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with common.progress_bar(total=1000, mininterval=0) as bar:
        bar.update(1)
        assert "1/1000 [00:00<?" in terminal.written
        bar.start_t -= 10  # as if they had taken so many seconds
        bar.update(99)
        assert "100/1000 [00:10<01:30" in terminal.written


def test_a_pipe_has_no_bar_unless_lines_are_asked_for(monkeypatch, capsys):
    assert [*common.progress_bar(range(2), desc="counting")] == [0, 1]
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("MINGPT_PROGRESS", "1")
    assert [*common.progress_bar(range(2), desc="counting")] == [0, 1]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("counting:   0%")
    assert lines[-1].startswith("counting: 100%")
    assert [*common.progress_bar(range(2), shown=False)] == [0, 1]
    assert capsys.readouterr().err == ""


def test_a_notebook_has_a_bar_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", sys)
    assert [*common.progress_bar(range(2), desc="counting")] == [0, 1]
    assert "counting: 100%" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no shell that closes stderr")
@pytest.mark.parametrize("program, expected", [(COUNT, "at 0\nat 1\nat 2\n"), (PATCH, "done\n")])
def test_nothing_dies_where_stderr_is_closed(program, expected):
    """As in a daemon, or with pythonw."""
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout == expected


def test_nothing_dies_where_a_program_closes_its_stderr_or_has_no_stdout(monkeypatch):
    with open(os.devnull, "w") as closed:
        monkeypatch.setattr(sys, "stderr", closed)
    monkeypatch.setattr(sys, "stdout", None)
    for i in common.progress_bar(range(2)):
        common.say(i)


WRITE_LONG = """
import sys, time
from mingpt.common import atomic_write, run_command
def work(path):
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        print("begun", flush=True)
        time.sleep(60)
sys.exit(run_command(work, sys.argv[1]))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that a process can answer")
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_ended_removes_what_it_wrote_in_part(number, code, tmp_path):
    command = [sys.executable, "-c", WRITE_LONG, str(tmp_path / "table.csv")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        process.stdout.readline()
        process.send_signal(number)
        assert process.wait(60) == code
        assert process.stderr.read() == ""
    assert not [*tmp_path.iterdir()]


COMMANDS = (
    "interpretability",
    "experiments.train",
    "experiments.train_names",
    "experiments.circuit_study",
    "experiments.induction_study",
    "experiments.induction_seeds",
    "experiments.prediction_layers",
)


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to one process alone on Windows")
@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_while_a_command_imports_ends_it_without_a_traceback(command):
    line = [sys.executable, "-X", "importtime", "-m", command, "--help"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, text=True, **pipes) as process:
        next(line for line in process.stderr if "torch" in line or "numpy" in line)
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
        assert process.wait(60) == -signal.SIGINT  # which a shell shows as 130
