"""A real browser for what is made for one: Debian's or anybody's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

#: Where screenshots are kept to be looked at.
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium; tests that need it are skipped by name where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    where = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if where is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=where, args=["--no-sandbox", "--force-color-profile=srgb"])
        yield browser
        browser.close()


class Window:
    """One page of the browser, with all that it asked for and said."""

    def __init__(self, context, page):
        self.context, self.page = context, page
        self.requests, self.said = [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.said.append(message.text) if message.type != "info" else None)
        page.on("pageerror", lambda error: self.said.append(str(error)))

    def outside(self, allowed=("file:", "blob:", "data:")):
        """Requests that left."""
        return [url for url in self.requests if not url.startswith(allowed)]

    def keep(self, name):
        """A screenshot to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


@pytest.fixture
def window(chromium):
    """Opens windows: ``window(width=400, dark=True)``; each is closed behind the test."""
    contexts = []

    def opened(width=1280, dark=False):
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        contexts.append(context)
        return Window(context, context.new_page())

    yield opened
    for context in contexts:
        context.close()
