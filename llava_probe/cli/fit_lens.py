"""``llava-probe fit-lens``: a tuned lens for a model, fitted to a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llava_probe.cli import arguments
from llava_probe.cli.options import AskingOptions, ModelOptions, RowOptions
from llava_probe.cli.told import told_folder
from llava_probe.escaping import visible


def fit_lens(
    model: ModelOptions,
    rows: RowOptions,
    asking: AskingOptions,
    samples: Annotated[str, typer.Argument(help="A .jsonl, .csv or .parquet file, a folder of pictures, a data set.")],
    out: Annotated[Path, typer.Option(help="Folder of the lens; the same command again goes on there.")],
    layers: Annotated[
        str | None, typer.Option(help="Hidden states, 8,16,24 (0 the embedding); all but the last if left.")
    ] = (None),
    question: Annotated[str | None, typer.Option(help="For rows that have none.")] = None,
    answers: Annotated[str | None, typer.Option(help="A file of answers, by question_id, for rows without.")] = None,
    held_out: Annotated[float, typer.Option(help="Share of the pictures that are only measured.")] = 0.2,
    epochs: Annotated[int, typer.Option(help="How often each sample is seen.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples a step.")] = 8,
    tokens: Annotated[
        int | None, typer.Option(help="Text and visual positions drawn of a sample; all if left.")
    ] = None,
    lr: Annotated[float, typer.Option(help="Of Adam, falling to nothing.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of order, held-out part and positions drawn.")] = 0,
) -> None:
    """Fit an affine translator to each layer, for words and visual tokens apart, and tell how near each comes.

    lp.lens(vlm, trace, tuned=lp.TunedLens.load(FOLDER)) reads with it.
    """
    from llava_probe.lens.fit import fit_lens as fit
    from llava_probe.view import figures

    found = fit(
        model.model,
        samples,
        out,
        layers=arguments.flag_numbers("--layers", layers),
        question=question,
        answers=answers,
        **rows.settings,
        **asking.settings,
        held_out=held_out,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        tokens=tokens,
        lr=lr,
        seed=seed,
        progress=True,
        **model.settings,
    )
    if found.left_out:
        told = f"{len(found.left_out):,} samples were left out, the first: {visible(found.left_out[0])}"
        typer.secho(told, fg="yellow", err=True)
    if found.report.rows:
        found.report.to_csv(found.folder / "held_out.csv")
        figures.save(figures.tuned_lens(found.report), found.folder / "held_out.png")
        typer.echo(visible(str(found.report), lines=True))
    else:
        typer.secho("No picture was held out, so nothing tells what was learnt: --held-out 0.2", fg="yellow", err=True)
    written = sorted(path for path in found.folder.rglob("*") if path.is_file())
    folder = visible(str(found.folder))
    typer.echo(
        f"\nEverything is in {told_folder(found.folder, written)}\n\n"
        f"  lp.lens(vlm, trace, tuned=lp.TunedLens.load({folder!r}))"
    )
