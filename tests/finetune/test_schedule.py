"""Every row comes once an epoch, in passes of which little is padding."""

import pytest

from llava_probe import tiny
from llava_probe.features.trial import Sharing
from llava_probe.finetune.conversations import read_conversations
from llava_probe.finetune.plan import StepSettings, planned
from llava_probe.finetune.rows import RowMaker
from llava_probe.finetune.schedule import padded_length, passes_of

TOGETHER = Sharing(unpacked="", unbatched="")


@pytest.fixture(scope="module")
def rows(tiny_vlm):
    """Questions about four pictures, and many more in words alone."""
    data = [
        {"image": scene.image, "question": each.question, "answer": each.answer}
        for scene in map(tiny.scene, range(4))
        for each in scene.questions[:3]
    ]
    data += [{"question": f"Is {number} a number?", "answer": "yes"} for number in range(60)]
    with pytest.warns(UserWarning, match="words alone ask"):
        return RowMaker(tiny_vlm)(read_conversations(data))[0]


@pytest.mark.parametrize("epoch", [0, 1])
def test_every_row_comes_once(rows, epoch):
    made = [row for groups in passes_of(rows, 16, TOGETHER, 0, epoch) for group in groups for row in group]
    assert sorted(map(id, made)) == sorted(map(id, rows))


def test_words_alone_are_not_padded_to_a_picture(rows):
    for groups in passes_of(rows, 16, TOGETHER, 0, 0):
        assert sum(map(len, groups)) <= 16
        lengths = [group[0].visual + sum(row.length - row.visual for row in group) for group in groups]
        assert max(lengths) * len(lengths) <= 1.5 * sum(lengths), lengths


def test_what_a_pass_takes_is_its_groups_padded_to_the_longest(rows):
    about = [row for row in rows if row.picture][:3]
    together = padded_length([about])
    assert together == about[0].visual + sum(row.length - row.visual for row in about)
    apart = padded_length([[row] for row in about])
    assert apart == 3 * max(row.length for row in about) > 2 * together


@pytest.mark.parametrize(("cards", "micro_batch", "pass_rows"), [(1, None, 16), (4, None, 4), (4, 2, 2), (64, None, 1)])
def test_a_step_is_of_all_cards_together(rows, cards, micro_batch, pass_rows):
    way = StepSettings.on(cards, 16, micro_batch, epochs=1, steps=None, lr=1e-3, seed=0)
    assert way.pass_rows == pass_rows
    words = [row for row in rows if not row.picture][:48]  # alike in length, so that every pass is full
    plan = planned(words, [], TOGETHER, way, cards)
    assert plan.steps == -(-len(words) // max(16, cards)) and plan.accumulated * cards * pass_rows == max(16, cards)


def test_the_order_is_the_seeds(rows):
    one, same, other = (
        [
            [[row.sample.question for row in group] for group in groups]
            for groups in passes_of(rows, 16, TOGETHER, *which)
        ]
        for which in ((0, 0), (0, 0), (1, 0))
    )
    assert one == same != other
