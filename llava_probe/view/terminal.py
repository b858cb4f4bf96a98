"""A run in the terminal: the answer, each token's numbers, where it looked, and what was kept for later.

Beside it an attribution: where each word's map peaks, which words weigh most, and what it took; and the
table of families.
"""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llava_probe.analyzers.attention import attention_map
from llava_probe.analyzers.confidence import confidence
from llava_probe.layout.family_table import families
from llava_probe.maps.maps import ImageMap
from llava_probe.trace.explained import GENERATED
from llava_probe.trace.request import spelled
from llava_probe.trace.trace import Trace
from llava_probe.view.folder import heaviest

_BAR = 10  # characters of a full probability bar
_SHOWN = 24  # tokens listed before the rest is left to answer.json


def show(trace: Trace, console: Console | None = None) -> None:
    """Print one run."""
    console = console or Console()
    console.print()
    console.print(Text(trace.question or trace.request.prompt or "", style="bold"))
    console.print(Text(trace.answer or "(no words)", style="bold green"))
    console.print(_tokens(trace))
    left_out = len(trace.generated) - _SHOWN
    if left_out > 0:
        console.print(f"… and {left_out} tokens more, in answer.json")
    for each in trace.interventions:
        console.print(Text(f"under {spelled(each)}", style="yellow"))
    console.print(_kept(trace))


def show_map(trace: Trace, m: ImageMap, console: Console | None = None) -> None:
    """Print one attribution."""
    console = console or Console()
    console.print()
    console.print(Text(trace.question or trace.request.prompt or "", style="bold"))
    console.print(Text(trace.answer or "(no words)", style="bold green"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("word")
    table.add_column("peak", justify="right")
    if m.text is not None:
        table.add_column("words that weigh most", overflow="ellipsis", no_wrap=True)
    for row in range(min(len(m), _SHOWN)):
        others = ", ".join(f"{repr(other.text)[1:-1]} {weight:.3g}" for other, weight in heaviest(m, row, 3))
        cells = [Text(repr(m.tokens[row].text)[1:-1]), Text("{:.0f}, {:.0f}".format(*m.peak(row)))]
        table.add_row(*cells, *([Text(others, style="dim")] if m.text is not None else []))
    console.print(table)
    if len(m) > _SHOWN:
        console.print(f"… and {len(m) - _SHOWN} words more, in attribution.json")
    passes = f"passes through the model: {m.about['forwards']} forward, {m.about['backwards']} backward"
    console.print(Text(f"{m.method} ({m.about['unit']}); {passes}", style="dim"))


def show_families(only: str | None = None, console: Console | None = None) -> None:
    """Print what holds for each family, those with ``only`` in their names."""
    table = Table("family", "places of visual tokens", "rows = eager", "note", box=None, pad_edge=False)
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
    table.add_column("token")
    table.add_column("probability", no_wrap=True)
    table.add_column("entropy", justify="right")
    table.add_column("else", overflow="ellipsis", no_wrap=True)
    sure = confidence(trace)
    pictures = range(len(trace.layouts)) if trace.kept("attention") else ()
    maps = [attention_map(trace, image, GENERATED) for image in pictures]
    if maps:
        table.add_column("looked at", justify="right")
    for step, (token, others) in enumerate(zip(trace.generated[:_SHOWN], sure.top(3), strict=False)):
        probability = float(sure.probability[step])
        bar = "━" * round(_BAR * probability)
        cells = [
            Text(repr(token.text)[1:-1]),
            Text(f"{probability:6.1%} {bar}", style="green" if probability > 0.5 else "yellow"),
            Text(f"{float(sure.entropy[step]):.2f}"),
            Text(_others(token.id, others), style="dim"),
        ]
        if maps:
            cells.append(Text("  ".join("{:.0f}, {:.0f}".format(*m.peak(step)) for m in maps)))
        table.add_row(*cells)
    return table


def _others(taken: int, candidates: tuple) -> str:  # type: ignore[type-arg]
    rest = [other for other in candidates if other.id != taken][:2]
    return ", ".join(f"{repr(other.text)[1:-1]} {other.probability:.1%}" for other in rest)


def _kept(trace: Trace) -> Text:
    held = "  ".join(f"{name} {list(tensor.shape)}" for name, tensor in trace.records.items())
    megabytes = sum(tensor.nbytes for tensor in trace.records.values()) / 1e6
    return Text(f"kept {megabytes:.1f} MB: {held}", style="dim")
