"""The table of families from what the tests hold: ``python -m tests.zoo.report`` writes it into the package.

Each entry stands on a test that fails where it is not so: the lists of exceptions in ``test_families.py`` and
``layout/test_places.py`` are strict.
"""

from __future__ import annotations

import json
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import llava_probe.layout.family_table
from tests import test_families, zoo
from tests.layout import test_places
from tests.zoo.unbuilt import UNBUILT

#: Every name that the table has a row for, in its order.
MAPPED = tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)

#: Towers of timm's that the zoo puts another in place of.
STAND_INS = {"fast_vlm": "tried with a ResNet in timm's place", "perception_lm": "tried with CLIP in timm's place"}


def table() -> list[dict[str, Any]]:
    """One entry for each name of the mapping, in its order."""
    return [entry(name) for name in MAPPED]


def entry(name: str) -> dict[str, Any]:
    """That of one name."""
    built = next((one for one in zoo.NAMES if one.split()[0] == name), None)
    if built is None:
        return {"name": name, "places": "not built", "rows": None, "note": UNBUILT[name]}
    rows = test_families.EXCEPT["rows"].get(built)
    notes = []
    if built in test_places.PLACELESS:
        places, note = "none", test_places.PLACELESS[built]
        notes.append(note)
    else:
        places = "written" if zoo.vlm(built).layouts.way is not None else "measured"
    if built in test_places.MIXES:
        notes.append("its tower mixes patches: a box is the main share")
    if built in STAND_INS:
        notes.append(STAND_INS[built])
    if rows is not None:
        notes.append(rows)
    if zoo.vlm(built).anatomy.other_layers:
        notes.append("its layers without attention are listed")
    return {"name": name, "places": places, "rows": rows is None, "note": "; ".join(notes)}


def written(entries: list[dict[str, Any]]) -> str:
    """As it stands in the package, an entry a line."""
    lines = ",\n".join("  " + json.dumps(each, ensure_ascii=False) for each in entries)
    return f"[\n{lines}\n]\n"


if __name__ == "__main__":
    llava_probe.layout.family_table._TABLE.write_text(written(table()), encoding="utf-8")
