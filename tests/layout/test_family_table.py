"""``llava-probe models`` says what the tests hold, of every name of transformers' mapping."""

import json

import pytest
from typer.testing import CliRunner

import llava_probe as lp
from llava_probe import cli
from llava_probe.layout import family_table
from tests import torchvision_half, zoo
from tests.zoo import report

MAPPED = tuple(family_table._mapped())

WRITTEN = json.loads(family_table._TABLE.read_text(encoding="utf-8"))

pytestmark = pytest.mark.filterwarnings("ignore")
of_the_tests = pytest.mark.skipif(
    not torchvision_half.present() or set(zoo.NAMES) != zoo.WRITTEN,
    reason="without torchvision, or of a later transformers, which has more families",
)


@of_the_tests
@pytest.mark.parametrize("name", {name.split()[0]: name for name in reversed(zoo.NAMES)}.values())
def test_a_row_is_what_the_tests_hold(name):
    (row,) = (row for row in WRITTEN if row["name"] == name.split()[0])
    assert row == report.entry(row["name"]), "write it again: make families"


@of_the_tests
def test_rows_stand_in_the_order_of_the_mapping_and_those_not_built_say_why():
    built = {name.split()[0] for name in zoo.NAMES}
    assert [row["name"] for row in WRITTEN] == list(report.MAPPED)
    others = [row for row in WRITTEN if row["name"] not in built]
    assert others == [report.entry(row["name"]) for row in others]


def test_every_name_of_the_mapping_has_a_row_and_a_reason():
    families = {family.name: family for family in lp.families()}
    assert set(families) >= set(MAPPED)
    for family in families.values():
        assert family.places in family_table.PLACE_STATES
        assert family.note or (family.rows and family.places in ("written", "measured")), family


def test_a_name_that_nobody_tried_is_said_to_be_so(monkeypatch):
    monkeypatch.setattr(family_table, "_mapped", lambda: iter(["llava", "brand_new"]))
    assert {family.name: family.places for family in lp.families()}["brand_new"] == "not tried"


def test_the_command_prints_a_row_a_name():
    shown = CliRunner().invoke(cli.app, ["models"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for name in MAPPED:
        assert name in shown.stdout
    one = CliRunner().invoke(cli.app, ["models", "mllama"], env={"COLUMNS": "200"}).stdout
    assert "cross-attention" in one
    assert f"1 of {len(lp.families())} families: 1 none" in one
