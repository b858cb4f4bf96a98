"""From what a user asks to what the model takes: pictures and words in, a batch of tensors out.

Four ways to ask, one result: plain words (the model's own chat template is applied), a ready prompt text, a whole
chat, or ready-made inputs. The processor does all the work; here its inputs are checked, so that a mismatch is one
sentence and not a traceback from inside the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from llava_probe.asking.chats import asked_chat, last_words, miscounted, opened_chat
from llava_probe.asking.marks import bare_prompt, marks_of, puts_pictures
from llava_probe.asking.ready import ready_inputs
from llava_probe.asking.templates import check_arguments, has_template
from llava_probe.errors import BadInput, first_line, shortened
from llava_probe.faults import of_the_machine
from llava_probe.inside import seam
from llava_probe.pictures.images import open_image
from llava_probe.pictures.videos import several_videos
from llava_probe.trace.request import Request, own_copy

_ASKING = ("image", "question", "video", "prompt", "messages", "inputs", "system", "template_kwargs")


@dataclass(frozen=True)
class PosedQuestion:
    """One sample to ask: its pictures, and its text or its ready-made inputs.

    Attributes:
        images: the still pictures, then the frames of all videos.
        prompt, messages, inputs: what is asked.
        videos: how many frames each video has.
        words: the question as it was asked, before any template; of a chat, the user's last text.
        system, template: the system message, and arguments of the chat template.
    """

    images: tuple[Image.Image, ...]
    prompt: str | None
    messages: Any = None
    inputs: Mapping[str, Tensor] | None = None
    videos: tuple[int, ...] = ()
    words: str | None = None
    system: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict)

    def request(self, **settings: Any) -> Request:
        """What a trace says that was asked; ``settings`` are the other fields of a ``Request``."""
        settings = {name: own_copy(value) for name, value in settings.items()}
        own = {"prompt": self.prompt, "messages": self.messages, "inputs": self.inputs, "videos": self.videos}
        return Request(**own, question=self.words, system=self.system, template=self.template, **settings)

    @property
    def stills(self) -> list[Image.Image]:
        """The pictures that are no frames."""
        return list(self.images[: len(self.images) - sum(self.videos)])

    @property
    def clips(self) -> list[list[Image.Image]]:
        """The frames of each video."""
        frames = self.images[len(self.images) - sum(self.videos) :]
        ends = accumulate(self.videos)
        return [list(frames[end - count : end]) for count, end in zip(self.videos, ends, strict=True)]


def pose(
    processor: Any,
    image: Any = None,
    question: str | None = None,
    *,
    video: Any = None,
    prompt: str | None = None,
    messages: Sequence[Mapping[str, Any]] | None = None,
    inputs: Mapping[str, Tensor] | None = None,
    system: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> PosedQuestion:
    """Settle one of the four ways of asking.

    Args:
        processor: whose chat template is applied.
        image, question, video, prompt, messages, inputs: as for ``VLM.generate``.
        system: a system message in plain words, put before the question or the chat.
        template_kwargs: arguments of the chat template: ``enable_thinking``, ``tools`` ...

    Raises:
        BadInput: none or several of the ways, an empty question, a picture count that does not fit the places, or
            something that the template would leave out.
        BadImage: a picture that cannot be opened.
    """
    if question == "" and any(way is not None for way in (prompt, messages, inputs)):
        question = None  # where a command has a place for one, people leave it empty
    given = [name for name, value in _ways(question, prompt, messages, inputs) if value is not None]
    if len(given) != 1:
        told = "nothing" if not given else " and ".join(given)
        raise BadInput(f"ask with exactly one of question, prompt=, messages= or inputs=; got {told}")
    if prompt is not None or inputs is not None:
        _check_untemplated(given[0], system, template_kwargs)
    images = tuple(open_image(source) for source in _listed(image))
    clips = several_videos(video)
    if inputs is not None:
        return _question(images, clips, None, inputs=ready_inputs(inputs))
    if prompt is not None:
        _check_prompt(processor, prompt, len(images), len(clips))
        return _question(images, clips, prompt)
    check_arguments(processor, template_kwargs)
    if question is not None:
        if not isinstance(question, str) or not question.strip():
            raise BadInput(f"the question is empty; ask something in plain words (got {question!r})")
        content = [{"type": "image"} for _ in images] + [{"type": "video"} for _ in clips]
        content += [{"type": "text", "text": question}]
        chat: Any = [{"role": "user", "content": content}]
    else:
        chat, inside, filmed = opened_chat(processor, messages, template_kwargs)
        if (inside and images) or (filmed and clips):
            raise BadInput("pictures were given both inside messages= and as image; give them in one place")
        images, clips = images or inside, clips or filmed
    text, template = asked_chat(processor, chat, system, template_kwargs, (len(images), len(clips)))
    words = question if question is not None else last_words(chat)
    asked = _question(images, clips, text, None if question is not None else chat, words=words)
    return replace(asked, system=system, template=template)


def pose_each(processor: Any, samples: Sequence[Any]) -> list[PosedQuestion]:
    """The same for each sample of a batch: an (image, question) pair, or a dict of ``pose``'s arguments.

    Raises:
        BadInput: a sample that is neither, or as for ``pose``.
    """
    return [
        pose(processor, **by_name(sample, f"sample {number} of the batch")) for number, sample in enumerate(samples)
    ]


def by_name(sample: Any, told: str, *others: str) -> dict[str, Any]:
    """A sample as ``pose``'s arguments by name.

    Args:
        sample: an (image, question) pair, with values for ``others`` behind; or a dict.
        told: what it is, for the sentence.
        *others: names besides ``pose``'s own.

    Raises:
        BadInput: it is neither.
    """
    if isinstance(sample, Mapping) and set(sample) <= {*_ASKING, *others}:
        return dict(sample)
    if isinstance(sample, tuple | list) and 2 <= len(sample) <= 2 + len(others):
        return dict(zip(("image", "question", *others), sample, strict=False))
    behind = "".join(f", {name}" for name in others)
    raise BadInput(
        f"{told} is neither (image, question{behind}) nor a dict of {', '.join((*_ASKING, *others))}: "
        f"{shortened(repr(sample))}"
    )


def in_plain_words(processor: Any, words: str, images: int, videos: int = 0) -> dict[str, Any]:
    """How any model is asked something of ours: as a question, or as the barest prompt where it has no template.

    Words with a picture's place in them are a whole prompt already.
    """
    if images and any(mark in words for mark in marks_of(processor, "image")):
        return {"prompt": words}
    if has_template(processor):
        return {"question": words}
    return {"prompt": bare_prompt(processor, words, images, videos)}


def asked_again(images: tuple[Image.Image, ...], request: Request) -> PosedQuestion:
    """The question of a trace, to be put through the processor once more."""
    return PosedQuestion(
        images,
        request.prompt,
        request.messages,
        request.inputs,
        request.videos,
        request.question,
        request.system,
        request.template,
    )


def encode(
    processor: Any, questions: Sequence[PosedQuestion], processor_kwargs: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Model inputs for the questions, left-padded where they differ in length.

    Raises:
        BadInput: ready-made inputs in a batch, or something the processor refuses.
    """
    if any(question.inputs is not None for question in questions):
        if len(questions) > 1:
            raise BadInput("ready-made inputs= are asked one at a time, not in a batch")
        return {name: tensor.clone() for name, tensor in (questions[0].inputs or {}).items()}
    _check_settings(processor, processor_kwargs)
    texts = [question.prompt or "" for question in questions]
    images = [question.stills for question in questions]
    films = [[np.stack([np.asarray(frame) for frame in clip]) for clip in question.clips] for question in questions]
    reel = [film for of_one in films for film in of_one]
    if reel and getattr(processor, "video_processor", None) is None:
        raise BadInput(f"{type(processor).__name__} takes no video; pass its frames as a list of pictures")
    tokenizer = processor.tokenizer
    settings: dict[str, Any] = {"return_tensors": "pt"}
    if len(texts) > 1:
        if tokenizer.pad_token is None:
            raise BadInput("this tokenizer has no pad token to fill a batch with; set processor.tokenizer.pad_token")
        settings |= {"padding": True, "padding_side": "left"}
    begun = [bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token) for text in texts]
    if all(begun):
        settings["add_special_tokens"] = False
    elif any(begun) and tokenizer.bos_token_id in tokenizer("").input_ids:  # each gets one, as it would alone
        texts = [text.removeprefix(tokenizer.bos_token) for text in texts]
    flat = [image for of_one in images for image in of_one]
    # most processors want the pictures of each sample apart, some all in a row; with videos it is the other way round
    attempts: list[dict[str, Any]] = [{"images": given} for given in ([images, flat] if flat else [None])]
    if reel:
        attempts = [{**attempt, "videos": given} for given in (reel, films) for attempt in attempts]
        attempts += [{**attempt, "return_metadata": True} for attempt in attempts]  # some forget to ask for it
        if "do_sample_frames" not in {**processor_kwargs, **processor_kwargs.get("videos_kwargs", {})}:
            settings["do_sample_frames"] = False  # the frames given are the frames to look at
    refusals = []
    for attempt in attempts:
        try:
            batch = processor(text=texts, **attempt, **settings, **processor_kwargs)
        except Exception as error:  # each processor has errors of its own; its sentence is passed on
            if of_the_machine(error):
                raise
            refusals.append(error)
        else:
            plain = processor.image_processor.model_input_names  # numbers of tiles, say, that stay lists
            kept = {name: value for name, value in batch.items() if isinstance(value, Tensor) or name in plain}
            kept = {name: value for name, value in kept.items() if name != "labels" and value is not None}
            _check_beside(processor, questions, kept)
            return kept
    raise BadInput(f"{type(processor).__name__} refused the input: {first_line(refusals[0])}") from refusals[0]


def _check_settings(processor: Any, given: Mapping[str, Any]) -> None:
    """Every setting is one that the processor reads, as far as that can be told: it passes over others."""
    known = seam.settings_of(processor) if given else None
    if known is not None and (unknown := sorted(set(given) - known)):
        parts = {"text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs", "common_kwargs", "self", "kwargs"}
        read = shortened(", ".join(sorted(known - parts)))
        raise BadInput(f"{type(processor).__name__} reads no {', '.join(unknown)}; processor_kwargs= takes {read}")


def encode_with(
    processor: Any, question: PosedQuestion, images: Sequence[Image.Image], processor_kwargs: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Model inputs of a question with other pictures; of any short question where its own inputs were ready made."""
    other = replace(question, images=tuple(images), inputs=None)
    if other.prompt is None:
        given: dict[str, Any] = {"image": other.stills, "video": other.clips or None}
        words: dict[str, Any] = in_plain_words(processor, "?", len(other.stills), len(other.clips))
        other = pose(processor, **words, **given)
    return encode(processor, [other], processor_kwargs)


def token_id(model: Any, processor: Any, kind: str = "image") -> int:
    """The id of a picture's visual tokens (``"video"``: of a frame's) in prompts of ``model``; -1 where none is."""
    for holder in (model.config, processor, processor.tokenizer):
        for name in (f"{kind}_token_id", f"{kind}_token_index"):
            found = getattr(holder, name, None)
            if isinstance(found, int) and found >= 0:
                return found
    return -1


def marked(tensors: Mapping[str, Tensor], number: int, padding: int) -> tuple[int, ...]:
    """Where an input of its own says that one sample's pictures go, for a model that has no token for them."""
    shape = tensors["input_ids"].shape
    for name, value in tensors.items():
        if "image" in name and name.endswith("_mask") and value.shape == shape:
            return tuple(value[number, padding:].nonzero().flatten().tolist())
    return ()


def _ways(*values: Any) -> list[tuple[str, Any]]:
    return list(zip(("question", "prompt=", "messages=", "inputs="), values, strict=True))


def _listed(image: Any) -> list[Any]:
    if image is None:
        return []
    return list(image) if isinstance(image, list | tuple) else [image]


def _question(
    images: tuple[Image.Image, ...],
    clips: Sequence[Sequence[Image.Image]],
    prompt: str | None,
    messages: Any = None,
    inputs: Mapping[str, Tensor] | None = None,
    words: str | None = None,
) -> PosedQuestion:
    frames = tuple(frame for clip in clips for frame in clip)
    return PosedQuestion(images + frames, prompt, messages, inputs, tuple(len(clip) for clip in clips), words)


def _check_untemplated(way: str, system: Any, template_kwargs: Any) -> None:
    """Neither a system message nor a template's argument goes with what passes no template."""
    for name, value in (("system", system), ("template_kwargs", template_kwargs)):
        if value:
            raise BadInput(
                f"{name}= goes through the chat template, and {way} does not; "
                + ("write it into the prompt" if way == "prompt=" else "ask with a question or messages=")
            )


def _check_prompt(processor: Any, prompt: Any, images: int, videos: int) -> None:
    """The prompt is a text with a place for each picture."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadInput(f"the prompt is empty (got {prompt!r})")
    marks = marks_of(processor, "image")
    films = [mark for mark in marks_of(processor, "video") if mark not in marks]
    for what, among, count in (("picture", marks, images), ("video", films, videos)):
        itself = what == "picture" and count > 0 and not any(mark in prompt for mark in among)
        if among and not (itself and puts_pictures(processor)):
            mark = max(among, key=prompt.count)
            if (places := prompt.count(mark)) != count:
                raise BadInput(miscounted(prompt, mark, places, count, what))


def _check_beside(processor: Any, questions: Sequence[PosedQuestion], tensors: Mapping[str, Any]) -> None:
    """Where prompts have no places for pictures, each stands beside one prompt: a second would be left out unseen."""
    pixels = [value for value in tensors.values() if isinstance(value, Tensor) and value.is_floating_point()]
    for question in questions:
        crowded = len(question.stills) > 1 and pixels and len(pixels[0]) != len(questions)
        if crowded and not any(mark in (question.prompt or "") for mark in marks_of(processor, "image")):
            raise BadInput(
                f"{type(processor).__name__} puts a picture beside a prompt, not into it, so it takes one for each; "
                f"got {len(question.stills)}"
            )
