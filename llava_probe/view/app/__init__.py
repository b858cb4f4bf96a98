"""The app: one model, asked about pictures in the browser, and explored there.

    from llava_probe.view.app import launch
    app = launch("llava-hf/llava-1.5-7b-hf", dtype="bfloat16", device_map="auto")
    app.url                                        # http://127.0.0.1:7860/
    app.close()

On the command line: ``llava-probe app --model ...``. The model lives in a process of its own (``worker.py``,
``process.py``), every request passes one door (``gate.py``), and what users send and get lies in a private folder that
goes away with the app (``store.py``). gradio arranges the page (``screen.py``); the photograph, the answer and the page
component are parts of our own. Needs ``pip install 'llava_probe[app]'``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llava_probe.border import Count, checked

if TYPE_CHECKING:
    from llava_probe.view.app.serve import App

__all__ = ["launch"]


@checked
def launch(
    model: str = "tiny",
    *,
    host: str = "127.0.0.1",
    port: Count | None = None,
    names: Sequence[str] = (),
    users: Mapping[str, str] | None = None,
    megabytes: float = 20.0,
    megapixels: float = 50.0,
    new_tokens: Count = 256,
    **settings: str | bool,
) -> App:
    """Load a model and serve the app until it is closed.

    Args:
        model: as ``lp.load`` takes it.
        host: where to listen; only this machine reaches ``127.0.0.1``.
        port: the first free one from 7860 on when None.
        names: by which it may be called besides, behind a proxy say.
        users: names and passwords; must be given where others can reach it.
        megabytes, megapixels: of an uploaded picture, at most.
        new_tokens: of an answer, at most.
        **settings: of ``lp.load``: ``dtype``, ``device_map``, ``adapter`` ...

    Returns:
        The running app: ``url``, ``close()``, ``wait()``; a context that closes it.

    Raises:
        BadInput: others could reach it without a password, the port is taken, gradio is not installed.
        BadModel: the model cannot be loaded.
    """
    from llava_probe.view.app.serve import start
    from llava_probe.view.app.uploads import UploadLimits

    limits = UploadLimits(megabytes, megapixels, new_tokens)
    return start(model, settings, host=host, port=port, names=names, users=users, limits=limits)
