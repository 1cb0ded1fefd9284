"""What every other module may need: devices, whole files, progress bars, commands."""

import argparse
import json
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a notebook without ipywidgets has plain bars, and no fault
    from tqdm.auto import tqdm

AnyPath = str | os.PathLike[str]
# Seconds in which a bar shows no time left: what came first says little about the rest.
UNKNOWN = 3
# Seconds between the lines that MINGPT_PROGRESS=1 writes where there is no terminal.
BETWEEN_LINES = 60


def check_device(name: str | torch.device) -> None:
    """ValueError where nothing can be computed on this device, or not rightly."""
    try:
        # A device may have a name that torch knows and still not be there: only use tells.
        torch.zeros(1, device=name).item()
    # Each kind of device has its own errors: an import that fails, an assertion ...
    except Exception as error:
        raise ValueError(
            f"no device {name!r} can be used here ({one_line(error)[:200]}); "
            "give cpu, or leave the device out"
        ) from error
    check_mps(name)


def check_mps(device: str | torch.device) -> None:
    """ValueError on the PyTorch whose linear layers are silently wrong on Apple's GPU.

    Source: pytorch issue 161640.
    """
    if torch.device(device).type == "mps" and torch.__version__.startswith("2.8."):
        raise ValueError(
            "PyTorch 2.8 computes linear layers wrongly on mps; "
            "install another version, or use the cpu"
        )


def check_finite(*tensors: Tensor) -> None:
    """ValueError if one has values that are NaN or infinite."""
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise ValueError(
            "the runs give values that are NaN or infinite; check the weights and the dtype"
        )


@contextmanager
def reading(path: AnyPath, complaint: str = "cannot be read") -> Iterator[None]:
    """A block that reads a file or lists a folder: its errors become one that names the path.

    The readers of JSON and of weights raise errors of many types for a file that is cut short or
    altered, or that was made to be odd. ValueError for each; also for a pipe or a device, before
    the block, since to read one may never end.
    """
    try:
        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
            raise OSError("it is a pipe or a device, not a file")
        yield
    except OSError as error:
        raise ValueError(
            f"cannot read {error.filename or path}: {error.strerror or error}; "
            "give a file or a folder that can be read"
        ) from error
    except Exception as error:
        # In the hub's cache this path is a link; what must be deleted is the file it points to.
        raise ValueError(
            f"{path} {complaint} ({one_line(error)[:200]}); "
            f"delete {Path(path).resolve()} and get it again"
        ) from error


def read_json(path: AnyPath) -> Any:
    """What a JSON file holds; ValueError if it cannot be read or is not whole."""
    with reading(path, "is no whole JSON file"):
        return json.loads(Path(path).read_text(encoding="utf-8"))


@contextmanager
def atomic_write(path: AnyPath) -> Iterator[Path]:
    """A temporary path to write a file or a folder to; at the block's end it becomes `path`.

    If the block raises, the temporary path is removed and `path` is as it was. Where `path` is a
    folder already, the temporary folder lies in it, and its files replace those of the same name
    one by one. ValueError if it cannot be written.
    """
    path = Path(path)
    is_folder = path.is_dir()
    # Beside its destination, so that both are on one disk: only then is a renaming all or nothing.
    # The suffix stays, since matplotlib takes the format of a picture from it.
    name = f".{path.stem}.{os.getpid()}.partial{path.suffix}"
    temporary = path / name if is_folder else path.with_name(name)
    try:
        yield temporary
        if is_folder:
            for file in sorted(temporary.iterdir()):
                os.replace(file, path / file.name)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise ValueError(
            f"cannot write to {path}: {error.strerror or error}; give another folder"
        ) from error
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Delete a file or a folder; nothing happens where there is none."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def one_line(error: BaseException | str) -> str:
    """What an error says, in one line; huggingface_hub's go over several."""
    return " ".join(str(error).split()) or type(error).__name__


class Bar(tqdm):
    """A progress bar that shows a speed and the time left only when it can know them."""

    @property
    def format_dict(self) -> dict[str, Any]:
        facts = super().format_dict
        is_over = facts["n"] == facts["total"]
        if facts["elapsed"] < UNKNOWN and not is_over:
            facts["rate"] = 0  # which tqdm shows as a question mark
        return facts


class Log:
    """A file for a Bar to write to: each state of the bar becomes a line on stderr."""

    def write(self, text: str) -> None:
        if text.strip():
            print(text.strip(), file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Each line is flushed when it is written."""


def has_stderr() -> bool:
    """False in a program that was started without stderr, or has closed it."""
    return sys.stderr is not None and not sys.stderr.closed


def progress_bar(iterable: Iterable[Any] | None = None, shown: bool = True, **options: Any) -> Bar:
    """A tqdm over the iterable, or with total=... to update by hand; shown=False is always silent.

    It shows on a terminal and in a notebook. Elsewhere it is silent, or with MINGPT_PROGRESS=1 in
    the environment writes a line a minute.
    """
    is_seen = "ipykernel.zmqshell" in sys.modules or (has_stderr() and sys.stderr.isatty())
    if not is_seen and has_stderr() and os.environ.get("MINGPT_PROGRESS") == "1":
        is_seen = True
        options |= {"file": Log(), "mininterval": BETWEEN_LINES, "maxinterval": BETWEEN_LINES}
    # The mean speed so far: the latest one leaps where steps differ in size.
    return Bar(iterable, disable=not (shown and is_seen), smoothing=0, **options)


def say(text: str) -> None:
    """Print a line at once; a progress bar makes way for it."""
    with Bar.external_write_mode():
        print(text, flush=True)


class CheckFailed(Exception):
    """A result is not what it must be: an error of this program, not of its user."""


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """An argparse parser whose help shows the description line by line, as it is."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=form)


def run_command(
    function: Callable[[argparse.Namespace], object], options: argparse.Namespace
) -> int:
    """The exit code of a command, function(options): 0 if it ends.

    2 after a message on stderr for bad input, 1 if a check of the result fails, 130 after Ctrl-C.
    SIGTERM ends the process with 143, after the removal of what was written in part.
    """
    if threading.current_thread() is threading.main_thread():
        _catch_signals()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # tokens may not fit the terminal
    try:
        function(options)
    except (ValueError, ImportError, OSError, CheckFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, CheckFailed) else 2
    except KeyboardInterrupt:
        return 130
    return 0


def _catch_signals():
    """Make exceptions of Ctrl-C and of SIGTERM, unless they have been given another meaning."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, _terminate),
    ):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, handler)


def _terminate(number, _):
    raise SystemExit(128 + number)
