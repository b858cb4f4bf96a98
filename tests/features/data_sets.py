"""Small data sets in all the shapes that a reader may meet."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava_probe.errors import BadInput
from llava_probe.features.columns import OURS
from llava_probe.features.samples import Sample, Samples, read_samples

POPE = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a snowboard in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there a car in the image?", "label": "no"},
    {"question_id": 3, "image": "b.jpg", "text": "Is there a dog in the image?", "label": "no"},
]


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), "red").save(folder / name)
    return folder


def one(row: dict, **options) -> Sample:
    """The sample of one row, which need not have a picture."""
    if not row.keys() & set(OURS["image"]):
        options["columns"] = {"image": None, **options.get("columns", {})}
    (sample,) = read_samples([row], **options)
    return sample


def refusal(source: Any, **options) -> str:
    with pytest.raises(BadInput) as caught:
        read_samples(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def seen(samples: Samples) -> list[tuple]:
    return [(s.row, s.id, s.image, s.question, s.answer, dict(s.columns), s.fault) for s in samples]
