"""The verb trains as Python does, tells how far it came and how the adapter is loaded, and writes what was measured."""

from __future__ import annotations

import csv
import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import llava_probe as lp
from llava_probe import tiny
from llava_probe.cli import app
from llava_probe.finetune.finetune import finetune
from llava_probe.finetune.result import Finetuned

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's

FEW = ("--steps", 2, "--batch-size", 4, "--held-out", 0.4)


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def written(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Lines about four scenes: what stands beside a thing, in one word."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for seed in range(4):
        scene = tiny.scene(seed)
        scene.image.save(folder / f"{seed}.png")
        asked = [each for each in scene.questions if each.kind == "relation"][:2]
        rows += [{"image": f"{seed}.png", "question": q.question, "answer": q.answer.split()[1]} for q in asked]
    return written(folder / "data.jsonl", rows)


@pytest.fixture
def loaded(monkeypatch, tiny_vlm):
    """The tiny model, loaded once; how it was asked for."""
    asked = []

    def load(name, **settings):
        asked.append((name, settings))
        return tiny_vlm

    monkeypatch.setattr("llava_probe.finetune.finetune.load", load)
    return asked


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Instead of a training: what it was called with."""
    calls = []
    losses = ({"step": 1, "loss": 2.0, "learning_rate": 1e-3},)
    bad = ("line 2: there is no picture 'a\x1b.png'",) * 14

    def noted(data, model, out, **given):
        calls.append({"data": data, "model": model, "out": out, **given})
        Path(out).mkdir(exist_ok=True)
        parts = tuple((given["train"] or "language").split(","))
        return Finetuned(Path(out), parts, losses, (), 3, 9, 0.2, left_out=bad)

    monkeypatch.setattr("llava_probe.finetune.finetune.finetune", noted)
    return calls


def test_a_run_tells_how_far_it_came_and_writes_its_losses(data, loaded, tmp_path):
    words = ("finetune", data, "--out", tmp_path / "tuned", *FEW)
    done = call(*words)
    assert done.exit_code == 0, done.output
    python = finetune(data, out=tmp_path / "python", steps=2, batch_size=4, held_out=0.4)
    assert str(python) in done.stdout
    assert f"lp.load('tiny', adapter={str(tmp_path / 'tuned')!r})" in done.stdout
    assert f"--model tiny --adapter {tmp_path / 'tuned'}" in done.stdout
    with (tmp_path / "tuned" / "losses.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [0, 1, 2]
    assert (tmp_path / "tuned" / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert call(*words).stdout == done.stdout, "a finished run is told again, not trained again"


def test_a_dry_run_is_pythons_and_writes_nothing(data, loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("finetune", data, "--dry-run", *FEW)
    assert done.exit_code == 0, done.output
    told = str(finetune(data, dry_run=True, steps=2, batch_size=4, held_out=0.4))
    assert done.stdout.partition("about")[0] == told.partition("about")[0], "all but memory and time"
    assert not list(tmp_path.iterdir())


def test_bad_lines_are_told_by_their_numbers_before_anything_is_trained(data, loaded, tmp_path):
    lines = data.read_text().splitlines()
    rows = [json.loads(lines[0]), {"image": "gone.png", "question": "What?", "answer": "star"}]
    done = call("finetune", written(data.parent / "bad.jsonl", rows), "--out", tmp_path / "tuned")
    assert done.exit_code == 1
    assert "line 2" in done.stderr and "gone.png" in done.stderr and "--skip-bad" in done.stderr
    assert not (tmp_path / "tuned").exists()


def test_every_argument_of_python_is_an_option(trained, tmp_path):
    typed = {
        "stage": "align", "train": "projector,tower", "question": "What is it?", "images": "pictures", "split": "train",
        "held_out": 0.2, "epochs": 3, "steps": 7, "batch_size": 32, "micro_batch": 4, "lr": 0.01, "rank": 8,
        "max_length": 900, "seed": 5,
    }  # fmt: skip
    options = [word for name, value in typed.items() for word in (f"--{name.replace('_', '-')}", value)]
    flags = {"checkpointing": True, "skip_bad": True, "dry_run": False}
    options += ["--checkpointing", "--skip-bad", "--image-column", "picture", "--columns", "answer=label"]
    done = call("finetune", "data.jsonl", "--out", tmp_path / "o", *options, "--dtype", "float32")
    assert done.exit_code == 0, done.output
    (given,) = trained
    columns = {"answer": "label", "image": "picture"}
    where = {"data": "data.jsonl", "model": "tiny", "out": tmp_path / "o", "adapter": None, "progress": True}
    assert given == {**where, **typed, **flags, "columns": columns, "dtype": "float32"}
    named = {name for name, each in inspect.signature(finetune).parameters.items() if each.kind is not each.VAR_KEYWORD}
    assert named == set(given) - {"dtype"}


def test_an_adapter_is_where_it_starts_from(trained, tmp_path):
    (tmp_path / "aligned").mkdir()
    (tmp_path / "aligned" / "adapter_config.json").write_text("{}")
    (tmp_path / "aligned" / "adapter_model.safetensors").touch()
    done = call("finetune", "data.jsonl", "--out", tmp_path / "o", "--adapter", tmp_path / "aligned")
    assert done.exit_code == 0, done.output
    assert trained[0]["adapter"] == str(tmp_path / "aligned")
    assert f"adapter={str(tmp_path / 'o')!r}" in done.stdout, "the new one holds it"


def test_a_whole_model_is_loaded_by_its_folder(trained, tmp_path):
    done = call("finetune", "data.jsonl", "--out", tmp_path / "o", "--train", "everything")
    assert f"lp.load({str(tmp_path / 'o')!r})" in done.stdout and f"--model {tmp_path / 'o'}" in done.stdout


def test_what_was_left_out_is_told_and_cannot_act(trained, tmp_path):
    done = call("finetune", "data.jsonl", "--out", tmp_path / "o", "--skip-bad")
    assert done.stderr.count("line 2: there is no picture") == 12 and "and 2 more" in done.stderr
    assert "\x1b" not in done.stderr


def test_a_run_that_holds_nothing_out_is_told_to(trained, tmp_path):
    assert "--held-out 0.2" in call("finetune", "data.jsonl", "--out", tmp_path / "o").stderr


def test_of_several_processes_one_speaks_and_writes(trained, tmp_path, monkeypatch):
    other = SimpleNamespace(is_main_process=False)
    monkeypatch.setattr("llava_probe.finetune.training.this_process", lambda: other)
    done = call("finetune", "data.jsonl", "--out", tmp_path / "o")
    assert done.exit_code == 0 and not done.output
    assert trained[0]["progress"] is False and not list((tmp_path / "o").iterdir())


def test_without_a_folder_nothing_begins(trained):
    done = call("finetune", "data.jsonl")
    assert done.exit_code == 1 and "--out FOLDER" in done.stderr and not trained


def test_without_peft_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr("llava_probe.finetune.finetune.find_spec", lambda name: None)
    with pytest.raises(lp.BadInput, match=r"pip install 'llava_probe\[finetune\]'"):
        finetune([], out=tmp_path)


def test_the_room_of_this_name_is_called_like_the_function():
    """Whoever imports one of its files first has the room under the name ``lp.finetune``."""
    with pytest.raises(lp.BadInput, match="say where the adapter goes"):
        sys.modules["llava_probe.finetune"]([])
