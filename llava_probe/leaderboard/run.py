"""What a folder of scores was made with, so that no other model, plan or case is mixed into it.

A run that goes on, or shares its folder with others, must be the same run: same weights, same entries, same cases.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_probe.attribution import LocalisationHeads
from llava_probe.claimed import RUN, claim, read_claim
from llava_probe.errors import BadInput
from llava_probe.evaluate.cases import Case
from llava_probe.features.values import content_key
from llava_probe.leaderboard.entries import ScoringPlan
from llava_probe.leaderboard.lines import Made
from llava_probe.model import VLM
from llava_probe.pictures.images import open_image


def claim_scores(folder: Path, vlm: VLM, plan: ScoringPlan) -> None:
    """Note in a folder what its scores are made with, or see that they were made with the same.

    Raises:
        BadInput: the folder holds scores of another model or plan.
        BadFile: what it says of that is damaged.
    """
    claim(folder, vlm, json.loads(json.dumps(_told(plan), default=_plain)), what="scores", kind=Made)


def made_with(folder: Path) -> Mapping[str, Any]:
    """What ``claim_scores`` noted in a folder; empty where nothing is.

    Raises:
        BadFile: what is there is no such note.
    """
    return read_claim(folder, "scores", Made) if (folder / RUN).exists() else {}


def asked(group: Sequence[Case]) -> str:
    """A digest of one question and its cases, their masks too.

    Raises:
        BadInput: a mask that is empty, covers everything, is of another size than the picture or cannot be read; the
            case is named.
    """
    size = open_image(group[0].image).size
    digest = hashlib.sha256(content_key(group[0].image).encode())
    for case in group:
        try:
            mask = case.mask()
        except BadInput as error:
            raise BadInput(f"case {case.id!r}: {error}") from error
        if mask.shape != size[::-1]:
            raise BadInput(f"case {case.id!r}: its mask is {mask.shape[::-1]} pixels, its picture {size}")
        if not mask.any() or mask.all():
            raise BadInput(f"case {case.id!r}: its mask {'covers the whole picture' if mask.any() else 'is empty'}")
        told = (case.id, case.asking, case.word, case.occurrence, case.token, case.answer, case.kind)
        digest.update(json.dumps([*told, case.function_words]).encode())
        digest.update(mask.tobytes())
    return digest.hexdigest()[:16]


def _told(plan: ScoringPlan) -> Mapping[str, Any]:
    entries = {name: {"method": entry.method, **plan.options(entry)} for name, entry in plan.runs()}
    told = {"entries": entries, "closer": plan.closer, "random": plan.random}
    if not plan.own:
        return told
    return told | {"own": sorted(plan.own), "code": {name: _code(own) for name, own in plan.own.items()}}


def _code(function: Any) -> str:
    """A digest of what a function says itself; what it calls and was given is not in it."""
    try:
        said = inspect.getsource(function)
    except (OSError, TypeError):  # typed at a prompt, or no function
        said = getattr(function, "__qualname__", type(function).__qualname__)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    return {"samples": value.samples, "chosen": value.heads} if isinstance(value, LocalisationHeads) else repr(value)
