"""A run in the terminal: the answer, each token's numbers, where it looked, and what was kept for later."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llava_probe.analyzers.attention import attention_map
from llava_probe.analyzers.confidence import confidence
from llava_probe.trace import Trace

_BAR = 10  # characters of a full probability bar
_SHOWN = 24  # tokens listed before the rest is left to answer.json


def show(trace: Trace, question: str, console: Console | None = None) -> None:
    """Print one run."""
    console = console or Console()
    console.print()
    console.print(Text(question, style="bold"))
    console.print(Text(trace.answer or "(no words)", style="bold green"))
    console.print(_tokens(trace))
    left_out = len(trace.generated) - _SHOWN
    if left_out > 0:
        console.print(f"… and {left_out} tokens more, in answer.json")
    console.print(_kept(trace))


def _tokens(trace: Trace) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("token")
    table.add_column("probability", no_wrap=True)
    table.add_column("entropy", justify="right")
    table.add_column("else", overflow="ellipsis", no_wrap=True)
    sure = confidence(trace)
    maps = [attention_map(trace, image) for image in range(len(trace.layouts))] if trace.kept("attention") else []
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
