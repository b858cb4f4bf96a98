"""Parts of a logit are drawn where they stand, for the word and against it in colours of one scale."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import llava_probe as lp
from llava_probe.lens.written import Written
from llava_probe.trace.tokens import Token
from tests.view.drawn import texts

HEADS, KEYS = 4, 6
SOURCES = ("first", "image", "image", "template", "question", "answer")


def made(contrast: str | None = "blue", blocks: int = 3) -> Written:
    """Parts of a model whose second block has no heads."""
    drawing = torch.Generator().manual_seed(0)
    keys = torch.randn(blocks - 1, HEADS, KEYS, generator=drawing, dtype=torch.float64)
    mlp = torch.randn(blocks, generator=drawing, dtype=torch.float64)
    other, biases = torch.zeros(blocks, dtype=torch.float64), torch.zeros(blocks + 1, dtype=torch.float64)
    other[1], biases[-1] = -2.5, 0.25
    return Written(
        token=Token(5, " red", "generated", KEYS),
        contrast=contrast,
        logit=float(0.5 + keys.sum() + mlp.sum() + other.sum() + biases.sum()),
        capped=None,
        embedding=0.5,
        heads=keys.sum(-1),
        mlp=mlp,
        other=other,
        biases=biases,
        keys=keys,
        layers=tuple(layer for layer in range(blocks) if layer != 1),
        kinds={1: "Mamba"},
        sources=SOURCES,
        sinks=(2,),
        residual=1e-7,
        tokens=(),
        layouts=(),
        images=(),
    )


def test_a_grid_has_a_column_for_each_head_and_what_else_a_block_has():
    written = made()
    figure = lp.figures.written(written)
    shown = lp.figures.mappable(figure)
    table = np.ma.filled(np.asarray(shown.get_array(), dtype=float), np.nan)
    assert table.shape == (3, HEADS + 3)
    np.testing.assert_allclose(table[[0, 2], :HEADS], written.heads)
    assert np.isnan(table[1, :HEADS]).all(), "no heads there"
    np.testing.assert_allclose(table[:, HEADS + 1], written.mlp)
    assert table[1, HEADS + 2] == -2.5
    assert -shown.norm.vmin == shown.norm.vmax == np.nanmax(np.abs(table))
    said = texts(figure)
    for part in ("red rather than blue", "MLP", "other", "the token read there +0.50", "biases +0.25"):
        assert part in said


def test_heads_are_shown_by_what_they_read():
    written = made(None)
    shown = lp.figures.mappable(lp.figures.written(written, of="image"))
    table = np.ma.filled(np.asarray(shown.get_array(), dtype=float), np.nan)
    np.testing.assert_allclose(table[[0, 2]], written.keys[..., [1, 2]].sum(-1))
    with pytest.raises(lp.BadInput, match="image, question, template"):
        lp.figures.written(written, of="picture")


def test_bars_sum_to_the_logit():
    """Sinks are told beside the picture that they are part of."""
    written = made()
    figure = lp.figures.written_from(written)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    bars = dict(zip(names, [bar.get_width() for bar in figure.axes[0].patches], strict=True))
    assert bars.pop("sinks on the picture") == pytest.approx(float(written.keys[..., 2].sum()))
    assert sum(bars.values()) == pytest.approx(written.logit)
    without = dataclasses.replace(written, sinks=())
    assert "sinks on the picture" not in texts(lp.figures.written_from(without))
