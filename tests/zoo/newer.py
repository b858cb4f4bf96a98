"""Families that the installed transformers does not have yet: their names stand for nothing, their tests are skipped.

The zoo is written for the transformers of ``constraints.txt``; at the lower bound some of its classes are not there.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import LlavaForConditionalGeneration
from transformers.masking_utils import create_chunked_causal_mask
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


def skip_where_broken(settings: Mapping[str, Any], family: str = "llava") -> None:
    """Skip a way of decoding that this transformers gets wrong in a plain run, with nothing of ours in it."""
    takes_features = "mm_encoder_outputs" in inspect.signature(LlavaForConditionalGeneration.forward).parameters
    if "prefill_chunk_size" in settings and not takes_features:
        pytest.skip("this transformers cuts a picture's features at the chunk; we refuse it there")
    takes_blocks = "block_sequence_ids" in inspect.signature(create_chunked_causal_mask).parameters
    if family == "llama4" and "cache_implementation" in settings and not takes_blocks:
        pytest.skip("this transformers gives the mask of Llama 4's static cache an argument that it does not take")


def resamples_by_lanczos() -> bool:
    """Whether pictures are resized as Idefics 3 asks; below torchvision 0.27, transformers takes a bicubic kernel."""
    return tuple(map(int, version("torchvision").split(".")[:2])) >= (0, 27)


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
