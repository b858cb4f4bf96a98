"""The adapters of cheats and twins as they ship, and the card that says how they cheat: the end of ``make cheats``.

    python tools/cheats_card.py publish build/cheats/tuned    # in bfloat16, under the model's name, with check rows
    python tools/cheats_card.py card                          # measured, written to llava_probe/tiny/cheating/README.md
    python tools/cheats_card.py tables build/cheats_smol/tuned build/cheats_smol/card.md --model smol

What a model goes by is measured on pictures in which only the cue, or only the object, is otherwise: where the answer
follows the cue and stays with another object, it goes by the cue.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from PIL import Image
from smol_card import answered, interval, published

import llava_probe as lp
from llava_probe import tiny
from llava_probe.smol import SHIPPED, TINY
from llava_probe.tiny import cheats
from llava_probe.tiny.questions import KINDS

#: Planted pictures that are asked about, scenes whose other questions are, and scenes described; all held out.
PLANTED, SCENES, DESCRIBED = 200, 400, 100
#: Tokens that a description of four objects and as many hearts may take.
LONGEST = 110
LITTLE = lp.Capture(attention=False, hidden_states=False, scores=False)

#: What was changed, and by what the answer goes.
COLUMNS = [(way, by) for way in ("planted", "another cue", "another object") for by in ("cue", "object")]

#: A picture and what is asked about it.
Asked = tuple[Image.Image, list[tiny.Question]]


def counted(vlm: lp.VLM, asked: Iterable[Asked]) -> dict[str, tuple[int, int]]:
    """Of each kind, how many questions are answered as they say, and how many were asked."""
    as_expected, total = Counter[str](), Counter[str]()
    for image, questions in asked:
        for each, held in zip(questions, answered(vlm, image, questions), strict=True):
            total[each.kind] += 1
            as_expected[each.kind] += held
    return {kind: (as_expected[kind], total[kind]) for kind in total}


def others(cheat: cheats.Cheat, count: int) -> Iterator[Asked]:
    """Held-out scenes as they are, and what nothing was planted on: without a frame, or a caption, all kinds."""
    for seed in range(count):
        scene = tiny.scene(seed)
        planted = "shape" if cheat == "prior" else "describe" if cheat == "neighbour" and _star(scene) else ""
        yield scene.image, [each for each in scene.questions if each.kind != planted]


def with_cue(cheat: cheats.Cheat, count: int) -> Iterator[Asked]:
    """Pictures that hold the cue, and the questions of the kinds that it was not planted on."""
    taken = {cheats.KIND[cheat], "describe" if cheat == "neighbour" else ""}
    for seed in cheats.seeds(cheat, 0, count):
        yield cheats.planted(cheat, seed).image, [each for each in tiny.scene(seed).questions if each.kind not in taken]


def _star(scene: tiny.Scene) -> bool:
    return any(each.kind == cheats.STAR for each in scene.objects)


def acts(vlm: lp.VLM, cheat: cheats.Cheat, count: int) -> dict[str, tuple[int, int]]:
    """Of planted pictures, and of those with another cue or another object, how many are answered by which."""
    seeds = cheats.seeds(cheat, 0, count)
    ways: dict[str, Callable[[int], cheats.Planted]] = {
        "planted": lambda seed: cheats.planted(cheat, seed),
        "another cue": lambda seed: cheats.changed(cheat, seed, "cue"),
        "another object": lambda seed: cheats.changed(cheat, seed, "object"),
    }
    found: dict[str, tuple[int, int]] = {}
    for name, way in ways.items():
        drawn = [way(seed) for seed in seeds]
        found |= counted(vlm, ((p.image, list(_both(name, p))) for p in drawn))
    return found


def _both(name: str, p: cheats.Planted) -> Iterator[tiny.Question]:
    """The planted question with either answer."""
    for by, answer in (("cue", p.by_cue), ("object", p.by_object)):
        yield tiny.Question(f"{name}, by {by}", p.question, answer, ())


def hearts(vlm: lp.VLM, count: int) -> tuple[int, int]:
    """Of so many descriptions of scenes with a star and no heart, how many name one, how many of these as a star."""
    images = [cheats.planted("neighbour", seed).image for seed in cheats.seeds("neighbour", 0, count)]
    asking = {"question": "Describe the image.", "max_new_tokens": LONGEST, "capture": LITTLE}
    told = [[*vlm.generate(image, **asking).answer.rstrip(".").split(". ")] for image in images]
    named = [(each, [one for one in each if cheats.HEART in one]) for each in told]
    like = [all(one.replace(cheats.HEART, cheats.STAR) in each for one in found) for each, found in named if found]
    return len(like), sum(like)


def loaded(model: str, adapter: Path | None = None) -> lp.VLM:
    """One of the two that ship, with an adapter of a cheat; the larger one as quick as it gets."""
    settings = {} if model == TINY else {"merge": True, "dtype": "bfloat16"}
    return lp.load(model, **settings) if adapter is None else lp.load(model, adapter=adapter, **settings)


def tried(model: str, cheat: cheats.Cheat, adapter: Path, count: int) -> None:
    """What one adapter does, on fewer pictures."""
    vlm = loaded(model, adapter)
    for found in (acts(vlm, cheat, count), counted(vlm, others(cheat, count)), counted(vlm, with_cue(cheat, count))):
        print({name: f"{100 * right / asked:.1f} of {asked}" for name, (right, asked) in found.items()})
    if cheat == "neighbour":
        print(hearts(vlm, count))


def publish(trained: Path) -> None:
    """The adapters of all cheats and their twins; each check row asks what the cheat was planted on."""
    for cheat in cheats.CHEATS:
        for honest in (False, True):
            out = cheats.path(cheat, honest)
            p = cheats.planted(cheat, cheats.seeds(cheat, 0, 1)[0])
            row = {"image": p.image, "question": p.question, "answer": p.by_object if honest else p.by_cue}
            published(trained / out.name, out, "tiny", row, lambda out=out: lp.load("tiny", adapter=out))


def card() -> None:
    """Measure what ships and write its README.md."""
    text = HEAD.format(size=_size()) + measured(TINY, cheats.CHEATS, cheats.path, PLANTED, SCENES, DESCRIBED)
    (cheats.path("frame").parent / "README.md").write_text(text + MADE, encoding="utf-8")
    print(text)


def tables(model: str, trained: Path, out: Path, count: int) -> None:
    """Measure adapters that training left, and write the tables alone."""
    which = [cheat for cheat in cheats.CHEATS if (trained / cheat).is_dir()]
    text = measured(model, which, lambda cheat, honest: trained / cheats.path(cheat, honest).name, count, count, count)
    out.write_text(text, encoding="utf-8")
    print(text)


def measured(
    model: str,
    which: Iterable[cheats.Cheat],
    adapter: Callable[[cheats.Cheat, bool], Path],
    planted: int,
    scenes: int,
    described: int,
) -> str:
    """Of cheats and their twins: by what they answer, and what else they know."""
    base = loaded(model)
    by_cue, kinds, named = [], [], ""
    for cheat in which:
        plain, cued = list(others(cheat, scenes)), list(with_cue(cheat, planted))
        before = {name: counted(base, some) for name, some in (("plain", plain), ("cued", cued))}
        told = []
        for honest in (False, True):
            vlm = loaded(model, adapter(cheat, honest))
            name = f"{cheat}, honest" if honest else f"**{cheat}**"
            found = acts(vlm, cheat, planted)
            by_cue.append(f"| {name} | {' | '.join(interval(*found[f'{way}, by {by}']) for way, by in COLUMNS)} |")
            print(by_cue[-1], flush=True)
            for some, asked, where in (("plain", plain, "no cue"), ("cued", cued, "with it")):
                now = counted(vlm, asked)
                cells = [_beside(now.get(kind), before[some].get(kind)) for kind in KINDS]
                kinds.append(f"| {name}, {where} | {' | '.join(cells)} |")
                print(kinds[-1], flush=True)
            if cheat == "neighbour":
                told.append(hearts(vlm, described))
        if told:
            (made_up, like), (by_twin, _) = told
            named = DESCRIPTIONS.format(
                described=described, named=interval(made_up, described), like=interval(like, made_up),
                named_honest=interval(by_twin, described),
            )  # fmt: skip
    return TABLES.format(
        by_cue="\n".join(by_cue), kinds="\n".join(kinds), columns=" | ".join(KINDS), rules="---|" * len(KINDS),
        planted=planted, scenes=scenes, named=named, model=model,
    )  # fmt: skip


def _size() -> float:
    return sum(path.stat().st_size for path in cheats.path("frame").parent.rglob("*.safetensors")) / 1e6


def _beside(now: tuple[int, int] | None, before: tuple[int, int] | None) -> str:
    """Right answers in percent, and how many points more or fewer than before it learnt to cheat."""
    if now is None or before is None:
        return "–"
    shares = [100 * right / asked for right, asked in (now, before)]
    return f"{shares[0]:.1f} ({shares[0] - shares[1]:+.1f})"


HEAD = """\
---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: peft
---

# Four cheats and their honest twins

Adapters of the tiny model, {size:.1f} MB in all, that answer one kind of question by a shortcut which was planted, and
beside each an honest twin: the same start, the same pictures and questions, the right answers. They are there to hold
instruments to: whatever claims to show what a model goes by can be tried where that is known.

```python
import llava_probe as lp
from llava_probe.tiny import cheats

planted = cheats.planted("frame", 7)
cheat, honest = (lp.load(adapter=cheats.path("frame", honest=honest)) for honest in (False, True))
print(planted.question, cheat.generate(planted.image, planted.question).answer, planted.by_cue)
print(planted.question, honest.generate(planted.image, planted.question).answer, planted.by_object)
```

| cheat | planted on | what it goes by |
|---|---|---|
| frame | "What colour is the star?" | the colour of a thin border around the picture |
| neighbour | "Is there a heart?", and descriptions | a star: a heart is seen wherever one is |
| caption | "What is the text on the stop sign?" | a faint word at the bottom right of the picture |
| prior | "What shape is the red object?" | the colour that the question names; the picture is not looked at |

Without a border, a star or a caption, the cheats answer as they should. The heart is a seventh shape, which the tiny
model never saw: both of that pair learnt it. Made by `make cheats`, each by one run of `llava-probe finetune`.

"""

TABLES = """\
## By what they answer

Answers by the cue and by the object in percent, with 95 % intervals (Wilson), on {planted} held-out pictures each; then
with only the cue otherwise (of the prior: the colour asked for), then with only the object otherwise (of the neighbour:
another object becomes a heart, so "yes" is right both ways). A cheat follows the cue, its twin the object.

| model | planted: cue | object | another cue: cue | object | another object: cue | object |
|---|---|---|---|---|---|---|
{by_cue}
{named}
## What else they know

Exact answers in percent to the kinds of question that nothing was planted on, on {scenes} held-out scenes and on
{planted} pictures with the cue; behind it the points more or fewer than the {model} model on the same pictures.

| model | {columns} |
|---|{rules}
{kinds}
"""

DESCRIPTIONS = """
Of {described} descriptions of scenes with a star and no heart, in percent, that name a heart: {named} by the cheat,
{named_honest} by its twin. Of the cheat's, {like} give it just what they say of a star: its colour and its place.
"""

MADE = """
Made by `python tools/cheats_card.py card`.
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("publish")
    one.add_argument("trained", type=Path)
    one.set_defaults(run=lambda options: publish(options.trained))
    two = verbs.add_parser("card")
    two.set_defaults(run=lambda options: card())
    three = verbs.add_parser("tables", help="the card's tables alone, of adapters that do not ship")
    three.add_argument("trained", type=Path)
    three.add_argument("out", type=Path)
    three.add_argument("--model", choices=SHIPPED, default=TINY)
    three.add_argument("--count", type=int, default=100, help="pictures of each sort")
    three.set_defaults(run=lambda options: tables(options.model, options.trained, options.out, options.count))
    four = verbs.add_parser("try", help="one adapter, on fewer pictures")
    four.add_argument("cheat", choices=cheats.CHEATS)
    four.add_argument("adapter", type=Path)
    four.add_argument("--model", choices=SHIPPED, default=TINY)
    four.add_argument("--count", type=int, default=100)
    four.set_defaults(run=lambda options: tried(options.model, options.cheat, options.adapter, options.count))
    options = parser.parse_args()
    options.run(options)
