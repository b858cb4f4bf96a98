"""What is read a block at a time agrees with what is held in memory."""

import numpy as np
import pytest
import torch

from llava_probe.probes import fit_probe
from llava_probe.probes.instances import read_instances
from tests.probes.probe_store import Ragged, coloured

CELL = ("layer_1", "last_prompt")


@pytest.mark.parametrize(("kind", "task"), [("ridge", None), ("ridge", "regression"), ("mean_difference", None)])
@pytest.mark.parametrize("balance", [True, False])
def test_ridge_and_means_are_exact(kind, task, balance):
    store = coloured(pictures=150, width=10, number=list(range(300)))
    label = "colour" if task is None else "number"
    options = {"layers": [1], "kind": kind, "task": task, "bootstrap": 0, "draws": 1, "balance": balance}
    held = fit_probe(store, label, **options)
    read = fit_probe(store, label, memory=0, **options)
    if task is None:
        np.testing.assert_array_equal(read[CELL].predicted, held[CELL].predicted)
    assert read[CELL].strengths == pytest.approx(held[CELL].strengths, nan_ok=True)
    for name in ("weights", "bias"):
        one, other = (getattr(sweep.probe(*CELL), name) for sweep in (read, held))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c")])
@pytest.mark.parametrize("balance", [True, False])
def test_logistic_minimises_the_same_objective(classes, balance):
    store = coloured(pictures=60, strength=0.6, classes=classes)
    options = {"layers": [1], "bootstrap": 0, "draws": 1, "strengths": [1e-4, 1e-1], "balance": balance}
    held, read = (fit_probe(store, "colour", memory=memory, **options) for memory in (2_000_000_000, 0))
    np.testing.assert_array_equal(read[CELL].predicted, held[CELL].predicted)
    assert read[CELL].strengths == held[CELL].strengths
    for name in ("weights", "bias"):
        one, other = (getattr(sweep.probe(*CELL), name) for sweep in (read, held))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)  # lbfgs ends where the slope is 1e-5


def test_blocks_hold_what_the_whole_holds():
    generator = torch.Generator().manual_seed(0)
    store = coloured(pictures=150)
    ragged = Ragged([torch.randn(row % 5, 12, generator=generator) for row in range(300)])
    store.cells["layer_1", "image"] = ragged
    rows = np.arange(0, 300, 2)
    for key in (CELL, ("layer_1", "image")):
        for pool in ("mean", "tokens"):
            held = read_instances(store, key, rows, pool, 10**9)
            read = read_instances(store, key, rows, pool, 0)
            assert read.held is None
            mask = np.arange(len(held)) % 3 > 0
            numbers, features = map(np.concatenate, zip(*read.blocks(mask), strict=True))
            np.testing.assert_array_equal(numbers, np.flatnonzero(mask))
            np.testing.assert_array_equal(features, held.held[mask])
