"""A counterfactual scene differs in one object and nowhere else, and its answers are those of the two scenes."""

from __future__ import annotations

import numpy as np
import pytest

import llava_probe as lp
from llava_probe import tiny


def pairs(change, count=6):
    found = []
    for seed in range(300):
        try:
            found.append((seed, tiny.counterfactual(seed, change)))
        except lp.OutOfRange:
            continue
        if len(found) == count:
            return found
    raise AssertionError


@pytest.mark.parametrize("change", ["shape", "colour", "text"])
def test_only_one_object_differs_and_so_do_the_answers(change):
    for seed, pair in pairs(change):
        clean, corrupt = pair.clean, pair.corrupt
        assert np.array_equal(np.asarray(clean.image), np.asarray(tiny.scene(seed).image))
        differing = (np.asarray(clean.image) != np.asarray(corrupt.image)).any(-1)
        assert differing.any() and np.array_equal(differing, pair.mask)
        own = clean.objects[pair.changed].mask | corrupt.objects[pair.changed].mask
        rows, columns = np.nonzero(differing)
        left, top, right, bottom = (
            min(clean.objects[pair.changed].box[0], corrupt.objects[pair.changed].box[0]) - 6,
            min(clean.objects[pair.changed].box[1], corrupt.objects[pair.changed].box[1]) - 6,
            max(clean.objects[pair.changed].box[2], corrupt.objects[pair.changed].box[2]) + 6,
            max(clean.objects[pair.changed].box[3], corrupt.objects[pair.changed].box[3]) + 6,
        )
        assert columns.min() >= left and columns.max() <= right and rows.min() >= top and rows.max() <= bottom
        assert (differing & own).sum() > 0.5 * differing.sum() or change == "text"
        for number, (one, other) in enumerate(zip(clean.objects, corrupt.objects, strict=True)):
            same = (one.kind, one.colour, one.text) == (other.kind, other.colour, other.text)
            assert same == (number != pair.changed)
        kept = corrupt.objects[pair.changed]
        assert pair.other == {"shape": kept.kind, "colour": kept.colour, "text": kept.text}[change] != pair.answer
        assert pair.question in {each.question for each in clean.questions}
        things = [(each.kind, each.colour, each.text) for each in corrupt.objects]
        assert len(set(things)) == len(things)


def test_the_same_seed_is_the_same_pair_and_the_model_sees_the_difference(tiny_vlm):
    right = 0
    for seed, pair in pairs("colour"):
        again = tiny.counterfactual(seed, "colour")
        assert np.array_equal(np.asarray(pair.corrupt.image), np.asarray(again.corrupt.image))
        said = [
            tiny_vlm.generate(each.image, pair.question, max_new_tokens=2).answer.strip()
            for each in (pair.clean, pair.corrupt)
        ]
        right += said == [pair.answer, pair.other]
    assert right >= 5


def test_a_scene_without_such_a_question_is_a_sentence():
    seed = next(seed for seed in range(100) if not any(each.kind == "text" for each in tiny.scene(seed).questions))
    with pytest.raises(lp.OutOfRange, match="take another seed"):
        tiny.counterfactual(seed, "text")
