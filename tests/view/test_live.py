"""The viewer of a notebook: still, live, and in a notebook's page."""

import json
import subprocess
import sys

import pytest

import llava_probe as lp
from llava_probe import tiny
from llava_probe.view.clicks import OFFERED, acted

SIGN = (30, 20, 180, 170)

#: What a notebook's front end does for a widget: its state, its messages, its place on the page.
FRONT_END = """
async ([source, state]) => {
  const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const heard = {};
  window.sent = [];
  window.model = {
    get: (name) => state[name],
    set: (name, value) => { state[name] = value; heard[`change:${name}`]?.(); },
    send: (message) => window.sent.push(message),
    on: (event, does) => { heard[event] = does; },
    off: (event) => { delete heard[event]; },
  };
  const el = document.createElement("div");
  document.body.append(el);
  module.default.render({ model: window.model, el });
}
"""


@pytest.fixture
def trace(tiny_vlm):
    return tiny_vlm.generate(tiny.scene(34).image, "What is the text on the stop sign?")


def test_a_trace_shows_itself(trace):
    assert trace._repr_html_() == lp.view(trace)._repr_html_() == lp.view([trace])._repr_html_()
    with pytest.raises(lp.BadInput, match="Trace"):
        lp.view(["x"])


def test_a_click_computes_for_the_chosen_tokens(tiny_vlm, trace):
    results = [trace]
    chosen = trace.positions(lp.ANSWER)[:1]
    told = acted(results, tiny_vlm, {"compute": "relevance", "run": 0, "picture": 0, "tokens": chosen})
    assert told == {"map": 0}
    assert results[1].values.tolist() == lp.attribute(tiny_vlm, trace, tokens=chosen).values.tolist()
    assert "relevance" in OFFERED and "attention" not in OFFERED


def test_a_click_asks_without_a_region_and_with_only_it(tiny_vlm, trace):
    results = [trace]
    for number, (way, answer) in enumerate((("without", "STOP"), ("only", None)), start=1):
        told = acted(results, tiny_vlm, {"ask": way, "run": 0, "picture": 0, "box": list(SIGN)})
        assert told["beside"] == number
        assert results[number].interventions[0]["kind"] == "ablate"
        assert (results[number].answer != "STOP") == (answer is not None), way


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"run": 0, "picture": 0},
        {"run": 7, "picture": 0, "compute": "relevance"},
        {"run": 0, "picture": 9, "compute": "relevance"},
        {"run": 0, "picture": 0, "compute": "os.system"},
        {"run": 0, "picture": 0, "ask": "without"},
        {"run": 0, "picture": 0, "ask": "only", "box": [0, 0, 336, 336]},
        {"run": 0, "picture": 0, "ask": "without", "box": ["x"]},
        {"run": 0, "picture": 0, "compute": "relevance", "tokens": [99999]},
    ],
    ids=str,
)
def test_a_wrong_click_is_one_sentence_and_loses_nothing(tiny_vlm, trace, asked):
    results = [trace]
    with pytest.raises(lp.ProbeError):
        acted(results, tiny_vlm, asked)
    assert results == [trace]


def test_the_live_viewer_in_a_front_end(tiny_vlm, trace, window):
    pytest.importorskip("anywidget", reason="anywidget is not installed")
    viewer = lp.view(trace, tiny_vlm)
    state = {"parcel": viewer.parcel, "offers": viewer.offers, "told": viewer.told}
    shown = window()
    shown.page.set_content("<!doctype html><body></body>")
    shown.page.evaluate(FRONT_END, [str(viewer._esm), state])
    shown.page.get_by_label("compute another method").select_option("relevance")
    assert shown.page.get_by_text("the model is at work").is_visible()
    (message,) = shown.page.evaluate("window.sent")
    viewer._act(message)
    for name in ("parcel", "offers", "told"):
        shown.page.evaluate("([name, value]) => model.set(name, value)", [name, getattr(viewer, name)])
    shown.page.locator('[role="tab"][aria-selected="true"]', has_text="relevance").wait_for()
    assert shown.page.get_by_text("the model is at work").count() == 0
    viewer._act({"ask": "without"})
    assert "picture" in viewer.told["message"]
    assert not shown.said and not shown.outside()


def test_a_notebooks_page_shows_the_component(window, trace, tmp_path):
    """As ``nbconvert`` writes it, whose own scripts from elsewhere are not fetched here."""
    trace.save(tmp_path / "run.trace")
    cell = {"cell_type": "code", "execution_count": 1, "id": "a", "metadata": {}, "source": "trace", "outputs": [{
        "output_type": "execute_result", "execution_count": 1, "metadata": {},
        "data": {"text/html": trace._repr_html_(), "text/plain": repr(trace)}}]}  # fmt: skip
    book = tmp_path / "book.ipynb"
    book.write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    convert = [sys.executable, "-m", "nbconvert", "--to", "html", "--template", "basic", str(book)]
    subprocess.run(convert, check=True, capture_output=True, timeout=120)
    shown = window()
    shown.page.goto((tmp_path / "book.html").as_uri())
    shown.page.locator("figure canvas").first.wait_for()
    shown.page.locator(f'[data-position="{trace.prompt_length}"]').click()
    assert shown.page.locator('.token[aria-selected="true"]').count() == 1
    assert not shown.said and not shown.outside()
