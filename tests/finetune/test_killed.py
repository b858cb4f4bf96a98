"""A run that is killed and begun again ends as one in peace."""

import json
import subprocess
import sys

import pytest
from safetensors.torch import load_file

#: What is trained, and after how many steps of its own each life ends.
RUNS = {"language,projector": (1, 3, 4, 2, 3), "everything": (3, 2)}


@pytest.mark.parametrize("parts", RUNS)
def test_a_run_that_was_killed_ends_with_the_same_weights(parts, tmp_path):
    kills = RUNS[parts]
    told = subprocess.run(
        [sys.executable, "-m", "tests.finetune.killed", str(tmp_path), parts, *map(str, kills)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.stdout.splitlines()[-2:] == ["0", f"{'-9 ' * len(kills)}0"], told
    paths = [next((tmp_path / name).glob("*model.safetensors")) for name in ("in_peace", "killed")]
    weights = [load_file(path) for path in paths]
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    records = [json.loads((path.parent / "finetune.json").read_text())["told"] for path in paths]
    assert records[0]["losses"] == records[1]["losses"]
