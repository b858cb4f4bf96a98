"""Families that the installed transformers does not have yet: their names stand for nothing, their tests are skipped.

The zoo is written for the transformers of ``constraints.txt``; at the lower bound some of its classes are not there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as HERE


class Absent:
    """In place of a class that a later transformers has."""


def is_here(family: str) -> bool:
    """Whether this transformers has the family (``"llava_next full"``: a family and a word for a variation)."""
    return family.split()[0] in HERE


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
