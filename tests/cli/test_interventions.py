"""Interventions typed as flags are those of Python: the same logits, in the order typed, told before and after."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack

import pytest
import torch
from typer.testing import CliRunner

import llava_probe as lp
from llava_probe import tiny
from llava_probe.cli import app

SIGN = "What is the text on the stop sign?"


@pytest.fixture(scope="module")
def scene():
    return next(s for s in map(tiny.scene, range(100, 200)) if any(thing.text for thing in s.objects))


@pytest.fixture
def picture(scene, tmp_path):
    path = tmp_path / "scene.png"
    scene.image.save(path)
    return str(path)


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    path = tmp_path_factory.mktemp("probes") / "a colour.probe"
    weights = torch.randn(192, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    told = ("colour", "classification", "logistic", ("red", "blue"), "layer_4", "last_prompt")
    made = lp.Probe(weights, torch.zeros(2, dtype=torch.float64), *told)
    made.save(path)
    return path, made


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def run(picture, out, *words):
    done = call("run", picture, SIGN, "--out", out, "--no-maps", *words)
    assert done.exit_code == 0, done.output
    return done.stdout, lp.Trace.load(out / "run.trace")


def under(vlm, picture, *contexts):
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        return vlm.generate(picture, SIGN, max_new_tokens=64)


FLAGS = {
    "keys": (
        ("--knock-out", "keys=image queries=last layers=1-3"),
        lambda vlm: lp.knock_out(vlm, keys="image", queries="last", layers=[1, 2, 3]),
    ),
    "keep": (
        ("--knock-out", "keep=question,3-17 queries=last layers=2"),
        lambda vlm: lp.knock_out(vlm, keep=["question", *range(3, 18)], queries="last", layers=2),
    ),
    "spread": (
        ("--knock-out", "keys=stop sign uniform=true heads=0,2 phase=prompt"),
        lambda vlm: lp.knock_out(vlm, keys="stop sign", uniform=True, heads=[0, 2], phase="prompt"),
    ),
    "a box of keys": (
        ("--knock-out", "box=100,100,200,220 ring=1 queries=last"),
        lambda vlm: lp.knock_out(vlm, keys=lp.Region((100, 100, 200, 220), ring=1), queries="last"),
    ),
    "tokens": (("--ablate", "tokens=image with=mean"), lambda vlm: lp.ablate(vlm, tokens="image")),
    "a constant": (("--ablate", "tokens=lp.IMAGE"), lambda vlm: lp.ablate(vlm, tokens=lp.IMAGE)),
    "drawn": (
        ("--ablate", "tokens=10-20 with=resample seed=3"),
        lambda vlm: lp.ablate(vlm, tokens=list(range(10, 21)), with_="resample", seed=3),
    ),
    "a box": (
        ("--ablate", "box=10,20,60,80 ring=1 with=zero"),
        lambda vlm: lp.ablate(vlm, tokens=lp.Region((10, 20, 60, 80)), ring=1, with_="zero"),
    ),
    "heads": (
        ("--ablate", "heads=2.3,4.0-1"),
        lambda vlm: lp.ablate(vlm, heads={2: [3], 4: [0, 1]}),
    ),
    "MLPs": (
        ("--ablate", "mlp=1-2,4 at=last phase=prompt"),
        lambda vlm: lp.ablate(vlm, mlp=[1, 2, 4], at="last", phase="prompt"),
    ),
    "blocks": (("--ablate", "layers=3 with=zero"), lambda vlm: lp.ablate(vlm, layers=3, with_="zero")),
    "blocks at a box": (
        ("--ablate", "layers=3 box=10,20,60,80"),
        lambda vlm: lp.ablate(vlm, layers=3, at=lp.Region((10, 20, 60, 80))),
    ),
    "logits": (
        ("--reweight", "keys=image queries=last by=0.2 how=logits"),
        lambda vlm: lp.reweight(vlm, keys="image", queries="last", by=0.2),
    ),
    "moved": (
        ("--reweight", "keys=image by=-0.3 how=move layers=0-2"),
        lambda vlm: lp.reweight(vlm, keys="image", by=-0.3, how="move", layers=[0, 1, 2]),
    ),
    "a word": (
        ("--steer", "word=red layers=4 scale=2 at=image"),
        lambda vlm: lp.steer(vlm, lp.Direction.of_word(vlm, "red"), layers=4, scale=2, at="image"),
    ),
    "projected out": (
        ("--steer", "word=red layers=2-4 project-out=true phase=answer"),
        lambda vlm: lp.steer(vlm, lp.Direction.of_word(vlm, "red"), layers=[2, 3, 4], project_out=True, phase="answer"),
    ),
    "a random direction": (
        ("--steer", "word=red layers=2 random=7"),
        lambda vlm: lp.steer(vlm, lp.Direction.of_word(vlm, "red"), layers=2, random=7),
    ),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_the_intervention_of_python(name, picture, tmp_path, tiny_vlm):
    words, context = FLAGS[name]
    _, trace = run(picture, tmp_path / "out", *words)
    expected = under(tiny_vlm, picture, context(tiny_vlm))
    assert torch.equal(trace.logits, expected.logits)
    if not name.startswith("a box"):  # a ring may be the region's or the ablation's
        assert trace.interventions == expected.interventions


def test_a_push_goes_where_a_probe_points(picture, tmp_path, tiny_vlm, probe):
    path, made = probe
    _, trace = run(picture, tmp_path / "out", "--steer", f"probe={path} label=blue layers=4")
    direction = lp.Direction.of_probe(made, "blue")
    assert torch.equal(trace.logits, under(tiny_vlm, picture, lp.steer(tiny_vlm, direction, layers=4)).logits)


def test_flags_hold_in_the_order_typed_whatever_their_kinds(picture, tmp_path, tiny_vlm):
    push, cut, gone = "word=red layers=4 at=last", "keys=image layers=1", "word=red layers=4 at=last project_out=true"
    given = {"layers": 4, "at": "last"}
    red = lp.Direction.of_word(tiny_vlm, "red")
    make = {
        push: lambda: lp.steer(tiny_vlm, red, **given),
        cut: lambda: lp.knock_out(tiny_vlm, keys="image", layers=1),
        gone: lambda: lp.steer(tiny_vlm, red, **given, project_out=True),
    }
    found = []
    for order in ((push, cut, gone), (gone, cut, push)):
        words = [word for text in order for word in ("--knock-out" if text == cut else "--steer", text)]
        _, trace = run(picture, tmp_path / "out", f"{words[0]}={words[1]}", *words[2:])
        expected = under(tiny_vlm, picture, *(make[text]() for text in order))
        assert [told["kind"] for told in trace.interventions] == ["steer", "knock_out", "steer"]
        assert trace.interventions == expected.interventions and torch.equal(trace.logits, expected.logits)
        found.append(trace)
    assert not torch.equal(found[0].logits, found[1].logits)


def test_a_plan_is_told_before_and_acts_after_and_the_files_are_as_without(picture, tmp_path):
    cut, push = "keys=image queries=last layers=1-2,4", "word=red layers=4 scale=0.1 at=image"
    told, trace = run(picture, tmp_path / "cut", "--knock-out", cut, "--steer", push)
    run(picture, tmp_path / "plain")
    lines = told.splitlines()
    assert lines[0] == f"--knock-out {cut}"
    assert "of blocks 1, 2, 4, all heads" in lines[1] and "they are not looked at" in told
    visual = sum(token.role == "image" for token in trace.tokens)
    acted = f"acted in blocks 1-2, {visual} pairs each; 4, {visual} pairs, over 1 pass"
    assert lines.index(f"--steer {push}: acted in hidden state 4, {visual} positions, over 1 pass") == (
        lines.index(f"--knock-out {cut}: {acted}") + 1
    )
    assert told.index("typical norm") < told.index("acted in") < told.index("under knock_out(")
    files = [
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        for folder in (tmp_path / "cut", tmp_path / "plain")
    ]
    assert files[0] == files[1]
    one, two = (json.loads((tmp_path / name / "answer.json").read_text()) for name in ("cut", "plain"))
    assert one.keys() == two.keys() and len(one["interventions"]) == 2 and two["interventions"] == []


def test_each_row_of_a_folder_is_changed_and_the_plan_told_once(scene, tmp_path, tiny_vlm):
    (tmp_path / "many").mkdir()
    for name in ("a.png", "b.png"):
        scene.image.save(tmp_path / "many" / name)
    done = call("run", tmp_path / "many", SIGN, "--out", tmp_path / "o", "--no-maps", "--ablate", "tokens=image")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("replaced with mean") == 1 and done.stdout.count("acted in hidden state 0") == 2
    expected = under(tiny_vlm, scene.image, lp.ablate(tiny_vlm, tokens="image"))
    for path in (tmp_path / "o").glob("*/run.trace"):
        assert torch.equal(lp.Trace.load(path).logits, expected.logits)


def test_what_is_attributed_is_the_changed_model(picture, tmp_path, tiny_vlm):
    words = ("--method", "gradient", "--knock-out", "keys=image layers=2-3", "--tokens", "lp.GENERATED")
    done = call("attribute", picture, SIGN, *words, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    with lp.knock_out(tiny_vlm, keys="image", layers=[2, 3]):
        trace = tiny_vlm.generate(picture, SIGN)
        expected = lp.attribute(tiny_vlm, trace, "gradient", tokens=lp.GENERATED)
    assert torch.allclose(lp.ImageMap.load(tmp_path / "attribution").values, expected.values, atol=1e-6)
    assert "acted in blocks 2-3" in done.stdout


@pytest.mark.filterwarnings("ignore:.*under an intervention")
def test_what_is_extracted_is_of_the_changed_model(picture, tmp_path, tiny_vlm):
    pytest.importorskip("pyarrow")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"image": picture, "question": SIGN}))
    done = call("extract", rows, "--out", tmp_path / "store", "--layers", "4", "--ablate", "mlp=1-2")
    assert done.exit_code == 0, done.output
    store = lp.Features(tmp_path / "store")
    trace = under(tiny_vlm, picture, lp.ablate(tiny_vlm, mlp=[1, 2]))
    torch.testing.assert_close(store["layer_4", "last_prompt"][:][0], trace.hidden(layer=4, at="last")[0])
    assert store.interventions == trace.interventions and "acted in blocks 1-2" in done.stdout


# --- refused ---

WRONG = {
    "no name": ("--ablate", "image", "--ablate takes NAME=VALUE with blanks between them, such as 'tokens=image"),
    "nothing": ("--ablate", "", "--ablate takes NAME=VALUE"),
    "no value": ("--knock-out", "keys= layers=3", "--knock-out takes NAME=VALUE"),
    "an unknown name": ("--ablate", "token=image", "--ablate knows no 'token'; it takes tokens, heads, mlp, layers,"),
    "another's name": ("--knock-out", "keys=image by=2", "--knock-out knows no 'by'; it takes keys, keep, queries,"),
    "a name twice": ("--ablate", "mlp=1 mlp=2", "--ablate says mlp twice"),
    "layers": ("--ablate", "layers=x", "--ablate layers takes whole numbers and ranges such as 8-16,20; got 'x'"),
    "layers back": ("--ablate", "layers=9-3", "--ablate layers takes whole numbers and ranges"),
    "too many": ("--ablate", "layers=0-999999999", "--ablate layers takes whole numbers and ranges"),
    "heads": ("--ablate", "heads=3", "--ablate heads takes BLOCK.HEAD such as 12.3,12.7 or 12.0-3; got '3'"),
    "a box": ("--ablate", "box=1,2,3", "--ablate box takes four numbers x0,y0,x1,y1 in pixels of the photograph"),
    "a box and tokens": ("--ablate", "box=1,2,3,4 tokens=image", "--ablate box stands in place of tokens"),
    "a box and keep": ("--knock-out", "box=1,2,3,4 keep=last", "--knock-out box stands in place of keep"),
    "a ring": ("--knock-out", "keys=image ring=1", "--knock-out ring is of a box, which was not given"),
    "a choice": ("--ablate", "mlp=1 with=noise", "--ablate with takes mean, zero or resample; got 'noise'"),
    "a phase": ("--ablate", "mlp=1 phase=later", "--ablate phase takes prompt, answer or both; got 'later'"),
    "how": ("--reweight", "keys=image by=1 how=much", "--reweight how takes logits, weights or move; got 'much'"),
    "no number": ("--reweight", "keys=image by=nan", "--reweight by takes a number; got 'nan'"),
    "no strength": ("--reweight", "keys=image", "--reweight needs by, such as"),
    "no layers": ("--steer", "word=red", "--steer needs layers, such as 'word=red layers=4"),
    "no direction": ("--steer", "layers=4", "--steer takes a word, or a probe and its label; got 'layers=4'"),
    "two directions": ("--steer", "layers=4 word=red probe=x", "--steer takes a word, or a probe and its label"),
    "a label alone": ("--steer", "layers=4 word=red label=x", "--steer label is of a probe, which was not given"),
    "no probe": ("--steer", "probe=/nowhere.probe layers=4", "/nowhere.probe"),
    "true or false": ("--knock-out", "keys=image uniform=maybe", "--knock-out uniform takes true or false"),
}


@pytest.mark.parametrize("verb", ["run", "attribute", "extract"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_one_sentence_before_a_model_is_loaded(name, verb, picture, tmp_path, monkeypatch):
    monkeypatch.setattr("llava_probe.loading.load", lambda *_given, **_more: pytest.fail("a model was loaded"))
    flag, text, sentence = WRONG[name]
    asked = (picture,) if verb == "extract" else (picture, SIGN)
    done = call(verb, *asked, "--out", tmp_path / "o", flag, text)
    assert done.exit_code == 1 and sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.output


IMPOSSIBLE = {
    "two parts": ("--ablate", "tokens=image mlp=3", "--ablate tokens=image mlp=3: ablate takes one of 'tokens'"),
    "no part": ("--ablate", "at=image", "--ablate at=image: ablate takes one of 'tokens', 'heads', 'mlp' and 'layers'"),
    "no keys": ("--knock-out", "queries=last", "--knock-out queries=last: knock_out takes 'keys', or 'keep'"),
    "a layer": ("--steer", "word=red layers=99", "--steer word=red layers=99: layer 99 is not there"),
    "a head": ("--ablate", "heads=1.77", "--ablate heads=1.77: head 77 is not there"),
    "more than there is": ("--reweight", "keys=image by=3 how=move", "by=3 is more than there is"),
    "a word": ("--ablate", "tokens=zebra", "'zebra' is neither a word of the prompt nor a place ("),
    "a position": ("--knock-out", "keys=500", "did nothing: no pass held a key that keys=500 names"),
    "no push": ("--steer", "word=red layers=4 scale=0", "did nothing: scale=0"),
    "elsewhere": ("--ablate", "box=900,900,950,950", "outside its picture"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_this_model_cannot_do_is_a_sentence_and_writes_nothing(name, picture, tmp_path):
    flag, text, sentence = IMPOSSIBLE[name]
    done = call("run", picture, SIGN, "--out", tmp_path / "o", flag, text)
    assert done.exit_code == 1
    assert sentence in done.stderr and "Traceback" not in done.output
    assert not list((tmp_path / "o").rglob("*.*"))


@pytest.mark.parametrize("verb", ["run", "attribute", "extract"])
def test_help_tells_each_flag_with_an_example(verb):
    done = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert done.exit_code == 0 and "Interventions" in done.stdout
    for flag, example in {
        "--knock-out": "keys=image queries=last layers=8-16",
        "--ablate": "tokens=image",
        "--reweight": "by=0.2 how=logits",
        "--steer": "word=red layers=4 scale=2 at=image",
    }.items():
        assert flag in done.stdout and example in re.sub(r"\s*\n[\s│]*", " ", done.stdout)


@pytest.mark.parametrize("verb", ["demo", "check", "leaderboard", "fit-probe"])
def test_other_verbs_take_none(verb):
    assert "--knock-out" not in CliRunner().invoke(app, [verb, "--help"]).stdout


@pytest.mark.filterwarnings("ignore:.*under an intervention")
def test_an_extraction_that_is_done_is_done_again_without_a_pass(picture, tmp_path):
    rows = tmp_path / "rows.jsonl"
    asked = [{"image": str(picture), "question": question} for question in (SIGN, "What is it?")]
    rows.write_text("\n".join(map(json.dumps, asked)))
    words = ("extract", rows, "--out", tmp_path / "store", "--layers", "4", "--batch-size", "1", "--no-pack")
    words = (*words, "--ablate", "mlp=1")
    first = call(*words)
    assert first.exit_code == 0 and "over 2 passes" in first.output, first.output
    again = call(*words)
    assert again.exit_code == 0 and "--ablate mlp=1: nothing was left to run" in again.output, again.output
