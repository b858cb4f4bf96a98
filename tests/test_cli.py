"""The command line does the whole job on the tiny model, and says in one sentence what it cannot do."""

import json
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import llava_probe as lp
from llava_probe import tiny
from llava_probe.cli import _generation_flags, app

SIGN = "What is the text on the stop sign?"


@pytest.fixture(scope="module")
def scene():
    return next(s for s in map(tiny.scene, range(100, 200)) if any(thing.text for thing in s.objects))


@pytest.fixture
def picture(scene, tmp_path):
    path = tmp_path / "scene.png"
    scene.image.save(path)
    return str(path)


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_run_writes_what_it_promises(scene, picture, tmp_path):
    out = tmp_path / "out"
    done = call("run", picture, SIGN, "--out", out)
    assert done.exit_code == 0, done.output
    told = json.loads((out / "answer.json").read_text())
    word = next(thing.text for thing in scene.objects if thing.text)
    assert told["answer"] == word
    assert len(told["probability"]) == len(told["tokens"]) == len(told["peaks"][0])
    assert lp.Trace.load(out / "run.trace").answer == word
    stored = np.load(out / "maps" / "map.npz")
    assert stored["values"].shape == (len(told["tokens"]), 196)
    assert len(list((out / "figures").glob("*.png"))) == 3
    assert "knows only its own drawn scenes" in done.stderr
    assert "--model" in done.stderr


def test_the_map_of_the_command_line_is_the_one_of_python(picture, tmp_path, tiny_vlm):
    call("run", picture, SIGN, "--out", tmp_path / "out", "--layers", "4,5", "--heads", "1")
    expected = lp.attention_map(tiny_vlm.generate(picture, SIGN), layers=[4, 5], heads=[1])
    assert np.allclose(np.load(tmp_path / "out" / "maps" / "map.npz")["values"], expected.values, atol=1e-6)


def test_other_flags_go_to_generate_as_they_are(picture, tmp_path):
    done = call(
        "run", picture, "Describe the image.", "--out", tmp_path / "o", "--num-beams", "3", "--max-new-tokens", 5
    )
    assert done.exit_code == 0, done.output
    request = lp.Trace.load(tmp_path / "o" / "run.trace").request
    assert request.generate["num_beams"] == 3
    assert request.generate["max_new_tokens"] == 5
    assert _generation_flags(["--do-sample", "--top-p", "0.9", '--stop-strings=["a"]']) == {
        "do_sample": True,
        "top_p": 0.9,
        "stop_strings": ["a"],
    }


def test_no_maps_writes_none(picture, tmp_path):
    assert call("run", picture, SIGN, "--out", tmp_path / "o", "--no-maps").exit_code == 0
    assert not (tmp_path / "o" / "maps").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "/nowhere.jpg", SIGN], "/nowhere.jpg"),
        (["run", "PICTURE", "  "], "the question is empty"),
        (["run", "PICTURE", SIGN, "--layers", "x"], "--layers takes whole numbers"),
        (["run", "PICTURE", SIGN, "--layers", "77"], "77"),
        (["run", "PICTURE", SIGN, "--max-new-tokens", "0"], "max_new_tokens must be"),
        (["run", "PICTURE", SIGN, "--no-such-flag", "1"], "no_such_flag"),
        (["run", "PICTURE", SIGN, "--model", "liuhaotian/llava-v1.5-7b"], "llava-hf/llava-1.5-7b-hf"),
        (["run", "PICTURE", SIGN, "--out", "PICTURE/inside"], "cannot be made"),
        (["demo", "--seed", "2000000"], "held-out scenes"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_sentence(picture, words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(*[str(word).replace("PICTURE", picture) for word in words])
    assert done.exit_code == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.output + done.stderr


def test_demo_reads_the_sign(tmp_path):
    done = call("demo", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "answer.json").read_text())
    assert told["answer"] == "STOP"
    assert "STOP" in done.output


def test_check_prints_its_table(tmp_path):
    done = call("check")
    assert done.exit_code == 0, done.output
    assert done.output.count("holds") >= 7
    assert "FAILS" not in done.output


def test_help_and_import_stay_light():
    for code in ("import llava_probe", "import llava_probe.cli", "import llava_probe.tiny"):
        look = f"import sys; {code}; print({{'torch', 'transformers', 'matplotlib'}} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "set()", code


def test_every_public_name_is_there():
    for name in lp.__all__:
        assert getattr(lp, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lp.no_such_name
