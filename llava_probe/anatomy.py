"""Which modules of a model are its blocks, found by type, never by path.

Every transformers model class says what it can record (``_can_record_outputs``: the class of its blocks, the class
of its attention). Reading that finds the same parts in every family, so no list of layer names is kept here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from llava_probe.errors import BadModel


@dataclass(frozen=True)
class Stack:
    """A tower of blocks: the decoder, or a vision encoder.

    Attributes:
        owner: the model that runs the blocks.
        blocks: in order.
        attentions: block index of each attention module, by the module's ``id``.
    """

    owner: PreTrainedModel
    blocks: tuple[nn.Module, ...]
    attentions: dict[int, int]

    def attention_modules(self) -> Iterator[nn.Module]:
        """The attention modules of all blocks."""
        for block in self.blocks:
            yield from (module for module in block.modules() if id(module) in self.attentions)


@dataclass(frozen=True)
class Anatomy:
    """The parts of a vision-language model that records are taken from."""

    model: PreTrainedModel
    decoder: Stack
    vision: Stack | None

    @property
    def layers(self) -> int:
        """How many blocks the decoder has."""
        return len(self.decoder.blocks)

    @property
    def heads(self) -> int:
        """How many query heads a block has."""
        return int(self.decoder.owner.config.get_text_config().num_attention_heads)

    @property
    def vocabulary(self) -> int:
        """How many logits a step has."""
        return int(self.decoder.owner.config.get_text_config().vocab_size)

    @property
    def width(self) -> int:
        """Width of a hidden state."""
        return int(self.decoder.owner.config.get_text_config().hidden_size)


def anatomy(model: Any) -> Anatomy:
    """The parts of ``model``; a ``PeftModel`` is looked into as the model that it wraps.

    Raises:
        BadModel: not a model of transformers that turns pictures and text into text.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise BadModel(f"expected a transformers model, got {type(model).__name__}")
    name = type(model).__name__
    if not hasattr(model.config, "vision_config") or not hasattr(model, "generate"):
        raise BadModel(
            f"{name} is not a vision-language model: its config has no vision_config; "
            "load one with lp.load('llava-hf/llava-1.5-7b-hf') or AutoModelForImageTextToText"
        )
    owner = model.get_decoder()
    decoder = _stack(owner)
    if decoder is None:
        raise BadModel(f"{name}: {type(owner).__name__} does not say which of its modules are blocks")
    inside = {id(module) for module in owner.modules()}
    towers = (module for module in model.modules() if isinstance(module, PreTrainedModel) and id(module) not in inside)
    vision = next((stack for tower in towers if tower is not model and (stack := _stack(tower))), None)
    return Anatomy(model=model, decoder=decoder, vision=vision)


def _stack(owner: Any) -> Stack | None:
    records = getattr(type(owner), "_can_record_outputs", None) or {}
    block_classes = _classes(records.get("hidden_states"))
    attention_classes = _classes(records.get("attentions"))
    if not block_classes:
        return None
    blocks: tuple[Any, ...] = tuple(module for module in owner.modules() if isinstance(module, block_classes))
    attentions = {
        id(module): index
        for index, block in enumerate(blocks)
        for module in block.modules()
        if attention_classes and isinstance(module, attention_classes)
    }
    return Stack(owner, blocks, attentions) if blocks else None


def _classes(specs: Any) -> tuple[type, ...]:
    """The module classes named by one entry of ``_can_record_outputs``: a class, a recorder, or a list of them."""
    if specs is None:
        return ()
    specs = specs if isinstance(specs, list | tuple) else [specs]
    classes = (spec if isinstance(spec, type) else getattr(spec, "target_class", None) for spec in specs)
    return tuple(found for found in classes if found is not None)
