"""The model behind the app: one process of its own, a queue before it, and somebody who notices when it dies.

    worker = Worker("llava-hf/llava-1.5-7b-hf", {"dtype": "bfloat16"})
    async for told in worker.do(job):       # Waiting(2) ... Said("A dog") ... Done(...) or Failed("...")
        ...

One question is answered at a time; each that waits hears at which place it stands. Whoever stops listening gives up its
place, or ends its answer at the next token. A process that dies fails the job it was at, in a sentence, and is started
anew for the next; one that does not react to being stopped is ended.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from llava_probe.errors import BadInput, BadModel
from llava_probe.view.app.messages import (
    LENGTH,
    LONGEST_FRAME,
    Done,
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
    from_process,
)

#: How the process is started.
COMMAND = (sys.executable, "-m", "llava_probe.view.app.process")
#: Jobs that may wait at once, so that a flood of them is told at the door.
MOST_WAITING = 64
#: Seconds in which an answer that was stopped must end.
STOPS_WITHIN = 30.0
#: Seconds between two signs to who waits: that is when a listener that has gone is noticed.
_TICK = 1.0
#: Seconds in which a process that was asked to leave does.
_LEAVING = 5.0


@dataclass(frozen=True)
class Waiting:
    """The job waits: ``place`` 0 is next; ``starting``: for the model to be loaded."""

    place: int
    starting: bool = False


Heard = Waiting | Said | Done | Failed


@dataclass(eq=False)
class _Ticket:
    """One job and who listens to it."""

    job: Job
    told: asyncio.Queue[Heard] = field(default_factory=asyncio.Queue)
    stopped: bool = False


class Worker:
    """One model in one process, and the jobs that wait for it. Made and used inside one event loop.

    Args:
        name, settings: of the model, as for ``lp.load``.
        command: how the process is started.

    Attributes:
        starts: how often it was started.
    """

    def __init__(self, name: str, settings: dict[str, str | bool], command: Sequence[str] = COMMAND) -> None:
        self._load, self._command = Load(name, settings), tuple(command)
        self._waiting: list[_Ticket] = []
        self._current: _Ticket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._ready = False
        self._some = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None
        self._later: set[asyncio.Task[None]] = set()
        self.starts = 0

    async def start(self) -> str:
        """Load the model; what it is, in a line.

        Raises:
            BadModel: it cannot be loaded; the sentence says why.
        """
        told = await self._started()
        self._serving = asyncio.create_task(self._serve())
        return told

    async def close(self) -> None:
        """End the process and tell those who wait."""
        if self._serving is not None:
            self._serving.cancel()
            with suppress(asyncio.CancelledError):
                await self._serving
        for ticket in [*self._waiting, *([self._current] if self._current else [])]:
            ticket.told.put_nowait(Failed(ticket.job.id, "The app was closed."))
        await self._end()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    @property
    def pid(self) -> int | None:
        """Of the process, where one runs."""
        return None if self._process is None else self._process.pid

    async def do(self, job: Job) -> AsyncGenerator[Heard, None]:
        """What becomes of a job, until ``Done`` or ``Failed``; the same is told again each second for a sign of life.

        Raises:
            BadInput: too many wait already.
        """
        if len(self._waiting) >= MOST_WAITING:
            raise BadInput(f"{MOST_WAITING} questions are waiting already; ask again in a while")
        ticket = _Ticket(job)
        self._waiting.append(ticket)
        self._tell_places()
        self._some.set()
        told: Heard = Waiting(self._place(ticket), not self.ready)
        try:
            yield told
            while not isinstance(told, Done | Failed):
                with suppress(TimeoutError):
                    told = await asyncio.wait_for(ticket.told.get(), _TICK)
                    while not ticket.told.empty() and not isinstance(told, Done | Failed):
                        told = ticket.told.get_nowait()  # who reads slowly reads the newest
                yield told
        finally:
            if not isinstance(told, Done | Failed):
                self.stop(job.id)

    def stop(self, id: str) -> None:
        """End a job: one that waits leaves the queue, an answer ends at its next token with what was said so far."""
        for ticket in list(self._waiting):
            if ticket.job.id == id:
                self._waiting.remove(ticket)
                ticket.told.put_nowait(Failed(id, "Stopped before it was its turn."))
                self._tell_places()
        current = self._current
        if current is not None and current.job.id == id and not current.stopped:
            current.stopped = True
            self._in_background(self._stop(current))

    # --- details ---

    async def _serve(self) -> None:
        """One job after another, for ever; a process that is gone is started anew without being asked."""
        while True:
            broken = ""
            if not self.ready:
                try:
                    await self._started()
                except BadModel as error:
                    broken = str(error)
            await self._somebody(or_gone=not broken)
            if broken and self._waiting:
                ticket = self._waiting.pop(0)
                ticket.told.put_nowait(Failed(ticket.job.id, broken))
            elif self.ready and self._waiting:
                ticket = self._current = self._waiting.pop(0)
                ticket.told.put_nowait(Said(ticket.job.id, ""))
                self._tell_places()
                await self._answered(ticket)
                self._current = None

    async def _somebody(self, *, or_gone: bool) -> None:
        """Wait until somebody waits, or the process is gone."""
        while not self._waiting:
            self._some.clear()
            signs: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._some.wait())]
            if or_gone and self._process is not None:
                signs.append(asyncio.ensure_future(self._process.wait()))
            try:
                await asyncio.wait(signs, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for sign in signs:
                    sign.cancel()
            if or_gone and not self.ready:
                return

    @property
    def ready(self) -> bool:
        """Whether the model stands and the process runs."""
        return self._ready and self._process is not None and self._process.returncode is None

    async def _answered(self, ticket: _Ticket) -> None:
        """Hand a job to the process and pass on what it says, or what became of it."""
        id = ticket.job.id
        try:
            await self._say(ticket.job)
            while True:
                message = await self._hear()
                if message is None:
                    raise ConnectionError
                if isinstance(message, Said | Done | Failed) and message.id == id:
                    ticket.told.put_nowait(message)
                    if not isinstance(message, Said):
                        return
        except OSError:
            status = await self._end()
            ticket.told.put_nowait(Failed(id, _died(status, ticket.stopped)))

    async def _started(self) -> str:
        await self._end()
        self.starts += 1
        self._tell_places()
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C ends the app, which ends this
        )
        try:
            await self._say(self._load)
            message = await self._hear()
        except OSError:
            message = None
        if not isinstance(message, Ready):
            status = await self._end()
            raise BadModel(message.sentence if isinstance(message, NotLoaded) else _died(status, stopped=False))
        self._ready = True
        self._tell_places()
        return message.told

    async def _stop(self, ticket: _Ticket) -> None:
        with suppress(OSError):
            await self._say(Stop(ticket.job.id))
        await asyncio.sleep(STOPS_WITHIN)
        if self._current is ticket:
            self._kill()

    async def _say(self, message: ToProcess) -> None:
        if self._process is None or self._process.stdin is None:
            raise ConnectionError
        self._process.stdin.write(framed(message))
        await self._process.stdin.drain()

    async def _hear(self) -> FromProcess | None:
        """The next message; None where the process is gone."""
        process = self._process
        if process is None or process.stdout is None:
            return None
        try:
            length = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))[0]
            return from_process.decode(await process.stdout.readexactly(length)) if length <= LONGEST_FRAME else None
        except asyncio.IncompleteReadError:
            return None

    async def _end(self) -> int | None:
        """No process from now on; the status with which it ended."""
        process, self._process, self._ready = self._process, None, False
        if process is None:
            return None
        if process.stdin is not None:
            process.stdin.close()  # which it takes for its end
        try:
            return await asyncio.wait_for(process.wait(), _LEAVING)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            return await process.wait()

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    def _place(self, ticket: _Ticket) -> int:
        """How many come before it."""
        return self._waiting.index(ticket) + (self._current is not None)

    def _tell_places(self) -> None:
        for ticket in self._waiting:
            ticket.told.put_nowait(Waiting(self._place(ticket), not self.ready))

    def _in_background(self, doing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(doing)
        self._later.add(task)
        task.add_done_callback(self._later.discard)


def _died(status: int | None, stopped: bool) -> str:
    """What is said of a process that ended by itself."""
    if stopped:
        return "The answer did not stop, so the model's process was ended; it is started anew, ask again."
    how = f"with status {status}"
    if status is not None and status < 0:
        how = f"by {signal.Signals(-status).name}" if -status in list(signal.Signals) else f"by signal {-status}"
    hint = " (often: the machine had no memory left)" if status == -signal.SIGKILL else ""
    return f"The model's process ended {how}{hint}. It is started anew; ask again."
