"""The smol model's training data: pictures in a folder and rows of questions about them, for ``llava-probe finetune``.

    python -m llava_probe.smol.making.scenes captions --pictures 1000 --out build/smol
    python -m llava_probe.smol.making.scenes questions --pictures 6000 --out build/smol

Captions say all that is there; questions are of every kind, the harder ones more. No scene was drawn for the tiny
model's training, and none is held out.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from llava_probe.stored import whole
from llava_probe.tiny import drawing
from llava_probe.tiny.plan import Item, plan
from llava_probe.tiny.questions import KINDS, Question, all_questions, vary

#: The seeds of each set start here.
FIRST_SEEDS = {"captions": 2_000_000_000, "questions": 1_000_000_000}

#: How many questions of a kind a picture asks, on average.
_WANTED = {
    "colour": 2.5, "shape": 2.5, "exists": 4.0, "count": 2.0,
    "where": 2.5, "text": 1.0, "relation": 2.0, "describe": 0.4,
}  # fmt: skip

#: What a caption answers.
_CAPTION = "Describe the image."


def write_scenes(what: str, pictures: int, out: Path) -> Path:
    """Draw so many scenes into ``out/what/`` and write their rows to ``out/what.jsonl``; the path of the rows."""
    folder, rows = out / what, out / f"{what}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with whole("data set", rows) as part, part.open("w") as file:
        for seed in range(FIRST_SEEDS[what], FIRST_SEEDS[what] + pictures):
            items = plan(seed)
            pixels, _ = drawing.draw(items, seed, scale=1)  # as the model sees it: a tenth of the bytes
            Image.fromarray(pixels).save(folder / f"{seed}.png")
            for asked in _captions(items) if what == "captions" else _questions(items, seed):
                row = {"image": f"{what}/{seed}.png", "question": asked.question, "answer": asked.answer}
                file.write(json.dumps({**row, "kind": asked.kind}) + "\n")
    return rows


def _captions(items: tuple[Item, ...]) -> Iterator[Question]:
    yield from (asked for asked in all_questions(items, random.Random(0)) if asked.question == _CAPTION)


def _questions(items: tuple[Item, ...], seed: int) -> Iterator[Question]:
    """Some of a scene's questions, as many "yes" as "no"."""
    rng = random.Random(f"smol {seed}")
    asked = all_questions(items, rng)
    for kind in KINDS:
        of_kind = [question for question in asked if question.kind == kind]
        wanted = int(_WANTED[kind] + rng.random())
        if kind == "exists":
            sides = [[question for question in of_kind if question.answer == answer] for answer in ("yes", "no")]
            of_kind = [one for side in sides for one in rng.sample(side, min(len(side), wanted // 2))]
        for question in rng.sample(of_kind, min(wanted, len(of_kind))):
            yield Question(kind, vary(question, rng), question.answer, question.objects)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=sorted(FIRST_SEEDS))
    parser.add_argument("--pictures", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    options = parser.parse_args()
    print(write_scenes(options.what, options.pictures, options.out))
