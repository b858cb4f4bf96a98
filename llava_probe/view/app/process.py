"""The process that holds the model: ``python -m llava_probe.view.app.process``, started by ``worker.py`` alone.

It reads jobs on standard input, does one after another, and writes what comes of them to standard output; whatever else
prints goes to standard error. Each run leaves its files in its own folder: ``run.trace``, ``payload`` and, on demand,
the exports. When the app goes, standard input ends and so does this.
"""

from __future__ import annotations

import gc
import os
import queue
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from llava_probe.errors import ProbeError, first_line
from llava_probe.view.app.messages import (
    LENGTH,
    LONGEST_FRAME,
    Ask,
    Done,
    Export,
    Failed,
    FromProcess,
    Job,
    Load,
    NotLoaded,
    Ready,
    Said,
    Stop,
    ToProcess,
    framed,
    to_process,
)
from llava_probe.view.app.runs import PAYLOAD, PICTURE, PLAIN_TRACE, TRACE

if TYPE_CHECKING:
    from llava_probe.model import VLM
    from llava_probe.trace.trace import Trace

#: Seconds between two looks at an answer that is being made.
_OFTEN = 0.05


def run_process() -> None:
    """Load the model that the first message names and answer until standard input ends."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print is no message
    said = _Said(out)
    source = os.fdopen(0, "rb", buffering=0, closefd=False)
    first = _read(source)
    if not isinstance(first, Load):
        raise SystemExit("the first message names the model")
    stopped: set[str] = set()
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(source, jobs, stopped), daemon=True).start()
    try:
        from llava_probe.loading import load

        settings: dict[str, Any] = {**first.settings}
        vlm = load(first.name, **settings)
    except BaseException as error:
        said(NotLoaded(_sentence(error)))
        return
    said(Ready(repr(vlm)))
    at_work = Jobs(vlm, first, said, stopped)
    while True:
        at_work.do(jobs.get())


def _listen(source: IO[bytes], jobs: queue.SimpleQueue[Job], stopped: set[str]) -> None:
    while (message := _read(source)) is not None:
        if isinstance(message, Stop):
            stopped.add(message.id)
        elif isinstance(message, Ask | Export):
            jobs.put(message)
    os._exit(0)  # nobody is there any more: whatever is being made, nobody waits for it


def _read(source: IO[bytes]) -> ToProcess | None:
    """The next message; None where there will be none."""
    head = _exactly(source, LENGTH.size)
    if head is None or (length := LENGTH.unpack(head)[0]) > LONGEST_FRAME:
        return None
    data = _exactly(source, length)
    return None if data is None else to_process.decode(data)


def _exactly(source: IO[bytes], count: int) -> bytes | None:
    found = b""
    while len(found) < count:
        if not (part := source.read(count - len(found))):
            return None
        found += part
    return found


class _Said:
    """Writes messages, whole, from any thread."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out, self._lock = out, threading.Lock()

    def __call__(self, message: FromProcess) -> None:
        data = memoryview(framed(message))
        with self._lock:
            while data:
                data = data[self._out.write(data) or 0 :]


class Jobs:
    """Does the jobs of one model, one at a time."""

    def __init__(self, vlm: VLM, load: Load, said: _Said, stopped: set[str]) -> None:
        self._vlm, self._load, self._said, self._stopped = vlm, load, said, stopped

    def do(self, job: Job) -> None:
        """One job: its files, and the message that ends it."""
        try:
            self._said(self._ask(job) if isinstance(job, Ask) else self._export(job))
        except BaseException as error:
            self._said(Failed(job.id, _sentence(error)))
            _free(error)
        finally:
            self._stopped.discard(job.id)

    def _ask(self, job: Ask) -> Done:
        from llava_probe.smol import SHIPPED
        from llava_probe.trace.trace import Trace
        from llava_probe.view.page import payload

        folder, begun = Path(job.folder), time.monotonic()
        with _noted() as notes:
            trace = self._asked(job)
        seconds = time.monotonic() - begun
        trace.save(folder / TRACE)
        (folder / PAYLOAD).write_bytes(payload(trace if job.cut is None else [Trace.load(folder / PLAIN_TRACE), trace]))
        ended: Literal["", "stopped", "cut off"] = "cut off" if trace.cut_off else ""
        if job.id in self._stopped:
            ended = "stopped"
        if self._load.name in SHIPPED and not _known(trace):
            notes.append(
                "This model knows only its own drawn scenes (coloured shapes and stop signs); what it says of "
                "anything else means nothing."
            )
        return Done(job.id, trace.answer, len(trace.generated), seconds, ended, notes)

    def _asked(self, job: Ask) -> Trace:
        from llava_probe.interventions.ablate import ablate
        from llava_probe.pictures.images import open_image
        from llava_probe.trace.region import Region
        from llava_probe.view.cutting import cut_tokens

        picture = open_image(Path(job.folder) / PICTURE)
        arguments: dict[str, Any] = {**job.settings.arguments, "stopping_criteria": [self._criterion(job.id)]}
        if arguments.get("num_beams", 1) == 1:  # what beams say is not known before they end
            arguments["streamer"] = _Spoken(self._vlm, job.id, self._said)
        with ExitStack() as stack:
            if job.cut is not None:
                cut, layouts = job.cut, self._vlm.lay_out(picture, job.question)
                region = Region(cut.box, image=cut.image, ring=cut.ring)
                tokens = cut_tokens(region, cut.how, layouts[cut.image])
                stack.enter_context(ablate(self._vlm, tokens=tokens))
            trace = self._vlm.generate(picture, job.question, **arguments)
        return _as_if_asked_plainly(trace)

    def _criterion(self, id: str) -> Any:
        import torch

        def over(ids: Any, scores: Any, **_: Any) -> Any:
            return torch.full((ids.shape[0],), id in self._stopped, dtype=torch.bool, device=ids.device)

        return over

    def _export(self, job: Export) -> Done:
        from llava_probe.view.app.exports import write

        write(Path(job.folder), job.kind)
        return Done(job.id)


class _Spoken:
    """A streamer that tells all that was said so far, not more often than can be read."""

    def __init__(self, vlm: VLM, id: str, said: _Said) -> None:
        self._tokenizer, self._id, self._said = vlm.processor.tokenizer, id, said
        self._ids: list[int] = []
        self._prompt, self._next = True, 0.0

    def put(self, value: Any) -> None:
        """The prompt first, then a token each."""
        if self._prompt:
            self._prompt = False
            return
        self._ids += value.reshape(-1).tolist()
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _OFTEN
            text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
            self._said(Said(self._id, text.rstrip("\N{REPLACEMENT CHARACTER}")))

    def end(self) -> None:
        """``Done`` says the rest."""


def _as_if_asked_plainly(trace: Trace) -> Trace:
    """The trace with a request that anybody can put again: what stopped it early becomes its length."""
    settings = {name: value for name, value in trace.request.generate.items() if name != "stopping_criteria"}
    last = trace.tokens[-1].id if trace.generated else None
    if last not in trace.ends:
        settings["max_new_tokens"] = len(trace.generated)
    return replace(trace, request=replace(trace.request, generate=settings))


def _known(trace: Trace) -> bool:
    from llava_probe.tiny import is_scene

    return all(map(is_scene, trace.images))


@contextmanager
def _noted() -> Iterator[list[str]]:
    """Warnings of ours while this lasts, as sentences."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    for each in caught:
        if "llava_probe" in str(each.filename) and (told := first_line(Warning(str(each.message)))) not in notes:
            notes.append(told)


def _sentence(error: BaseException) -> str:
    """What a user is told: our own sentences as they are, of others what they are and their first line."""
    if isinstance(error, ProbeError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return "There was not enough memory for this: ask for fewer tokens or fewer beams, or send a smaller picture."
    traceback.print_exception(error)
    return f"Something went wrong in the model's process ({type(error).__name__}: {first_line(error)})."


def _free(error: BaseException) -> None:
    """What a run that failed held."""
    error.__traceback__ = None
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    run_process()
