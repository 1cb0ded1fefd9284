"""A stranger's page in the same browser: whatever it tries, the explorer computes nothing for it.

It lies on another port of this machine, for which browsers send the cookie along: SameSite does not
look at the port. So the other rules must hold.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

# Each ends by calling done with what it got, or with the error.
ATTACKS = {
    "a request as text, which no one is asked about": """
        fetch(there + "api/facts", {method: "POST", mode: "no-cors", credentials: "include",
                                    body: '{"tab": "x"}'})
            .then(() => done("sent"), () => done("error"));""",
    "a request as JSON": """
        fetch(there + "api/facts", {method: "POST", credentials: "include", body: '{"tab": "x"}',
                                    headers: {"content-type": "application/json"}})
            .then(() => done("answered"), () => done("error"));""",
    "a reading of the page": """
        fetch(there, {credentials: "include"})
            .then(() => done("answered"), () => done("error"));""",
    "a form": """
        const form = document.createElement("form");
        form.method = "post"; form.enctype = "text/plain"; form.target = "frame";
        form.action = there + "api/facts";
        const frame = document.createElement("iframe");
        frame.name = "frame"; document.body.append(form, frame); form.submit();
        setTimeout(() => done("sent"), 500);""",
    "a script of its own": """
        const script = document.createElement("script");
        script.src = there + "static/common.js"; script.onload = () => done("answered");
        script.onerror = () => done("error"); document.body.append(script);""",
    "a websocket": """
        const socket = new WebSocket(there.replace("http", "ws"));
        socket.onopen = () => done("answered"); socket.onerror = () => done("error");""",
}


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!DOCTYPE html><title>A stranger's page</title><body></body>")

    def log_message(self, *_):
        pass


@pytest.fixture
def stranger():
    """The address of another site's page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_page_of_another_origin_gets_nothing(attack, browser, explorer, stranger, monkeypatch):
    browser.get(explorer.address)
    assert browser.current_url.startswith(f"http://127.0.0.1:{explorer.port}/")
    assert "token" not in browser.current_url
    names = [cookie["name"] for cookie in browser.get_cookies()]
    assert f"explorer-{explorer.port}" in names
    # No script sees it, not even ours.
    assert "explorer" not in browser.execute_script("return document.cookie")

    browser.get(stranger)
    opened = []
    monkeypatch.setattr(explorer.worker, "open", lambda *lane: opened.append(lane))
    script = f"const done = arguments[1]; const there = arguments[0]; {ATTACKS[attack]}"
    got = browser.execute_async_script(script, f"http://127.0.0.1:{explorer.port}/")
    assert got in ("error", "sent") and not opened
    browser.get_log("browser")  # what it says of the refusals is not for the next test


def test_a_link_on_another_page_does_not_open_it(browser, explorer, stranger):
    browser.get(explorer.address)
    browser.get(stranger)
    browser.execute_script("location = arguments[0]", f"http://127.0.0.1:{explorer.port}/")
    assert "another page" in browser.find_element("tag name", "body").text
    browser.get_log("browser")
    # From the address bar it is the person.
    browser.get(f"http://127.0.0.1:{explorer.port}/")
    assert "another page" not in browser.find_element("tag name", "body").text
