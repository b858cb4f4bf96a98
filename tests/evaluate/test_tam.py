"""TAM's measures are those of the authors' evaluation, computed here the way that theirs reads, pixel by pixel."""

from dataclasses import replace

import numpy as np
import pytest

import llava_probe as lp
from llava_probe.evaluate import TamScores, tam_scores
from tests.evaluate.drawn_maps import grid_layout, map_on

SIZE = (40, 30)
LAYOUT = grid_layout(SIZE, 3, 4)  # every token 10 × 10 pixels, so shares of cells are shares of pixels
TEXTS = [" There", " is", " a", " dal", "mat", "ian", " dog", " by", " a", " house", " wall", ".", "</s>"]
NAMED = {"dog": (3, 4, 5, 6), "wall": (10,)}  # "dalmatian dog" is one object in two words
FUNCTION, OTHER_NOUNS = (0, 1, 2, 7, 8), (9,)


def masks():
    dog, wall = np.zeros((2, *SIZE[::-1]), dtype=bool)
    dog[3:18, 4:22] = True
    wall[20:, 15:] = True
    return {"dog": dog, "wall": wall}


def cut(values):
    """Otsu's threshold by trying all, the lowest of the best."""

    def spread(t):
        low, high = values[values <= t], values[values > t]
        return low.size * high.size * (low.mean() - high.mean()) ** 2 if high.size else -1.0

    return max(np.unique(values), key=lambda t: (round(spread(t), 6), -t))


def as_the_authors(m, words, label):
    """Words as lists of rows; a label for each word: an object's name, None for another noun, or "function"."""
    truth = masks()
    objects, thresholds = [], []
    for number, (word, name) in enumerate(zip(words, label, strict=True)):
        if name in ("function", "other"):
            continue
        cuts = [cut(m.pixels(row)) for row in word]
        thresholds.append(max(cuts))
        if name is None:
            continue
        chosen = [m.pixels(row) > level for row, level in zip(word, cuts, strict=True)]
        ious = [(each & truth[name]).sum() / (each | truth[name]).sum() for each in chosen]
        if number and label[number - 1] == name:
            objects[-1] = max(objects[-1], *ious)
        else:
            objects.append(max(ious))
    level = sum(thresholds) / len(thresholds)
    functions = [
        np.mean([(m.pixels(row) <= level).mean() for row in word])
        for word, name in zip(words, label, strict=True)
        if name == "function"
    ]
    return objects, functions


def scored(m):
    truth = masks()
    return tam_scores(m, {row: truth[name] for name in NAMED for row in NAMED[name]}, FUNCTION, OTHER_NOUNS)


@pytest.mark.parametrize("seed", range(20))
def test_scores_are_those_of_the_authors_evaluation(seed):
    m = map_on(LAYOUT, np.random.default_rng(seed).integers(0, 20, (len(TEXTS), 12)), TEXTS)
    words = [[0], [1], [2], [3, 4, 5], [6], [7], [8], [9], [10], [11, 12]]
    label = ["function"] * 3 + ["dog", "dog", "function", "function", None, "wall", "other"]
    objects, functions = as_the_authors(m, words, label)
    found = scored(m)
    assert [each.iou for each in found.objects] == pytest.approx(objects)
    assert found.functions == pytest.approx(functions)
    one, other = np.mean(objects), np.mean(functions)
    assert (found.obj_iou, found.func_iou) == pytest.approx((one, other))
    assert found.f1_iou == pytest.approx(2 / (1 / one + 1 / other))


def test_bright_on_its_object_and_dark_elsewhere_is_one():
    dog, wall = np.zeros((2, *SIZE[::-1]), dtype=bool)
    dog[:10, :20], wall[20:, 30:] = True, True
    m = map_on(LAYOUT, [np.zeros(12), LAYOUT.to_tokens(dog), LAYOUT.to_tokens(wall)], [" the", " dog", " wall"])
    found = tam_scores(m, {1: dog, -1: wall}, [0])
    assert found.obj_iou == found.func_iou == found.f1_iou == found.precision == found.recall == 1
    swapped = tam_scores(m, {1: wall, 2: dog}, [0])
    assert (swapped.obj_iou, swapped.f1_iou) == (0, 0)


def test_neighbours_are_one_object_only_if_nothing_stands_between():
    truth, values = masks(), np.random.default_rng(0).random((4, 12))
    apart = map_on(LAYOUT, values, [" a", " dog", ",", " dog"])
    glued = map_on(LAYOUT, values, [" a", " dog", " dog", " ran"])
    assert len(tam_scores(apart, {1: truth["dog"], 3: truth["dog"]}).objects) == 1  # the comma belongs to its word
    assert len(tam_scores(glued, {1: truth["dog"], 3: truth["dog"]}).objects) == 2
    assert len(tam_scores(glued, {1: truth["dog"], 2: truth["wall"]}).objects) == 2
    assert len(tam_scores(glued, {1: truth["dog"], 2: truth["dog"]}).objects) == 1
    far = tuple(replace(token, position=token.position * 2) for token in glued.tokens)  # a map of every second token
    assert len(tam_scores(replace(glued, tokens=far), {1: truth["dog"], 2: truth["dog"]}).objects) == 2


def test_a_data_set_pools_its_words():
    generator = np.random.default_rng(1)
    each = [scored(map_on(LAYOUT, generator.random((len(TEXTS), 12)), TEXTS)) for _ in range(3)]
    each.append(tam_scores(map_on(LAYOUT, generator.random((2, 12))), {0: masks()["dog"]}, [1]))
    pooled = TamScores.pooled(each)
    assert pooled.obj_iou == pytest.approx(np.mean([found.iou for one in each for found in one.objects]))
    assert pooled.func_iou == pytest.approx(np.mean([share for one in each for share in one.functions]))
    assert len(pooled.objects) == 3 * 2 + 1


def test_without_nouns_there_is_no_threshold():
    found = tam_scores(map_on(LAYOUT, np.ones((2, 12))), {}, [0, 1])
    assert found.functions == ()
    assert np.isnan([found.obj_iou, found.func_iou, found.f1_iou]).all()


def test_rows_that_cannot_be_are_refused():
    m, dog = map_on(LAYOUT, np.ones((2, 12))), masks()["dog"]
    with pytest.raises(lp.OutOfRange, match="row 2"):
        tam_scores(m, {2: dog})
    with pytest.raises(lp.BadInput, match="row 1 is given as a function word and as a noun"):
        tam_scores(m, {1: dog}, [-1])
    with pytest.raises(lp.BadInput, match="empty"):
        tam_scores(m, {1: np.zeros_like(dog)})
