"""``llava-probe flow``: through which layers what flows to the answer, of one picture or of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llava_probe.cli import arguments
from llava_probe.cli.options import DataOptions, ModelOptions, PicturesArgument, QuestionArgument
from llava_probe.cli.told import told_folder
from llava_probe.errors import BadInput


def flow(
    model: ModelOptions,
    data: DataOptions,
    image: PicturesArgument,
    question: QuestionArgument = None,
    edges: Annotated[str, typer.Option(help="From what is looked at to what looks; several: a->b,c->d.")] = (
        "image->question,image->last,question->last,last->last"
    ),
    window: Annotated[str, typer.Option(help="Widths in layers: 9 or 1,3,9.")] = "1,3,9",
    layers: Annotated[str | None, typer.Option(help="The middle of each window; all if left.")] = None,
    of: Annotated[str, typer.Option(help="What the table is of: probability or difference (of logits).")] = (
        "probability"
    ),
    answer: Annotated[str | None, typer.Option(help="The word to watch; what each run says if left.")] = None,
    against: Annotated[str | None, typer.Option(help="What it is weighed against; the best other if left.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for numbers, table and figures; a run goes on there.")] = Path(
        "flow"
    ),
) -> None:
    """Cut attention in sliding windows of layers, and see what becomes of the answer.

    PICTURE may also be a folder or a file of rows, as for run: each row is a sample.
    """
    widths, middles = arguments.flag_numbers("--window", window), arguments.flag_numbers("--layers", layers)
    if of not in ("probability", "difference"):
        raise BadInput(f"--of takes probability or difference; got {of!r}")
    samples = asked_samples(image, question, data)
    from llava_probe.stored import write_text
    from llava_probe.sweeps.information_flow import information_flow
    from llava_probe.view.canvas import save
    from llava_probe.view.folder import made
    from llava_probe.view.sweep_figures import information_flow as flow_figure

    vlm = model.load()
    made(out)
    found = information_flow(
        vlm,
        samples,
        edges=[edge.strip() for edge in edges.split(",")],
        window=widths or [1],
        layers=middles,
        answer=answer,
        against=against,
        folder=out / "samples",
    )
    typer.echo(found.table(of))
    written = [write_text("table", out / "flow.txt", found.table(of) + "\n")]
    written += [save(flow_figure(found, name), out / f"flow_{name}.png") for name in ("probability", "difference")]
    typer.echo(f"\nEverything is in {told_folder(out, written)}")


def asked_samples(image: str, question: str | None, data: DataOptions) -> Any:
    """Pairs of picture and question: one, or a row each of a file or folder.

    Raises:
        BadInput: no question, or a row that has none.
    """
    if not arguments.is_data(image):
        if data.settings:
            raise BadInput(
                f"{', '.join(data.settings)} say how the rows of a data set are read; {image!r} is one picture"
            )
        arguments.check_order(image, question or "")
        if question is None:
            raise BadInput("say what to ask:  llava-probe flow PICTURE 'QUESTION'")
        pictures = arguments.pictures(image)
        return [(pictures if len(pictures) > 1 else pictures[0], question)]
    from llava_probe.features.samples import read_samples

    found = []
    for sample in read_samples(image, question=question, **data.settings):
        if sample.fault is not None or sample.question is None:
            raise BadInput(f"{sample.id}: {sample.fault or 'asks no question'}")
        if sample.system is not None:
            raise BadInput(f"{sample.id}: a sweep asks without a system message; --columns system= leaves it out")
        found.append((sample.images if len(sample.images) > 1 else sample.images[0], sample.question))
    return found
