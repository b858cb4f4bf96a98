"""One app over the tiny model for all tests of the app, and a browser where there is one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from llava_probe.view.app.uploads import UploadLimits
from tests.view.app import stub_page

#: Until a browser shows what was asked for; generous, nothing is measured by it.
PATIENCE = 60_000

#: What Chromium says of a picture that the app refused, beside the sentence that the page shows.
REFUSAL = "the server responded with a status of 422"
STUB = Path(stub_page.__file__)


@pytest.fixture(scope="session")
def app():
    pytest.importorskip("gradio", reason="the app needs gradio: pip install 'llava_probe[app]'")
    from llava_probe.view.app.serve import start
    from llava_probe.view.app.worker import COMMAND

    command = COMMAND
    if importlib.util.find_spec("llava_probe.view.page") is None:
        stub_page.install()
        command = (sys.executable, str(STUB))
    with start("tiny", {}, limits=UploadLimits(megabytes=2, megapixels=20), command=command) as running:
        yield running
    assert not running.desk.store.folder.exists()


@pytest.fixture(scope="module")
def browser(request):
    with suppress(pytest.FixtureLookupError):  # there can be one driver at a time
        yield request.getfixturevalue("chromium")
        return
    playwright = pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(app, browser):
    """Opens the app in a browser of its own, which may ask nobody else and has nothing to complain of."""
    opened, wrong = [], []

    def open_page(**settings):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **settings)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on(
            "console",
            lambda said: wrong.append(said.text) if said.type == "error" and REFUSAL not in said.text else None,
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: wrong.append(asked.url) if not _own(asked.url, app.url) else None)
        page.goto(app.url)
        page.wait_for_selector(".lp-examples button img")
        opened.append(context)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert not wrong


@pytest.fixture
def held(app):
    """A context in which the model's process stands still."""

    @contextmanager
    def holding():
        pid = _process(app)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield pid
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    return holding


def _process(app):
    while not app.desk.worker.ready:
        time.sleep(0.05)
    return app.desk.worker.pid


def _complains(told):
    return told.type == "error" and REFUSAL not in told.text


def _own(url, root):
    return url.startswith((root, "data:", "blob:"))
