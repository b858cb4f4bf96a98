"""Fit a tuned lens to a data set, resumably.

    tuned = lp.fit_lens(vlm, "questions.jsonl", "tuned/")
    print(tuned.report)

What each layer would say is drawn towards what the model says at last, by the divergence KL(last ‖ lens), for words and
visual tokens apart. Pictures that are held out tell how near each layer comes, beside the logit lens. At a visual token
the model was never taught to say anything, so its own last word is all that a lens can be drawn to there: a small
divergence says that the layers agree, not that they are right.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import transformers
from tqdm import tqdm

from llava_probe import __version__
from llava_probe.asking.identity import differences, model_of, processor_of
from llava_probe.border import Count, Portion, Positive, Seed, checked
from llava_probe.errors import BadInput, OutOfRange
from llava_probe.features.extractor import LOOKED_AT
from llava_probe.features.packs import AskingSettings
from llava_probe.features.samples import Sample, digest, read_samples
from llava_probe.features.trial import sharing_of
from llava_probe.inside.passes import in_force
from llava_probe.lens.fitting import Fitting
from llava_probe.lens.measuring import figures_of
from llava_probe.lens.sampled import Passes
from llava_probe.lens.tuned import (
    RECORD_FORMAT,
    TUNED_LENS,
    TunedLens,
    TunedRecord,
    layer_file,
    read_record,
    write_layer,
)
from llava_probe.loading import model_given
from llava_probe.model import VLM
from llava_probe.stored import made_folder, write_text
from llava_probe.trace.kept import kept_columns

#: Questions a step: thousands of positions, whose gradient is steady enough.
SAMPLES_A_STEP = 8

#: Why samples are read each by itself.
_APART = "a lens is fitted to each question with its picture"


@checked
def fit_lens(
    vlm: VLM | str | Path,
    samples: Any,
    out: str | Path,
    *,
    layers: int | Sequence[int] | None = None,
    question: str | None = None,
    prompt: str | None = None,
    columns: Mapping[str, Any] | None = None,
    images: str | Path | None = None,
    split: str | None = None,
    answers: Any = None,
    system: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    processor_kwargs: Mapping[str, Any] | None = None,
    held_out: Portion = 0.2,
    epochs: Count = 1,
    steps: Count | None = None,
    batch_size: Count = SAMPLES_A_STEP,
    tokens: Count | None = None,
    lr: Positive = 1e-3,
    seed: Seed = 0,
    progress: bool = False,
    **load_kwargs: Any,
) -> TunedLens:
    """Fit an affine translator to each layer, for words and for visual tokens.

    The same call again goes on where it was broken off, and ends with the numbers of an undisturbed run.

    Args:
        vlm: the model, or its name or folder for ``lp.load``.
        samples: as ``lp.extract`` takes them; an answer is read after its question.
        out: the folder of the lens; one that holds part of the same run is finished.
        layers: hidden states that get a translator, from 0, the embedding, negative from the end; all but the last,
            which is -1, when None.
        question, prompt, columns, images, split, answers: as ``lp.extract`` takes them.
        system, template_kwargs, processor_kwargs: how each is asked, likewise.
        held_out: share of the pictures that are only measured.
        epochs: how often each sample is seen; ``steps`` instead.
        batch_size: samples a step.
        tokens: positions of each kind that are drawn of a sample; all when None.
        lr: of Adam, falling to nothing in a straight line.
        seed: of the order, of what is held out, and of the positions drawn.
        progress: show a bar.
        **load_kwargs: passed to ``lp.load`` where ``vlm`` is a name.

    Returns:
        The lens, with its held-out figures in ``report``.

    Raises:
        BadInput: no sample can be read, an intervention is in force, or another run is in the folder.
        OutOfRange: a layer that is not there, or the last, which needs no translator.
        BadModel: the model's layers carry several streams, or it has no output embedding.
        BadFile: the folder is damaged or cannot be written.
    """
    named = model_given(vlm, load_kwargs)
    numbers = _fittable(named, layers)
    asking = AskingSettings(system, template_kwargs, processor_kwargs)
    ways: dict[str, Any] = {"question": question, "prompt": prompt, "columns": columns, "images": images}
    everything = list(read_samples(samples, **ways, split=split, answers=answers, words_alone=True))
    sound = [sample for sample in everything if sample.fault is None]
    if not sound:
        raise BadInput((everything[0].fault if everything else None) or "the data has no rows")
    fitted, apart = split_by_picture(sound, held_out, seed)
    sharing = sharing_of(named, fitted[:LOOKED_AT], asking, unpacked=_APART, batch_size=batch_size)
    total = steps or epochs * -(-len(fitted) // batch_size)
    way = {"steps": total, "batch_size": batch_size, "tokens": tokens, "lr": lr, "seed": seed, "held_out": held_out}
    settings = {
        **_of_model(named),
        "data": digest(sound),
        "layers": numbers,
        **{name: value for name, value in asdict(asking).items() if value},
        **way,
        "unbatched": sharing.unbatched,
    }
    record = TunedRecord(format=RECORD_FORMAT, settings=_as_read(settings), layers=numbers, width=named.anatomy.width)
    folder = made_folder("tuned lens", out)
    if begin_fit(folder, record):
        return TunedLens.load(folder)
    passes = Passes(named, asking, sharing, numbers, tokens, seed)
    fitting = Fitting(passes, folder, lr, total)
    with tqdm(total=total, unit="step", disable=None if progress else True) as bar:
        losses = fitting.run(fitted, steps_over(len(fitted), batch_size, total, seed), bar)
    translators = fitting.translators(_stored_in(named.model.dtype))
    for layer, translator in zip(numbers, translators, strict=True):
        write_layer(layer_file(folder, layer), *translator)
    report, pictures = figures_of(passes, translators, apart, batch_size, seed)
    faults = [f"row {sample.row}: {sample.fault}" for sample in everything if sample.fault is not None]
    left_out = [*faults, *passes.left_out]
    told: dict[str, Any] = {"report": report, "pictures": pictures, "losses": losses, "left_out": left_out}
    width = translators[0][1].shape[1]
    write_record(folder, msgspec.structs.replace(record, width=width, finished=True, **told))
    fitting.clean()
    if left_out:
        warnings.warn(f"{len(left_out):,} samples were left out, the first: {left_out[0]}", stacklevel=2)
    return TunedLens.load(folder)


def _fittable(vlm: VLM, layers: int | Sequence[int] | None) -> list[int]:
    """The hidden states that get a translator, in order.

    Raises:
        BadInput: none, or a model that no lens can be fitted to as it is.
        OutOfRange: one that is not there, or the last.
    """
    if in_force(vlm.anatomy):
        raise BadInput("an intervention is in force, so the lens would be of another model than it is bound to")
    if vlm.model.dtype == torch.float16:
        raise BadInput("the model is in float16, in which slopes vanish; load it with dtype='bfloat16' or 'float32'")
    last = vlm.anatomy.layers
    there = range(last) if layers is None else layers
    numbers = sorted({*kept_columns(there, tuple(range(last + 1)), last + 1, "hidden state", "layers")})
    if last in numbers:
        raise OutOfRange(f"hidden state {last} is the last, whose word is the model's own: it needs no translator")
    if not numbers:
        raise BadInput("layers= names no layer; leave it out for all but the last")
    return numbers


def _of_model(vlm: VLM) -> dict[str, Any]:
    """Which model is fitted, and with what."""
    return {
        "model": model_of(vlm.anatomy, vlm.model),
        "processor": processor_of(vlm.processor),
        "versions": {
            "llava_probe": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _as_read(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a file."""
    return dict(json.loads(json.dumps(settings)))


def _stored_in(dtype: torch.dtype) -> torch.dtype:
    """Translators are as exact as the model's own numbers."""
    return dtype if dtype == torch.bfloat16 else torch.float32


def split_by_picture(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """What is fitted and what is held out: all samples about a picture stay on one side.

    Raises:
        BadInput: there is one picture, and something is to be held out.
    """
    keys = [sample.group for sample in samples]
    pictures = sorted(set(keys))
    count = round(share * len(pictures)) or int(share > 0)
    if count >= len(pictures):
        raise BadInput(
            f"held_out={share:g} of {len(pictures)} pictures leaves none to fit; give more pictures, or held_out=0"
        )
    order = np.random.default_rng(seed).permutation(len(pictures))
    held = {pictures[number] for number in order[:count]}
    return (
        [sample for sample, key in zip(samples, keys, strict=True) if key not in held],
        [sample for sample, key in zip(samples, keys, strict=True) if key in held],
    )


def steps_over(samples: int, size: int, steps: int, seed: int) -> list[list[int]]:
    """Which samples each step sees, by number: epoch after epoch, each in an order of its own."""
    found: list[list[int]] = []
    for epoch in range(-(-steps * size // samples)):
        order = np.random.default_rng((seed, epoch)).permutation(samples).tolist()
        found += [order[start : start + size] for start in range(0, samples, size)]
    return found[:steps]


def begin_fit(folder: Path, record: TunedRecord) -> bool:
    """Begin a run in a folder or go on with the one there; whether it was finished.

    Raises:
        BadInput: another run is there, or something else.
        BadFile: the record is damaged, or cannot be written.
    """
    there = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if TUNED_LENS not in there:
        if there:
            raise BadInput(f"{folder} holds other things ({', '.join(there[:4])}); choose an empty folder")
        write_record(folder, record)
        return False
    held = read_record(folder)
    if others := differences(held.settings, record.settings):
        raise BadInput(f"{folder} holds another run: {'; '.join(others)}; give its settings, or choose an empty folder")
    return held.finished


def write_record(folder: Path, record: TunedRecord) -> None:
    """Write ``tuned_lens.json``, whole or not at all."""
    write_text("tuned lens", folder / TUNED_LENS, json.dumps(msgspec.to_builtins(record), indent=1))
