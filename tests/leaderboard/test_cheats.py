"""The second table: the oracle tells cheat from twin, what knows nothing of the model cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest

import llava_probe as lp
from llava_probe.evaluate.tiny_cases import cheat_cases
from llava_probe.leaderboard.board import Leaderboard
from llava_probe.leaderboard.cheats import ORACLE, CheatBoard, score_cheat
from llava_probe.leaderboard.entries import ENTRIES, ScoringPlan
from llava_probe.leaderboard.scoring import score_cases
from llava_probe.tiny import cheats

CHEAP = ScoringPlan({name: ENTRIES[name] for name in ("attention", "gradient of pixels")})
SEEDS = cheats.seeds("frame", 500, 6)


@pytest.fixture(scope="module")
def pair():
    return {honest: lp.load(adapter=cheats.path("frame", honest), merge=True) for honest in (False, True)}


@pytest.fixture(scope="module")
def scores(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    for honest, vlm in pair.items():
        score_cheat(vlm, "frame", SEEDS, folder, CHEAP, honest=honest)
    return folder


def test_the_oracle_points_at_the_cue_of_a_cheat_and_at_the_object_of_its_twin(scores):
    board = CheatBoard.read("frame", scores)
    assert board.shows(ORACLE).mean == 1 and board.shows(ORACLE, honest=True, what="object").mean == 1
    assert board.margin(ORACLE).mean > 0.5 > -0.5 > board.margin(ORACLE, honest=True).mean
    assert board.tells(ORACLE) and board.warns(ORACLE)


def test_what_knows_nothing_of_the_model_says_the_same_of_cheat_and_twin(scores):
    board = CheatBoard.read("frame", scores)
    for name in ("edges", "centre prior"):
        apart = board.apart(name)
        assert (apart.mean, apart.low, apart.high) == (0, 0, 0) and not board.tells(name)


def test_the_difference_is_the_mean_of_what_was_counted_by_hand(scores):
    """From the lines alone: touches of the cue less touches of the object, cheat less twin."""
    board = CheatBoard.read("frame", scores)
    margins = []
    for side in (board.planted, board.honest):
        of = {}
        for line in side.right:
            cue, thing = line["entries"]["attention"]["cases"]
            of[line["picture"]] = cue["touches"] - thing["touches"]
        margins.append(of)
    both = margins[0].keys() & margins[1].keys()
    expected = sum(margins[0][each] - margins[1][each] for each in both) / len(both)
    assert board.apart("attention").mean == pytest.approx(expected)
    assert board.apart("attention").pictures == len(both)


def test_a_word_with_two_right_places_scores_as_it_does_with_each_alone(pair, scores, tmp_path):
    both = {line["question"]: line for line in CheatBoard.read("frame", scores).planted.right}
    alone = [case for case in cheat_cases("frame", SEEDS[:2]) if case.id.endswith("object")]
    score_cases(pair[False], alone, tmp_path, CHEAP)
    for line in Leaderboard.read(tmp_path).right:
        beside = both[line["question"].replace("object", "cue")]
        for name in CHEAP.entries:
            assert line["entries"][name]["cases"] == beside["entries"][name]["cases"][1:]


def test_what_is_not_there_is_told(scores):
    board = CheatBoard.read("frame", scores)
    for ask in (board.shows, board.margin, board.apart):
        with pytest.raises(lp.BadInput, match="no entry is called 'relevence'; there are attention,"):
            ask("relevence")
    with pytest.raises(lp.BadInput, match="what"):
        board.shows("attention", what="objekt")
    with pytest.raises(lp.BadInput, match="none of 0 pictures was answered"):
        board.only([1]).shows("attention")
    other = CheatBoard("frame", board.planted.only(ids(board)[:2]), board.honest.only(ids(board)[2:]))
    with pytest.raises(lp.BadInput, match="no picture on which cheat and twin both"):
        other.apart("attention")


def ids(board):
    return [line["question"] for line in board.planted.lines]


def test_an_entry_that_could_not_be_run_on_a_picture_is_counted_on_the_others(scores):
    board = CheatBoard.read("frame", scores)
    line = board.planted.lines[0]
    without = {**line, "entries": {**line["entries"], "attention": {"refused": "no rows"}}}
    board = replace(board, planted=replace(board.planted, lines=(without, *board.planted.lines[1:])))
    assert board.shows("attention").pictures == len(board.planted.right) - 1 == board.apart("attention").pictures


def test_a_map_of_ones_own_that_was_changed_is_not_read_from_old_scores(pair, tmp_path):
    def first(task):
        return [task.trace.generated[0].position]

    def mine(layer):
        def drawn(task, group):
            return replace(lp.attention_map(task.trace, tokens=first(task), layers=[layer]), method="mine")

        return drawn

    def other(task, group):
        return replace(lp.attention_map(task.trace, tokens=first(task), layers=[1]), method="mine")

    score_cheat(pair[False], "frame", SEEDS[:1], tmp_path, replace(CHEAP, own={"mine": mine(0)}))
    score_cheat(pair[False], "frame", SEEDS[:2], tmp_path, replace(CHEAP, own={"mine": mine(0)}))
    with pytest.raises(lp.BadInput, match=r"code\.mine"):
        score_cheat(pair[False], "frame", SEEDS[:2], tmp_path, replace(CHEAP, own={"mine": other}))


def test_a_cue_that_is_a_word_has_no_cases():
    with pytest.raises(lp.BadInput, match="no place of the picture is right"):
        list(cheat_cases("prior", [1]))
