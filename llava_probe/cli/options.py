"""What most verbs take: which model and how it is loaded, and how it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llava_probe.cli import arguments

if TYPE_CHECKING:
    from llava_probe.model import VLM

of_model = partial(typer.Option, rich_help_panel="The model")
of_asking = partial(typer.Option, rich_help_panel="The question")

TINY_MODEL = "tiny"
EXAMPLE = "llava-hf/llava-1.5-7b-hf"

PicturesArgument = Annotated[
    str, typer.Argument(metavar="PICTURE", help="Path or URL; several pictures of one question with commas between.")
]
QuestionArgument = Annotated[str | None, typer.Argument(help="What to ask, in plain words.")]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is loaded."""

    model: Annotated[str, of_model(help="A checkpoint on the Hugging Face hub or a folder; 'tiny' ships inside.")] = (
        TINY_MODEL
    )
    revision: Annotated[str | None, of_model(help="Branch, tag or commit on the hub.")] = None
    dtype: Annotated[str | None, of_model(help="float32, bfloat16 or float16; the checkpoint's own if left.")] = None
    device_map: Annotated[str | None, of_model(help="Where to put the model: auto, cuda, cpu ...")] = None
    attn_implementation: Annotated[
        str | None, of_model(help="sdpa, flash_attention_2, eager ...; the model's default if left.")
    ] = None

    @property
    def is_tiny(self) -> bool:
        """Whether it is the model that ships inside, as it is."""
        return self.model == TINY_MODEL

    @property
    def settings(self) -> dict[str, Any]:
        """What was given, by the names that ``lp.load`` takes."""
        given = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "model"}
        return {name: value for name, value in given.items() if value is not None}

    def load(self) -> VLM:
        """The model."""
        from llava_probe.loading import load

        return load(self.model, **self.settings)


@dataclass(frozen=True)
class AskingOptions:
    """How a question is put to the model."""

    prompt: Annotated[str | None, of_asking(help="The whole text as the model gets it, in place of a question.")] = None
    processor: Annotated[
        list[str] | None, of_asking(help="A setting of the processor, NAME=VALUE; may be repeated.")
    ] = None

    @property
    def settings(self) -> dict[str, Any]:
        """What was given, by the names that ``VLM.generate`` takes."""
        given = {
            "prompt": self.prompt,
            "processor_kwargs": arguments.named_values("--processor", self.processor) or None,
        }
        return {name: value for name, value in given.items() if value is not None}
