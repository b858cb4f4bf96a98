"""Numbers on a screen: what rounds to nothing has no sign, texts stand at the left, and nothing acts on a terminal."""

import pytest

from llava_probe.analyzers.table import Table, rounded


@pytest.mark.parametrize(
    ("number", "told"),
    [(-0.00001, "0.0000"), (-0.0, "0.0000"), (-0.00006, "-0.0001"), (float("nan"), "nan"), (-1.5, "-1.5000")],
    ids=["tiny", "zero", "rounded-up", "nan", "plain"],
)
def test_what_rounds_to_nothing_has_no_sign(number, told):
    assert rounded(number) == told


def test_texts_stand_left_and_numbers_right():
    table = Table({"word": ["a", "long"], "rank": [10, 0]})
    assert table.text() == "word  rank\na       10\nlong     0"


def test_nothing_in_a_table_acts_on_where_it_is_shown(tmp_path):
    table = Table({"token": ["\x1b[2J", "<i>"]})
    assert "\x1b" not in table.text()
    assert "&lt;i&gt;" in table.html() and "<i>" not in table.html()
    assert table.to_csv(tmp_path / "t.csv").read_text() == "token\n\x1b[2J\n<i>\n"
