"""From questions to what one model takes: tensors on its device, and where prompts and pictures lie in them.

``prompts.py`` knows questions and processors; here they meet a model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava_probe.asking.lengths import check_length
from llava_probe.asking.prompts import PosedQuestion, encode, encode_with, marked
from llava_probe.errors import BadInput
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy
from llava_probe.inside.passes import Prompt, alone_with
from llava_probe.layout import Asking, Clips, Layouts, PromptLayouts

#: One of 255, as a share of the range.
_GREY_LEVEL = 1 / 255


@dataclass(frozen=True, eq=False)
class Preparation:
    """How one model is fed.

    Attributes:
        anatomy: of the model; ``processor``: its own.
        visual: the ids of a picture's and of a video's visual tokens; -1 where the model has none.
        layouts: works out where they lie.
    """

    anatomy: Anatomy
    processor: Any
    visual: tuple[int, int]
    layouts: Layouts

    def inputs(
        self, questions: Sequence[PosedQuestion], processor_kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, Tensor], list[Prompt]]:
        """Model inputs on the model's device, and where each sample's prompt lies in them.

        Raises:
            BadInput: something that the processor refuses, or a mask that hides tokens inside a prompt.
        """
        for question in questions:
            self._check_names(question.inputs or ())
        tensors = encode(self.processor, questions, processor_kwargs)
        ids = tensors["input_ids"]
        self._check_ids(ids)
        mask = tensors.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        prompts, sent = [], self._sent(tensors)
        for number, (row, kept) in enumerate(zip(ids, mask, strict=True)):
            padding = int((kept == 0).sum())
            if bool((kept[:padding] != 0).any()):
                raise BadInput("the attention mask hides tokens inside the prompt or on its right; pad on the left")
            places = self._places(row[padding:]) or marked(tensors, number, padding)
            check_length(self.anatomy, len(row) - padding)
            own, asked = tuple(row[padding:].tolist()), questions[number].words
            prompt = Prompt(len(own), padding, places, own, asked)
            lay_out = partial(self.layouts_of, questions, number, prompt, sent, processor_kwargs)
            prompts.append(replace(prompt, lay_out=lay_out))
        return sent, prompts

    def layouts_of(
        self,
        questions: Sequence[PosedQuestion],
        number: int,
        prompt: Prompt,
        tensors: Mapping[str, Tensor],
        processor_kwargs: Mapping[str, Any],
    ) -> PromptLayouts:
        """Where the visual tokens of one sample lie; measuring it is a run of the model like any other."""
        question, before = questions[number], questions[:number]
        if self.layouts.how != "none" and (why := made_otherwise(self.processor, question, processor_kwargs)):
            return PromptLayouts(unknown=why)
        ids = tensors["input_ids"][number, prompt.padding :]
        filmed = (ids == self.visual[1]).nonzero().flatten().tolist()

        def encoded(images: Sequence[Image.Image]) -> Mapping[str, Tensor]:
            return encode_with(self.processor, question, images, processor_kwargs)

        with alone_with(self.anatomy.model):
            return self.layouts(
                [image.size for image in question.images],
                prompt.image_positions,
                tensors,
                Asking(encoded, self._sent, self._places),
                processor_kwargs,
                sum(len(other.stills) for other in before),
                Clips(question.videos, filmed, sum(len(other.videos) for other in before)),
            )

    def _check_names(self, names: Iterable[str]) -> None:
        """Ready-made inputs are what the model's forward pass takes, or what its processor makes."""
        processors = (self.processor, self.processor.image_processor)
        known = {name for one in processors for name in getattr(one, "model_input_names", ())}
        known |= set(inspect.signature(self.anatomy.model.forward).parameters)
        if unknown := sorted(set(names) - known):
            name = type(self.anatomy.model).__name__
            raise BadInput(f"inputs= holds {', '.join(unknown)}, which {name} does not take; leave it out")

    def _check_ids(self, ids: Tensor) -> None:
        """The embedding has a row for each; a visual token's id may lie beyond it, since a picture takes its place."""
        weight: Any = self.anatomy.model.get_input_embeddings().weight
        rows = len(weight)
        beyond = [token for token in set(ids.flatten().tolist()) if token >= rows and token not in self.visual]
        if beyond:
            raise BadInput(
                f"the prompt holds id {beyond[0]}, {self.processor.tokenizer.convert_ids_to_tokens(beyond[0])!r}, and "
                f"this model has ids 0 to {rows - 1}; call model.resize_token_embeddings(len(processor.tokenizer)) "
                "where tokens were added, or load the processor that belongs to it"
            )

    def _places(self, ids: Tensor) -> tuple[int, ...]:
        """Places of the visual tokens among the ids of one prompt."""
        image, video = self.visual
        return tuple(((ids == image) | (ids == video)).nonzero().flatten().tolist())

    def _sent(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Model inputs on the model's device, in its dtype."""
        device, dtype = input_device(self.anatomy.model), self.anatomy.model.dtype
        return {
            name: value.to(device, dtype if value.is_floating_point() else None) if isinstance(value, Tensor) else value
            for name, value in tensors.items()
        }


def input_device(model: Any) -> torch.device:
    """Where ids go: to the embedding, wherever ``device_map`` put it; weights on disk run where their hook says."""
    embedding = model.get_input_embeddings()
    device = next(embedding.parameters()).device
    if device.type == "meta":
        device = seam.offload_device(embedding) or torch.device("cpu")
    return device


def made_otherwise(processor: Any, question: PosedQuestion, processor_kwargs: Mapping[str, Any]) -> str:
    """Why nothing is known of how ready-made inputs show their pictures; empty where they are as the processor's.

    Another crop or size gives other pixels. A picture of one colour does not tell.
    """
    if question.inputs is None or not question.images:
        return ""
    try:
        own = encode_with(processor, question, question.images, processor_kwargs)
    except BadInput as error:
        return f"inputs= cannot be compared with what the processor makes of the pictures: {error}"
    for name, expected in own.items():
        if isinstance(expected, Tensor) and expected.is_floating_point():
            given = question.inputs.get(name)
            if given is None or given.shape != expected.shape or not _alike(given, expected):
                return (
                    f"{name} in inputs= is not what {type(processor).__name__} makes of these pictures; "
                    "pass the settings that made it as processor_kwargs= too"
                )
    return ""


def _alike(given: Tensor, expected: Tensor) -> bool:
    """Whether two tensors of pixels differ by rounding only, in the coarser dtype or to whole grey levels."""
    rounding = max([torch.finfo(one.dtype).eps for one in (given, expected) if one.is_floating_point()])
    off = (given.float() - expected.float()).abs().max() if expected.numel() else 0.0
    return bool(off <= (rounding + _GREY_LEVEL) * float(expected.abs().max()))
