"""What each intervention does, said in plain tensor operations on vectors and weights that another library reaches.

A case names the package's intervention, and the part of the decoder, the layers and the change that make the same by
hand. Logits are compared in units of their spread: at every position of a pass by hand, and at the last of a pass of
``generate``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

import llava_probe as lp
from llava_probe import tiny
from tests.models import llava_processor, photo

PROMPT = "USER: <image>\nwhat is the text on the stop sign\nASSISTANT:"
SHORTER = "USER: <image>\nwhere is the sign\nASSISTANT:"

#: Where things lie in ``PROMPT``: the picture's 6 × 6 tokens, what comes behind it, all that is no picture, the last.
IMAGE = list(range(3, 39))
LATER = list(range(39, 56))
TEXT = [0, 1, 2, *LATER]
LAST = 55
EVERYWHERE = slice(None)

#: A box on the photograph of 64 × 48, of which the processor sees x = 8 to 56; the tokens of 8 × 8 that it covers, and
#: those with the ring around them.
BOX = (8, 0, 32, 24)
UNDER_BOX = [3 + 6 * row + column for row in range(3) for column in range(3)]
AROUND_BOX = [3 + 6 * row + column for row in range(4) for column in range(4)]

#: A direction of mixed signs, of no special length.
DIRECTION = torch.linspace(-1, 1, 64) ** 3 + 0.1

#: How far logits may lie apart, in units of their spread: the softmax of eager attention is in float32.
CLOSE = 1e-5

#: An edit moves the last logits by this much or more, in the same units: one that does nothing would prove nothing.
MOVED = 1e-2

#: Values of one part in one layer to what they become. States are [1, P, D], heads [1, P, H, d], weights [1, H, Q, K].
Change = Callable[[Tensor, int], Tensor]


class Library(Protocol):
    """Another library about the same model.

    Its parts: ``residual`` (hidden states, the last behind the final norm), ``attention``, ``mlp`` and ``block`` (what
    they add), ``head`` (what heads give), ``scores`` and ``weights`` (of attention, before and behind the softmax).
    """

    def read(self, inputs: Mapping[str, Any], part: str, layers: Sequence[int]) -> Mapping[int, Tensor]:
        """One part in some layers of a pass."""

    def edited(self, inputs: Mapping[str, Any], part: str, layers: Sequence[int], change: Change) -> Tensor:
        """[P, V] the logits of a pass with one part changed in some layers."""


@dataclass(frozen=True)
class Case:
    """One intervention, and the same by hand.

    Attributes:
        ours: the package's context.
        part, layers: what is changed, and where.
        change: how, from what the library reads in other passes.
        regions: whether it is about a part of the photograph, which a pass by hand does not know.
    """

    ours: Callable[[lp.VLM], Any]
    part: str
    layers: Sequence[int]
    change: Callable[[Library], Change]
    regions: bool = False


def inputs_of(prompt: str = PROMPT, image: Any = None) -> dict[str, Any]:
    """What a pass in double precision takes."""
    image = photo() if image is None else image
    return dict(llava_processor()(text=prompt, images=image, return_tensors="pt").to(torch.float64))


def check(case: Case, vlm: lp.VLM, library: Library) -> None:
    """Both make the same logits, which are not those of the model as it is."""
    inputs = inputs_of()
    assert (inputs["input_ids"][0] == 3).nonzero().flatten().tolist() == IMAGE
    assert inputs["input_ids"].shape[1] - 1 == LAST
    plain = library.edited(inputs, case.part, (), lambda values, _layer: values)
    truth = library.edited(inputs, case.part, case.layers, case.change(library))
    spread = plain.std()
    assert float((truth[-1] - plain[-1]).abs().max() / spread) > MOVED
    with case.ours(vlm), torch.no_grad():
        asked = vlm.generate(photo(), prompt=PROMPT, max_new_tokens=1).logits[0].double()
        torch.testing.assert_close(asked / spread, truth[-1] / spread, atol=CLOSE, rtol=0)
        if not case.regions:
            passed = vlm.model(**inputs).logits[0]
            torch.testing.assert_close(passed / spread, truth / spread, atol=CLOSE, rtol=0)


def check_parts(vlm: lp.VLM, library: Library) -> None:
    """The parts of a logit are what the library reads where they are added, through the model's own matrices."""
    written = lp.written_by(vlm, vlm.generate(photo(), prompt=PROMPT, max_new_tokens=1), -1)
    parts = ("residual", "attention", "mlp", "head")
    read = {part: [*library.read(inputs_of(), part, range(4)).values()] for part in parts}
    decoder = vlm.model.model.language_model
    end = sum(read[part][-1][0, LAST] for part in ("residual", "attention", "mlp"))
    length = (end.square().mean() + decoder.norm.variance_epsilon).sqrt()
    row = (vlm.model.lm_head.weight[written.token.id] * decoder.norm.weight / length).detach()
    out = [block.self_attn.o_proj.weight.detach().unflatten(1, (4, 16)) for block in decoder.layers]
    heads = [torch.einsum("hd,ohd,o->h", each[0, LAST], own, row) for each, own in zip(read["head"], out, strict=True)]
    mlp = torch.stack([each[0, LAST] @ row for each in read["mlp"]])
    torch.testing.assert_close(written.heads, torch.stack(heads), atol=CLOSE, rtol=0)
    torch.testing.assert_close(written.mlp, mlp, atol=CLOSE, rtol=0)
    assert abs(written.embedding - float(read["residual"][0][0, LAST] @ row)) < CLOSE
    assert abs(written.logit - float(sum(map(torch.sum, heads)) + mlp.sum() + written.embedding)) < CLOSE


# --- changes ---


def put(places: Any, new: Callable[[Tensor], Any]) -> Callable[[Library], Change]:
    """At some positions something made of the values at all of them."""

    def change(values: Tensor, _layer: int) -> Tensor:
        made, values = new(values), values.clone()
        values[:, places] = made
        return values

    return lambda _library: change


def zero(_values: Tensor) -> float:
    return 0.0


def mean(places: Any = EVERYWHERE) -> Callable[[Tensor], Tensor]:
    return lambda values: values[:, places].mean(1, keepdim=True)


def heads(
    by_block: Mapping[int, Sequence[int]], places: Any, new: Callable[[Tensor], Any]
) -> Callable[[Library], Change]:
    """Likewise, in some heads of each block."""

    def change(values: Tensor, layer: int) -> Tensor:
        values = values.clone()
        for head in by_block[layer]:
            values[:, places, head] = new(values[:, :, head])
        return values

    return lambda _library: change


def of_another(prompt: str, part: str, layers: Sequence[int], here: Any, there: Any) -> Callable[[Library], Change]:
    """At some positions what was at others of a pass about another picture."""

    def made(library: Library) -> Change:
        other = library.read(inputs_of(prompt, photo(seed=1)), part, layers)
        return lambda values, layer: put(here, lambda _: other[layer][:, there])(library)(values, layer)

    return made


def pairs(
    queries: Sequence[int], keys: Sequence[int], new: Callable[[Tensor], Tensor], among: Any = EVERYWHERE
) -> Callable[[Library], Change]:
    """What some queries give some keys, in some heads."""

    def change(values: Tensor, _layer: int) -> Tensor:
        values = values.clone()
        for query in queries:
            rows = values[:, among, query]  # [1, H, K]
            rows[..., keys] = new(rows[..., keys])
            values[:, among, query] = rows
        return values

    return lambda _library: change


def nothing(values: Tensor) -> Tensor:
    return torch.full_like(values, -torch.inf)


def spread_evenly(values: Tensor, _layer: int) -> Tensor:
    """What word 47 and the last give the keys 44 to 50, evenly over those that come no later than they do."""
    values = values.clone()
    for query in (47, LAST):
        keys = [key for key in range(44, 51) if key <= query]
        values[:, :, query, keys] = values[:, :, query, keys].mean(-1, keepdim=True)
    return values


def moved(source: Sequence[int], target: Sequence[int], share: float) -> Callable[[Library], Change]:
    """A share of what the last word gives some keys, to the others in proportion."""

    def change(values: Tensor, _layer: int) -> Tensor:
        values = values.clone()
        row = values[:, :, LAST]
        taken = share * row[..., source].sum(-1, keepdim=True)
        row[..., target] += taken * row[..., target] / row[..., target].sum(-1, keepdim=True)
        row[..., source] *= 1 - share
        return values

    return lambda _library: change


def pushed(places: Any, layers: Sequence[int], scale: float) -> Callable[[Library], Change]:
    """So many typical norms along the direction: the median over the tokens of a prompt about a drawn picture."""
    asked = {"type": "text", "text": "What is in the picture?"}
    message = {"role": "user", "content": [{"type": "image"}, asked]}

    def made(library: Library) -> Change:
        prompt = llava_processor().apply_chat_template([message], add_generation_prompt=True)
        states = library.read(inputs_of(prompt, tiny.scene(0).image), "residual", layers)
        norms = {layer: values[0].norm(dim=-1).median() for layer, values in states.items()}

        def change(values: Tensor, layer: int) -> Tensor:
            values = values.clone()
            values[:, places] += scale * norms[layer] * DIRECTION.double() / DIRECTION.double().norm()
            return values

        return change

    return made


def projected(places: Any, scale: float) -> Callable[[Library], Change]:
    """So much of what lies along the direction taken off."""
    unit = DIRECTION.double() / DIRECTION.double().norm()

    def change(values: Tensor, _layer: int) -> Tensor:
        values = values.clone()
        values[:, places] -= values[:, places] @ (scale * torch.outer(unit, unit))
        return values

    return lambda _library: change


# --- cases ---


def ablated(part: str, layers: Sequence[int], change: Any, regions: bool = False, /, **given: Any) -> Case:
    return Case(lambda vlm: lp.ablate(vlm, **given), part, layers, change, regions)


def entering(places: Any, new: Any, **given: Any) -> Case:
    return ablated("residual", [0], put(places, new), isinstance(given["tokens"], lp.Region), **given)


def picture_and_word(values: Tensor) -> Tensor:
    return torch.cat([mean(IMAGE)(values), mean(TEXT)(values)], dim=1)


REGION = lp.Region(BOX)

TOKENS = {
    "a region, zero": entering(UNDER_BOX, zero, tokens=REGION, with_="zero"),
    "a region, mean": entering(UNDER_BOX, mean(IMAGE), tokens=REGION),
    "a region and those around it": entering(AROUND_BOX, mean(IMAGE), tokens=REGION, ring=1),
    "numbers, zero": entering([4, 20, 51], zero, tokens=[4, 20, 51], with_="zero"),
    "the picture, mean": entering(IMAGE, mean(IMAGE), tokens="image"),
    "a visual token and a word, mean": entering([20, 51], picture_and_word, tokens=[20, 51]),
    "numbers, a tensor": entering([4, 51], lambda values: DIRECTION.to(values), tokens=[4, 51], with_=DIRECTION),
}

SOME_HEADS = {1: [0, 3], 3: [2]}

PARTS = {
    f"{what}, {with_}, {'everywhere' if at is None else at}": ablated(
        part,
        layers,
        heads(SOME_HEADS, places, new) if what == "heads" else put(places, new),
        at=at,
        with_=with_,
        **{what: SOME_HEADS if what == "heads" else layers},
    )
    for what, part, layers in (("heads", "head", [1, 3]), ("mlp", "mlp", [1, 2]), ("layers", "block", [1, 2]))
    for with_, new in (("zero", zero), ("mean", mean()))
    for at, places in ((None, EVERYWHERE), ("image", IMAGE), ("last", [LAST]))
}


def patched(part: str, layers: Sequence[int], at: Any, change: Any, prompt: str = PROMPT, **given: Any) -> Case:
    def ours(vlm: lp.VLM) -> Any:
        source = vlm.generate(photo(seed=1), prompt=prompt, max_new_tokens=1)
        return lp.patch(vlm, source=source, at=at, layers=layers, part=part, **given)

    return Case(ours, part, layers, change)


def one_head(library: Library) -> Change:
    """The second head of block 2 at the last word, of a pass about another picture."""
    other = library.read(inputs_of(image=photo(seed=1)), "head", [2])[2]
    return heads({2: [1]}, [LAST], lambda _: other[:, [LAST], 1])(library)


PATCHES = {
    **{
        f"{part}, {name}": patched(part, layers, at, of_another(PROMPT, part, layers, places, places))
        for part, layers in (("residual", [1, 2]), ("attention", [1, 3]), ("mlp", [0, 2]), ("head", [2]))
        for name, at, places in (
            ("the picture", "image", IMAGE),
            ("the last word", "last", [LAST]),
            ("numbers", [4, 20, 51], [4, 20, 51]),
        )
    },
    "residual where it enters": patched("residual", [0], "image", of_another(PROMPT, "residual", [0], IMAGE, IMAGE)),
    "residual behind the norm": patched("residual", [4], "last", of_another(PROMPT, "residual", [4], [LAST], [LAST])),
    "one head": patched("head", [2], "last", one_head, heads=1),
    **{
        f"{part}, of a shorter prompt": patched(
            part, [2], "last", of_another(SHORTER, part, [2], [LAST], [-1]), prompt=SHORTER
        )
        for part in ("residual", "attention", "mlp")
    },
}


def cut(layers: Sequence[int], change: Any, part: str = "scores", /, **given: Any) -> Case:
    return Case(lambda vlm: lp.knock_out(vlm, **given), part, layers, change)


CUTS = {
    "from the last word": cut([1, 2], pairs([LAST], IMAGE, nothing), keys="image", queries="last", layers=[1, 2]),
    "from everything": cut(range(4), pairs(LATER, IMAGE, nothing), keys="image"),
    "in some heads": cut(
        [0, 2], pairs([LAST], IMAGE, nothing, [1, 3]), keys="image", queries="last", layers=[0, 2], heads=[1, 3]
    ),
    "all but the picture": cut([2, 3], pairs([LAST], TEXT[:-1], nothing), keep="image", queries="last", layers=[2, 3]),
    "spread evenly": cut(
        [0, 2],
        lambda _library: spread_evenly,
        "weights",
        keys=range(44, 51),
        queries=[47, LAST],
        layers=[0, 2],
        uniform=True,
    ),
}


def reweighted(part: str, change: Any, by: float, how: Any) -> Case:
    given = {"keys": "image", "queries": "last", "layers": [1, 3], "by": by, "how": how}
    return Case(lambda vlm: lp.reweight(vlm, **given), part, [1, 3], change)


WEIGHTS = {
    "more, before the softmax": reweighted(
        "scores", pairs([LAST], IMAGE, lambda scores: scores + 0.5 * scores.abs()), 0.5, "logits"
    ),
    "less, behind it": reweighted("weights", pairs([LAST], IMAGE, lambda weights: 0.4 * weights), -0.6, "weights"),
    "moved to the rest": reweighted("weights", moved(IMAGE, TEXT, 1 / 3), -1 / 3, "move"),
    "moved from the rest": reweighted("weights", moved(TEXT, IMAGE, 1 / 3), 1 / 3, "move"),
}


def steered(layers: Sequence[int], change: Any, /, **given: Any) -> Case:
    return Case(lambda vlm: lp.steer(vlm, DIRECTION, layers=layers, **given), "residual", layers, change)


PUSHES = {
    "the picture": steered([0, 2], pushed(IMAGE, [0, 2], -0.7), scale=-0.7, at="image"),
    "the last word": steered([1, 4], pushed([LAST], [1, 4], 2.0), scale=2.0, at="last"),
    "everything": steered([3], pushed(EVERYWHERE, [3], 0.5), scale=0.5),
    "the picture, projected out": steered([0, 2], projected(IMAGE, 1.0), at="image", project_out=True),
    "the last word, half of it projected out": steered(
        [1, 4], projected([LAST], 0.5), at="last", scale=0.5, project_out=True
    ),
    "everything, projected out": steered(range(5), projected(EVERYWHERE, 1.0), project_out=True),
}
