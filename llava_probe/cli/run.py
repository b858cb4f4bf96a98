"""``llava-probe run``: one picture, or a folder or a file of them, asked; everything that came of it written down."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llava_probe.cli import arguments
from llava_probe.cli.interventions import InterventionOptions, Typed, under
from llava_probe.cli.options import AskingOptions, DataOptions, ModelOptions, PicturesArgument, QuestionArgument
from llava_probe.cli.told import told_folder, warn_drawn
from llava_probe.errors import BadInput, ProbeError
from llava_probe.escaping import visible
from llava_probe.view.limits import DPI_LIMIT

if TYPE_CHECKING:
    from llava_probe.features.samples import Sample
    from llava_probe.model import VLM


def run(
    context: typer.Context,
    model: ModelOptions,
    asking: AskingOptions,
    data: DataOptions,
    interventions: InterventionOptions,
    image: PicturesArgument,
    question: QuestionArgument = None,
    out: Annotated[Path, typer.Option(help="Folder for answer, trace, maps and figures.")] = Path("out"),
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens.")] = 64,
    seed: Annotated[int | None, typer.Option(help="For sampling.")] = None,
    maps: Annotated[bool, typer.Option(help="Also attention maps over the picture.")] = True,
    tokens: Annotated[str | None, typer.Option(help="Maps of a word, or of lp.GENERATED; content words if left.")] = (
        None
    ),
    attention_layers: Annotated[str | None, typer.Option(help="Blocks to average, from 0: 14 or 10,11,12.")] = None,
    heads: Annotated[str | None, typer.Option(help="Heads to average: 3 or 3,7.")] = None,
    full_size: Annotated[
        bool, typer.Option("--full-size", help="Overlays as large as the photograph; shrunken if left.")
    ] = False,
    format: Annotated[str, typer.Option(help="Of the figures: png, pdf or svg.")] = "png",
    dpi: Annotated[int, typer.Option(help="Dots per inch of their pixels.", min=20, max=DPI_LIMIT)] = 300,
    csv: Annotated[bool, typer.Option("--csv", help="Also tokens.csv and words.csv.")] = False,
) -> None:
    """Ask about a picture and write down everything.

    PICTURE may also be a folder, or a .jsonl, .json, .csv or .parquet file with a picture and a question in each row:
    each row gets a folder of its own.

    Interventions take settings by name, may be given several times, and hold in the order typed. Numbers are 3, 3-17 or
    3,5; a place is image, question, last, answer, all, a word or positions; box=x0,y0,x1,y1 (with ring=1) is a part of
    the photograph in its stead; phase=prompt or phase=answer is where in the sequence.

    Every other flag goes to transformers' generate as it is, after the question: --do-sample true --num-beams 4.
    """
    arguments.check_order(image, question or "")
    flags = arguments.generation_flags(context.args, [flag for each in context.command.params for flag in each.opts])
    changed = interventions.read(context)
    chosen = arguments.flag_numbers("--attention-layers", attention_layers), arguments.flag_numbers("--heads", heads)
    drawn: dict[str, Any] = {"format": format, "dpi": dpi, "csv": csv}
    drawn |= {"maps": maps, "layers": chosen[0], "heads": chosen[1]}
    drawn |= {"tokens": arguments.place_or_word(tokens), **({"side": None} if full_size else {})}
    asked = {**asking.settings, "max_new_tokens": max_new_tokens, "seed": seed, **flags}
    several = arguments.is_data(image)
    if not several and data.settings:
        raise BadInput(f"{', '.join(data.settings)} say how the rows of a data set are read; {image!r} is one picture")
    if several and asking.prompt is not None:
        raise BadInput("--prompt asks about one picture; the rows of a file, and a question for a folder, ask here")
    if several:
        from llava_probe.features.samples import read_samples

        samples = read_samples(image, question=question, **data.settings)
    else:
        pictures = arguments.pictures(image)
        if question is None and asking.prompt is None:
            raise BadInput("say what to ask:  llava-probe run PICTURE 'QUESTION'  (or --prompt for a whole prompt)")
    from llava_probe.view.folder import checked_figure_format, made

    checked_figure_format(format)
    vlm = model.load()
    arguments.check_there("attention-layers", chosen[0], vlm.anatomy.layers)
    arguments.check_there("heads", chosen[1], vlm.anatomy.heads)
    made(out)
    if not several:
        if model.knows_scenes:
            warn_drawn(pictures)
        where = _one(vlm, pictures, {**asked, "question": question}, drawn, out, changed)
        typer.echo(f"\nEverything is in {where}")
        return
    failed, named = [], _Folders()
    for number, sample in enumerate(samples):
        try:
            if sample.fault is not None:
                raise BadInput(sample.fault)
            folder = out / named.of(sample)
            _one(vlm, sample.images, {**asked, **sample.asking}, drawn, folder, changed, plans=not number)
        except ProbeError as error:
            failed.append(sample.id)
            typer.secho(visible(f"{sample.id}: {error}"), fg="red", err=True)
    typer.echo(f"\nEverything is in {visible(str(out))}/, a folder for each row")
    if failed:
        typer.secho(f"{len(failed):,} rows failed: {visible(', '.join(failed[:8]))}", fg="red", err=True)
        raise typer.Exit(1)


def _one(
    vlm: VLM,
    pictures: list[Any],
    asked: dict[str, Any],
    drawn: dict[str, Any],
    out: Path,
    changed: list[Typed],
    *,
    plans: bool = True,
) -> str:
    from llava_probe.view.folder import write_run
    from llava_probe.view.progress import generated
    from llava_probe.view.terminal import show

    with under(vlm, changed, plans=plans):
        trace = generated(vlm, pictures, **asked)
    written = write_run(trace, out, **{**drawn, "maps": drawn["maps"] and bool(trace.layouts)})
    show(trace, written)
    return told_folder(out, written)


class _Folders:
    """A folder for each row, by its id; of ids that name the same folder all but the first get the row's number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, sample: Sample) -> str:
        """The folder of a row, in the order of rows."""
        name = arguments.file_name(sample.id)
        while name.casefold() in self._taken:
            name = f"{name}_row{sample.row}"
        self._taken.add(name.casefold())
        return name
