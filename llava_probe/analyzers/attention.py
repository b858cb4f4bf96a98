"""Where each generated token's prediction looked: attention weights on the visual tokens, as a map.

    lp.attention_map(trace)                          # the answer's content words, all layers and heads averaged
    lp.attention_map(trace, tokens=lp.GENERATED)     # a row for each generated token
    lp.attention_map(trace, tokens="STOP", layers=range(8, 16))
    lp.attention_map(trace, relative_to=neutral)     # over what a neutral question looks at anyway

A value is a share of one attention row: what falls on text is left out and not shared out again, so rows can be
compared. Relative attention is A(question) / A(neutral): Zhang et al. 2025, "MLLMs Know Where to Look" (arXiv
2502.17422). Attention says where information could have come from, not what it was used for: see ``lp.attribute``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_probe.analyzers.sinks import sinks as find_sinks
from llava_probe.border import checked
from llava_probe.errors import BadInput, NotANumber
from llava_probe.maps.maps import ImageMap
from llava_probe.trace.explained import Tokens, explained, placed, queries, told
from llava_probe.trace.trace import Trace

Numbers = int | Iterable[int] | None

REDUCTIONS = ("mean", "max")

#: Added to the neutral map before dividing, as a share of its mean: a visual token that it all but ignores would
#: otherwise win whatever the question.
FLOOR = 0.01


@checked
def attention_map(
    trace: Trace,
    image: int = 0,
    tokens: Tokens = None,
    layers: Numbers = None,
    heads: Numbers = None,
    *,
    reduce: str = "mean",
    sinks: str = "keep",
    relative_to: Trace | None = None,
) -> ImageMap:
    """How much each explained token's prediction attended to each visual token of one picture.

    Args:
        trace: with attention rows.
        image: which picture.
        tokens: positions, words or places (``trace.positions``), a row for each position and for each time that a word
            is said, the mean of its tokens'; the answer's content words when None. A generated token is explained by
            the row that predicted it, a prompt token by its own.
        layers, heads: the model's own numbers; all that were kept when None.
        reduce: ``"mean"`` or ``"max"`` over them.
        sinks: ``"drop"`` sets tokens that draw attention without content (``lp.sinks``) to 0 and marks them.
        relative_to: a trace of the same picture asked something neutral ("Describe the picture."); each value is
            divided by that of the row that predicted its first token.

    Returns:
        ImageMap with values [tokens, N]; ``about`` tells which tokens were asked for, and each row's share on this
        picture and on the dropped sinks, where the rows are means (largest values add up to no share).

    Raises:
        NotCaptured: rows that were not kept, or for ``sinks="drop"`` hidden states.
        OutOfRange: a picture, position, layer or head that is not there.
        BadInput: an unknown option, or a neutral trace of another picture, or one that kept other layers or heads.
        NotANumber: the model's attention was NaN.
    """
    if sinks not in ("keep", "drop"):
        raise BadInput(f'sinks= takes "keep" or "drop"; got {sinks!r}')
    layout = placed(trace, image)
    wanted, words = explained(trace, tokens)
    columns = torch.from_numpy(layout.positions)
    layers, heads = axis_list("layers", layers), axis_list("heads", heads)
    values = by_word(words, lambda at: reduced(trace, queries(trace, at), columns, layers, heads, reduce))
    about: dict[str, Any] = {
        "unit": "share of attention",
        "tokens": told(tokens),
        "positions": words,
        "layers": layers or list(trace.attention_layers),
        "heads": heads or list(trace.attention_heads),
        "chosen": chosen(layers, heads),
        "reduce": reduce,
        "sinks": sinks,
    }
    if reduce == "mean":
        about["image_share"] = values.sum(1).tolist()
    marked = None
    if sinks == "drop":
        marked = find_sinks(trace, image).marked
        if reduce == "mean":
            about["sink_share"] = values[:, marked].sum(1).tolist()
        values = values.masked_fill(marked, 0.0)
    if relative_to is not None:
        _check_comparable(trace, relative_to, image, layers, heads)
        first = [relative_to.prompt_length - 1]
        places = torch.from_numpy(placed(relative_to, image % len(trace.images)).positions)
        neutral = reduced(relative_to, first, places, layers, heads, reduce)
        values = values / (neutral + FLOOR * neutral.mean())
        about |= {"unit": "attention over neutral attention", "neutral": neutral.squeeze(0).tolist()}
    return ImageMap(values, layout, trace.images[image], wanted, "attention", marked, about)


def by_word(words: Sequence[Sequence[int]], rows_at: Callable[[list[int]], Tensor]) -> Tensor:
    """[words, ...] the mean over each word's tokens of ``rows_at``: [positions, ...]; each position is read once."""
    rows = rows_at([position for word in words for position in word])
    return torch.stack([part.mean(0) for part in rows.split([len(word) for word in words])])


def reduced(
    trace: Trace, positions: Sequence[int], columns: Tensor, layers: Numbers, heads: Numbers, reduce: str
) -> Tensor:
    """Attention of some query positions on some key positions, [positions, columns], layers and heads reduced.

    Raises:
        BadInput: an unknown reduction, or no layer or head at all.
        NotANumber: NaN in a row.
    """
    if reduce not in REDUCTIONS:
        raise BadInput(f"reduce= takes {' or '.join(map(repr, REDUCTIONS))}; got {reduce!r}")
    layers, heads = axis_list("layers", layers), axis_list("heads", heads)
    reduced_rows = []
    for row in trace.each_row(list(positions), layers, heads):
        weights = row[..., columns].float().flatten(0, 1)
        reduced_rows.append(weights.mean(0) if reduce == "mean" else weights.amax(0))
    found = torch.stack(reduced_rows)
    if bool(torch.isnan(found).any()):
        raise NotANumber("attention rows hold NaN; in half precision this is an overflow: load the model in bfloat16")
    return found


def axis_list(name: str, given: Numbers) -> list[int] | None:
    """Layers or heads as a list, whichever way they were given: numbers of numpy or torch, arrays and ranges too.

    Raises:
        BadInput: an empty list, or something that is no whole number.
    """
    if given is None:
        return None
    try:
        listed = _whole(given)
    except TypeError:
        listed = []
    if not listed:
        raise BadInput(f"{name}= takes a whole number, a list of them, or None for all that were kept; got {given!r}")
    return listed


def chosen(layers: Sequence[int] | None, heads: Sequence[int] | None) -> str:
    """Layers and heads that were named, as words for a caption: ``"layer 3, head 1"``; empty where none were."""
    return ", ".join(_in_words(name, given) for name, given in (("layer", layers), ("head", heads)) if given)


def _in_words(name: str, numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"{name} {numbers[0]}"
    row = list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{name}s {numbers[0]} to {numbers[-1]}" if row else f"{name}s {', '.join(map(str, numbers))}"


def _whole(given: Any) -> list[int]:
    """One whole number or several as a list; TypeError for anything else, True and False among it."""
    single = not isinstance(given, Iterable) or getattr(given, "ndim", None) == 0
    listed = [given] if single else list(given)
    if any(isinstance(number, bool) for number in listed):
        raise TypeError("a truth value is no number")
    return [operator.index(number) for number in listed]


def _check_comparable(
    trace: Trace, other: Trace, image: int, layers: list[int] | None, heads: list[int] | None
) -> None:
    """One map can be divided by the other: the same picture, cut alike, averaged over the same layers and heads."""
    check_same_picture(trace, other, image)
    for name, given in (("layers", layers), ("heads", heads)):
        kept, other_kept = (getattr(each, f"attention_{name}") for each in (trace, other))
        if given is None and kept != other_kept:
            raise BadInput(
                f"relative_to= takes a trace that kept the same {name}: it kept {list(other_kept)}, this one "
                f"{list(kept)}; pass {name}= with some that both kept"
            )


def check_same_picture(trace: Trace, other: Trace, image: int) -> None:
    """Refuse a neutral trace of another picture, or one cut into other visual tokens.

    Raises:
        BadInput: it is one.
    """
    index = image % len(trace.images)
    if index >= len(other.images) or not _same(trace.images[index], other.images[index]):
        raise BadInput(f"relative_to= takes a trace of the same picture; its picture {index} is another, or missing")
    own, its = placed(trace, index), placed(other, index)
    if len(own) != len(its):
        raise BadInput(
            f"relative_to= takes a trace of the same model: its picture {index} has {len(its)} visual tokens, "
            f"this one's {len(own)}"
        )
    if own.grid != its.grid or not (np.array_equal(own.boxes, its.boxes) and np.array_equal(own.tiles, its.tiles)):
        raise BadInput(
            f"relative_to= takes a trace made with the same processor_kwargs=: the visual tokens of its picture {index}"
            " lie elsewhere on the photograph"
        )


def _same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()
