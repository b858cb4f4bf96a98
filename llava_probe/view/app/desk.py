"""What the app does for its users, without a word of how it looks: pictures, questions, answers, exports.

``screen.py`` calls it from gradio's events and ``routes.py`` from the app's own routes. All of it runs in one event
loop; what takes time happens in threads or in the model's process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from llava_probe import tiny
from llava_probe.errors import BadFile, BadInput, ProbeError
from llava_probe.pictures.images import fingerprint
from llava_probe.view.app.code import code
from llava_probe.view.app.exports import NAMES
from llava_probe.view.app.messages import AnswerSettings, Ask, Done, Export, Failed, MarkedPart
from llava_probe.view.app.runs import PICTURE, PLAIN_TRACE, TRACE, AskedRun, write_run_told
from llava_probe.view.app.store import Belonging, Store
from llava_probe.view.app.uploads import Upload, UploadLimits, as_jpeg, opened_upload
from llava_probe.view.app.worker import Heard, Worker

#: Scenes of the tiny model that are offered as examples: those with a stop sign first.
EXAMPLES = (34, 17, 10, 6, 27, 15)
#: Jobs of one browser that may wait or run at once.
_MOST_AT_ONCE = 3
#: Letters of a question.
LONGEST_QUESTION = 4000


@dataclass(frozen=True)
class Answered:
    """A job that ended well, and the run that shows it."""

    run: str
    done: Done


class Desk:
    """The app's work.

    Args:
        worker: answers; ``store``: keeps; ``limits``: of what comes in.
        model, loaded: what the worker was made with, for the scripts.
    """

    def __init__(
        self, worker: Worker, store: Store, limits: UploadLimits, model: str, loaded: dict[str, str | bool]
    ) -> None:
        self.worker, self.store, self.limits = worker, store, limits
        self._model, self._loaded = model, loaded
        self._busy: dict[str, str] = {}  # jobs, and whose they are
        self._opening = asyncio.Semaphore(1)  # one picture is decoded at a time
        self._exporting: dict[str, asyncio.Lock] = {}

    # --- pictures ---

    async def upload(self, owner: str, data: bytes) -> Belonging:
        """Keep a picture.

        Raises:
            BadImage: it is none, or too large.
        """
        async with self._opening:
            found = await asyncio.to_thread(opened_upload, data, self.limits)
        return self._keep(owner, data, found)

    async def example(self, owner: str, number: int) -> Belonging:
        """Keep one of the examples, as if it had been uploaded.

        Raises:
            BadInput: there is no such example.
        """
        if number not in EXAMPLES:
            raise BadInput(f"there is no example {number}")
        import io

        file = io.BytesIO()
        picture = tiny.scene(number).image
        picture.save(file, "PNG")
        found = Upload("PNG", picture.size, fingerprint(picture), as_jpeg(picture))
        return self._keep(owner, file.getvalue(), found)

    def _keep(self, owner: str, data: bytes, found: Upload) -> Belonging:
        item = self.store.new(owner, "picture")
        with self.store.reading(item):
            (item.folder / PICTURE).write_bytes(data)
            (item.folder / "preview").write_bytes(found.preview)
            item.about = found
        self.store.tidy()
        return item

    @cached_property
    def examples(self) -> list[dict[str, object]]:
        """What the page shows of each: its number, and a question of each of some kinds."""
        return [{"number": number, "questions": _questions(number)} for number in EXAMPLES]

    # --- questions ---

    async def ask(
        self, owner: str, job: str, picture: object, question: str, settings: AnswerSettings
    ) -> AsyncIterator[Heard | Answered]:
        """Ask about a picture: where the question stands, the words as they come, and the run that it left.

        Args:
            owner: whose browser; ``job``: the name under which it may be stopped.
            picture: the token of a picture.
            question, settings: what is asked, and how.

        Raises:
            BadInput: no picture, no question, or too many at once.
        """
        if not picture:
            raise BadInput("choose a picture first")
        question = _read_question(question)
        source = self.store.get(owner, picture, "picture")
        found: Upload = source.about
        run = AskedRun(self._model, self._loaded, question, settings, found.format, found.digest)
        with self.store.reading(source):
            async for told in self._run(owner, job, run, {PICTURE: source.folder / PICTURE}):
                yield told

    async def ask_again(self, owner: str, job: str, run: object, cut: MarkedPart) -> AsyncIterator[Heard | Answered]:
        """Ask the same under a cut, beside the plain answer.

        Raises:
            BadInput: the run is not kept any more, or too many at once.
        """
        source = self.store.get(owner, run, "run")
        before: AskedRun = source.about
        again = msgspec.structs.replace(before, cut=cut)
        files = {PICTURE: source.folder / PICTURE, PLAIN_TRACE: before.traces(source.folder)[0]}
        with self.store.reading(source):
            async for told in self._run(owner, job, again, files):
                yield told

    def stop(self, owner: str, job: object) -> None:
        """End one of the owner's jobs."""
        if isinstance(job, str) and self._busy.get(job) == owner:
            self.worker.stop(job)

    async def _run(
        self, owner: str, job: str, run: AskedRun, files: dict[str, Path]
    ) -> AsyncIterator[Heard | Answered]:
        if sum(each == owner for each in self._busy.values()) >= _MOST_AT_ONCE:
            raise BadInput(f"{_MOST_AT_ONCE} of your questions are being answered already; wait for one, or stop it")
        item = self.store.new(owner, "run")
        self._busy[job] = owner
        told: Heard | None = None
        try:
            with self.store.reading(item):
                for name, source in files.items():
                    _linked(source, item.folder / name)
                asked = Ask(job, str(item.folder), run.question, run.settings, run.cut)
                async with contextlib.aclosing(self.worker.do(asked)) as told_by_one:
                    async for told in told_by_one:
                        if not isinstance(told, Done):
                            yield told
                if isinstance(told, Done):
                    item.about = _as_it_was(run, told)
                    write_run_told(item.about, item.folder)
                    (item.folder / NAMES["code"][0]).write_text(code(item.about), encoding="utf-8")
        finally:
            self._busy.pop(job, None)
            if not isinstance(told, Done):
                self.store.drop(item)
            self.store.tidy()
        if isinstance(told, Done):
            yield Answered(item.token, told)

    # --- exports ---

    async def export(self, owner: str, token: str, kind: str) -> tuple[Belonging, Path]:
        """A file of a run, made where it is not there yet.

        Raises:
            BadInput: there is no such kind, or the run is not kept any more.
            ProbeError: it could not be made; the sentence says why.
        """
        if kind not in NAMES:
            raise BadInput(f"there is no export {kind!r}")
        item = self.store.get(owner, token, "run")
        path = item.folder / (TRACE if kind == "trace" else NAMES[kind][0])
        lock = self._exporting.setdefault(f"{token}/{kind}", asyncio.Lock())
        try:
            with self.store.reading(item):
                async with lock:
                    if not path.exists():
                        await self._exported(Export(secrets.token_hex(8), str(item.folder), kind))  # type: ignore[arg-type]
        finally:
            self._exporting.pop(f"{token}/{kind}", None)
            self.store.tidy()
        return item, path

    async def _exported(self, job: Export) -> None:
        async for told in self.worker.do(job):
            if isinstance(told, Failed):
                raise ProbeError(told.sentence)


def _questions(number: int, most: int = 4) -> list[str]:
    """One of each kind, what is written on a sign first."""
    of_kind = {question.kind: question.question for question in tiny.scene(number).questions}
    return sorted(of_kind.values(), key=lambda question: "text" not in question)[:most]


def _read_question(question: object) -> str:
    if not isinstance(question, str) or not question.strip():
        raise BadInput("type a question first")
    if len(question) > LONGEST_QUESTION:
        raise BadInput(f"the question has {len(question):,} letters; up to {LONGEST_QUESTION:,} are taken")
    return question.strip()


def _as_it_was(run: AskedRun, done: Done) -> AskedRun:
    """A run that was stopped is that of an answer of so many tokens."""
    if done.ended != "stopped" or not done.tokens:
        return run
    settings = msgspec.structs.replace(run.settings, max_new_tokens=done.tokens)
    return msgspec.structs.replace(run, settings=settings)


def _linked(source: Path, target: Path) -> None:
    """The same file in another folder, which stays when the first goes."""
    try:
        os.link(source, target)
    except FileNotFoundError as error:
        raise BadFile("the files of this answer are gone; ask again") from error
    except OSError:
        shutil.copyfile(source, target)
