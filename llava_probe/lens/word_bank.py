"""A bank of words from somebody's own sentences, each read once and without a picture, by ``lp.extract``.

    bank = lp.word_bank(vlm, "captions.txt", "bank/")
    bank = lp.word_bank("llava-hf/llava-1.5-7b-hf", "captions.jsonl", "bank/", column="caption", dtype="bfloat16")

The published banks measure 15 to 32 GB (LatentLens, arXiv 2602.00462). What can be found in a picture is in the words
of its domain, so a few thousand contexts do: 8 kB a layer for each in a 7B model. The folder is a feature store.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_probe.border import Count, checked
from llava_probe.errors import BadInput, BadModel
from llava_probe.features.extract import extract
from llava_probe.inside.anatomy import Anatomy
from llava_probe.lens.bank import AT, WordBank
from llava_probe.lens.contexts import ChosenWords, choose_words
from llava_probe.lens.sentences import read_sentences
from llava_probe.loading import model_given
from llava_probe.model import VLM

#: Which layers of the text are kept, as shares of the depth: LatentLens's of a model with 32. The last two are added.
DEPTHS = (1 / 32, 2 / 32, 4 / 32, 8 / 32, 16 / 32, 24 / 32)


@checked
def word_bank(
    vlm: VLM | str | Path,
    sentences: Any,
    out: str | Path,
    layers: int | Sequence[int] | None = None,
    *,
    column: str | None = None,
    contexts: Count = 50,
    most: Count = 5000,
    batch_size: Count | None = None,
    progress: bool = False,
    **load_kwargs: Any,
) -> WordBank:
    """Keep the states of each word of some sentences, read without a picture; resumably, and nothing twice.

    Args:
        vlm: the model, or its name or folder for ``lp.load``.
        sentences: a text file with one on each line, a list of strings, or a data set with a column of them.
        out: folder of the bank; the same call again goes on there, or finds it done.
        layers: of the text, by transformers' index; about eight over the whole depth when None.
        column: of a data set, where it goes by none of sentence, text, caption, captions, prompt and answer.
        contexts: of one word at most, the first ones; those that begin alike are one.
        most: contexts in all. Where there are more, every word keeps its first before any keeps another.
        batch_size: sentences a pass; 8, on a GPU 32.
        progress: show a bar.
        **load_kwargs: passed to ``lp.load`` where ``vlm`` is a name.

    Returns:
        The bank: contexts x layers states in the model's own dtype; 8 kB each for a 7B model.

    Raises:
        BadInput: no sentence, none with a word behind its first two tokens, or the folder holds another bank.
        OutOfRange: a layer that the model does not have.
        BadModel: the model reads no words without a picture, or its layers carry several streams.
        BadFile: the folder is damaged or cannot be written; what was finished is kept.
    """
    named = model_given(vlm, load_kwargs)
    chosen = spread(named.anatomy) if layers is None else [layers] if isinstance(layers, int) else list(layers)
    made = _planned(named, read_sentences(sentences, column), contexts, most)
    features = extract(
        named,
        [sentence.row for sentence in made.sentences],
        out,
        layers=chosen,
        positions=AT,
        columns={"image": None},
        batch_size=batch_size,
        progress=progress,
    )
    if not len(features):
        raise BadInput(f"the model read none of the sentences: {features.errors()['reason'][0].as_py()}")
    if features[features.keys()[0]].values.ndim != 2:  # type: ignore[union-attr]
        raise BadModel(f"the layers of {type(named.anatomy.model).__name__} carry several streams, and no single state")
    return WordBank(out)


def spread(anatomy: Anatomy) -> list[int]:
    """About eight layers over the depth of a model: dense where words become what they mean, and two before the end."""
    depth = anatomy.layers
    found = {max(1, int(share * depth + 0.5)) for share in DEPTHS} | {depth - 2, depth - 1}
    return sorted(layer for layer in found if 1 <= layer < depth) or [depth]


def _planned(vlm: VLM, sentences: Iterator[str], each: int, most: int) -> ChosenWords:
    made = choose_words(vlm, sentences, each, most)
    if not made.read:
        raise BadInput("there is no sentence to make a bank of")
    if made.refusals == made.read:
        raise BadInput(f"none of {made.read:,} sentences can be read, the first: {made.refused}")
    if not made.sentences:
        raise BadInput(f"{made.read:,} sentences and no word behind the first two tokens of any; give longer ones")
    if made.refusals:
        told = f"{made.refusals:,} of {made.read:,} sentences were left out, the first: {made.refused}"
        warnings.warn(told, stacklevel=4)
    if made.beyond:
        warnings.warn(f"{made.beyond:,} contexts beyond most={most:,} were left out", stacklevel=4)
    return made
