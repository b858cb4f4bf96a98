"""Every figure is drawn in every format and in an axes of somebody's, with nothing cut off, and without pyplot."""

import dataclasses
import inspect
import subprocess
import sys

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import llava_probe as lp
from llava_probe.probes import fit_probe
from llava_probe.view.canvas import WIDTHS, drawable, paper, text_width, wrapped
from tests.probes.probe_store import coloured
from tests.synthetic import TEXTS, causal, synthetic_trace
from tests.view.drawn import cut_off, texts
from tests.view.test_compare_figures import FOUND
from tests.view.test_finetune_figures import RUN
from tests.view.test_lens_figures import REPORT
from tests.view.test_signal_figures import SCORES
from tests.view.test_sweep_figures import DOSE, FLOW, PATCHING, TRACE
from tests.view.test_written_figures import made

figures = lp.figures


@pytest.fixture(scope="module")
def trace():
    logits = torch.randn(4, len(TEXTS), generator=torch.Generator().manual_seed(0))
    return synthetic_trace(attention=causal(), logits=logits)


@pytest.fixture(scope="module")
def drawings(trace, tiny_vlm, tmp_path_factory):
    """Each figure function with what it draws."""
    seen = lp.Capture(positions=["predicting", "image"])
    answered = tiny_vlm.generate(lp.tiny.scene(7).image, "What?", max_new_tokens=1, capture=seen)
    bank = lp.word_bank(
        tiny_vlm, ["There is a red circle at the top left."], tmp_path_factory.mktemp("bank"), layers=[2]
    )
    read = lp.lens(tiny_vlm, answered, layers=[1, 2], words="red")
    m = lp.attention_map(trace)
    others = tuple(token for token in trace.tokens[:-1] if token.role != "image")
    weighed = dataclasses.replace(m, text=torch.randn(len(m), len(others)), text_tokens=others)
    shares, store = lp.heads(trace, mask=(10, 0, 20, 10)), coloured()
    sweep = fit_probe(store, "colour", kind="mean_difference", bootstrap=20)
    other = dataclasses.replace(trace, records={**trace.records, "attention": causal(seed=1)})
    sure = lp.confidence(dataclasses.replace(trace, records={**trace.records, "scores": trace.logits * 2}))
    return {
        "maps": (figures.maps, (m,)),
        "compare": (figures.compare, ([m, m],)),
        "changed": (figures.changed, (lp.compare(sure.trace, other),)),
        "models_compared": (figures.models_compared, (FOUND,)),
        "head_maps": (figures.head_maps, (trace, "STOP")),
        "tokens": (figures.tokens, (sure,)),
        "tokens of a map": (figures.tokens, (weighed, 0)),
        "confidence": (figures.confidence, (sure,)),
        "layers_heads": (figures.layers_heads, (shares, "mask")),
        "layers": (figures.layers, ([shares, shares], ["image", "question"])),
        "features": (figures.features, (store, "layer_1", "last_prompt")),
        "probes": (figures.probes, (sweep,)),
        "confusion": (figures.confusion, (sweep, "layer_2", "last_prompt")),
        "information_flow": (figures.information_flow, (FLOW,)),
        "causal_trace": (figures.causal_trace, (TRACE,)),
        "dose_response": (figures.dose_response, (DOSE,)),
        "attribution_patching": (figures.attribution_patching, (PATCHING,)),
        "losses": (figures.losses, (RUN,)),
        "reliability": (figures.reliability, (lp.calibration([0.2, 0.4, 0.9], [0, 1, 1], times=5, draws=5),)),
        "risk_coverage": (figures.risk_coverage, (lp.calibration([0.2, 0.4, 0.9], [0, 1, 1], times=5, draws=5),)),
        "signal_scores": (figures.signal_scores, (SCORES,)),
        "lens": (figures.lens, (read,)),
        "words_on": (figures.words_on, (read, 2)),
        "tuned_lens": (figures.tuned_lens, (REPORT,)),
        "contextual_words": (figures.contextual_words, (bank.words(answered, layer=3),)),
        "written": (figures.written, (made(),)),
        "written_from": (figures.written_from, (made(),)),
    }


def test_lp_figures_holds_figures_and_nothing_else(drawings):
    assert set(dir(figures)) == {name.split()[0] for name in drawings} | {"save", "mappable"}
    for draw, _ in drawings.values():
        options = inspect.signature(draw).parameters
        assert {"ax", "width", "title"} <= set(options)
        assert ("cmap" in options) == ("bar" in options)


def test_each_is_as_wide_as_it_was_told_and_nothing_of_it_is_cut_off(drawings):
    long = "a title that goes on and on, with words of every kind and internationalisation " * 2
    for name, (draw, given) in drawings.items():
        for width, title in (("page", True), ("column", long), (4.0, False)):
            figure = draw(*given, width=width, title=title)
            assert figure.get_figwidth() == WIDTHS.get(width, width)
            assert not cut_off(figure), name
            if title is False:
                assert figure.get_suptitle() == ""


def test_each_goes_into_an_axes_of_somebodys(drawings):
    for name, (draw, given) in drawings.items():
        for layout in ("constrained", None):
            own = Figure(figsize=(9, 4), layout=layout)
            left, right = own.subplots(1, 2)
            right.plot([0, 1])
            assert draw(*given, ax=left) is own
            own.draw_without_rendering()
            assert right in own.axes, name
            assert right.lines[0].get_xydata().tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("name", ["maps", "confidence", "probes", "features"])
def test_equal_figures_make_equal_files_in_every_format(drawings, name, tmp_path):
    draw, given = drawings[name]
    for suffix in ("png", "pdf", "svg"):
        files = [figures.save(draw(*given), tmp_path / f"{number}.{suffix}", 100).read_bytes() for number in range(2)]
        assert files[0] == files[1] and len(files[0]) > 1000


def test_a_notebook_shows_a_figure_at_a_readable_size(drawings):
    draw, given = drawings["maps"]
    figure = draw(*given, width="column")
    png = figure._repr_png_()
    assert png.startswith(b"\x89PNG")
    import io

    width = Image.open(io.BytesIO(png)).width
    assert 450 <= width <= 600
    smallest = min(text.get_fontsize() for text in figure.findobj(match=lambda a: hasattr(a, "get_fontsize")))
    assert smallest * width / figure.get_figwidth() / 72 >= 12, "pixels of its smallest letters"


def test_dots_per_inch_are_as_asked(drawings, tmp_path):
    draw, given = drawings["confidence"]
    for dpi in (100, 250):
        with Image.open(figures.save(draw(*given, width=4.0), tmp_path / "c.png", dpi)) as image:
            assert image.width == 4 * dpi
            assert image.info["dpi"][0] == pytest.approx(dpi, abs=0.1)


def test_other_formats_and_places_are_refused(drawings, tmp_path):
    draw, given = drawings["maps"]
    with pytest.raises(lp.BadInput, match=r"\.pdf"):
        figures.save(draw(*given), tmp_path / "map.bmp")
    with pytest.raises(lp.BadFile):
        figures.save(draw(*given), tmp_path / "nowhere" / "map.png")
    with pytest.raises(lp.BadInput, match="of a grid"):
        figures.confidence(drawings["confidence"][1][0], ax=Figure().add_axes((0, 0, 1, 1)))
    with pytest.raises(lp.BadInput, match="stand for values"):
        figures.mappable(Figure())


def test_odd_tokens_are_drawn_as_they_are(trace, tmp_path):
    """Dollars are no formulas, control characters and missing glyphs no warnings."""
    odd = synthetic_trace(attention=causal(), logits=trace.logits, answer=["$x_1$", "\x07", "\U00013000", "\n"])
    assert [drawable(token.text) for token in odd.generated] == ["$x_1$", "□", "□", "⏎"]
    m, c = lp.attention_map(odd, tokens=lp.GENERATED), lp.confidence(odd)
    drawn = figures.maps(m, confidence=c), figures.confidence(c), figures.tokens(c), figures.head_maps(odd, 10)
    for figure in drawn:
        figures.save(figure, tmp_path / "odd.png")
        assert "$x_1$" in texts(figure)


def test_lines_are_broken_between_words_and_long_ones_within():
    with paper():
        for text in ("short", "word " * 30, "x" * 10_000, "a " + "b" * 60 + " c", ""):
            lines = wrapped(text, 1.0, 8.0, lines=3).split("\n")
            assert len(lines) <= 3
            assert all(text_width(line, 8.0) <= 1.0 for line in lines)
            whole = " ".join(lines).removesuffix("…")
            assert text.replace(" ", "").startswith(whole.replace(" ", ""))
        assert wrapped("one two", 9.0, 8.0) == "one two"


def test_style_is_ours_and_leaves_others_alone(drawings):
    import matplotlib.style

    before = dict(matplotlib.rcParams)
    draw, given = drawings["probes"]
    draw(*given).draw_without_rendering()
    assert dict(matplotlib.rcParams) == before
    with matplotlib.style.context("llava_probe.view.paper"):
        assert matplotlib.rcParams["pdf.fonttype"] == 42


def test_pyplot_is_never_touched():
    code = (
        "import sys, llava_probe.maps.maps, llava_probe.analyzers.confidence, llava_probe.analyzers.attention\n"
        "assert 'matplotlib' not in sys.modules\n"
        "import llava_probe.view.figures\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
