"""The tables of the site are what the code says."""

import re
import runpy

import pytest

import llava_probe as lp
from llava_probe.leaderboard.entries import ENTRIES
from tests.docs.blocks import DOCS, ROOT

TABLES = runpy.run_path(str(DOCS / "tables.py"))["TABLES"]


@pytest.mark.parametrize("name", list(TABLES))
def test_a_table_is_what_its_command_writes(name):
    stored = (DOCS / "tables" / name).read_text(encoding="utf-8")
    assert stored == TABLES[name](), "python docs/tables.py"


def rows(text, after):
    """The rows of the first Markdown table behind ``after``, each its cells."""
    lines = text.partition(after)[2].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def test_readmes_methods_are_those_of_the_code():
    told = {}
    for names, family, _, contrast in rows((ROOT / "README.md").read_text(encoding="utf-8"), "## Why this word"):
        told |= dict.fromkeys(re.findall(r"`(\w+)`", names), (family, contrast == "yes"))
    assert told == {name: (each.family, each.contrasts) for name, each in lp.METHODS.items()}


def test_the_leaderboard_scores_every_method():
    page = (ROOT / "figures/leaderboard.md").read_text(encoding="utf-8")
    scored = {row[0].strip("*") for row in rows(page, "## Where each method points")}
    assert set(ENTRIES) <= scored
    assert {entry.method for entry in ENTRIES.values()} == set(lp.METHODS)
