"""Going through the samples of a sweep: a bar with rate and time left, and a folder in which it goes on.

folder/sweep.json       what is swept, and on which model: another sweep is refused here
folder/00003.json       the numbers of one sample
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from tqdm import tqdm

from llava_probe.arrays import FloatArray
from llava_probe.asking.identity import differences, model_of, processor_of
from llava_probe.errors import BadInput
from llava_probe.inside.passes import in_force
from llava_probe.model import VLM
from llava_probe.resampling import interval, resamples
from llava_probe.stored import JSON_LIMIT, made_folder, read_json, write_text
from llava_probe.trace.trace import Trace

#: Seconds before a bar shows.
BAR_AFTER = 2.0
#: Resamples of an interval over pictures.
RESAMPLES = 1_000

_SAMPLE = "sample of a sweep"


class _Sample(TypedDict):
    sample: str
    values: dict[str, Any]


#: Makes the numbers of one sample, by name; it is told how many of its runs are through.
Measuring = Callable[[Callable[[int], None]], Mapping[str, Any]]


def swept(
    what: str,
    vlm: VLM,
    settings: Mapping[str, Any],
    samples: Sequence[tuple[str, int, Measuring]],
    folder: str | Path | None,
) -> list[Mapping[str, Any]]:
    """The numbers of each sample, of those that are in the folder as they are there.

    Args:
        what: is swept, for the bar and the folder.
        vlm: on which model; ``settings``: how.
        samples: for each its identity, how many runs it takes, and what measures it.
        folder: where to write what is through; None: nowhere.

    Raises:
        BadInput: the folder holds another sweep, or one of other samples.
        BadFile: it cannot be read or written.
    """
    place = None if folder is None else Path(folder).expanduser()
    if place is not None:
        _check(place, {"sweep": what, "settings": settings, **_identity(vlm)})
    found = []
    with tqdm(total=sum(runs for _, runs, _ in samples), desc=what, unit="run", delay=BAR_AFTER, disable=None) as bar:
        for number, (identity, runs, measure) in enumerate(samples):
            path = None if place is None else place / f"{number:05}.json"
            held = None if path is None or not path.is_file() else _read(path, identity)
            if held is None:
                held = {name: _plain(value) for name, value in measure(bar.update).items()}
                if path is not None:
                    write_text(_SAMPLE, path, json.dumps({"sample": identity, "values": held}))
            else:
                bar.update(runs)
            found.append(held)
    return found


def sample_name(*traces: Trace) -> str:
    """What tells one sample from another: its pictures and its words."""
    told = [
        [trace.request.prompt, list(trace.provenance.get("images", ())), dict(trace.request.processor)]
        for trace in traces
    ]
    return json.dumps(told, ensure_ascii=False, default=str)


def over_samples(values: FloatArray, seed: int = 0) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean over the first axis and the ends of its 95 % interval over samples; NaN values are left out.

    Args:
        values: [samples, ...].

    Returns:
        Three arrays [...]; the ends are the mean itself where there is one sample.
    """
    flat = values.reshape(len(values), -1)
    counts = resamples(len(values), RESAMPLES, seed).astype(np.float64)
    there = ~np.isnan(flat)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (counts @ np.where(there, flat, 0)) / (counts @ there)
        mean = np.where(there, flat, 0).sum(0) / there.sum(0)
    nothing = (float("nan"), float("nan"))
    ends = np.array([nothing if np.isnan(column).all() else interval(column) for column in means.T]).reshape(-1, 2).T
    low, high = (end.reshape(values.shape[1:]) for end in ends)
    return mean.reshape(values.shape[1:]), low, high


def told_with(mean: float, low: float, high: float, form: str) -> str:
    """A mean and its interval, as a cell of a table; the mean alone where the interval has no width."""
    shown = [format(value, form) for value in (mean, low, high)]
    shown = [cell.lstrip("-") if not float(cell) else cell for cell in shown]  # no minus before nothing
    return shown[0] if low == high else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a table to print."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = (zip(line, widths, strict=True) for line in lines)
    return "\n".join("  ".join(cell.ljust(width) for cell, width in row).rstrip() for row in rows)


def _identity(vlm: VLM) -> dict[str, Any]:
    under = in_force(vlm.anatomy)
    told = {"model": model_of(vlm.anatomy, vlm.model), "processor": processor_of(vlm.processor)}
    return {**told, **({"interventions": list(under)} if under else {})}


def _check(place: Path, told: Mapping[str, Any]) -> None:
    """Refuse a folder of another sweep; make an empty one ours."""
    told = json.loads(json.dumps(told, default=str))
    path = place / "sweep.json"
    if not path.is_file():
        made_folder("folder of a sweep", place)
        if any(place.iterdir()):
            raise BadInput(f"{place} holds other files and no sweep; name an empty folder, or one that does not exist")
        write_text("settings of a sweep", path, json.dumps(told, indent=1))
        return
    held = read_json("settings of a sweep", path, dict[str, Any], limit=JSON_LIMIT)
    if other := differences(held, told):
        raise BadInput(f"{place} holds another sweep ({'; '.join(other)}); name another folder")


def _read(path: Path, identity: str) -> Mapping[str, Any]:
    held = read_json(_SAMPLE, path, _Sample, limit=JSON_LIMIT)
    if held["sample"] != identity:
        raise BadInput(f"{path} is of another sample; a folder goes on with the samples that it began with")
    return held["values"]


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
