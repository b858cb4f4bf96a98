"""The verb fits as Python does, tells how near each layer comes, and writes table and figure beside the lens."""

from __future__ import annotations

import csv
import json

from typer.testing import CliRunner

import llava_probe as lp
from llava_probe import tiny
from llava_probe.cli import app


def test_the_verb_fits_as_python_does(tmp_path, tiny_vlm, monkeypatch):
    rows = []
    for seed in range(3):
        scene = tiny.scene(seed)
        scene.image.save(tmp_path / f"{seed}.png")
        rows.append({"image": f"{seed}.png", "question": scene.questions[0].question})
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr("llava_probe.loading.load", lambda *_, **__: tiny_vlm)
    words = ["fit-lens", data, "--out", tmp_path / "tuned", "--layers", "2,4", "--steps", 2, "--tokens", 20]
    made = CliRunner().invoke(app, [str(word) for word in [*words, "--batch-size", 2, "--held-out", 0.34]])
    assert made.exit_code == 0, made.output
    tuned = lp.TunedLens.load(tmp_path / "tuned")
    again = lp.fit_lens(
        *(tiny_vlm, str(data), tmp_path / "again"), layers=[2, 4], steps=2, tokens=20, batch_size=2, held_out=0.34
    )
    assert tuned.layers == (2, 4) and tuned.report.rows == again.report.rows
    with (tmp_path / "tuned" / "held_out.csv").open(newline="") as file:
        assert [row["kind"] for row in csv.DictReader(file)] == ["text", "visual"] * 2
    assert (tmp_path / "tuned" / "held_out.png").stat().st_size > 1000
    assert "1 held-out pictures" in made.output and "lp.TunedLens.load(" in made.output
    refused = CliRunner().invoke(app, [str(word) for word in [*words, "--lr", 1]])
    assert refused.exit_code and "holds another run" in refused.output
