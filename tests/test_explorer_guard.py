"""Who may ask the explorer? For each rule requests that break it, each of which is refused."""

import asyncio
import json
import socket
import tracemalloc

import pytest

testclient = pytest.importorskip("starlette.testclient", reason="needs starlette and httpx2")

from mingpt.explorer import guard  # noqa: E402
from mingpt.explorer.guard import LARGEST_BODY, Guard  # noqa: E402

TOKEN = "a-token-of-the-tests"
OURS = "127.0.0.1:8427"
COOKIE = f"explorer-8427={TOKEN}"


async def greet(scope, receive, send):
    """An application that tells what body it got."""
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": b"got " + message["body"][:20]})


def client(bound="127.0.0.1", reached="127.0.0.1"):
    """A client of a server that is bound to one address and was reached at another."""
    guarded = Guard(greet, TOKEN, bound, 8427)
    return testclient.TestClient(guarded, f"http://{reached}:8427", follow_redirects=False)


def request(method="GET", path="/", body=None, bound="127.0.0.1", reached="127.0.0.1", **headers):
    """The answer to a request that keeps the rules but for what is given; None leaves it out."""
    sent = {"host": OURS, "cookie": COOKIE}
    if method == "POST":
        sent["content-type"] = "application/json"
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    given = {name: value for name, value in sent.items() if value is not None}
    return client(bound, reached).request(method, path, headers=given, content=body)


def refused(answer, status):
    """The sentence of a refusal; it is the whole answer, and no one is let in by it."""
    assert answer.status_code == status
    assert "set-cookie" not in answer.headers
    (sentence,) = answer.json().values()
    return sentence


def test_a_request_that_keeps_all_rules_is_answered():
    assert request().text == "got "
    assert request("POST", "/api/x", b'{"a":1}').text == 'got {"a":1}'


def test_the_printed_address_sets_the_cookie_and_leaves_the_token_behind():
    answer = request(path=f"/?token={TOKEN}", cookie=None)
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    assert answer.headers["set-cookie"] == f"{COOKIE}; HttpOnly; SameSite=Strict; Path=/"


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], f"{TOKEN}x", "%C3%A9", "a" * 5000])
def test_a_wrong_token_is_refused(token):
    assert "wrong token" in refused(request(path=f"/?token={token}", cookie=None), 403)
    # One who is in, and has followed an old address, is told so too.
    assert "wrong token" in refused(request(path=f"/?token={token}"), 403)


def test_the_token_opens_no_other_path():
    refused(request(path=f"/static/main.js?token={TOKEN}", cookie=None), 403)
    refused(request("POST", f"/api/sweep?token={TOKEN}", b"{}", cookie=None), 403)


@pytest.mark.parametrize(
    "cookie",
    [
        None,
        "",
        f"{COOKIE}x",
        "explorer-8427=",
        "explorer-8427=é".encode("latin-1"),
        f"explorer-8428={TOKEN}",
        f"x={COOKIE}",
        TOKEN,
        ";;;=;",
    ],
)
@pytest.mark.parametrize("path", ["/", "/static/main.js", "/api/facts"])
def test_without_the_cookie_nothing_is_answered(path, cookie):
    assert "terminal" in refused(request(path=path, cookie=cookie), 403)


def test_other_cookies_may_stand_beside_it():
    assert request(cookie=f"_xsrf=1; {COOKIE}; explorer-8428=other").status_code == 200


@pytest.mark.parametrize("changes", [{"path": f"/?token={TOKEN}x"}, {"cookie": f"{COOKIE}x"}])
def test_a_secret_is_compared_in_constant_time(changes, monkeypatch):
    compared = []

    def compare(*secrets):
        compared.append(secrets)
        return False

    monkeypatch.setattr(guard.hmac, "compare_digest", compare)
    refused(request(**changes), 403)
    assert (f"{TOKEN}x".encode(), TOKEN.encode()) in compared


@pytest.mark.parametrize("name", [OURS, "localhost:8427", "LOCALHOST:8427", "[::1]:8427"])
def test_this_machine_may_be_called_by_its_own_names(name):
    assert request(host=name).status_code == 200


@pytest.mark.parametrize(
    "name",
    [
        "evil.example:8427",
        "evil.example",
        "127.0.0.1",
        "127.0.0.1:80",
        "127.0.0.1.evil.example:8427",
        "localhost:8427.evil.example",
        "user@127.0.0.1:8427",
        "127.1:8427",
        "192.168.1.5:8427",
        "",
    ],
)
def test_a_name_that_is_not_ours_is_refused_as_after_dns_rebinding(name):
    # Even to one with the token, and with the cookie.
    assert "address" in refused(request(host=name), 421)
    refused(request(path=f"/?token={TOKEN}", host=name), 421)
    refused(request("POST", "/api/x", b"{}", host=name), 421)


def test_at_the_port_that_browsers_leave_out_it_may_be_left_out():
    for host, status in (("127.0.0.1", 200), ("127.0.0.1:80", 200), ("evil.example", 421)):
        headers = {"host": host, "cookie": f"explorer-80={TOKEN}"}
        at_80 = testclient.TestClient(Guard(greet, TOKEN, "127.0.0.1", 80))
        assert at_80.get("/", headers=headers).status_code == status


def test_two_hosts_or_none_are_refused():
    assert answer_of([(b"host", OURS.encode()), (b"host", b"evil.example")]) == 421
    assert answer_of([]) == 421


def test_bound_to_an_address_the_server_has_that_name_alone():
    assert request(bound="192.168.1.5", host="192.168.1.5:8427").status_code == 200
    refused(request(bound="192.168.1.5", host="localhost:8427"), 421)
    refused(request(bound="192.168.1.5", host="192.168.1.6:8427"), 421)


def test_bound_to_all_addresses_it_has_the_number_that_was_reached_and_no_other_name():
    all_of_them = {"bound": "0.0.0.0", "reached": "192.168.1.5"}
    assert request(**all_of_them, host="192.168.1.5:8427").status_code == 200
    assert request(**all_of_them, host="127.0.0.1:8427").status_code == 200
    refused(request(**all_of_them, host="192.168.1.6:8427"), 421)
    refused(request(**all_of_them, host="evil.example:8427"), 421)
    refused(request(**all_of_them, host="192.168.1.5:8427", cookie=None), 403)


@pytest.mark.parametrize("site", ["cross-site", "same-site", "", "None", "x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_the_browser_says_comes_from_another_site_is_refused(method, site):
    assert "another page" in refused(request(method, "/", b"{}", sec_fetch_site=site), 403)


@pytest.mark.parametrize("site", ["same-origin", "none", None])
def test_our_page_and_the_address_bar_may_ask(site):
    assert request(sec_fetch_site=site).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["null", "http://evil.example", "https://127.0.0.1:8427", "http://127.0.0.1:8428", ""],
)
def test_a_post_of_another_origin_is_refused(origin):
    assert "another page" in refused(request("POST", "/api/x", b"{}", origin=origin), 403)


def test_a_post_of_our_own_origin_is_answered():
    assert request("POST", "/api/x", b"{}", origin=f"http://{OURS}").status_code == 200


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "text/plain;application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/jsonx",
    ],
)
def test_what_a_form_can_send_is_refused(kind):
    assert "application/json" in refused(request("POST", "/api/x", b"{}", content_type=kind), 415)


def test_json_may_name_its_encoding():
    kind = "Application/JSON; charset=utf-8"
    assert request("POST", "/api/x", b"{}", content_type=kind).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "X"])
def test_other_methods_are_refused(method):
    assert method in refused(request(method), 405)


def test_a_large_body_is_refused_however_it_is_announced():
    assert request("POST", "/api/x", b"x" * LARGEST_BODY).status_code == 200
    large = b"x" * (LARGEST_BODY + 1)
    assert "bytes" in refused(request("POST", "/api/x", large), 413)
    # In pieces, with no length announced.
    refused(request("POST", "/api/x", iter([b"x" * 1000] * 1001)), 413)
    for announced in ("50000000", "9" * 5000):
        refused(request("POST", "/api/x", b"{}", content_length=announced), 413)
    # More than was announced.
    refused(request("POST", "/api/x", large, content_length="2"), 413)


def read(message):
    """read_body of a connection on which this message comes again and again; how often it came."""
    count = 0

    async def receive():
        nonlocal count
        count += 1
        assert count < 1000, "it reads for ever"
        return message

    try:
        return asyncio.run(guard.read_body(receive, {})), count
    except guard.Refusal as refusal:
        return refusal.status, count


def test_a_body_without_end_is_broken_off_and_kept_nowhere():
    endless = {"type": "http.request", "body": b"x" * 100_000, "more_body": True}
    tracemalloc.start()
    status, count = read(endless)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert status == 413 and count == guard.LARGEST_SEEN // 100_000 + 1
    assert peak < 3 * LARGEST_BODY


def test_half_a_body_is_passed_on_to_nobody():
    assert read({"type": "http.disconnect"}) == (None, 1)
    messages = [{"type": "http.request", "body": b"{}", "more_body": True}]

    async def receive():
        return messages.pop() if messages else {"type": "http.disconnect"}

    head = {"host": OURS, "cookie": COOKIE, "content-type": "application/json"}
    headers = [(name.encode(), value.encode()) for name, value in head.items()]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b""}
    scope |= {"headers": headers, "server": ("127.0.0.1", 8427)}
    # Neither the application nor an answer is called for.
    asyncio.run(Guard(None, TOKEN, "127.0.0.1", 8427)(scope, receive, None))


def test_every_answer_has_the_headers_that_keep_it_ours_and_none_that_share_it():
    answers = [
        request(),
        request(path=f"/?token={TOKEN}", cookie=None),
        request(cookie=None, origin="http://evil.example"),
        request("OPTIONS", origin="http://evil.example", access_control_request_method="POST"),
    ]
    for answer in answers:
        headers = answer.headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy
        for part in ("frame-ancestors", "base-uri", "form-action", "object-src"):
            assert f"{part} 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert not [name for name in headers if name.startswith("access-control")]
    assert answers[0].headers["x-own"] == "1"


def test_a_websocket_is_refused_even_with_the_cookie():
    with (
        pytest.raises(testclient.WebSocketDisconnect),
        client().websocket_connect("/", headers={"host": OURS, "cookie": COOKIE}),
    ):
        pass


def answer_of(headers):
    """The status of a GET with just these headers, which no client would send."""
    sent = []

    async def send(message):
        sent.append(message)

    async def ask():
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b""}
        scope |= {"headers": headers, "server": ("127.0.0.1", 8427)}
        await Guard(greet, TOKEN, "127.0.0.1", 8427)(scope, None, send)

    asyncio.run(ask())
    return sent[0]["status"]


def over_socket(explorer, *lines, body=b""):
    """(status, body) of a request to a real server, line by line as they are sent."""
    head = "\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1")
    with socket.create_connection(("127.0.0.1", explorer.port)) as connection:
        connection.sendall(head + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), head, rest


def test_the_key_rules_hold_over_a_real_socket(explorer):
    host = f"host: 127.0.0.1:{explorer.port}"
    cookie = f"cookie: explorer-{explorer.port}={explorer.token}"
    get = "GET / HTTP/1.1"
    post = "POST /api/facts HTTP/1.1"
    kind = "content-type: application/json"
    body = json.dumps({"tab": "t"}).encode()
    length = f"content-length: {len(body)}"

    assert over_socket(explorer, get, host, cookie)[0] == 200
    assert over_socket(explorer, get, host)[0] == 403
    assert over_socket(explorer, get, "host: evil.example", cookie)[0] == 421
    # HTTP/1.0 asks for no host.
    assert over_socket(explorer, "GET / HTTP/1.0", cookie)[0] == 421
    assert over_socket(explorer, get, host, cookie, "sec-fetch-site: cross-site")[0] == 403
    upgrade = ("upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: AAAA")
    assert over_socket(explorer, get, "host: evil.example", cookie, *upgrade)[0] == 421

    assert over_socket(explorer, post, host, cookie, kind, length, body=body)[0] == 200
    foreign = "origin: http://evil.example"
    assert over_socket(explorer, post, host, cookie, kind, length, foreign, body=body)[0] == 403
    plain = "content-type: text/plain"
    assert over_socket(explorer, post, host, cookie, plain, length, body=body)[0] == 415
    # It is refused at the announcement: nothing of it is sent.
    large = "content-length: 50000000"
    assert over_socket(explorer, post, host, cookie, kind, large)[0] == 413
    # What a person may have pasted is passed over, so that the browser hears the answer.
    large = "content-length: 5000000"
    pasted = b"x" * 5_000_000
    assert over_socket(explorer, post, host, cookie, kind, large, body=pasted)[0] == 413


def test_a_real_answer_names_no_software_and_shares_nothing(explorer):
    host = f"host: 127.0.0.1:{explorer.port}"
    _, head, _ = over_socket(explorer, "GET /nothing HTTP/1.1", host)
    names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]]
    assert b"content-security-policy" in names and b"server" not in names
    assert not [name for name in names if name.startswith(b"access-control")]
