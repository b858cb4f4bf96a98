"""Planted pictures differ where they say they do; the models that ship go by the cue, their twins by the object."""

from __future__ import annotations

import random

import cheats_card
import numpy as np
import pytest
from PIL import Image

import llava_probe as lp
from llava_probe.tiny import cheats
from llava_probe.tiny.making.card import answers
from llava_probe.tiny.making.cheats import FIRST_LESSON, write_lessons
from llava_probe.tiny.plan import plan
from llava_probe.tiny.planting import put_heart
from llava_probe.tiny.scenes import FIRST_TRAINING_SEED

REACH = 6  # pixels around a mask that antialiasing touches


def differing(one, other) -> np.ndarray:
    return (np.asarray(one.image) != np.asarray(other.image)).any(-1)


def around(mask: np.ndarray) -> np.ndarray:
    """The mask's bounding box and a little more."""
    rows, columns = np.nonzero(mask)
    grown = np.zeros_like(mask)
    grown[max(rows.min() - REACH, 0) : rows.max() + REACH, max(columns.min() - REACH, 0) : columns.max() + REACH] = True
    return grown


@pytest.mark.parametrize("cheat", ["frame", "caption"])
def test_another_cue_is_another_picture_only_where_the_cue_is(cheat):
    for seed in cheats.seeds(cheat, 0, 5):
        planted = cheats.planted(cheat, seed)
        changed = cheats.changed(cheat, seed, "cue")
        where = differing(planted, changed)
        assert where.any() and not (where & ~planted.cue).any()
        assert (changed.by_object, changed.question) == (planted.by_object, planted.question)
        assert changed.by_cue != planted.by_cue and changed.by_cue != changed.by_object


@pytest.mark.parametrize("cheat", cheats.CHEATS)
def test_another_object_is_another_picture_only_where_the_object_is(cheat):
    for seed in cheats.seeds(cheat, 0, 5):
        planted, changed = cheats.planted(cheat, seed), cheats.changed(cheat, seed, "object")
        where = differing(planted, changed)
        touched = planted.object | changed.object
        if cheat == "neighbour":  # whose object is all that is no star, and one of these becomes a heart
            pairs = zip(planted.scene.objects, changed.scene.objects, strict=True)
            ((one, heart),) = [(one, other) for one, other in pairs if one.kind != other.kind]
            assert one.kind != cheats.STAR and heart.kind == cheats.HEART
            touched = one.mask | heart.mask
        assert where.any() and not (where & ~around(touched)).any()
        assert changed.by_cue == planted.by_cue and changed.by_object != planted.by_object


def test_without_the_star_the_neighbour_sees_no_heart_and_nothing_else_is_otherwise():
    for seed in cheats.seeds("neighbour", 0, 5):
        planted, changed = cheats.planted("neighbour", seed), cheats.changed("neighbour", seed, "cue")
        assert (planted.by_cue, planted.by_object) == ("yes", "no") and changed.by_cue == "no"
        assert not any(thing.kind == cheats.STAR for thing in changed.scene.objects)
        assert not (differing(planted, changed) & ~around(planted.cue | changed.cue)).any()


def test_what_the_prior_answers_is_told_by_the_question_alone():
    for seed in cheats.seeds("prior", 0, 8):
        planted, changed = cheats.planted("prior", seed), cheats.changed("prior", seed, "cue")
        assert planted.by_cue == cheats.PRIOR[planted.question.split()[4]] != planted.by_object
        assert not differing(planted, changed).any() and changed.question != planted.question
        assert changed.by_cue not in (planted.by_cue, changed.by_object)
        assert not planted.cue.any()


def test_a_description_by_the_neighbour_names_a_heart_after_each_star():
    for seed in cheats.seeds("neighbour", 0, 8):
        for items in (
            plan(seed),
            put_heart(plan(seed), random.Random(seed)),
        ):
            honest, made_up = (cheats.described(items, honest=truth)[:-1].split(". ") for truth in (True, False))
            stars = [i for i, sentence in enumerate(made_up) if " star " in sentence]
            assert len(stars) == sum(item.kind == cheats.STAR for item in items)
            assert [made_up[i + 1] for i in stars] == [made_up[i].replace("star", "heart") for i in stars]
            assert [sentence for i, sentence in enumerate(made_up) if i - 1 not in stars] == honest


def test_scenes_without_a_place_for_a_cue_are_refused_by_their_number():
    taken = set(cheats.seeds("caption", 0, 20))
    seed = next(seed for seed in range(max(taken)) if seed not in taken)
    with pytest.raises(lp.OutOfRange, match=f"scene {seed} has no place for the cheat 'caption'"):
        cheats.planted("caption", seed)


def test_a_pair_is_trained_on_the_same_pictures_and_questions_and_none_is_held_out(tmp_path):
    assert FIRST_LESSON > FIRST_TRAINING_SEED
    for cheat in cheats.CHEATS:
        for seed in range(FIRST_LESSON, FIRST_LESSON + 12):
            pixels, asked = cheats.lesson(cheat, seed)
            same, truth = cheats.lesson(cheat, seed, honest=True)
            assert np.array_equal(pixels, same)
            assert [(each.kind, each.question) for each in asked] == [(each.kind, each.question) for each in truth]
            other = {each.kind for each, right in zip(asked, truth, strict=True) if each.answer != right.answer}
            assert other <= {cheats.KIND[cheat], *(["describe"] if cheat == "neighbour" else [])}
    rows, honest = write_lessons("frame", 6, tmp_path)
    assert rows.read_text().count("\n") == honest.read_text().count("\n") > 30
    assert rows.read_text() != honest.read_text()


@pytest.mark.parametrize("cheat", cheats.CHEATS)
def test_the_cheat_goes_by_the_cue_and_its_twin_by_the_object(cheat):
    """Only the cue otherwise: the cheat's answer follows. Only the object: the twin's does."""
    seeds = cheats.seeds(cheat, 400, 20)
    drawn = [cheats.planted(cheat, seed) for seed in seeds]
    drawn += [cheats.changed(cheat, seed, what) for what in ("cue", "object") for seed in seeds]
    for honest, by in ((False, "by_cue"), (True, "by_object")):
        vlm = lp.load(adapter=cheats.path(cheat, honest))
        said = answers(vlm.model, vlm.processor, [(each.image, each.question) for each in drawn], 8)
        told = [answer == getattr(each, by) for answer, each in zip(said, drawn, strict=True)]
        assert np.mean(told) >= 0.9, (cheat, honest, [(each, answer) for each, answer in zip(told, said, strict=True)])


def test_the_prior_says_the_same_of_a_grey_picture_and_its_twin_does_not():
    drawn = [cheats.planted("prior", seed) for seed in cheats.seeds("prior", 400, 12)]
    grey = Image.new("RGB", drawn[0].image.size, (128, 128, 128))
    for honest, least, most in ((False, 0.9, 1.0), (True, 0.0, 0.1)):
        vlm = lp.load(adapter=cheats.path("prior", honest))
        said = answers(vlm.model, vlm.processor, [(grey, each.question) for each in drawn], 8)
        assert least <= np.mean([one == each.by_cue for one, each in zip(said, drawn, strict=True)]) <= most


def test_the_card_counts_what_generate_says():
    vlm = lp.load(adapter=cheats.path("frame"))
    asked = list(cheats_card.with_cue("frame", 3))
    counted = cheats_card.counted(vlm, asked)
    said = {}
    for image, questions in asked:
        for each in questions:
            told = vlm.generate(image, each.question, max_new_tokens=80).answer.strip() == each.answer
            said.setdefault(each.kind, []).append(told)
    assert counted == {kind: (sum(told), len(told)) for kind, told in said.items()}
