"""Figures can be made of everything, say what they show, and are written alike each time."""

import dataclasses
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

import llava_probe as lp
from llava_probe.view import figures
from llava_probe.view.canvas import drawable
from tests.synthetic import TEXTS, causal, synthetic_trace


@pytest.fixture(scope="module")
def trace():
    logits = torch.randn(4, len(TEXTS), generator=torch.Generator().manual_seed(0))
    return synthetic_trace(attention=causal(), logits=logits)


def made(trace):
    m = lp.attention_map(trace)
    marked = dataclasses.replace(m, marked=torch.arange(6) == 2)
    c = lp.confidence(dataclasses.replace(trace, records={**trace.records, "scores": trace.logits * 2}))
    return {
        "one row": figures.map_figure(m, 1),
        "mean": figures.map_figure(m),
        "marked": figures.map_figure(marked, 0),
        "signed": figures.map_figure(dataclasses.replace(m, values=m.values - 0.05), 0),
        "zeros": figures.map_figure(dataclasses.replace(m, values=m.values * 0), 0),
        "sheet": figures.contact_sheet(m, c),
        "each head": figures.head_sheet(trace, "STOP"),
        "confidence": figures.confidence_figure(c),
        "heads": figures.heads_figure(lp.heads(trace)),
        "heads of one": figures.heads_figure(lp.heads(trace), "first", 0),
    }


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text")))


def test_every_figure_is_drawn_in_every_format(trace, tmp_path):
    for name, figure in made(trace).items():
        for suffix in ("png", "pdf", "svg"):
            path = figures.save_figure(figure, tmp_path / f"{name}.{suffix}")
            assert path.stat().st_size > 1000
        assert figure._repr_png_().startswith(b"\x89PNG")


def test_figures_say_what_they_show(trace):
    found = made(trace)
    assert "share of attention" in texts(found["one row"])
    assert "“sign”" in texts(found["one row"])
    assert "hatched: never seen" in texts(found["one row"])
    assert "ringed: 1 sinks" in texts(found["marked"])
    assert "p 0." in texts(found["sheet"])
    assert all(word in texts(found["confidence"]) for word in ("ST", "OP", "sign", "probability", "nats", "as sampled"))
    assert "the picture" in texts(found["heads"])
    assert "the first token" in texts(found["heads of one"])


def test_captions_of_a_sheet_do_not_overlap():
    pieces = [" word", "<unk>", " a-very-long-token-of-text-indeed", ",", " an", "\n"] * 6
    trace = synthetic_trace(attention=causal(size=10 + len(pieces) - 1), answer=pieces)
    figure = figures.contact_sheet(lp.attention_map(trace, tokens=lp.GENERATED))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 36
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


def test_words_under_the_bars_do_not_overlap():
    pieces = [" photograph", " of", " stop", " internationalisation", "."] * 5
    logits = torch.randn(len(pieces), len(TEXTS), generator=torch.Generator().manual_seed(0))
    figure = figures.confidence_figure(lp.confidence(synthetic_trace(logits=logits, answer=pieces)))
    assert len(figure.axes) == 4  # two lines of two panels
    figure.draw_without_rendering()
    for axes in figure.axes[::2]:
        labels = axes.get_xticklabels()
        if labels[0].get_rotation() == 0:
            extents = [label.get_window_extent() for label in labels]
            assert not any(one.overlaps(next_) for one, next_ in pairwise(extents))


def test_a_sheet_tells_how_many_it_left_out():
    pieces = [" x"] * (figures.SHEET_LIMIT + 4)
    trace = synthetic_trace(attention=causal(size=10 + len(pieces) - 1, layers=1, heads=1), answer=pieces, layers=1)
    assert f"first {figures.SHEET_LIMIT} of {len(pieces)}" in texts(figures.contact_sheet(lp.attention_map(trace)))


def test_odd_tokens_are_drawn_as_they_are(trace, tmp_path):
    """Dollars are no formulas, control characters and missing glyphs no warnings."""
    odd = synthetic_trace(attention=causal(), logits=trace.logits, answer=["$x_1$", "\x07", "\U00013000", "\n"])
    assert [drawable(token.text) for token in odd.generated] == ["$x_1$", "□", "□", "⏎"]
    m = lp.attention_map(odd)
    c = lp.confidence(odd)
    for figure in (
        figures.map_figure(m, 0),
        figures.contact_sheet(m, c),
        figures.confidence_figure(c),
        figures.head_sheet(odd, odd.prompt_length),
    ):
        figures.save_figure(figure, tmp_path / "odd.png")
    assert "$x_1$" in texts(figures.map_figure(m, 0))


def test_equal_figures_make_equal_files(trace, tmp_path):
    for suffix in ("png", "pdf", "svg"):
        one, other = (
            figures.save_figure(
                figures.map_figure(lp.attention_map(trace), 0), tmp_path / f"{number}.{suffix}"
            ).read_bytes()
            for number in range(2)
        )
        assert one == other


def test_other_formats_are_refused(trace, tmp_path):
    with pytest.raises(lp.BadInput, match=r"\.pdf"):
        figures.save_figure(figures.map_figure(lp.attention_map(trace), 0), tmp_path / "map.bmp")
    with pytest.raises(lp.BadFile):
        figures.save_figure(figures.map_figure(lp.attention_map(trace), 0), tmp_path / "nowhere" / "map.png")


def test_the_colour_bar_has_the_colours_of_the_picture(trace):
    """On an even grey photograph the largest value looks as at the bar's end."""
    from PIL import Image

    m = lp.attention_map(trace)
    m = dataclasses.replace(m, image=Image.new("RGB", m.image.size, (150, 150, 150)))
    figure = figures.map_figure(m, 0)
    figure.draw_without_rendering()
    bar = next(mappable for mappable in figure.findobj(match=lambda a: type(a).__name__ == "QuadMesh"))
    over = np.asarray(m.overlay(0))
    x, y = m.peak(0)
    np.testing.assert_allclose(255 * np.array(bar.cmap(1.0)[:3]), over[int(y), int(x)], atol=2)


def test_pyplot_is_never_touched():
    code = (
        "import sys, llava_probe.maps.maps, llava_probe.analyzers.confidence, llava_probe.analyzers.attention\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import llava_probe.view.figures\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
