"""``llava-probe extract``: the hidden states of a data set, into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from llava_probe.cli.interventions import InterventionOptions, under
from llava_probe.cli.options import AskingOptions, DataOptions, ModelOptions
from llava_probe.escaping import visible


def extract(
    context: typer.Context,
    model: ModelOptions,
    data: DataOptions,
    asking: AskingOptions,
    interventions: InterventionOptions,
    samples: Annotated[str, typer.Argument(help="A .jsonl, .csv or .parquet file, a folder of pictures, a data set.")],
    out: Annotated[Path, typer.Option(help="Folder of the store; the same command again goes on there.")],
    layers: Annotated[
        str | None, typer.Option(help="Hidden states: 0 the embedding, 16, vision_-2, projector; all if left.")
    ] = None,
    positions: Annotated[str, typer.Option(help="last_prompt, answer, image, image_mean, word:stop sign, 5 ...")] = (
        "last_prompt"
    ),
    question: Annotated[str | None, typer.Option(help="For rows that have none: Where is the {word}?")] = None,
    answers: Annotated[str | None, typer.Option(help="Another file with a row for each question_id.")] = None,
    store_dtype: Annotated[str | None, typer.Option(help="To store in; as computed if left.")] = None,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Also how sure the model was of each answer.")
    ] = False,
    image_attention: Annotated[
        bool, typer.Option("--image-attention", help="Also each head's attention on the picture.")
    ] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Let the model answer samples without answer.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Questions a pass; 8, on a GPU 32.")] = None,
    shard_rows: Annotated[int | None, typer.Option(help="Samples a shard; about 128 MB if left.")] = None,
    pack: Annotated[bool, typer.Option(help="Let questions about one picture share it.")] = True,
    random_weights: Annotated[int | None, typer.Option(help="Seed: a model of the same shape that learnt nothing.")] = (
        None
    ),
    strict: Annotated[bool, typer.Option("--strict", help="End at the first sample that fails.")] = False,
    engine: Annotated[str, typer.Option(help="local or ray.")] = "local",
    workers: Annotated[int, typer.Option(help="Models side by side on Ray.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(help="0.5 where two fit one card.")] = 0.0,
    cpus_per_worker: Annotated[float, typer.Option(help="Also how many threads each has.")] = 1.0,
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster: auto, ray://head:10001.")] = None,
) -> None:
    """Keep hidden states of every sample of a data set, resumably.

    Samples have an image and a question, optionally an answer, a mask or boxes; other columns are carried along.
    """
    from llava_probe.features.engines import Cluster
    from llava_probe.features.extract import extract as run_extraction
    from llava_probe.loading import load

    loading = dict(model.settings)
    if random_weights is not None:
        loading["random_weights"] = random_weights
    given: Any = model.model
    changed = interventions.read(context)
    if changed:
        given, loading = load(model.model, **loading), {}
    with under(given, changed, may_be_done=True):
        features = run_extraction(
            given,
            samples,
            out,
            layers=layers,
            positions=positions,
            question=question,
            answers=answers,
            **data.settings,
            **asking.settings,
            store_dtype=store_dtype,
            confidence=confidence,
            image_attention=image_attention,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            shard_rows=shard_rows,
            pack=pack,
            strict=strict,
            engine=engine,
            cluster=Cluster(workers, gpus_per_worker, cpus_per_worker, address),
            progress=True,
            **loading,
        )
    typer.echo(f"{len(features):,} rows of {len(features.keys())} tensors are in {visible(str(out))}")
    failed = features.errors()
    if failed.num_rows:
        first = failed.slice(0, 1).to_pylist()[0]
        typer.secho(
            f"{failed.num_rows:,} samples failed; lp.Features({str(out)!r}).errors() lists them with their reasons, "
            f"such as {visible(str(first['id']))}: {visible(str(first['reason']))}",
            fg="red",
            err=True,
        )
    if failed.num_rows or not len(features):
        raise typer.Exit(1)
