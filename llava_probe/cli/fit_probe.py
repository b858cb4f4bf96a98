"""``llava-probe fit-probe``: at which layer a property can be read out of a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llava_probe.cli import arguments
from llava_probe.cli.told import told_folder
from llava_probe.escaping import visible


def fit_probe(
    features: Annotated[Path, typer.Argument(help="A store that extract made.")],
    label: Annotated[str, typer.Option(help="The column to read out; several with commas between them: numbers.")],
    layers: Annotated[str | None, typer.Option(help="16 or layer_16,vision_22; all if left.")] = None,
    positions: Annotated[str | None, typer.Option(help="last_prompt,image_mean ...; all if left.")] = None,
    kind: Annotated[str | None, typer.Option(help="logistic, ridge or mean_difference.")] = None,
    groups: Annotated[str, typer.Option(help="Rows with the same value here stay on one side of a split.")] = "picture",
    types: Annotated[str | None, typer.Option(help="Column of the control task; question if left.")] = None,
    random_features: Annotated[Path | None, typer.Option(help="The same rows from extract --random-weights.")] = None,
    folds: Annotated[int, typer.Option(help="At least 3.")] = 5,
    seed: Annotated[int, typer.Option(help="Of folds, controls and resamples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for table, figures and the best probe.")] = None,
) -> None:
    """At which layer a property can be read, with the controls that make the number mean something."""
    from llava_probe.features.reading import Features
    from llava_probe.probes import fit_probe as fit
    from llava_probe.view.folder import write_sweep

    sweep = fit(
        Features(features),
        (arguments.parts(label) or []) if "," in label else label,
        layers=arguments.parts(layers),
        positions=arguments.parts(positions),
        kind=kind,
        groups=groups,
        types=types,
        random_features=None if random_features is None else Features(random_features),
        folds=folds,
        seed=seed,
        progress=True,
    )
    typer.echo(visible(str(sweep), lines=True))
    if out is not None:
        typer.echo(f"\nEverything is in {told_folder(out, write_sweep(sweep, out))}")
