"""From what a user asks to what the model takes: pictures and words in, a batch of tensors out.

Four ways to ask, one result: plain words (the model's own chat template is applied), a ready prompt text, a whole
chat, or ready-made inputs. The processor does all the work; here its inputs are checked, so that a mismatch is one
sentence and not a traceback from inside the model.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_probe.asking.chats import last_words, marks_of, opened_chat, templated
from llava_probe.errors import BadInput, first_line
from llava_probe.faults import of_the_machine
from llava_probe.pictures.images import open_image
from llava_probe.pictures.videos import several_videos
from llava_probe.trace.request import Request

_ASKING = ("image", "question", "video", "prompt", "messages", "inputs")

#: One of 255, as a share of the range.
_GREY_LEVEL = 1 / 255


@dataclass(frozen=True)
class PosedQuestion:
    """One sample to ask: its pictures, and its text or its ready-made inputs.

    Attributes:
        images: the still pictures, then the frames of all videos.
        prompt, messages, inputs: what is asked.
        videos: how many frames each video has.
        words: the question as it was asked, before any template; of a chat, the user's last text.
    """

    images: tuple[Image.Image, ...]
    prompt: str | None
    messages: Any = None
    inputs: Mapping[str, Tensor] | None = None
    videos: tuple[int, ...] = ()
    words: str | None = None

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
) -> PosedQuestion:
    """Settle one of the four ways of asking.

    Raises:
        BadInput: none or several of the ways, an empty question, or a picture count that does not fit the places.
        BadImage: a picture that cannot be opened.
    """
    given = [name for name, value in _ways(question, prompt, messages, inputs) if value is not None]
    if len(given) != 1:
        told = "nothing" if not given else " and ".join(given)
        raise BadInput(f"ask with exactly one of question, prompt=, messages= or inputs=; got {told}")
    images = tuple(open_image(source) for source in _listed(image))
    clips = several_videos(video)
    if inputs is not None:
        return _question(images, clips, None, inputs=_checked(inputs))
    words: str | None
    if question is not None:
        if not isinstance(question, str) or not question.strip():
            raise BadInput(f"the question is empty; ask something in plain words (got {question!r})")
        content = [{"type": "image"} for _ in images] + [{"type": "video"} for _ in clips]
        content += [{"type": "text", "text": question}]
        text, words = templated(processor, [{"role": "user", "content": content}]), question
    elif messages is not None:
        messages, inside, filmed = opened_chat(messages)
        if (inside and images) or (filmed and clips):
            raise BadInput("pictures were given both inside messages= and as image; give them in one place")
        images, clips = images or inside, clips or filmed
        text, words = templated(processor, messages), last_words(messages)
        types = [part.get("type") for message in messages for part in message["content"]]
        _check_places(text, "an image part", types.count("image"), len(images))
        _check_places(text, "a video part", types.count("video"), len(clips), "video")
    else:
        if not isinstance(prompt, str) or not prompt.strip():
            raise BadInput(f"the prompt is empty (got {prompt!r})")
        text, words = prompt, None
        marks = marks_of(processor, "image")
        videos = [mark for mark in marks_of(processor, "video") if mark not in marks]
        for what, among, count in (("picture", marks, len(images)), ("video", videos, len(clips))):
            if among:
                mark = max(among, key=text.count)
                _check_places(text, mark, text.count(mark), count, what)
    return _question(images, clips, text, messages, words=words)


def pose_each(processor: Any, samples: Sequence[Any]) -> list[PosedQuestion]:
    """The same for each sample of a batch: an (image, question) pair, or a dict of ``pose``'s arguments.

    Raises:
        BadInput: a sample that is neither, or as for ``pose``.
    """
    questions = []
    for number, sample in enumerate(samples):
        if isinstance(sample, Mapping) and set(sample) <= set(_ASKING):
            questions.append(pose(processor, **sample))
        elif isinstance(sample, tuple | list) and len(sample) == 2:
            questions.append(pose(processor, *sample))
        else:
            raise BadInput(
                f"sample {number} of the batch is neither an (image, question) pair nor a dict of "
                f"{', '.join(_ASKING)}: {sample!r}"
            )
    return questions


def asked_again(images: tuple[Image.Image, ...], request: Request) -> PosedQuestion:
    """The question of a trace, to be put through the processor once more."""
    return PosedQuestion(images, request.prompt, request.messages, request.inputs, request.videos, request.question)


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
        return dict(questions[0].inputs or {})
    texts = [question.prompt or "" for question in questions]
    images = [question.stills for question in questions]
    films = [np.stack([np.asarray(frame) for frame in clip]) for question in questions for clip in question.clips]
    if films and getattr(processor, "video_processor", None) is None:
        raise BadInput(f"{type(processor).__name__} takes no video; pass its frames as a list of pictures")
    tokenizer = processor.tokenizer
    settings: dict[str, Any] = {"return_tensors": "pt"}
    if len(texts) > 1:
        if tokenizer.pad_token is None:
            raise BadInput("this tokenizer has no pad token to fill a batch with; set processor.tokenizer.pad_token")
        settings |= {"padding": True, "padding_side": "left"}
    if tokenizer.bos_token and all(text.startswith(tokenizer.bos_token) for text in texts):
        settings["add_special_tokens"] = False
    flat = [image for of_one in images for image in of_one]
    # most processors want the pictures of each sample apart, some all in a row
    attempts: list[dict[str, Any]] = [{"images": given} for given in ([images, flat] if flat else [None])]
    if films:
        settings["videos"] = films
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


def encode_with(
    processor: Any, question: PosedQuestion, images: Sequence[Image.Image], processor_kwargs: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Model inputs of a question with other pictures; of any short question where its own inputs were ready made."""
    other = replace(question, images=tuple(images), inputs=None)
    if other.prompt is None:
        given: dict[str, Any] = {"image": other.stills, "video": other.clips or None}
        if getattr(processor, "chat_template", None):
            other = pose(processor, question="?", **given)
        else:
            kinds = ("image",) * len(other.stills) + ("video",) * len(other.clips)
            marks = [mark for kind in kinds for mark in marks_of(processor, kind)[:1]]
            other = pose(processor, prompt=" ".join([*marks, "?"]), **given)
    return encode(processor, [other], processor_kwargs)


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


def answer_ids(
    processor: Any, question: PosedQuestion, prompt_ids: Sequence[int], answer: str | Any
) -> tuple[int, ...]:
    """Ids of a given answer as the model would have generated it.

    Args:
        processor: its tokenizer splits the text.
        question: what the answer follows; a space goes between where its prompt does not end in one.
        prompt_ids: the prompt's ids, to see how it ends.
        answer: text (a whole answer: EOS is added), or ids, taken as they are.

    Raises:
        BadInput: an empty answer.
    """
    if not isinstance(answer, str):
        try:
            ids = tuple(operator.index(token) for token in answer)
        except TypeError:
            raise BadInput(f"an answer to score is text, or a flat list of token ids; got {answer!r}") from None
        if not ids:
            raise BadInput("the answer to score has no tokens")
        return ids
    if not answer.strip():
        raise BadInput(f"the answer to score is empty (got {answer!r}); give words or token ids")
    tokenizer = processor.tokenizer
    text = question.prompt if question.prompt is not None else tokenizer.decode(prompt_ids)
    for special in tokenizer.all_special_tokens:
        text = text.rsplit(special, 1)[-1]  # only what follows the last special token can merge with the answer
    between = " " if text and not text[-1].isspace() and not answer[0].isspace() else ""
    before = tokenizer(text, add_special_tokens=False).input_ids
    both = tokenizer(text + between + answer, add_special_tokens=False).input_ids
    if both[: len(before)] != before:
        before, both = [], tokenizer(between + answer, add_special_tokens=False).input_ids
    ids = both[len(before) :]
    end = [] if tokenizer.eos_token_id in (None, ids[-1]) else [tokenizer.eos_token_id]
    return (*ids, *end)


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


def _check_places(text: str, mark: str, places: int, given: int, what: str = "picture") -> None:
    if places != given:
        were = f"1 {what} was" if given == 1 else f"{given} {what}s were"
        has = "1 place" if places == 1 else f"{places} places"
        raise BadInput(f"the prompt has {has} for a {what} ({mark}) but {were} given: {text!r}")


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


def _checked(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        told = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise BadInput(f"inputs= is a dict of model inputs with input_ids in it; got {told}")
    try:
        tensors = {name: torch.as_tensor(value).cpu().clone() for name, value in inputs.items() if value is not None}
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"inputs= holds something that is no tensor: {first_line(error)}") from error
    if tensors["input_ids"].is_floating_point():
        raise BadInput("inputs= holds input_ids that are no whole numbers")
    mask = tensors.get("attention_mask", tensors["input_ids"])
    if mask.shape != tensors["input_ids"].shape:
        raise BadInput(
            f"inputs= holds an attention_mask of {list(mask.shape)} for ids of {list(tensors['input_ids'].shape)}"
        )
    if tensors["input_ids"].ndim != 2 or tensors["input_ids"].shape[0] != 1:
        raise BadInput(
            f"inputs= holds one sample: input_ids of shape [1, P]; got {list(tensors['input_ids'].shape)}. "
            "Batches go through generate_batch"
        )
    if tensors["input_ids"].shape[1] == 0:
        raise BadInput("inputs= holds an empty prompt: input_ids has no tokens")
    return tensors
