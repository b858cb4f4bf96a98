"""Which tokens are meant: one reader of ``tokens=``, ``at=``, ``keys=`` and ``queries=``, whoever asks.

    positions(trace, "stop sign")          # where these words stand: in the answer if it says them, else in the prompt
    positions(trace, "stop#2")             # the second time; "stop#-1" the last
    positions(trace, IMAGE)                # a place; "image" says the same, unless it is a word of this trace too
    positions(trace, [3, -1, QUESTION])    # places in the whole sequence and names, in one list
    spans(trace, None)                     # the answer's content words, the positions of each
    positions(trace, Region(box))          # the visual tokens of a part of the photograph
    placed(trace, 0)                       # the layout of the first picture

Anything that is written in tokens can be read so: a trace, or a prompt of which none exists yet. A string names a word
or a place. Where it is both in one text it is refused, with what to type for either; the constants always mean the
place. What comes out follows the order of what was asked for.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from PIL import Image

from llava_probe.errors import BadInput, OutOfRange
from llava_probe.layout import ImageLayout
from llava_probe.trace.region import Region
from llava_probe.trace.tokens import Token, divided, find


@dataclass(frozen=True, repr=False)
class Place:
    """A named part of the sequence, which no word can be taken for."""

    name: str

    def __repr__(self) -> str:
        return f"lp.{self.name.upper()}"


IMAGE = Place("image")  #: The visual tokens of all pictures.
TEXT = Place("text")  #: The prompt without its visual tokens.
PROMPT = Place("prompt")  #: The prompt's words, its template's among them.
QUESTION = Place("question")  #: The words as they were asked.
LAST = Place("last")  #: The last prompt position.
PREDICTING = Place("predicting")  #: The position that predicted each generated token.
ANSWER = Place("answer")  #: The generated tokens without what ends them.
GENERATED = Place("generated")  #: Each generated token.
SPECIAL = Place("special")  #: The prompt's special tokens.
ALL = Place("all")  #: Every token that was fed to the model: not the last of an answer.

#: Places by name; ``"last_prompt"`` is how ``Capture`` spells the last position of the prompt.
PLACES: Mapping[str, Place] = {
    place.name: place for place in (IMAGE, TEXT, PROMPT, QUESTION, LAST, PREDICTING, ANSWER, GENERATED, SPECIAL, ALL)
} | {"last_prompt": LAST}

#: English words that carry no content of their own: what an answer would say of any picture.
FUNCTION_WORDS = frozenset(
    """
    a an the this that these those there here it its he she they them his her their i you we my your our me us him
    is are was were be been being am do does did has have had can could will would shall should may might must
    and or but nor so yet if then than as of at by for from in into on onto to with without within over under up down
    off out about who whom whose which what when where why how not s t also very just some any each both all
    image picture photo photograph shows depicts features
    """.split()  # noqa: SIM905
)

#: A position (negative from the end), a word, a place, a part of a photograph, or a list of these, in which a list of
#: positions is one word.
At = int | str | Place | Region | Sequence[int | str | Place | Region | Sequence[int]]
#: The same, or None for the content words of the answer.
Tokens = At | None


class InTokens(Protocol):
    """Anything written in tokens: a trace, or a prompt that was not answered yet."""

    @property
    def tokens(self) -> Sequence[Token]:
        """Of prompt and answer."""

    @property
    def prompt_length(self) -> int:
        """How many of them are the prompt's."""

    @property
    def question(self) -> str | None:
        """The words as they were asked, where they are known."""

    @property
    def ends(self) -> frozenset[int]:
        """The ids that are no words of an answer: special ones, and what ends it."""


class Pictured(Protocol):
    """A trace, as far as its pictures go."""

    @property
    def images(self) -> Sequence[Image.Image]:
        """The originals."""

    @property
    def layouts(self) -> Sequence[ImageLayout]:
        """Where their visual tokens lie."""

    @property
    def provenance(self) -> Mapping[str, Any]:
        """With what it was made."""


def positions(written: InTokens, at: Tokens) -> list[int]:
    """The positions that ``at`` names.

    Args:
        written: a trace, or a prompt.
        at: a position (negative counts from the end; numbers of numpy and torch too); a word or words, all the times
            that the answer says them, or else the prompt; a place, by its constant or its name; a part of a photograph;
            a list of these; or None for the content words of the answer.

    Raises:
        OutOfRange: a position or word that is not there.
        BadInput: a string that is a word of this text and a place, something that is no position, or the words of a
            question that is not known.
    """
    return [place for span in spans(written, at) for place in span]


def spans(written: InTokens, tokens: Tokens) -> list[list[int]]:
    """The same with the positions of each word together.

    A word is one list for each time that it stands there, ``ANSWER`` is one for the whole answer, and a list of
    positions inside a list is one; everything else is a list for each position.

    Raises:
        OutOfRange, BadInput: as for ``positions``.
    """
    if tokens is None:
        return _content(written)
    if isinstance(tokens, str | Place | Region):
        return _named(written, tokens)
    if _single(tokens):
        return [[_position(written, tokens)]]
    found = []
    for part in tokens:  # type: ignore[union-attr]
        if isinstance(part, str | Place | Region):
            found += _named(written, part)
        elif _single(part):
            found.append([_position(written, part)])
        else:
            found.append(sorted({_position(written, place) for place in part}))  # type: ignore[union-attr]
    return found


def explained(written: InTokens, tokens: Tokens = None) -> tuple[tuple[Token, ...], list[list[int]]]:
    """What each row of a result is about: a token for each of ``spans``, which stands for all its span, and the spans.

    Raises:
        BadInput: none at all.
        OutOfRange: a position or word that is not there.
    """
    found = [span for span in spans(written, tokens) if span]
    if not found:
        raise BadInput(f"tokens={tokens!r} names no token; leave it out for the content words of the answer")
    return tuple(as_one(written, span) for span in found), found


def as_one(written: InTokens, positions: Sequence[int]) -> Token:
    """One token that stands for several: the first one's place, all their text."""
    parts = [written.tokens[position] for position in positions]
    return replace(parts[0], text="".join(part.text for part in parts))


def told(tokens: Tokens) -> str:
    """How a map tells which tokens it was asked for: ``"content words"``, the word or place, or ``"positions"``."""
    if tokens is None:
        return "content words"
    if isinstance(tokens, Place):
        return tokens.name
    if isinstance(tokens, Region):
        return repr(tokens)
    return tokens if isinstance(tokens, str) else "positions"


def place_named(at: Any) -> Place | None:
    """The place that ``at`` names, if it is one and not a list, a number or a word."""
    return PLACES.get(at) if isinstance(at, str) else at if isinstance(at, Place) else None


def queries(written: InTokens, positions: Iterable[int]) -> list[int]:
    """The position whose row explains each token: for a generated one the position that predicted it, else its own."""
    return [position - (position >= written.prompt_length) for position in positions]


def placed(pictured: Pictured, image: int = 0) -> ImageLayout:
    """The layout of one picture of the prompt.

    Raises:
        OutOfRange: there is no such picture.
        BadInput: the places of this family's visual tokens are not known.
    """
    pictures = len(pictured.images)
    if isinstance(image, bool) or not hasattr(image, "__index__"):
        raise BadInput(f"image= takes the number of a picture, from 0; got {image!r}")
    if not -pictures <= image < pictures:
        there = f"pictures 0 to {pictures - 1}" if pictures else "no picture"
        raise OutOfRange(f"picture {image} is not there: this trace has {there}")
    if len(pictured.layouts) != pictures:
        reason = str(pictured.provenance.get("places", "not known")).removeprefix("not known")
        raise BadInput(
            f"where the visual tokens of {pictured.provenance.get('class', 'this model')} lie on a picture is not known"
            f"{reason}; no map can be drawn, but trace.rows and trace.hidden still read them"
        )
    return pictured.layouts[image]


def seen(pictured: Pictured, image: int = 0) -> ImageLayout:
    """The same of a picture that the model was shown.

    Raises:
        OutOfRange: it has no visual tokens.
    """
    layout = placed(pictured, image)
    if not len(layout):
        shown = [number for number, each in enumerate(pictured.layouts) if len(each)]
        there = f"those that have are {_numbered(shown)}" if shown else "none has"
        raise OutOfRange(
            f"picture {image % len(pictured.layouts)} has no visual tokens, so nothing can be said of it: the sampling "
            f"of a video's frames, or a crop, left it out; {there}"
        )
    return layout


def _numbered(numbers: Sequence[int], most: int = 8) -> str:
    return ", ".join(map(str, numbers[:most])) + (" ..." if len(numbers) > most else "")


# --- names ---


def _named(written: InTokens, name: str | Place | Region) -> list[list[int]]:
    if isinstance(name, Region):
        layout = seen(written, name.image)  # type: ignore[arg-type]
        return [[int(layout.positions[token])] for token in name.tokens(layout)]
    if isinstance(name, Place):
        return _at_place(written, name)
    place = PLACES.get(name)
    if place is None:
        return _spelled(written, name)
    words = [t for t in written.tokens if t.role in ("prompt", "generated") and t.id not in written.ends]
    if find(words, name):
        raise BadInput(
            f"{name!r} is the name of a place and a word of this text; give trace.find({name!r}) for the word, "
            f"{place!r} for the place"
        )
    return _at_place(written, place)


def _at_place(written: InTokens, place: Place) -> list[list[int]]:
    if place == ANSWER:
        return [_answer(written)]
    first, fed = written.prompt_length - 1, max(written.prompt_length, len(written.tokens) - 1)
    ranges: dict[Place, Iterable[int]] = {LAST: [first], PREDICTING: range(first, fed), ALL: range(fed)}
    if place == QUESTION:
        found: Iterable[int] = _question(written)
    elif place == TEXT:
        found = [token.position for token in written.tokens[: written.prompt_length] if token.role != "image"]
    elif place in ranges:
        found = ranges[place]
    else:
        found = [token.position for token in written.tokens if token.role == place.name]
    return [[position] for position in found]


def _question(written: InTokens) -> range:
    """The last place of the prompt where the question stands as it was asked."""
    if written.question is None:
        raise BadInput(
            "the question in plain words is not known: the prompt was given ready made; name its words, "
            "at=trace.find('...'), or all of the prompt's, lp.PROMPT"
        )
    found = find(written.tokens[: written.prompt_length], written.question, occurrence=-1)
    if not found:
        raise OutOfRange(
            f"the question {written.question!r} does not stand in the prompt as it was asked: the model's template "
            "writes it in another way; name its words, at=trace.find('...'), or all of the prompt's, lp.PROMPT"
        )
    return range(found[0], found[-1] + 1)  # a token that is part of a letter spells nothing by itself


def _spelled(written: InTokens, name: str) -> list[list[int]]:
    """The times that the answer says something, or else the prompt."""
    found = _times(written, name)
    if not found and (counted := re.fullmatch(r"(.*\S)#(-?[1-9]\d{0,8})", name.strip(), re.DOTALL)):
        word, time = counted[1], int(counted[2])
        found = _times(written, word)
        if found and abs(time) > len(found):
            raise OutOfRange(f"{word!r} stands there {len(found)} times; {name!r} asks for another")
        found = [found[time - (time > 0)]] if found else []
    if found:
        return found
    names = ", ".join(PLACES)
    said = _said(written)
    where = f"neither a word of {said!r} nor of its prompt, nor" if said else "neither a word of the prompt nor"
    raise OutOfRange(f"{name!r} is {where} a place ({names})")


def _times(written: InTokens, name: str) -> list[list[int]]:
    for role in ("generated", None):
        found: list[list[int]] = []
        while places := find(written.tokens, name, role, occurrence=len(found)):
            found.append(list(places))
        if found:
            return found
    return []


def _position(written: InTokens, given: Any) -> int:
    if isinstance(given, bool) or not hasattr(given, "__index__"):
        raise BadInput(f"a position is named by a whole number; got {given!r}")
    try:
        place = operator.index(given)
    except TypeError:  # a tensor of another kind
        raise BadInput(f"a position is named by a whole number; got {given!r}") from None
    count = len(written.tokens)
    if not -count <= place < count:
        raise OutOfRange(f"position {place} is not there: this text has {count} tokens, 0 to {count - 1}")
    return place % count


def _single(given: Any) -> bool:
    """Whether it is no list: a scalar of numpy or torch can be taken for one."""
    return not isinstance(given, Iterable) or getattr(given, "ndim", None) == 0


# --- words of the answer ---


def _answer(written: InTokens) -> list[int]:
    """The generated tokens but those that end it; where nothing else was said, the first of them."""
    end = len(written.tokens)
    while end > written.prompt_length + 1 and written.tokens[end - 1].id in written.ends:
        end -= 1
    return list(range(written.prompt_length, end))


def _content(written: InTokens) -> list[list[int]]:
    """The answer's content words; where it has none all its words, where it has no word all of it."""
    first = written.prompt_length
    said = written.tokens[first:]
    if not said:
        raise BadInput("there is no answer yet whose words could be meant; name positions, a word or a place")
    words = [_bare(said, word) for word in divided(said, written.ends)]
    content = [word for word in words if _letters(said, word) not in FUNCTION_WORDS | {""}]
    return [[first + step for step in word] for word in content or words or [list(range(len(said)))]]


def _bare(said: Sequence[Token], word: list[int]) -> list[int]:
    """A word without the tokens of punctuation around it, where it is more than that."""
    spelled = [step for step in word if _letters(said, [step])]
    return list(range(spelled[0], spelled[-1] + 1)) if spelled else word


def _letters(said: Sequence[Token], steps: Sequence[int]) -> str:
    text = "".join(said[step].text for step in steps)
    return "".join(letter for letter in text if letter.isalnum()).casefold()


def _said(written: InTokens) -> str:
    return "".join(written.tokens[place].text for place in _answer(written)).strip()
