"""Explore two texts in the browser: what of one run changes the answer of the other?

    python -m mingpt.explorer

serves a page on this machine, prints its address, and opens it. Ctrl-C ends it.
"""

import os
import secrets
import signal
import sys
import threading
import webbrowser
from importlib.util import find_spec

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    # While the imports below take their seconds, Ctrl-C ends without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# Threads that wait for each other soon sleep instead of spinning: a browser needs cores too, and
# beside other programs a spinning sweep was seen to take 70 times as long. To sleep at once costs
# half as much again where there is room. It is read when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from mingpt.common import command_parser, run_command
from mingpt.hub import MODEL_HELP, find_model

NEEDED = ("starlette", "uvicorn")  # beyond the project's own requirements
PORT = 8427
WARNING = (
    "Warning: whoever can reach this machine can reach this server. The token in the address is "
    "all that keeps others out, and it goes over the network unencrypted. From another machine "
    "open the address with this machine's own address in numbers in it."
)


def main(arguments=None):
    """The exit code: 2 after a message that says what to change, 130 after Ctrl-C."""
    return run_command(serve, parse(arguments))


def parse(arguments):
    parser = command_parser(__doc__)
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        help=f"{MODEL_HELP}; may be given several times, the first is shown; default: names",
    )
    parser.add_argument(
        "--autoencoder",
        action="append",
        default=[],
        metavar="NAME_OR_FOLDER",
        help="a sparse autoencoder of the first model, whose features a cell then shows: a folder, "
        "or an id of the hub; may be given several times; names has one",
    )
    parser.add_argument("--port", type=int, default=PORT, help="default: %(default)s, or the next")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine")
    parser.add_argument("--no-browser", action="store_true", help="print the address, no more")
    return parser.parse_args(arguments)


def serve(options):
    """Serve the page until Ctrl-C."""
    check(options)
    # Only here, where it is known that they are there.
    from mingpt.explorer.guard import is_loopback
    from mingpt.explorer.models import Models
    from mingpt.explorer.serving import listen

    with listen(options.host, options.port) as listener:
        port = listener.getsockname()[1]
        if options.port not in (0, port):
            print(f"Port {options.port} is taken; this is port {port}.", file=sys.stderr)
        if not is_loopback(options.host):
            print(WARNING, file=sys.stderr)
        models = Models(options.model, options.autoencoder)
        models.read(models.start)
        serve_at(listener, options.host, port, models, has_browser(options))


def serve_at(listener, host, port, models, opens_browser):
    """Answer at a socket, and announce it once that is so."""
    from mingpt.explorer.app import build_app
    from mingpt.explorer.guard import is_unspecified
    from mingpt.explorer.serving import Server
    from mingpt.explorer.worker import Worker

    token = secrets.token_urlsafe(32)
    name = "127.0.0.1" if is_unspecified(host) else host
    name = f"[{name}]" if ":" in name else name
    address = f"http://{name}:{port}/?token={token}"

    def announce():
        print(f"The explorer is at {address}\nCtrl-C ends it.", flush=True)
        if opens_browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    worker = Worker()
    app = build_app(models, worker, token, host, port)
    try:
        Server(app, on_start=announce, on_end=worker.stop).run(sockets=[listener])
    finally:
        worker.thread.join(timeout=0.2)
        if worker.thread.is_alive() or models.under_way:
            leave(sys.exc_info()[1])


def leave(error):
    """End the process at once, with the code that belongs to KeyboardInterrupt or SystemExit.

    Where a thread is still computing, Python's own end would wait for it or break down over it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(getattr(error, "code", 130))


def check(options):
    """ValueError, or ImportError, where an option cannot be used or a package is missing."""
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        raise ImportError(
            f"the explorer needs {' and '.join(missing)}; run "
            f"pip install {' '.join(NEEDED)}, or pip install -r requirements-explorer.txt"
        )
    if not 0 <= options.port <= 65535:
        raise ValueError(f"a port is a number from 0 to 65535, got {options.port}")
    for name in options.model:
        find_model(name)


def has_browser(options):
    """Is a browser to be opened? None of text, which would take over this very terminal."""
    is_bare = sys.platform == "linux" and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    return not (options.no_browser or is_bare)


if __name__ == "__main__":
    sys.exit(main())
