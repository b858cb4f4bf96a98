"""A crafted probe, its checksum right, is refused in a sentence that says what is wrong with it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import llava_probe as lp
from llava_probe.whole_file import checksum

WIDE = {"weights": torch.zeros(4, 2, dtype=torch.float64), "bias": torch.zeros(2, dtype=torch.float64)}


@pytest.mark.parametrize(
    ("changes", "tensors", "sentence"),
    [
        ({"classes": ...}, WIDE, "missing required field `classes`"),
        ({"more": 1}, WIDE, "unknown field `more`"),
        ({"task": "guessing"}, WIDE, r"at `\$.task`"),
        ({"classes": [["a"], "b"]}, WIDE, r"at `\$.classes\[0\]`"),
        ({"classes": []}, WIDE, "a probe has classes"),
        ({"classes": ["a", "b", "c"]}, WIDE, r"'weights' is float64 \[4, 2\]; expected floats \[any, 3\]"),
        ({}, {"weights": WIDE["weights"]}, "its tensor 'bias' is missing"),
        ({}, WIDE | {"bias": torch.zeros(2, dtype=torch.long)}, r"'bias' is int64 \[2\]; expected floats \[2\]"),
        ({}, WIDE | {"bias": torch.full((2,), torch.inf)}, "not all finite"),
    ],
)
def test_a_crafted_probe_is_refused(tmp_path, changes, tensors, sentence):
    probe = lp.Probe(*WIDE.values(), "l", "classification", "logistic", ("a", "b"), "layer_1", "last_prompt")
    path = probe.save(tmp_path / "x.probe")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    plain = {name: value for name, value in (json.loads(metadata["probe"]) | changes).items() if value is not ...}
    metadata["probe"] = json.dumps(plain)
    save_file(tensors, path, metadata=metadata | {"digest": checksum(metadata["probe"], tensors)})
    with pytest.raises(lp.BadFile, match=sentence):
        lp.Probe.load(path)


def test_half_precision_weights_are_read_as_numbers_to_multiply_with(tmp_path):
    path = tmp_path / "x.probe"
    plain = {"label": "l", "task": "regression", "kind": "ridge", "classes": ["x"], "layer": "layer_1"}
    header = json.dumps(plain | {"position": "last_prompt", "about": {}})
    tensors = {"weights": torch.tensor([[0.5], [2.0]], dtype=torch.float16), "bias": torch.ones(1)}
    save_file(tensors, path, metadata={"llava_probe.probe": "1", "probe": header, "digest": checksum(header, tensors)})
    assert lp.Probe.load(path).scores(torch.tensor([2.0, 1.0])).tolist() == [4.0]
