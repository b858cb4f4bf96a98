"""The app under load: memory, temporary files and time over many questions, by two users at once, without a browser.

    python benchmarks/app.py                 # 200 questions; figures after ten and after all
    python benchmarks/app.py --questions 20

Each question is a new picture, asked as the page asks it (through the app's work, its store and the model's process);
every fourth is asked again without a part, and its page is saved. Memory is the resident size of the app's process and
of the model's, after a collection; files are those in the app's folder. The system's own temporary folder is counted
before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import tempfile
import time
from pathlib import Path

from llava_probe.view.app.messages import AnswerSettings, MarkedPart

SIGN = "What is the text on the stop sign?"
#: After so many the first look is taken.
FIRST_LOOK = 10
USERS = ("ann", "bob")


def resident(pid: int) -> float:
    """Megabytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    return float("nan")


def files(folder: Path) -> tuple[int, float]:
    """How many, and megabytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes) / 1e6


async def asked(desk, owner: str, number: int) -> float:
    """One question of one user, from the picture to the answer, in seconds."""
    from llava_probe.view.app.desk import EXAMPLES, Answered

    begun = time.perf_counter()
    picture = await desk.example(owner, EXAMPLES[number % len(EXAMPLES)])
    run = ""
    async for told in desk.ask(owner, f"{owner}{number}", picture.token, SIGN, AnswerSettings()):
        run = told.run if isinstance(told, Answered) else run
    seconds = time.perf_counter() - begun
    assert run, "it was not answered"
    if number % 4 == 0:
        async for told in desk.ask_again(owner, f"{owner}{number}+", run, MarkedPart((20, 20, 120, 120))):
            run = told.run if isinstance(told, Answered) else run
        await desk.export(owner, run, "page")
    return seconds


def look(app, count: int) -> dict[str, float]:
    """Memory and files now."""
    gc.collect()
    number, size = files(app.desk.store.folder)
    return {
        "questions": count,
        "app MB": resident(os.getpid()),
        "model's process MB": resident(app.desk.worker.pid),
        "files": number,
        "their MB": size,
    }


def measured(app, questions: int) -> tuple[list[dict[str, float]], list[float]]:
    """What is there after ten and after all, and the seconds of each question."""
    looks, seconds = [], []
    for done in range(0, questions, len(USERS)):
        seconds += app.in_its_loop(_together(app.desk, done))
        if done + len(USERS) == FIRST_LOOK:
            looks.append(look(app, FIRST_LOOK))
    return [*looks, look(app, len(seconds))], seconds


async def _together(desk, done: int) -> list[float]:
    return await asyncio.gather(*(asked(desk, owner, done + n) for n, owner in enumerate(USERS)))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--questions", type=int, default=200)
    wanted = parser.parse_args().questions
    from llava_probe.view.app import launch

    temporary = set(Path(tempfile.gettempdir()).iterdir())
    with launch() as app:
        looks, seconds = measured(app, wanted)
        folder = app.desk.store.folder
    print(*(f"{name:>20}" for name in looks[0]))
    for each in looks:
        print(*(f"{value:>20,.0f}" for value in each.values()))
    print(f"seconds a question, two users at once: median {statistics.median(seconds):.2f}")
    left = set(Path(tempfile.gettempdir()).iterdir()) - temporary
    print(f"left behind: {len([path for path in left if path == folder])} folders")


if __name__ == "__main__":
    main()
