"""The loss of a step is the mean over its tokens, into however many passes its rows are put."""

from __future__ import annotations

import pytest

from llava_probe import tiny
from llava_probe.finetune.finetune import finetune


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
