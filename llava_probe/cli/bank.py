"""``llava-probe bank``: the contextual words of somebody's sentences, and those at the patches of a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llava_probe.cli import arguments
from llava_probe.cli.options import ModelOptions
from llava_probe.cli.told import warn_drawn
from llava_probe.escaping import visible

#: Words of a bank that are told.
_TOLD = 12


def bank(
    model: ModelOptions,
    sentences: Annotated[str, typer.Argument(help="A text file with a sentence on each line, or a data set of them.")],
    out: Annotated[Path, typer.Option(help="Folder of the bank; the same command again goes on there.")],
    layers: Annotated[
        str | None, typer.Option(help="Of the text: 4,16,30; about eight over the depth if left.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Of a data set: sentence, text, caption ... if left.")] = None,
    contexts: Annotated[int, typer.Option(help="Of one word, at most.")] = 50,
    most: Annotated[int, typer.Option(help="Contexts in all, at most.")] = 5000,
    batch_size: Annotated[int | None, typer.Option(help="Sentences a pass; 8, on a GPU 32.")] = None,
    picture: Annotated[str | None, typer.Option(help="Also the nearest word at each patch of this picture.")] = None,
    layer: Annotated[int | None, typer.Option(help="Of its patches; the middle one if left.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw these words: words.png, .pdf or .svg.")] = None,
) -> None:
    """Keep the states of the words of your sentences, to find what the patches of a picture lie nearest to.

    lp.WordBank(FOLDER).words(trace, layer=12) reads it.
    """
    from llava_probe.errors import BadInput
    from llava_probe.lens.word_bank import word_bank

    if picture is None and not (layer is None and figure is None):
        raise BadInput("--layer and --figure are of a picture; name one with --picture")
    vlm = model.load()
    made = word_bank(
        vlm,
        sentences,
        out,
        layers=arguments.flag_numbers("--layers", layers),
        column=column,
        contexts=contexts,
        most=most,
        batch_size=batch_size,
        progress=True,
    )
    looked = vlm.anatomy.layers // 2 if layer is None else layer
    words = ", ".join(f"{word} {count}" for word, count in list(made.vocabulary.items())[:_TOLD])
    more = " ..." if len(made.vocabulary) > _TOLD else ""
    told = f"{len(made):,} contexts of {len(made.vocabulary):,} words in {len(made.features):,} sentences"
    typer.echo(f"{told}, layers {', '.join(map(str, made.layers))}: {visible(words)}{more}")
    typer.echo(f"\n  lp.WordBank({visible(str(out))!r}).words(trace, layer={looked})")
    if picture is None:
        return
    from llava_probe.pictures.images import open_image
    from llava_probe.trace.capture import Capture
    from llava_probe.view import figures

    image = open_image(picture)
    if model.knows_scenes:
        warn_drawn([image])
    capture = Capture(layers=[looked], positions="image", attention=False)
    found = made.words(vlm.generate(image, "Describe the image.", max_new_tokens=1, capture=capture), looked)
    typer.echo(f"\n{visible(str(found), lines=True)}")
    if figure is not None:
        typer.echo(f"\nDrawn in {visible(str(figures.save(figures.contextual_words(found), figure)))}")
