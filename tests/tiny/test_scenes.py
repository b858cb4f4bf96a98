"""A scene says the truth: about its pixels, its objects, and every answer it calls right."""

import colorsys
import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from llava_probe import tiny

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
SEEDS = range(200)


@pytest.fixture(scope="module")
def scenes():
    return [tiny.scene(seed) for seed in SEEDS]


def test_a_scene_has_one_to_four_objects_and_six_questions_at_least(scenes):
    for scene in scenes:
        assert 1 <= len(scene.objects) <= 4
        assert len(scene.questions) >= 6
        assert len({(q.kind, q.question) for q in scene.questions}) == len(scene.questions)


def test_the_scenes_together_show_every_shape_colour_word_and_kind_of_question(scenes):
    objects = [o for scene in scenes for o in scene.objects]
    assert len({o.kind for o in objects}) == 7
    assert {o.colour for o in objects} == set(COLOURS)
    assert len({o.text for o in objects if o.text}) == 16
    asked = {q.kind for scene in scenes for q in scene.questions}
    assert asked == {"colour", "shape", "exists", "count", "where", "text", "relation", "describe"}
    signs = [s for s in scenes if any(o.kind == "stop sign" for o in s.objects)]
    assert all("What is the text on the stop sign?" in {q.question for q in s.questions} for s in signs)


def test_the_same_seed_is_the_same_scene_in_another_process():
    program = (
        "import hashlib; from llava_probe import tiny; s = tiny.scene(11);"
        "print(hashlib.sha256(s.image.tobytes() + b''.join(o.mask.tobytes() for o in s.objects)).hexdigest(),"
        "[(q.question, q.answer, q.objects) for q in s.questions])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    here = tiny.scene(11)
    digest = hashlib.sha256(here.image.tobytes() + b"".join(o.mask.tobytes() for o in here.objects)).hexdigest()
    assert said.strip() == f"{digest} {[(q.question, q.answer, q.objects) for q in here.questions]}"


def test_different_seeds_are_different_pictures(scenes):
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_importing_tiny_imports_neither_torch_nor_transformers():
    program = (
        "import sys, llava_probe.tiny as t; t.scene(0); t.path();print({'torch', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"


def test_the_pixels_under_a_mask_have_the_colour_that_the_object_is_said_to_have(scenes):
    for scene in scenes:
        pixels = np.asarray(scene.image)
        for one in scene.objects:
            assert _colour_name(np.median(pixels[one.mask], axis=0)) == one.colour


def _colour_name(rgb):
    """Black, white, or the name that the hue goes by."""
    if max(rgb) - min(rgb) < 50:
        return "black" if max(rgb) < 60 else "white" if min(rgb) > 210 else "grey"
    hue = 360 * colorsys.rgb_to_hsv(*rgb)[0]
    ends = {"red": 14, "orange": 42, "yellow": 70, "green": 170, "blue": 255, "purple": 330, "red again": 360}
    return next(name for name, end in ends.items() if hue < end).split()[0]


def test_a_mask_ends_where_the_object_ends(scenes):
    for scene in scenes[:60]:
        pixels = np.asarray(scene.image).astype(float)
        free = ~np.any([o.mask for o in scene.objects], axis=0)
        for one in scene.objects:
            inner, outer = _shrunk(one.mask, 2), _grown(one.mask, 8) & ~_grown(one.mask, 2) & free
            inside = np.array([245.0] * 3) if one.text else np.median(pixels[inner], axis=0)  # a sign's rim is white
            rim = one.mask & ~_shrunk(one.mask, 5) & _shrunk(one.mask, 2) if one.text else inner
            near = np.median(pixels[outer], axis=0)
            step = np.linalg.norm(inside - near)
            assert step > 35
            along = (pixels - near) @ (inside - near) / step**2  # 0 on the background, 1 on the object
            assert (along[rim] > 0.5).mean() > 0.9
            assert (along[outer] < 0.5).mean() > 0.97


def test_boxes_enclose_their_masks_and_nothing_more(scenes):
    for scene in scenes:
        for one in scene.objects:
            assert one.mask.shape == (336, 336)
            assert one.box == Image.fromarray(one.mask).getbbox()


def test_objects_do_not_overlap(scenes):
    for scene in scenes:
        assert np.sum([o.mask for o in scene.objects], axis=0).max() == 1


@pytest.mark.parametrize("size", [112, 224, 500])
def test_another_size_is_the_same_scene_resized(size):
    big, other = tiny.scene(5), tiny.scene(5, size)
    assert other.image.size == (size, size)
    assert other.questions == big.questions
    for one, reference in zip(other.objects, big.objects, strict=True):
        expected = np.asarray(Image.fromarray(reference.mask).resize((size, size), Image.Resampling.NEAREST))
        assert one.mask.shape == (size, size)
        assert (one.mask & expected).sum() / (one.mask | expected).sum() > 0.9


def test_every_answer_follows_from_the_geometry(scenes):
    for scene in scenes:
        for question in scene.questions:
            answer, objects = SOLVERS[question.kind](scene.objects, question.question)
            assert question.answer == answer, (scene.seed, question)
            assert set(question.objects) == objects, (scene.seed, question)


def _centre(one):
    """The mask's centre of mass, (x, y) as shares of the picture."""
    rows, columns = np.nonzero(one.mask)
    return columns.mean() / one.mask.shape[1], rows.mean() / one.mask.shape[0]


def _thirds(one):
    x, y = _centre(one)
    return int(3 * y), int(3 * x)


def _place(one):
    row, column = _thirds(one)
    words = [("top", "", "bottom")[row], ("left", "", "right")[column]]
    return " ".join(word for word in words if word) or "centre"


def _matching(objects, phrase):
    """Indices of the objects that a phrase such as "red star", "stars", "red object" or "stop sign" fits."""
    colour = next((c for c in COLOURS if re.search(rf"\b{c}\b", phrase)), None)
    kinds = ("circle", "square", "triangle", "star", "cross", "ring", "stop sign")
    kind = next((k for k in kinds if k in phrase), None)
    return [i for i, o in enumerate(objects) if colour in (None, o.colour) and kind in (None, o.kind)]


def _the_one(objects, phrase):
    (index,) = _matching(objects, phrase)
    return index


def _solve_colour(objects, question):
    i = _the_one(objects, question)
    return objects[i].colour, {i}


def _solve_shape(objects, question):
    i = _the_one(objects, question)
    return objects[i].kind, {i}


def _solve_exists(objects, question):
    found = _matching(objects, question)
    return ("yes" if found else "no"), set(found)


def _solve_count(objects, question):
    found = _matching(objects, question)
    return str(len(found)), set(found)


def _solve_where(objects, question):
    i = _the_one(objects, question)
    return _place(objects[i]), {i}


def _solve_text(objects, question):
    i = _the_one(objects, question)
    return objects[i].text, {i}


def _solve_relation(objects, question):
    direction = next(d for d in ("left of", "right of", "above", "below") if d in question)
    anchor = _the_one(objects, question.split(direction)[1])
    ax, ay = _centre(objects[anchor])
    found = []
    for i, one in enumerate(objects):
        x, y = _centre(one)
        along = {"left of": ax - x, "right of": x - ax, "above": ay - y, "below": y - ay}[direction]
        across = abs(y - ay) if direction in ("left of", "right of") else abs(x - ax)
        if i != anchor and along > across:
            found.append(i)
    (i,) = found
    name = "stop sign" if objects[i].text else f"{objects[i].colour} {objects[i].kind}"
    return name, {i, anchor}


def _solve_describe(objects, question):
    sentences = []
    for one in sorted(objects, key=_thirds):
        colour = f"an {one.colour}" if one.colour[0] in "aeiou" else f"a {one.colour}"
        what = f"a stop sign that says {one.text}" if one.text else f"{colour} {one.kind}"
        place = _place(one)
        sentences.append(f"There is {what} {'in' if place == 'centre' else 'at'} the {place}.")
    return " ".join(sentences), set(range(len(objects)))


SOLVERS = {
    "colour": _solve_colour,
    "shape": _solve_shape,
    "exists": _solve_exists,
    "count": _solve_count,
    "where": _solve_where,
    "text": _solve_text,
    "relation": _solve_relation,
    "describe": _solve_describe,
}


def _grown(mask, by):
    """The mask with every pixel within ``by`` steps of it."""
    out = mask.copy()
    for _ in range(by):
        padded = np.pad(out, 1)
        out = out | padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]
    return out


def _shrunk(mask, by):
    return ~_grown(~mask, by)
