"""The verb makes the bank that Python makes, and shows the words at a picture's patches."""

import pytest
from typer.testing import CliRunner

import llava_probe as lp
from llava_probe.cli import app


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def lines(tmp_path, monkeypatch, tiny_vlm):
    monkeypatch.setattr("llava_probe.loading.load", lambda name, **settings: tiny_vlm)
    path = tmp_path / "lines.txt"
    path.write_text("There is a red circle at the top left.\nThere is a blue star at the bottom.\n")
    return path


def test_a_bank_is_made_and_looked_into(lines, tmp_path, tiny_vlm):
    picture, drawn = tmp_path / "scene.png", tmp_path / "words.png"
    lp.tiny.scene(7).image.save(picture)
    asked = ["bank", lines, "--out", tmp_path / "bank", "--layers", "1,4"]
    told = call(*asked, "--picture", picture, "--layer", 2, "--figure", drawn)
    assert told.exit_code == 0, told.output
    assert "contexts of 12 words in 2 sentences, layers 1, 4: " in told.output
    assert "nearest contexts to 196 tokens of layer 2" in told.output and drawn.stat().st_size > 10_000
    assert (
        lp.WordBank(tmp_path / "bank").contexts
        == lp.word_bank(tiny_vlm, lines, tmp_path / "again", layers=[1, 4]).contexts
    )


def test_a_figure_of_no_picture_is_refused(lines, tmp_path):
    told = call("bank", lines, "--out", tmp_path / "bank", "--figure", "words.png")
    assert told.exit_code == 1 and "name one with --picture" in told.output
    assert not (tmp_path / "bank").exists()
