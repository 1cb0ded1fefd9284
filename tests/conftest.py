"""What several test files use."""

import os
import shutil
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from tests.hub import Hub, point_to

# Threads that wait for each other soon sleep: to spin takes long beside other work.
# It is read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


CHROMIUM = ("chromium", "chromium-browser")
CHROME = (
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
)


def find_browser():
    """The paths of a Chromium or Chrome and of its chromedriver, None for what is not there.

    GitHub's machines have Chrome, and its driver in a folder that CHROMEWEBDRIVER names.
    """
    folder = os.environ.get("CHROMEWEBDRIVER")
    names = CHROME if folder else (*CHROMIUM, *CHROME)
    paths = map(shutil.which, names)
    return next(filter(None, paths), None), shutil.which("chromedriver", path=folder)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium, driven by selenium, that keeps what its console says.

    Skips where there is none; the gate (.ci/run) takes such a skip for a failure.
    """
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="needs selenium to drive a browser"
    )
    chromium, driver = find_browser()
    if not (chromium and driver):
        pytest.skip("needs chromium and its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless no-sandbox disable-gpu window-size=1200,900 no-first-run disable-sync "
    # Without these it asks its maker's servers for updates, which a test must not.
    flags += "disable-quic disable-background-networking disable-component-update"
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture(scope="session")
def axe():
    """The source of axe-core, which checks a page for those who see little or use no mouse."""
    package = pytest.importorskip("axe_core_python", reason="needs axe-core-python")
    return Path(package.__file__).with_name("axe.min.js").read_text(encoding="utf-8")


@pytest.fixture
def set_window(browser):
    """set_window(width, height) gives the page such a screen, until the test ends."""

    def set_size(width, height):
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)

    yield set_size
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture(scope="session")
def explorer():
    """The explorer, served with the model `names`: .port, .token, .address (with the token)."""
    pytest.importorskip("uvicorn", reason="needs requirements-explorer.txt")
    from mingpt.explorer.app import build_app
    from mingpt.explorer.models import Models
    from mingpt.explorer.serving import Server, listen
    from mingpt.explorer.worker import Worker

    models = Models()
    models.read("names")
    worker = Worker()
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        token = "a-token-of-the-tests"
        server = Server(build_app(models, worker, token, "127.0.0.1", port), worker.stop)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        address = f"http://127.0.0.1:{port}/?token={token}"
        yield SimpleNamespace(
            port=port, token=token, address=address, models=models, worker=worker, server=server
        )
        server.end()
        thread.join()


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(repos, ...) -> a running Hub, which huggingface_hub takes for the hub; no cache."""
    with ExitStack() as stack:

        def start(repos, **options):
            hub = stack.enter_context(Hub(repos, **options))
            point_to(hub.url, monkeypatch)
            return hub

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses"), raising=False
        )
        yield start
