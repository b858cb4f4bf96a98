"""What is on COCO's photographs: the objects of its instances, and those that its reference captions name.

    there = on_pictures([42, 73], "instances_val2014.json", "captions_val2014.json", synonyms)    # {42: {"dog"}, ...}

Only what CHAIR needs of the files is read, so that an annotation's polygons cost no memory.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import msgspec

from llava_probe.errors import BadInput, shortened
from llava_probe.features.text_files import JSON_BYTES
from llava_probe.signals.mentions import named
from llava_probe.signals.synonyms import Synonyms
from llava_probe.stored import decoded, opened

#: A file, or several, as for train and val.
CocoFiles = str | Path | Sequence[str | Path]

_NUMBER = re.compile(r"(?:.*\D)?0*(\d+)", re.DOTALL)


class _Picture(msgspec.Struct):
    id: int | str
    file_name: str | None = None


class _Category(msgspec.Struct):
    id: int
    name: str


class _Instance(msgspec.Struct):
    image_id: int | str
    category_id: int


class _Instances(msgspec.Struct):
    images: list[_Picture]
    annotations: list[_Instance]
    categories: list[_Category]


class _Caption(msgspec.Struct):
    image_id: int | str
    caption: str


class _Captions(msgspec.Struct):
    annotations: list[_Caption]


def picture_number(told: Any, where: str) -> int:
    """The number of a picture of COCO, however it is told: 42, "42", "COCO_val2014_000000000042.jpg".

    Raises:
        BadInput: there is none in it.
    """
    if isinstance(told, Integral) and not isinstance(told, bool):  # of a frame: NumPy's
        return int(told)
    found = _NUMBER.fullmatch(Path(told).stem) if isinstance(told, str) else None  # ".jp2" holds a digit too
    if found is None:
        raise BadInput(f"{where} is of the picture {shortened(repr(told))}, which has no number of COCO's")
    return int(found[1])


def pictures_of(path: str | Path) -> list[dict[str, Any]] | None:
    """The pictures that a file of instances lists, a row with ``image_id`` and ``image`` each; None if it is none."""
    try:
        held = _read(path, _Instances, "COCO's instances")
    except BadInput:
        return None
    return [{"image_id": picture.id, "image": picture.file_name} for picture in held.images]


def on_pictures(
    wanted: Collection[int], instances: CocoFiles, references: CocoFiles | None, synonyms: Synonyms
) -> dict[int, frozenset[str]]:
    """The objects on each picture.

    Args:
        wanted: the pictures' numbers.
        instances: ``instances_*.json``; ``references``: ``captions_*.json``, or None.
        synonyms: the words for objects.

    Raises:
        BadInput: a file cannot be read, a category that no word names, or a picture that no file of instances has.
    """
    found: dict[int, set[str]] = {}
    for path in paths_of(instances):
        held = _read(path, _Instances, "COCO's instances")
        categories = {each.id: _object(each.name, path, synonyms) for each in held.categories}
        for picture in held.images:
            if (number := picture_number(picture.id, f"an image of {path}")) in wanted:
                found.setdefault(number, set())
        for one in held.annotations:
            number = picture_number(one.image_id, f"an annotation of {path}")
            if number in wanted:
                if one.category_id not in categories:
                    raise BadInput(f"{path} has an instance of category {one.category_id}, which it does not list")
                found.setdefault(number, set()).add(categories[one.category_id])
    missing = sorted(set(wanted) - set(found))
    if missing:
        told = ", ".join(map(str, missing[:5]))
        raise BadInput(
            f"no file of instances has {len(missing)} of {len(wanted)} pictures ({told}{' ...' * (len(missing) > 5)}); "
            "pass all that belong to the captions, as in [instances_train2014.json, instances_val2014.json]"
        )
    for path in paths_of(references) if references is not None else ():
        for reference in _read(path, _Captions, "COCO's captions").annotations:
            number = picture_number(reference.image_id, f"a caption of {path}")
            if number in wanted:
                found[number] |= {mention.object for mention in named(reference.caption, synonyms)}
    return {number: frozenset(objects) for number, objects in found.items()}


def paths_of(files: CocoFiles) -> Iterator[str | Path]:
    """One file or several, one by one."""
    yield from [files] if isinstance(files, str | Path) else files


def _read(path: str | Path, kind: Any, what: str) -> Any:
    with opened(f"file of {what}", path, JSON_BYTES, BadInput) as file:
        whole = file.read()
    return decoded(f"{path} is no file of {what}, or a damaged one", whole, kind, BadInput)


def _object(name: str, path: str | Path, synonyms: Synonyms) -> str:
    found = synonyms.object_of.get(" ".join(name.lower().split()))
    if found is None:
        raise BadInput(
            f"{path} has the category {shortened(repr(name))}, which no line of {synonyms.name} begins with; pass a "
            "list with all of its categories, synonyms='words.txt'"
        )
    return found
