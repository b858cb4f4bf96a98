"""``llava-probe compare``: two models on a picture or a data set, or two saved traces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llava_probe.cli import arguments
from llava_probe.cli.options import DataOptions, ModelOptions, PicturesArgument, QuestionArgument
from llava_probe.cli.told import told_folder
from llava_probe.errors import BadInput

if TYPE_CHECKING:
    from llava_probe.model import VLM
    from llava_probe.trace.trace import Trace

_TRACE = ".trace"


def compare(
    model: ModelOptions,
    data: DataOptions,
    image: PicturesArgument,
    question: QuestionArgument = None,
    other: Annotated[str | None, typer.Option(help="The second model; left, the first with --other-adapter.")] = None,
    other_adapter: Annotated[str | None, typer.Option(help="A PEFT adapter on the second: folder or name.")] = None,
    unrelated: Annotated[str | None, typer.Option(help="Rows that have nothing to do with what was trained.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of each answer.", min=1)] = 64,
    out: Annotated[Path, typer.Option(help="Folder for tables and figures.")] = Path("compare"),
) -> None:
    """Put two models beside each other: on one picture, or with intervals over a data set.

    PICTURE may also be a folder or a file of rows, as for run; Ctrl-C, and the same command goes on. Two .trace files
    are compared without a model.
    """
    if image.endswith(_TRACE):
        if other is not None or other_adapter is not None or model != ModelOptions():
            raise BadInput("two saved traces are compared without a model; in Python, lp.compare(a, b, models=(...))")
        if data.settings or unrelated is not None:
            raise BadInput("options of a data set mean nothing to two saved traces")
        a, b = _saved(image, question)
        _one(a, b, None, out)
        return
    if other is None and other_adapter is None:
        raise BadInput("name the second model:  --other MODEL, or --other-adapter DIR for an adapter on the first")
    rows = _rows(image, question, data)
    if isinstance(rows, tuple) and unrelated is not None:
        raise BadInput("--unrelated belongs to a data set; one picture is compared by itself")
    models = _loaded(model, other, other_adapter)
    if isinstance(rows, tuple):
        traces = [vlm.generate(*rows, max_new_tokens=max_new_tokens) for vlm in models]
        _one(traces[0], traces[1], models, out)
    else:
        _many(models, rows, unrelated, max_new_tokens, out)


def _loaded(model: ModelOptions, other: str | None, other_adapter: str | None) -> tuple[VLM, VLM]:
    """Both models: a revision is of the first name alone, and --merge merges whichever adapter there is."""
    from llava_probe.loading import load, look

    others = {**model.settings, "adapter": other_adapter}
    if other is not None:
        others.pop("revision", None)
    sides = [(model.model, model.settings), (other or model.model, others)]
    adapted = [look(name, **settings).adapter is not None for name, settings in sides]
    first, second = (
        load(name, **{**settings, "merge": model.merge and (merges or not any(adapted))})
        for (name, settings), merges in zip(sides, adapted, strict=True)
    )
    return first, second


def _saved(image: str, question: str | None) -> tuple[Trace, Trace]:
    if question is None or not question.endswith(_TRACE):
        raise BadInput("a saved trace is compared with another one:  llava-probe compare a.trace b.trace")
    from llava_probe.trace.trace import Trace

    return Trace.load(image), Trace.load(question)


def _rows(image: str, question: str | None, data: DataOptions) -> Any:
    """A picture and its question, or the samples of a data set."""
    if arguments.is_data(image):
        from llava_probe.features.samples import read_samples

        return read_samples(image, question=question, **data.settings)
    if data.settings:
        raise BadInput(f"{', '.join(data.settings)} say how the rows of a data set are read; {image!r} is one picture")
    arguments.check_order(image, question or "")
    if question is None:
        raise BadInput("say what to ask:  llava-probe compare PICTURE 'QUESTION' --other MODEL")
    pictures = arguments.pictures(image)
    return (pictures if len(pictures) > 1 else pictures[0], question)


def _one(a: Trace, b: Trace, models: tuple[VLM, VLM] | None, out: Path) -> None:
    """Two traces: what changed, printed and drawn."""
    from llava_probe.compare.traces import compare_traces
    from llava_probe.stored import write_text
    from llava_probe.view.canvas import save
    from llava_probe.view.compare_figures import changed
    from llava_probe.view.folder import made
    from llava_probe.view.map_figures import compare as compare_maps

    found = compare_traces(a, b, models)
    typer.echo(str(found))
    made(out)
    written = [write_text("table", out / "compare.txt", f"{found}\n"), save(changed(found), out / "changed.png")]
    if found.maps is not None:
        both = {"a": found.maps.a, "b": found.maps.b}
        drawn = compare_maps(both, difference=found.maps.difference is not None)
        written.append(save(drawn, out / "maps.png"))
    written.append(found.page(out / "changed.html"))
    typer.echo(f"\nEverything is in {told_folder(out, written)}")


def _many(models: tuple[VLM, VLM], rows: Any, unrelated: str | None, max_new_tokens: int, out: Path) -> None:
    """Two models over a data set."""
    from llava_probe.compare.models import compare_models
    from llava_probe.stored import write_text
    from llava_probe.view.canvas import save
    from llava_probe.view.compare_figures import models_compared
    from llava_probe.view.folder import made

    made(out)
    found = compare_models(*models, rows, unrelated=unrelated, out=out / "samples", max_new_tokens=max_new_tokens)
    typer.echo(str(found))
    written = [
        write_text("table", out / "compare.txt", f"{found}\n"),
        found.to_csv(out / "answers.csv"),
        save(models_compared(found), out / "compared.png"),
    ]
    typer.echo(f"\nEverything is in {told_folder(out, written)}")
