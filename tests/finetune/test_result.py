"""What a training run tells of itself: how far it came, and every step that was measured."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from llava_probe.finetune.result import Finetuned

RUN = Finetuned(
    Path("tuned"),
    ("language",),
    tuple({"step": step, "loss": 3.0 / step, "learning_rate": 2e-4} for step in (2, 4, 6)),
    tuple({"step": step, "loss": 4.0 - step / 5, "exact": step / 5} for step in (0, 3, 5)),
    *(1_900, 24_000, 0.3412),
)


def test_it_tells_its_ends_side_by_side():
    told = str(RUN).splitlines()
    assert told[0].split() == ["measure", "first", "last"]
    ends = {line[:14].strip(): [float(number) for number in line.split()[-2:]] for line in told[1:4]}
    assert ends == {"training loss": [1.5, 0.5], "held-out loss": [4, 3], "held-out exact": [0, 1]}
    assert told[-2].startswith("language trained on 1,900 rows, 24,000 tokens") and "moved by 0.34 " in told[-1]
    assert "merged" not in told[-1] and str(replace(RUN, merged=3e-7)).endswith("and by 3e-07 where it is merged")


def test_without_a_held_out_part_nothing_is_told_of_it():
    assert "held-out" not in str(replace(RUN, held_out=()))


def test_no_step_that_was_measured_is_missing_from_its_table(tmp_path):
    """Losses are told at other steps than what was held out is measured; the first before any."""
    with RUN.to_csv(tmp_path / "losses.csv").open() as file:
        rows = {int(row.pop("step")): row for row in csv.DictReader(file)}
    assert list(rows) == [0, 2, 3, 4, 5, 6]
    assert {step: float(row["loss"]) for step, row in rows.items() if row["loss"]} == {2: 1.5, 4: 0.75, 6: 0.5}
    held = {step: float(row["held_out_exact"]) for step, row in rows.items() if row["held_out_exact"]}
    assert held == {0: 0.0, 3: 0.6, 5: 1.0}
