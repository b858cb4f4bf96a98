"""Lines of scores that are something else are refused by their number."""

from __future__ import annotations

import json

import pytest

import llava_probe as lp
from llava_probe.leaderboard.board import MEASURES, Leaderboard

GOOD = {"question": "q", "picture": "p", "kind": "k", "answer": "a", "right": True, "blind": False, "cases": ["q"]}
GOOD |= {"entries": {"relevance": {"seconds": 1.0, "forwards": 1, "backwards": 1}}}
GOOD["entries"]["relevance"]["cases"] = [dict.fromkeys(MEASURES, 1.0)]


def changed(**changes) -> str:
    return json.dumps({name: value for name, value in (GOOD | changes).items() if value is not ...})


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("1", "Expected `object`, got `int`"),
        ("{", "JSON|truncated"),
        (changed(question=...), "missing required field `question`"),
        (changed(right=1), r"Expected `bool`, got `int` - at `\$.right`"),
        (changed(entries={}), "no entry has scores"),
        (changed(entries={"x": {"cases": [{}]}}), "missing required field"),
        (changed(entries=GOOD["entries"] | {"x": {"seconds": 1}}), "'x' has seconds without passes"),
        (changed(entries=GOOD["entries"] | {"x": {"deletion": 1e308}}), "a number beyond"),
        (changed(agreement={"names": ["a"], "values": [[1, 2]]}), "its agreement is not of 1 entries"),
        (changed(question="\ud800"), "surrogate"),
    ],
)
def test_a_line_of_another_form_is_refused_by_its_number(tmp_path, line, sentence):
    path = tmp_path / "scores-1-of-1.jsonl"
    path.write_text(f"{changed()}\n{line}\n{changed()}\n")
    with pytest.raises(lp.BadFile, match=rf"line 2 of \S+scores-1-of-1\.jsonl .*{sentence}"):
        Leaderboard.read(tmp_path)


@pytest.mark.parametrize(
    "run",
    ["3", '{"entries": []}', '{"entries": {"localisation heads": {"heads": {"samples": 1, "chosen": [1]}}}}', "{"],
)
def test_a_note_of_another_form_is_refused(tmp_path, run):
    (tmp_path / "scores-1-of-1.jsonl").write_text(changed() + "\n")
    (tmp_path / "run.json").write_text(run)
    with pytest.raises(lp.BadFile, match=r"run\.json \(delete it, or give another folder"):
        Leaderboard.read(tmp_path)
