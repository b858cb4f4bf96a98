"""Which tokens of each sample a position means, and from the rows of one pass to the tensors of a store.

Samples that share a picture share its visual tokens' rows too: a ragged position is one block of values and, for each
sample, the span of it that is the sample's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_probe.errors import BadInput, NotANumber, OutOfRange, ProbeError, shortened
from llava_probe.features.packs import Batch, Branch, Pack
from llava_probe.features.passes import ActivationChoice, Activations, by_block
from llava_probe.features.places import FeatureChoice, FeaturePosition
from llava_probe.features.samples import Sample
from llava_probe.model import VLM
from llava_probe.trace.tokens import find, tokens_of

TokenPlaces = tuple[int, ...]


@dataclass(frozen=True)
class Gathered:
    """Samples of one or several passes, ready for a shard.

    Attributes:
        samples: those that have rows.
        tensors: by name; the first axis is the samples, or the values of a ragged position.
        spans: of each ragged position, [samples, 2] start and stop among its values.
        positions: of each ragged position, [values] places in the sequence.
        columns: what the index says of each sample besides what it carries.
    """

    samples: tuple[Sample, ...]
    tensors: Mapping[str, Tensor]
    spans: Mapping[str, Tensor]
    positions: Mapping[str, Tensor]
    columns: tuple[Mapping[str, Any], ...]


@dataclass
class Chosen:
    """The tokens of a batch that are read: positions by place for each sample, or why there are none.

    Attributes:
        positions: for each branch, in order, its positions by the place's name; None where it failed.
        failures: the reason for each sample that failed.
        columns: for each pack, the columns of the sequence that hold them.
    """

    positions: list[dict[str, TokenPlaces] | None] = field(default_factory=list)
    failures: list[tuple[Sample, str]] = field(default_factory=list)
    columns: list[list[int]] = field(default_factory=list)


def choose(vlm: VLM, wanted: FeatureChoice, batch: Batch) -> Chosen:
    """Find the wanted tokens of each sample."""
    chosen = Chosen()
    for pack in batch.packs:
        columns: set[int] = set()
        for branch in pack.branches:
            try:
                found = {place.name: _positions(vlm, place, pack, branch) for place in wanted.tokens}
            except ProbeError as error:
                chosen.failures.append((branch.sample, str(error)))
                chosen.positions.append(None)
                continue
            chosen.positions.append(found)
            columns.update(branch.place(position) for positions in found.values() for position in positions)
        chosen.columns.append(sorted(columns))
    return chosen


def gather(
    wanted: FeatureChoice,
    batch: Batch,
    chosen: Chosen,
    out: Activations,
    dtype: torch.dtype,
    columns: Sequence[Mapping[str, Any]],
) -> Gathered:
    """Put the rows of one pass together by sample and position.

    Args:
        wanted: layers and positions.
        batch, chosen, out: what was asked, which tokens of it, and their rows.
        dtype: to store in.
        columns: for each branch of the batch what the index says of it.
    """
    kept = [number for number, positions in enumerate(chosen.positions) if positions is not None]
    owners = [(number, pack, branch) for number, pack in enumerate(batch.packs) for branch in pack.branches]
    rows = _rows(chosen.columns)
    tensors: dict[str, Tensor] = {}
    spans: dict[str, Tensor] = {}
    positions: dict[str, Tensor] = {}
    for place in wanted.tokens:
        blocks: dict[tuple[int, TokenPlaces], list[int]] = {}
        owns = []
        for number in kept:
            owner, pack, branch = owners[number]
            own = (chosen.positions[number] or {})[place.name]
            shared = not own or own[-1] < pack.prefix
            key = (owner if shared else -1 - number, own)
            blocks[key] = [rows[owner, branch.place(position)] for position in own]
            owns.append(key)
        order = {key: ordinal for ordinal, key in enumerate(blocks)}
        flat = torch.tensor([row for block in blocks.values() for row in block], dtype=torch.long)
        lengths = torch.tensor([len(block) for block in blocks.values()])
        pick = torch.tensor([order[key] for key in owns], dtype=torch.long)
        for name, layer in wanted.keys(place):
            states = out.states[layer]
            values = states[flat.to(states.device)]
            if place.mean:
                values = _means(values, lengths)
            tensors[name] = _stored(values if place.ragged else values[pick.to(values.device)], dtype, name)
        if place.ragged:
            ends = lengths.cumsum(0)
            spans[place.name] = torch.stack([ends - lengths, ends], dim=1)[pick]
            positions[place.name] = torch.tensor([at for _, own in blocks for at in own], dtype=torch.int32)
    _patches(wanted, [owners[number][0] for number in kept], out, dtype, tensors, spans)
    if out.looks:
        tensors["image_attention/last_prompt"] = _stored(by_block(out.looks)[kept], dtype, "image_attention")
    samples = tuple(owners[number][2].sample for number in kept)
    return Gathered(samples, tensors, spans, positions, tuple(columns[number] for number in kept))


def joined(parts: Sequence[Gathered]) -> tuple[list[Sample], dict[str, Tensor], list[Mapping[str, Any]]]:
    """The samples of several passes in the order of their rows, with all tensors of a shard.

    Returns:
        Samples, tensors as ``store.write_shard`` takes them, and columns of the index.
    """
    samples = [sample for part in parts for sample in part.samples]
    order = sorted(range(len(samples)), key=lambda number: samples[number].row)
    columns = [column for part in parts for column in part.columns]
    index = torch.tensor(order, dtype=torch.long)
    tensors: dict[str, Tensor] = {}
    for name in parts[0].tensors if parts else ():
        whole = torch.cat([part.tensors[name] for part in parts])
        ragged = name.partition("/")[2] in parts[0].spans
        tensors[name] = whole if ragged else whole[index]
    for name in parts[0].spans if parts else ():
        lengths = [len(next(t for key, t in part.tensors.items() if key.endswith(f"/{name}"))) for part in parts]
        starts = np.cumsum([0, *lengths[:-1]]).tolist()
        shifted = [part.spans[name] + start for part, start in zip(parts, starts, strict=True)]
        tensors[f"spans/{name}"] = torch.cat(shifted)[index]
        if name in parts[0].positions:
            tensors[f"positions/{name}"] = torch.cat([part.positions[name] for part in parts])
    return [samples[number] for number in order], tensors, [columns[number] for number in order]


def reading_of(
    wanted: FeatureChoice, batch: Batch, chosen: Chosen, *, confidence: bool, looking: bool
) -> ActivationChoice:
    """What the pass over a batch has to read."""
    last = [[branch.place(len(branch.prompt) - 1) for branch in pack.branches] for pack in batch.packs]
    predicting: set[int] = set()
    if confidence:
        predicting = {column for pack in batch.packs for branch in pack.branches for column in predicted(branch)}
    return ActivationChoice(
        wanted.states, chosen.columns, wanted.vision, last if looking else None, tuple(sorted(predicting))
    )


def predicted(branch: Branch) -> list[int]:
    """The columns that predict each token of the answer; where there is none, the one that predicts the first."""
    first = len(branch.prompt) - 1
    return [branch.place(first + step) for step in range(max(1, len(branch.answer)))]


def _rows(columns: Sequence[Sequence[int]]) -> dict[tuple[int, int], int]:
    """Where each pack's column is among the rows that a pass kept."""
    pairs = [(number, column) for number, kept in enumerate(columns) for column in kept]
    return {pair: row for row, pair in enumerate(pairs)}


def _means(values: Tensor, lengths: Tensor) -> Tensor:
    """The mean of each block of rows, summed in float32."""
    return torch.stack([block.float().mean(0) for block in values.split(lengths.tolist())])


def _patches(
    wanted: FeatureChoice,
    owners: Sequence[int],
    out: Activations,
    dtype: torch.dtype,
    tensors: dict[str, Tensor],
    spans: dict[str, Tensor],
) -> None:
    """The vision tower's rows: one block a picture, shared by its questions."""
    if not wanted.vision:
        return
    seen = sorted(set(owners))
    pick = torch.tensor([seen.index(owner) for owner in owners], dtype=torch.long)
    for place in wanted.patches:
        for ordinal, layer in enumerate(wanted.vision):
            blocks = [out.vision[owner][:, ordinal].flatten(0, 1) for owner in seen]
            means = [block.float().mean(0) for block in blocks] if place.mean else []
            values = torch.stack(means)[pick] if place.mean else torch.cat(blocks)
            tensors[f"vision_{layer}/{place.name}"] = _stored(values, dtype, f"vision_{layer}")
        if not place.mean:
            lengths = torch.tensor([out.vision[owner].shape[0] * out.vision[owner].shape[2] for owner in seen])
            ends = lengths.cumsum(0)
            spans[place.name] = torch.stack([ends - lengths, ends], dim=1)[pick]


def _stored(values: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """As it is kept.

    Raises:
        NotANumber: it is not finite, or not in that precision.
    """
    kept = values.to(dtype).cpu()
    if not bool(kept.isfinite().all()):
        there = "holds NaN or infinity; float16 overflows in many of these models: load with dtype='bfloat16'"
        if bool(values.isfinite().all()):
            there = f"is beyond what {str(dtype).removeprefix('torch.')} holds; store_dtype='bfloat16' holds it"
        raise NotANumber(f"{name.partition('/')[0]} {there}")
    return kept


def _positions(vlm: VLM, place: FeaturePosition, pack: Pack, branch: Branch) -> TokenPlaces:
    """The tokens of one sample that a place means, in its own sequence.

    Raises:
        BadInput: there are none.
    """
    prompt = len(branch.prompt)
    answer = range(prompt, prompt + max(0, len(branch.answer) - 1))
    match place.kind:
        case "last_prompt":
            return (prompt - 1,)
        case "number":
            if not -prompt <= place.number < prompt:
                raise OutOfRange(f"position {place.number} is not in a prompt of {prompt} tokens")
            return (place.number % prompt,)
        case "prompt":
            return tuple(range(prompt))
        case "text":
            visual = set(pack.visual)
            return tuple(position for position in range(prompt) if position not in visual)
        case "predicting":
            return (prompt - 1, *answer)
        case "answer":
            if not answer:
                missing = "its answer has no words" if branch.answer else "it has no answer"
                raise BadInput(f"no position 'answer': {missing}; give a column answer, or max_new_tokens=")
            return tuple(answer)
        case "image":
            if not pack.visual:
                raise BadInput("no position 'image': the prompt has no visual tokens")
            return pack.visual
        case "image_in_mask":
            return _in_mask(pack, branch.sample)
        case "at":
            return _listed(branch)
    return _of_word(vlm, place, branch)


def _of_word(vlm: VLM, place: FeaturePosition, branch: Branch) -> TokenPlaces:
    word = place.word if place.word is not None else branch.sample.columns.get("word")
    if not isinstance(word, str) or not word.strip():
        raise BadInput("no position 'word': the sample has no column word; write word:stop sign for a word of all")
    ids = [*branch.prompt, *branch.answer[:-1]]
    tokens = tokens_of(vlm.processor.tokenizer, ids, len(branch.prompt), vlm.visual_ids)
    found = find(tokens, word, role="generated") or find(tokens, word)
    if not found:
        raise BadInput(f"no position {place.name!r}: {word!r} is neither in the answer nor in the prompt")
    return found


def _listed(branch: Branch) -> TokenPlaces:
    """The positions that the sample's own column ``at`` lists, in order, each once."""
    at, fed = branch.sample.columns.get("at"), len(branch.prompt) + max(0, len(branch.answer) - 1)
    if not isinstance(at, list) or not at or any(type(position) is not int for position in at):
        raise BadInput(f"no position 'at': the sample's column at lists whole numbers; got {shortened(repr(at))}")
    if wrong := [position for position in at if not -fed <= position < fed]:
        raise OutOfRange(f"position {wrong[0]} of the column at is not in a sequence of {fed} tokens")
    return tuple(sorted({position % fed for position in at}))


def _in_mask(pack: Pack, sample: Sample) -> TokenPlaces:
    """The visual tokens that the sample's mask or boxes cover by half or more; where none is, the one covered most."""
    layouts, unknown = pack.places.layouts, pack.places.unknown
    if len(layouts) != 1:
        why = "it has several pictures" if layouts else "where its visual tokens lie is not known"
        raise BadInput(f"no position 'image_in_mask': {why}{f' ({unknown})' if unknown else ''}")
    layout = layouts[0]
    try:
        mask = sample.placed(layout.size)
    except BadInput as error:
        raise BadInput(f"no position 'image_in_mask': {error}") from None
    found = layout.tokens_in(mask)
    if not len(found):
        shares = layout.to_tokens(mask)
        if not shares.max() > 0:
            raise BadInput("no position 'image_in_mask': the mask covers no visual token")
        found = layout.positions[[int(shares.argmax())]]
    return tuple(int(position) for position in found)
