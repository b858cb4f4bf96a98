"""Which modules of a model are its blocks, found by type, never by path.

Every transformers model class says what it can record (``_can_record_outputs``: the class of its blocks, the class
of its attention). Reading that finds the same parts in every family, so no list of layer names is kept here. A block
may have no attention over the sequence (linear attention, convolution, a state space, attention to the picture
alone): it is listed as such, with its kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel

from llava_probe.errors import BadModel
from llava_probe.inside import seam

#: Parts of a block that mix positions and are no attention over the sequence: what is left feeds each one forward.
_MIXES = re.compile("Att(entio)?n|Mamba|Conv|Delta|Recurrent|Mixer|Norm|Residual")

#: Parts that carry something from one position to another, or choose what may be.
_CARRIES = re.compile("Cross.*Attention|Indexer|ShortConv")

#: Positions that an output embedding which cannot be read by its rows sees at once: each costs a vocabulary of logits.
_HEAD_ROWS = 64


#: One anatomy a model, whoever looks: what visits it is told of the same blocks.
_known: WeakKeyDictionary[nn.Module, ref[Anatomy]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Stack:
    """A tower of blocks: the decoder, or a vision encoder.

    Attributes:
        owner: the model that runs the blocks.
        blocks: in order.
        attentions: block index of each attention module, in order; a module finds itself in a copy too.
        feeds: block index of each block's feed-forward part (MLP or experts), where it is a module of its own.
    """

    owner: PreTrainedModel
    blocks: tuple[nn.Module, ...]
    attentions: dict[nn.Module, int]
    feeds: dict[nn.Module, int]

    @property
    def other_layers(self) -> dict[int, str]:
        """The blocks without attention over the sequence, by index: ``{0: "Lfm2DecoderLayer, conv"}``."""
        kinds = seam.layer_kinds(self.owner.config)
        attending = set(self.attentions.values())
        return {
            index: ", ".join([type(block).__name__, *kinds[index : index + 1]])
            for index, block in enumerate(self.blocks)
            if index not in attending
        }


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The parts of a vision-language model that records are taken from.

    Attributes:
        model: the whole.
        generator: the part whose ``generate`` makes the steps: the whole, or the language model that it calls.
        decoder: the blocks that read the sequence.
        vision: the tower that reads the picture, where it has blocks.
    """

    model: PreTrainedModel
    generator: PreTrainedModel
    decoder: Stack
    vision: Stack | None

    @property
    def layers(self) -> int:
        """How many blocks the decoder has."""
        return len(self.decoder.blocks)

    def unembed(self, states: Tensor, ids: Sequence[int] | None = None) -> Tensor:
        """The logits of states behind the final norm, in float32.

        Args:
            states: [..., D].
            ids: of which tokens; the whole vocabulary when None.

        Returns:
            [..., V or ids] as the output embedding gives them: what a family does to its logits behind it (a cap, a
            scale) is not done here.

        Raises:
            BadModel: the model has no output embedding.
        """
        head = self.output_embedding
        if head is None:
            raise BadModel(f"{type(self.model).__name__} has no output embedding; use attention, rollout or occlusion")
        weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
        chosen: Any = slice(None) if ids is None else list(ids)
        if isinstance(weight, Tensor) and _readable(weight) and weight.shape[1:] == states.shape[-1:]:
            logits = states.to(weight.device).float() @ weight[chosen].float().T
            return logits if bias is None else logits + bias[chosen].float()
        flat = states.flatten(0, -2)  # quantised or offloaded: it knows itself how to read its rows
        parts = [head(part)[..., chosen].float() for part in flat.split(_HEAD_ROWS)]
        return torch.cat(parts).unflatten(0, states.shape[:-1])

    @cached_property
    def output_embedding(self) -> Any:
        """The output embedding of the outermost model around the decoder that has one; None where there is none."""
        around = (
            part
            for part in self.model.modules()
            if isinstance(part, PreTrainedModel) and any(inner is self.decoder.owner for inner in part.modules())
        )
        return next((head for part in around if (head := part.get_output_embeddings()) is not None), None)

    @property
    def final_norm(self) -> nn.Module | None:
        """What the last block's output goes through before it is unembedded: the owner's part behind its blocks."""
        last = self.decoder.blocks[-1]
        behind = False
        for child in self.decoder.owner.children():
            if behind and "Norm" in type(child).__name__:
                return child
            behind = behind or any(module is last for module in child.modules())
        return None

    @cached_property
    def head_counts(self) -> dict[int, int]:
        """How many query heads each block with attention has, by the block's index."""
        return {layer: _head_count(module, self._text_config) for module, layer in self.decoder.attentions.items()}

    @property
    def heads(self) -> int:
        """How many query heads a block has; the largest number, where blocks differ."""
        return max(self.head_counts.values(), default=0)

    @property
    def other_layers(self) -> dict[int, str]:
        """The blocks without attention over the sequence, and what they are."""
        return self.decoder.other_layers

    @cached_property
    def beside_attention(self) -> tuple[str, ...]:
        """What of the decoder carries something from one position to another past attention over the sequence.

        Layers without it (a state, a convolution, a picture's features), and parts of layers with it: short
        convolutions, and indexers, which look at all keys to choose some.
        """
        layers = {kind for kind in self.other_layers.values() if not kind.endswith((", mlp", ", moe"))}
        kinds = {type(module).__name__ for module in self.decoder.owner.modules()}
        return (*sorted(layers), *sorted(kind for kind in kinds if _CARRIES.search(kind)))

    @property
    def everywhere(self) -> dict[str, bool]:
        """What to pass to the model so that each layer runs at every position.

        Layers that share keys run for the prompt's last token alone, unless somebody asks for all states.
        """
        return {"output_hidden_states": True} if seam.shares_keys(self.decoder.owner.config) else {}

    @property
    def vocabulary(self) -> int:
        """How many logits a step has."""
        return int(self._text_config.vocab_size)

    @property
    def width(self) -> int:
        """Width of a hidden state."""
        return int(self._text_config.hidden_size)

    @property
    def _text_config(self) -> Any:
        return self.decoder.owner.config.get_text_config()

    def __str__(self) -> str:
        attending = len(self.head_counts)
        layers = (
            f"{self.layers} layers"
            if attending == self.layers
            else f"{self.layers} layers ({attending} with attention)"
        )
        heads = " or ".join(str(count) for count in sorted(set(self.head_counts.values())))
        return f"{layers} × {heads} heads"


def anatomy(model: Any) -> Anatomy:
    """The parts of ``model``; a ``PeftModel`` is looked into as the model that it wraps.

    Raises:
        BadModel: not a model of transformers that turns pictures and text into text, token by token.
    """
    if virtual := seam.virtual_tokens(model):
        raise BadModel(
            f"this adapter puts {virtual} virtual tokens ahead of the prompt, which stand in no prompt, so no position "
            "would be right; merge it or use LoRA"
        )
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise BadModel(f"expected a transformers model, got {type(model).__name__}")
    if (known := _known.get(model)) is not None and (held := known()) is not None:
        return held
    name = type(model).__name__
    if not hasattr(model.config, "vision_config") and not seam.reads_pictures(model):
        raise BadModel(
            f"{name} is not a vision-language model: its config has no vision_config; "
            "load one with lp.load('llava-hf/llava-1.5-7b-hf') or AutoModelForImageTextToText"
        )
    if model.config.is_encoder_decoder or model.config.get_text_config().is_encoder_decoder:
        raise BadModel(
            f"{name} has an encoder that reads the prompt and a decoder that does not: a trace is of one sequence, "
            "prompt and answer; load a decoder-only model"
        )
    if not isinstance(model, GenerationMixin):
        raise BadModel(f"{name} does not generate token by token, so there are no steps to record")
    decoder = _decoder(model)
    made = Anatomy(model, _generator(model, decoder), decoder, _vision(model, decoder))
    _known[model] = ref(made)
    return made


def _head_count(module: nn.Module, config: Any) -> int:
    for name in ("num_heads", "num_attention_heads"):
        if isinstance(own := getattr(module, name, None), int):
            return own
    return int(getattr(module, "config", config).num_attention_heads)


def _readable(weight: Tensor) -> bool:
    """Whether single rows of it can be read: neither quantised nor kept elsewhere."""
    return weight.is_floating_point() and not weight.is_meta


def _decoder(model: PreTrainedModel) -> Stack:
    owner: Any = model.get_decoder()
    found = list(_stacks(owner))
    if not found:
        raise BadModel(f"{type(model).__name__}: {type(owner).__name__} does not say which of its modules are blocks")
    # A wrapper that adds a language head holds the same blocks; the innermost holder returns hidden states.
    return [stack for stack in found if stack.blocks == found[0].blocks][-1]


def _generator(model: Any, decoder: Stack) -> Any:
    if type(model).generate is GenerationMixin.generate:
        return model
    inner: list[Any] = [part for part in model.modules() if isinstance(part, GenerationMixin) and part is not model]
    holders = [part for part in inner if any(module is decoder.owner for module in part.modules())]
    return holders[0] if holders else model


def _vision(model: PreTrainedModel, decoder: Stack) -> Stack | None:
    """The first tower for pictures beside the decoder's blocks."""
    taken = {id(block) for block in decoder.blocks}
    towers = [stack for stack in _stacks(model) if not any(id(block) in taken for block in stack.blocks)]
    seeing = [stack for stack in towers if seam.reads_pictures(stack.owner)]
    return next(iter(seeing or towers), None)


def _stacks(model: nn.Module) -> Iterator[Stack]:
    """Every model inside that says what its blocks are, outermost first."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and (stack := _stack(part)) is not None:
            yield stack


def _stack(owner: PreTrainedModel) -> Stack | None:
    records = seam.recorded_classes(owner)
    named = list(owner.named_modules())
    blocks = tuple(module for name, module in named if seam.is_one_of(records.get("hidden_states"), name, module))
    if not blocks:
        return None
    recorded = records.get("attentions")
    attending = {
        module
        for name, module in named
        if "Cross" not in type(module).__name__  # its keys are the picture's features, not the sequence
        and (seam.is_one_of(recorded, name, module) if recorded else seam.reads_interface(module))
    }
    attentions = {
        module: index for index, block in enumerate(blocks) for module in block.modules() if module in attending
    }
    feeds = {
        child: index
        for index, block in enumerate(blocks)
        for child in block.children()
        if not attending.intersection(child.modules()) and not _MIXES.search(type(child).__name__) and _widens(child)
    }
    return Stack(owner, blocks, attentions, feeds)


def _widens(part: nn.Module) -> bool:
    """Whether a part of a block widens and narrows again: two matrices or more, and no look-up table."""
    matrices = [weight for weight in part.parameters() if weight.ndim > 1]
    return len(matrices) > 1 and not any(isinstance(module, nn.Embedding) for module in part.modules())
