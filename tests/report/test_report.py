"""``llava-probe signals``: the page tells Python's numbers, and a run loses nothing however it ends."""

from __future__ import annotations

import json

import pytest
from PIL import ImageFilter
from typer.testing import CliRunner

import llava_probe as lp
from llava_probe import tiny
from llava_probe.cli import app
from llava_probe.report.kinds import look_into
from llava_probe.tiny.plan import SHAPES

KINDS = [*SHAPES, "stop sign"]
SEEDS = range(6)


def call(*words):
    return CliRunner().invoke(app, ["signals", *map(str, words)])


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Blurred scenes with their questions, their objects as COCO's instances, and words for these."""
    folder = tmp_path_factory.mktemp("scenes")
    scenes = {seed: tiny.scene(seed) for seed in SEEDS}
    for seed, scene in scenes.items():
        scene.image.filter(ImageFilter.GaussianBlur(7)).save(folder / f"{seed}.png")
    asked = [(seed, each) for seed, scene in scenes.items() for each in scene.questions if each.answer in ("yes", "no")]
    rows = [{"image": f"{seed}.png", "text": each.question, "label": each.answer} for seed, each in asked]
    lines(folder / "tiny_pope_random.json", rows[::2])
    lines(folder / "tiny_pope_popular.json", rows[1::2])
    there = {
        "images": [{"id": seed, "file_name": f"{seed}.png"} for seed in scenes],
        "annotations": [{"image_id": s, "category_id": KINDS.index(o.kind)} for s in scenes for o in scenes[s].objects],
        "categories": [{"id": number, "name": kind} for number, kind in enumerate(KINDS)],
    }
    (folder / "instances.json").write_text(json.dumps(there))
    (folder / "words.txt").write_text("\n".join(KINDS))
    return folder


@pytest.fixture(autouse=True)
def held(monkeypatch, tiny_vlm, folder):
    monkeypatch.setattr("llava_probe.loading.load", lambda name, **settings: tiny_vlm)
    monkeypatch.chdir(folder)


FILES = ("tiny_pope_random.json", "tiny_pope_popular.json")


@pytest.fixture(scope="module")
def asked(folder, tmp_path_factory, tiny_vlm):
    """A whole run over both splits."""
    out = tmp_path_factory.mktemp("asked") / "out"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("llava_probe.loading.load", lambda name, **settings: tiny_vlm)
        done = call(*(folder / name for name in FILES), "--out", out)
    assert done.exit_code == 0, done.output
    return out, done.output


def test_questions_are_measured_as_in_python(asked, tiny_vlm):
    out, told = asked
    found = lp.pope({"random": FILES[0], "popular": FILES[1]}, tiny_vlm, progress=False)
    measures = json.loads((out / "measures.json").read_text())
    page = (out / "report.md").read_text()
    assert str(found) in told
    for name, split in found.splits.items():
        assert {key: measures[name][key] for key in found.to_dict()[name]} == found.to_dict()[name]
        yes = lp.calibration(split.yes, split.labels, split.pictures)
        assert measures[name]["calibration of yes"]["ece"] == yes.ece.to_dict()
        sure = [max(share, 1 - share) for share in split.yes]
        right = lp.calibration(sure, (split.yes > 0.5) == split.labels, split.pictures)
        assert measures[name]["calibration of the answer"]["risk"] == right.risk.tolist()
        told = [split.text.f1, split.weighed.accuracy, yes.ece, yes.brier, yes.auroc, right.accuracy_at(0.5)]
        assert all(str(measure) in page for measure in told)
    assert 0 < float(found.splits["random"].text.accuracy) < 1, "there is something to tell"
    assert "12 questions about 6 pictures" in page and "## Surest and wrong" in page
    assert all((out / name).stat().st_size > 10_000 for name in ("reliability.png", "risk_coverage.png"))
    assert lp.pope(out / "answers.jsonl", out / "answers.jsonl").to_dict() == found.to_dict()


def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(asked, tiny_vlm, tmp_path, monkeypatch):
    whole, calls = (asked[0] / "answers.jsonl").read_bytes(), []

    def stopped(*given, **named):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return lp.VLM.generate_batch(tiny_vlm, *given, **named)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(tiny_vlm, "generate_batch", stopped, raising=False)
        broken = call(*FILES, "--out", out)
    assert (
        broken.exit_code == 130
        and "Stopped after 3 of 12 rows" in broken.output
        and "goes on from there" in broken.output
    )
    assert (out / "answers.jsonl").read_bytes() == b"".join(whole.splitlines(keepends=True)[:3])
    with (out / "answers.jsonl").open("ab") as file:
        file.write(b'{"row": 3, "ima')
    with pytest.warns(UserWarning, match="is not whole"):
        assert call(*FILES, "--out", out).exit_code == 0
    for name in ("answers.jsonl", "measures.json"):
        assert (out / name).read_bytes() == (asked[0] / name).read_bytes()
    other = call(FILES[1], FILES[0], "--out", out)
    assert other.exit_code == 1 and "holds answers to other rows" in other.output
    slower = call(*FILES, "--out", out, "--max-new-tokens", 3)
    assert slower.exit_code == 1 and "made in another way (max_new_tokens: 16, here 3)" in slower.output


def test_a_row_that_fails_is_told_and_tried_again(folder, tmp_path, tiny_vlm):
    rows = [json.loads(line) for line in (folder / FILES[0]).read_text().splitlines()[:3]]
    for row in rows:
        row["image"] = str(folder / row["image"])
    rows[1]["image"] = str(tmp_path / "late.png")
    questions, out = lines(tmp_path / "mine.jsonl", rows), tmp_path / "out"
    some = call(questions, "--out", out, "--batch-size", 2)
    assert some.exit_code == 1 and "1 of 3 rows failed" in some.output and "line 2" in some.output
    page = (out / "report.md").read_text()
    assert "2 questions about" in page and "## 1 rows are missing" in page and "late.png" in page
    tiny.scene(1).image.save(tmp_path / "late.png")
    assert call(questions, "--out", out, "--batch-size", 2).exit_code == 0
    assert "3 questions about" in (out / "report.md").read_text()
    alone = call(lines(tmp_path / "none.jsonl", [{**rows[0], "image": "gone.png"}]), "--out", tmp_path / "none")
    assert alone.exit_code == 1 and "none of 1 rows could be asked" in alone.output


def test_pictures_are_described_and_judged_as_in_python(folder, tiny_vlm, tmp_path):
    out = tmp_path / "out"
    done = call("instances.json", "--synonyms", "words.txt", "--out", out)
    assert done.exit_code == 0, done.output
    traces = {seed: tiny_vlm.generate(f"{seed}.png", "Describe the image.", max_new_tokens=64) for seed in SEEDS}
    made = lp.chair(traces, "instances.json", synonyms="words.txt")
    assert str(made) in done.output
    found = [lp.hallucination(tiny_vlm, trace, synonyms="words.txt") for trace in traces.values()]
    truths = [
        [thing not in report.there for thing in each.objects] for each, report in zip(found, made.captions, strict=True)
    ]
    table = lp.signal_table(found, truths, list(traces))
    assert str(table) in done.output
    page, measures = (out / "report.md").read_text(), json.loads((out / "measures.json").read_text())
    assert measures["chair"] == made.to_dict() and measures["signals"]["auroc"] == table.to_dict()["auroc"]
    assert str(table["entropy"].auroc) in page and "signals.png" in page and (out / "signals.png").is_file()
    again = lp.chair(out / "captions.jsonl", "instances.json", synonyms="words.txt")
    assert again.to_dict() == made.to_dict()


KINDS_OF_FILES = {
    FILES[0]: ("questions", None),
    "instances.json": ("pictures", None),
    ".": ("pictures", None),
    "captions.jsonl": ("captions", "caption"),
    "results.json": ("captions", "caption"),
    "LLaVA's answers.jsonl": ("captions", "text"),
    "pictures.jsonl": ("pictures", None),
}


@pytest.mark.parametrize("name", KINDS_OF_FILES)
def test_what_a_file_holds_is_told_from_its_rows(name, tmp_path, folder):
    row = {"image_id": 3, "caption": "A star."}
    files = {
        "captions.jsonl": json.dumps(row),
        "results.json": json.dumps([row]),
        "LLaVA's answers.jsonl": json.dumps({"image": "3.png", "text": "A star."}),
        "pictures.jsonl": json.dumps({"image": "3.png"}),
    }
    for each, text in files.items():
        (tmp_path / each).write_text(text)
    given = look_into([str(tmp_path / name if name in files else folder / name)])
    assert (given.kind, given.captions) == KINDS_OF_FILES[name]
    assert (given.instances is not None) == (name == "instances.json")


def test_captions_of_somebody_are_judged_without_a_model_and_read_with_one(tiny_vlm, tmp_path, monkeypatch):
    rows = [{"image_id": seed, "caption": "A red circle and a star. A stop sign at the top."} for seed in SEEDS]
    mine, known = lines(tmp_path / "captions.jsonl", rows), ("--instances", "instances.json", "--synonyms", "words.txt")
    made = lp.chair(mine, "instances.json", synonyms="words.txt")
    with monkeypatch.context() as patched:
        patched.setattr("llava_probe.loading.load", None)
        done = call(mine, *known, "--out", tmp_path / "alone")
    assert done.exit_code == 0 and str(made) in done.output
    assert "Not scored: no model was given the pictures" in (tmp_path / "alone" / "report.md").read_text()
    read = call(mine, *known, "--images", "{image_id}.png", "--out", tmp_path / "read")
    assert read.exit_code == 0, read.output
    assert json.loads((tmp_path / "read" / "measures.json").read_text())["chair"] == made.to_dict()
    line = json.loads((tmp_path / "read" / "captions.jsonl").read_text().splitlines()[0])
    scored = tiny_vlm.score("0.png", "Describe the image.", rows[0]["caption"])
    words = lp.hallucination(tiny_vlm, scored, synonyms="words.txt")
    assert [word["object"] for word in line["words"]] == ["circle", "star", "stop sign"] == list(words.objects)
    assert [word["svar"] for word in line["words"]] == pytest.approx(list(words.values["svar"]))


WRONG = {
    "no file": (("nowhere.json",), "there is no file or folder"),
    "files of two kinds": ((FILES[0], "i.json"), "several files are splits"),
    "captions without instances": (("captions.jsonl",), "say what is on the pictures with --instances"),
    "questions with instances": ((FILES[0], "--instances", "i.json"), "are for captions"),
    "a label": (("labels.jsonl",), "the label of line 1 of labels.jsonl is 'maybe'"),
    "a split twice": ((FILES[0], FILES[0]), "two files are the split 'random'"),
    "no row": (("empty.jsonl",), "holds no row that can be read"),
    "another picture": (("other.jsonl", "--instances", "i.json", "--synonyms", "words.txt"), "1 of 1 pictures (99)"),
    "no number": (("unnumbered.jsonl", "--instances", "i.json"), "has no number of COCO's"),
    "no picture's folder": ((FILES[0], "--images", "nowhere"), "is no folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_one_sentence(name, folder, tmp_path, monkeypatch):
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "labels.jsonl", [{"image": "0.png", "text": "Is there?", "label": "maybe"}])
    lines(tmp_path / "captions.jsonl", [{"image_id": 0, "caption": "A star."}])
    lines(tmp_path / "other.jsonl", [{"image_id": 99, "caption": "A star."}])
    lines(tmp_path / "unnumbered.jsonl", [{"image": "star.png", "caption": "A star."}])
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "instances.json").rename(tmp_path / "i.json")
    words, why = WRONG[name]
    done = call(*words, "--out", tmp_path / "out")
    assert done.exit_code == 1 and why in done.output and "Traceback" not in done.output


def test_lines_of_captions_that_this_package_wrote_are_read_again(tmp_path):
    """They hold the whole prompt too, which is how the caption was made and not how it is asked about."""
    row = {"image_id": 0, "image": "0.png", "prompt": "USER: <image> Describe it.", "caption": "A red circle."}
    mine = lines(tmp_path / "captions.jsonl", [row])
    known = ("--instances", "instances.json", "--synonyms", "words.txt", "--images", "{image_id}.png")
    done = call(mine, *known, "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    line = json.loads((tmp_path / "o" / "captions.jsonl").read_text().splitlines()[0])
    assert line["prompt"] == row["prompt"] and [word["object"] for word in line["words"]] == ["circle"]
