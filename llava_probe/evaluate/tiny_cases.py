"""The tiny model's own data set: held-out scenes, where the right place of every answer is known to the pixel.

cases = list(tiny_cases(range(100)))
write_cases(cases, "tiny/")          # pictures, masks and JSON lines, to look at or to send on
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from llava_probe import tiny
from llava_probe.border import Seed, checked
from llava_probe.errors import BadInput
from llava_probe.evaluate.cases import Case
from llava_probe.tiny import cheats

#: Kinds of question that rest on one object at a time. "Exists", "count" and "relation" rest on several or on none.
SCORED_KINDS = ("colour", "shape", "where", "text", "describe")


@checked
def tiny_cases(seeds: Iterable[Seed], kinds: Sequence[str] = SCORED_KINDS) -> Iterator[Case]:
    """Cases of ``tiny.scene(seed)``, scene by scene.

    Of a colour, shape, place or sign that is asked for, the word is the whole answer and the right place the object
    asked about. A description gives a case for each object: the word is its shape (or "stop sign"), ``occurrence``
    which time it is said, and ``function_words`` the words of the description that name nothing; the cases of one
    description share picture and question.

    Raises:
        BadInput: a kind that is not one of ``SCORED_KINDS``.
    """
    wrong = ", ".join(repr(kind) for kind in kinds if kind not in SCORED_KINDS)
    if isinstance(kinds, str) or wrong:
        raise BadInput(f"kinds takes a list of some of {', '.join(SCORED_KINDS)}; got {wrong or repr(kinds)}")
    return (case for seed in seeds for case in _of_scene(tiny.scene(seed), kinds))


@checked
def cheat_cases(cheat: cheats.Cheat, seeds: Iterable[Seed], *, honest: bool = False) -> Iterator[Case]:
    """Two cases of each planted picture: the same word, with the cue and then with the object as the right place.

    Both are scored where the model answers by the cue or, of an honest twin, by the object. A map that shows what the
    cheat goes by points at the cue; the twin's points at the object.

    Args:
        cheat: whose cue is on the picture: any but ``"prior"``, whose cue is a word.
        seeds: of scenes that have a place for it (``cheats.seeds``).
        honest: whether the answer is the twin's.

    Raises:
        BadInput: of ``"prior"``. OutOfRange: a scene has no place for the cue.
    """
    if cheat == "prior":
        raise BadInput("the cue of 'prior' is a word of the question: no place of the picture is right")
    for seed in seeds:
        planted = cheats.planted(cheat, seed)
        answer = planted.by_object if honest else planted.by_cue
        for what, mask in (("cue", planted.cue), ("object", planted.object)):
            yield Case(
                id=case_name(cheat, seed, what),
                image=planted.image,
                question=planted.question,
                where=mask,
                answer=answer,
                kind=cheat,
            )


def case_name(cheat: str, seed: int, what: str) -> str:
    """The id of a planted picture's case: of its ``"cue"`` or of its ``"object"``."""
    return f"{cheat}-{seed}-{what}"


def _of_scene(scene: tiny.Scene, kinds: Sequence[str]) -> Iterator[Case]:
    for number, question in enumerate(scene.questions):
        if question.kind == "describe" and "describe" in kinds:
            yield from _described(scene, question, number)
        elif question.kind in kinds:
            yield _case(scene, question, f"{scene.seed}-{number}", question.objects[0], question.answer, None, ())


def _described(scene: tiny.Scene, question: tiny.Question, number: int) -> Iterator[Case]:
    function_words = _function_words(scene, question.answer)
    said: dict[str, int] = {}
    for place in question.objects:  # in the order of the description
        word = scene.objects[place].kind
        time = said.get(word, 0)
        said[word] = time + 1
        yield _case(scene, question, f"{scene.seed}-{number}-{place}", place, word, time, function_words)


def _case(
    scene: tiny.Scene,
    question: tiny.Question,
    name: str,
    place: int,
    word: str,
    occurrence: int | None,
    function_words: tuple[str, ...],
) -> Case:
    shown = scene.objects[place]
    x0, y0, x1, y1 = map(float, shown.box)
    return Case(
        id=name,
        image=scene.image,
        question=question.question,
        where=shown.mask,
        word=word,
        occurrence=occurrence,
        answer=question.answer,
        kind=question.kind,
        boxes=((x0, y0, x1, y1),),
        function_words=function_words,
    )


def _function_words(scene: tiny.Scene, answer: str) -> tuple[str, ...]:
    """Each word of a description once, but for shapes, colours, places and what a sign says."""
    content = {word for each in scene.objects for word in f"{each.kind} {each.colour} {each.place} {each.text}".split()}
    words = (word.strip(".") for word in answer.split())
    return tuple(dict.fromkeys(word for word in words if word not in content))


def one_question_a_scene(seeds: Iterable[Seed], described: int = 25) -> Iterator[Case]:
    """One question of each scene, of the four kinds in turn as far as the scene has them; now and then a description.

    Args:
        seeds: of the scenes.
        described: every so many scenes, the description is asked for too; 0 for never.
    """
    asked = [kind for kind in SCORED_KINDS if kind != "describe"]
    for number, seed in enumerate(seeds):
        scene = tiny.scene(seed)
        turn = [asked[(number + step) % len(asked)] for step in range(len(asked))]
        found = [case for kind in turn for case in _of_scene(scene, [kind])]
        yield from found[:1]
        if described and number % described == 0:
            yield from _of_scene(scene, ["describe"])
