"""One run as a folder: the answer as JSON, the trace, the maps, and figures one can put in a paper.

    answer.json    answer, each token's numbers, its words, where its attention peaks, provenance
    run.trace      everything that was kept; lp.Trace.load reads it
    page.html      all of it to explore, in any browser
    tokens.csv     and words.csv, where asked for: probability, entropy and the rest of each
    maps/          an overlay per token and one .npz, for each picture
    figures/       the answer's confidence, all maps on one sheet, heads by layer; PNG, PDF or SVG

An attribution stands beside it, and touches none of it:

    attribution.html   to explore, beside the attention
    attribution.json   what was explained and how, each word's peak, the words of the question that it rests on
    attribution/       an overlay per word and one .npz; lp.ImageMap.load reads it
    figures/           all words on one sheet, attribution.png; and the prompt's words by their weight, words.png

The same for the command line and for Python: ``write_run(trace, "out/")``, ``write_attribution(trace, m, "out/")``.
Trace and answer of a run are written first, so that they are there whatever becomes of the maps; what an earlier run
left of its maps is removed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llava_probe.analyzers.attention import attention_map
from llava_probe.analyzers.confidence import confidence
from llava_probe.analyzers.heads import heads as head_shares
from llava_probe.errors import BadFile, BadInput, shortened
from llava_probe.maps.maps import SIDE, ImageMap, remove_saved
from llava_probe.probes import Sweep
from llava_probe.stored import write_text
from llava_probe.trace.explained import GENERATED, Tokens
from llava_probe.trace.trace import Trace
from llava_probe.view import figures
from llava_probe.view.canvas import SAVED_DPI
from llava_probe.view.page import page

#: Words beside the picture that are told of each explained one.
HEAVIEST = 5
#: In which figures are written.
FORMATS = ("png", "pdf", "svg")


def write_run(
    trace: Trace,
    folder: str | Path,
    *,
    maps: bool = True,
    tokens: Tokens = None,
    side: int | None = SIDE,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    format: str = "png",
    dpi: int = SAVED_DPI,
    csv: bool = False,
) -> list[Path]:
    """Write a run into ``folder`` (made where it is not there) and tell what was written.

    Args:
        trace: the run.
        folder: where to.
        maps: also attention maps and their figures.
        tokens: which tokens of the answer get a map, as for ``attention_map``: each content word by default.
        side: the longer side of their overlays, in pixels; as large as the photograph when None.
        layers, heads: which attention to average; all that was kept by default.
        format: of the figures: png, pdf or svg; ``dpi``: of their pixels.
        csv: also the numbers of tokens and words, as tables.

    Raises:
        BadInput: another format; nothing is written.
        BadFile: the folder cannot be made or written.
        NotCaptured, OutOfRange: layers or heads that were not kept or are not there; trace and answer are written.
    """
    checked_figure_format(format)
    target = made(folder)
    saved = trace.save(target / "run.trace")
    answer = _write_answer(trace, (), target / "answer.json")
    _remove_earlier(target)
    shown = _maps(trace, tokens, layers, heads) if maps else []
    if shown:
        _write_answer(trace, _maps(trace, GENERATED, layers, heads), answer)  # again, with every token's peak
    drawn = made(target / "figures")
    sure = confidence(trace)
    tables = {"tokens.csv": sure, "words.csv": sure.words()} if csv else {}
    written = [table.to_csv(target / name) for name, table in tables.items()]  # type: ignore[attr-defined]
    sheets = {"confidence": figures.confidence(sure)}
    for number, m in enumerate(shown):
        suffix = f"_{number}" if len(shown) > 1 else ""
        written += m.save(target / f"maps{suffix}", side)
        sheets[f"maps{suffix}"] = figures.maps(m, confidence=sure, photograph="both")
    if shown:
        sheets["heads"] = figures.layers_heads(head_shares(trace, GENERATED))
    saved_figures = [figures.save(sheet, drawn / f"{name}.{format}", dpi) for name, sheet in sheets.items()]
    if maps:
        written.append(page(trace, target / "page.html"))
    return [answer, saved, *saved_figures, *written]


def checked_figure_format(format: str) -> str:
    """One of ``FORMATS``.

    Raises:
        BadInput: it is none.
    """
    if format not in FORMATS:
        raise BadInput(f"format= takes {', '.join(FORMATS)}; got {shortened(repr(format))}")
    return format


def write_attribution(
    trace: Trace,
    m: ImageMap,
    folder: str | Path,
    *,
    own: str | None = None,
    side: int | None = SIDE,
    format: str = "png",
    dpi: int = SAVED_DPI,
) -> list[Path]:
    """Write what ``lp.attribute`` made of a trace, and tell what was written.

    Args:
        trace, m: what was explained, and how.
        folder: where to.
        own: the model's own answer, where the explained one was given to it.
        side, format, dpi: as for ``write_run``.

    Raises:
        BadFile: the folder cannot be made or written.
    """
    checked_figure_format(format)
    target = made(folder)
    path = target / "attribution.json"
    _write_json(attribution_data(trace, m, own), path)
    drawn = made(target / "figures")
    _remove(drawn, ("attribution", "words"))
    sheets = {"attribution": figures.maps(m, photograph="both")}
    if m.text is not None and len(m.text_tokens):
        sheets["words"] = figures.tokens(m)
    saved = [figures.save(sheet, drawn / f"{name}.{format}", dpi) for name, sheet in sheets.items()]
    return [path, *m.save(target / "attribution", side), *saved, page([trace, m], target / "attribution.html")]


def write_sweep(sweep: Sweep, folder: str | Path) -> list[Path]:
    """Write a sweep of probes: its table as text and JSON, its figures, and the best probe.

    Raises:
        BadFile: the folder cannot be made or written.
    """
    target = made(folder)
    best = sweep.best
    plain = json.dumps(sweep.to_dicts(), indent=1, ensure_ascii=False)
    written = [
        write_text("sweep", target / "sweep.txt", f"{sweep}\n"),
        write_text("sweep", target / "sweep.json", f"{plain}\n"),
    ]
    written.append(figures.save(figures.probes(sweep), target / "layers.png"))
    if sweep.task == "classification":
        written.append(figures.save(figures.confusion(sweep, best.layer, best.position), target / "confusion.png"))
    written.append(sweep.probe(best.layer, best.position).save(target / "best.probe"))
    return written


def made(folder: str | Path) -> Path:
    """``folder``, there from now on.

    Raises:
        BadFile: it cannot be made.
    """
    target = Path(folder).expanduser()
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadFile(f"the folder {shortened(str(target))} cannot be made: {error.strerror}") from error
    return target


def answer_data(trace: Trace, maps: Sequence[ImageMap] = ()) -> dict[str, Any]:
    """The answer and its numbers as plain data; ``peaks`` are (x, y) on the original, one list per picture."""
    return {
        "answer": trace.answer,
        "given": trace.scored,
        "cut_off": trace.cut_off,
        "question": trace.question,
        "prompt": trace.request.prompt,
        **confidence(trace).to_dict(),
        "peaks": [[m.peak(row) if len(m.layout) else None for row in range(len(m))] for m in maps],
        "alternatives": [other.answer for other in trace.alternatives],
        "sequence_score": trace.sequence_score,
        "sizes": asdict(trace.sizes),
        "interventions": list(trace.interventions),
        "provenance": dict(trace.provenance),
    }


def attribution_data(trace: Trace, m: ImageMap, own: str | None = None) -> dict[str, Any]:
    """A map as plain data: each word's peak, (x, y) on the original, and the other tokens that weigh most, by size.

    ``answer`` is the model's own, None where it was not asked for one; ``explained`` is what the map explains.
    """
    return {
        "method": m.method,
        "answer": own if trace.scored else trace.answer,
        "explained": trace.answer,
        "given": trace.scored,
        "question": trace.question,
        "prompt": trace.request.prompt,
        "about": dict(m.about),
        "rows": [
            {
                "word": token.text,
                "label": m.label(row),
                "position": token.position,
                "peak": m.peak(row) if len(m.layout) else None,
                "text": [
                    {"token": other.text, "position": other.position, "weight": weight}
                    for other, weight in m.words(row)[:HEAVIEST]
                ],
            }
            for row, token in enumerate(m.tokens)
        ],
        "sizes": asdict(trace.sizes),
        "interventions": list(trace.interventions),
        "provenance": dict(trace.provenance),
    }


def _maps(trace: Trace, tokens: Tokens, layers: Sequence[int] | None, heads: Sequence[int] | None) -> list[ImageMap]:
    pictures = range(len(trace.layouts))
    return [attention_map(trace, image, tokens, layers=layers, heads=heads) for image in pictures]


def _write_answer(trace: Trace, maps: Sequence[ImageMap], path: Path) -> Path:
    _write_json(answer_data(trace, maps), path)
    return path


def _write_json(told: dict[str, Any], path: Path) -> None:
    write_text(path.stem, path, json.dumps(told, indent=1, ensure_ascii=False, default=str) + "\n")


def _remove_earlier(target: Path) -> None:
    """What an earlier run wrote and this one may not write over: maps and figures of other pictures, its page."""
    try:
        for folder in [target / "maps", *target.glob("maps_[0-9]*")]:
            if remove_saved(folder) and not any(folder.iterdir()):
                folder.rmdir()
        (target / "page.html").unlink(missing_ok=True)
    except OSError as error:
        raise BadFile(f"the maps of an earlier run in {target} could not be removed: {error}") from error
    _remove(target / "figures", ("confidence", "maps", "maps_[0-9]*", "heads"))


def _remove(folder: Path, names: Sequence[str]) -> None:
    """Figures of an earlier run, in whatever format."""
    try:
        for name in names:
            for suffix in FORMATS:
                for figure in folder.glob(f"{name}.{suffix}"):
                    figure.unlink()
    except OSError as error:
        raise BadFile(f"the figures of an earlier run in {folder} could not be removed: {error}") from error
