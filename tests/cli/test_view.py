"""``llava-probe view``: what was saved, as a page."""

from typer.testing import CliRunner

import llava_probe as lp
from llava_probe import tiny
from llava_probe.cli import app


def test_saved_traces_and_maps_become_a_page(tiny_vlm, tmp_path):
    trace = tiny_vlm.generate(tiny.scene(34).image, "What is the text on the stop sign?")
    trace.save(tmp_path / "run.trace")
    lp.attribute(tiny_vlm, trace).save(tmp_path / "maps")
    out = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["view", str(tmp_path / "run.trace"), str(tmp_path / "maps"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert str(out) in done.output.replace("\n", "")
    assert out.read_text(encoding="utf-8") == lp.page([trace, lp.ImageMap.load(tmp_path / "maps")], out).read_text()
