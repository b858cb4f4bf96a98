"""The rows of a data set asked of a model, a line of JSON each; the same call again goes on where it was stopped.

    failed = ask_rows(vlm, task, "signals/")

Lines are written as answers come, whole batches at a time, so a run that is cut off loses the batch that it was at and
ends with the same bytes. A row that fails is told and left out; the next run tries it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_probe.claimed import claim
from llava_probe.errors import BadInput, ProbeError, shortened
from llava_probe.features.samples import Sample
from llava_probe.json_lines import drop_cut_line, each_line
from llava_probe.model import VLM
from llava_probe.stored import converted, made_folder


@dataclass(frozen=True, eq=False)
class RowTask:
    """A data set, and what is asked of its rows.

    Attributes:
        name: of the file of lines.
        line: what one must hold, as a described type.
        settings: what lines depend on besides the model.
        count: of the rows.
        rows: for each what its line begins with (its number as ``row``, and all that tells it from another) and what is
            asked.
        ask: of some samples at once, what their lines end with.
    """

    name: str
    line: Any
    settings: Mapping[str, Any]
    count: int
    rows: Callable[[], Iterator[tuple[dict[str, Any], Sample]]]
    ask: Callable[[VLM, Sequence[Sample]], list[dict[str, Any]]]


@dataclass(frozen=True)
class Failure:
    """A row that could not be asked: where it stands, and why."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


def ask_rows(vlm: VLM, task: RowTask, folder: str | Path, batch_size: int = 1) -> list[Failure]:
    """Ask every row that has no line yet, and append its line.

    Args:
        vlm: the model.
        task: what is asked.
        folder: of the lines, made where there is none.
        batch_size: rows a pass.

    Returns:
        The rows that failed.

    Raises:
        BadInput: the folder holds lines of another model, data set or setting.
        BadFile: it cannot be written, or what it holds is damaged.
    """
    target = made_folder("folder of answers", folder)
    claim(target, vlm, {**task.settings, "batch_size": batch_size}, what="answers")
    path = target / task.name
    if path.exists():
        drop_cut_line("file of answers", path)
    done = {line["row"]: line for line in finished_lines(task, target)}
    failed: list[Failure] = []
    rows, shown = task.rows(), {"desc": "asking", "unit": "row", "disable": None}
    with path.open("a", encoding="utf-8") as file, tqdm(total=task.count, initial=len(done), **shown) as bar:
        while some := list(islice(rows, batch_size)):
            for told, _ in some:
                _check_same(told, done.get(told["row"], told), path)
            if all(told["row"] in done for told, _ in some):
                continue
            ends = _answered(vlm, task, [sample for _, sample in some])
            for (told, sample), end in zip(some, ends, strict=True):
                if isinstance(end, str):
                    failed.append(Failure(_where(sample), end))
                elif told["row"] not in done:
                    file.write(json.dumps(told | end, ensure_ascii=False) + "\n")
                    bar.update()
            file.flush()
    return failed


def finished_lines(task: RowTask, folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a folder, in the order of the rows; none where there is no file.

    Raises:
        BadFile: one is damaged, or none of ours; its number is told.
    """
    path = Path(folder).expanduser() / task.name
    if not path.exists():
        return []
    found = {}
    for where, plain in each_line("file of answers", path):
        converted(f"{where} is damaged", plain, task.line)
        found[plain["row"]] = plain
    return [found[row] for row in sorted(found)]


def _answered(vlm: VLM, task: RowTask, samples: Sequence[Sample]) -> list[dict[str, Any] | str]:
    """What each line ends with, or why there is none; where a batch fails, each of its rows is asked alone."""
    good = [sample for sample in samples if sample.fault is None]
    ends: Iterator[dict[str, Any] | str]
    try:
        ends = iter(task.ask(vlm, good) if good else ())
    except ProbeError as error:
        ends = iter([str(error)] if len(good) == 1 else [_alone(vlm, task, sample) for sample in good])
    return [next(ends) if sample.fault is None else sample.fault for sample in samples]


def _alone(vlm: VLM, task: RowTask, sample: Sample) -> dict[str, Any] | str:
    try:
        return task.ask(vlm, [sample])[0]
    except ProbeError as error:
        return str(error)


def _where(sample: Sample) -> str:
    return f"row {sample.row}" if sample.line is None else f"line {sample.line}"


def _check_same(told: Mapping[str, Any], held: Mapping[str, Any], path: Path) -> None:
    if other := [name for name, value in told.items() if held.get(name) != value]:
        there, here = (shortened(repr(each.get(other[0]))) for each in (held, told))
        raise BadInput(
            f"{path} holds answers to other rows (row {told['row']} has {other[0]} {there} there, {here} here); give "
            "another folder"
        )
