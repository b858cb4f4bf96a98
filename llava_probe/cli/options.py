"""What most verbs take: which model and how it is loaded, and how it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llava_probe.cli import arguments
from llava_probe.errors import BadInput

if TYPE_CHECKING:
    from llava_probe.model import VLM

of_model = partial(typer.Option, rich_help_panel="The model")
of_data = partial(typer.Option, rich_help_panel="The data set")
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

    model: Annotated[str, of_model(help="A checkpoint on the hub or a folder; 'tiny' and 'smol' ship inside.")] = (
        TINY_MODEL
    )
    adapter: Annotated[str | None, of_model(help="A PEFT adapter on it: a folder or a name on the hub.")] = None
    merge: Annotated[bool, of_model("--merge", help="Put what the adapter adds into the weights: quicker.")] = False
    revision: Annotated[str | None, of_model(help="Branch, tag or commit on the hub.")] = None
    dtype: Annotated[str | None, of_model(help="float32, bfloat16 or float16; the checkpoint's own if left.")] = None
    quantize: Annotated[str | None, of_model(help="4bit or 8bit, by bitsandbytes.")] = None
    device_map: Annotated[str | None, of_model(help="Where to put the model: auto, cuda, cpu ...")] = None
    attn_implementation: Annotated[
        str | None, of_model(help="sdpa, flash_attention_2, eager ...; the model's default if left.")
    ] = None

    def __post_init__(self) -> None:
        """A model that cannot be loaded is told before anything heavy is imported.

        Raises:
            BadModel, BadInput: what it is, and what to type instead.
        """
        from llava_probe.loading import check_quantize, look

        settings = {} if self.revision is None else {"revision": self.revision}
        check_quantize(self.quantize, settings, adapter=self.adapter, random_weights=None)
        look(self.model, adapter=self.adapter, **settings)

    @property
    def knows_scenes(self) -> bool:
        """Whether it is one of those that ship inside, which learnt drawn scenes and nothing else of pictures."""
        from llava_probe.smol import SHIPPED

        return self.model in SHIPPED

    @property
    def settings(self) -> dict[str, Any]:
        """What was given, by the names that ``lp.load`` takes."""
        given = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "model"}
        return {name: value for name, value in given.items() if value is not None and value is not False}

    @property
    def typed(self) -> list[str]:
        """The same as words of a command."""
        return arguments.typed({"model": self.model, **self.settings})

    def load(self) -> VLM:
        """The model."""
        from llava_probe.loading import load

        return load(self.model, **self.settings)


@dataclass(frozen=True)
class RowOptions:
    """How the rows of a data set are read: pictures, and what is asked and said of them."""

    images: Annotated[
        str | None, of_data(help="Folder where relative paths start, or a form: val/COCO_{image_id:012}.jpg.")
    ] = None
    image_column: Annotated[str | None, of_data(help="Their column of the picture; several: a,b.")] = None
    question_column: Annotated[str | None, of_data(help="Of the question.")] = None
    answer_column: Annotated[str | None, of_data(help="Of the answer.")] = None
    columns: Annotated[str | None, of_data(help="Any of ours for theirs: id=key,answer= (none).")] = None
    split: Annotated[str | None, of_data(help="Of a Hugging Face data set.")] = None

    @property
    def settings(self) -> dict[str, Any]:
        """What was given, by the names that ``read_samples`` takes.

        Raises:
            BadInput: ``--columns`` is no list of OURS=THEIRS, or says one of ours twice.
        """
        columns: dict[str, Any] = dict(arguments.assignments(self.columns) or {})
        for ours in ("image", "question", "answer", "mask", "boxes"):
            theirs = getattr(self, f"{ours}_column", None)
            if theirs is not None and ours in columns:
                raise BadInput(f"--{ours}-column and --columns both name the column of {ours}")
            if theirs is not None:
                columns[ours] = theirs.split(",") if ours == "image" and "," in theirs else theirs
        given = {"images": self.images, "split": self.split, "columns": columns or None}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def typed(self) -> list[str]:
        """What was given, as words of a command."""
        return arguments.typed({name: getattr(self, name) for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class DataOptions(RowOptions):
    """How the rows of a data set are read, and what is marked on their pictures."""

    mask_column: Annotated[str | None, of_data(help="Of the mask.")] = None
    boxes_column: Annotated[str | None, of_data(help="Of the box or boxes.")] = None
    box_format: Annotated[str | None, of_data(help="xyxy, xywh, cxcywh, relative_xyxy, yolo ...")] = None

    @property
    def settings(self) -> dict[str, Any]:
        """What was given, by the names that ``read_samples`` takes.

        Raises:
            BadInput: as for ``RowOptions``.
        """
        return super().settings | ({} if self.box_format is None else {"box_format": self.box_format})


@dataclass(frozen=True)
class AskingOptions:
    """How a question is put to the model."""

    prompt: Annotated[str | None, of_asking(help="The whole text as the model gets it, in place of a question.")] = None
    system: Annotated[str | None, of_asking(help="A system message before the question.")] = None
    template: Annotated[
        list[str] | None, of_asking(help="An argument of the chat template, NAME=VALUE; may be repeated.")
    ] = None
    processor: Annotated[
        list[str] | None, of_asking(help="A setting of the processor, NAME=VALUE; may be repeated.")
    ] = None

    @property
    def settings(self) -> dict[str, Any]:
        """What was given, by the names that ``VLM.generate`` takes."""
        given = {
            "prompt": self.prompt,
            "system": self.system,
            "template_kwargs": arguments.named_values("--template", self.template) or None,
            "processor_kwargs": arguments.named_values("--processor", self.processor) or None,
        }
        return {name: value for name, value in given.items() if value is not None}
