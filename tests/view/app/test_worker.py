"""The queue before the model's process: places, stopping, and what is told when the process dies.

The truth is a process of our own making, which does what a question says.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from llava_probe.errors import BadInput, BadModel
from llava_probe.view.app import worker as module
from llava_probe.view.app.messages import AnswerSettings, Ask, Done, Failed, Said
from llava_probe.view.app.worker import Waiting, Worker
from tests.view.app.in_a_thread import run_apart

FAKE = (sys.executable, str(Path(__file__).parent / "fake_process.py"))


def asked(id, question):
    return Ask(id, "nowhere", question, AnswerSettings())


async def all_told(worker, job):
    return [told async for told in worker.do(job)]


def run(scenario, name="model"):
    async def whole():
        worker = Worker(name, {}, FAKE)
        try:
            await worker.start()
            return await asyncio.wait_for(scenario(worker), 60)
        finally:
            await worker.close()
            assert worker.pid is None

    return run_apart(whole())


def test_each_gets_its_own_answer_in_the_order_of_asking():
    async def scenario(worker):
        return await asyncio.gather(*(all_told(worker, asked(str(n), f"word {n}")) for n in range(5)))

    told = run(scenario)
    assert [each[-1] for each in told] == [Done(str(n), f"WORD {n}") for n in range(5)]
    assert [each[0] for each in told] == [Waiting(n) for n in range(5)]


def test_who_waits_hears_how_many_come_before():
    async def scenario(worker):
        long = asyncio.create_task(all_told(worker, asked("a", "go on")))
        while worker._current is None:
            await asyncio.sleep(0.01)
        waits = [asyncio.create_task(all_told(worker, asked(name, name))) for name in "bc"]
        await asyncio.sleep(0)
        worker.stop("a")
        return [await long, *[await each for each in waits]]

    long, first, second = run(scenario)
    assert long[-1] == Done("a", "go", ended="stopped")
    assert first[0] == Waiting(1) and second[0] == Waiting(2)
    assert Waiting(1) in second or Waiting(0) in second  # it moved up
    assert (first[-1], second[-1]) == (Done("b", "B"), Done("c", "C"))


def test_a_process_that_dies_fails_its_question_and_no_other():
    async def scenario(worker):
        first, second = await asyncio.gather(all_told(worker, asked("a", "die")), all_told(worker, asked("b", "hello")))
        return first, second, worker.starts

    first, second, starts = run(scenario)
    assert isinstance(first[-1], Failed) and "SIGKILL" in first[-1].sentence and "ask again" in first[-1].sentence
    assert second[-1] == Done("b", "HELLO")
    assert starts == 2


def test_a_process_that_dies_while_nobody_asks_is_started_anew():
    async def scenario(worker):
        worker._kill()
        while worker.starts < 2 or not worker.ready:
            await asyncio.sleep(0.01)
        return await all_told(worker, asked("a", "hello"))

    assert run(scenario)[-1] == Done("a", "HELLO")


def test_an_answer_that_does_not_stop_ends_with_its_process(monkeypatch):
    monkeypatch.setattr(module, "STOPS_WITHIN", 0.1)

    async def scenario(worker):
        hung = asyncio.create_task(all_told(worker, asked("a", "hang")))
        while worker._current is None:
            await asyncio.sleep(0.01)
        worker.stop("a")
        return await hung, await all_told(worker, asked("b", "hello"))

    hung, after = run(scenario)
    assert isinstance(hung[-1], Failed) and "did not stop" in hung[-1].sentence
    assert after[-1] == Done("b", "HELLO")


def test_who_goes_gives_up_its_place_and_ends_its_answer():
    async def scenario(worker):
        running = worker.do(asked("a", "go on"))
        async for told in running:
            if isinstance(told, Said) and told.text:
                break
        waiting = worker.do(asked("b", "b"))
        await anext(waiting)
        await waiting.aclose()
        assert not worker._waiting
        await running.aclose()
        return await all_told(worker, asked("c", "hello"))

    assert run(scenario)[-1] == Done("c", "HELLO")


def test_a_model_that_cannot_be_loaded_is_told():
    async def scenario(worker):
        raise AssertionError("it started")

    with pytest.raises(BadModel, match="there is no such model"):
        run(scenario, "broken")


def test_a_flood_is_told_at_the_door(monkeypatch):
    monkeypatch.setattr(module, "MOST_WAITING", 2)

    async def scenario(worker):
        others = [asyncio.create_task(all_told(worker, asked("a", "go on")))]
        while worker._current is None:
            await asyncio.sleep(0.01)
        others += [asyncio.create_task(all_told(worker, asked(name, "go on"))) for name in "bc"]
        while len(worker._waiting) < 2:
            await asyncio.sleep(0.01)
        try:
            with pytest.raises(BadInput, match="2 questions are waiting already"):
                await all_told(worker, asked("d", "hello"))
        finally:
            for name in "cba":
                worker.stop(name)
        return await asyncio.gather(*others)

    assert [type(each[-1]) for each in run(scenario)] == [Done, Failed, Failed]


def test_a_failure_of_ours_is_its_sentence():
    async def scenario(worker):
        return await all_told(worker, asked("a", "fail"))

    assert run(scenario)[-1] == Failed("a", "it did not go well")
