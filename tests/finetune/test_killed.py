"""A run that is killed and begun again ends as one in peace."""

import json
import subprocess
import sys

from safetensors.torch import load_file


def test_a_run_killed_five_times_ends_with_the_same_weights(tmp_path):
    kills = (1, 3, 4, 2, 3)
    told = subprocess.run(
        [sys.executable, "-m", "tests.finetune.killed", str(tmp_path), *map(str, kills)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.stdout.splitlines()[-2:] == ["0", "-9 -9 -9 -9 -9 0"], told
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("in_peace", "killed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    records = [json.loads((tmp_path / name / "finetune.json").read_text())["told"] for name in ("in_peace", "killed")]
    assert records[0]["losses"] == records[1]["losses"]
