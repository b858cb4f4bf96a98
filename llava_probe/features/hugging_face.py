"""Hugging Face data sets, in memory, on disk or by name: what their typed columns say is believed.

A column of type Image is the picture whatever it is called; a ClassLabel is carried as its number and, beside it, as
its name (``label`` and ``label_name``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llava_probe.errors import BadInput, first_line, shortened
from llava_probe.features.rows import BATCH_ROWS, Row, Source, listed_names, needed, reading

_HUGGING_FACE = ("datasets.arrow_dataset", "datasets.iterable_dataset", "datasets.dataset_dict")


def is_dataset(source: Any) -> bool:
    """By the name of its class: whoever holds such an object has imported the library, we need not."""
    return any(kind.__module__ in _HUGGING_FACE for kind in type(source).__mro__)


def is_saved_dataset(path: Path) -> bool:
    """Whether ``save_to_disk`` wrote this folder."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def of_saved_dataset(path: Path, split: str | None) -> Source:
    """What ``save_to_disk`` wrote."""
    datasets = needed("datasets", path.name)
    with reading(path.name):
        saved = datasets.load_from_disk(str(path))  # some versions take no Path
    return of_dataset(saved, split, shortened(path.name), path)


def of_name(name: str, split: str | None) -> Source:
    """A data set of the Hub, or of the cache."""
    datasets = needed("datasets", f"{name!r} is no file or folder here, and a Hugging Face data set")
    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises about anything, from a missing name to the network's own errors
        reason = shortened(first_line(error))
        raise BadInput(f"{name!r} is no file or folder here, and as a Hugging Face data set: {reason}") from None
    return of_dataset(loaded, None if split else split, name)


def of_dataset(dataset: Any, split: str | None, name: str | None = None, folder: Path | None = None) -> Source:
    """One split of what the library itself has opened."""
    if isinstance(dataset, dict):  # DatasetDict, IterableDatasetDict
        dataset = _of_split(dataset, split, name or type(dataset).__name__)
    elif split is not None and split != str(dataset.split):
        raise BadInput(f"this data set is a single split ({dataset.split}); leave split={split!r} out")
    name = name or dataset.info.dataset_name or type(dataset).__name__
    name = f"{name} ({dataset.split})" if dataset.split else name
    has_count = hasattr(dataset, "__len__")
    features = dict(dataset.features or {})
    labels = {column: kind for column, kind in features.items() if type(kind).__name__ == "ClassLabel"}
    labels = {column: kind for column, kind in labels.items() if f"{column}_name" not in features}
    return Source(
        name,
        lambda: (_labelled(row, labels) for row in _undecoded(dataset)),
        lambda: len(dataset) if has_count else None,
        folder,
        tuple(column for column, kind in features.items() if _is_picture(kind)),
    )


def _is_picture(kind: Any) -> bool:
    """A column of type Image, or of lists of those."""
    inner = kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", kind)
    return type(inner).__name__ == "Image"


def _labelled(row: Mapping[str, Any], labels: Mapping[str, Any]) -> Row:
    """The row with the names of its classes beside their numbers."""
    names: dict[str, Any] = {}
    for column, kind in labels.items():
        number = row.get(column)
        known = isinstance(number, int) and 0 <= number < len(kind.names)
        names[f"{column}_name"] = kind.names[int(number)] if known else None  # type: ignore[arg-type]
    return {**row, **names} if names else row


def _of_split(splits: dict[str, Any], split: str | None, name: str) -> Any:
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        given = "pass one" if split is None else f"split={split!r} is none of them"
        raise BadInput(
            f"{name} has the splits {listed_names(splits)}; {given}, such as split={next(iter(splits), '')!r}"
        )
    return splits[split]


def _undecoded(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """Rows with pictures as their file's bytes or path: decoding is for whoever needs the pixels."""
    if not hasattr(dataset, "__len__"):
        yield from dataset.decode(False) if dataset.features else dataset
    elif dataset.format["type"] == "custom":  # the user's own with_transform, which expects decoded pictures
        yield from dataset
    else:
        for table in dataset.with_format("arrow").iter(BATCH_ROWS):
            yield from table.to_pylist()
