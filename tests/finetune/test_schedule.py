"""Every row comes once an epoch, in passes of which little is padding."""

import pytest

from llava_probe import tiny
from llava_probe.features.trial import Sharing
from llava_probe.finetune.conversations import read_conversations
from llava_probe.finetune.rows import RowMaker
from llava_probe.finetune.schedule import passes_of

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


def test_the_order_is_the_seeds(rows):
    one, same, other = (
        [
            [[row.sample.question for row in group] for group in groups]
            for groups in passes_of(rows, 16, TOGETHER, *which)
        ]
        for which in ((0, 0), (0, 0), (1, 0))
    )
    assert one == same != other
