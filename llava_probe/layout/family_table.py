"""What holds for each family of image-text models: a table made from the tests' own results.

    llava-probe models

``families.json`` is written by ``make families`` from what the tests try on a tiny random model of each family with its
real processor, and a test compares it with them. A name of the installed transformers that is not in it was not tried.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TABLE = Path(__file__).with_name("families.json")

#: What a family's visual tokens have: places that are written here, that are measured, none; or it was not built.
PLACE_STATES = ("written", "measured", "none", "not built", "not tried")


@dataclass(frozen=True)
class Family:
    """One name of transformers' image-text-to-text mapping (``config.model_type``).

    Attributes:
        name: the key.
        places: one of ``PLACE_STATES``.
        rows: whether attention rows equal eager attention; None where there is no model to try.
        note: why not, or what to know.
    """

    name: str
    places: str
    rows: bool | None
    note: str = ""


def families() -> tuple[Family, ...]:
    """All names of the installed transformers' mapping, in its order, then those that only the table knows."""
    table = {told["name"]: Family(**told) for told in json.loads(_TABLE.read_text(encoding="utf-8"))}
    names = dict.fromkeys([*_mapped(), *table])
    return tuple(table.get(name, Family(name, "not tried", None, "newer than the table")) for name in names)


def _mapped() -> Iterator[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    yield from MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
