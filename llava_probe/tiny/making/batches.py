"""Training samples: a picture, what each of its patches shows, and many questions packed behind it.

Most of a sample's cost is the picture's 196 tokens, so a sample asks about eight questions of one picture. Each stands
in a group of its own that sees the picture and itself, at the positions it would have if it stood alone: to the model a
group is a single-turn prompt. Some groups hold two or three turns, so that it also knows conversations.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerFast

from llava_probe.tiny import drawing
from llava_probe.tiny.making.vocabulary import BOS, EOS, IMAGE_TOKEN, PATCH
from llava_probe.tiny.plan import COLOURS, GRID_PLACES, SHAPES, SIGN, UNITS, Item, plan
from llava_probe.tiny.questions import KINDS, Question, all_questions, vary

GRID = UNITS // PATCH
PATCHES = GRID * GRID
TEXT_LENGTH = 160
GROUPS = 24
KINDS_OF_PATCH = ("shape", "colour", "letter", "index", "place")
CLASSES = {"shape": len(SHAPES) + 2, "colour": len(COLOURS) + 1, "letter": 27, "index": 5, "place": 10}

_WANTED = {  # how many questions of a kind a sample asks, on average; the kinds that are learnt last the most
    "colour": 0.6, "shape": 0.6, "exists": 1.5, "count": 1.2,
    "where": 3.6, "text": 0.7, "relation": 2.0, "describe": 0.7,
}  # fmt: skip
_FIRST_TOKEN = {"exists": 4.0, "where": 4.0, "relation": 3.0}  # loss weight of an answer's first token; 2 for others
_FILLER, _ENDING = 0.2, 0.3  # of words that any description has, and of EOS
_PLACE_ENDING = 2.0  # of EOS after a place, which is what tells "top" from "top left"
_TOUCHED = 0.12  # share of a patch that an object must cover to be what the patch shows
_PUBLIC_SHARE = 20  # one scene in so many is drawn at 336 and resized, as a user's picture is


@dataclass
class PackedPicture:
    """One picture with its packed questions, as arrays of fixed length.

    Attributes:
        pixels: [112, 112, 3] uint8.
        patches: [196, 5] classes of what each patch shows, in the order of ``KINDS_OF_PATCH``; 0 is nothing.
        offsets: [196, 2] from the patch's centre to its object's, in units of a quarter picture; 0 without object.
        tokens, positions, groups: [160]; group −1 is padding.
        weights: [160] loss weight of predicting this token from the one before.
        answers: [160] which answer of the sample the token belongs to, −1 for none.
        kinds: [24] kind of each answer, −1 for none.
    """

    pixels: np.ndarray
    patches: np.ndarray
    offsets: np.ndarray
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(TEXT_LENGTH, np.int64))
    positions: np.ndarray = field(default_factory=lambda: np.zeros(TEXT_LENGTH, np.int64))
    groups: np.ndarray = field(default_factory=lambda: np.full(TEXT_LENGTH, -1, np.int64))
    weights: np.ndarray = field(default_factory=lambda: np.zeros(TEXT_LENGTH, np.float32))
    answers: np.ndarray = field(default_factory=lambda: np.full(TEXT_LENGTH, -1, np.int64))
    kinds: np.ndarray = field(default_factory=lambda: np.full(GROUPS, -1, np.int64))


class Encoder:
    """Turns words into token ids, remembering what it has seen."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        @cache
        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        self._encode = encode
        self.eos = self._encode(EOS)[0]
        self.prefix = self._encode(f"{BOS}USER: {IMAGE_TOKEN * PATCHES}\n")
        filler = "There is a stop sign that says in the at an"  # not the full stop: it tells "top" from "top left"
        self.filler = {*self._encode(filler), *self._encode(" There is")}

    def __call__(self, text: str) -> list[int]:
        """Token ids of a piece of text, without BOS."""
        return self._encode(text)


def training_batch(encoder: Encoder, first_seed: int, size: int, text: bool) -> dict[str, np.ndarray]:
    """Samples of ``size`` successive seeds, stacked by the names of ``PackedPicture``."""
    samples = [sample(first_seed + i, encoder, text) for i in range(size)]
    return {name: np.stack([getattr(one, name) for one in samples]) for name in vars(samples[0])}


def sample(seed: int, encoder: Encoder, text: bool = True) -> PackedPicture:
    """The training sample of a seed; without ``text`` only the picture and its patches."""
    items = plan(seed)
    if seed % _PUBLIC_SHARE == 0:
        master, _ = drawing.draw(items, seed)
        pixels = np.asarray(Image.fromarray(master).resize((UNITS, UNITS), Image.Resampling.BICUBIC))
        _, masks = drawing.draw(items, seed, scale=1)
    else:
        pixels, masks = drawing.draw(items, seed, scale=1)
    one = PackedPicture(pixels, *_patch_targets(items, masks))
    if text:
        rng = random.Random(f"sample {seed}")
        _pack(one, _choose(items, rng), encoder, rng)
    return one


def _patch_targets(items: tuple[Item, ...], masks: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    patches = np.zeros((GRID, GRID, len(KINDS_OF_PATCH)), np.int64)
    offsets = np.zeros((GRID, GRID, 2), np.float32)
    centres = np.stack(np.meshgrid(np.arange(GRID), np.arange(GRID)), -1) * PATCH + PATCH / 2  # [14, 14, (x, y)]
    best = np.full((GRID, GRID), _TOUCHED)
    places = [place for row in GRID_PLACES for place in row]
    for item, mask in zip(items, masks, strict=True):
        cover = mask.reshape(GRID, PATCH, GRID, PATCH).mean((1, 3))
        mine = cover > best
        best[mine] = cover[mine]
        kind = len(SHAPES) if item.kind == SIGN else SHAPES.index(item.kind)
        patches[mine] = (kind + 1, COLOURS.index(item.colour) + 1, 0, 0, places.index(item.place) + 1)
        offsets[mine] = (np.array([item.x, item.y]) - centres[mine]) / (UNITS / 4)
        if item.text:
            _letter_targets(patches, item)
    return patches.reshape(PATCHES, -1), offsets.reshape(PATCHES, 2)


def _letter_targets(patches: np.ndarray, item: Item) -> None:
    """Give each patch of a sign the letter that most of it lies on, and which of the word it is."""
    edges = np.arange(GRID + 1) * PATCH
    best = np.full((GRID, GRID), 0.15 * PATCH * PATCH)
    for index, (letter, x0, y0, x1, y1) in enumerate(drawing.letter_boxes(item)):
        across = (np.minimum(edges[1:], x1) - np.maximum(edges[:-1], x0)).clip(0)
        down = (np.minimum(edges[1:], y1) - np.maximum(edges[:-1], y0)).clip(0)
        area = down[:, None] * across[None, :]
        mine = area > best
        best[mine] = area[mine]
        patches[mine, 2] = ord(letter) - ord("A") + 1
        patches[mine, 3] = index + 1


def _choose(items: tuple[Item, ...], rng: random.Random) -> list[Question]:
    """Questions for one sample in random order, but descriptions first, since little else leaves them room."""
    asked = all_questions(items, rng)
    chosen = []
    for kind in KINDS:
        of_kind = [question for question in asked if question.kind == kind]
        wanted = int(_WANTED[kind] + rng.random())
        if kind == "exists":
            yes = [question for question in of_kind if question.answer == "yes"]
            no = [question for question in of_kind if question.answer == "no"]
            of_kind = [rng.choice(rng.choice((yes, no))) for _ in range(wanted)]
        chosen += rng.sample(of_kind, min(wanted, len(of_kind)))
    rest = [question for question in asked if question not in chosen and question.kind not in ("describe", "text")]
    rng.shuffle(chosen)
    rng.shuffle(rest)
    return sorted(chosen, key=lambda question: question.kind != "describe") + rest


def _pack(one: PackedPicture, questions: list[Question], encoder: Encoder, rng: random.Random) -> None:
    start, group, answer = 0, 0, 0
    while questions:
        turns = 1 if rng.random() < 0.88 else rng.choice((2, 3))
        tokens, weights, answers, kinds = _group(questions[:turns], encoder, rng, answer)
        questions = questions[turns:]
        end = start + len(tokens)
        if end > TEXT_LENGTH or answer + len(kinds) > GROUPS:
            continue
        one.tokens[start:end] = tokens
        one.positions[start:end] = np.arange(len(tokens)) + len(encoder.prefix)
        one.groups[start:end] = group
        one.weights[start:end] = weights
        one.answers[start:end] = answers
        one.kinds[answer : answer + len(kinds)] = kinds
        start, group, answer = end, group + 1, answer + len(kinds)


def _group(
    questions: list[Question], encoder: Encoder, rng: random.Random, first_answer: int
) -> tuple[list[int], list[float], list[int], list[int]]:
    """Tokens, loss weights and answer numbers of one conversation, and the kinds of its answers."""
    tokens: list[int] = []
    weights: list[float] = []
    answers: list[int] = []
    for turn, question in enumerate(questions):
        words = vary(question, rng)
        asked = encoder(f"USER: {words}") if turn else encoder(words)
        asked = asked + encoder(" ASSISTANT:" if rng.random() < 0.15 else "\nASSISTANT:")
        answer = [*encoder(f" {question.answer}"), encoder.eos]
        tokens += asked + answer
        weights += [0.0] * len(asked) + _answer_weights(question, answer, encoder)
        answers += [-1] * len(asked) + [first_answer + turn] * len(answer)
    return tokens, weights, answers, [KINDS.index(question.kind) for question in questions]


def _answer_weights(question: Question, answer: list[int], encoder: Encoder) -> list[float]:
    if question.kind == "describe":
        return [_FILLER if token in encoder.filler else 1.0 for token in answer[:-1]] + [_ENDING]
    ending = _PLACE_ENDING if question.kind == "where" else _ENDING
    return [_FIRST_TOKEN.get(question.kind, 2.0)] + [2.0] * (len(answer) - 2) + [ending]
