"""The leaderboard: scores that survive a cut, parts that add up, a page that says what was measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import llava_probe as lp
from llava_probe.cli import app
from llava_probe.evaluate.cases import Case, write_cases
from llava_probe.evaluate.entries import BASELINES, ENTRIES
from llava_probe.evaluate.leaderboard import Leaderboard
from llava_probe.evaluate.randomised import randomised
from llava_probe.evaluate.scoring import Plan, read_scores, score_cases
from llava_probe.evaluate.tiny_cases import one_question_a_scene
from llava_probe.view.leaderboard_page import leaderboard_page

CHEAP = {name: ENTRIES[name] for name in ("attention", "gradient", "gradient of pixels", "relevance")}


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return list(one_question_a_scene(range(40, 52), described=12))


@pytest.fixture(scope="module")
def scored(tiny_vlm, cases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    score_cases(tiny_vlm, cases, folder, Plan(CHEAP, closer=3, random=3))
    return folder


def test_a_scene_is_asked_once_and_kinds_take_turns(cases):
    asked = [case for case in cases if case.kind != "describe"]
    assert len({case.picture for case in asked}) == len(asked) == 12
    assert {"colour", "shape", "where"} <= {case.kind for case in asked}
    assert [case.kind for case in cases].count("describe") == len(
        {case.id for case in cases if case.kind == "describe"}
    )


def test_scores_are_those_of_the_maps(tiny_vlm, cases, scored):
    """One line against the map made and judged by hand."""
    line = next(line for line in Leaderboard.read(scored).right if line["kind"] != "describe")
    case = next(case for case in cases if case.id == line["question"])
    trace = tiny_vlm.generate(case.image, case.question)
    m = lp.attribute(tiny_vlm, trace, "relevance", tokens="answer")
    x, y = m.peak(0)
    found = line["entries"]["relevance"]["cases"][0]
    assert found["inside"] == float(case.mask()[int(y), int(x)])
    inside = m.pixels(0)[case.mask()].sum() / m.pixels(0).sum()
    assert found["energy"] == pytest.approx(float(inside), rel=1e-3)
    assert set(line["entries"]) >= {*CHEAP, "centre prior", "edges", "random"}


def test_a_cut_run_goes_on_where_it_was(tiny_vlm, cases, scored, tmp_path):
    """The last line is cut in the middle, as a kill leaves it; only what is missing is done again."""
    whole = (scored / "scores-1-of-1.jsonl").read_text(encoding="utf-8")
    lines = whole.splitlines()
    path = tmp_path / "scores-1-of-1.jsonl"
    path.write_text("\n".join(lines[:-2]) + "\n" + lines[-2][:40], encoding="utf-8")
    score_cases(tiny_vlm, cases, tmp_path, Plan(CHEAP, closer=3, random=3))
    again = {line["question"]: line for line in read_scores([path])}
    before = {line["question"]: line for line in read_scores([scored / "scores-1-of-1.jsonl"])}
    assert again.keys() == before.keys()
    for question, line in before.items():
        for name in CHEAP if line["right"] else ():
            assert again[question]["entries"][name]["cases"] == line["entries"][name]["cases"]


def test_parts_share_the_questions(tiny_vlm, cases, scored, tmp_path):
    plan = Plan({"attention": ENTRIES["attention"]})
    for part in (1, 2):
        score_cases(tiny_vlm, cases, tmp_path, plan, part=(part, 2))
    parts = [{line["question"] for line in read_scores([tmp_path / f"scores-{part}-of-2.jsonl"])} for part in (1, 2)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {line["question"] for line in Leaderboard.read(scored).lines}
    with pytest.raises(lp.BadInput, match="part="):
        score_cases(tiny_vlm, cases, tmp_path, plan, part=(3, 2))


def test_random_layers_take_the_place_away(scored):
    """The map of a model that knows nothing must lose."""
    board = Leaderboard.read(scored)
    for name in ("attention", "relevance"):
        assert board.random(name, "precision").mean < board.trained(name, "precision").mean


def test_randomised_layers_come_back(tiny_vlm):
    before = {name: weight.clone() for name, weight in tiny_vlm.model.state_dict().items()}
    with pytest.raises(RuntimeError, match="inside"), randomised(tiny_vlm, 2):
        changed = {
            name for name, weight in tiny_vlm.model.state_dict().items() if not torch.equal(weight, before[name])
        }
        raise RuntimeError("inside")
    assert changed and all(".layers.4." in name or ".layers.5." in name for name in changed)
    assert not any("vision" in name for name in changed)
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_vlm.model.state_dict().items())
    with pytest.raises(lp.BadInput, match="0 to 6"), randomised(tiny_vlm, 9):
        pass


def test_the_page_says_what_was_measured(scored):
    board = Leaderboard.read(scored)
    page = leaderboard_page(board, "tiny", "make leaderboard", ["leaderboard.png"])
    assert "no evidence for a 7B one" in page
    assert "llava-probe leaderboard --model llava-hf/llava-1.5-7b-hf" in page
    for name in (*CHEAP, *BASELINES):
        assert name in page
    score = board.score("relevance", "inside", "colour")
    assert f"{score.mean:.2f} [{score.low:.2f}, {score.high:.2f}]" in page
    assert f"{len(board.right)} were answered right" in page


def test_differences_are_paired(scored):
    board = Leaderboard.read(scored)
    found = board.beside("relevance", "centre prior", "precision")
    ones, others = (board.score(name, "precision") for name in ("relevance", "centre prior"))
    assert found.mean == pytest.approx(ones.mean - others.mean)
    assert found.cases == ones.cases


def test_questions_that_need_no_picture_are_apart(tmp_path):
    """Two lines by hand: one answered alike about a blank picture."""
    rows = [{"inside": 1.0}, {"inside": 0.0}]
    lines = [
        {"question": str(i), "picture": str(i), "kind": "colour", "right": True, "blind": i == 1}
        | {"entries": {"attention": {"cases": [rows[i]]}}}
        for i in range(2)
    ]
    (tmp_path / "scores-1-of-1.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    board = Leaderboard.read(tmp_path)
    assert board.score("attention", "inside").mean == 1
    assert board.score("attention", "inside", blind=True).mean == 0


def test_no_scores_are_a_sentence(tmp_path):
    with pytest.raises(lp.BadInput, match="holds no scores"):
        Leaderboard.read(tmp_path)


def test_the_agreement_matrix_is_symmetric_with_ones_on_its_diagonal(scored):
    names, values = Leaderboard.read(scored).agreement()
    assert "relevance" in names
    assert np.allclose(values, values.T, equal_nan=True)
    place = names.index("relevance")
    assert values[place, place] == pytest.approx(1)


def test_the_command_writes_page_and_figures_and_goes_on(tmp_path):
    """Cases of one's own, exported from scenes; the second run scores nothing again."""
    folder = write_cases(one_question_a_scene(range(60, 66), described=0), tmp_path / "mine").parent
    arguments = ["leaderboard", "--cases", str(folder / "cases.jsonl"), "--quick", "--closer", "1"]
    arguments += ["--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "leaderboard.md").read_text(encoding="utf-8")
    for name in ("leaderboard.png", "leaderboard_maps.png", "leaderboard_agreement.png"):
        assert (tmp_path / "out" / name).is_file()
        assert name in page
    assert "RISE" not in page
    scores = tmp_path / "out" / "scores" / "scores-1-of-1.jsonl"
    before = scores.read_bytes()
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert scores.read_bytes() == before
    wrong = CliRunner().invoke(app, ["leaderboard", "--part", "first"])
    assert wrong.exit_code == 1 and "such as 1/4" in wrong.output
