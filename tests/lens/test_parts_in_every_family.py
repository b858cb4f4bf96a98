"""In every family the parts sum to the logit and what heads read to the heads, or it says in a sentence why not."""

from __future__ import annotations

import pytest
import torch

import llava_probe as lp
from llava_probe.inside.tolerance import SUMS
from tests import zoo
from tests.attribution.test_every_family import asked

pytestmark = pytest.mark.filterwarnings("ignore")

#: Families whose residual stream is no sum of what their parts wrote, or whose answers cannot be run again, and why.
REFUSED = {
    "no sum of its parts": ("qwen4_exp", "inkling2", "idefics"),  # streams, blocks or pictures mixed by what is in them
    "is made into something else": ("inkling_mm_model", "git"),  # convolutions over positions; norms of whole sums
    "in other tokens here": ("blip",),  # what it generates from is not what its processor gives
}

#: Some layers without heads over the sequence, and what they are.
OTHERS = {
    "mllama": {1: "MllamaTextCrossAttention"},
    "qwen3_5": {0: "Qwen3_5GatedDeltaNet", 2: "Qwen3_5GatedDeltaNet"},
    "nemotron_h_omni": {0: "NemotronHMamba2Mixer"},
}

#: A token of an answer that stands for a picture where it is read again.
FIRST = ("ovis2",)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_parts_sum_to_the_logit(name):
    vlm, trace = zoo.vlm(name), asked(name)
    step = 0 if name in FIRST else 1
    place, logits = trace.prompt_length + step, trace.logits[step]
    refusal = next((why for why, names in REFUSED.items() if name in names), None)
    if refusal is not None:
        with pytest.raises(lp.ProbeError, match=refusal):
            lp.written_by(vlm, trace, place)
        return
    second = int(logits.topk(2).indices[1])
    written = lp.written_by(vlm, trace, place, contrast=second)
    behind = written.logit if written.capped is None else written.capped
    assert behind == pytest.approx(float(logits[written.token.id] - logits[second]), abs=1e-3)
    parts = [part.value for part in written.parts()]
    rounding = SUMS[torch.float32] * max(map(abs, parts))
    assert abs(sum(parts) - written.logit) < rounding
    torch.testing.assert_close(written.keys.sum(-1), written.heads, rtol=0, atol=rounding)
    assert set(written.layers) == set(vlm.anatomy.head_counts)
    if name in OTHERS:
        assert {layer: written.kinds[layer] for layer in OTHERS[name]} == OTHERS[name]
