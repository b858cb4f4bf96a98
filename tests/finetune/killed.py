"""Trains the tiny model in children that are killed, as ``kill -9`` does, and once in peace: run by ``test_killed.py``.

    python -m tests.finetune.killed FOLDER PARTS STEP STEP ...

A child is killed when it has made so many steps in its own life; the next goes on. The last one ends. What was imported
is shared by forking, which is why this is a program of its own: it runs nothing before it forks.
"""

import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import llava_probe as lp
from llava_probe import tiny
from llava_probe.finetune import finetune as room
from llava_probe.finetune import training

PICTURES, KEPT_EVERY = 12, 2


def run(out: Path, parts: str, lives: int | None) -> None:
    """One run; killed at its ``lives``-th step, if any."""
    data = []
    for seed in range(2_000_000, 2_000_000 + PICTURES):
        scene = tiny.scene(seed)
        data += [{"image": scene.image, "question": "What is new?", "answer": scene.objects[0].kind}]
    made, train = 0, room.run

    def watched(*given, tell, **settings):
        def told(known):
            nonlocal made
            tell(known)
            made += 1
            if made == lives:
                os.kill(os.getpid(), signal.SIGKILL)

        return train(*given, tell=told, **settings)

    room.run = watched
    training.KEPT_STEPS = KEPT_EVERY
    lp.finetune(data, "tiny", out, epochs=4, batch_size=4, micro_batch=2, lr=1e-3, held_out=0.1, train=parts)


def child(out: Path, parts: str, lives: int | None) -> int:
    """How a run in a process of its own ended: 0, or the signal."""
    pid = os.fork()
    if not pid:
        try:
            run(out, parts, lives)
            os._exit(0)
        except BaseException as error:
            print(error, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    folder, parts, *steps = sys.argv[1:]
    print(child(Path(folder) / "in_peace", parts, None))
    lives = [*map(int, steps), None]
    print(*(child(Path(folder) / "killed", parts, each) for each in lives))
