"""What several test files use."""

import shutil

import pytest


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium, driven by selenium, that keeps what its console says; skips where there is none."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="needs selenium to drive a browser"
    )
    chromium, driver = (
        shutil.which("chromium") or shutil.which("chromium-browser"),
        shutil.which("chromedriver"),
    )
    if not (chromium and driver):
        pytest.skip("needs chromium and its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    quiet = "disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
    for flag in f"headless no-sandbox disable-gpu window-size=1200,900 {quiet}".split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()
