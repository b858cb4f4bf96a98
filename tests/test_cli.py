"""The command line does the whole job on the tiny model, and says in one sentence what it cannot do."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

import llava_probe as lp
from llava_probe import tiny
from llava_probe.cli import app
from llava_probe.cli.arguments import generation_flags, method_options, pictures
from llava_probe.cli.bundles import as_command

EVERY = ("--tokens", "lp.GENERATED")
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
    done = call("run", picture, SIGN, "--out", out, "--tokens", "lp.GENERATED")
    assert done.exit_code == 0, done.output
    told = json.loads((out / "answer.json").read_text())
    word = next(thing.text for thing in scene.objects if thing.text)
    assert told["answer"] == word
    assert len(told["probability"]) == len(told["token"]) == len(told["peaks"][0])
    assert lp.Trace.load(out / "run.trace").answer == word
    stored = np.load(out / "maps" / "map.npz")
    assert stored["values"].shape == (len(told["token"]), 196)
    assert len(list((out / "figures").glob("*.png"))) == 3
    assert "knows only" not in done.stderr, "this is one of its scenes"
    size = (out / "run.trace").stat().st_size / 1e6
    assert f"run.trace, {size:.1f} MB" in done.output.replace("\n", " ")


def test_the_tiny_model_is_told_to_know_no_photographs(tmp_path):
    path = tmp_path / "photograph.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).resize((336, 336)).save(path)
    done = call("run", path, SIGN, "--out", tmp_path / "out")
    assert "knows only its own drawn scenes" in done.stderr
    assert "--model" in done.stderr


def test_maps_are_of_content_words_and_of_a_stated_size(picture, tmp_path, tiny_vlm):
    Image.open(picture).resize((1600, 1200)).save(tmp_path / "large.png")
    words = ["run", tmp_path / "large.png", "Describe the image.", "--out", tmp_path / "o"]
    words += ["--max-new-tokens", 6]  # not every token's map of a long answer
    trace = tiny_vlm.generate(tmp_path / "large.png", "Describe the image.", max_new_tokens=6)
    expected = lp.attention_map(trace)
    for more, size in (((), (1200, 900)), (("--full-size",), (1600, 1200))):
        assert call(*words, *more).exit_code == 0
        assert {Image.open(path).size for path in (tmp_path / "o" / "maps").glob("*_*")} == {size}
        again = lp.ImageMap.load(tmp_path / "o" / "maps")
        assert again.image.size == size
        assert [token.position for token in again.tokens] == [token.position for token in expected.tokens]
        assert torch.equal(again.values, expected.values)
        assert again.overlay(0).size == size
        assert again.peak(0) == expected.peak(0)
    assert sum(path.stat().st_size for path in (tmp_path / "o").rglob("*.png")) > 0
    told = json.loads((tmp_path / "o" / "answer.json").read_text())
    assert len(told["peaks"][0]) == len(trace.generated), "every token's peak is told"


def test_an_answer_that_was_cut_off_says_so(picture, tmp_path):
    done = call("run", picture, "Describe the image.", "--out", tmp_path / "o", "--max-new-tokens", 3)
    assert "cut off after 3 tokens; --max-new-tokens" in done.output
    assert json.loads((tmp_path / "o" / "answer.json").read_text())["cut_off"] is True
    done = call("run", picture, SIGN, "--out", tmp_path / "o")
    assert "cut off" not in done.output
    assert json.loads((tmp_path / "o" / "answer.json").read_text())["cut_off"] is False


def test_a_folder_and_a_file_of_questions_are_run_row_by_row(picture, tmp_path, scene):
    word = next(thing.text for thing in scene.objects if thing.text)
    (tmp_path / "many").mkdir()
    for name in ("a.png", "b.png"):
        scene.image.save(tmp_path / "many" / name)
    assert call("run", tmp_path / "many", SIGN, "--out", tmp_path / "o", "--no-maps").exit_code == 0
    told = {path.parent.name: json.loads(path.read_text())["answer"] for path in (tmp_path / "o").glob("*/answer.json")}
    assert told == {"a.png": word, "b.png": word}
    rows = [{"id": "sign", "image": "a.png", "question": SIGN}, {"id": "gone", "image": "c.png", "question": SIGN}]
    (tmp_path / "many" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = call("run", tmp_path / "many" / "rows.jsonl", "--out", tmp_path / "p", "--no-maps")
    assert done.exit_code == 1, "a row failed"
    assert "gone" in done.stderr
    assert json.loads((tmp_path / "p" / "sign" / "answer.json").read_text())["answer"] == word


def test_versions_are_told():
    done = call("--version")
    assert done.exit_code == 0
    assert done.output.startswith(f"llava_probe {lp.__version__} (python ")
    as_module = subprocess.run([sys.executable, "-m", "llava_probe", "--version"], capture_output=True, text=True)
    assert as_module.stdout.split() == done.output.split()


def test_a_console_that_knows_no_such_letter_shows_another(picture, tmp_path):
    words = ["run", picture, SIGN, "--out", tmp_path / "o", "--no-maps"]
    env = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-m", "llava_probe", *words], capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    assert b"Everything is in" in done.stdout


def test_the_map_of_the_command_line_is_the_one_of_python(picture, tmp_path, tiny_vlm):
    call("run", picture, SIGN, "--out", tmp_path / "out", "--attention-layers", "4,5", "--heads", "1", *EVERY)
    expected = lp.attention_map(tiny_vlm.generate(picture, SIGN), 0, lp.GENERATED, layers=[4, 5], heads=[1])
    assert np.allclose(np.load(tmp_path / "out" / "maps" / "map.npz")["values"], expected.values, atol=1e-6)


def test_other_flags_go_to_generate_as_they_are(picture, tmp_path):
    done = call(
        "run", picture, "Describe the image.", "--out", tmp_path / "o", "--num-beams", "3", "--max-new-tokens", 5
    )
    assert done.exit_code == 0, done.output
    request = lp.Trace.load(tmp_path / "o" / "run.trace").request
    assert request.generate["num_beams"] == 3
    assert request.generate["max_new_tokens"] == 5
    assert generation_flags(["--do-sample", "--top-p", "0.9", '--stop-strings=["a"]']) == {
        "do_sample": True,
        "top_p": 0.9,
        "stop_strings": ["a"],
    }


def test_attribute_is_the_attribution_of_python(picture, tmp_path, tiny_vlm, scene):
    out = tmp_path / "out"
    done = call("attribute", picture, SIGN, "--method", "gradient", "--option", "on=pixels", "--out", out)
    assert done.exit_code == 0, done.output
    expected = lp.attribute(tiny_vlm, tiny_vlm.generate(picture, SIGN), "gradient", on="pixels")
    assert torch.allclose(lp.ImageMap.load(out / "attribution").values, expected.values, atol=1e-6)
    told = json.loads((out / "attribution.json").read_text())
    word = next(thing.text for thing in scene.objects if thing.text)
    assert told["answer"] == word == "".join(row["word"] for row in told["rows"]).strip()
    assert told["about"]["on"] == "pixels"
    assert "2 forward, 1 backward" in done.output
    assert "attribution.json, attribution/, figures/" in done.output.replace("\n", " ")


def test_attribute_explains_another_text_and_one_word_of_it(picture, tmp_path, tiny_vlm, models):
    words = ["attribute", picture, SIGN, "--method", "gradient", "--text", "a red sign", "--out", tmp_path]
    every = ["--tokens", "lp.GENERATED"]
    for more, tokens in (([], lp.ANSWER), (every, lp.GENERATED), (["--tokens", "red", "--contrast", "blue"], "red")):
        done = call(*words, *more)
        assert done.exit_code == 0, done.output
        told = json.loads((tmp_path / "attribution.json").read_text())
        assert told["explained"] == "a red sign"
        assert told["given"] is True
        assert told["answer"] == tiny_vlm.generate(picture, SIGN).answer, "the model's own"
        assert "the model's own: " + told["answer"] in done.output
        assert ("rather than blue" in done.output) == ("blue" in more)
        contrast = "blue" if "blue" in more else None
        trace = tiny_vlm.score(picture, SIGN, "a red sign")
        expected = lp.attribute(tiny_vlm, trace, "gradient", tokens=tokens, contrast=contrast)
        assert [row["word"] for row in told["rows"]] == [token.text for token in expected.tokens]
        assert torch.allclose(lp.ImageMap.load(tmp_path / "attribution").values, expected.values, atol=1e-6)
    assert len(models[1]) == 6, "the own answer once a run, and here"


def test_options_of_a_method_are_literals_where_they_are_such():
    assert method_options("occlusion", ["on=pixels", "window=3", "budget = 50"]) == {
        "on": "pixels",
        "window": 3,
        "budget": 50,
    }
    assert method_options("occlusion", ["budget=none"]) == {"budget": None}
    assert method_options("tam", ["rank-filter=false", "interference=True"]) == {
        "rank_filter": False,
        "interference": True,
    }
    assert method_options("rise", ["keep=1"]) == {"keep": 1}
    assert method_options("localisation_heads", ["heads=[(3, 1), (4, 0)]"]) == {"heads": [(3, 1), (4, 0)]}
    assert method_options("attention", ["layers=-1"]) == {"layers": -1}
    assert method_options("relative_attention", ["neutral=What is 2=2?"]) == {"neutral": "What is 2=2?"}


@pytest.mark.parametrize("method", lp.METHODS)
def test_the_defaults_of_every_method_are_options_that_it_takes(method):
    given = [f"{name}={default}" for name, default in lp.METHODS[method].options.items()]
    assert method_options(method, given) == dict(lp.METHODS[method].options)


@pytest.fixture
def models(monkeypatch):
    """Whether a model was loaded, and what its generate was asked."""
    loaded, asked = [], []
    load, generate = lp.load, lp.VLM.generate

    def noted(*given, **settings):
        loaded.append(given)
        return load(*given, **settings)

    def noted_generate(self, *given, **settings):
        asked.append((given, settings))
        return generate(self, *given, **settings)

    monkeypatch.setattr("llava_probe.loading.load", noted)
    monkeypatch.setattr(lp.VLM, "generate", noted_generate)
    return loaded, asked


@pytest.mark.parametrize("option", ["--attention-layers", "--heads"])
@pytest.mark.parametrize("number", ["77", "-99", "0,77"])
def test_layers_and_heads_are_checked_before_anything_is_generated(option, number, picture, tmp_path, models):
    done = call("run", picture, SIGN, "--out", tmp_path / "o", option, number)
    assert done.exit_code == 1
    assert f"{option} {number.removeprefix('0,')} is not there: this model has {option[2:]} 0 to" in done.stderr
    assert models[1] == []


def test_a_wrong_picture_is_told_before_a_model_is_loaded(models, tmp_path):
    there = tmp_path / "nowhere.png"
    for verb in (["run", there, SIGN], ["attribute", there, SIGN], ["check", "--image", there]):
        done = call(*verb)
        assert done.exit_code == 1
        assert "nowhere.png" in done.stderr
    assert models[0] == []


def test_a_wrong_method_or_option_is_told_before_a_model_is_loaded(models, picture):
    for words in (["--method", "magic"], ["--option", "windw=3"], ["--method", "occlusion", "--option", "window=x"]):
        assert call("attribute", picture, SIGN, *words).exit_code == 1
    assert models[0] == []


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_generated(picture, models):
    assert "cannot be made" in call("run", picture, SIGN, "--out", picture + "/inside").stderr
    assert models[1] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "", "q"), "the path of the picture is empty"),
        (("run", "PICTURE", "q", "--image-column", "img"), "columns say how the rows of a data set are read"),
        (("run", "PICTURE", "q", "--out", ""), "a path was expected"),
        (("fit-probe", "", "--label", "x"), "a path was expected"),
        (("leaderboard", "--cases", " "), "a path was expected"),
    ],
)
def test_what_would_be_left_out_or_taken_for_this_folder_is_refused(picture, words, told, models):
    done = call(*(picture if word == "PICTURE" else word for word in words))
    assert done.exit_code != 0 and told in done.stderr
    assert models == ([], [])


def test_ctrl_c_is_one_line_and_130(picture, tmp_path, monkeypatch):
    def interrupted(*_given, **_settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("llava_probe.loading.load", interrupted)
    for words in (("run", picture, SIGN), ("attribute", picture, SIGN), ("check",)):
        done = call(*words, *(["--out", tmp_path / "out"] if words[0] != "check" else []))
        assert (done.exit_code, done.stderr.strip().splitlines()) == (130, ["Stopped."])


def test_commas_part_pictures_and_not_addresses(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "c,d.png"):
        (tmp_path / name).touch()
    monkeypatch.setattr("llava_probe.pictures.images.open_image", lambda source: source)
    for text, expected in {
        "a.png,b.png": ["a.png", "b.png"],
        "a.png,nowhere.png": ["a.png", "nowhere.png"],
        "c,d.png": ["c,d.png"],
        "https://x.org/a,z.png": ["https://x.org/a,z.png"],
        "https://x.org/w_100,h_9/https://y.org/z.png": ["https://x.org/w_100,h_9/https://y.org/z.png"],
        "https://x.org/a.png,https://x.org/b.png": ["https://x.org/a.png", "https://x.org/b.png"],
        "https://x.org/z.png,a.png": ["https://x.org/z.png", "a.png"],
        "data:image/png;base64,AAAA": ["data:image/png;base64,AAAA"],
    }.items():
        assert pictures(text) == expected


def test_what_was_written_is_told_by_its_name(picture, tmp_path):
    told = call("run", f"{picture},{picture}", "Describe the image.", "--out", tmp_path / "two")
    assert told.exit_code == 0, told.output
    assert "answer.json, run.trace, figures/, maps_0/, maps_1/" in told.output.replace("\n", " ")
    told = call("run", picture, SIGN, "--out", tmp_path / "none", "--no-maps")
    assert "answer.json, run.trace, figures/" in told.output.replace("\n", " ")


def test_no_maps_writes_none(picture, tmp_path):
    assert call("run", picture, SIGN, "--out", tmp_path / "o", "--no-maps").exit_code == 0
    assert not (tmp_path / "o" / "maps").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "/nowhere.jpg", SIGN], "/nowhere.jpg"),
        (["run", "PICTURE", "  "], "the question is empty"),
        (["run", "PICTURE", SIGN, "--attention-layers", "x"], "--attention-layers takes whole numbers"),
        (["run", "PICTURE", SIGN, "--attention-layers", "77"], "77"),
        (["run", "PICTURE", SIGN, "--num-beams", "abc"], "--num-beams takes a whole number of at least 1; got 'abc'"),
        (["run", "PICTURE", SIGN, "--num-beams", "null"], "--num-beams takes a whole number"),
        (["run", "PICTURE", SIGN, "--num-beams"], "--num-beams takes a whole number"),
        (["run", "PICTURE", SIGN, "--num-return-sequences", "1.5"], "--num-return-sequences takes a whole number"),
        (["run", "PICTURE", SIGN, "--streamer", "x"], "--streamer is no flag"),
        (["run", "PICTURE", SIGN, "--image", "x"], "--image is no flag"),
        (["run", "--num-beams", "4", "PICTURE", SIGN], "--num-beams stands before the picture or the question"),
        (["run", "PICTURE", "--num-beams", "4", SIGN], "--num-beams stands before the picture or the question"),
        (["run", "x" * 5000, SIGN], "File name too long"),
        (["run", "PICTURE", SIGN, "--out", "x" * 5000], "cannot be made"),
        (["run", "PICTURE", SIGN, "--max-new-tokens", "0"], "--max-new-tokens takes a whole number"),
        (["run", "PICTURE", SIGN, "--no-such-flag", "1"], "--no-such-flag is a flag of neither this command nor"),
        (["run", "PICTURE", SIGN, "--max-new-token", "1"], "did you mean --max-new-tokens?"),
        (["run", "PICTURE", SIGN, "--self", "1"], "--self is a flag of neither"),
        (["leaderboard", "--part", "9" * 5000 + "/1"], "--part takes a share"),
        (["run", "PICTURE", SIGN, "--model", "liuhaotian/llava-v1.5-7b"], "llava-hf/llava-1.5-7b-hf"),
        (["run", "PICTURE", SIGN, "--out", "PICTURE/inside"], "cannot be made"),
        (["attribute", "PICTURE", SIGN, "--method", "magic"], "method 'magic' is not known; lp.METHODS has attention"),
        (["attribute", "PICTURE", SIGN, "--option", "windw=3"], "relevance has no option windw=; it takes through="),
        (["attribute", "PICTURE", SIGN, "--option", "through"], "--option takes NAME=VALUE; got 'through'"),
        (["attribute", "PICTURE", SIGN, "--option", "checkpoint=1"], "--option checkpoint of relevance takes true or"),
        (["attribute", "PICTURE", SIGN, "--method", "rollout", "--contrast", "red"], "it knows no contrast"),
        (["attribute", "PICTURE", SIGN, "--tokens", "purple"], "'purple' is neither a word of"),
        (["attribute", "PICTURE", SIGN, "--picture", "3"], "picture 3 is not there"),
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
    blurred = json.loads((tmp_path / "blurred" / "answer.json").read_text())
    assert min(told["probability"]) > 0.95 > 0.9 > min(blurred["probability"]), "one shows what doubt looks like"


def test_run_writes_vectors_and_tables(picture, tmp_path):
    done = call("run", picture, "What?", "--format", "pdf", "--dpi", 100, "--csv", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "out" / "figures").iterdir()} == {
        "confidence.pdf",
        "maps.pdf",
        "heads.pdf",
    }
    assert (tmp_path / "out" / "tokens.csv").read_text().startswith("token,id,position,probability")
    assert (tmp_path / "out" / "words.csv").read_text().startswith("word,positions,probability")
    wrong = call("run", picture, "What?", "--format", "bmp")
    assert wrong.exit_code == 1 and "--format takes png, pdf, svg" in wrong.stderr


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


def test_an_error_names_flags_as_they_are_typed():
    def verb(prompt: str = "", box_format: str = "") -> None:
        raise lp.BadInput("VLM.ask(prompt=...) takes text; or box_format='xywh' or box_format=; columns= is elsewhere")

    app = typer.Typer()
    app.command()(as_command(verb))
    told = CliRunner().invoke(app, [])
    assert told.exit_code == 1
    assert told.output.strip() == "--prompt takes text; or box_format='xywh' or --box-format; columns= is elsewhere"


def test_rows_of_one_id_get_a_folder_each_and_their_own_system_message(picture, tmp_path):
    rows = [{"id": name, "image": str(picture), "question": SIGN} for name in ("a/b", "a_b", "c")]
    rows[2]["system"] = "Be brief."
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = call("run", tmp_path / "rows.jsonl", "--out", tmp_path / "o", "--no-maps")
    assert {path.parent.name for path in (tmp_path / "o").glob("*/answer.json")} >= {"a_b", "a_b_row1"}, done.output
