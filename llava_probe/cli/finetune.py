"""``llava-probe finetune``: train a model on one's own pictures, and see that it learnt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_probe.cli.options import ModelOptions, RowOptions, of_model
from llava_probe.cli.told import told_folder
from llava_probe.errors import BadInput
from llava_probe.escaping import visible

if TYPE_CHECKING:
    from llava_probe.finetune.result import Finetuned

#: Bad rows that are listed on the screen.
_LISTED = 12


@dataclass(frozen=True)
class StartOptions(ModelOptions):
    """Which model, how it is loaded, and the adapter that training starts from."""

    adapter: Annotated[
        str | None, of_model(help="An adapter to start from, of --stage align say; the new one holds it too.")
    ] = None


def finetune(
    model: StartOptions,
    rows: RowOptions,
    data: Annotated[
        str, typer.Argument(help="A .jsonl, .json, .csv or .parquet file, or a data set: pictures with conversations.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the adapter; the same command again goes on there.")] = (
        None
    ),
    stage: Annotated[str, typer.Option(help="align: the projector alone. instruct: a LoRA of the language model.")] = (
        "instruct"
    ),
    train: Annotated[
        str | None, typer.Option(help="Other parts instead: projector,language,tower, or everything.")
    ] = None,
    question: Annotated[str | None, typer.Option(help="For rows that have none, captions say.")] = None,
    held_out: Annotated[float, typer.Option(help="Share of the pictures that are only measured.")] = 0.05,
    epochs: Annotated[int, typer.Option(help="How often each row is seen.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Of the optimizer, instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows a step, on all cards together.")] = 16,
    micro_batch: Annotated[int | None, typer.Option(help="Rows a pass, where a step does not fit.")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate; 1e-3 projector, 2e-4 LoRA, 2e-5 everything if left.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of the LoRA; 16, or that of the adapter it starts from.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens a row; a longer one is a bad row, never cut.")] = None,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Less memory for a third more time.")] = False,
    seed: Annotated[int, typer.Option(help="Of order, held-out part and the LoRA's first weights.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on without rows that cannot be trained on.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing: the first row token by token, memory and time.")
    ] = False,
) -> None:
    """Train a model on pictures, questions and answers; the loss is on the answers alone.

    A line is {"image": "a.jpg", "question": "What is it?", "answer": "a cat"}, or LLaVA's conversations, or messages:
    one format throughout. First --stage align on captions, then --stage instruct with --adapter of the first.

    Several cards: accelerate launch -m llava_probe finetune ...
    """
    if out is None and not dry_run:
        raise BadInput("say where the adapter goes: --out FOLDER (or --dry-run, which writes nothing)")
    from llava_probe.finetune.finetune import finetune as run_training
    from llava_probe.finetune.result import Finetuned
    from llava_probe.finetune.training import this_process

    first = this_process().is_main_process
    loading = {name: value for name, value in model.settings.items() if name != "adapter"}
    found = run_training(
        data,
        model.model,
        out,
        stage=stage,
        train=train,
        adapter=model.adapter,
        question=question,
        **rows.settings,
        held_out=held_out,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        micro_batch=micro_batch,
        lr=lr,
        rank=rank,
        max_length=max_length,
        checkpointing=checkpointing,
        seed=seed,
        skip_bad=skip_bad,
        dry_run=dry_run,
        progress=first,
        **loading,
    )
    if first and isinstance(found, Finetuned):
        _tell(found, model.model)
    elif first:
        typer.echo(visible(str(found), lines=True))


def _tell(result: Finetuned, model: str) -> None:
    """How far it came, where it lies and how it is loaded; the losses beside it, as numbers and as a figure."""
    from llava_probe.view import figures

    result.to_csv(result.folder / "losses.csv")
    figures.save(figures.losses(result), result.folder / "losses.png")
    if result.left_out:
        more = len(result.left_out) - _LISTED
        listed = [*result.left_out[:_LISTED], *([f"and {more:,} more"] if more > 0 else [])]
        told = "".join(f"\n  {visible(each)}" for each in listed)
        typer.secho(f"{len(result.left_out):,} rows were left out:{told}", fg="yellow", err=True)
    if not result.held_out:
        typer.secho("No picture was held out, so nothing tells what was learnt: --held-out 0.2", fg="yellow", err=True)
    written = sorted(path for path in result.folder.rglob("*") if path.is_file())
    folder = visible(str(result.folder))
    if "everything" in result.parts:
        loaded, words = f"lp.load({folder!r})", f"--model {folder}"
    else:
        loaded, words = f"lp.load({model!r}, adapter={folder!r})", f"--model {model} --adapter {folder}"
    typer.echo(
        f"{result}\n\nEverything is in {told_folder(result.folder, written)}\n\n"
        f"  {loaded}\n  llava-probe run PICTURE QUESTION {words}"
    )
