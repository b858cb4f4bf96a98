"""Interventions as flags: ``--knock-out "keys=image queries=last layers=8-16"``, and ablate, reweight, steer.

Each flag takes settings with blanks between them, by the names that Python knows: ``lp.knock_out(vlm, keys="image",
queries="last", layers=range(8, 17))``. Numbers may be ranges that hold both ends; a place is positions (3-17), a word
or words, or a place's name; ``box=10,20,60,80`` is a part of the photograph (``lp.Region``) in place of them. A flag
may be given several times, and flags hold in the order in which they were typed, the first one outermost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from llava_probe.cli import arguments
from llava_probe.errors import BadInput, ProbeError, shortened
from llava_probe.escaping import visible

if TYPE_CHECKING:
    from llava_probe.interventions.intervention import Act, Intervention
    from llava_probe.model import VLM

of_interventions = partial(typer.Option, rich_help_panel="Interventions", metavar="SETTINGS")

#: More numbers than any sequence has positions: what a range may not hold.
_MOST = 1_000_000
_DIGITS = 9

#: Under which name what was typed is kept, for its order.
_TYPED = "llava_probe.typed"


class InOrder(TyperCommand):
    """A command that keeps what was typed: typer tells the values of each flag, not which flag came first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As it always does, and a note of it."""
        ctx.meta[_TYPED] = tuple(args)
        return super().parse_args(ctx, args)


@dataclass(frozen=True)
class InterventionOptions:
    """What is taken away from the model or changed in it while it runs."""

    knock_out: Annotated[
        list[str] | None,
        of_interventions(help="Attention cut: 'keys=image queries=last layers=8-16'; also keep= heads= uniform=true."),
    ] = None
    ablate: Annotated[
        list[str] | None,
        of_interventions(
            help="A part taken away: 'tokens=image', 'heads=12.3,12.7', 'mlp=8-11', 'layers=20 with=zero'."
        ),
    ] = None
    reweight: Annotated[
        list[str] | None,
        of_interventions(help="More or less attention: 'keys=image queries=last by=0.2 how=logits' (weights, move)."),
    ] = None
    steer: Annotated[
        list[str] | None,
        of_interventions(
            help="A push: 'word=red layers=4 scale=2 at=image', or probe=FILE label=red in place of word="
        ),
    ] = None

    def read(self, context: typer.Context) -> list[Typed]:
        """What was typed, in its order; wrong settings are told before a model is loaded.

        Raises:
            BadInput: settings that a flag does not take; the sentence names the flag and what it does take.
        """
        given = {f"--{name.replace('_', '-')}": list(getattr(self, name) or ()) for name in self.__dataclass_fields__}
        typed = (word.partition("=")[0] for word in context.meta.get(_TYPED, ()))
        ordered = [(flag, given[flag].pop(0)) for flag in typed if given.get(flag)]
        return [_read(flag, text) for flag, text in ordered]


@dataclass(frozen=True)
class Typed:
    """One flag, read.

    Attributes:
        flag, text: as they were typed.
        settings: by the names that the function takes.
        direction: of a push: given the model, where to.
    """

    flag: str
    text: str
    settings: Mapping[str, Any]
    direction: Callable[[VLM], Any] | None = None

    @property
    def typed(self) -> str:
        """The flag and its settings."""
        return visible(f"{self.flag} {shortened(self.text)}")

    def of(self, vlm: VLM) -> AbstractContextManager[Intervention]:
        """The intervention."""
        from llava_probe import interventions

        kind: Any = getattr(interventions, self.flag[2:].replace("-", "_"))
        given = () if self.direction is None else (self.direction(vlm),)
        return kind(vlm, *given, **self.settings)  # type: ignore[no-any-return]


@contextmanager
def under(vlm: VLM, asked: Sequence[Typed], *, plans: bool = True, may_be_done: bool = False) -> Iterator[None]:
    """All of them in force while this lasts, the first one outermost; their plans are told before, their acts after.

    Args:
        vlm: the model; ``asked``: the interventions.
        plans: whether the plans are told.
        may_be_done: whether what runs here may find that nothing is left to run, and then nothing has to act.

    Raises:
        BadInput: what this model cannot do; the sentence names the flag.
        NotActed: one that did nothing.
    """
    force: list[tuple[Typed, Intervention]] = []
    with ExitStack() as stack:
        for each in asked:
            try:
                force.append((each, stack.enter_context(each.of(vlm))))
            except ProbeError as error:
                raise BadInput(f"{each.typed}: {_as_settings(str(error))}") from error
        for each, made in force if plans else ():
            typer.echo(f"{each.typed}\n  " + visible(made.plan(), lines=True).replace("\n", "\n  "))
        yield
        for _, made in force if may_be_done else ():
            made.allow_nothing |= not made.ran
    for each, made in force:
        typer.echo(f"{each.typed}: {acts_told(made) if made.ran else 'nothing was left to run'}")


def acts_told(intervention: Intervention) -> str:
    """Where it acted, by ranges of layers: ``acted in blocks 8-16, 196 pairs each, over 1 pass``."""
    acts: list[Act] = intervention.acts
    counts: dict[int, int] = {}
    for act in acts:
        counts[act.layer] = counts.get(act.layer, 0) + act.count
    runs: list[list[int]] = []
    for layer in sorted(counts):
        if runs and layer == runs[-1][-1] + 1 and counts[layer] == counts[runs[-1][0]]:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    states = intervention.kind == "steer" or getattr(intervention, "what", None) == "tokens"
    of, passes = (acts[0].of if acts else "nothing"), intervention.passes
    told = [
        f"{run[0]}-{run[-1]}, {counts[run[0]]:,} {of} each" if len(run) > 1 else f"{run[0]}, {counts[run[0]]:,} {of}"
        for run in runs
    ]
    where = "hidden state" if states else "block"
    where += "s" if len(counts) > 1 else ""
    return f"acted in {where} {'; '.join(told)}, over {passes} {'pass' if passes == 1 else 'passes'}"


# --- reading ---


def _read(flag: str, text: str) -> Typed:
    """Settings by name, each as what it is."""
    kind = _KINDS[flag]
    typed = _pairs(flag, text, kind)
    readers = {**_READERS, **kind.own}
    settings = {name: readers[name](f"{flag} {name}", value) for name, value in typed.items()}
    _put_box(flag, settings)
    if missing := [name for name in kind.needed if name not in settings]:
        raise BadInput(f"{flag} needs {missing[0]}, such as {kind.example!r}; got {shortened(text)!r}")
    if "with" in settings:
        settings["with_"] = settings.pop("with")
    return Typed(flag, text, settings, _direction(settings, text) if flag == "--steer" else None)


def _pairs(flag: str, text: str, kind: _Kind) -> dict[str, str]:
    """Each setting's name and value; a value goes on to the next name, so that it may hold blanks."""
    found: dict[str, str] = {}
    for part in re.split(r"\s+(?=[A-Za-z_-]+=)", text.strip()):
        name, sign, value = (each.strip() for each in part.partition("="))
        name = name.replace("-", "_")
        if not sign or not value:
            raise BadInput(
                f"{flag} takes NAME=VALUE with blanks between them, such as {kind.example!r}; got {shortened(part)!r}"
            )
        if name not in kind.takes:
            raise BadInput(f"{flag} knows no {shortened(name)!r}; it takes {', '.join(kind.takes)}")
        if name in found:
            raise BadInput(f"{flag} says {name} twice; give the flag twice for two of them")
        found[name] = value
    return found


def _put_box(flag: str, settings: dict[str, Any]) -> None:
    """A part of the photograph where its place belongs."""
    from llava_probe.trace.region import Region

    whole = flag == "--ablate" and not {"heads", "mlp", "layers"} & set(settings)
    place = "tokens" if whole else "at" if flag in ("--ablate", "--steer") else "keys"
    if "box" not in settings:
        of_tokens = {"ring"} if flag == "--ablate" else set()
        if alone := sorted(({"ring", "image"} - of_tokens) & set(settings)):
            raise BadInput(f"{flag} {alone[0]} is of a box, which was not given")
        return
    if also := [name for name in (place, "keep") if name in settings]:
        raise BadInput(f"{flag} box stands in place of {also[0]}; give one of the two")
    box, image, ring = settings.pop("box"), settings.pop("image", 0), settings.pop("ring", 0)
    settings[place] = Region(box, image=image, ring=ring)


def _direction(settings: dict[str, Any], text: str) -> Callable[[VLM], Any]:
    """Where a push goes, of a word or a probe."""
    word, path, label = (settings.pop(name, None) for name in ("word", "probe", "label"))
    if (word is None) == (path is None):
        raise BadInput(f"--steer takes a word, or a probe and its label; got {shortened(text)!r}")
    if label is not None and path is None:
        raise BadInput("--steer label is of a probe, which was not given")
    if word is not None:

        def of_word(vlm: VLM) -> Any:
            from llava_probe.interventions.directions import Direction

            return Direction.of_word(vlm, word)

        return of_word
    from llava_probe.interventions.directions import Direction
    from llava_probe.probes.probe import Probe

    probe = Probe.load(path)
    same = next((own for own in probe.classes if str(own) == label), label)
    direction = Direction.of_probe(probe, same)
    return lambda _vlm: direction


# --- values ---


def _numbers(what: str, text: str) -> list[int]:
    """``0-3,7`` as numbers."""
    found: list[int] = []
    for part in text.split(","):
        ends = re.fullmatch(rf"(\d{{1,{_DIGITS}}})(?:\s*-\s*(\d{{1,{_DIGITS}}}))?", part.strip(), re.ASCII)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (0, -1)
        if last < first or last - first >= _MOST:
            raise BadInput(f"{what} takes whole numbers and ranges such as 8-16,20; got {shortened(text)!r}")
        found += range(first, last + 1)
    return found


def _block_heads(what: str, text: str) -> list[tuple[int, int]]:
    """``12.3,13.0-2`` as pairs of block and head."""
    found: list[tuple[int, int]] = []
    for part in text.split(","):
        block, dot, heads = part.partition(".")
        if not dot:
            raise BadInput(f"{what} takes BLOCK.HEAD such as 12.3,12.7 or 12.0-3; got {shortened(text)!r}")
        found += [(layer, head) for layer in _numbers(what, block) for head in _numbers(what, heads)]
    return found


def _place(what: str, text: str) -> Any:
    """Positions, words and places; one of them by itself, several as a list."""
    found: list[Any] = []
    for part in (each.strip() for each in text.split(",")):
        if re.fullmatch(r"\d+(\s*-\s*\d+)?", part, re.ASCII):
            found += _numbers(what, part)
        else:
            found.append(arguments.place_or_word(part))
    return found[0] if len(found) == 1 else found


def _box(what: str, text: str) -> tuple[float, ...]:
    parts = text.split(",")
    if len(parts) != 4:
        raise BadInput(f"{what} takes four numbers x0,y0,x1,y1 in pixels of the photograph; got {shortened(text)!r}")
    return tuple(_number(what, part) for part in parts)


def _number(what: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadInput(f"{what} takes a number; got {shortened(text)!r}")
    return number


def _count(what: str, text: str) -> int:
    if not re.fullmatch(rf"\d{{1,{_DIGITS}}}", text, re.ASCII):
        raise BadInput(f"{what} takes a whole number; got {shortened(text)!r}")
    return int(text)


def _one_of(*names: str) -> Callable[[str, str], str]:
    def read(what: str, text: str) -> str:
        if text not in names:
            raise BadInput(f"{what} takes {', '.join(names[:-1])} or {names[-1]}; got {shortened(text)!r}")
        return text

    return read


def _truth(what: str, text: str) -> bool:
    return _one_of("true", "false")(what, text.lower()) == "true"


def _words(_what: str, text: str) -> str:
    return text


def _as_settings(told: str) -> str:
    """A sentence of ours in which an argument, ``tokens=``, is no flag of the verb: ``'tokens'``."""
    return re.sub(r"\b([a-z_]+?)_?=(?=[\s.,;:)]|$)", r"'\1'", told)


_READERS: dict[str, Callable[[str, str], Any]] = {
    **dict.fromkeys(("keys", "keep", "queries", "tokens", "at"), _place),
    **dict.fromkeys(("layers", "heads", "mlp"), _numbers),
    **dict.fromkeys(("by", "scale"), _number),
    **dict.fromkeys(("ring", "image", "seed", "random"), _count),
    **dict.fromkeys(("uniform", "project_out"), _truth),
    **dict.fromkeys(("word", "probe", "label"), _words),
    "box": _box,
    "phase": _one_of("prompt", "answer", "both"),
    "how": _one_of("logits", "weights", "move"),
    "with": _one_of("mean", "zero", "resample"),
}


@dataclass(frozen=True)
class _Kind:
    """What a flag takes, an example of it, what it cannot do without, and what it reads in a way of its own."""

    takes: tuple[str, ...]
    example: str
    needed: tuple[str, ...] = ()
    own: Mapping[str, Callable[[str, str], Any]] = field(default_factory=dict)


_BOX = ("box", "image", "ring", "phase")
_KINDS = {
    "--knock-out": _Kind(
        ("keys", "keep", "queries", "layers", "heads", "uniform", *_BOX), "keys=image queries=last layers=8-16"
    ),
    "--ablate": _Kind(
        ("tokens", "heads", "mlp", "layers", "with", "at", "seed", *_BOX),
        "tokens=image with=mean",
        own={"heads": _block_heads},
    ),
    "--reweight": _Kind(
        ("keys", "by", "queries", "how", "layers", "heads", *_BOX), "keys=image queries=last by=0.2", ("keys", "by")
    ),
    "--steer": _Kind(
        ("word", "probe", "label", "layers", "scale", "at", "project_out", "random", *_BOX),
        "word=red layers=4 scale=2 at=image",
        ("layers",),
    ),
}
