"""What somebody's file holds: yes-or-no questions, captions, or pictures to be described; told apart by themselves.

coco_pope_random.json         a label, yes or no: questions
captions.jsonl                a caption: it is judged, and read by the model where its picture is there
instances_val2014.json        COCO's own file: each of its pictures is described, and it is the truth as well
photos/, pictures.jsonl       neither: described
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from llava_probe.errors import BadInput, shortened
from llava_probe.features.rows import Broken, Source
from llava_probe.features.sources import open_source
from llava_probe.report.captions import CAPTION_COLUMNS
from llava_probe.signals.coco import pictures_of
from llava_probe.signals.rows import each_row

_LABELS = ("label", "answer")


@dataclass(frozen=True, eq=False)
class GivenFiles:
    """What was given.

    Attributes:
        kind: of its rows.
        sources: of these, one for each file.
        captions: their column of captions, where they are captions.
        pictured: whether rows have a picture in a column of their own.
        instances: the file, where it is COCO's instances: the truth about its own pictures.
    """

    kind: Literal["questions", "captions", "pictures"]
    sources: Sequence[Source]
    captions: str | None = None
    pictured: bool = True
    instances: str | None = None

    def rows(self) -> list[dict[str, Any]]:
        """All rows of the first file, to be measured as they are.

        Raises:
            BadInput: one that cannot be read.
        """
        return [dict(row) for _, row in each_row(self.sources[0])]


def look_into(files: Sequence[str]) -> GivenFiles:
    """Tell what the files hold by the first row of each.

    Raises:
        BadInput: nothing is there, no row can be read, or files of several kinds.
    """
    found = [_look(file) for file in files]
    if len(found) > 1 and any(each.kind != "questions" for each in found):
        other = next(file for file, each in zip(files, found, strict=True) if each.kind != "questions")
        raise BadInput(
            f"several files are splits of yes-or-no questions, and {shortened(other)} holds none (no column label or "
            "answer); give files of other kinds one by one"
        )
    return replace(found[0], sources=[source for each in found for source in each.sources])


def _look(file: str) -> GivenFiles:
    listed = pictures_of(file) if Path(file).suffix.lower() == ".json" else None
    if listed is not None:
        source = replace(open_source(listed), name=Path(file).name, folder=Path(file).expanduser().absolute().parent)
        return GivenFiles("pictures", [source], instances=file)
    source = open_source(file)
    row = next((row for row in source.rows() if not isinstance(row, Broken)), None)
    if row is None:
        raise BadInput(f"{source.name} holds no row that can be read")
    if _has(row, *_LABELS):
        return GivenFiles("questions", [source])
    captions = next((name for name in CAPTION_COLUMNS if _has(row, name)), None)
    kind: Any = "pictures" if captions is None else "captions"
    return GivenFiles(kind, [source], captions, pictured=_has(row, "image", "file_name"))


def _has(row: Mapping[str, Any], *names: str) -> bool:
    return any(row.get(name) is not None for name in names)
