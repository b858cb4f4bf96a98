"""One answer as a folder that holds all of it, so that who makes an export needs nothing else.

Beside ``picture``, what was uploaded byte for byte, lie the ``payload`` of the page component, ``run.json``, how it was
asked, and ``run.trace``: of the answer that was asked for last. Under a cut that is the one without the part, and
``plain.trace`` is the other, of the model as it is.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from llava_probe.stored import read_json, write_text
from llava_probe.view.app.messages import AnswerSettings, MarkedPart

PICTURE, TRACE, PLAIN_TRACE, PAYLOAD, TOLD = "picture", "run.trace", "plain.trace", "payload", "run.json"


class AskedRun(msgspec.Struct, frozen=True):
    """One answer.

    Attributes:
        model: its name, and ``loaded``, the arguments that it was loaded with.
        format: of the picture: PNG, JPEG ...
        cut: what was taken away.
    """

    model: str
    loaded: dict[str, str | bool]
    question: str
    settings: AnswerSettings
    format: str
    fingerprint: str
    cut: MarkedPart | None = None

    def traces(self, folder: Path) -> tuple[Path, ...]:
        """The traces that are shown: the plain one first."""
        return (folder / TRACE,) if self.cut is None else (folder / PLAIN_TRACE, folder / TRACE)


def write_run_told(run: AskedRun, folder: Path) -> None:
    """Keep it in its folder."""
    write_text("run", folder / TOLD, msgspec.json.encode(run).decode())


def read_run(folder: Path) -> AskedRun:
    """What was kept there.

    Raises:
        BadFile: it is gone or damaged.
    """
    return read_json("run", folder / TOLD, AskedRun)
