"""CHAIR: how much of what captions name is not on the picture, with all that it takes to get the same figure again.

    found = lp.chair("captions.jsonl", "instances_val2014.json", "captions_val2014.json", prompt="Describe the image.",
                     max_new_tokens=64, decoding="greedy")
    found = lp.chair({42: trace, 73: trace}, ...)      # settings are read from the traces
    print(found)

    CHAIR_i = made-up mentions / all mentions of objects,    CHAIR_s = captions with one of them / all captions

(Rohrbach et al. 2018, arXiv 1809.02156). What is there is what COCO's annotations hold, and what its reference captions
name. A caption that says less makes less up, so beside both stand the recall (true objects named / true objects) and
the words a caption. Length limit, decoding, prompt, a cut last sentence, pictures and synonyms each change the figure
by points; they are the report's second half, and what nobody told is said to be unknown.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llava_probe.analyzers.table import Table, Tabular
from llava_probe.border import Count, checked
from llava_probe.errors import BadInput, shortened
from llava_probe.features.sources import open_source
from llava_probe.signals.binding import Binding
from llava_probe.signals.coco import CocoFiles, on_pictures, paths_of, picture_number
from llava_probe.signals.measured import Estimate, grouped, ratio
from llava_probe.signals.mentions import Mention, named
from llava_probe.signals.rows import cell_of, each_row, is_looped, is_table
from llava_probe.signals.synonyms import Synonyms
from llava_probe.trace.trace import Trace

_UNKNOWN = "not told"
#: Digits of a digest that a report shows.
_DIGITS = 12
_NUMBER, _CAPTION = ("image_id", "image"), ("caption", "text")
#: Settings of a generation that change what is said.
_DECODING = (
    *("do_sample", "num_beams", "temperature", "top_p", "top_k", "min_p", "length_penalty", "repetition_penalty"),
    *("no_repeat_ngram_size", "early_stopping"),
)
#: An end of a sentence, and what may close behind it.
_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s|$)")


@dataclass(frozen=True)
class CaptionReport:
    """What one caption names.

    Attributes:
        picture: its number; ``caption``: as it was read, a dropped sentence left out.
        mentions: of objects, each time; ``made_up``: those that are not there.
        there: the objects on the picture.
    """

    picture: int
    caption: str
    mentions: tuple[Mention, ...]
    made_up: tuple[Mention, ...]
    there: frozenset[str]

    @property
    def missed(self) -> frozenset[str]:
        """Objects on the picture that it does not name."""
        return self.there - {mention.object for mention in self.mentions}


@checked
@dataclass(frozen=True)
class Chair(Tabular):
    """What captions make up. Intervals are 95 % over pictures.

    Attributes:
        chair_i: the share of mentions of objects that are not there; ``chair_s``: of captions with one of them.
        recall: the share of objects there that are named; ``words``: a caption, parted by spaces.
        settings: what the figures depend on, by name, for people to read.
        captions: of each one what it names.
    """

    chair_i: Estimate
    chair_s: Estimate
    recall: Estimate
    words: Estimate
    settings: Mapping[str, str]
    captions: tuple[CaptionReport, ...] = field(repr=False)

    @property
    def measures(self) -> dict[str, Estimate]:
        """All four by name."""
        return {name: getattr(self, name) for name in ("chair_i", "chair_s", "recall", "words")}

    def table(self) -> str:
        """The measures and the settings, a line each, to print."""
        return self._shown().text()

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Measures and settings as plain data, ready for JSON."""
        return {**{name: each.to_dict() for name, each in self.measures.items()}, "settings": dict(self.settings)}

    def _repr_html_(self) -> str:
        return self._shown().html()

    def _shown(self) -> Table:
        told = {name: str(each) for name, each in self.measures.items()} | dict(self.settings)
        return Table({"CHAIR": list(told), "": list(told.values())})

    def _columns(self) -> Table:
        rows = self.captions
        return Table(
            {
                "picture": [row.picture for row in rows],
                "caption": [row.caption for row in rows],
                "mentions": [len(row.mentions) for row in rows],
                "made_up": [[mention.object for mention in row.made_up] for row in rows],
                "missed": [sorted(row.missed) for row in rows],
            }
        )


@checked
def chair(
    captions: Any,
    instances: CocoFiles,
    references: CocoFiles | None = None,
    *,
    synonyms: str | Path | None = None,
    drop_cut: bool = False,
    prompt: str | None = None,
    max_new_tokens: Count | None = None,
    decoding: str | None = None,
) -> Chair:
    """Which objects captions name, and which of them are not on the picture.

    Args:
        captions: a file or rows with ``image_id`` (or ``image``) and ``caption`` (or ``text``), and where they tell it
            ``prompt``, ``max_new_tokens``, ``decoding`` and whether it was ``cut``; or captions or traces by the number
            of their picture, as a dict or in pairs.
        instances: COCO's ``instances_*.json``, one or several; ``references``: its ``captions_*.json``, whose objects
            are there too. Without them the figures are higher than those of papers.
        synonyms: a file with a line an object, ``couch, sofa, settee``; papers use that of the first one, which holds
            more words than ours.
        drop_cut: leave out a last sentence that does not end, where the length limit cut it.
        prompt, max_new_tokens, decoding: how captions that do not tell it were made, for the report.

    Raises:
        BadInput: a row that cannot be read, a picture that the instances do not have, or a category without a word: the
            sentence names the line.
    """
    words = Synonyms.own() if synonyms is None else Synonyms.read(synonyms)
    read = [*_read(captions)]
    if not read:
        raise BadInput("there is no caption to read")
    there = on_pictures({one.picture for one in read}, instances, references, words)
    kept = [_whole(one) if drop_cut else one.caption for one in read]
    reports = tuple(
        _report(one.picture, caption, there[one.picture], words) for one, caption in zip(read, kept, strict=True)
    )
    dropped = sum(caption != one.caption for one, caption in zip(read, kept, strict=True))
    settings = {
        "prompt": _prompt(read, prompt),
        "max new tokens": _agreed((one.limit for one in read), max_new_tokens),
        "decoding": _agreed((one.decoding for one in read), decoding),
        "cut last sentence": f"dropped in {dropped} of {len(read)}" if drop_cut else "kept",
        "pictures": f"{len(there)}, sha256 {_digest(sorted(there))}",
        "synonyms": f"{len(words.object_of)} words for {len(words.objects)} objects of {words.name}, "
        f"sha256 {words.digest[:_DIGITS]}",
        "what is there": ", ".join(
            Path(path).name for each in (instances, references or ()) for path in paths_of(each)
        ),
    }
    return Chair(**_measured(reports), settings=settings, captions=reports)


@dataclass(frozen=True)
class ReadCaption:
    """A caption, and what is known of how it was made.

    Attributes:
        picture: its number.
        cut: whether the length limit ended it; None where nobody told, as ``prompt``, ``limit`` and ``decoding``.
        binding: with what it was made, of a trace.
    """

    picture: int
    caption: str
    cut: bool | None = None
    prompt: str | None = None
    limit: str | None = None
    decoding: str | None = None
    binding: Binding | None = None

    def to_dict(self) -> dict[str, Any]:
        """A row that ``lp.chair`` reads."""
        told = {"image_id": self.picture, "caption": self.caption, "cut": self.cut, "prompt": self.prompt}
        return {**told, "max_new_tokens": self.limit, "decoding": self.decoding}


def _read(captions: Any) -> Iterator[ReadCaption]:
    """Every caption with its picture, and what a trace tells besides."""
    by_column = isinstance(captions, Mapping) and {*_NUMBER, *_CAPTION} & set(captions)
    if isinstance(captions, Mapping) and not by_column:
        captions = captions.items()
    if isinstance(captions, str | Path) or by_column or is_table(captions):
        for where, row in each_row(open_source(captions)):
            yield _of_row(row, where)
        return
    if not is_looped(captions):
        raise BadInput(f"captions are a file, rows, or texts or traces by picture; got {type(captions).__name__}")
    for place, entry in enumerate(captions):
        if isinstance(entry, Mapping):
            yield _of_row(entry, f"row {place}")
        elif isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[1], str | Trace):
            picture, caption = picture_number(entry[0], f"caption {place}"), entry[1]
            yield caption_of(picture, caption) if isinstance(caption, Trace) else ReadCaption(picture, caption)
        else:
            raise BadInput(f"caption {place} is neither a row nor a picture's number with its caption or trace")


def _of_row(row: Mapping[str, Any], where: str) -> ReadCaption:
    caption = cell_of(row, _CAPTION, where, "caption")
    if not isinstance(caption, str):
        raise BadInput(f"the caption of {where} is a {type(caption).__name__} and no text")
    cut = row.get("cut")
    prompt, limit, decoding = (
        None if row.get(name) is None else str(row[name]) for name in ("prompt", "max_new_tokens", "decoding")
    )
    picture = picture_number(cell_of(row, _NUMBER, where, "picture"), where)
    return ReadCaption(picture, caption, cut if isinstance(cut, bool) else None, prompt, limit, decoding)


def caption_of(picture: int, trace: Trace) -> ReadCaption:
    """What an answer says of the picture of some number."""
    settings = {**trace.provenance.get("decoding", {}), **trace.request.generate}
    binding = Binding.of(trace)
    return ReadCaption(
        picture,
        trace.answer,
        trace.cut_off,
        " ... ".join(binding.prompt),
        str(settings.get("max_new_tokens", "the model's own")),
        "a given answer" if trace.scored else _way(settings, trace.request.seed),
        binding,
    )


def _way(settings: Mapping[str, Any], seed: int | None) -> str:
    """How an answer was found, in words: ``greedy``, or what was set."""
    told = {name: settings[name] for name in _DECODING if settings.get(name) is not None}
    sampled, beams = bool(told.pop("do_sample", False)), told.pop("num_beams", 1)
    if not sampled:
        told = {name: value for name, value in told.items() if name not in ("temperature", "top_p", "top_k", "min_p")}
    way = "sampling" if sampled else "greedy" if beams == 1 else "beam search"
    told |= {"num_beams": beams} if beams != 1 else {}
    told |= {"seed": seed} if sampled and seed is not None else {}
    return ", ".join([way, *(f"{name} {value}" for name, value in told.items())])


def _whole(one: ReadCaption) -> str:
    """The caption up to its last full sentence, where it was cut; all of it where no sentence ends."""
    caption = one.caption.rstrip()
    found = [*_END.finditer(caption)]
    if one.cut is False or not found or found[-1].end() == len(caption):
        return one.caption
    return caption[: found[-1].end()]


def _report(picture: int, caption: str, there: frozenset[str], words: Synonyms) -> CaptionReport:
    mentions = named(caption, words)
    return CaptionReport(picture, caption, mentions, tuple(one for one in mentions if one.object not in there), there)


def _measured(reports: tuple[CaptionReport, ...]) -> dict[str, Estimate]:
    pictures, count = grouped([report.picture for report in reports], len(reports), "captions")
    ones = np.ones(len(reports))
    mentions, made_up, there, missed, words = np.array(
        [
            (len(one.mentions), len(one.made_up), len(one.there), len(one.missed), len(one.caption.split()))
            for one in reports
        ],
        dtype=np.float64,
    ).T
    parts = {
        "chair_i": (made_up, mentions),
        "chair_s": (made_up > 0, ones),
        "recall": (there - missed, there),
        "words": (words, ones),
    }
    return {name: ratio(above, below, pictures, count) for name, (above, below) in parts.items()}


# --- settings ---


def _prompt(read: list[ReadCaption], told: str | None) -> str:
    found: Binding | None = None
    for number, one in enumerate(read):
        if one.binding is not None:
            found = one.binding if found is None else found.joined(one.binding, f"number {number}")
    joined = [] if found is None else [" ... ".join(found.prompt)]
    return _agreed([*joined, *(one.prompt for one in read if one.binding is None)], told).replace("\n", "⏎")


def _agreed(found: Iterable[str | None], told: Any) -> str:
    """How all were made; ``told`` of those that do not tell it."""
    known = (told if way is None else way for way in found)
    ways = list(dict.fromkeys(str(way) for way in known if way is not None))
    if not ways:
        return _UNKNOWN
    return ways[0] if len(ways) == 1 else f"several: {shortened('; '.join(ways))}"


def _digest(numbers: list[int]) -> str:
    return hashlib.sha256("\n".join(map(str, numbers)).encode()).hexdigest()[:_DIGITS]
