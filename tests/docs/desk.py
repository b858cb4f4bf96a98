"""What a reader of a page has at hand: pictures, data sets in their authors' form, models by their names.

``lay(folder)`` puts the files there; ``names(page)`` are what a page speaks of without making it; ``stand_ins()`` gives
small models of the same family for the hub's names, and one tiny model for every ``lp.load()``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import llava_probe as lp
from llava_probe import tiny
from tests import zoo

#: Families for the names of the hub that pages load.
FAMILIES = {"llava-hf/llava-v1.6-mistral-7b-hf": "llava_next", "Qwen/Qwen2-VL-2B-Instruct": "qwen2_vl"}

SIGN = "What is the text on the stop sign?"
SHAPES = ["star", "circle"]


@contextmanager
def stand_ins(vlm: lp.VLM) -> Iterator[None]:
    """``lp.load`` gives ``vlm`` for no name, and a small random model of its family for a name of the hub.

    A page that changes the model loads one of its own, ``lp.load("tiny")``: PEFT puts its layers into what it is given.
    """
    load = lp.load

    def loaded(name: str | None = None, **settings: Any) -> lp.VLM:
        if name is None and not settings:
            return vlm
        return zoo.vlm(FAMILIES[name]) if name in FAMILIES else load(name, **settings)

    with mock.patch.object(lp, "load", loaded):
        yield


def lay(folder: Path) -> None:
    """Pictures under the names that pages use, and small data sets in the form of the public ones."""
    scene = tiny.scene(34).image
    scene.save(folder / "scene.png")
    pair = tiny.counterfactual(6, change="colour")
    pair.clean.image.save(folder / "a.png")
    pair.corrupt.image.save(folder / "b.png")
    for pictures in ("val2014", "val2017", "train2017", "img"):
        (folder / pictures).mkdir()
        for number in (1, 2):
            scene.save(folder / pictures / f"{number}.png")
            scene.save(folder / pictures / f"COCO_val2014_{number:012}.jpg")
    asked = [{"image": f"{name}.png", "question": "What colour is the cross?"} for name in ("a", "b")]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")
    things = [thing for seed in range(9) for thing in tiny.scene(seed).objects]
    captions = [f"A picture of {thing.colour} things: a {thing.kind}." for thing in things]
    (folder / "captions.txt").write_text("\n".join(captions), encoding="utf-8")
    for name, whole in _data_sets(scene.size).items():
        (folder / name).write_text(whole, encoding="utf-8")


def names(page: str, vlm: lp.VLM) -> dict[str, Any]:
    """What a page takes for granted."""
    told: dict[str, Any] = {"lp": lp, "tiny": tiny, "vlm": vlm}
    if page == "README.md":
        question = "What colour is the cross?"
        told |= {"direction": lp.Direction.of_word(vlm, "red"), "samples": [("a.png", question)]}
        told |= {"base": vlm, "taught": lp.load("tiny")}
        told |= {when: vlm.generate(tiny.scene(34).image, ask) for when, ask in (("before", SIGN), ("after", question))}
        told |= {"captions": {1: "A dog and a cat."}, "confidence": [0.9, 0.8, 0.6, 0.7], "correct": [1, 1, 0, 1]}
        told["described"] = [vlm.generate(tiny.scene(n).image, "Describe the image.") for n in (0, 3)]
        told["made_up"] = [
            [bool(n)] * len(lp.hallucination(vlm, each, SHAPES)) for n, each in enumerate(told["described"])
        ]
        told["traces"] = [vlm.generate(tiny.scene(n).image, SIGN) for n in (34, 35)]
        told["rows"] = [
            {"image": tiny.scene(n).image, "question": SIGN, "colour": tiny.scene(n).objects[0].colour}
            for n in range(6)
        ]
    if page in ("README.md", "docs/guides/interventions.md"):
        told["run"] = lambda: vlm.generate("scene.png", SIGN, max_new_tokens=1)
    return told


def _data_sets(size: tuple[int, int]) -> dict[str, str]:
    asked = [{"image_id": n, "question": "What colour is the star?", "question_id": n} for n in (1, 2)]
    answered = [{"question_id": n, "image_id": n, "multiple_choice_answer": "red", "answers": []} for n in (1, 2)]
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "star"}]
    lines = [{"question_id": n, "image": f"{n}.png", "text": "Is there a star?", "label": "yes"} for n in (1, 2)]
    square = [[40, 30, 90, 30, 90, 100, 40, 100]]
    instances = {
        "images": [{"id": 1, "file_name": "1.png", "width": size[0], "height": size[1]}],
        "annotations": [
            {"id": 5, "image_id": 1, "category_id": 9, "bbox": [40, 30, 50, 70], "iscrowd": 0, "segmentation": square}
        ],
        "categories": [{"id": 9, "name": "star"}],
    }
    there = {**instances, "categories": [{"id": 9, "name": "dog"}]}
    return {
        "instances_val2014.json": json.dumps(there),
        "v2_OpenEnded_mscoco_val2014_questions.json": json.dumps({"questions": asked}),
        "v2_mscoco_val2014_annotations.json": json.dumps({"annotations": answered}),
        "coco_pope_random.json": "\n".join(map(json.dumps, lines)),
        "instances_val2017.json": json.dumps(instances),
        "llava_instruct_150k.json": json.dumps([{"id": "a", "image": "1.png", "conversations": turns}]),
        "train.jsonl": json.dumps({"id": 1, "img": "img/1.png", "label": 0, "text": "a star"}),
    }
