"""Fine-tuning keeps its promises: it tells what cannot be trained, what it trained, and that it learnt."""

import json
import os
import random
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

import llava_probe as lp
from llava_probe import tiny
from llava_probe.finetune import finetune as room
from llava_probe.finetune.conversations import read_conversations
from llava_probe.finetune.plan import split
from llava_probe.finetune.rows import RowMaker

NEW = "What is new?"


def sound(count=6):
    """Rows of a question that the tiny model was never asked, soon learnt; the answer is a word that it knows."""
    scenes = [tiny.scene(seed) for seed in range(2_000_000, 2_000_000 + count)]
    return [{"image": scene.image, "question": NEW, "answer": "purple star"} for scene in scenes]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A short run, and its data."""
    data = sound(8)
    out = tmp_path_factory.mktemp("run") / "tuned"
    return data, lp.finetune(data, "tiny", out, epochs=3, batch_size=4, lr=5e-3, held_out=0.25, rank=4)


def test_bad_rows_are_listed_with_their_lines_before_training(tmp_path):
    rows = tmp_path / "rows.jsonl"
    picture = tmp_path / "scene.png"
    tiny.scene(3).image.save(picture)
    good = {"image": "scene.png", "question": NEW, "answer": "star"}
    bad = [good | {"answer": " "}, good | {"image": "gone.png"}]
    rows.write_text("\n".join(json.dumps(row) for row in (good, bad[0], good, bad[1])))
    with pytest.raises(lp.BadInput, match=r"2 rows cannot be trained on, 2 can:\n  line 2: .*\n  line 4: .*gone.png"):
        lp.finetune(rows, "tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    told = lp.finetune(rows, "tiny", skip_bad=True, dry_run=True, held_out=0.0)
    assert (told.rows, len(told.left_out)) == (2, 2)


def test_a_dry_run_shows_what_is_trained_and_trains_nothing():
    vlm = lp.load()
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    told = lp.finetune(sound(3), vlm, dry_run=True, held_out=0.0)
    assert "".join(each.text for each in told.tokens if each.trained).strip() == "purple star</s>"
    assert told.visual == 196
    assert "<image> × 196" in str(told)
    assert told.memory > told.weights > 0
    assert told.seconds > 0
    assert all(before[name].equal(value) for name, value in vlm.model.state_dict().items())


def test_it_learns_and_what_loads_is_what_was_trained(tuned):
    data, run = tuned
    assert run.losses[-1]["loss"] < run.losses[0]["loss"] / 2
    assert run.moved > 0.01
    assert run.merged < 1e-3
    loaded = lp.load(adapter=run.folder)  # the check row's logits are compared
    seen = loaded.score(data[0]["image"], NEW, data[0]["answer"])
    plain = lp.load().score(data[0]["image"], NEW, data[0]["answer"])
    assert lp.confidence(seen).logprob.sum() > lp.confidence(plain).logprob.sum() + 1


def test_exact_is_what_generate_says(tuned):
    data, run = tuned
    vlm = lp.load(adapter=run.folder)
    rows, _ = RowMaker(vlm)(read_conversations(data))
    _, held = split(rows, 0.25, 0)
    said = [vlm.generate(row.sample.images[0], NEW, max_new_tokens=8).answer.strip() for row in held]
    right = sum(answer == row.sample.answer for answer, row in zip(said, held, strict=True))
    assert run.held_out[-1]["exact"] == pytest.approx(right / len(held))


def test_the_same_call_again_trains_nothing_more(tuned):
    data, run = tuned
    stamp = (run.folder / "adapter_model.safetensors").stat().st_mtime_ns
    again = lp.finetune(data, "tiny", run.folder, epochs=3, batch_size=4, lr=5e-3, held_out=0.25, rank=4)
    assert (run.folder / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    assert again.losses == run.losses
    with pytest.raises(lp.BadInput, match="another run"):
        lp.finetune(data, "tiny", run.folder, epochs=3, batch_size=4, lr=1e-3, held_out=0.25, rank=4)


def test_no_picture_is_on_both_sides():
    vlm = lp.load()
    data = [row | {"question": f"{NEW} {number}"} for row in sound(5) for number in range(3)]
    rows, _ = RowMaker(vlm)(read_conversations(data))
    kept, held = split(rows, 0.4, 0)
    assert (len(kept), len(held)) == (9, 6)
    assert not {row.picture for row in kept} & {row.picture for row in held}


def test_a_training_that_moves_nothing_is_an_error(tmp_path):
    with pytest.raises(lp.BadModel, match="training changed nothing"):
        lp.finetune(sound(2), "tiny", tmp_path / "out", steps=1, lr=1e-30, held_out=0.0)


def test_a_second_stage_that_moves_nothing_is_an_error_too(tuned, tmp_path):
    """Beside the base it did move: what the first stage taught."""
    data, run = tuned
    with pytest.raises(lp.BadModel, match="training changed nothing"):
        lp.finetune(data, "tiny", tmp_path / "out", adapter=run.folder, steps=1, lr=1e-30, held_out=0.0)


def test_a_lora_that_is_trained_further_keeps_its_rank(tuned, tmp_path):
    data, run = tuned
    settings = {"adapter": run.folder, "steps": 1, "batch_size": 2, "lr": 1e-3, "held_out": 0.0}
    with pytest.raises(lp.BadInput, match="has rank 4 and keeps it; leave out rank=64"):
        lp.finetune(data, "tiny", tmp_path / "out", rank=64, **settings)
    lp.finetune(data, "tiny", tmp_path / "out", **settings)
    assert json.loads((tmp_path / "out" / "finetune.json").read_text())["settings"]["rank"] == 4


def test_an_adapter_that_merges_to_another_model_is_told(tmp_path, monkeypatch):
    def apart(*_):
        raise lp.BadModel("merged it is another")

    monkeypatch.setattr(room, "merged_as_unmerged", apart)
    with pytest.warns(UserWarning, match="beside the weights, not merged into them: merged it is another"):
        run = lp.finetune(sound(2), "tiny", tmp_path / "out", steps=1, lr=1e-2, held_out=0.0)
    assert run.merged is None


def test_the_tower_alone_can_be_trained(tmp_path):
    run = lp.finetune(sound(3), "tiny", tmp_path / "out", train="tower", steps=2, batch_size=2, lr=1e-2, held_out=0.0)
    assert run.parts == ("tower",) and run.moved > 1e-3
    names = load_file(run.folder / "adapter_model.safetensors").keys()
    assert names and all("vision_tower" in name for name in names)
    lp.load("tiny", adapter=run.folder)  # the check row's logits are compared


def test_a_model_is_looked_for_as_it_is_loaded(monkeypatch):
    asked = []

    def look(name=None, **settings):
        asked.append(settings)
        raise lp.BadModel("no such place")

    monkeypatch.setattr(room, "look", look)
    with pytest.raises(lp.BadModel, match="no such place"):
        lp.finetune(sound(2), "org/private", "out", token="secret", revision="v2")
    assert asked == [{"token": "secret", "revision": "v2"}]


def test_all_held_out_is_refused(tmp_path):
    with pytest.raises(lp.BadInput, match="leaves nothing to train on"):
        lp.finetune(sound(2), "tiny", tmp_path / "out", held_out=1.0)


def test_one_stage_starts_from_the_other_and_keeps_it(tmp_path):
    data = sound(4)
    captions = [{"image": row["image"], "caption": "There is a star."} for row in data]
    asked = {"question": "Describe the image.", "steps": 2, "batch_size": 2, "lr": 1e-3, "held_out": 0.0}
    first = lp.finetune(captions, "tiny", tmp_path / "aligned", stage="align", **asked)
    assert first.parts == ("projector",)
    asked.pop("question")
    second = lp.finetune(data, "tiny", tmp_path / "tuned", adapter=first.folder, **asked)
    assert second.parts == ("language",)
    ways = {name: lp.load(adapter=folder).model for name, folder in (("one", first.folder), ("two", second.folder))}
    projectors = {
        name: {key: value for key, value in model.state_dict().items() if "modules_to_save" in key}
        for name, model in ways.items()
    }
    assert projectors["one"]
    assert all(projectors["two"][key].equal(value) for key, value in projectors["one"].items())


def test_in_bfloat16_too_what_loads_is_what_was_trained(tmp_path):
    out = tmp_path / "out"
    settings = {"train": "language,projector", "steps": 2, "batch_size": 2, "lr": 1e-2, "held_out": 0.0}
    run = lp.finetune(sound(3), "tiny", out, dtype="bfloat16", **settings)
    assert run.moved > 0.01
    lp.load("tiny", adapter=out, dtype="bfloat16")  # the check row's logits are compared


@pytest.mark.filterwarnings("ignore:.*have no picture")
def test_rows_of_words_train_beside_rows_with_pictures(tmp_path):
    words = {"messages": [{"role": "user", "content": "What is new?"}, {"role": "assistant", "content": "a star"}]}
    seen = [
        {"images": [row["image"]], "messages": [{"role": "user", "content": NEW}, *words["messages"][1:]]}
        for row in sound(2)
    ]
    settings = {"stage": "align", "batch_size": 1, "lr": 1e-2, "held_out": 0.0}
    run = lp.finetune([words, *seen], "tiny", tmp_path / "out", **settings)
    assert run.moved > 0
    with pytest.raises(lp.BadModel, match="no row has a picture"):
        lp.finetune([words], "tiny", tmp_path / "none", **settings)


def test_rows_joined_by_a_picture_of_theirs_stay_on_one_side(tmp_path):
    scenes = [tiny.scene(seed).image for seed in range(2_000_000, 2_000_006)]
    for number, image in enumerate(scenes):
        image.save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in range(6)]
    (tmp_path / "again.png").symlink_to(tmp_path / "0.png")
    said = [{"role": "user", "content": "What changed?"}, {"role": "assistant", "content": "a star"}]
    pairs = [(paths[0], paths[1]), (paths[1], paths[2]), (paths[3], paths[4]), (str(tmp_path / "again.png"), paths[5])]
    rows, faults = RowMaker(lp.load())(read_conversations([{"images": [*pair], "messages": said} for pair in pairs]))
    assert not faults
    kept, held = split(rows, 0.5, 0)
    assert sorted(map(len, (kept, held))) == [1, 3]


@pytest.mark.filterwarnings("ignore:.*have no picture")
def test_copies_of_a_picture_and_of_words_stay_on_one_side(tmp_path):
    for number in range(8):
        tiny.scene(2_000_000 + number // 2).image.save(tmp_path / f"{number}.png")
    data = [{"image": str(tmp_path / f"{number}.png"), "question": NEW, "answer": "a star"} for number in range(8)]
    data += [{"question": f"What is {number // 2}?", "answer": "a number"} for number in range(8)]
    rows, faults = RowMaker(lp.load())(read_conversations(data))
    assert not faults
    for seed in range(6):
        kept, held = split(rows, 0.4, seed)
        sides = [{number // 2 for number, row in enumerate(rows) if row in side} for side in (kept, held)]
        assert len(sides[0]) + len(sides[1]) == 8 and not sides[0] & sides[1]


def test_a_finished_run_that_lost_a_file_is_not_taken_for_done(tuned, tmp_path):
    data, run = tuned
    folder = shutil.copytree(run.folder, tmp_path / "copy")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(lp.BadFile, match="is gone"):
        lp.finetune(data, "tiny", folder, epochs=3, batch_size=4, lr=5e-3, held_out=0.25, rank=4)


def test_a_second_run_in_the_folder_of_one_at_work_is_refused(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "out"
    out.mkdir()
    held = os.open(out, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(lp.BadInput, match="another run is at work"):
        lp.finetune(sound(2), "tiny", out, steps=1, held_out=0.0)
    os.close(held)


def test_a_full_disk_is_one_sentence_and_the_same_call_goes_on(tmp_path):
    resource = pytest.importorskip("resource")
    vlm, settings = lp.load(), {"steps": 2, "lr": 1e-2, "held_out": 0.0}
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # of a file, as a disk that is full
        with pytest.raises(lp.BadFile, match=r"could not be written: .*; the same call goes on"):
            lp.finetune(sound(2), vlm, tmp_path / "out", **settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert lp.finetune(sound(2), vlm, tmp_path / "out", **settings).moved > 0


def test_an_adapter_of_another_model_is_nothing_to_start_from(tuned, tmp_path):
    data, run = tuned
    other = lp.load()
    with torch.no_grad():
        other.model.get_input_embeddings().weight.mul_(1.5)
    with pytest.raises(lp.BadModel, match="was not loaded as it was trained"):
        lp.finetune(data, other, tmp_path / "out", adapter=run.folder, steps=1, held_out=0.0)


def test_under_an_intervention_nothing_is_trained(tmp_path):
    vlm = lp.load()
    with pytest.raises(lp.BadInput, match="an intervention is in force"), lp.knock_out(vlm, keys="image"):
        lp.finetune(sound(2), vlm, tmp_path / "out", steps=1, held_out=0.0)


def test_a_model_whose_activations_were_computed_again_is_given_back(tmp_path):
    vlm = lp.load()
    state, numbers = random.getstate(), torch.get_rng_state()
    lp.finetune(sound(2), vlm, tmp_path / "out", steps=1, lr=1e-2, held_out=0.0, checkpointing=True)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in vlm.model.modules())
    assert "use_cache" not in vars(vlm.model.config) or vlm.model.config.use_cache
    assert random.getstate() == state
    assert torch.get_rng_state().equal(numbers)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        pytest.param({"stage": "pretrain"}, "there are 'align' and 'instruct'", id="a stage that is none"),
        pytest.param({"train": "head"}, "is no part of a model", id="a part that is none"),
        pytest.param({"train": "everything,projector"}, "everything alone", id="everything and more"),
        pytest.param({"out": None}, "say where the adapter goes", id="no folder"),
        pytest.param({"adapter": "nowhere/at/all"}, "nowhere/at/all", id="no adapter to start from"),
        pytest.param({"max_length": 100}, "max_length=100", id="rows that are all too long"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path, settings, told):
    with pytest.raises(lp.ProbeError, match=told):
        lp.finetune(sound(2), "tiny", **{"out": tmp_path / "out", "held_out": 0.0, "steps": 1} | settings)


def test_a_whole_model_does_not_start_from_an_adapter(tuned, tmp_path):
    _, run = tuned
    with pytest.raises(lp.BadInput, match=r"train='everything' starts from a whole model; merge .* into one first"):
        lp.finetune(sound(2), "tiny", tmp_path / "out", adapter=run.folder, train="everything", held_out=0.0, steps=1)
