"""The address that the explorer is served at, and the server itself, which rests when nothing is
asked and ends at once."""

import asyncio
import errno
import os
import socket

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

PORTS_TO_TRY = 20
MOST_CONNECTIONS = 64
PATIENCE = 10  # seconds in which a request must be there whole


def listen(host, port):
    """A socket that listens at the port, or where it is taken at one of the next.

    port: 0 for any free one. ValueError where there is none, or no such host.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # the latter where it cannot be a name at all
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"there is no host {host!r:.80} ({reason}); leave --host out") from error
    last = min(port + PORTS_TO_TRY, 65535) if port else 0
    for candidate in range(port, last + 1):
        try:
            listener = socket.create_server((address[0], candidate), family=family)
            # Its connections inherit it: without it a short line waits 40 ms for company.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return listener
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ValueError(
                    f"nothing can be served at port {candidate} of {host} "
                    f"({os.strerror(error.errno or 0)}); choose another one"
                ) from error
    raise ValueError(f"the ports {port} to {last} are all taken; choose another one with --port")


class Connection(H11Protocol):
    """uvicorn's, but one whose request does not come in time is closed.

    Else a few that say nothing would take all places, and nobody could get in.
    """

    limit = None  # the timer, while a request is awaited

    def connection_made(self, transport):
        super().connection_made(transport)
        self.await_request()

    def data_received(self, data):
        super().data_received(data)
        self.await_request()

    def connection_lost(self, exc):
        self.stop_waiting()
        super().connection_lost(exc)

    def await_request(self):
        """Begin to wait for the rest of a request, or go on, or stop where it is there."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self.stop_waiting()
        elif self.limit is None:
            self.limit = self.loop.call_later(PATIENCE, self.transport.close)

    def stop_waiting(self):
        if self.limit is not None:
            self.limit.cancel()
            self.limit = None


class Server(uvicorn.Server):
    """uvicorn's, but at rest it does not wake up ten times a second, and it ends at once."""

    def __init__(self, app, on_end, on_start=lambda: None):
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)
        self.on_end = on_end  # called before the connections are closed
        self.on_start = on_start  # called when it serves
        self.loop = None
        self.is_over = asyncio.Event()

    async def main_loop(self):
        self.loop = asyncio.get_running_loop()
        self.on_start()
        # A signal may have come before there was a loop to tell.
        if not self.should_exit:
            await self.is_over.wait()
        self.on_end()

    def handle_exit(self, sig, frame):
        super().handle_exit(sig, frame)
        self.end()

    def end(self):
        """End it; from any thread."""
        self.should_exit = True
        self.force_exit = True
        if self.loop:
            self.loop.call_soon_threadsafe(self.is_over.set)
