"""``llava-probe trace-cause``: which states, where and in which layer, bring an answer back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llava_probe.cli import arguments
from llava_probe.cli.options import ModelOptions, PicturesArgument, QuestionArgument
from llava_probe.cli.told import told_folder
from llava_probe.errors import BadInput


def trace_cause(
    model: ModelOptions,
    image: PicturesArgument,
    question: QuestionArgument = None,
    corrupt: Annotated[str, typer.Option(help="Another picture of the same size; or blur, grey, noise.")] = "blur",
    parts: Annotated[
        str | None,
        typer.Option(help="Of residual, attention, mlp (and query, key, value with --approximate); all if left."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="The middle of each window; all if left.")] = None,
    window: Annotated[int | None, typer.Option(help="So many layers at once; 1 if left.")] = None,
    ring: Annotated[int, typer.Option(help="Visual tokens around the changed ones that count as changed.")] = 0,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="To first order (AtP*), with the exact sweep beside it.")
    ] = False,
    answer: Annotated[str | None, typer.Option(help="The word to watch; what the clean run says if left.")] = None,
    against: Annotated[str | None, typer.Option(help="The other word; what the corrupted run says if left.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for table and figure.")] = Path("trace-cause"),
) -> None:
    """Put states of a clean run into one with a corrupted picture, place by place and layer by layer."""
    arguments.check_order(image, question or "")
    middles = arguments.flag_numbers("--layers", layers)
    if approximate and (layers is not None or window is not None):
        raise BadInput("--approximate goes through all layers one by one; leave --layers and --window out")
    chosen: dict[str, Any] = {} if parts is None else {"parts": [part.strip() for part in parts.split(",")]}
    if question is None:
        raise BadInput("say what to ask:  llava-probe trace-cause PICTURE 'QUESTION' --corrupt OTHER")
    pictures = arguments.pictures(image)
    if len(pictures) != 1:
        raise BadInput("trace-cause takes one picture, and what it is corrupted by as --corrupt")
    other = corrupt if corrupt in ("blur", "grey", "noise") else arguments.pictures(corrupt)[0]
    from llava_probe.stored import write_text
    from llava_probe.sweeps.attribution_patching import attribution_patching
    from llava_probe.sweeps.causal_trace import causal_trace
    from llava_probe.view import sweep_figures
    from llava_probe.view.canvas import save
    from llava_probe.view.folder import made

    vlm = model.load()
    made(out)
    sample = (pictures[0], question)
    if approximate:
        found = attribution_patching(vlm, sample, other, ring=ring, exact=1, answer=answer, against=against, **chosen)
        table, figure = found.table(), sweep_figures.attribution_patching(found)
    else:
        traced = causal_trace(
            vlm,
            sample,
            other,
            layers=middles,
            window=1 if window is None else window,
            ring=ring,
            answer=answer,
            against=against,
            **chosen,
        )
        told = f"{traced.answers[0][0]!r} against {traced.answers[0][1]!r}, corrupted by {traced.corruption}"
        tables = [traced.table(mode, part) for mode in ("denoise", "noise") for part in traced.parts]
        table, figure = "\n\n".join([told, *tables]), sweep_figures.causal_trace(traced)
    typer.echo(table)
    written = [write_text("table", out / "trace.txt", table + "\n"), save(figure, out / "trace.png")]
    typer.echo(f"\nEverything is in {told_folder(out, written)}")
