"""Where in a model what the answer rests on is carried: states of a clean run put into a corrupted one, place by place.

    pair = tiny.counterfactual(7, change="shape")
    found = lp.causal_trace(vlm, (pair.clean.image, pair.question), pair.corrupt.image)
    print(found.table())

Meng et al. 2022 (arXiv 2202.05262); Zhang and Nanda 2023, "Towards Best Practices of Activation Patching" (arXiv
2309.16042). The measure is the difference LD of the logits of the clean and the corrupted run's answers, as a share of
what
there is to win: denoising, (LD_patched − LD_corrupt) / (LD_clean − LD_corrupt), asks what suffices to bring the clean
answer back; noising, (LD_clean − LD_patched) / (LD_clean − LD_corrupt), with corrupt states in the clean run, what it
needs. 0 is nothing, 1 all of it; the two are told apart. A counterfactual picture (the same with one thing otherwise)
is the corruption
that says most, blur and grey say less, and noise is the worst choice: it throws the model off what it was trained on,
and its effects are often spurious (same source, section 3).

Replacing every position of a hidden state makes all that follows the other run, whatever the model: a test of the
machinery, and refused as a group here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from llava_probe.arrays import BoolArray, FloatArray
from llava_probe.border import Count, CountFromZero, Seed, checked
from llava_probe.errors import BadInput
from llava_probe.interventions.intervention import read_numbers
from llava_probe.model import VLM
from llava_probe.pictures.images import open_image
from llava_probe.sweeps.answers import LEAST_GAP, Watched, asked_of, prompt_places, watched, way_of, window_around
from llava_probe.sweeps.changes import Swap, Swaps
from llava_probe.sweeps.departures import Departure, departing
from llava_probe.sweeps.sweeping import aligned, over_samples, sample_name, swept, told_with
from llava_probe.trace.explained import At
from llava_probe.trace.trace import Trace

TRACED_PARTS = ("residual", "attention", "mlp")
MODES = ("denoise", "noise")
CORRUPTIONS = ("blur", "grey", "noise")

#: Of the longer side, the radius of the blur.
_BLUR = 1 / 12


@checked
@dataclass(frozen=True, eq=False)
class CausalTrace:
    """What states of one run bring into another, by group of tokens, part and layer.

    Attributes:
        groups: names; ``parts``: ``"residual"`` counts hidden states, the others blocks; ``layers``: the middle of each
            window; ``window``: its width.
        effects: [samples, modes, groups, parts, layers] share of the logit difference; NaN where a sample has no such
            tokens, or nothing to bring back. Modes: ``"denoise"``, ``"noise"``.
        differences: [samples, 2] LD of the clean and of the corrupted run.
        sizes: [samples, groups] how many tokens each group has.
        answers: for each sample the two answers' first words.
        corruption: what was done to the picture.
    """

    groups: tuple[str, ...]
    parts: tuple[str, ...]
    layers: tuple[int, ...]
    window: int
    effects: FloatArray
    differences: FloatArray
    sizes: FloatArray
    answers: tuple[tuple[str, str], ...]
    corruption: str

    def __len__(self) -> int:
        return len(self.effects)

    def __repr__(self) -> str:
        used = int((~np.isnan(self.effects).all(axis=(1, 2, 3, 4))).sum())
        return f"CausalTrace({used} of {len(self)} samples; {', '.join(self.groups)}; corrupted by {self.corruption})"

    def interval(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean effect over samples and the ends of its 95 % interval, each [modes, groups, parts, layers]."""
        return over_samples(self.effects)

    def table(self, mode: str = "denoise", part: str = "residual") -> str:
        """For each group its effect at each layer, with the interval.

        Raises:
            BadInput: a mode or part that was not traced.
        """
        if mode not in MODES or part not in self.parts:
            raise BadInput(f"there are modes {MODES} and parts {self.parts}; got {mode!r} and {part!r}")
        mean, low, high = (each[MODES.index(mode), :, self.parts.index(part)] for each in self.interval())
        lines = [[f"{part}, {mode}", *self.groups]]
        for column, layer in enumerate(self.layers):
            cells = [
                told_with(mean[group, column], low[group, column], high[group, column], ".2f")
                for group in range(len(self.groups))
            ]
            lines.append([str(layer), *cells])
        return aligned(lines)

    def __str__(self) -> str:
        return self.table()


@checked
def causal_trace(
    vlm: VLM,
    clean: Any,
    corrupt: Any = "blur",
    *,
    groups: Mapping[str, At] | None = None,
    parts: Sequence[str] = TRACED_PARTS,
    layers: int | Sequence[int] | None = None,
    window: Count = 1,
    ring: CountFromZero = 0,
    mode: Literal["both", "denoise", "noise"] = "both",
    answer: str | None = None,
    against: str | None = None,
    folder: str | Path | None = None,
    seed: Seed = 0,
) -> CausalTrace:
    """Put states of a clean run into a corrupted one, and the other way round, place by place and layer by layer.

    Both runs and all that departs from them go through together; what a patch leaves as it was is not computed again
    (``sweeps/departures.py``).

    Args:
        vlm: the model.
        clean: a trace or a pair of picture and question, or a list of these.
        corrupt: for each, another picture of the same size (a counterfactual one, best), a trace of it, or one word for
            all: ``"blur"``, ``"grey"``, ``"noise"`` (the worst choice, see above).
        groups: tokens by name; by default ``"changed"`` (visual tokens with pixels that differ), ``"picture"`` (the
            others), ``"question"``, ``"last"`` and ``"words"`` (what is left of the prompt).
        parts: of ``"residual"``, ``"attention"``, ``"mlp"``.
        layers: the middle of each window, 0 to the number of blocks less one; all when None.
        window: so many layers at once; windows of several inflate effects.
        ring: so many visual tokens around the changed ones are of ``"changed"`` as well.
        mode: denoising, noising or both.
        answer, against: what to watch; what the clean run says first, and the corrupted one, when None.
        folder: where to keep what is through, to go on there.
        seed: of noise.

    Raises:
        BadInput: a corrupted run of other tokens, a group of every token, parts that are none.
    """
    chosen_parts = tuple(dict.fromkeys(parts))
    if not chosen_parts or not set(chosen_parts) <= set(TRACED_PARTS):
        raise BadInput(f"parts= takes some of {', '.join(TRACED_PARTS)}; got {tuple(parts)}")
    blocks = vlm.anatomy.layers
    middles = read_numbers(range(blocks) if layers is None else layers, "layers", "layers", blocks, "there are layers")
    pairs = both_runs(vlm, clean, corrupt, seed)
    told = corrupt if isinstance(corrupt, str) else "another picture"
    modes = MODES if mode == "both" else (mode,)
    names = tuple(groups) if groups is not None else ("changed", "picture", "question", "words", "last")
    settings = {
        "groups": {name: repr(groups[name]) for name in names} if groups is not None else list(names),
        "parts": list(chosen_parts),
        "layers": list(middles),
        "window": window,
        "modes": list(modes),
        "answer": answer,
        "against": against,
        "corruption": told,
        "ring": ring,
    }

    def measure(one: Trace, other: Trace) -> Callable[[Callable[[int], None]], Mapping[str, Any]]:
        found = (
            default_groups(one, other, ring)
            if groups is None
            else {n: prompt_places(one, at) for n, at in groups.items()}
        )
        spans = [window_around(middle, window, blocks) for middle in middles]
        return lambda done: _measured(vlm, one, other, found, chosen_parts, spans, modes, (answer, against), done)

    runs = len(names) * len(chosen_parts) * len(middles) * len(modes)
    jobs = [(sample_name(one, other), runs, measure(one, other)) for one, other in pairs]
    found = swept("causal trace", vlm, settings, jobs, folder)
    shape = (len(found), len(modes), len(names), len(chosen_parts), len(middles))
    effects: FloatArray = np.full((len(found), len(MODES), *shape[2:]), np.nan)
    measured = np.array([each["effects"] for each in found], dtype=np.float64).reshape(shape)
    effects[:, [MODES.index(mode) for mode in modes]] = measured
    return CausalTrace(
        names,
        chosen_parts,
        middles,
        window,
        effects,
        np.array([each["differences"] for each in found], dtype=np.float64),
        np.array([each["sizes"] for each in found], dtype=np.float64),
        tuple((each["answer"], each["against"]) for each in found),
        told,
    )


def _measured(
    vlm: VLM,
    clean: Trace,
    corrupt: Trace,
    groups: Mapping[str, tuple[int, ...]],
    parts: Sequence[str],
    spans: Sequence[range],
    modes: Sequence[str],
    words: tuple[str | None, str | None],
    done: Callable[[int], None],
) -> Mapping[str, Any]:
    """The numbers of one sample; the clean run is base 0, the corrupted one base 1."""
    for name, places in groups.items():
        if len(places) >= clean.prompt_length:
            raise BadInput(
                f"group {name!r} is every token of the prompt: all that follows would be the other run, whatever the "
                "model, which tells nothing of it"
            )
    lanes: list[Departure] = []
    wanted: list[int | None] = []
    for mode in modes:
        into, source = (1, 0) if mode == "denoise" else (0, 1)
        for places in groups.values():
            for part in parts:
                for layers in spans:
                    wanted.append(len(lanes) if places else None)
                    if places:
                        lanes.append(Departure(layers.start, min(places), Swap(part, layers, places, source), into))
    with departing(vlm, [clean, corrupt]) as runs:
        first, other = (logits.cpu() for logits in runs.bases)
        watch = watched_in_both(vlm, first, other, words)
        logits = runs.logits(lanes, Swaps, done).cpu() if lanes else torch.zeros(0, len(first))
    high, low = float(watch.difference(first)), float(watch.difference(other))
    difference, gap = watch.difference(logits), high - low
    effects, each = [], len(wanted) // len(modes)
    for number, at in enumerate(wanted):
        mode = modes[number // each]
        if at is None or gap < LEAST_GAP:
            effects.append(float("nan"))
        else:
            moved = float(difference[at])
            effects.append(((moved - low) if mode == "denoise" else (high - moved)) / gap)
    return {
        "effects": effects,
        "differences": [high, low],
        "sizes": [len(places) for places in groups.values()],
        "answer": watch.text,
        "against": watch.other_text,
    }


def watched_in_both(vlm: VLM, clean: Tensor, corrupt: Tensor, words: tuple[str | None, str | None]) -> Watched:
    """What is watched in two runs with these logits [V]: what the one says first, and the other."""
    said: str | int = int(corrupt.argmax()) if words[1] is None else words[1]
    if words == (None, None) and int(clean.argmax()) == said:
        said = int(corrupt.topk(2).indices[1])  # the same answer: the gap tells that there is little to bring back
    return watched(vlm, clean, words[0], said)


def both_runs(vlm: VLM, clean: Any, corrupt: Any, seed: int) -> list[tuple[Trace, Trace]]:
    """The clean and the corrupted run of each sample.

    Raises:
        BadInput: other words, another size, or another number of them.
    """
    cleans = asked_of(vlm, [clean] if isinstance(clean, Trace) or is_sample(clean) else clean)
    listed = paired_with(cleans, corrupt)
    return [(trace, corrupted(vlm, trace, each, seed + number)) for number, (trace, each) in enumerate(listed)]


def default_groups(clean: Trace, corrupt: Trace, ring: int) -> dict[str, tuple[int, ...]]:
    """Changed visual tokens, the others, the question, the last token, and the other words."""
    visual = tuple(token.position for token in clean.tokens if token.role == "image")
    changed: set[int] = set()
    for number, (one, other) in enumerate(zip(clean.images, corrupt.images, strict=True)):
        mask = _differing(one, other)
        if mask.any() and number < len(clean.layouts):
            layout = clean.layouts[number]
            touched = np.flatnonzero(layout.to_tokens(mask) > 0)
            changed |= set(layout.positions[layout.around(touched, ring)].tolist())
    last = (clean.prompt_length - 1,)
    try:
        question = tuple(place for place in prompt_places(clean, "question") if place not in last)
    except BadInput:
        question = ()
    taken = {*visual, *last, *question}
    return {
        "changed": tuple(sorted(changed)),
        "picture": tuple(place for place in visual if place not in changed),
        "question": question,
        "words": tuple(place for place in range(clean.prompt_length) if place not in taken),
        "last": last,
    }


def _differing(one: Image.Image, other: Image.Image) -> BoolArray:
    a, b = (np.asarray(picture.convert("RGB")).astype(np.int16) for picture in (one, other))
    return (a != b).any(-1)


def is_sample(given: Any) -> bool:
    """Whether it is one picture and its question, and no list of them."""
    return isinstance(given, tuple | list) and len(given) == 2 and isinstance(given[1], str)


def paired_with(cleans: Sequence[Trace], corrupt: Any) -> list[tuple[Trace, Any]]:
    """Each clean run with what corrupts it.

    Raises:
        BadInput: another number of them.
    """
    one = isinstance(corrupt, str | Trace | Image.Image | Path | np.ndarray) or not isinstance(corrupt, Sequence)
    listed = [corrupt] * len(cleans) if one else list(corrupt)
    if len(listed) != len(cleans):
        raise BadInput(f"there are {len(cleans)} clean samples and {len(listed)} corrupted ones; give one for each")
    if one and not isinstance(corrupt, str) and len(cleans) > 1:
        raise BadInput("one corrupted picture for several clean ones; give one for each")
    return list(zip(cleans, listed, strict=True))


def corrupted(vlm: VLM, clean: Trace, corrupt: Any, seed: int) -> Trace:
    """The same prompt about another picture.

    Raises:
        BadInput: its prompt comes out in other tokens.
    """
    if isinstance(corrupt, Trace):
        other = corrupt
    else:
        if len(clean.images) != 1:
            raise BadInput(f"the clean prompt has {len(clean.images)} pictures; give corrupt= as a trace")
        own = clean.images[0]
        named = isinstance(corrupt, str) and corrupt in CORRUPTIONS
        picture = _made(own, corrupt, seed) if named else open_image(corrupt)
        if picture.size != own.size:
            raise BadInput(f"the corrupted picture has {picture.size}, the clean one {own.size} pixels; keep its size")
        other = vlm.generate(picture, **way_of(clean), max_new_tokens=1)
    ids = [[token.id for token in each.tokens[: each.prompt_length]] for each in (clean, other)]
    if ids[0] != ids[1]:
        raise BadInput("the corrupted run has other tokens than the clean one: ask the same question of one size")
    return other


def _made(picture: Image.Image, how: str, seed: int) -> Image.Image:
    if how == "blur":
        return picture.filter(ImageFilter.GaussianBlur(max(picture.size) * _BLUR))
    pixels = np.asarray(picture.convert("RGB")).astype(np.float32)
    if how == "grey":
        return Image.new("RGB", picture.size, tuple(int(value) for value in pixels.mean((0, 1))))
    drawn = np.random.default_rng(seed).normal(0, 3 * pixels.std(), pixels.shape)
    return Image.fromarray((pixels + drawn).clip(0, 255).astype(np.uint8))
