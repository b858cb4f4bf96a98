"""``llava-probe leaderboard``: every method of attribution where the right place is known."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from llava_probe.cli import arguments
from llava_probe.cli.options import DataOptions, ModelOptions
from llava_probe.errors import BadInput


def leaderboard(
    model: ModelOptions,
    data: DataOptions,
    cases: Annotated[Path | None, typer.Option(help="A data set of image, question, word and mask or box.")] = None,
    question: Annotated[str | None, typer.Option(help="For cases that have none: Where is the {word}?")] = None,
    prompt: Annotated[str | None, typer.Option(help="The whole text instead, for a model without a template.")] = None,
    scenes: Annotated[int, typer.Option(help="Held-out scenes, where there are no cases.")] = 500,
    part: Annotated[str | None, typer.Option(help="Only score this share of the questions, 2/8 say; no page.")] = None,
    closer: Annotated[int, typer.Option(help="Questions with deletion, agreement and random layers too.")] = 44,
    quick: Annotated[bool, typer.Option(help="Leave out methods that take tens of passes a word.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of page and figures, or the page.md itself.")] = Path("leaderboard"),
    scores: Annotated[Path | None, typer.Option(help="Folder of the scores; scores/ in the other one if left.")] = None,
) -> None:
    """Score every method of attribution where the right place is known; goes on where it was stopped.

    A line of --cases is {"image": "street.jpg", "question": "What is on the left?", "word": "dog", "mask": "dog.png"};
    paths start at the file's folder, and a mask is white on the object. COCO's run-length may stand for the mask, or a
    "box" with --box-format; COCO's own file of instances is read as it is. A line may also have an "id", a "kind" that
    scores are told by, and the right "answer".

    A third of the pictures, 60 at most, choose the localisation heads and are not scored.
    """
    share = (1, 1) if part is None else arguments.part(part)
    if cases is None and not model.knows_scenes:
        raise BadInput("the scenes are those of the models that ship inside; give pictures of yours with --cases")
    from llava_probe.leaderboard.folder import CLOSER, BoardSettings, score, write_leaderboard

    asked = {"question": question, "prompt": prompt}
    reading = data.settings | {name: value for name, value in asked.items() if value is not None}
    if cases is None and reading:
        raise BadInput(f"{', '.join(reading)} say how --cases are read; there are none")
    wanted = BoardSettings(cases, scenes, closer=closer, quick=quick, reading=reading)
    kept = scores or (out.parent if out.suffix == ".md" else out) / "scores"
    vlm = model.load()
    try:
        written = score(vlm, wanted, kept, share)
    except KeyboardInterrupt:
        typer.echo(f"\nStopped; what is finished is in {kept}, and the same command goes on from there.")
        raise typer.Exit(130) from None
    if part is None:
        options = {
            "cases": cases,
            "scenes": None if cases else scenes,
            **asked,
            "closer": None if closer == CLOSER else closer,
            "quick": quick,
        }
        places = {"out": out, "scores": scores}
        words = [*model.typed, *arguments.typed(options), *data.typed, *arguments.typed(places)]
        command = shlex.join(["llava-probe", "leaderboard", *words])
        written = write_leaderboard(vlm, wanted, kept, out, model=model.model, command=command)[0]
    typer.echo(f"\nEverything is in {written}")
