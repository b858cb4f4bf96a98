"""Each word stands on the patch that says it; curves are the figures; what a lens does not tell stands under them."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

import llava_probe as lp
from llava_probe.lens.tuned import HeldOutKL, LensReport
from tests import torchvision_half, zoo
from tests.models import llava_processor, photo, random_llava

REPORT = LensReport(
    tuple(
        HeldOutKL(layer, kind, 40, logit=3.0 - layer + own, tuned=1.0 - layer / 4, gain=1.0, low=0.5, high=1.5)
        for layer in range(3)
        for own, kind in enumerate(("text", "visual"))
    ),
    pictures=7,
)


@pytest.fixture(scope="module")
def found():
    vlm = lp.VLM(random_llava(), llava_processor())
    trace = vlm.generate(photo(), "what is the text", max_new_tokens=1)
    return lp.lens(vlm, trace, words=["stop", "sign"])


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(match=lambda one: hasattr(one, "get_text")))


def words(figure):
    """Every word on the photograph and where it stands, in pixels."""
    return {tuple(np.round(each.get_position(), 3)): each.get_text() for each in figure.axes[0].texts}


def test_each_word_stands_on_its_patch(found, tmp_path):
    figure = lp.figures.words_on(found, 2)
    layout = found.trace.layouts[0]
    middles = [tuple(np.round(((x0 + x1) / 2, (y0 + y1) / 2), 3)) for x0, y0, x1, y1 in layout.boxes]
    told = words(figure)
    assert set(told) == set(middles)
    whole = 0
    for middle, (word, *_) in zip(middles, found.texts[2], strict=True):
        shown = told[middle]
        whole += shown == word.strip()
        assert shown.endswith("…") or shown == word.strip() or "□" in shown or not word.strip() or "\ufffd" in word
    assert whole > 18  # most words are whole
    assert {each.get_fontsize() for each in figure.axes[0].texts} == {figure.axes[0].texts[0].get_fontsize()}
    assert "arXiv 2602.01530" in texts(figure) and "logit lens, layer 2" in texts(figure).replace("\n", " ")
    assert lp.figures.save(figure, tmp_path / "words.pdf").stat().st_size > 1000


def test_a_surer_word_is_darker(found):
    figure = lp.figures.words_on(found, -1)
    sure = found.probability[-1, :, 0]
    greys = [float(each.get_color()) for each in figure.axes[0].texts]
    assert greys[int(sure.argmax())] == min(greys) and greys[int(sure.argmin())] == max(greys)


@pytest.mark.skipif(not torchvision_half.present(), reason="the processors of most families need torchvision")
def test_of_a_picture_in_tiles_one_view_is_shown():
    vlm = zoo.vlm("llava_next")
    trace = vlm.generate(photo(96, 64), "what", max_new_tokens=1)
    found = lp.lens(vlm, trace, layers=1)
    tiles = trace.layouts[0].tiles
    assert len(words(lp.figures.words_on(found, 1))) == (tiles == 0).sum()
    shown = len(words(lp.figures.words_on(found, 1, tile=int(tiles.max()))))
    assert 0 < shown <= (tiles == tiles.max()).sum()
    with pytest.raises(lp.BadInput, match="tile=99 is not there"):
        lp.figures.words_on(found, 1, tile=99)


def test_entropy_and_ranks_by_layer(found):
    figure = lp.figures.lens(found)
    above, below = figure.axes
    assert list(above.lines[0].get_ydata()) == pytest.approx(found.entropy.quantile(0.5, dim=1).tolist())
    drawn = {line.get_label(): list(line.get_ydata()) for line in below.lines}
    for word, ranks in zip(found.words, found.word_rank, strict=True):
        assert drawn[word] == (ranks.amin(1) + 1).tolist()
    assert below.yaxis_inverted() and "arXiv" in texts(figure)


def test_of_a_word_nothing_is_said_of_patches(found):
    word = lp.lens(zoo.vlm("llava"), zoo.vlm("llava").generate(photo(), "what", max_new_tokens=1), at=lp.LAST)
    assert word.told == "logit lens at 1 token" and "arXiv" not in texts(lp.figures.lens(word))


def test_without_words_there_is_entropy_alone(found):
    plain = replace(found, words=(), word_ids=(), word_rank=found.word_rank[:0], word_probability=found.word_rank[:0])
    assert len(lp.figures.lens(plain).axes) == 1


def test_held_out_curves_are_the_report():
    figure = lp.figures.tuned_lens(REPORT)
    drawn = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert drawn["logit lens, words"] == [3.0, 2.0, 1.0] and drawn["logit lens, visual tokens"] == [4.0, 3.0, 2.0]
    assert drawn["tuned lens, words"] == [1.0, 0.75, 0.5]
    assert "7 held-out" in texts(figure).replace("\n", " ") and "not that they are right" in texts(figure)
    with pytest.raises(lp.BadInput, match="no picture was held out"):
        lp.figures.tuned_lens(LensReport((), 0))


def test_among_other_axes_the_note_stands_too(found):
    figure = Figure()
    one, other, third = figure.subplots(1, 3)
    lp.figures.words_on(found, 2, ax=one)
    lp.figures.tuned_lens(REPORT, ax=other)
    lp.figures.lens(found, ax=third)
    told = texts(figure).replace("\n", " ")
    assert told.count("arXiv 2602.01530") == 2 and told.count("not that they are right") == 1
