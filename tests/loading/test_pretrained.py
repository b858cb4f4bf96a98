"""Loading changes nothing but what it gives back."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoProcessor
from transformers.utils import logging

import llava_probe as lp
from llava_probe.loading import look, pretrained, quantized
from llava_probe.loading.folder import FoundModel
from llava_probe.loading.memory import free_memory, memory_needed
from llava_probe.loading.weights import StoredWeights


def test_random_weights_leave_torchs_draws_as_they_were():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    one, other = (lp.load(random_weights=seed).model.lm_head.weight for seed in (0, 0))
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(one, other) and not torch.equal(one, lp.load(random_weights=1).model.lm_head.weight)


def test_the_progress_bar_is_back_after_an_interrupt(monkeypatch):
    def interrupted(*_args, **_kwargs):
        assert not logging.is_progress_bar_enabled()
        raise KeyboardInterrupt

    monkeypatch.setattr(AutoProcessor, "from_pretrained", interrupted)
    logging.enable_progress_bar()
    with pytest.raises(KeyboardInterrupt):
        lp.load()
    assert logging.is_progress_bar_enabled()


def test_a_processor_that_wants_torchvision_for_videos_loads_without(tmp_path):
    """In a process of its own: these tests put torchvision's half in."""
    from tests import zoo

    model, processor = zoo.build("qwen2_vl")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    code = (
        "import sys, numpy, llava_probe as lp\n"
        "vlm = lp.load(sys.argv[1], dtype='float32')\n"
        "frames = numpy.zeros((4, 48, 64, 3), numpy.uint8)\n"
        "print(len(vlm.generate(frames[0], 'What?', max_new_tokens=2).generated))\n"
        "try: vlm.generate(video=frames, question='What?', max_new_tokens=2)\n"
        "except lp.BadInput as error: print(error)\n"
        "vlm.processor.save_pretrained(sys.argv[1] + '/again')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    answered, refused = done.stdout.splitlines()
    assert answered == "2" and "videos need torchvision; pip install 'llava_probe[vision]'" in refused
    one, other = (json.loads((at / "processor_config.json").read_text()) for at in (tmp_path, tmp_path / "again"))
    assert one["video_processor"] == other["video_processor"]


def test_memory_is_told_by_dtype_and_quantisation():
    stored = StoredWeights(3_000, {"BF16": 1_000, "F32": 200, "I64": 10})
    found = FoundModel("x", {}, weights=stored)
    assert memory_needed(found) == 1_000 * 2 + 200 * 4 + 10
    assert memory_needed(found, "float32") == memory_needed(found, torch.float32) == 1_200 * 4 + 10
    assert memory_needed(found, quantize="8bit") == 1_200 * 1.1 + 10
    assert memory_needed(FoundModel("x", {"dtype": "float16"}, weights=StoredWeights(3_000))) == 3_000
    assert memory_needed(FoundModel("x", {})) is None
    tiny = look("tiny")
    model = lp.load().model
    assert abs(memory_needed(tiny, "float32") - sum(one.nbytes for one in model.parameters())) < 100_000


def test_a_model_that_will_not_fit_is_told_before_it_is_loaded(monkeypatch):
    monkeypatch.setattr(pretrained, "free_memory", lambda: 1_000_000)
    with pytest.warns(
        UserWarning, match=r"tiny needs about 12.* MB, and 1.0 MB are free; try dtype='bfloat16' or quant"
    ):
        lp.load()
    assert (free_memory() or 10**9) > 10**8


def test_quantisation_is_a_word(monkeypatch):
    with pytest.raises(lp.BadInput, match="quantize= takes '4bit' or '8bit'; got '3bit'"):
        lp.load(quantize="3bit")
    with pytest.raises(lp.BadInput, match="give one of them"):
        monkeypatch.setattr(quantized, "find_spec", lambda name: object())
        lp.load(quantize="4bit", quantization_config=object())
    with pytest.raises(lp.BadInput, match="random_weights= and quantize= exclude each other"):
        lp.load(quantize="4bit", random_weights=1)
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(lp.BadModel, match=r"needs bitsandbytes; pip install 'llava_probe\[quantize\]'"):
        lp.load(quantize="4bit")
    four, eight = (quantized.quantization_config(word, "torch.float16") for word in ("4bit", "8bit"))
    assert four.load_in_4bit and four.bnb_4bit_compute_dtype == torch.float16 and eight.load_in_8bit
