"""One app over the tiny model for all tests of the app, and a browser where there is one."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager, suppress

import pytest

from llava_probe.view.app.uploads import UploadLimits

#: Until a browser shows what was asked for; generous, nothing is measured by it.
PATIENCE = 60_000

#: What Chromium says of a picture that the app refused, beside the sentence that the page shows.
REFUSAL = "the server responded with a status of 422"


@pytest.fixture(scope="session")
def app():
    pytest.importorskip("gradio", reason="the app needs gradio: pip install 'llava_probe[app]'")
    from llava_probe.view.app.serve import start

    with start("tiny", {}, limits=UploadLimits(megabytes=2, megapixels=20)) as running:
        yield running
    assert not running.desk.store.folder.exists()


@pytest.fixture
def visit(app, chromium):
    """Opens the app in a browser of its own, which may ask nobody else and has nothing to complain of."""
    opened, wrong = [], []

    def open_page(**settings):
        context = chromium.new_context(viewport={"width": 1280, "height": 900}, **settings)
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
