"""The command line, one verb a job: ``llava-probe demo``, ``run``, ``attribute``, ``check`` ...

Nothing heavy is imported before a verb runs, so that ``--help`` answers at once. What goes wrong on purpose is one
sentence on standard error and exit status 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llava_probe.errors import BadInput, ProbeError
from llava_probe.view import arguments

if TYPE_CHECKING:
    from llava_probe.model import VLM
    from llava_probe.trace.trace import Trace

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A microscope for vision-language models: what was answered, how surely, and where it looked.",
)

TINY_MODEL = "tiny"
EXAMPLE = "llava-hf/llava-1.5-7b-hf"

ModelName = Annotated[str, typer.Option(help="A checkpoint on the Hugging Face hub or a folder; 'tiny' ships inside.")]
DType = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the checkpoint's own if left.")]
DeviceMap = Annotated[str | None, typer.Option(help="Where to put the model: auto, cuda, cpu ...")]
Attention = Annotated[str | None, typer.Option(help="sdpa, flash_attention_2, eager ...; the model's default if left.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Look for a scene from this one on; held out below 1,000,000.")] = 0,
) -> None:
    """Ask the tiny model about a drawn scene: no download, a few seconds."""
    with _plainly():
        from llava_probe import tiny
        from llava_probe.view.terminal import show

        scene = tiny.scene(_with_stop_sign(seed))
        vlm = _load(TINY_MODEL)
        asked = "What is the text on the stop sign?"
        trace = vlm.generate(scene.image, asked)
        written = _write(trace, out)
        show(trace)
        described = vlm.generate(scene.image, "Describe the image.")
        _write(described, out / "describe")
        show(described)
        typer.echo(f"\nEverything is in {_told(out, written)} (and describe/)")
        typer.echo(f"A photograph of your own:  llava-probe run PHOTO 'QUESTION' --model {EXAMPLE}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    image: Annotated[str, typer.Argument(help="Path or URL of a picture; several with commas between them.")],
    question: Annotated[str, typer.Argument(help="What to ask, in plain words.")],
    model: ModelName = TINY_MODEL,
    out: Annotated[Path, typer.Option(help="Folder for answer, trace, maps and figures.")] = Path("out"),
    dtype: DType = None,
    device_map: DeviceMap = None,
    attn_implementation: Attention = None,
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens.")] = 64,
    seed: Annotated[int | None, typer.Option(help="For sampling.")] = None,
    maps: Annotated[bool, typer.Option(help="Also attention maps over the picture.")] = True,
    layers: Annotated[str | None, typer.Option(help="Attention layers to average: 14 or 10,11,12.")] = None,
    heads: Annotated[str | None, typer.Option(help="Heads to average: 3 or 3,7.")] = None,
) -> None:
    """Ask about a picture and write down everything.

    Every other flag goes to transformers' generate as it is, after the question: --do-sample true --num-beams 4.
    """
    with _plainly():
        arguments.check_order(image, question)
        flags = arguments.generation_flags(context.args)
        chosen = arguments.flag_numbers("--layers", layers), arguments.flag_numbers("--heads", heads)
        pictures = arguments.pictures(image)
        from llava_probe.view.folder import made
        from llava_probe.view.progress import generated
        from llava_probe.view.terminal import show

        vlm = _load(model, dtype=dtype, device_map=device_map, attn_implementation=attn_implementation)
        arguments.check_there("layers", chosen[0], vlm.anatomy.layers)
        arguments.check_there("heads", chosen[1], vlm.anatomy.heads)
        made(out)
        if model == TINY_MODEL:
            _warn_tiny()
        trace = generated(vlm, pictures, question, max_new_tokens, flags, seed)
        written = _write(trace, out, maps=maps and bool(trace.layouts), layers=chosen[0], heads=chosen[1])
        show(trace)
        typer.echo(f"\nEverything is in {_told(out, written)}")


@app.command()
def attribute(
    image: Annotated[str, typer.Argument(help="Path or URL of a picture; several with commas between them.")],
    question: Annotated[str, typer.Argument(help="What to ask, in plain words.")],
    method: Annotated[str, typer.Option(help="relevance, occlusion, tam ...; lp.METHODS and the README list all.")] = (
        "relevance"
    ),
    model: ModelName = TINY_MODEL,
    tokens: Annotated[str | None, typer.Option(help="A word, or lp.ANSWER; each content word if left.")] = None,
    contrast: Annotated[str | None, typer.Option(help="Explain why the word and not this one.")] = None,
    text: Annotated[str | None, typer.Option(help="Explain this answer in place of the model's own.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Of the method, NAME=VALUE; may be repeated.")] = None,
    picture: Annotated[int, typer.Option(help="Which of several pictures to explain by, from 0.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for maps and figures.")] = Path("out"),
    dtype: DType = None,
    device_map: DeviceMap = None,
    attn_implementation: Attention = None,
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens.")] = 64,
) -> None:
    """Explain the words of an answer by the picture."""
    with _plainly():
        options, explained = arguments.method_options(method, option or ()), arguments.place_or_word(tokens)
        pictures = arguments.pictures(image)
        from llava_probe.attribution import attribute as explain
        from llava_probe.trace.capture import Capture
        from llava_probe.trace.explained import ANSWER
        from llava_probe.view.folder import made, write_attribution
        from llava_probe.view.progress import generated
        from llava_probe.view.terminal import show_map

        vlm = _load(model, dtype=dtype, device_map=device_map, attn_implementation=attn_implementation)
        made(out)
        if model == TINY_MODEL:
            _warn_tiny()
        kept = Capture(hidden_states=False, logits=False)
        if text is None:
            trace = generated(vlm, pictures, question, max_new_tokens, {"capture": kept})
        else:
            trace = vlm.score(pictures, question, text, capture=kept)
            explained = explained or ANSWER
        m = explain(vlm, trace, method, picture, explained, contrast=contrast, **options)
        written = write_attribution(trace, m, out)
        show_map(trace, m)
        typer.echo(f"\nEverything is in {_told(out, written)}")


@app.command()
def leaderboard(
    model: ModelName = TINY_MODEL,
    cases: Annotated[Path | None, typer.Option(help="JSON lines of image, question, word, mask.")] = None,
    scenes: Annotated[int, typer.Option(help="Held-out scenes, where there are no cases.")] = 500,
    part: Annotated[str | None, typer.Option(help="Only score this share of the questions, 2/8 say; no page.")] = None,
    closer: Annotated[int, typer.Option(help="Questions with deletion, agreement and random layers too.")] = 44,
    quick: Annotated[bool, typer.Option(help="Leave out methods that take tens of passes a word.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the page and its figures.")] = Path("leaderboard"),
    scores: Annotated[Path | None, typer.Option(help="Folder of the scores; scores/ in the other one if left.")] = None,
    dtype: DType = None,
    device_map: DeviceMap = None,
    attn_implementation: Attention = None,
) -> None:
    """Score every method of attribution where the right place is known; goes on where it was stopped.

    A line of --cases is {"image": "street.jpg", "question": "What is on the left?", "word": "dog", "mask": "dog.png"};
    paths start at the file's folder, and a mask is white on the object. COCO's run-length may stand for the mask, or a
    "box" of x0, y0, x1, y1. A line may also have an "id", a "kind" that scores are told by, and the right "answer".

    A third of the pictures, 60 at most, choose the localisation heads and are not scored.
    """
    with _plainly():
        share = (1, 1) if part is None else arguments.part(part)
        from llava_probe.leaderboard.folder import CLOSER, BoardSettings, score, write_leaderboard

        if cases is None and model != TINY_MODEL:
            raise BadInput("the scenes are the tiny model's; give pictures of yours with --cases")
        wanted, kept = BoardSettings(cases, scenes, closer=closer, quick=quick), scores or out / "scores"
        vlm = _load(model, dtype=dtype, device_map=device_map, attn_implementation=attn_implementation)
        try:
            written = score(vlm, wanted, kept, share)
        except KeyboardInterrupt:
            typer.echo(f"\nStopped; what is finished is in {kept}, and the same command goes on from there.")
            raise typer.Exit(130) from None
        if part is None:
            given = f"--cases {cases}" if cases else f"--scenes {scenes}"
            given += f" --closer {closer}" * (closer != CLOSER) + " --quick" * quick
            command = f"llava-probe leaderboard --model {model} {given} --out {out}"
            written = write_leaderboard(vlm, wanted, kept, out, model=model, command=command)[0]
        typer.echo(f"\nEverything is in {written}")


@app.command()
def check(
    model: ModelName = TINY_MODEL,
    dtype: DType = None,
    device_map: DeviceMap = None,
    attn_implementation: Attention = None,
    image: Annotated[str | None, typer.Option(help="A picture to try with; a drawn one if left.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the compared answers.")] = 16,
) -> None:
    """Compare what is recorded with transformers' own numbers, on your weights."""
    with _plainly():
        from llava_probe.pictures.images import open_image

        picture = None if image is None else open_image(image)
        from llava_probe.agreement import check as compare
        from llava_probe.view.progress import spinner

        vlm = _load(model, dtype=dtype, device_map=device_map, attn_implementation=attn_implementation)
        with spinner("comparing"):
            found = compare(vlm, picture, max_new_tokens=max_new_tokens)
        typer.echo(str(found))
        if not found.ok:
            raise typer.Exit(1)


@app.command()
def extract(
    samples: Annotated[str, typer.Argument(help="A .jsonl, .csv or .parquet file, a folder of pictures, a data set.")],
    out: Annotated[Path, typer.Option(help="Folder of the store; the same command again goes on there.")],
    model: ModelName = TINY_MODEL,
    layers: Annotated[str | None, typer.Option(help="8,16,24, vision_-2, projector; all states if left.")] = None,
    positions: Annotated[str, typer.Option(help="last_prompt, answer, image, image_mean, word:stop sign, 5 ...")] = (
        "last_prompt"
    ),
    question: Annotated[str | None, typer.Option(help="For samples that have none.")] = None,
    columns: Annotated[str | None, typer.Option(help="Our names for theirs: question=text,answer=label.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder that relative pictures start from.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a Hugging Face data set.")] = None,
    dtype: DType = None,
    device_map: DeviceMap = None,
    attn_implementation: Attention = None,
    store_dtype: Annotated[str | None, typer.Option(help="To store in; as computed if left.")] = None,
    confidence: Annotated[bool, typer.Option(help="Also how sure the model was of each answer.")] = False,
    image_attention: Annotated[bool, typer.Option(help="Also each head's attention on the picture.")] = False,
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
    with _plainly():
        from llava_probe.features.engines import Cluster
        from llava_probe.features.extract import extract as run_extraction

        loading: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "random_weights": random_weights}
        loading["attn_implementation"] = attn_implementation
        features = run_extraction(
            model,
            samples,
            out,
            layers=layers,
            positions=positions,
            question=question,
            columns=arguments.assignments(columns),
            images=images,
            split=split,
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
            **{name: value for name, value in loading.items() if value is not None},
        )
        failed = features.errors().num_rows
        told = f"; {failed:,} samples failed, see {out / 'errors.parquet'}" if failed else ""
        typer.echo(f"{len(features):,} rows of {len(features.keys())} tensors are in {out}{told}")
        if not len(features):
            raise typer.Exit(1)


@app.command("fit-probe")
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
    with _plainly():
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
        typer.echo(str(sweep))
        if out is not None:
            typer.echo(f"\nEverything is in {_told(out, write_sweep(sweep, out))}")


@app.command()
def models(
    only: Annotated[str | None, typer.Argument(help="Only names with this text in them: qwen.")] = None,
) -> None:
    """What holds for each family of transformers, as the tests found it."""
    from llava_probe.view.terminal import show_families

    show_families(only)


@contextmanager
def _plainly() -> Iterator[None]:
    """Errors of ours as one sentence."""
    try:
        yield
    except ProbeError as error:
        typer.secho(str(error), fg="red", err=True)
        raise typer.Exit(1) from None


def _load(name: str, **settings: Any) -> VLM:
    from llava_probe.loading import load

    return load(name, **{key: value for key, value in settings.items() if value is not None})


def _write(trace: Trace, out: Path, **options: Any) -> list[Path]:
    from llava_probe.view.folder import write_run

    return write_run(trace, out, **options)


def _told(out: Path, written: list[Path]) -> str:
    """What a run wrote, folders by their names."""
    parts = [path.relative_to(out.expanduser()).parts for path in written]
    names = dict.fromkeys(first + "/" * bool(rest) for first, *rest in parts)
    return f"{out}/: {', '.join(names)}"


def _with_stop_sign(seed: int) -> int:
    """The first scene from ``seed`` on with company for a sign that says STOP."""
    from llava_probe import tiny

    if not 0 <= seed < 1_000_000:
        raise BadInput(f"--seed {seed}: held-out scenes have seeds from 0 to 999,999")
    seeds = range(seed, 1_000_000)
    scenes = ((number, tiny.scene(number).objects) for number in seeds)
    return next((n for n, things in scenes if len(things) > 2 and any(t.text == "STOP" for t in things)), seeds[-1])


def _warn_tiny() -> None:
    typer.secho(
        "The tiny model knows only its own drawn scenes (coloured shapes and stop signs); what it says of anything "
        f"else means nothing. For a photograph name a model:  --model {EXAMPLE}",
        fg="yellow",
        err=True,
    )


if __name__ == "__main__":
    app()
