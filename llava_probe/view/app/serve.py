"""The app as a server: one model, one folder, one port; everything goes away when it ends."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Collection, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from llava_probe.errors import BadInput
from llava_probe.view.app.desk import Desk
from llava_probe.view.app.gate import LOOPBACK, Gate
from llava_probe.view.app.store import Store
from llava_probe.view.app.uploads import UploadLimits
from llava_probe.view.app.worker import COMMAND, Worker

Given = TypeVar("Given")

#: Where it is looked for a port that is free.
FIRST_PORT, PORTS = 7860, 40
#: Seconds between two looks at what is too old.
_TIDY_EVERY = 60.0


class App:
    """The app, running in a thread of its own until it is closed. Made by ``launch``.

    Attributes:
        url: where it is.
        model: what it loaded, in a line.
    """

    def __init__(
        self,
        model: str,
        loaded: dict[str, str | bool],
        bound: socket.socket,
        names: Collection[str] | None,
        users: Mapping[str, str],
        limits: UploadLimits,
        command: Collection[str] = COMMAND,
    ) -> None:
        self._socket, self._limits, self._users, self._names = bound, limits, users, names
        self._model, self._loaded, self._command = model, loaded, tuple(command)
        host, port = bound.getsockname()[:2]
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        self.url = f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"
        self.model = ""
        self._failed: BaseException | None = None
        self._up, self._done = threading.Event(), threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="llava-probe app")

    def __repr__(self) -> str:
        return f"App({self.url}, {self.model})"

    def __enter__(self) -> App:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server and the model's process, and remove every file."""
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join()

    def wait(self) -> None:
        """Until it is closed, or Ctrl-C."""
        while not self._done.wait(0.5):
            pass

    @property
    def desk(self) -> Desk:
        """What answers and keeps."""
        return self._desk

    def in_its_loop(self, doing: Coroutine[Any, Any, Given]) -> Given:
        """What something that runs in the app's own event loop gives: all that ``desk`` does."""
        if self._loop is None:
            raise BadInput("the app is closed")
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result()

    def _start(self) -> App:
        self._thread.start()
        self._up.wait()
        if self._failed is not None:
            self._thread.join()
            raise self._failed
        return self

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failed = error
        finally:
            self._socket.close()
            self._done.set()
            self._up.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        worker, store = Worker(self._model, self._loaded, self._command), Store()
        try:
            self._desk = Desk(worker, store, self._limits, self._model, self._loaded)
            self.model = await worker.start()
            await self._listen()
        finally:
            self._loop = None
            await worker.close()
            store.close()

    async def _listen(self) -> None:
        import uvicorn

        served = application(self._desk, self._model, self._names, self._users, self._limits)
        self._server = uvicorn.Server(
            uvicorn.Config(served, log_level="warning", access_log=False, timeout_graceful_shutdown=3, lifespan="on")
        )
        self._server.install_signal_handlers = lambda: None
        serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        tidying = asyncio.create_task(self._tidy())
        while not self._server.started and not serving.done():
            await asyncio.sleep(0.02)
        self._up.set()
        try:
            await serving
        finally:
            tidying.cancel()

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_EVERY)
            self._desk.store.tidy()


def application(
    desk: Desk, model: str, names: Collection[str] | None, users: Mapping[str, str], limits: UploadLimits
) -> Gate:
    """The whole application: the gate, our routes, and gradio's behind them."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "100"  # it remembers each event, and sums them up behind each
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"
    os.environ["GRADIO_TEMP_DIR"] = str(desk.store.folder / "gradio")  # which nothing should be written to
    try:
        import fastapi
        import gradio as gr
    except ImportError:
        raise BadInput("the app needs gradio: pip install 'llava_probe[app]'") from None
    from llava_probe.view.app.routes import routes
    from llava_probe.view.app.screen import css, screen, theme
    from llava_probe.view.page import script

    inner = fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    inner.router.routes += routes(desk, script())
    gr.mount_gradio_app(
        inner,
        screen(desk, model),
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=0,
        theme=theme(),
        css=css(),
    )
    return Gate(inner, names, users, limits)


def start(
    model: str,
    loaded: dict[str, str | bool],
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    names: Collection[str] = (),
    users: Mapping[str, str] | None = None,
    limits: UploadLimits | None = None,
    command: Collection[str] = COMMAND,
) -> App:
    """Load the model and serve it.

    Args:
        model, loaded: a name, and the arguments of ``lp.load``.
        host: where to listen; this machine alone by default.
        port: None: the first free one from 7860 on.
        names: by which it may be called besides, behind a proxy say.
        users: names and passwords; must be given where others can reach it.
        limits: of what comes in.
        command: that starts the model's process.

    Raises:
        BadInput: others could reach it without a password, the port is taken, or gradio is not there.
        BadModel: the model cannot be loaded.
    """
    loopback = host in LOOPBACK
    if not users and (not loopback or names):
        told = f"--host {host}" if not loopback else f"--name {next(iter(names))}"
        raise BadInput(f"{told} lets others reach this app, so it needs --auth user:password, or a file of such lines")
    allowed = None if not loopback else (*LOOPBACK, *names)
    bound = _bound(host, port)
    try:
        app = App(model, loaded, bound, allowed, users or {}, limits or UploadLimits(), command)
        return app._start()
    except BaseException:
        with suppress(OSError):
            bound.close()
        raise


def _bound(host: str, port: int | None) -> socket.socket:
    """A socket that listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else (port,):
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, number))
            found.listen(128)
        except OSError as error:
            found.close()
            problem = error.strerror or str(error)
        else:
            return found
    where = f"port {port}" if port is not None else f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
    raise BadInput(f"the app cannot listen on {host}, {where}: {problem}")
