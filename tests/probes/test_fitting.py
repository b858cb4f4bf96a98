"""The probes are scikit-learn's, on folds that share no picture, and come out alike wherever they are fitted."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score, mean_absolute_error, r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import llava_probe as lp
from llava_probe.probes import fit_probe
from llava_probe.probes.readouts import STRENGTHS
from tests.probes.probe_store import Ragged, Store, coloured, fingerprint

CELL = ("layer_1", "last_prompt")
LASTING = {"tol": 1e-7, "max_iter": 10_000}


def plain(kind, regression=False):
    """The scikit-learn pipeline of the same name and the name of its strength."""
    if kind == "logistic":
        return make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", **LASTING)), (
            "logisticregression__C"
        )
    model = Ridge() if regression else RidgeClassifier(class_weight="balanced")
    return make_pipeline(StandardScaler(), model), f"{type(model).__name__.lower()}__alpha"


def by_hand(sweep, features, labels, kind, regression=False):
    """Out-of-fold predictions and chosen strengths by GridSearchCV over the other folds."""
    told, chosen = np.empty(np.shape(labels), dtype=labels.dtype), []
    for fold, (train, test) in enumerate(sweep.folds):
        others = [rows for number, (_, rows) in enumerate(sweep.folds) if number != fold]
        place = {row: number for number, row in enumerate(train)}
        inner = [
            tuple(np.array([place[row] for row in rows]) for rows in (np.setdiff1d(train, scored), scored))
            for scored in others
        ]
        model, name = plain(kind, regression)
        search = GridSearchCV(
            model, {name: STRENGTHS[kind]}, cv=inner, scoring="r2" if regression else "balanced_accuracy"
        )
        with threadpool_limits(1):
            search.fit(features[train], labels[train])
        told[test] = search.predict(features[test])
        chosen.append(search.best_params_[name])
    return told, tuple(chosen)


@pytest.mark.parametrize("width", [12, 150])
@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_predictions_are_those_of_scikit_learn(kind, width):
    """Also with more features than rows, where the fit is made in the span of the rows."""
    store = coloured(pictures=30, width=width, strength=0.7 if width < 50 else 0.4)
    sweep = fit_probe(store, "colour", layers=[1], kind=kind, bootstrap=10, draws=1)
    features = store.numpy(*CELL).astype(np.float64)
    told, chosen = by_hand(sweep, features, np.array(store.columns["colour"]), kind)
    assert [sweep.classes[number] for number in sweep[CELL].predicted] == told.tolist()
    assert sweep[CELL].strengths == pytest.approx(chosen)


def test_mean_difference_is_the_nearest_centroid():
    store = coloured(strength=0.7)
    sweep = fit_probe(store, "colour", layers=[1], kind="mean_difference", bootstrap=10, draws=1)
    features, labels = store.numpy(*CELL).astype(np.float64), np.array(store.columns["colour"])
    for train, test in sweep.folds:
        told = NearestCentroid().fit(features[train], labels[train]).predict(features[test])
        assert [sweep.classes[number] for number in sweep[CELL].predicted[test]] == told.tolist()


def test_two_means_make_the_mass_mean_direction():
    store = coloured(classes=("no", "yes"))
    probe = fit_probe(store, "colour", layers=[2], kind="mean_difference", bootstrap=0).probe("layer_2", "last_prompt")
    hidden, yes = store["layer_2", "last_prompt"].double(), np.array(store.columns["colour"]) == "yes"
    apart = hidden[yes].mean(0) - hidden[~yes].mean(0)
    torch.testing.assert_close(probe.direction("yes"), (apart / apart.norm()).float())
    torch.testing.assert_close(probe.direction("no"), -probe.direction("yes"))


@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c", "d")])
@pytest.mark.parametrize("balance", [True, False])
def test_the_refitted_probe_is_scikit_learns_on_the_raw_states(classes, balance):
    store = coloured(width=80, pictures=30, classes=classes)
    sweep = fit_probe(store, "colour", layers=[2], bootstrap=0, strengths=[0.01], balance=balance, draws=1)
    probe = sweep.probe("layer_2", "last_prompt")
    hidden, labels = store.numpy("layer_2", "last_prompt"), np.array(store.columns["colour"])
    weight = "balanced" if balance else None
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight=weight, **LASTING))
    model.fit(hidden.astype(np.float64), labels)
    np.testing.assert_allclose(probe.probabilities(torch.from_numpy(hidden)), model.predict_proba(hidden), atol=1e-3)
    assert probe.predict(torch.from_numpy(hidden)) == model.predict(hidden).tolist()


def test_scores_are_those_of_scikit_learn():
    sweep = fit_probe(coloured(), "colour", bootstrap=10, kind="ridge")
    for cell in sweep:
        assert cell.score == pytest.approx(accuracy_score(cell.truth, cell.predicted))
        assert cell.measures["balanced"] == pytest.approx(balanced_accuracy_score(cell.truth, cell.predicted))


@pytest.fixture(scope="module")
def boxed():
    """A count and a box that the hidden states tell, linearly."""
    generator = np.random.default_rng(3)
    hidden = generator.standard_normal((120, 8))
    count = hidden @ generator.standard_normal(8) + generator.standard_normal(120) * 0.5 + 100
    corner = 50 + 10 * hidden[:, :2] + generator.standard_normal((120, 2))
    boxes = np.concatenate([corner, corner + 20 + np.abs(generator.standard_normal((120, 2)))], axis=1)
    columns = {"id": list(range(120)), "picture": [row // 2 for row in range(120)]}
    columns |= {"count": count.tolist(), "box": boxes.tolist(), "whole": count.round().astype(int).tolist()}
    columns |= {name: boxes[:, place].tolist() for place, name in enumerate(("x0", "y0", "x1", "y1"))}
    return Store({CELL: torch.from_numpy(hidden)}, columns)


def test_numbers_are_read_by_ridge(boxed):
    sweep = fit_probe(boxed, "count", bootstrap=50)
    cell = sweep[CELL]
    assert sweep.task == "regression"
    told, chosen = by_hand(sweep, boxed[CELL].numpy(), np.array(boxed.columns["count"]), "ridge", regression=True)
    np.testing.assert_allclose(cell.predicted[:, 0], told, rtol=1e-5)  # the store hands out float32
    assert cell.strengths == pytest.approx(chosen)
    assert cell.score == pytest.approx(r2_score(boxed.columns["count"], cell.predicted[:, 0]))
    assert cell.measures["mae"] == pytest.approx(mean_absolute_error(boxed.columns["count"], cell.predicted[:, 0]))
    assert cell.low < cell.score < cell.high
    assert abs(cell.majority) < 0.1


def test_boxes_are_four_numbers(boxed):
    """From a list column or from four columns; overlap against counting the cells of a fine grid."""
    sweep = fit_probe(boxed, "box", bootstrap=0)
    cell = sweep[CELL]
    four = fit_probe(boxed, ["x0", "y0", "x1", "y1"], bootstrap=0)
    np.testing.assert_array_equal(cell.predicted, four[CELL].predicted)
    assert four.classes == ("x0", "y0", "x1", "y1")
    assert cell.score == pytest.approx(r2_score(cell.truth, cell.predicted))
    axis = np.arange(0, 120, 0.1) + 0.05

    def inside(box):
        across, down = ((axis >= box[side]) & (axis < box[side + 2]) for side in (0, 1))
        return across[:, None] & down

    shares = [
        (inside(one) & inside(other)).sum() / (inside(one) | inside(other)).sum()
        for one, other in zip(cell.truth[:10], cell.predicted[:10], strict=True)
    ]
    from llava_probe.probes.intervals import overlap

    np.testing.assert_allclose(overlap(cell.truth[:10], cell.predicted[:10]), shares, atol=0.02)
    assert cell.measures["iou"] == pytest.approx(overlap(cell.truth, cell.predicted).mean())


def test_whole_numbers_are_classes_unless_told_otherwise(boxed):
    assert fit_probe(boxed, "whole", task="regression", bootstrap=0).task == "regression"
    store = coloured(number=[row % 3 + 9 for row in range(120)])
    assert fit_probe(store, "number", layers=[1], kind="mean_difference").classes == (10, 11, 9)  # by their text


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 14), st.sampled_from("ab")), min_size=30, max_size=60),
    st.integers(3, 5),
    st.integers(0, 5),
)
def test_no_picture_is_on_both_sides(rows, folds, seed):
    rows = [*rows, *itertools.product(range(20, 25), "ab")]  # each class in at least five pictures
    pictures, labels = zip(*rows, strict=True)
    hidden = torch.randn(len(rows), 3, generator=torch.Generator().manual_seed(seed))
    store = Store({CELL: hidden}, {"picture": list(pictures), "label": list(labels)})
    sweep = fit_probe(store, "label", kind="mean_difference", folds=folds, seed=seed, bootstrap=0, draws=1)
    tested = np.concatenate([test for _, test in sweep.folds])
    assert sorted(tested) == list(range(len(rows)))
    for train, test in sweep.folds:
        assert not {pictures[row] for row in train} & {pictures[row] for row in test}
        assert sorted([*train, *test]) == list(range(len(rows)))


def test_classes_are_spread_over_the_folds():
    store = coloured(pictures=90, each=1)
    sweep = fit_probe(store, "colour", layers=[1], kind="mean_difference", bootstrap=0)
    labels = np.array(store.columns["colour"])
    for colour in sweep.classes:
        held = [np.count_nonzero(labels[test] == colour) for _, test in sweep.folds]
        assert max(held) - min(held) <= 1


def test_rows_without_a_label_are_left_out_and_counted():
    store = coloured()
    store.columns["colour"] = [None if row % 10 == 3 else colour for row, colour in enumerate(store.columns["colour"])]
    sweep = fit_probe(store, "colour", layers=[2], kind="mean_difference")
    assert sweep.missing == 12
    assert sweep[("layer_2", "last_prompt")].rows == 108
    assert not any(row % 10 == 3 for _, test in sweep.folds for row in test)
    assert "12 rows without a label" in str(sweep)
    kept = [store.columns["colour"][row] for row in sorted(np.concatenate([test for _, test in sweep.folds]))]
    assert [sweep.classes[number] for number in sweep[("layer_2", "last_prompt")].truth] == kept


def test_another_process_finds_the_same():
    """And importing the probes, to load a saved one say, takes no scikit-learn; some versions of transformers do."""
    code = (
        "import sys\n"
        "from transformers import GenerationMixin\n"
        "before = 'sklearn' in sys.modules\n"
        "import llava_probe.view.probe_figures, llava_probe.probes\n"
        "assert before or 'sklearn' not in sys.modules\n"
        "from tests.probes.probe_store import fingerprint\n"
        "print(fingerprint(), end='')"
    )
    paths = f"{Path(__file__).parents[2]}:{Path(lp.__file__).parents[1]}"
    env = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": paths}
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env)
    assert found.stdout == fingerprint()


def test_ragged_positions_are_averaged_or_taken_token_by_token():
    store = coloured(strength=3.0)
    generator = torch.Generator().manual_seed(0)
    flat = store["layer_2", "last_prompt"]
    counts = [row % 4 for row in range(len(store))]  # every fourth row has none
    rows = [
        hidden + torch.randn(count, flat.shape[1], generator=generator)
        for hidden, count in zip(flat, counts, strict=True)
    ]
    store.cells = {("layer_2", "image_in_mask"): Ragged(rows)}
    key = ("layer_2", "image_in_mask")
    mean = fit_probe(store, "colour", kind="mean_difference")[key]
    every = fit_probe(store, "colour", kind="mean_difference", pool="tokens")[key]
    filled = np.flatnonzero(counts)
    assert mean.rows == every.rows == len(filled)
    np.testing.assert_array_equal(mean.owner, filled)
    np.testing.assert_array_equal(every.owner, np.repeat(np.arange(len(store)), counts))
    averaged = Store({key: torch.stack([rows[row].mean(0) for row in filled])}, {})
    averaged.columns = {name: [values[row] for row in filled] for name, values in store.columns.items()}
    assert mean.score == pytest.approx(fit_probe(averaged, "colour", kind="mean_difference")[key].score, abs=0.05)


def test_a_class_that_no_token_shows_is_refused_and_not_saved_with_infinite_weights():
    store = coloured()
    colours, flat = store.column("colour"), store["layer_2", "last_prompt"]
    rows = [flat[row : row + (colour != "green")] for row, colour in enumerate(colours)]
    store.cells = {("layer_2", "image_in_mask"): Ragged(rows)}
    with pytest.raises(lp.BadInput, match="layer_2, image_in_mask: no row of class 'green' has a token there"):
        fit_probe(store, "colour", kind="mean_difference", bootstrap=0)


def test_only_layers_are_fitted_unless_others_are_named():
    store = coloured()
    store.cells["image_attention", "last_prompt"] = torch.rand(120, 2, 3)
    assert len(fit_probe(store, "colour", kind="mean_difference", bootstrap=0)) == 3
    with pytest.raises(lp.BadInput, match="not one vector a row"):
        fit_probe(store, "colour", layers=["image_attention"], kind="mean_difference")


def test_a_random_model_is_matched_by_id():
    store, other = coloured(strength=2.0), coloured(strength=2.0)
    order = np.random.default_rng(0).permutation(len(store))
    other.cells = {key: cell[order] for key, cell in other.cells.items()}
    other.columns = {name: [values[row] for row in order] for name, values in other.columns.items()}
    sweep = fit_probe(store, "colour", kind="mean_difference", random_features=other)
    assert all(cell.random_model == cell.score for cell in sweep)
    other.columns["id"][5] = "another"
    with pytest.raises(lp.BadInput, match="lacks 1 of the 120"):
        fit_probe(store, "colour", random_features=other)


@pytest.mark.parametrize(
    ("store", "options", "sentence"),
    [
        (coloured(), {"label": "shape"}, "no column 'shape'.*colour"),
        (coloured(), {"groups": "photo"}, "no column 'photo'.*picture"),
        (coloured(colour=["red"] * 120), {}, "at least two classes"),
        (coloured(colour=[None] * 120), {}, "empty in all 120"),
        (coloured(colour=["a"] * 118 + ["b"] * 2), {}, "'b' occurs with 1 .* fewer than 5 folds"),
        (coloured(pictures=4), {}, "4 different values of 'picture'.*folds=4"),
        (coloured(), {"folds": 2}, "at least 3"),
        (coloured(), {"kind": "svm"}, "logistic, ridge, mean_difference"),
        (coloured(), {"task": "clustering"}, "classification, regression"),
        (coloured(), {"layers": [7]}, "no layer 'layer_7'.*layer_0"),
        (coloured(), {"positions": "image"}, "no position 'image'.*last_prompt"),
        (coloured(), {"pool": "max"}, "mean, tokens"),
        (coloured(), {"draws": 0}, "draws=.* takes a whole number from 1"),
        (coloured(), {"strengths": [-1.0]}, "numbers above 0"),
        (coloured(), {"types": "kind"}, "no column 'kind'"),
        (coloured(), {"task": "regression"}, "no number"),
        (coloured(size=[float(row) for row in range(120)]), {"label": "size", "kind": "logistic"}, "kind='ridge'"),
        (coloured(box=[[1.0], [1.0, 2.0]] * 60), {"label": "box"}, "as many"),
    ],
)
def test_what_cannot_be_probed_is_refused_in_one_sentence(store, options, sentence):
    with pytest.raises(lp.BadInput, match=sentence):
        fit_probe(store, **{"label": "colour"} | options)


def test_features_that_are_no_numbers_are_named():
    store = coloured()
    store["layer_1", "last_prompt"][3, 2] = torch.nan
    with pytest.raises(lp.NotANumber, match="layer_1, last_prompt"):
        fit_probe(store, "colour", layers=[1])


def test_without_scikit_learn_the_sentence_says_what_to_install(monkeypatch):
    from llava_probe.probes import fitting

    monkeypatch.setattr(fitting, "find_spec", lambda name: None)
    with pytest.raises(lp.BadInput, match=r"pip install 'llava_probe\[probes\]'"):
        fit_probe(coloured(), "colour")
