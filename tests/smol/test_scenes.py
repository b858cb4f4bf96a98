"""The second model's training data are scenes of its own, asked evenly."""

import json
from collections import Counter
from pathlib import Path

from PIL import Image

from llava_probe import tiny
from llava_probe.smol.making import scenes
from llava_probe.tiny.plan import plan
from llava_probe.tiny.questions import KINDS


def test_rows_are_true_of_their_scenes_and_no_scene_is_held_out(tmp_path):
    rows = [json.loads(line) for line in scenes.write_scenes("questions", 12, tmp_path).read_text().splitlines()]
    assert {row["kind"] for row in rows} <= set(KINDS)
    for row in rows:
        seed = int(row["image"].removeprefix("questions/").removesuffix(".png"))
        assert seed >= tiny.FIRST_TRAINING_SEED
        assert Image.open(tmp_path / row["image"]).size == (112, 112)
        if row["kind"] == "exists" and row["answer"] == "yes":
            assert any(item.kind in row["question"] and item.colour in row["question"] for item in plan(seed)) or (
                "stop sign" in row["question"]
            )
    said = Counter(row["answer"] for row in rows if row["kind"] == "exists")
    alone = sum(len(plan(int(Path(image).stem))) == 1 for image in {row["image"] for row in rows})
    assert abs(said["yes"] - said["no"]) <= alone, "of a scene with one object there is one yes"


def test_a_caption_says_all_that_is_there(tmp_path):
    rows = [json.loads(line) for line in scenes.write_scenes("captions", 6, tmp_path).read_text().splitlines()]
    assert len(rows) == 6
    for row in rows:
        items = plan(int(row["image"].removeprefix("captions/").removesuffix(".png")))
        assert row["answer"].count("There is") == len(items)
        assert all(item.kind in row["answer"] for item in items)
