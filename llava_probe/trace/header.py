"""What the header of a trace file says, by type, and whether the tensors beside it are as it says.

A header describes one trace and, the same way, each of its alternatives. Its types hold all that a file may say; what
types cannot say (as many tokens as rows, places inside the prompt) is checked once, here, so that whatever loads can
be read by every analyzer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import Meta, field
from torch import Tensor

from llava_probe.described import Natural, Stored, Whole, like
from llava_probe.errors import BadFile
from llava_probe.layout import ImageLayout
from llava_probe.pictures.images import MAX_PIXELS
from llava_probe.stored import converted
from llava_probe.trace.capture import Capture
from llava_probe.trace.distributions import TopK
from llava_probe.trace.sizes import Sizes
from llava_probe.whole_file import Axes, Contents, check_tensors

#: Records that alternatives share with the trace that they are alternatives of.
SHARED = ("vision_hidden", "vision_attention")
LAYOUT_ARRAYS = ("positions", "boxes", "tiles")

#: Blocks, heads, ids or tokens of a model; and pixels that a padded box may lie from its photograph.
_MOST, _FARTHEST = 2**31 - 1, 1e7

_Side = Annotated[int, Meta(ge=1, le=MAX_PIXELS)]
_Some = Annotated[int, Meta(ge=1, le=_MOST)]
_Few = Annotated[int, Meta(ge=0, le=_MOST)]
_StoredCapture: Any = like(Capture, "StoredCapture")
_StoredSizes: Any = like(Sizes, "StoredSizes", layers=_Some, heads=_Some, vocabulary=_Some, width=_Some | None)


class StoredSpellings(Stored, frozen=True):
    """``Spellings``."""

    texts: dict[Whole, str]
    special: tuple[Whole, ...]
    whole: bool


class StoredLayout(Stored, frozen=True):
    """An ``ImageLayout`` without its arrays."""

    size: tuple[_Side, _Side]
    grid: tuple[_Some, _Some] | None
    frames: tuple[Natural, ...]


class StoredRequest(Stored, frozen=True):
    """A ``Request``; ``inputs`` are names of tensors. The first format ends with the capture."""

    prompt: str | None
    messages: Any
    inputs: tuple[str, ...] | None
    videos: tuple[_Few, ...]
    answer: tuple[Whole, ...] | None
    generate: dict[str, Any]
    processor: dict[str, Any]
    seed: int | None
    batch: _Few
    sequence: _Few
    capture: _StoredCapture
    question: str | None = None
    system: str | None = None
    template: dict[str, Any] = field(default_factory=dict)


class StoredTrace(Stored, frozen=True):
    """A ``Trace``. In the first format sizes stand among the provenance, and special tokens end an answer."""

    answer: str
    prompt_length: _Some
    sequence_score: float | None
    provenance: dict[str, Any]
    hidden_layers: tuple[_Few, ...]
    hidden_positions: tuple[_Few, ...]
    attention_layers: tuple[_Few, ...]
    attention_heads: tuple[_Few, ...]
    attention_positions: tuple[_Few, ...]
    tokens: tuple[tuple[Whole, str, Literal["special", "image", "prompt", "generated"]], ...]
    images: _Few
    layouts: tuple[StoredLayout, ...]
    request: StoredRequest
    alternatives: tuple[StoredTrace, ...]
    sizes: _StoredSizes | None = None
    ends: tuple[Whole, ...] | None = None
    interventions: tuple[dict[str, Any], ...] = ()

    @property
    def generated(self) -> int:
        """T."""
        return len(self.tokens) - self.prompt_length


def stored_sizes(trace: StoredTrace, source: Path) -> Sizes:
    """The model's sizes; the first format had them, but for the width, among the provenance.

    Raises:
        BadFile: they are not there.
    """
    sizes = trace.sizes
    if sizes is None:
        names = {"layers": "layer_count", "heads": "head_count", "vocabulary": "vocabulary", "dtype": "dtype"}
        plain = {name: trace.provenance.get(key) for name, key in names.items()}
        plain |= {"width": None, "other_layers": trace.provenance.get("other_layers") or {}}
        sizes = converted(f"what {source} says of the model's sizes is damaged", plain, _StoredSizes)
    if not isinstance(getattr(torch, sizes.dtype, None), torch.dtype):
        raise BadFile(f"{source} is damaged: torch has no dtype {sizes.dtype!r}")
    return Sizes(sizes.layers, sizes.heads, sizes.vocabulary, sizes.width, sizes.dtype, sizes.other_layers)


def check_trace(held: Contents, trace: StoredTrace) -> None:
    """See that a header's parts fit each other and its tensors.

    Raises:
        BadFile: they do not; the sentence names the part.
    """
    expected: dict[str, Axes | None] = {"spellings": Axes("u", (None,))}
    expected |= {f"images/{number}": Axes("u", (None,)) for number in range(min(trace.images, len(held.tensors)))}
    for prefix, one in [("", trace), *_alternatives(trace)]:
        for wrong in _contradictions(one, trace, stored_sizes(one, held.source)):
            raise BadFile(f"{held.source} is damaged: {wrong}")
        expected |= _expected(prefix, one, stored_sizes(one, held.source), held.tensors)
    check_tensors(held.source, held.tensors, expected)
    for prefix, one in [("", trace), *_alternatives(trace)]:
        for wrong in _wrong_numbers(prefix, one, held.tensors):
            raise BadFile(f"{held.source} is damaged: {wrong}")


def _alternatives(trace: StoredTrace) -> list[tuple[str, StoredTrace]]:
    return [(f"alternatives/{number}/", other) for number, other in enumerate(trace.alternatives)]


def _contradictions(one: StoredTrace, whole: StoredTrace, sizes: Sizes) -> Iterator[str]:
    """What a header says that cannot be."""
    if one is not whole and one.alternatives:
        yield "an alternative has alternatives of its own"
    if one.generated < 1:
        yield f"its {len(one.tokens)} tokens are no prompt of {one.prompt_length} and an answer"
    roles = [role == "generated" for _, _, role in one.tokens]
    if any(roles[: one.prompt_length]) or not all(roles[one.prompt_length :]):
        yield f"its answer does not begin at token {one.prompt_length}, where its prompt ends"
    if one.images != whole.images:
        yield f"an alternative has {one.images} pictures, not {whole.images}"
    if one.layouts and len(one.layouts) != one.images:
        yield f"it has {one.images} pictures and layouts of {len(one.layouts)}"
    if sum(one.request.videos) > one.images:
        yield f"its videos have {sum(one.request.videos)} frames, and there are {one.images} pictures"
    if not all(isinstance(each.get("kind"), str) for each in one.interventions):
        yield "an intervention has no kind"
    fed = len(one.tokens) - 1
    for name, places in (("hidden", one.hidden_positions), ("attention", one.attention_positions)):
        yield from _not_rising(f"{name}_positions", places, fed)
        layers: Sequence[int] = getattr(one, f"{name}_layers")
        yield from _not_rising(f"{name}_layers", layers, sizes.layers + (name == "hidden"))
        if bool(layers) != bool(places):
            yield f"it has {name} layers without positions, or positions without layers"
    yield from _not_rising("attention_heads", one.attention_heads, sizes.heads)
    if bool(one.attention_heads) != bool(one.attention_layers):
        yield "it has attention layers without heads, or heads without layers"


def _not_rising(name: str, numbers: Sequence[int], below: int) -> Iterator[str]:
    if any(one >= other for one, other in pairwise(numbers)):
        yield f"its {name} do not rise"
    if numbers and numbers[-1] >= below:
        yield f"its {name} reach {numbers[-1]}, of 0 to {below - 1}"


def _expected(prefix: str, one: StoredTrace, sizes: Sizes, tensors: Mapping[str, Tensor]) -> Mapping[str, Axes | None]:
    """The tensors that this part of a header describes. Of what a ``Capture`` may leave out, those that are there."""
    expected: dict[str, Axes | None] = {f"{prefix}inputs/{name}": None for name in one.request.inputs or ()}
    for number in range(len(one.layouts)):
        count = len(tensors.get(f"{prefix}layouts/{number}/positions", torch.empty(0)).flatten())
        shapes = {"positions": Axes("i", (count,)), "tiles": Axes("i", (count,)), "boxes": Axes("f", (count, 4))}
        expected |= {f"{prefix}layouts/{number}/{name}": shapes[name] for name in LAYOUT_ARRAYS}
    steps = one.generated
    kept: dict[str, Axes] = {}
    for name in ("logits", "scores"):
        kept[name] = Axes("f", (steps, sizes.vocabulary))
        if any(f"{prefix}records/{name}.{part}" in tensors for part in TopK.__dataclass_fields__):
            parts = {"values": ("f", None), "ids": ("i", None), "rank": ("i",)}
            count = tensors.get(f"{prefix}records/{name}.values", torch.empty(0)).shape[-1:].numel()
            for part in TopK.__dataclass_fields__:
                kind, *columns = parts.get(part, ("f",))
                expected[f"{prefix}records/{name}.{part}"] = Axes(str(kind), (steps, *(count for _ in columns)))
    if not prefix:
        kept |= {"vision_hidden": Axes("f", (None, None), more=True)}
        kept |= {"vision_attention": Axes("f", (None, None), more=True)}
    expected |= {f"{prefix}records/{name}": axes for name, axes in kept.items() if f"{prefix}records/{name}" in tensors}
    if one.hidden_layers:
        rows = (len(one.hidden_positions), len(one.hidden_layers))
        expected[f"{prefix}records/hidden"] = Axes("f", (*rows, None), more=True)
    if one.attention_layers:
        fed = len(one.tokens) - 1
        keys = max(one.prompt_length, one.attention_positions[-1] + 1)  # of the answer only where its rows are kept
        given = tensors.get(f"{prefix}records/attention")
        keys = fed if given is not None and given.shape[-1:] == (fed,) else keys
        rows = (len(one.attention_positions), len(one.attention_layers))
        expected[f"{prefix}records/attention"] = Axes("f", (*rows, len(one.attention_heads), keys))
    return expected


def _wrong_numbers(prefix: str, one: StoredTrace, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """What the tensors hold that cannot be, their shapes being right."""
    for number, layout in enumerate(one.layouts):
        arrays = {name: tensors[f"{prefix}layouts/{number}/{name}"] for name in LAYOUT_ARRAYS}
        yield from wrong_layout(f"picture {number}", layout, arrays)
        if not bool((arrays["positions"] >= 0).all()) or len(arrays["positions"].unique()) < len(arrays["positions"]):
            yield f"the positions of the visual tokens of picture {number} are no different numbers from 0 on"
        if not bool((arrays["positions"] < one.prompt_length).all()):
            yield f"visual tokens of picture {number} lie outside the prompt of {one.prompt_length} tokens"
    taken = torch.tensor([token for token, _, _ in one.tokens[one.prompt_length :]])
    for name in ("logits", "scores"):
        start = f"{prefix}records/{name}"
        if start in tensors and not bool(((taken >= 0) & (taken < tensors[start].shape[1])).all()):
            yield f"its answer has tokens that its {name} do not have"
        if f"{start}.rank" in tensors:
            yield from _no_top(name, *(tensors[f"{start}.{part}"] for part in TopK.__dataclass_fields__), taken=taken)


def wrong_layout(picture: str, layout: StoredLayout, arrays: Mapping[str, Tensor]) -> Iterator[str]:
    """What the arrays of a layout hold that cannot be, their shapes being right; ``picture`` names it."""
    if not bool((arrays["boxes"].abs() < _FARTHEST).all()):
        yield f"the boxes of {picture} are no places on it"
    if not bool((arrays["tiles"] >= 0).all()):
        yield f"the tiles of {picture} are no numbers from 0 on"
    if layout.grid is not None and math.prod(layout.grid) != len(arrays["positions"]):
        yield f"the grid {list(layout.grid)} of {picture} is none of {len(arrays['positions'])} visual tokens"


def layout_of(layout: StoredLayout, arrays: Mapping[str, Tensor]) -> ImageLayout:
    """The layout that a file holds, its numbers in the width that indexing and geometry take."""
    positions, boxes, tiles = (arrays[name] for name in LAYOUT_ARRAYS)
    places = {"positions": positions.long().numpy(), "tiles": tiles.long().numpy()}
    return ImageLayout(layout.size, **places, boxes=boxes.double().numpy(), grid=layout.grid, frames=layout.frames)


def _no_top(
    name: str,
    values: Tensor,
    ids: Tensor,
    chosen: Tensor,
    rank: Tensor,
    logsumexp: Tensor,
    entropy: Tensor,
    *,
    taken: Tensor,
) -> Iterator[str]:
    """What the top k of a distribution cannot be; NaN is told where it is read."""
    if values.shape[1] < 1:
        yield f"the top {name} are none"
    most = torch.maximum(values.float().amax(1), chosen.float()) if values.shape[1] else chosen.float()
    if bool((most - logsumexp.float() > 1e-3 * (1 + most.abs())).any()):
        yield f"the top {name} are larger than all {name} together"
    first = ids[:, 0] == taken if values.shape[1] else rank < 0
    if bool(((rank < 0) | (first & (rank != 0))).any()):
        yield f"the ranks among the top {name} are not theirs"
