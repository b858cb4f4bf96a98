"""Families that the installed transformers does not have yet: their names stand for nothing, their tests are skipped.

The zoo is written for the transformers of ``constraints.txt``; at the lower bound some of its classes are not there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as HERE

#: Families whose own code in the oldest transformers takes other configs, settings or inputs than the zoo makes.
_OTHERWISE = {
    *("vipllava", "granite4_vision", "got_ocr2", "glm5_next", "cosmos3_edge", "aria", "fuyu", "kosmos-2", "kosmos-2.5"),
    *("paligemma", "git", "minicpmv4_6"),
}
_OLD = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23)


class Absent:
    """In place of a class that a later transformers has."""


def is_here(family: str) -> bool:
    """Whether this transformers has the family (``"llava_next full"``: a family and a word for a variation)."""
    name = family.split()[0]
    return name in HERE and not (_OLD and (name in _OTHERWISE or family == "gemma3 pan"))


def stand_in() -> None:
    """Let the zoo's files be imported whatever transformers has."""
    for name in _imported():
        if not hasattr(transformers, name):
            setattr(transformers, name, Absent)


def _imported() -> Iterator[str]:
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "transformers":
                yield from (alias.name for alias in node.names)
