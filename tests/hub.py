"""A stand-in for the Hugging Face hub on 127.0.0.1: its files and headers, and failing networks.

with Hub({"gpt2": {"config.json": b"...", "model.safetensors": b"..."}}) as hub:
    hub.url                               what HF_ENDPOINT should be
    hub.requests                          [(method, path, Range header or None), ...] so far
    hub.cut["model.safetensors"] = [100]  its next download ends after 100 bytes, then goes as usual
    hub.sent["model.safetensors"] = b""   sent in place of the bytes that the headers announce
    hub.held["model.safetensors"] = 100   after so many bytes it falls silent
    hub.reset = True                      cut connections are reset, not ended
"""

import hashlib
import re
import socket
import struct
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    def __init__(self, repos, moved=None, status=None):
        """repos: {id: {file name: bytes}}; moved: {old id: id}, redirected as the hub does.

        status: {id: (code, name)}, with which every request for this id is refused.
        """
        self.repos = repos
        self.moved = moved or {}
        self.status = status or {}
        self.requests = []
        self.cut = {}
        self.sent = {}
        self.held = {}
        self.reset = False

    def __enter__(self):
        handler = type("Bound", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        options = {"poll_interval": 0.02}
        Thread(target=self.server.serve_forever, kwargs=options, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def count(self, method, filename):
        """How many requests of this method there were for the file."""
        return sum(m == method and path.endswith(f"/{filename}") for m, path, _ in self.requests)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        hub = self.hub
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        match = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", self.path)
        repo, revision, filename = match.groups() if match else ("", "", "")
        if repo in hub.moved:
            return self.head(307, Location=f"/{hub.moved[repo]}/resolve/{revision}/{filename}")
        if repo in hub.status:
            code, name = hub.status[repo]
            return self.head(code, X_Error_Code=name, X_Error_Message=name)
        if repo not in hub.repos:
            return self.head(401, X_Error_Code="RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.head(404, X_Error_Code="RevisionNotFound")
        if filename not in hub.repos[repo]:
            return self.head(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        self.file(filename, hub.repos[repo][filename])

    def file(self, filename, data):
        """Answer with the file's headers, and to a GET with its bytes, from the start asked for."""
        headers = {"X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        # Large files are announced by sha256, small ones by git's sha1.
        if filename.endswith((".safetensors", ".bin")):
            headers["X_Linked_Etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
            headers["X_Linked_Size"] = len(data)
        git_blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        headers["ETag"] = f'"{git_blob}"'
        start = int(re.findall(r"\d+", self.headers.get("Range", "bytes=0-"))[0])
        if self.command == "GET":
            data = self.hub.sent.get(filename, data)
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        headers["Content_Length"] = len(data) - start
        self.head(206 if start else 200, **headers)
        if self.command == "GET":
            self.body(filename, data, start)

    def body(self, filename, data, start):
        """Send the bytes from start on, as far as the hub is told to."""
        if filename in self.hub.held:
            self.wfile.write(data[: self.hub.held[filename]])
            return self.rfile.read(1)  # until the client is gone
        cuts = self.hub.cut.get(filename)
        self.wfile.write(data[start : start + cuts[0] if cuts else None])
        if cuts:
            cuts.pop(0)
            self.close_connection = True
            if self.hub.reset:  # RST in place of FIN
                self.wfile.flush()
                no_linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
                self.connection.close()

    def head(self, status, **headers):
        """Send the status and the headers, whose names have _ in place of -."""
        self.send_response(status)
        for name, value in ({"Content_Length": 0} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *_):
        pass


def files_of(folder):
    """{name: bytes} of a folder, for Hub."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def point_to(url, monkeypatch):
    """Make huggingface_hub take this address for the hub, as long as monkeypatch lasts."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
