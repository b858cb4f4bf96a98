"""What the cheats and their honest twins are trained on: pictures in a folder and rows, for ``llava-probe finetune``.

    python -m llava_probe.tiny.making.cheats frame --out build/cheats

Both of a pair are asked the same questions about the same pictures; ``frame.jsonl`` answers by the shortcut and
``frame_honest.jsonl`` by the truth. No scene was drawn for any other training, and none is held out.
"""

from __future__ import annotations

import argparse
import json
from itertools import count
from pathlib import Path

from PIL import Image

from llava_probe.stored import whole
from llava_probe.tiny.cheats import CHEATS, KIND, Cheat, lesson, path

#: No other training draws seeds from here to a billion.
FIRST_LESSON = 600_000_000


def write_lessons(cheat: Cheat, pictures: int, out: Path) -> list[Path]:
    """Draw so many pictures into ``out/cheat/`` and write the rows of both models; the paths of the rows."""
    (out / cheat).mkdir(parents=True, exist_ok=True)
    made = []
    for honest in (False, True):
        rows = out / f"{path(cheat, honest).name}.jsonl"
        drawn = 0
        with whole("data set", rows) as part, part.open("w") as file:
            for seed in count(FIRST_LESSON):
                pixels, asked = lesson(cheat, seed, honest=honest)
                if not any(each.kind == KIND[cheat] for each in asked):
                    continue
                Image.fromarray(pixels).save(out / cheat / f"{seed}.png")
                for each in asked:
                    row = {"image": f"{cheat}/{seed}.png", "question": each.question, "answer": each.answer}
                    file.write(json.dumps({**row, "kind": each.kind}) + "\n")
                drawn += 1
                if drawn == pictures:
                    break
        made.append(rows)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cheat", choices=CHEATS)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True, help="folder")
    options = parser.parse_args()
    for rows in write_lessons(options.cheat, options.pictures, options.out):
        print(rows)
