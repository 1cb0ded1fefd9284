"""Who may ask? The person who started the explorer, from the page that it serves, and nobody else.

Every web page that is open in the same browser can send requests to this machine. So a request
must name this server (else a name of a stranger's could be made to point here: DNS rebinding),
must come from our own page, and must bring the secret that the terminal printed: once in the
address, from then on in a cookie that no script and no other site gets.
"""

import hmac
import ipaddress
import json
from urllib.parse import parse_qs

from starlette.datastructures import Headers

LARGEST_BODY = 1_000_000  # bytes of a request
# What is larger is passed over up to here, and kept nowhere: a browser hears an answer only when it
# has sent all. Beyond, the connection breaks.
LARGEST_SEEN = 20_000_000
HEADERS = {
    # Scripts, styles and connections of this server alone, and nothing inline.
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Refusal(Exception):
    """A request that is not answered: status, and a sentence."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = status


class Guard:
    """An ASGI application around another one, which gets only the requests that may be answered.

    host: a name or an address that the server is bound to, as a person gave it.
    """

    def __init__(self, app, token, host, port):
        self.app = app
        self.token = token.encode()
        # Cookies know no ports: two explorers must not overwrite each other's.
        self.cookie = f"explorer-{port}"
        self.hosts = hosts_of(host, port)

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            await self.answer(scope, receive, with_headers(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self.app(scope, receive, send)

    async def answer(self, scope, receive, send):
        """Pass a request on, or say why not."""
        headers = Headers(scope=scope)
        try:
            self.check_host(scope, headers)
            check_sender(headers)
            if self.brings_token(scope):
                await respond(send, 303, b"", self.entrance())
                return
            self.check_cookie(headers)
            body = b""
            if scope["method"] == "POST":
                check_post(headers)
                body = await read_body(receive, headers)
            elif scope["method"] not in ("GET", "HEAD"):
                raise Refusal(405, f"no {scope['method']:.20}; ask by GET or POST")
        except Refusal as refusal:
            sentence = json.dumps({"error": str(refusal)}).encode()
            kind = {"content-type": "application/json"}
            await respond(send, refusal.status, sentence, kind)
            return
        if body is not None:
            await self.app(scope, after_body(body, receive), send)

    def check_host(self, scope, headers):
        """Is it this server that was asked, by a name that nobody else can give it?"""
        hosts = headers.getlist("host")
        # The address in numbers that was reached is no name that somebody could make point here.
        allowed = self.hosts | with_port(*scope["server"])
        if len(hosts) != 1 or hosts[0].lower() not in allowed:
            raise Refusal(
                421,
                "this is not the explorer's address: open the one that its terminal printed "
                "(a tunnel must have the same port at both ends)",
            )

    def brings_token(self, scope):
        """True for the printed address, False for one without a token; else a Refusal."""
        query = scope["query_string"].decode("latin-1")
        tokens = parse_qs(query, keep_blank_values=True).get("token", [])
        if scope["path"] != "/" or not tokens:
            return False
        if not hmac.compare_digest(tokens[0].encode(), self.token):
            raise Refusal(403, "wrong token: open the address that the terminal printed last")
        return True

    def entrance(self):
        """The headers that let a browser in: the cookie, and away from the token's address."""
        cookie = f"{self.cookie}={self.token.decode()}; HttpOnly; SameSite=Strict; Path=/"
        return {"location": "/", "set-cookie": cookie}

    def check_cookie(self, headers):
        for cookies in headers.getlist("cookie"):
            for cookie in cookies.split(";"):
                name, _, value = cookie.strip().partition("=")
                is_right = hmac.compare_digest(value.encode("latin-1"), self.token)
                if name == self.cookie and is_right:
                    return
        raise Refusal(403, "no token: open the address that the explorer's terminal printed")


def is_unspecified(host):
    """Is it 0.0.0.0 or ::, which stand for all addresses of this machine?"""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def is_loopback(host):
    """Can only this machine itself reach a server there?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def hosts_of(host, port):
    """The set of what a request may have as its Host."""
    if not (is_loopback(host) or is_unspecified(host)):
        return with_port(host, port)
    return with_port("127.0.0.1", port) | with_port("localhost", port) | with_port("::1", port)


def with_port(host, port):
    """The ways in which a browser writes a host with its port, a set."""
    name = f"[{host}]" if ":" in host else host.lower()
    return {name, f"{name}:{port}"} if port == 80 else {f"{name}:{port}"}


def check_sender(headers):
    """Was it our own page that asks, or a person at the address bar?"""
    site = headers.get("sec-fetch-site", "none")
    if site not in ("same-origin", "none"):
        raise Refusal(
            403, "this came from another page: type or paste the address into the address bar"
        )


def check_post(headers):
    """What a form or a page of another site can send without being asked first is refused."""
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{headers['host'].lower()}":
        raise Refusal(403, "this came from another page; only the explorer's own may ask")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "a request must be application/json")


async def read_body(receive, headers):
    """The bytes of a request, counted as they come; None if the connection is closed before."""
    too_large = Refusal(413, f"a request may have {LARGEST_BODY:,} bytes; shorten the texts")
    announced = headers.get("content-length", "0")
    # Its length first: of very many digits Python makes no number.
    if len(announced) > len(str(LARGEST_SEEN)) or int(announced) > LARGEST_SEEN:
        raise too_large
    body = bytearray()
    size = 0
    is_whole = False
    # What was announced need not be true, and with chunks nothing is announced.
    while not is_whole and size <= LARGEST_SEEN:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        piece = message.get("body", b"")
        size += len(piece)
        if size <= LARGEST_BODY:
            body += piece
        is_whole = not message.get("more_body", False)
    if size > LARGEST_BODY:
        raise too_large
    return bytes(body)


def after_body(body, receive):
    """An ASGI `receive` that gives the body, then what else comes: that the connection closed."""
    is_given = False

    async def receive_again():
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again


def with_headers(send):
    """An ASGI `send` that adds HEADERS to every answer."""
    added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def send_with_headers(message):
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message.get("headers", []), *added]}
        await send(message)

    return send_with_headers


async def respond(send, status, body, headers):
    """Send a whole answer."""
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    pairs.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
