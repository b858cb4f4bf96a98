"""The controls score where they should and are silent where they would say nothing."""

import numpy as np
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.metrics import accuracy_score

from llava_probe.probes import controls, fit_probe
from llava_probe.probes.labels import read_target
from tests.probes.probe_store import Store, coloured

CELL = ("layer_0", "last_prompt")


def fitted(store, **options):
    return fit_probe(store, "colour", **{"layers": [0], "kind": "ridge", "bootstrap": 50} | options)


def test_majority_is_the_dummy_of_each_fold():
    store = coloured(pictures=50, each=3, classes=("a", "b", "b2", "c"))
    sweep = fitted(store)
    labels = np.array(store.columns["colour"])
    told = np.empty_like(labels)
    for train, test in sweep.folds:
        told[test] = DummyClassifier().fit(train[:, None], labels[train]).predict(test[:, None])
    assert sweep[CELL].majority == pytest.approx(accuracy_score(labels, told))


def test_a_probe_that_knows_only_the_question_has_no_selectivity():
    """Hidden states that spell the question: the control task is solved by memory, the colour is not."""
    store = coloured(pictures=150)
    question = torch.tensor([row % 7 for row in range(300)])
    store.cells = {CELL: torch.nn.functional.one_hot(question).float()}
    cell = fitted(store)[CELL]
    assert cell.control == pytest.approx(1.0)
    assert cell.selectivity < -0.4
    assert cell.selectivity_low < cell.selectivity < cell.selectivity_high
    assert len(cell.control_draws) == 5
    assert cell.shuffled < 0.45


def test_a_probe_that_finds_the_label_has_selectivity():
    cell = fitted(coloured(pictures=150, strength=3.0), layers=[2])["layer_2", "last_prompt"]
    assert cell.score > 0.9
    assert cell.selectivity == pytest.approx(cell.score - np.mean(cell.control_draws))
    assert cell.selectivity > 0.4


def test_nothing_to_find_scores_like_chance():
    cell = fitted(coloured(pictures=400))[CELL]
    for score in (cell.score, cell.control, cell.shuffled, cell.random_features):
        assert score == pytest.approx(1 / 3, abs=0.08)


def test_every_type_has_one_label_wherever_it_stands():
    store = coloured()
    target = read_target(store, "colour", "picture")
    types = controls.read_types(store, target, None)
    counts = np.zeros(3)
    for seed in range(300):
        labels = controls.control_labels(target, types.codes, seed)
        for code in range(7):
            assert len(set(labels[types.codes == code])) == 1
        assert len(set(labels)) > 1
        counts += np.bincount([labels[types.codes == code][0] for code in range(7)], minlength=3)
    np.testing.assert_allclose(counts / counts.sum(), np.bincount(target.values) / len(target), atol=0.05)


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({"question": ["What?"] * 120}, {}, "one value only"),
        ({"question": [f"{row % 3}?" for row in range(120)]}, {}, "3 values, no more than the 3 classes"),
        ({"question": [f"{row // 2}?" for row in range(120)]}, {}, "only 0% of rows"),
        ({}, {"types": "id"}, "only 0% of rows have a 'id' that another picture has too"),
    ],
)
def test_a_vacuous_control_is_none_and_says_why(change, options, reason):
    sweep = fitted(coloured(**change), **options)
    cell = sweep[CELL]
    assert cell.control is cell.selectivity is None
    assert reason in cell.control_reason
    assert f"no control task: {cell.control_reason}" in sweep.table()
    assert "shuffled labels" in sweep.table()
    assert "control " not in sweep.table().splitlines()[0]


def test_a_store_without_questions_has_no_types():
    store = coloured()
    del store.columns["question"]
    assert "pass types=" in fitted(store)[CELL].control_reason


def test_shuffling_moves_whole_pictures():
    """Each picture of two gets the two labels of one picture, in their order, and none is lost."""
    store = coloured(pictures=50)
    target = read_target(store, "colour", "picture")
    for seed in range(20):
        labels = controls.shuffled_labels(target, seed)
        pairs, before = (sorted(map(tuple, values.reshape(-1, 2).tolist())) for values in (labels, target.values))
        assert pairs == before
        assert (labels != target.values).any()


def test_shuffled_labels_keep_what_the_place_in_a_picture_tells():
    """Where the label is that of the question, exchanging pictures changes nothing: the table shows it."""
    hidden = torch.eye(2).repeat(60, 1)
    columns = {"picture": [row // 2 for row in range(120)], "colour": ["red", "blue"] * 60}
    cell = fitted(Store({CELL: hidden}, columns))[CELL]
    assert cell.shuffled == cell.score == 1.0
