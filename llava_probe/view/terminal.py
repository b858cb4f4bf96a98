"""A run in the terminal: the answer, each token's numbers, where it looked, and what was kept for later.

Beside it an attribution: where each word's map peaks, which words weigh most, and what it took; and the
table of families.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llava_probe.analyzers.attention import attention_map
from llava_probe.analyzers.confidence import confidence
from llava_probe.escaping import quoted, visible
from llava_probe.layout.family_table import families
from llava_probe.maps.maps import ImageMap
from llava_probe.trace.explained import GENERATED
from llava_probe.trace.request import spelled
from llava_probe.trace.trace import Trace

_BAR = 10  # characters of a full probability bar
_SHOWN = 24  # tokens listed before the rest is left to answer.json
_NOTED = 0.01  # share of a picture that may be lost to rounding at its edges


def show(trace: Trace, written: Sequence[Path] = (), console: Console | None = None) -> None:
    """Print one run, with the sizes of the files that were written of it."""
    console = console or Console()
    _asked(trace, console)
    console.print(Text(visible(trace.answer, lines=True) or "(no words)", style="bold green"))
    for note in notes(trace):
        console.print(Text(note, style="yellow"))
    console.print(_tokens(trace))
    left_out = len(trace.generated) - _SHOWN
    if left_out > 0:
        console.print(f"… and {left_out} tokens more, in answer.json")
    console.print(_kept(trace, written))


def show_map(trace: Trace, m: ImageMap, own: str | None = None, console: Console | None = None) -> None:
    """Print one attribution.

    Args:
        trace, m: what was explained, and how.
        own: the model's own answer, where the explained one was given to it.
        console: where to; standard output by default.
    """
    console = console or Console()
    _asked(trace, console)
    answer = Text(visible(trace.answer, lines=True) or "(no words)", style="bold green")
    if trace.scored:
        console.print(Text("the model's own: ", style="dim") + Text(_said(own), style="bold green"))
        console.print(Text("explained, given to it: ", style="dim") + answer)
    else:
        console.print(answer)
    for note in notes(trace):
        console.print(Text(note, style="yellow"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("word", overflow="fold")
    table.add_column("peak\nx, y px", justify="right")
    if m.text is not None:
        table.add_column("words that weigh most", overflow="ellipsis", no_wrap=True)
    for row in range(min(len(m), _SHOWN)):
        others = ", ".join(f"{quoted(other.text)} {weight:.3g}" for other, weight in m.words(row)[:3])
        word = visible(m.label(row)) if m.about.get("contrast") else quoted(m.tokens[row].text)
        cells = [Text(word), Text(_point(m, row))]
        table.add_row(*cells, *([Text(others, style="dim")] if m.text is not None else []))
    console.print(table)
    if len(m) > _SHOWN:
        console.print(f"… and {len(m) - _SHOWN} words more, in attribution.json")
    passes = f"passes through the model: {m.about['forwards']} forward, {m.about['backwards']} backward"
    console.print(Text(f"{m.method} ({m.about['unit']}); {passes}", style="dim"))


def show_families(only: str | None = None, console: Console | None = None) -> None:
    """Print what holds for each family, those with ``only`` in their names."""
    table = Table(box=None, pad_edge=False)
    for head in ("family", "places of visual tokens", "rows = eager", "note"):
        table.add_column(head, overflow="fold")
    shown = [family for family in families() if only is None or only in family.name]
    for family in shown:
        rows = {True: "yes", False: "no", None: ""}[family.rows]
        table.add_row(family.name, family.places, rows, family.note)
    console = console or Console()
    console.print(table)
    counts = Counter(family.places for family in shown)
    told = ", ".join(f"{count} {places}" for places, count in counts.items())
    console.print(f"\n{len(shown)} of {len(families())} families: {told}")


def _tokens(trace: Trace) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("token", overflow="fold")
    table.add_column("probability", no_wrap=True)
    table.add_column("entropy", justify="right")
    table.add_column("else", overflow="fold")
    sure = confidence(trace)
    pictures = range(len(trace.layouts)) if trace.kept("attention") else ()
    maps = [attention_map(trace, image, GENERATED) for image in pictures]
    if maps:
        table.add_column("looked at\nx, y px", justify="right")
    for step, (token, others) in enumerate(zip(trace.generated[:_SHOWN], sure.top(3), strict=False)):
        probability = float(sure.probability[step])
        bar = "━" * round(_BAR * probability)
        cells = [
            Text(quoted(token.text)),
            Text(f"{probability:6.1%} {bar}", style="green" if probability > 0.5 else "yellow"),
            Text(f"{float(sure.entropy[step]):.2f}"),
            Text(_others(token.id, others), style="dim"),
        ]
        if maps:
            cells.append(Text("  ".join(_point(m, step) for m in maps)))
        table.add_row(*cells)
    return table


def _others(taken: int, candidates: tuple) -> str:  # type: ignore[type-arg]
    rest = [other for other in candidates if other.id != taken][:2]
    return ", ".join(f"{quoted(other.text)} {other.probability:.1%}" for other in rest)


def notes(trace: Trace) -> list[str]:
    """What to know before an answer is believed: that it was cut off, what the model never saw, what was done to it."""
    told = []
    if trace.cut_off:
        told.append(f"cut off after {len(trace.generated)} tokens; --max-new-tokens lets it go on")
    for number, layout in enumerate(trace.layouts):
        which = f" {number}" if len(trace.layouts) > 1 else ""
        unseen = 1 - float(layout.seen.mean())
        if unseen > _NOTED:
            told.append(f"{unseen:.0%} of the picture{which} was never seen by the model, cropped away on loading")
    return [*told, *(f"under {spelled(each)}" for each in trace.interventions)]


def _asked(trace: Trace, console: Console) -> None:
    console.print()
    console.print(Text(visible(trace.question or trace.request.prompt or "", lines=True), style="bold"))


def _said(answer: str | None) -> str:
    return "(not asked)" if answer is None else visible(answer, lines=True) or "(no words)"


def _point(m: ImageMap, row: int) -> str:
    """Where a row is highest; nowhere, if it is the same all over."""
    if not len(m.layout):
        return "not seen"
    values = m.row(row)
    return "{:.0f}, {:.0f}".format(*m.peak(row)) if values.min() < values.max() else "–"


def _kept(trace: Trace, written: Sequence[Path]) -> Text:
    held = "  ".join(f"{name} {list(tensor.shape)}" for name, tensor in trace.records.items())
    of_trace = [path.stat().st_size / 1e6 for path in written if path.suffix == ".trace"]
    told = f"run.trace, {of_trace[0]:.1f} MB" if of_trace else "kept"
    return Text(f"{told}: {held}", style="dim")
