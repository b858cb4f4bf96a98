"""The leaderboard: scores that survive a cut, parts that add up, a page that says what was measured."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import llava_probe as lp
from llava_probe.cli import app
from llava_probe.evaluate.cases import Case, write_cases
from llava_probe.evaluate.randomised import randomised
from llava_probe.evaluate.tiny_cases import one_question_a_scene
from llava_probe.leaderboard.board import MEASURES, Leaderboard
from llava_probe.leaderboard.entries import BASELINES, ENTRIES, ScoringPlan
from llava_probe.leaderboard.figures import leaderboard_figure
from llava_probe.leaderboard.lines import LineRemoval, read_scores
from llava_probe.leaderboard.page import leaderboard_page
from llava_probe.leaderboard.scoring import score_cases, spans_of

CHEAP = {name: ENTRIES[name] for name in ("attention", "gradient", "gradient of pixels", "relevance")}


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return list(one_question_a_scene(range(40, 52), described=12))


@pytest.fixture(scope="module")
def scored(tiny_vlm, cases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    score_cases(tiny_vlm, cases, folder, ScoringPlan(CHEAP, closer=1, random=3))
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
    with pytest.warns(UserWarning, match="is not whole: a run was killed"):
        score_cases(tiny_vlm, cases, tmp_path, ScoringPlan(CHEAP, closer=1, random=3))
    again = {line["question"]: line for line in read_scores([path])}
    before = {line["question"]: line for line in read_scores([scored / "scores-1-of-1.jsonl"])}
    assert again.keys() == before.keys()
    for question, line in before.items():
        for name in CHEAP if line["right"] else ():
            assert again[question]["entries"][name]["cases"] == line["entries"][name]["cases"]


def test_a_question_scores_the_same_however_they_are_shared_out(tiny_vlm, cases, scored, tmp_path):
    """The last part alone, as a run that was cut off would score it: the question before it is another part's."""
    plan = ScoringPlan(CHEAP, closer=1, random=3)
    score_cases(tiny_vlm, cases, tmp_path, plan, part=(7, 7))
    whole = {line["question"]: line for line in read_scores([scored / "scores-1-of-1.jsonl"])}
    lines = list(read_scores([tmp_path / "scores-7-of-7.jsonl"]))
    assert lines
    for line in lines:
        for name, found in line.get("entries", {}).items():
            assert found["cases"] == whole[line["question"]]["entries"][name]["cases"], name
    assert all("attention of another picture" in line["entries"] for line in lines if line["right"])


def test_parts_share_the_questions(tiny_vlm, cases, scored, tmp_path):
    plan = ScoringPlan({"attention": ENTRIES["attention"]})
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


def test_seconds_are_told_in_plain_numbers(scored):
    figure = leaderboard_figure(Leaderboard.read(scored))
    figure.canvas.draw()
    told = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert told and all(float(text) > 0 for text in told if text)


def test_the_page_says_what_was_measured(scored):
    board = Leaderboard.read(scored)
    page = leaderboard_page(board, "tiny", "make leaderboard", {"leaderboard.png": ""})
    assert "no evidence for a 7B one" in page
    assert "llava-probe leaderboard --model llava-hf/llava-1.5-7b-hf" in page
    rows = {line.split(" | ")[0].lstrip("| ") for line in page.splitlines() if line.startswith("| ")}
    assert rows >= {*CHEAP, *(f"*{name}*" for name in BASELINES)}
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
    rows = [dict.fromkeys(MEASURES, 1.0), dict.fromkeys(MEASURES, 0.0)]
    lines = [
        {"question": str(i), "picture": str(i), "kind": "colour", "right": True, "blind": i == 1}
        | {"answer": "red", "cases": [str(i)]}
        | {"entries": {"attention": {"cases": [rows[i]], "deletion": i, "insertion": i}}}
        | {"random": {"attention": [rows[i]]}, "removal": dict.fromkeys(LineRemoval.__annotations__, i)}
        | {"agreement": {"names": ["attention"], "values": [[i]]}}
        for i in range(2)
    ]
    (tmp_path / "scores-1-of-1.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    board = Leaderboard.read(tmp_path)
    assert board.score("attention", "inside").mean == 1
    assert board.score("attention", "inside", blind=True).mean == 0
    assert board.random("attention", "inside").mean == board.trained("attention", "inside").mean == 1
    assert board.curve("attention", "deletion").mean == board.removal("colour")["whole"] == 0
    assert board.agreement()[1] == 0


def test_lines_that_were_cut_inside_a_letter_or_hold_a_line_separator(tmp_path):
    path = tmp_path / "scores-1-of-2.jsonl"
    plain = {"question": "a\u2028b", "picture": "p", "kind": "k", "answer": "a", "right": False, "blind": False}
    line = json.dumps(plain | {"cases": ["a"]}, ensure_ascii=False)
    path.write_bytes(line.encode() + b"\n" + '{"question": "é'.encode()[:-1])
    with pytest.warns(UserWarning, match="is not whole: a run was killed"):
        assert [line["question"] for line in read_scores([path])] == ["a\u2028b"]


def test_a_folder_of_scores_belongs_to_one_model_plan_and_set_of_cases(tiny_vlm, random_vlm, cases, tmp_path):
    plan, few = ScoringPlan({"attention": ENTRIES["attention"]}), cases[:1]
    score_cases(tiny_vlm, few, tmp_path, plan)
    with pytest.raises(lp.BadInput, match=r"made in another way \(model"):
        score_cases(random_vlm, few, tmp_path, plan)
    with pytest.raises(lp.BadInput, match=r"entries.gradient: nothing, here .*closer: 0, here 1"):
        score_cases(tiny_vlm, few, tmp_path, ScoringPlan(CHEAP, closer=1))
    with pytest.raises(lp.BadInput, match=r"interventions: nothing, here"), lp.knock_out(tiny_vlm, keys=lp.IMAGE):
        score_cases(tiny_vlm, few, tmp_path, plan)
    changed = tiny_vlm.model.model.language_model.layers[1].self_attn.q_proj.weight
    kept = changed.detach().clone()
    try:
        with torch.no_grad():
            changed.zero_()
        with pytest.raises(lp.BadInput, match=r"made in another way \(model"):
            score_cases(tiny_vlm, few, tmp_path, plan)
    finally:
        with torch.no_grad():
            changed.copy_(kept)
    moved = replace(few[0], where=np.roll(few[0].mask(), 20, axis=1))
    with pytest.raises(lp.BadInput, match="another question, word or mask named"):
        score_cases(tiny_vlm, [moved], tmp_path, plan)
    score_cases(tiny_vlm, few, tmp_path, plan)
    assert len(Leaderboard.read(tmp_path).lines) == 1


def test_a_case_that_cannot_be_scored_is_named_before_any_pass(tiny_vlm, cases, tmp_path):
    plan = ScoringPlan({"attention": ENTRIES["attention"]})
    small, empty = (
        replace(cases[1], id="odd", where=np.full(shape, shape[0] == 10)) for shape in ((10, 10), (336, 336))
    )
    with pytest.raises(lp.BadInput, match=r"case 'odd': its mask is \(10, 10\) pixels"):
        score_cases(tiny_vlm, [cases[0], small], tmp_path / "small", plan)
    with pytest.raises(lp.BadInput, match="case 'odd': its mask is empty"):
        score_cases(tiny_vlm, [cases[0], empty], tmp_path / "empty", plan)
    with pytest.raises(lp.BadInput, match=f"two cases have the id {cases[0].id!r}"):
        score_cases(tiny_vlm, [cases[0], replace(cases[1], id=cases[0].id)], tmp_path / "two", plan)
    assert not list(tmp_path.glob("*/scores-*"))


def test_what_a_case_leaves_out(tiny_vlm, cases, tmp_path):
    """Without a word the whole answer, of a word said twice the first; another answer than the right one: nothing."""
    case = next(case for case in cases if case.kind == "colour")
    trace = tiny_vlm.generate(case.image, case.question)
    whole = [token.position for token in trace.generated if not token.text.startswith("<")]
    assert spans_of(trace, [replace(case, word=None)]) == ([whole], [])
    assert spans_of(trace, [replace(case, answer="nothing")]) == ([], [])
    described = next(case for case in cases if case.kind == "describe")
    trace = tiny_vlm.generate(described.image, described.question)
    (first, *_), _ = spans_of(trace, [replace(described, answer=None, word="a", occurrence=None, function_words=())])
    assert first == list(trace.find("a", role="generated", occurrence=0))


def test_a_page_without_a_right_answer_has_no_picture(tmp_path):
    """A kind of one's own may be called what the tiny model's descriptions are."""
    found = [replace(case, kind="describe") for case in one_question_a_scene(range(60, 61), described=0)]
    folder = write_cases(found, tmp_path / "mine").parent
    arguments = ["leaderboard", "--cases", str(folder / "cases.jsonl"), "--quick", "--closer", "0"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out" / "leaderboard.md").read_text(encoding="utf-8")
    assert "layers random" not in page and "matter to the model" not in page  # no question was looked at closely
    assert "--closer 0 --quick" in page and "| describe: touches" in page
    folder = write_cases([replace(case, answer="no") for case in found], tmp_path / "wrong").parent
    arguments[2] = str(folder / "cases.jsonl")
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "none")])
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "none" / "leaderboard_maps.png").exists()


def test_some_of_the_questions_alone(scored):
    board = Leaderboard.read(scored)
    first = board.lines[0]["question"]
    assert [line["question"] for line in board.only({first, "none"}).lines] == [first]
    assert board.only({first}).made_with["closer"] == 1


def test_a_page_of_few_cases_claims_no_interval(scored):
    board = Leaderboard.read(scored)
    kind = board.kinds[0]
    one = next(line for line in board.seen if line["kind"] == kind)
    page = leaderboard_page(board.only({one["question"]}), "mine", "llava-probe leaderboard")
    assert "nan" not in page
    none = leaderboard_page(board.only(()), "mine", "llava-probe leaderboard")
    assert "0 questions about 0 pictures; 0 were answered right" in none and "##" not in none


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
    folder = write_cases(one_question_a_scene(range(60, 61), described=0), tmp_path / "mine").parent
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
