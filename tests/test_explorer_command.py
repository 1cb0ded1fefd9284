"""The explorer's command: what it prints, a port that is taken, bad options, and how it ends."""

import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs requirements-explorer.txt")

from mingpt.explorer import __main__ as command  # noqa: E402
from mingpt.interpretability.autoencoders import Autoencoder, AutoencoderConfig  # noqa: E402

ROOT = Path(__file__).parent.parent
NEEDS_SIGNALS = pytest.mark.skipif(
    os.name == "nt", reason="Windows has no signal that a process can answer"
)
# A view that computes, and never looks whether it should stop.
BUSY = """
import sys
import torch
from mingpt.explorer import __main__, app

def compute(model, body, cache):
    yield {"begun": True}
    while True:
        torch.randn(700, 700) @ torch.randn(700, 700)

app.VIEWS["busy"] = compute
sys.exit(__main__.main(["--no-browser", "--port", "0"]))
"""


@pytest.fixture
def start():
    """start(arguments of python) -> (process, port, token), once it serves."""
    processes = []

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        line = process.stdout.readline()
        address = re.search(r"http://(.*):(\d+)/\?token=([\w-]{43})$", line.strip())
        assert address, line + process.stderr.read()
        return process, int(address[2]), address[3]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def ask(port, token, view):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"content-type": "application/json", "cookie": f"explorer-{port}={token}"}
    body = json.dumps({"tab": "t", "model": "names"})
    connection.request("POST", f"/api/{view}", body, headers)
    return connection.getresponse()


@NEEDS_SIGNALS
def test_it_serves_at_the_address_it_prints_and_ctrl_c_ends_it_quietly(start):
    process, port, token = start("-m", "mingpt.explorer", "--no-browser", "--port", "0")
    assert b'"layers":12' in ask(port, token, "model").read()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err == "" and "token" not in out


@NEEDS_SIGNALS
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_while_it_computes(start, number, code):
    process, port, token = start("-c", BUSY)
    answer = ask(port, token, "busy")
    assert json.loads(answer.readline()) == {"begun": True}
    process.send_signal(number)
    # The page is told at once, not when the computation would have ended.
    assert json.loads(answer.readline()) == {"cancelled": True}
    _, err = process.communicate(timeout=20)
    assert process.returncode == code and err == ""


def test_a_taken_port_is_named_and_the_next_one_is_used(start):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        process, port, _ = start("-m", "mingpt.explorer", "--no-browser", "--port", str(taken))
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert taken < port < taken + 20
    assert err == f"Port {taken} is taken; this is port {port}.\n"


def test_another_host_is_warned_of_and_keeps_the_token(start):
    process, port, token = start(
        "-m", "mingpt.explorer", "--no-browser", "--port", "0", "--host", "0.0.0.0"
    )
    assert ask(port, "", "model").status == 403
    assert ask(port, token, "model").status == 200
    process.terminate()
    _, err = process.communicate(timeout=20)
    assert err.startswith("Warning: ") and "token" in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--port", "70000"], "a port is a number from 0 to 65535, got 70000"),
        (["--port", "-1"], "a port is a number from 0 to 65535, got -1"),
        (["--host", "256.1.1.1"], "there is no host '256.1.1.1'"),
        (["--host", "a" * 70], "there is no host 'aaa"),
        (["--host", "a..b"], "there is no host 'a..b'"),
        (["--host", "192.0.2.1", "--port", "0"], "nothing can be served at port 0 of 192.0.2.1"),
        (["--host", "192.0.2.1"], "nothing can be served at port 8427 of 192.0.2.1"),
        (["--model", "/no/folder"], "there is no folder /no/folder"),
        (["--model", "names", "--model", "no such"], "there is no folder no such"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_in_a_sentence(arguments, words, capsys):
    assert command.main(["--no-browser", *arguments]) == 2
    out, err = capsys.readouterr()
    assert words in err and not out


def test_an_autoencoder_that_does_not_fit_the_first_model_is_refused_in_a_sentence(
    tmp_path, capsys
):
    wide = str(tmp_path / "wide")
    Autoencoder(AutoencoderConfig(7, 3, 0)).save_pretrained(wide)
    deep = str(tmp_path / "deep")
    Autoencoder(AutoencoderConfig(128, 3, 12)).save_pretrained(deep)
    for given, words in (
        (wide, f"{wide}: the autoencoder takes 7 numbers at each token"),
        (deep, f"{deep}: the autoencoder is of layer 12; this model's layers are 0 to 11"),
        ("/no/folder", "there is no folder /no/folder"),
        (str(tmp_path), "has 2 autoencoders"),
        ("", "the autoencoder's name must be a folder or a hub id"),
    ):
        arguments = ["--no-browser", "--port", "0", "--autoencoder", "names"]
        assert command.main([*arguments, "--autoencoder", given]) == 2
        out, err = capsys.readouterr()
        assert words in err and not out


def test_an_autoencoder_that_the_command_names_is_the_first_models(start, tmp_path):
    Autoencoder(AutoencoderConfig(128, 3, 11)).save_pretrained(tmp_path / "one")
    arguments = ("--no-browser", "--port", "0", "--autoencoder", str(tmp_path / "one"))
    _, port, token = start("-m", "mingpt.explorer", *arguments)
    described = json.loads(ask(port, token, "model").readline())
    assert [one["layer"] for one in described["model"]["autoencoders"]] == [6, 11]


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert command.main(["--no-browser"]) == 2
    err = capsys.readouterr().err
    assert "needs starlette and uvicorn; run pip install starlette uvicorn" in err


def test_importing_the_command_needs_neither_package():
    code = "import sys; sys.modules |= {'starlette': None, 'uvicorn': None}; "
    subprocess.run([sys.executable, "-c", code + "import mingpt.explorer.__main__"], check=True)
    assert importlib.util.find_spec("mingpt.explorer.__main__")


def test_a_browser_is_opened_where_there_is_a_screen_and_nobody_minds(monkeypatch):
    monkeypatch.setattr(command.sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    assert command.has_browser(command.parse([]))
    assert not command.has_browser(command.parse(["--no-browser"]))
    # Without a screen it would be a browser of text, in this very terminal.
    monkeypatch.delenv("DISPLAY")
    assert not command.has_browser(command.parse([]))
