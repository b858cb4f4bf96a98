"""Public data sets that lie in one JSON object: COCO's annotations, VQAv2's questions, a list under some key.

    {"images": [...], "annotations": [...], "categories": [...]}    a row an annotation, beside its picture and category
    {"questions": [...]}                                            the questions
    {"anything": [...], "info": {...}}                              the one list of objects

A row of COCO's is the annotation's own columns, with ``image`` (the file's name), ``category`` (the word) and ``mask``;
annotations of one picture follow each other. Its boxes are x, y, width, height, because they are COCO's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llava_probe.errors import BadInput
from llava_probe.features.by_column import by_column
from llava_probe.features.rows import Broken, Row, Source, dict_row, listed_names

#: Keys that name the rows among several lists, as people call them.
_ROWS = ("questions", "data", "rows", "samples", "examples", "annotations")


def list_inside(whole: Mapping[str, Any], name: str, folder: Path) -> Source:
    """The rows that an object holds.

    Raises:
        BadInput: it holds no list of objects, or several that no name tells apart.
    """
    lists = {key: value for key, value in whole.items() if isinstance(value, list) and _of_objects(value)}
    if {"images", "annotations"} <= whole.keys() and isinstance(whole["annotations"], list):
        return _of_coco(whole, name, folder)
    if not lists and (columns := by_column(whole)) is not None:
        count, by_row = columns
        return Source(name, by_row, lambda: count, folder, told=(f"{name} holds lists by column",))
    keys = list(lists) if len(lists) == 1 else [key for key in _ROWS if key in lists][:1]
    if not keys:
        instead = f"several lists: {listed_names(lists)}" if lists else f"the keys {listed_names(whole)}"
        raise BadInput(f"{name} holds a dict with {instead}; pass the list of rows inside it, as JSON or JSON lines")
    rows = lists[keys[0]]

    def given() -> Iterator[Row]:
        return (dict_row(row, f"entry {place} of {keys[0]}") for place, row in enumerate(rows))

    told = f"the rows of {name} are its {keys[0]}"
    answered = {"answer": "multiple_choice_answer"} if "multiple_choice_answer" in rows[0] else {}
    return Source(name, given, lambda: len(rows), folder, columns=answered, told=(told,))


def _of_objects(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], Mapping)


def _of_coco(whole: Mapping[str, Any], name: str, folder: Path) -> Source:
    images, categories = _by_id(whole, "images", name), _by_id(whole, "categories", name)
    annotations = [one for one in whole["annotations"] if isinstance(one, Mapping)]
    if len(annotations) < len(whole["annotations"]):
        raise BadInput(f"{name} holds annotations that are no objects")
    first: dict[str, int] = {}
    for place, one in enumerate(annotations):
        first.setdefault(_key(one.get("image_id")), place)
    annotations.sort(key=lambda one: first[_key(one.get("image_id"))])

    def rows() -> Iterator[Row]:
        return (_coco_row(one, images, categories) for one in annotations)

    told = f"{name} holds COCO's annotations: a row for each of {len(annotations):,}, boxes are x, y, width, height"
    columns = {"image": "image", "boxes": "bbox", "mask": "mask"}
    return Source(name, rows, lambda: len(annotations), folder, columns=columns, box_format="xywh", told=(told,))


def _by_id(whole: Mapping[str, Any], key: str, name: str) -> dict[str, Mapping[str, Any]]:
    listed = whole.get(key) or []
    if not isinstance(listed, list) or not all(isinstance(one, Mapping) and "id" in one for one in listed):
        raise BadInput(f"{name} looks like COCO's annotations, but its {key} are no list of objects with an id")
    return {_key(one["id"]): one for one in listed}


def _key(value: Any) -> str:
    return str(value)


def _coco_row(one: Mapping[str, Any], images: Mapping[str, Any], categories: Mapping[str, Any]) -> Row:
    image = images.get(_key(one.get("image_id")))
    if image is None or not isinstance(image.get("file_name"), str):
        return Broken(f"annotation {one.get('id')} is of the image {one.get('image_id')}, whose file is not named")
    row = {name: value for name, value in one.items() if name != "segmentation"}
    row |= {"image": image["file_name"], "file_name": image["file_name"], "mask": None}
    row.setdefault("bbox", None)
    category = categories.get(_key(one.get("category_id")))
    if category is not None:
        row["category"] = category.get("name")
    mask = one.get("segmentation")
    if isinstance(mask, list) and mask:
        size = [image.get("height"), image.get("width")]
        row["mask"] = {"polygons": mask, "size": size} if None not in size else mask
    elif mask:
        row["mask"] = mask
    return row
