"""One run as a folder: the answer as JSON, the trace, the maps, and figures one can put in a paper.

    answer.json    answer, each token's numbers, its words, where its attention peaks, provenance
    run.trace      everything that was kept; lp.Trace.load reads it
    maps/          an overlay per token and one .npz, for each picture
    figures/       the answer's confidence, all maps on one sheet, heads by layer

The same for the command line and for Python: ``write_run(trace, "out/")``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_probe.analyzers.attention import attention_map
from llava_probe.analyzers.confidence import confidence
from llava_probe.analyzers.heads import heads as head_shares
from llava_probe.errors import BadFile
from llava_probe.maps import ImageMap
from llava_probe.trace import Trace
from llava_probe.view.canvas import save_figure
from llava_probe.view.figures import confidence_figure, contact_sheet, heads_figure


def write_run(
    trace: Trace,
    folder: str | Path,
    *,
    maps: bool = True,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> list[Path]:
    """Write a run into ``folder`` (made where it is not there) and tell what was written.

    Args:
        trace: the run.
        folder: where to.
        maps: also attention maps and their figures.
        layers, heads: which attention to average; all that was kept by default.

    Raises:
        BadFile: the folder cannot be made or written.
    """
    target = Path(folder).expanduser()
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadFile(f"the folder {target} cannot be made: {error}") from error
    shown = _maps(trace, layers, heads) if maps else []
    written = [_write_answer(trace, shown, target / "answer.json"), trace.save(target / "run.trace")]
    figures = target / "figures"
    figures.mkdir(exist_ok=True)
    sure = confidence(trace)
    written.append(save_figure(confidence_figure(sure), figures / "confidence.png"))
    for number, m in enumerate(shown):
        suffix = f"_{number}" if len(shown) > 1 else ""
        written += m.save(target / f"maps{suffix}")
        written.append(save_figure(contact_sheet(m, sure), figures / f"maps{suffix}.png"))
    if shown:
        written.append(save_figure(heads_figure(head_shares(trace)), figures / "heads.png"))
    return written


def answer_data(trace: Trace, maps: Sequence[ImageMap] = ()) -> dict[str, Any]:
    """The answer and its numbers as plain data; ``peaks`` are (x, y) on the original, one list per picture."""
    return {
        "answer": trace.answer,
        "prompt": trace.request.prompt,
        **confidence(trace).to_dict(),
        "peaks": [[m.peak(row) for row in range(len(m))] for m in maps],
        "alternatives": [other.answer for other in trace.alternatives],
        "sequence_score": trace.sequence_score,
        "provenance": dict(trace.provenance),
    }


def _maps(trace: Trace, layers: Sequence[int] | None, heads: Sequence[int] | None) -> list[ImageMap]:
    return [attention_map(trace, image, layers=layers, heads=heads) for image in range(len(trace.layouts))]


def _write_answer(trace: Trace, maps: Sequence[ImageMap], path: Path) -> Path:
    try:
        path.write_text(json.dumps(answer_data(trace, maps), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise BadFile(f"the answer could not be written to {path}: {error}") from error
    return path
