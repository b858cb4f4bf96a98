"""``llava-probe attribute``: which parts of the picture a word of the answer rests on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llava_probe.cli import arguments
from llava_probe.cli.interventions import InterventionOptions, under
from llava_probe.cli.options import AskingOptions, ModelOptions, PicturesArgument, QuestionArgument
from llava_probe.cli.told import told_folder, warn_drawn
from llava_probe.errors import BadInput
from llava_probe.view.limits import DPI_LIMIT


def attribute(
    context: typer.Context,
    model: ModelOptions,
    asking: AskingOptions,
    interventions: InterventionOptions,
    image: PicturesArgument,
    question: QuestionArgument = None,
    method: Annotated[str, typer.Option(help="relevance, occlusion, tam ...; lp.METHODS and the README list all.")] = (
        "relevance"
    ),
    tokens: Annotated[str | None, typer.Option(help="A word, or lp.ANSWER; each content word if left.")] = None,
    contrast: Annotated[str | None, typer.Option(help="Explain why the word and not this one.")] = None,
    text: Annotated[str | None, typer.Option(help="Explain this answer beside the model's own.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Of the method, NAME=VALUE; may be repeated.")] = None,
    picture: Annotated[int, typer.Option(help="Which of several pictures to explain by, from 0.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for maps and figures.")] = Path("out"),
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens.")] = 64,
    format: Annotated[str, typer.Option(help="Of the figures: png, pdf or svg.")] = "png",
    dpi: Annotated[int, typer.Option(help="Dots per inch of their pixels.", min=20, max=DPI_LIMIT)] = 300,
) -> None:
    """Explain the words of an answer by the picture."""
    arguments.check_order(image, question or "")
    options, explained = arguments.method_options(method, option or ()), arguments.place_or_word(tokens)
    changed = interventions.read(context)
    pictures = arguments.pictures(image)
    if question is None and asking.prompt is None:
        raise BadInput("say what to ask:  llava-probe attribute PICTURE 'QUESTION'  (or --prompt for a whole prompt)")
    from llava_probe.attribution import attribute as explain
    from llava_probe.trace.capture import Capture
    from llava_probe.trace.explained import ANSWER
    from llava_probe.view.folder import checked_figure_format, made, write_attribution
    from llava_probe.view.progress import generated
    from llava_probe.view.terminal import show_map

    checked_figure_format(format)
    vlm = model.load()
    made(out)
    if model.knows_scenes:
        warn_drawn(pictures)
    kept = Capture(hidden_states=False, logits=False)
    with under(vlm, changed):
        trace = generated(vlm, pictures, question, max_new_tokens=max_new_tokens, capture=kept, **asking.settings)
        own = trace.answer
        if text is not None:
            trace = vlm.score(pictures, question, text, capture=kept, **asking.settings)
            explained = explained or ANSWER
        m = explain(vlm, trace, method, picture, explained, contrast=contrast, **options)
    written = write_attribution(trace, m, out, own=own, format=format, dpi=dpi)
    show_map(trace, m, own=own)
    typer.echo(f"\nEverything is in {told_folder(out, written)}")
