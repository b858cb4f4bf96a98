"""A layout that nobody wrote: the model itself is asked where its visual tokens come from.

Two facts make this exact and cheap. Pictures whose colour is the coordinate tell where each number that the
processor hands over came from (``ramps.py``). And while each patch sees only itself (``isolation.py``), a visual token
depends on its own patches alone: when some patches are changed, the tokens that move are theirs. A few dozen runs of
the vision path, each of which changes all patches whose column (or row, or view) leaves one remainder, tell which
patches those are: the remainders of several divisors tell the column.

It is the layout of every family that has no file of its own here, and the independent truth in the tests of those
that have. A family whose tokens each read the whole picture (a Q-Former's queries) has no places, and gets none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llava_probe.arrays import BoolArray, FloatArray, IntArray
from llava_probe.inside.anatomy import Anatomy
from llava_probe.layout.asking import Asker, Asking
from llava_probe.layout.geometry import LEAST, Placement, grid_of
from llava_probe.layout.patches import Patches, patches
from llava_probe.layout.ramps import DARK, plain, sources

#: In the place of LEAST where the tower itself mixes patches (by convolution, say): a box is then the main share.
_MAIN = 0.5
#: Resampling blends a patch into so many tokens at most.
_BLENDED = 4
#: Where opposite corners of a crop move tokens as much alike (a cosine), each token reads the whole crop.
_ALIKE = 0.5
#: What weighs less than this in a token, as a share of the token's heaviest, is not looked at.
_TRACE = 0.05
#: A token that moves by less than this share of the others' moves does not move.
_STILL = 1e-3
#: Up to so many columns are asked one by one; more by remainders.
_FEW = 16
#: Divisors without a common factor; together they tell apart as many columns as their product. The smallest is longer
#: than any run of patches in one token.
_DIVISORS = ((11, 12), (13, 14), (7, 8, 9), (8, 9, 11), (11, 12, 13))
#: One patch in so many is changed to see whether what was found foretells which tokens move; and how many may not.
_SAMPLED, _WRONG = 8, 0.1
_AXES = ("view", "row", "column")
Residue = tuple[str, int, int]  # "column", divisor, remainder

#: Of a picture whose tokens have no place.
NOWHERE = Placement(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64))


def measure(
    anatomy: Anatomy,
    asking: Asking,
    sizes: Sequence[tuple[int, int]],
    videos: Sequence[int] = (),
    tokens: int | None = None,
) -> list[Placement]:
    """Where the visual tokens of pictures of these sizes lie, one placement a picture.

    Args:
        anatomy: of the unmodified model.
        asking: how to ask it.
        sizes: (width, height) of each picture; frames of videos last.
        videos: how many frames each video has.
        tokens: how many visual tokens the pictures themselves have, where that may depend on what they show.

    Returns:
        Placements without tokens where these have no place.
    """
    config = anatomy.model.config
    inputs = asking.encode(plain(sizes, DARK))
    positions = asking.find(inputs["input_ids"][0])
    cut = patches(sources(asking.encode, sizes), config)
    if cut is None or not len(positions) or tokens not in (None, len(positions)):
        return [NOWHERE for _ in sizes]
    ask = Asker(anatomy, asking, inputs, positions)
    cut = _told_apart(ask, cut, config)
    reach = _reach(ask.moves(cut, _apart(cut)))
    if reach == "everywhere":
        return [NOWHERE for _ in sizes]
    if reach == "around":
        cut = patches(cut.sources, config, _stride(cut, len(positions))) or cut
    questions = _questions(cut)
    moves = ask.moves(cut, [_patches_of(cut, question) for question in questions])
    members = _members(cut, questions, moves, _MAIN if reach == "around" else LEAST)
    sample = np.random.default_rng(0).random(len(cut)) < 1 / _SAMPLED
    again = ask.moves(cut, [sample])[0] / np.maximum(moves.max(axis=0), 1e-30)
    if not _foretold(members, sample, again):
        return [NOWHERE for _ in sizes]
    found = []
    for number, belongs in enumerate(cut.pictures.T):
        mine = members & belongs
        index = np.flatnonzero(mine.any(axis=1))
        if not len(index):
            found.append(NOWHERE)
            continue
        boxes = np.array([_hull(cut, mine[token]) for token in index])
        tiles = _numbered(cut, belongs)[[int(np.bincount(cut.tile[mine[token]]).argmax()) for token in index]]
        together = np.flatnonzero(cut.pictures[members[index].any(axis=0)].any(axis=0))
        found.append(Placement(index, boxes, tiles, grid_of(boxes), _frames(number, together, len(sizes), videos)))
    return found + [NOWHERE for _ in sizes[len(found) :]]


def _frames(number: int, together: IntArray, count: int, videos: Sequence[int]) -> tuple[int, ...]:
    """Which frames of its video a picture's tokens cover, if it is a frame; ``together``: which pictures they cover."""
    start = count - sum(videos)
    for frames in videos:
        if start <= number < start + frames:
            return tuple(int(other) - start for other in together if start <= other < start + frames)
        start += frames
    return ()


def _told_apart(ask: Asker, cut: Patches, config: Any) -> Patches:
    """Without the inputs that mostly move tokens which earlier ones move too: two towers may read one picture."""
    if len(cut.sources) == 1:
        return cut
    moved = ask.moves(cut, [cut.input == number for number in range(len(cut.sources))]) > 0
    kept = [n for n, own in enumerate(moved) if (own & ~moved[:n].any(axis=0)).sum() > own.sum() / 2]
    if len(kept) == len(cut.sources):
        return cut
    return patches([cut.sources[number] for number in kept], config) or cut


def _foretold(members: BoolArray, sample: BoolArray, moved: FloatArray) -> bool:
    """Whether the tokens that move when a sample of patches is changed are those that should.

    A tower that turns pictures into words of a code book, say, does not add up: its places would be wrong.
    """
    placed = members.any(axis=1)
    should = (members[placed] & sample).any(axis=1)
    wrong = np.where(should, moved[placed] < _TRACE, moved[placed] > 1 - LEAST)
    return bool(placed.any() and wrong.mean() < _WRONG)


def _apart(cut: Patches) -> list[BoolArray]:
    """Three single patches of the largest crop: its first, its middle, its last."""
    own = np.flatnonzero(cut.tile == np.bincount(cut.tile).argmax())
    return [np.arange(len(cut)) == number for number in (own[0], own[len(own) // 2], own[-1])]


def _reach(moves: FloatArray) -> str:
    """Which tokens a single patch moves: those it is ``"in"``, those ``"around"`` it too, or all ``"everywhere"``."""
    moved = (moves > _STILL * moves.max(axis=1, keepdims=True)).sum(axis=1)
    first, _, last = moves / np.maximum(np.linalg.norm(moves, axis=1, keepdims=True), 1e-30)
    if moved.min() > 1 and first @ last > _ALIKE:
        return "everywhere"
    return "around" if (moved > _BLENDED).any() else "in"


def _stride(cut: Patches, tokens: int) -> int:
    """How many processed pixels lie between two tokens, about."""
    pixels = sum(source.x[..., 0, :, :].numel() for source in cut.sources)
    return max(1, round((pixels / tokens) ** 0.5))


def _questions(cut: Patches) -> list[Residue]:
    """What tells every tile, row and column apart."""
    asked: list[Residue] = []
    for axis in _AXES:
        count = int(getattr(cut, axis).max()) + 1
        divisors = (count,) if count <= _FEW else next((d for d in _DIVISORS if np.prod(d) >= count), _DIVISORS[-1])
        asked += [(axis, divisor, remainder) for divisor in divisors for remainder in range(divisor)]
    return asked


def _patches_of(cut: Patches, question: Residue) -> BoolArray:
    """[M] which patches a question changes."""
    what, by, value = question
    numbers: IntArray = getattr(cut, what)
    return numbers % by == value


def _members(cut: Patches, questions: Sequence[Residue], moves: FloatArray, least: float) -> BoolArray:
    """[N, M] the patches that weigh at least ``least`` in a token, as a share of where they weigh most."""
    largest = moves.max(axis=0)
    moving = largest > _STILL * np.median(largest[largest > 0]) if (largest > 0).any() else largest > 0
    shares = {what: _shares(questions, moves, what, int(getattr(cut, what).max()) + 1) for what in _AXES}
    view = np.array([_longest_run(row) for row in shares["view"] >= LEAST]).reshape(shares["view"].shape)
    inside = moving[:, None] & view[:, cut.view]
    for what in ("row", "column"):
        numbers: IntArray = getattr(cut, what)
        share = shares[what] * np.array([_longest_run(row) for row in shares[what] >= _TRACE])
        weight = share / np.maximum(share.sum(axis=1, keepdims=True), 1e-9)
        for number in range(int(cut.view.max()) + 1):  # where a patch weighs most among the tokens of its view
            tokens, patch = moving & view[:, number], cut.view == number
            heaviest = np.max(weight[tokens], axis=0, initial=0)
            chosen = (weight >= least * heaviest) & (weight > 0)
            inside[np.ix_(tokens, patch)] &= chosen[tokens][:, numbers[patch]]
    return inside


def _shares(questions: Sequence[Residue], moves: FloatArray, what: str, count: int) -> FloatArray:
    """[N, count] how strongly each row (column, view) moves each token, as a share of the strongest."""
    share = np.ones((moves.shape[1], count))
    for by in dict.fromkeys(question[1] for question in questions if question[0] == what):
        rows = [row for row, question in enumerate(questions) if question[:2] == (what, by)]
        part = moves[rows] / np.maximum(moves[rows].max(axis=0), 1e-30)  # [remainders, N]
        value = np.arange(count)
        share = np.minimum(share, part.T[:, value % by])
    return share


def _longest_run(flags: BoolArray) -> BoolArray:
    """Only the longest run of true flags: remainders of a run also fit a few numbers elsewhere."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    runs = edges.reshape(-1, 2)
    kept = np.zeros_like(flags)
    if len(runs):
        start, stop = runs[np.argmax(runs[:, 1] - runs[:, 0])]
        kept[start:stop] = True
    return kept


def _hull(cut: Patches, members: BoolArray) -> FloatArray:
    boxes = cut.boxes[members]
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


def _numbered(cut: Patches, belongs: BoolArray) -> IntArray:
    """The number of each tile in a picture's layout: 0 for the view of the whole picture, then in order."""
    tiles = np.unique(cut.tile[belongs])
    extents = []
    for tile in tiles:
        x0, y0, x1, y1 = _hull(cut, (cut.tile == tile) & belongs)
        extents.append((x1 - x0) * (y1 - y0))
    widest = int(np.argmax(extents))
    numbers = np.zeros(int(cut.tile.max()) + 1, dtype=np.int64)
    order = [tiles[widest], *(tile for tile in tiles if tile != tiles[widest])]
    for number, tile in enumerate(order):
        numbers[tile] = number
    return numbers
