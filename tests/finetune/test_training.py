"""A step's loss is the mean over its tokens, however they are parted; a model handed in is as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments

from llava_probe import tiny
from llava_probe.finetune import training
from llava_probe.finetune.finetune import finetune


@pytest.mark.parametrize("train", ["projector", "language"])
def test_a_model_that_is_handed_in_is_given_back_as_it_was(tiny_vlm, tmp_path, train):
    rows = [{"image": tiny.scene(seed).image, "question": "What is it?", "answer": "a star"} for seed in range(2)]
    before = {name: weight.clone() for name, weight in tiny_vlm.model.state_dict().items()}
    finetune(rows, tiny_vlm, tmp_path / "tuned", train=train, steps=2, batch_size=2, held_out=0.0)
    after = tiny_vlm.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_steps_loss_is_the_mean_over_its_tokens_whatever_its_passes_hold(tiny_vlm, tmp_path):
    """Against the logits that ``score`` finds: answers of different lengths, so that a mean of means is another one."""
    scenes = [tiny.scene(seed) for seed in range(6)]
    answers = ["red", "There is a red star at the top. There is a green ring at the bottom left."] * 3
    rows = [{"image": s.image, "question": "What is it?", "answer": a} for s, a in zip(scenes, answers, strict=True)]
    logprobs = []
    for row in rows:
        trace = tiny_vlm.score(row["image"], row["question"], row["answer"])
        picked = trace.logits.float().log_softmax(-1).gather(1, trace.generated_ids[:, None])
        logprobs += picked[:, 0].tolist()
    settings = {"steps": 2, "batch_size": 6, "micro_batch": 1, "held_out": 0.0}
    told = finetune(rows, tiny_vlm, tmp_path / "tuned", train="projector", **settings)
    assert told.losses[0]["loss"] == pytest.approx(-sum(logprobs) / len(logprobs), rel=1e-4)


def test_a_process_trains_on_one_card_however_many_it_sees(tiny_vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda _: 2))
    rows = [{"image": tiny.scene(0).image, "question": "What is it?", "answer": "a star"}]
    seen = []
    monkeypatch.setattr(training._Trainer, "get_train_dataloader", lambda self: seen.append(self.args.n_gpu) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        finetune(rows, tiny_vlm, tmp_path / "tuned", steps=1, held_out=0.0)
    assert seen == [1]
