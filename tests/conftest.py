"""What several test files use."""

import shutil

import pytest


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A headless Chromium, driven by selenium, that keeps what its console says.

    Skips where there is none; the gate (.ci/run) takes such a skip for a failure.
    """
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="needs selenium to drive a browser"
    )
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
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


@pytest.fixture
def set_window(browser):
    """set_window(width, height) gives the page such a screen, until the test ends."""

    def set_size(width, height):
        sizes = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)

    yield set_size
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
