"""The status page in a real browser: shown, readable, usable by keyboard, and nothing else loaded.

Screenshots land in ``build/status_page`` for a person to look at.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import pytest

from overspill.config import child_environment

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
AXE = CACHE / "overspill" / "node" / "node_modules" / "axe-core" / "axe.min.js"
SHOTS = Path(__file__).parents[2] / "build" / "status_page"
PATIENCE_S = 30.0

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed"
)


@pytest.fixture(scope="module")
def daemon(command_in):
    """A daemon that has answered twice, and how to open pages for it."""
    command = command_in(Path(tempfile.mkdtemp(prefix="ovs")))
    with command.serving() as (_, ready):
        transport = httpx2.HTTPTransport(uds=ready["socket"])
        with httpx2.Client(transport=transport, base_url="http://localhost") as http:
            for text in ("hello", "a secret of mine"):
                body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
                assert http.post("/v1/chat/completions", json=body).status_code == 200
        yield command
    shutil.rmtree(command.home)


@pytest.fixture
def address(daemon):
    """The address of a new page, with its code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "overspill.cli.main", "ui", "--no-browser"],
        env=daemon.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium, which logs each request that it makes."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = Service(DRIVER, env=child_environment({"HOME": str(tmp_path)}))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def until(condition):
    """Wait for what the page does by itself; how long that takes is not what a test is about."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def text_of(browser, identifier):
    return browser.execute_script(f"return document.getElementById('{identifier}').textContent")


def open_page(browser, address, *, width=1200, height=1000, dark=False):
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get(address)
    until(lambda: text_of(browser, "state") == "Live")


def shot(browser, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    (SHOTS / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


LOOKS = [
    ("desktop", 1200, False),
    ("phone", 375, False),
    ("desktop", 1200, True),
    ("phone", 375, True),
]


@pytest.mark.parametrize(
    ("name", "width", "dark"), LOOKS, ids=[f"{n}-{'dark' if d else 'light'}" for n, _, d in LOOKS]
)
def test_it_is_accessible_and_fits_its_window(browser, address, name, width, dark):
    if not AXE.exists():
        pytest.skip("axe-core is not installed")
    open_page(browser, address, width=width, dark=dark)
    shot(browser, f"{name}-{'dark' if dark else 'light'}")
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width
    # By the debugger, as an extension would: the page's own policy takes no foreign script.
    browser.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text(encoding="utf-8")})
    found = browser.execute_async_script(
        "const done = arguments[0];"
        "axe.run(document).then(r => done(r.violations.map(v => [v.id, v.help,"
        " v.nodes.map(n => n.target.join(' '))])));"
    )
    assert found == []


def test_it_shows_what_ran_and_loads_nothing_from_elsewhere(browser, address):
    open_page(browser, address)
    base = address.partition("/#")[0]
    assert browser.current_url == f"{base}/"  # the code is gone from the address bar
    rows = browser.execute_script(
        "return [...document.querySelectorAll('#last tbody tr')].map(r => r.innerText)"
    )
    assert len(rows) == 2
    assert all("device" in row and "only route" in row and "echo" in row for row in rows)
    assert int(text_of(browser, "kept")) > 0
    assert text_of(browser, "spilled") == "0"
    assert "secret" not in browser.page_source
    asked = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    urls = {
        one["params"]["request"]["url"]
        for one in asked
        if one["method"] == "Network.requestWillBeSent"
    }
    ours = [url for url in urls if url.startswith("http")]
    assert ours
    assert all(url.startswith(base) for url in ours)
    assert browser.get_log("browser") == []
    cookies = browser.get_cookies()
    assert [(one["httpOnly"], one["sameSite"]) for one in cookies] == [(True, "Strict")]


def test_it_is_used_by_keyboard_alone(browser, address):
    from selenium.webdriver.common.keys import Keys

    open_page(browser, address)

    def focused():
        return browser.execute_script(
            "const e = document.activeElement; return e.id || e.className || e.tagName"
        )

    def press(key):
        browser.switch_to.active_element.send_keys(key)

    press(Keys.TAB)
    assert focused() == "skip"
    press(Keys.ENTER)
    until(lambda: focused() == "main")
    press(Keys.TAB)
    assert focused() == "unload"  # the other one can do nothing now
    press(Keys.ENTER)
    until(lambda: "unloaded" in text_of(browser, "model"))
    assert not browser.find_element("id", "unload").is_enabled()
    until(lambda: focused() == "prewarm")
    press(Keys.SPACE)
    until(lambda: "unloaded" not in text_of(browser, "model"))


def test_the_page_says_when_the_code_was_used(browser, address):
    open_page(browser, address)
    browser.delete_all_cookies()
    browser.get("about:blank")
    browser.get(address)
    until(lambda: "code was used" in text_of(browser, "state"))
    assert not browser.find_element("id", "main").is_displayed()
