"""From a data set to a folder of features, resumably.

    features = lp.extract(vlm, "questions.jsonl", "features/", layers=[8, 16, 24], positions=["last_prompt", "image"])

Samples are cut into shards in the order of the source; a shard is written whole or not at all. The same call again goes
on where the last one ended, and gives the bytes that an undisturbed run would have given.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tqdm import tqdm

from llava_probe import __version__
from llava_probe.asking.identity import model_of, processor_of
from llava_probe.asking.prompts import pose
from llava_probe.border import Count, checked
from llava_probe.errors import BadInput, ProbeError
from llava_probe.features import store
from llava_probe.features.engines import Cluster, run_here, run_on_ray
from llava_probe.features.extractor import LOOKED_AT, Extractor, Recipe
from llava_probe.features.gathering import choose
from llava_probe.features.manifest import read_manifest
from llava_probe.features.packs import AskingSettings, batch_of
from llava_probe.features.places import listed
from llava_probe.features.reading import Features
from llava_probe.features.samples import Sample, Samples, digest, read_samples
from llava_probe.features.trial import OF_A_SAMPLE, Sharing
from llava_probe.inside.passes import in_force
from llava_probe.loading import model_given
from llava_probe.model import VLM
from llava_probe.pictures.boxes import unstated
from llava_probe.stored import converted
from llava_probe.trace.capture import in_units

#: About how large a shard becomes: what is computed again after a crash, and what memory holds meanwhile.
SHARD_BYTES = 128_000_000
SHARD_ROWS = 4096

#: Questions a pass by default, where memory is the computer's and where it is a card's.
BATCH_ON_CPU, BATCH_ON_GPU = 8, 32

#: What the names in a store mean, told with it.
CONVENTIONS = {
    "layer_i": "transformers' hidden_states[i]: 0 the embedding, L after the final norm",
    "vision_i": "the vision tower's hidden state i: 0 its embedding, then each block's output",
    "projector": "visual tokens as the language model gets them: hidden state 0 at image positions",
    "answer": "the answer's tokens as they were fed: all but the last, which nothing follows",
    "predicting": "the last prompt token and the answer's tokens: row t predicted token t of the answer",
    "spans": "start and stop of each row's values; questions about one picture may share them",
    "image_attention": "share of the last prompt token's attention that falls on the picture: [rows, blocks, heads]",
}

#: Names and numbers, one or several.
NamesOrNumbers = str | int | Sequence[str | int]


@checked
def extract(
    vlm: VLM | str | Path,
    samples: Any,
    out: str | Path,
    *,
    layers: NamesOrNumbers | None = None,
    positions: NamesOrNumbers = "last_prompt",
    question: str | None = None,
    prompt: str | None = None,
    columns: Mapping[str, Any] | None = None,
    images: str | Path | None = None,
    split: str | None = None,
    box_format: str | None = None,
    answers: Any = None,
    system: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
    store_dtype: str | None = None,
    confidence: bool = False,
    image_attention: bool = False,
    max_new_tokens: Count | None = None,
    batch_size: Count | None = None,
    shard_rows: Count | None = None,
    pack: bool = True,
    strict: bool = False,
    engine: str = "local",
    cluster: Cluster | None = None,
    progress: bool = False,
    **load_kwargs: Any,
) -> Features:
    """Keep hidden states of every sample of a data set.

    Args:
        vlm: the model, or its name or folder for ``lp.load``.
        samples: a .jsonl, .json, .csv or .parquet file, a folder of pictures, a Hugging Face data set or its name, or
            dicts, with columns ``image``, ``question`` (or ``prompt``, the whole text as it is, or ``messages``),
            optionally ``answer`` (then teacher-forced), ``mask`` or ``boxes``; all other columns are carried along.
        question, prompt, columns, images, split, box_format, answers: as ``read_samples`` takes them.
        system, template_kwargs: a system prompt, and further arguments of the model's chat template.
        processor_kwargs: settings of the processor, such as ``{"size": ...}``.
        out: the folder of the store; one that holds part of the same run is finished.
        layers: hidden states by transformers' index, ``"vision_3"``, ``"projector"``; the language model's by default.
        positions: ``last_prompt``, ``prompt``, ``text``, ``answer``, ``predicting``, ``image``, ``image_in_mask``,
            ``word`` (of a column), ``word:stop sign``, ``at`` (numbers in a column of that name), ``patches`` (of the
            vision tower), each also with ``_mean`` behind it, and prompt positions as numbers.
        store_dtype: as the model computed them by default.
        confidence: how sure the model was of its answer, in the index.
        image_attention: each head's share of attention on the picture from the last prompt token.
        max_new_tokens: let the model answer where a sample has no answer.
        batch_size: questions a pass; 8, on a GPU 32.
        shard_rows: samples a shard; by default so many that a shard has about 128 MB.
        pack: let the questions about one picture share its prefix, where the family allows it exactly.
        strict: end at the first sample that fails; otherwise its reason goes to errors.parquet.
        engine: ``"local"``, or ``"ray"`` with ``cluster``.
        cluster: workers and address of the Ray cluster.
        progress: show a bar.
        **load_kwargs: passed to ``lp.load`` where ``vlm`` is a name: ``dtype``, ``device_map``, ``random_weights`` ...

    Raises:
        BadInput: something that cannot be asked for, or another run in the folder; the sentence tells the difference.
        BadFile: the store is damaged or cannot be written; what was finished is kept.
    """
    if engine not in ("local", "ray"):
        raise BadInput(f'engine={engine!r} is none; there are "local" and "ray"')
    named = model_given(vlm, load_kwargs)
    if engine == "ray" and in_force(named.anatomy):
        raise BadInput('an intervention is in force in this process alone; extract under it with engine="local"')
    asking = AskingSettings(
        system, _plainly("template_kwargs", template_kwargs), _plainly("processor_kwargs", processor_kwargs)
    )
    source = read_samples(
        samples,
        question=question,
        prompt=prompt,
        columns=columns,
        images=images,
        split=split,
        box_format=box_format,
        answers=answers,
    )
    on_gpu = named.model.device.type != "cpu"
    recipe = Recipe(
        layers=None if layers is None else tuple(listed(layers)),
        positions=tuple(listed(positions)),
        dtype=store_dtype,
        confidence=confidence,
        image_attention=image_attention,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size or (BATCH_ON_GPU if on_gpu else BATCH_ON_CPU),
        pack=pack,
        asking=asking,
    )
    bar = tqdm(total=source.count, unit="sample", disable=None if progress else True, delay=1)
    extractor = Extractor(named, recipe, strict=strict, tick=bar.update)
    first, stream = _first(iter(source))
    row_bytes = _sized(extractor, first)
    shard_rows = shard_rows or max(1, min(SHARD_ROWS, SHARD_BYTES // max(1, row_bytes)))
    if progress:
        print(*source.told, _told(source, out, row_bytes, shard_rows), sep="\n", file=sys.stderr)
    settings = _settings(extractor, shard_rows, source.box_format)
    done = store.begin(out, settings, lambda: asdict(extractor.decide(first)))
    manifest = read_manifest(Path(out).expanduser())
    damaged = f"what the manifest of {out} says was decided is damaged"
    sharing = extractor.sharing = converted(damaged, manifest.told["decided"], Sharing)
    sizes = {shard.number: shard.batch_size for shard in manifest.shards}
    extractor.sizes = sizes
    with bar:
        runs = _undone(stream, shard_rows, done, out, bar.update)
        if engine == "local":
            run_here(extractor, runs, Path(out))
        else:
            del named, extractor  # of a model given by name: the workers have their own
            given = vlm if isinstance(vlm, VLM) else (str(vlm), load_kwargs)
            run_on_ray(
                *(given, recipe, runs, Path(out), cluster or Cluster()),
                strict=strict,
                tick=bar.update,
                sharing=sharing,
                sizes=sizes,
            )
    store.finish(out)
    features = Features(out)
    if not len(features):
        warnings.warn(f"every sample failed; the reasons are in {Path(out) / 'errors.parquet'}", stacklevel=2)
    return features


def _undone(
    samples: Iterable[Sample], rows: int, done: Mapping[int, str], out: str | Path, tick: Any
) -> Iterator[tuple[int, list[Sample]]]:
    """Cut the samples into shards and leave out those that are there.

    A shard ends after ``rows`` samples, but never between the questions about one picture that follow each other.

    Raises:
        BadInput: a shard that is there was made of other samples.
    """
    number = 0
    for number, run in enumerate(_cut(samples, rows)):
        if number not in done:
            yield number, run
        elif done[number] != digest(run):
            raise BadInput(
                f"shard {number} of {out} was made of other samples than rows {run[0].row} to {run[-1].row} are now; "
                "give the data set that it was begun with, or another folder"
            )
        else:
            tick(len(run))
    if done and max(done) > number:
        raise BadInput(f"{out} has {max(done) + 1} shards, this data set gives {number + 1}; give another folder")


def _cut(samples: Iterable[Sample], rows: int) -> Iterator[list[Sample]]:
    run: list[Sample] = []
    for sample in samples:
        if len(run) >= rows and (sample.picture != run[-1].picture or not sample.picture):
            yield run
            run = []
        run.append(sample)
    if run:
        yield run


def _first(samples: Iterator[Sample]) -> tuple[list[Sample], Iterator[Sample]]:
    """The first samples of a source, and all of them."""
    first = list(islice(samples, LOOKED_AT))
    return first, chain(first, samples)


def _sized(extractor: Extractor, first: Sequence[Sample]) -> int:
    """About how many bytes a row takes, by the first sample that can be asked; 0 where none can."""
    sound = [sample for sample in first if sample.fault is None]
    needs = extractor.wanted.needs("image_in_mask") and not any(
        sample.mask is not None or sample.boxes for sample in sound
    )
    if needs and (column := next((sample.unstated for sample in sound if sample.unstated), None)):
        raise unstated(column)
    return next((size for sample in sound if (size := _row_bytes(extractor, sample))), 0)


def _row_bytes(extractor: Extractor, sample: Sample) -> int:
    """Bytes of one sample's features; 0 where it cannot be asked."""
    vlm, wanted = extractor.vlm, extractor.wanted
    try:
        places = wanted.needs("image_in_mask")
        batch = batch_of(vlm, [[sample]], places=places, asking=extractor.recipe.asking)
        chosen = choose(vlm, wanted, batch)
    except OF_A_SAMPLE:
        return 0
    total = 0
    for place in wanted.tokens:
        tokens = len((chosen.positions[0] or {}).get(place.name, ())) or 1
        rows = tokens if place.ragged else 1
        total += rows * len(wanted.keys(place)) * vlm.anatomy.width
    if wanted.vision and vlm.anatomy.vision is not None:
        config = vlm.anatomy.vision.owner.config
        width = int(getattr(config, "hidden_size", 0) or vlm.anatomy.width)
        tokens = max(1, len(batch.packs[0].visual))
        total += sum(1 if place.mean else tokens for place in wanted.patches) * len(wanted.vision) * width
    return total * extractor.dtype.itemsize


def _told(source: Samples, out: str | Path, row_bytes: int, shard_rows: int) -> str:
    """What the run will need, before it starts."""
    folder = Path(out).expanduser().absolute()
    folder = next(part for part in (folder, *folder.parents) if part.exists())
    free = shutil.disk_usage(folder).free
    if source.count is None:
        each = in_units(row_bytes)
        return f"{source.name}: about {each} a sample, {shard_rows:,} samples a shard; {in_units(free)} are free"
    need, shards = row_bytes * source.count, -(-source.count // shard_rows)
    return (
        f"{source.name}: {source.count:,} samples, about {in_units(row_bytes)} each, {in_units(need)} in {shards:,} "
        f"shard{'s' * (shards != 1)}; {in_units(free)} are free{'; that is not enough' * (need > free)}"
    )


def _settings(extractor: Extractor, shard_rows: int, box_format: str | None) -> dict[str, Any]:
    """All that decides what the numbers are."""
    vlm = extractor.vlm
    settled = ("confidence", "image_attention", "max_new_tokens", "batch_size", "pack")
    return {
        "model": model_of(vlm.anatomy, vlm.model, in_full=True),
        "processor": {"class": type(vlm.processor).__name__, "sha256": processor_of(vlm.processor, in_full=True)},
        "prompt": _prompt(vlm, extractor.recipe.asking),
        **{name: value for name, value in asdict(extractor.recipe.asking).items() if value},
        **({"box_format": box_format} if box_format is not None else {}),
        "layers": extractor.wanted.names,
        "positions": [place.name for place in (*extractor.wanted.tokens, *extractor.wanted.patches)],
        "dtype": str(extractor.dtype).removeprefix("torch."),
        **{name: getattr(extractor.recipe, name) for name in settled},
        "shard_rows": shard_rows,
        **({"interventions": list(under)} if (under := in_force(vlm.anatomy)) else {}),
        "conventions": CONVENTIONS,
        "versions": {
            "llava_probe": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        },
    }


def _prompt(vlm: VLM, asking: AskingSettings) -> str | None:
    """What a question about one picture becomes; None where the model has no chat template."""
    try:
        return pose(vlm.processor, Image.new("RGB", (8, 8)), "{question}", **asking.of_template).prompt
    except ProbeError:
        return None


def _plainly(name: str, given: Any) -> dict[str, Any] | None:
    """Settings as a manifest holds them."""
    try:
        if given is None or isinstance(given, Mapping):
            return None if given is None else dict(json.loads(json.dumps(dict(given))))
    except (TypeError, ValueError, RecursionError):
        pass
    raise BadInput(f"{name}= takes a dict of texts, numbers and lists, which a manifest can hold; got {given!r:.120}")
