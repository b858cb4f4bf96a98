"""Loading changes nothing but what it gives back."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoProcessor
from transformers.utils import logging

import llava_probe as lp


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
