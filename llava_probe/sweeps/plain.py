"""One plain run of a prompt, and what it leaves for those that depart from it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from llava_probe.asking.prompts import asked_again
from llava_probe.attribution.engine.replay import Entering
from llava_probe.attribution.engine.side_by_side import sliceable
from llava_probe.errors import BadInput
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy
from llava_probe.inside.passes import Others, Prompt, Visitor, entered, visiting
from llava_probe.inside.rows import Call
from llava_probe.model import VLM
from llava_probe.trace.trace import Trace

#: Kinds of blocks whose keys and values are all that later positions read of earlier ones.
_KEEP_KEYS = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(frozen=True, eq=False)
class PlainRun:
    """One plain run.

    Attributes:
        inputs: of the model; ``prompt``: what they hold.
        entry: [1, P, D]; ``others``: the decoder's other inputs.
        cache: keys and values of its positions, None where the family keeps others.
        logits: [V] at its last position, float64.
        ends: how many of its first positions see nothing behind themselves, as a set.
        tails: what each block gives besides states, None where nothing.
    """

    inputs: dict[str, Any]
    prompt: Prompt
    entry: Tensor
    others: Others
    cache: DynamicCache | None
    logits: Tensor
    ends: set[int]
    tails: Mapping[nn.Module, tuple[Any, ...] | None]


def plain_run(vlm: VLM, trace: Trace) -> PlainRun:
    """The prompt of a trace once more, as it is.

    Raises:
        BadInput: a padded prompt.
        BadModel: pictures that do not enter the decoder as embeddings.
    """
    anatomy = vlm.anatomy
    tensors, prompts = vlm.prepare([asked_again(trace.images, trace.request)], trace.request.processor)
    if prompts[0].padding:
        raise BadInput("this prompt is padded; ask it alone")
    cache = _empty(anatomy)
    seen: list[tuple[Tensor | None, Others]] = []

    def enter(embeddings: Tensor | None, others: Others) -> tuple[Tensor | None, Others]:
        seen.append((embeddings, dict(others)))
        return embeddings, {**others, "past_key_values": cache, "use_cache": True}

    inputs = {**tensors, **_last_logits(anatomy), **anatomy.everywhere, "use_cache": True}
    tails, reach = _Tails(), _Reach(len(prompts[0].ids))
    with visiting(anatomy, Entering(enter), tails, reach, prompts=prompts):
        logits = vlm.model(**inputs).logits[0, -1].double()
    embeddings, others = seen[0]
    entry = entered(anatomy, embeddings, len(prompts[0].ids))
    whole = seam.is_whole(cache) and cache.get_seq_length() == entry.shape[1] and sliceable(others)
    others = {name: value for name, value in others.items() if name not in ("past_key_values", "use_cache")}
    ends = reach.ends(anatomy)
    return PlainRun(inputs, prompts[0], entry, others, cache if whole else None, logits, ends, tails.found)


def _empty(anatomy: Anatomy) -> DynamicCache:
    """A cache that keeps the keys of all positions, where the family's blocks are of the kinds that leave any."""
    config = anatomy.decoder.owner.config
    plain = set(seam.layer_kinds(config)) <= _KEEP_KEYS and not seam.shares_keys(config)
    return DynamicCache() if plain else DynamicCache(config=config)


def _last_logits(anatomy: Anatomy) -> dict[str, Any]:
    """What keeps the logits of the last position alone, where the model can leave out the others."""
    named = "logits_to_keep" in inspect.signature(anatomy.model.forward).parameters
    return {"logits_to_keep": 1} if named else {}


class _Tails(Visitor):
    """Notes what blocks give besides states."""

    def __init__(self) -> None:
        self.found: dict[nn.Module, tuple[Any, ...] | None] = {}

    def modules(self, anatomy: Anatomy) -> tuple[nn.Module, ...]:
        """The blocks."""
        return anatomy.decoder.blocks

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """A block has run."""
        self.found[module] = None if isinstance(output, Tensor) else tuple(output[1:])


class _Reach(Visitor):
    """How far each position sees, in the blocks of the decoder."""

    def __init__(self, length: int) -> None:
        self._reach = torch.arange(length)
        self._seen: set[int] = set()
        self._masks: list[Any] = []
        self._known = True

    def attended(self, call: Call, output: Tensor | None) -> None:
        """A block's attention: the masks of a pass are few."""
        self._seen.add(call.layer)
        if call.unread or call.queries != len(self._reach):
            self._known = False
        elif call.mask is not None and not any(call.mask is mask for mask in self._masks):
            self._masks.append(call.mask)
            columns = torch.arange(call.keys, device=call.device)
            last = (call.allowed().any(1).any(0) * columns).amax(-1).cpu()
            self._reach = torch.maximum(self._reach, last.expand_as(self._reach))

    def ends(self, anatomy: Anatomy) -> set[int]:
        """How many of the first positions see nothing behind themselves; none where it is not known."""
        if not self._known or self._seen != set(anatomy.decoder.attentions.values()):
            return {0}
        furthest = self._reach.cummax(0).values
        return {0, *(int(place) + 1 for place in (furthest == torch.arange(len(furthest))).nonzero().flatten())}
