"""Two processes train what one trains: the same rows a step, the same loss, the same weights."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file

import llava_probe as lp
from llava_probe import tiny

LAUNCHER = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")


def test_two_processes_train_what_one_trains(tmp_path):
    rows = tmp_path / "rows.jsonl"
    lines = []
    for seed in range(2_000_000, 2_000_008):
        tiny.scene(seed).image.save(tmp_path / f"{seed}.png")
        lines.append(json.dumps({"image": f"{seed}.png", "question": "What is new?", "answer": "a star"}))
    rows.write_text("\n".join(lines))
    settings = {"steps": 2, "batch_size": 4, "micro_batch": 2, "held_out": 0.0, "lr": 1e-3, "rank": 2}
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    launched = subprocess.Popen(
        [sys.executable, *LAUNCHER, "-m", "llava_probe", "finetune", str(rows), "--out", str(tmp_path / "two"), *flags],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lp.finetune(rows, "tiny", tmp_path / "one", **settings)
    told, wrong = launched.communicate(timeout=300)
    assert not launched.returncode, wrong
    assert told.count("Everything is in") == 1, "one process tells"
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    moved = sum(value.square().sum() for name, value in one.items() if ".lora_B." in name).sqrt()
    apart = sum((one[name] - two[name]).square().sum() for name in one).sqrt()
    assert apart < 0.02 * moved, "but for elements without a gradient, whose rounding Adam makes as large as a step"
    losses = [json.loads((tmp_path / name / "finetune.json").read_text())["told"]["losses"] for name in ("one", "two")]
    for a, b in zip(*losses, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
