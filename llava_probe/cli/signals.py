"""``llava-probe signals``: when not to believe a model, of a data set whose truth is known; one page."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llava_probe.cli import arguments
from llava_probe.cli.options import ModelOptions
from llava_probe.cli.told import told_folder, warn_drawn
from llava_probe.errors import BadInput, shortened
from llava_probe.escaping import visible

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava_probe.report.asking import Failure, RowTask
    from llava_probe.report.captions import DescribedPictures
    from llava_probe.report.kinds import GivenFiles
    from llava_probe.report.questions import AskedQuestions

#: Failures that are told on the terminal; the page has more.
_TOLD = 5
_DESCRIBE = "Describe the image."
_OUT = Path("signals")


@dataclass(frozen=True)
class _Asking:
    """How a data set is asked: of which model, pictures from where, how many tokens, and into what folder."""

    model: ModelOptions
    images: str | None
    max_new_tokens: int | None
    batch_size: int
    out: Path


def signals(
    model: ModelOptions,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Questions, captions, instances or pictures.")],
    images: Annotated[
        str | None, typer.Option(help="Folder where pictures' paths start, or a form: val/COCO_{image_id:012}.jpg.")
    ] = None,
    instances: Annotated[list[str] | None, typer.Option(help="COCO's instances_*.json: what is there.")] = None,
    references: Annotated[list[str] | None, typer.Option(help="COCO's captions_*.json: what people name.")] = None,
    synonyms: Annotated[str | None, typer.Option(help="A line an object: couch, sofa. COCO's 80 if left.")] = None,
    question: Annotated[str, typer.Option(help="What asks for a description.")] = _DESCRIBE,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Of an answer, at most; if left 16 for yes or no, 64 for a description.", min=1)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows a pass.", min=1)] = 1,
    out: Annotated[Path, typer.Option(help="Folder of page, figures and answers; a run goes on there.")] = _OUT,
) -> None:
    """Try a model on what has a known truth (POPE, CHAIR), and tell on one page how far it can be believed.

    FILE has questions with a label yes or no, as POPE's (several files are its splits): accuracy and F1 by the text and
    by probability, calibration, risk and coverage.

    Or it has pictures to describe (a folder, a file of them, COCO's own instances), or captions of yours, and
    --instances tell what is there: CHAIR, and how well each signal tells a made-up word beside what knows nothing. For
    the signals of captions the model reads them, where their pictures are there.
    """
    from llava_probe.report.folder import write_report
    from llava_probe.report.kinds import look_into

    found: AskedQuestions | DescribedPictures
    options = {
        "images": images,
        "instances": instances,
        "references": references,
        "synonyms": synonyms,
        "question": None if question == _DESCRIBE else question,
        "max_new_tokens": max_new_tokens,
        "batch_size": None if batch_size == 1 else batch_size,
        "out": out,
    }
    given, asking = look_into(files), _Asking(model, images, max_new_tokens, batch_size, out)
    if given.kind == "questions":
        if instances or references or synonyms:
            raise BadInput("--instances, --references and --synonyms are for captions; these files ask yes or no")
        found, failed = _of_questions(given, asking)
    else:
        known = instances or ([given.instances] if given.instances else None)
        if known is None:
            raise BadInput(
                f"{shortened(files[0])} has {given.kind} and no label yes or no: say what is on the pictures with "
                "--instances instances_val2014.json (of one answer lp.hallucination tells the signals)"
            )
        found, failed = _of_captions(given, asking, known, references, synonyms, question)
    typer.echo(f"\n{visible(str(found), lines=True)}")
    command = shlex.join(["llava-probe", "signals", *files, *model.typed, *arguments.typed(options)])
    written = write_report(found, out, model=model.model, command=command, failed=failed)
    typer.echo(f"\nEverything is in {told_folder(out, written)}")
    if failed:
        raise typer.Exit(1)


def _of_questions(given: GivenFiles, asking: _Asking) -> tuple[AskedQuestions, list[Failure]]:
    from llava_probe.report.questions import measured_answers, questions_task

    task = questions_task(given.sources, asking.images, asking.max_new_tokens)
    lines, failed = _asked(task, asking)
    return measured_answers(lines), failed


def _of_captions(
    given: GivenFiles,
    asking: _Asking,
    instances: list[str],
    references: list[str] | None,
    synonyms: str | None,
    question: str,
) -> tuple[DescribedPictures, list[Failure]]:
    from llava_probe.report.captions import Truth, captions_task, measured_captions

    truth = Truth(instances, references, synonyms)
    if given.kind == "captions" and asking.images is None and not given.pictured:
        return measured_captions(given.rows(), truth), []
    task = captions_task(given.sources[0], truth, asking.images, question, asking.max_new_tokens, given.captions)
    lines, failed = _asked(task, asking)
    return measured_captions(lines, truth), failed


def _asked(task: RowTask, asking: _Asking) -> tuple[list[dict[str, Any]], list[Failure]]:
    """The lines of a task, after every row was asked that had none; failures are told.

    Raises:
        BadInput: no row could be asked.
    """
    from llava_probe.report.asking import ask_rows, finished_lines

    vlm, out = asking.model.load(), asking.out
    if asking.model.knows_scenes:
        with suppress(BadInput):  # a picture that cannot be opened is told where it is asked about
            warn_drawn(_first_picture(task))
    try:
        failed = ask_rows(vlm, task, out, asking.batch_size)
    except KeyboardInterrupt:
        done = len(finished_lines(task, out))
        typer.echo(
            f"\nStopped after {done:,} of {task.count:,} rows; what is finished is in {visible(str(out / task.name))}, "
            "and the same command goes on from there."
        )
        raise typer.Exit(130) from None
    for each in failed[:_TOLD]:
        typer.secho(visible(str(each)), fg="red", err=True)
    if failed:
        typer.secho(
            f"{len(failed):,} of {task.count:,} rows failed; the same command tries them again", fg="red", err=True
        )
    lines = finished_lines(task, out)
    if not lines:
        raise BadInput(f"none of {task.count:,} rows could be asked; the first: {failed[0]}")
    return lines, failed


def _first_picture(task: RowTask) -> list[Image]:
    from llava_probe.pictures.images import open_image

    _, sample = next(task.rows())
    return [open_image(sample.image)] if sample.image is not None else []
