"""A stand-in for the Hugging Face hub on 127.0.0.1: files with its headers, and the ways a network fails.

with Hub({"gpt2": {"config.json": b"...", "model.safetensors": b"..."}}) as hub:
    hub.url                               what HF_ENDPOINT should be
    hub.requests                          [(method, path, Range header or None), ...] so far
    hub.cut["model.safetensors"] = [100]  the next download of it ends after 100 bytes, then goes as usual
    hub.sent["model.safetensors"] = b""   what is sent in place of the bytes that the headers announce
    hub.held["model.safetensors"] = 100   after so many bytes it falls silent
    hub.reset = True                      cut connections are reset, not ended
"""

import hashlib
import re
import socket
import struct
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    def __init__(self, repos, moved=None, status=None):
        """repos: {id: {file name: bytes}}; moved: {old id: id}, redirected as the hub does; status: {id: refusal}."""
        self.repos, self.moved, self.status = repos, moved or {}, status or {}
        self.requests, self.cut, self.sent, self.held, self.reset = [], {}, {}, {}, False

    def __enter__(self):
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self})
        )
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
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
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        match = re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", self.path)
        repo, revision, filename = match.groups() if match else ("", "", "")
        if repo in self.hub.moved:
            target = f"/{self.hub.moved[repo]}/resolve/{revision}/{filename}"
            return self.head(307, {"Location": target, "Content-Length": 0})
        if repo in self.hub.status:
            code, name = self.hub.status[repo]
            return self.head(
                code, {"X-Error-Code": name, "X-Error-Message": name, "Content-Length": 0}
            )
        if repo not in self.hub.repos:
            return self.head(401, {"X-Error-Code": "RepoNotFound", "Content-Length": 0})
        if revision not in ("main", COMMIT):
            return self.head(404, {"X-Error-Code": "RevisionNotFound", "Content-Length": 0})
        if filename not in self.hub.repos[repo]:
            return self.head(
                404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT, "Content-Length": 0}
            )
        self.file(filename, self.hub.repos[repo][filename])

    def file(self, filename, data):
        headers = {"X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if filename.endswith(
            (".safetensors", ".bin")
        ):  # large files are announced by sha256, small ones by git's sha1
            headers |= {
                "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Linked-Size": len(data),
            }
        git_blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        headers["ETag"] = f'"{git_blob}"'
        start = int(re.findall(r"\d+", self.headers.get("Range", "bytes=0-"))[0])
        if self.command == "GET":
            data = self.hub.sent.get(filename, data)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        headers["Content-Length"] = len(data) - start
        self.head(206 if start else 200, headers)
        if self.command == "GET":
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
                    self.connection.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                    self.connection.close()

    def head(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *_):
        pass


def files_of(folder):
    """{name: bytes} of a folder, for Hub."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
