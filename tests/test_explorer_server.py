"""The explorer's server: streams, what cancels them, many at once, files, faults, rest."""

import http.client
import json
import os
import socket
import sys
import threading
import time

import pytest
import torch

pytest.importorskip("uvicorn", reason="needs requirements-explorer.txt")

from mingpt.explorer import app, models, serving, worker  # noqa: E402
from mingpt.explorer.worker import FAULT, MOST_JOBS, MOST_UNREAD, Cache  # noqa: E402

PATIENCE = 20  # seconds for what takes a moment, before a test gives up


@pytest.fixture
def ask(explorer):
    """ask(view, tab=..., ...): the open answer, over a real socket."""
    connections = []

    def send(view, body=None, **fields):
        connection = http.client.HTTPConnection("127.0.0.1", explorer.port, timeout=PATIENCE)
        connections.append(connection)
        if body is None:
            body = json.dumps({"tab": "test", "model": "names"} | fields)
        cookie = f"explorer-{explorer.port}={explorer.token}"
        headers = {"content-type": "application/json", "cookie": cookie}
        connection.request("POST", f"/api/{view}", body, headers)
        answer = connection.getresponse()
        answer.close_connection = connection.sock.close
        return answer

    yield send
    for connection in connections:
        connection.close()
    wait_for(lambda: not explorer.worker.jobs)


@pytest.fixture
def view(monkeypatch):
    """view(name, generator function) adds a view to the server."""
    return lambda name, function: monkeypatch.setitem(app.VIEWS, name, function)


def wait_for(is_so):
    for _ in range(PATIENCE * 100):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def lines(answer):
    return [json.loads(line) for line in answer]


def count_for_long(model, body, cache):
    """Tells a number now and then, between breaths."""
    for number in range(1, 10_000):
        time.sleep(0.002)
        yield {"number": number} if number % 5 == 0 else {}


def test_the_model_is_described_and_the_last_line_says_how_long_it_took(ask):
    described, end = lines(ask("model"))
    assert described["model"]["layers"] == 12 and described["model"]["context"] == 256
    assert end["end"] is True and end["seconds"] >= 0


def test_the_facts_name_all_sites_and_the_model_to_start_with(ask):
    facts, end = lines(ask("facts"))
    assert facts["start"] == "names" and len(facts["sites"]) == 13 and end["end"]


def test_lines_come_while_the_view_still_computes(ask, view):
    view("slow", count_for_long)
    answer = ask("slow")
    assert answer.getheader("content-type").startswith("application/x-ndjson")
    # Breaths are not sent.
    assert [json.loads(answer.readline())["number"] for _ in range(3)] == [5, 10, 15]


def test_a_bad_value_found_in_the_middle_is_a_sentence_at_the_end(ask, view):
    def choose(model, body, cache):
        yield {"first": 1}
        raise ValueError("there is no such thing; take another")

    view("choose", choose)
    first, end = lines(ask("choose"))
    assert first == {"first": 1} and end == {"error": "there is no such thing; take another"}


def test_a_fault_goes_to_the_terminal_and_not_into_the_page(ask, view, capfd):
    def break_down(model, body, cache):
        yield {}
        raise KeyError("/a/path/of/ours")

    view("break", break_down)
    assert lines(ask("break")) == [{"error": FAULT}]
    assert "/a/path/of/ours" in capfd.readouterr().err
    assert lines(ask("model"))[-1]["end"]


def test_a_view_that_is_no_generator_does_not_end_the_worker(ask, view, capfd):
    view("broken", lambda model, body, cache: None)
    assert lines(ask("broken")) == [{"error": FAULT}]
    assert lines(ask("model"))[-1]["end"] and capfd.readouterr().err


def test_a_number_that_is_none_is_a_fault_and_not_sent(ask, view, capfd):
    view("broken", lambda model, body, cache: ({"value": x} for x in [float("nan")]))
    assert lines(ask("broken")) == [{"error": FAULT}]
    assert "no number" in capfd.readouterr().err


def test_a_fault_outside_of_a_view_is_a_sentence_too(ask, monkeypatch, caplog):
    monkeypatch.setattr(app.requests, "read_lane", lambda body, view: {}["/a/path/of/ours"])
    answer = ask("model")
    assert answer.status == 500 and json.load(answer) == {"error": FAULT}
    assert "default-src 'self'" in answer.getheader("content-security-policy")
    wait_for(lambda: "/a/path/of/ours" in caplog.text)


def test_too_little_memory_is_a_sentence(ask, view, capfd):
    def grow(model, body, cache):
        yield {}
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")

    view("grow", grow)
    (end,) = lines(ask("grow"))
    assert "memory" in end["error"] and "Allocator" not in end["error"]


def test_a_newer_request_of_the_same_lane_cancels_the_older_one(ask, view):
    view("slow", count_for_long)
    older = ask("slow", lane="a")
    older.readline()
    newer = ask("slow", lane="a")
    assert lines(older)[-1] == {"cancelled": True}
    assert json.loads(newer.readline()) == {"number": 5}


def test_other_lanes_and_other_tabs_are_not_cancelled(ask, view, explorer):
    view("slow", count_for_long)
    first = ask("slow", tab="1", lane="a")
    first.readline()
    second = ask("slow", tab="1", lane="b")
    third = ask("slow", tab="2", lane="a")
    assert "number" in json.loads(first.readline())
    assert len(explorer.worker.jobs) == 3
    for answer in (second, third):
        answer.close_connection()


def test_a_closed_connection_cancels_and_the_next_one_is_answered(ask, view, explorer):
    ended = threading.Event()

    def watch(model, body, cache):
        try:
            yield from count_for_long(model, body, cache)
        finally:
            ended.set()

    view("slow", watch)
    answer = ask("slow")
    answer.readline()
    answer.close_connection()
    answer.close()
    assert ended.wait(PATIENCE)
    wait_for(lambda: not explorer.worker.jobs)
    assert lines(ask("model", tab="other"))[-1]["end"]


def test_a_long_computation_does_not_hold_up_another_tab(ask, view):
    view("slow", count_for_long)
    long = ask("slow", tab="1")
    long.readline()
    assert lines(ask("model", tab="2"))[-1]["end"]
    # And it goes on.
    assert "number" in json.loads(long.readline())
    long.close_connection()


def test_a_small_model_takes_one_thread(ask, view, explorer, monkeypatch):
    def count(model, body, cache):
        yield {"threads": torch.get_num_threads()}

    view("count", count)
    assert lines(ask("count"))[0] == {"threads": 1}
    monkeypatch.setattr(worker, "MOST_THREADS", 3)
    monkeypatch.setattr(models, "SMALL", 0)
    assert lines(ask("count"))[0] == {"threads": 3}


def test_a_page_that_reads_late_gets_all_there_is(ask, view):
    view("many", lambda model, body, cache: ({"number": i} for i in range(3 * MOST_UNREAD)))
    answer = ask("many")
    time.sleep(0.2)
    numbers = [event["number"] for event in lines(answer)[:-1]]
    assert numbers == list(range(3 * MOST_UNREAD))


def test_many_tabs_at_once_are_answered_up_to_a_bound(ask, view):
    view("slow", count_for_long)
    running = [ask("slow", tab=f"tab {number}") for number in range(MOST_JOBS)]
    refused = ask("slow", tab="one more")
    assert refused.status == 429 and "too much to do" in json.load(refused)["error"]
    # One who asks again takes the place of his own older request.
    assert ask("slow", tab="tab 0").status == 200
    for answer in running:
        answer.close_connection()
        answer.close()


def test_all_of_many_short_requests_are_answered(ask):
    answers = [ask("model", tab=str(number)) for number in range(20)]
    assert all(lines(answer)[-1].get("end") for answer in answers)


def test_a_page_that_does_not_read_holds_up_nobody_for_ever(ask, view, monkeypatch):
    monkeypatch.setattr(worker, "PATIENCE", 0.1)

    def pour(model, body, cache):
        while True:
            yield {"text": "x" * 100_000}

    view("pour", pour)
    ask("pour", tab="silent")
    assert lines(ask("model", tab="other"))[-1]["end"]


def test_of_what_a_page_does_not_read_little_is_kept_and_not_for_long(
    ask, view, explorer, monkeypatch
):
    monkeypatch.setattr(worker, "PATIENCE", 0.5)
    view("pour", lambda model, body, cache: ({"text": "x" * 10_000} for _ in range(5000)))
    ask("pour", tab="silent")
    job = explorer.worker.jobs["silent", "pour"]
    wait_for(lambda: job.is_over)
    # And the line that says how it ended.
    assert job.unread.qsize() <= worker.MOST_UNREAD + 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b'"text"',
        b"null",
        b'{"tab": NaN}',
        b'{"tab": "a", "x": -Infinity}',
        b'{"tab": "a", "x": 1e999}',
        b'{"tab": "a", "x": ' + b"9" * 30_000 + b"}",
        b'{"tab": "a", "tab": "b"}',
        b'{"tab": "\\ud800"}',
        b'{"tab": "a", "\\udfff": 1}',
        b'{"tab": "\xff"}',
        b'{"tab": "\xed\xa0\x80"}',
        b"[" * 500_000,
        b'{"a":' * 150_000,
        b'{"tab": "a", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"tab": "a"} {}',
        b"{}",
        b'{"tab": 1}',
        b'{"tab": ["a"]}',
        b'{"tab": "' + b"a" * 65 + b'"}',
        b'{"tab": "a", "lane": {}}',
    ],
)
def test_hostile_json_is_answered_by_a_sentence(body, ask, capfd):
    answer = ask("model", body=body)
    assert answer.status == 400
    sentence = json.load(answer)["error"]
    assert 10 < len(sentence) < 200 and "\n" not in sentence
    assert not capfd.readouterr().err


@pytest.mark.parametrize("name", ["/etc/passwd", "..", "", None, 5, ["names"], {"a": 1}, "x" * 999])
def test_a_model_that_is_not_offered_is_refused_by_a_sentence(name, ask):
    (answer,) = lines(ask("model", model=name))
    assert answer["error"].startswith("no model") and len(answer["error"]) < 200


def get(explorer, path):
    connection = http.client.HTTPConnection("127.0.0.1", explorer.port, timeout=PATIENCE)
    cookie = f"explorer-{explorer.port}={explorer.token}"
    connection.request("GET", path, headers={"cookie": cookie})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def test_the_page_and_its_files_are_served_with_their_types(explorer):
    for path, kind in (("/", "text/html"), ("/static/common.js", "text/javascript")):
        answer, content = get(explorer, path)
        assert answer.status == 200 and content
        assert answer.getheader("content-type") == f"{kind}; charset=utf-8"
    names = {path.name for path in (app.OWN_FILES).iterdir()}
    for name in names:
        assert get(explorer, f"/static/{name}")[0].status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2Fapp.py",
        "/static/%2e%2e/app.py",
        "/static//etc/passwd",
        "/static/",
        "/static/attention.html",
        "/static/main.js/",
        "/static/%00",
        "/api/model",
        "/api/",
        "/app.py",
        "//",
    ],
)
def test_no_path_leads_to_another_file(path, explorer):
    answer, content = get(explorer, path)
    assert answer.status in (404, 405) and set(json.loads(content)) == {"error"}


def test_no_file_of_the_page_hides_one_that_is_shared():
    own = {path.name for path in app.OWN_FILES.iterdir()}
    shared = {path.name for path in app.SHARED_FILES.iterdir()}
    assert not own & shared


def test_a_short_line_is_sent_at_once():
    with (
        serving.listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        connection, _ = listener.accept()
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.close()


def test_where_all_ports_are_taken_it_says_which(monkeypatch):
    with serving.listen("127.0.0.1", 0) as listener:
        taken = listener.getsockname()[1]
        monkeypatch.setattr(serving, "PORTS_TO_TRY", 0)
        with pytest.raises(ValueError, match=f"the ports {taken} to {taken} are all taken"):
            serving.listen("127.0.0.1", taken)


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET / HTTP/1.1\r\nhost: a",
        b"no line at all",
        # A body that was announced, but not all of it comes.
        b"POST /api/facts HTTP/1.1\r\n{host}{cookie}{kind}content-length: 90\r\n\r\n{",
        b"POST /api/facts HTTP/1.1\r\n{host}{cookie}{kind}transfer-encoding: chunked\r\n\r\n1\r\n{",
        # The same behind a request that was answered.
        b"GET / HTTP/1.1\r\n{host}{cookie}\r\nGET",
    ],
)
def test_who_begins_a_request_and_does_not_end_it_is_not_waited_for(
    beginning, explorer, monkeypatch
):
    monkeypatch.setattr(serving, "PATIENCE", 0.2)
    fields = {
        b"{host}": f"host: 127.0.0.1:{explorer.port}\r\n",
        b"{cookie}": f"cookie: explorer-{explorer.port}={explorer.token}\r\n",
        b"{kind}": "content-type: application/json\r\n",
    }
    for name, line in fields.items():
        beginning = beginning.replace(name, line.encode())
    with socket.create_connection(("127.0.0.1", explorer.port), timeout=PATIENCE) as connection:
        connection.sendall(beginning)
        assert b"".join(iter(lambda: connection.recv(65536), b"")).count(b"HTTP/1.1 200") <= 1


def test_who_sends_a_byte_now_and_then_is_not_waited_for_either(explorer, monkeypatch):
    monkeypatch.setattr(serving, "PATIENCE", 0.2)
    with socket.create_connection(("127.0.0.1", explorer.port)) as connection:
        for _ in range(PATIENCE * 100):
            time.sleep(0.01)
            try:
                connection.sendall(b"G")
            except OSError:
                return
    raise AssertionError("it was waited for")


def test_connections_that_say_nothing_give_their_places_back(explorer, monkeypatch):
    monkeypatch.setattr(serving, "PATIENCE", 1)
    address = ("127.0.0.1", explorer.port)
    silent = [socket.create_connection(address) for _ in range(serving.MOST_CONNECTIONS)]
    assert get(explorer, "/")[0].status == 503
    wait_for(lambda: get(explorer, "/")[0].status == 200)
    for connection in silent:
        connection.close()


def test_who_has_asked_may_listen_for_longer_than_a_request_may_take(ask, view, monkeypatch):
    monkeypatch.setattr(serving, "PATIENCE", 0.1)
    view("slow", count_for_long)
    answer = ask("slow")
    began = time.monotonic()
    while time.monotonic() < began + 0.4:
        assert answer.readline()


def test_an_unknown_view_is_refused(ask):
    answer = ask("__class__")
    assert answer.status == 404 and json.load(answer) == {"error": "there is no such view"}


def test_with_nothing_to_do_it_does_nothing(explorer, ask):
    lines(ask("model"))
    time.sleep(0.2)  # for the connection to close, and torch's threads to rest
    before = time.process_time()
    time.sleep(1)
    # Not how fast, but that nothing runs: what wakes up again and again takes more.
    assert time.process_time() - before < 0.02


@pytest.mark.skipif(sys.platform != "linux", reason="only there a thread has a priority")
def test_the_thread_that_computes_lets_the_others_go_first(explorer):
    thread = explorer.worker.thread.native_id
    assert os.getpriority(os.PRIO_PROCESS, thread) > os.getpriority(os.PRIO_PROCESS, 0)


def test_the_cache_keeps_what_was_used_last():
    cache = Cache(size=2)
    made = []

    def make(key):
        made.append(key)
        return key

    for key in ("a", "b", "a", "c", "a", "b"):
        assert cache.get(key, lambda key=key: make(key)) == key
    assert made == ["a", "b", "c", "b"]
