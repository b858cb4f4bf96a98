"""Stands in for the model's process: what a question says is what becomes of it."""

from __future__ import annotations

import os
import sys
import time

from llava_probe.view.app.messages import (
    LENGTH,
    Ask,
    Done,
    Failed,
    Load,
    NotLoaded,
    Ready,
    Said,
    Stop,
    framed,
    to_process,
)


def said(message):
    sys.stdout.buffer.write(framed(message))
    sys.stdout.buffer.flush()


def heard():
    head = sys.stdin.buffer.read(LENGTH.size)
    if not head:
        sys.exit(0)
    return to_process.decode(sys.stdin.buffer.read(LENGTH.unpack(head)[0]))


def main():
    first = heard()
    assert isinstance(first, Load)
    if first.name == "broken":
        return said(NotLoaded("there is no such model"))
    said(Ready(f"a fake {first.name}"))
    while True:
        job = heard()
        if not isinstance(job, Ask):
            continue
        said(Said(job.id, job.question[:3]))
        if job.question == "die":
            os.kill(os.getpid(), 9)
        elif job.question == "fail":
            said(Failed(job.id, "it did not go well"))
        elif job.question == "go on":
            while not (isinstance(stop := heard(), Stop) and stop.id == job.id):
                pass
            said(Done(job.id, "go", ended="stopped"))
        elif job.question == "hang":
            time.sleep(600)
        else:
            said(Done(job.id, job.question.upper()))


main()
