"""What stands for a picture in a prompt: the processor's own token, what its template writes, or nothing at all.

Some processors (PaliGemma's, BLIP-2's) put the pictures before the prompt by themselves, some models take them beside
it: there a prompt of words alone is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from PIL import Image

from llava_probe.asking.templates import templated
from llava_probe.errors import BadInput

#: What has been found of each processor, by its template and what was asked.
_FOUND: WeakKeyDictionary[Any, dict[tuple[str, str], Any]] = WeakKeyDictionary()


def marks_of(processor: Any, kind: str) -> list[str]:
    """What may stand for a picture (a video) in a prompt: the processor's tokens, what its template writes for one."""
    written = _written(processor, kind)
    return [*own_marks(processor, kind), *([written] if written else [])]


def own_marks(processor: Any, kind: str) -> list[str]:
    """The processor's own tokens for a picture (a video)."""
    names = ("image_token", "boi_token") if kind == "image" else ("video_token",)
    return [str(mark) for name in names if (mark := getattr(processor, name, None))]


def puts_pictures(processor: Any) -> bool:
    """Whether the processor shows the model a picture for which the prompt has no place.

    Tried once with a small picture: it does where its tokens are among the ids, where these become more, or where the
    processor has no token for one at all.
    """

    def tried() -> bool:
        own = own_marks(processor, "image")
        try:
            shown = processor(text=["?"], images=[[Image.new("RGB", (32, 32))]])["input_ids"][0]
            if {int(token) for token in shown} & set(processor.tokenizer.convert_tokens_to_ids(own)):
                return True
            return not own or len(shown) > len(processor(text=["?"])["input_ids"][0])
        except Exception:  # each processor has errors of its own, a picture without a place among them
            return False

    return bool(_once(processor, "puts pictures", tried))


def bare_prompt(processor: Any, words: str, images: int, videos: int = 0) -> str:
    """The barest prompt, for where there is no template: a place for each picture, then the words."""
    kinds = () if puts_pictures(processor) else ("image",) * images
    marks = [mark for kind in (*kinds, *("video",) * videos) for mark in marks_of(processor, kind)[:1]]
    return " ".join([*marks, words])


def _written(processor: Any, kind: str) -> str:
    """What the chat template writes for a picture (a video); nothing where it refuses one."""
    return str(_once(processor, kind, lambda: _difference(processor, kind)))


def _once(processor: Any, what: str, find: Callable[[], Any]) -> Any:
    known = _FOUND.setdefault(processor, {})
    key = str(getattr(processor, "chat_template", None)), what
    if key not in known:
        known[key] = find()
    return known[key]


def _difference(processor: Any, kind: str) -> str:
    text = {"type": "text", "text": "?"}
    try:
        without, with_one = (
            templated(processor, [{"role": "user", "content": [*place, text]}]) for place in ([], [{"type": kind}])
        )
    except BadInput:
        return ""
    if "{'type':" in with_one:  # a template for words alone writes a list as Python does
        return ""
    before = _shared(without, with_one)
    after = _shared(without[before:][::-1], with_one[before:][::-1])
    return with_one[before : len(with_one) - after].strip()


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
