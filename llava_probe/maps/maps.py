"""One value per visual token for each explained token, whatever method made it, and its way onto the photograph.

    m = lp.attention_map(trace)
    m.pixels(0)              # [height, width] on the original, NaN where the model saw nothing
    m.overlay(0).show()      # the map under its photograph, token by token, nothing smoothed
    m.save("maps/")          # an overlay a row, and one .npz that plots again
    m.save("stop.png")       # one picture

Rows count the tokens that were asked for, from 0; leaving the row out takes their mean.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from llava_probe.arrays import FloatArray
from llava_probe.border import Count, Positive, checked
from llava_probe.errors import BadFile, BadInput, NotANumber, OutOfRange
from llava_probe.layout import ImageLayout
from llava_probe.maps.about import wrong_about
from llava_probe.maps.file import load_map, map_header
from llava_probe.maps.overlay import backdrop, is_copy, scale_of
from llava_probe.pictures.images import open_image, stored_bytes
from llava_probe.stored import place, together, whole
from llava_probe.trace.tokens import Token

#: Longer side of saved overlays, in pixels: finer than any model's patches, and a megabyte in place of ten.
SIDE = 1200

_LAYOUT = ("positions", "boxes", "tiles")
#: Suffixes of one picture, and how it is encoded; and of what only a figure can be.
_PICTURES = {".png": ".png", ".jpg": ".jpg", ".jpeg": ".jpg"}
_FIGURES = (".pdf", ".svg")
_NAME_LENGTH = 24  # of a token's text in a file name
_PATIENCE = 2.0  # seconds before saving shows a progress bar: an overlay of a 12-megapixel photograph takes as long
_QUALITY = 80  # of JPEG, colours at full resolution: nearer to the pixels, and smaller, than 88 with halved colours


@checked
@dataclass(frozen=True, eq=False)
class ImageMap:
    """What a method says of each visual token of one picture, for each explained token.

    Attributes:
        values: [T, N] float32 on the CPU, a row for each of ``tokens``.
        layout: where the N visual tokens lie; ``image``: the original they lie on.
        tokens: the explained tokens.
        method: what made it, ``"attention"`` say.
        marked: [T, N] bool, tokens to point out (sinks); a [N] or [1, N] mask goes for every row.
        about: plain data: the options; ``"unit"``, what a value is, for colour bars; ``"positions"``, a list of each
            row's tokens'; ``"contrast"``, the word that each row is weighed against, or None.
        text: [T, M] the same for the M tokens of prompt and answer that are no picture, where the method has a value
            for them; ``text_tokens``: these tokens.

    Raises:
        BadInput: values, layout, picture and tokens that do not fit each other, or ``about`` in another form.
        NotANumber: a row holds NaN or infinity.
    """

    values: Tensor
    layout: ImageLayout
    image: Image.Image
    tokens: tuple[Token, ...]
    method: str
    marked: Tensor | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    text: Tensor | None = None
    text_tokens: tuple[Token, ...] = ()

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.values).detach()
        shape = (len(self.tokens), len(self.layout))
        if values.shape != shape:
            raise BadInput(
                f"{self.method}: a map of {shape[0]} tokens on {shape[1]} visual tokens takes values {list(shape)}; "
                f"got {list(values.shape)}"
            )
        if not is_copy(self.image, self.layout):
            raise BadInput(f"the layout is of a picture of {self.layout.size} pixels; this one has {self.image.size}")
        values = values.to("cpu", torch.float32)
        wrong = (~torch.isfinite(values)).any(1).nonzero().flatten().tolist()
        if wrong:
            row = f"row {wrong[0]} ({self.tokens[wrong[0]].text!r})"
            raise NotANumber(f"{self.method}: the values of {row} are not all finite numbers")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "tokens", tuple(self.tokens))
        if self.marked is not None:
            marked = torch.as_tensor(self.marked)
            if marked.shape not in (shape, shape[1:]):
                raise BadInput(f"{self.method}: marked= takes {list(shape)} or {[shape[1]]}; got {list(marked.shape)}")
            object.__setattr__(self, "marked", marked.to("cpu", torch.bool).expand(shape))
        if self.text is not None:
            text = torch.as_tensor(self.text).detach()
            if text.shape != (shape[0], len(self.text_tokens)):
                raise BadInput(
                    f"{self.method}: {shape[0]} rows beside {len(self.text_tokens)} other tokens take text "
                    f"{[shape[0], len(self.text_tokens)]}; got {list(text.shape)}"
                )
            object.__setattr__(self, "text", text.to("cpu", torch.float32))
        for told in wrong_about(self.about, len(self)):
            raise BadInput(f"{self.method}: about= cannot be read: {told}")

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        told = "".join(token.text for token in self.tokens).strip()
        return f"ImageMap({self.method}: {len(self)} tokens {told[:40]!r} on {len(self.layout)} visual tokens)"

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.overlay().save(png, format="PNG")
        return png.getvalue()

    # --- reading ---

    def row(self, row: int | None = None) -> Tensor:
        """[N] values of one explained token, or the mean of all rows.

        Raises:
            OutOfRange: there is no such row.
        """
        if row is None:
            return self.values.mean(0)
        return self.values[self._number(row)]

    def pixels(self, row: int | None = None, tiles: int | Sequence[int] | None = None) -> FloatArray:
        """[height, width] float32 on the original, NaN where nothing was seen; ``tiles`` as in ``to_pixels``."""
        return self.layout.to_pixels(self.row(row), tiles)

    def grid(self, row: int | None = None) -> FloatArray:
        """[rows, columns] where the visual tokens form one grid.

        Raises:
            BadInput: they do not.
        """
        if self.layout.grid is None:
            raise BadInput("these visual tokens form no single grid; read pixels(row), or values beside layout.boxes")
        return self.row(row).reshape(self.layout.grid).numpy()

    def peak(self, row: int | None = None) -> tuple[float, float]:
        """(x, y) centre of the top token's box in pixels of the original; ties: their mean.

        Raises:
            OutOfRange: the picture has no visual tokens: the sampling of a video's frames left it out.
        """
        values = self.row(row)
        if not len(values):
            raise OutOfRange(f"this {self.method} map has no peak: its picture has no visual tokens, it was not seen")
        x0, y0, x1, y1 = self.layout.boxes[(values == values.max()).numpy()].mean(0).tolist()
        return (x0 + x1) / 2, (y0 + y1) / 2

    def label(self, row: int | None = None) -> str:
        """The explained token's text as one word to print, or of all of them; with what it is weighed against."""
        rows = range(len(self)) if row is None else [self._number(row)]
        texts = [self.tokens[number].text for number in rows]
        told = "".join(texts).strip().replace("\n", "⏎") or repr("".join(texts))
        weighed = self.about.get("contrast") or [None] * len(self)
        others = dict.fromkeys(weighed[number] for number in rows if weighed[number] is not None)
        return f"{told} rather than {' or '.join(others)}" if others else told

    def words(self, row: int = 0) -> tuple[tuple[Token, float], ...]:
        """The tokens of prompt and answer with what the method says of each, by size; none where it says nothing.

        Where a word was predicted from is left out: there the method starts, which says nothing of that token.

        Raises:
            OutOfRange: there is no such row.
        """
        number = self._number(row)
        if self.text is None:
            return ()
        starts = self.starts(number)
        pairs = zip(self.text_tokens, self.text[number].tolist(), strict=True)
        return tuple(sorted((pair for pair in pairs if pair[0].position not in starts), key=lambda pair: -abs(pair[1])))

    def starts(self, row: int) -> frozenset[int]:
        """The positions that a row's tokens were predicted from; their own where they are the prompt's.

        Raises:
            OutOfRange: there is no such row.
        """
        row = self._number(row)
        spans = self.about.get("positions")
        back = self.tokens[row].role == "generated"
        return frozenset(position - back for position in spans[row]) if spans else frozenset()

    # --- seeing ---

    def overlay(
        self,
        row: int | None = None,
        highest: Positive | None = None,
        side: Count | None = None,
        cmap: str | None = None,
    ) -> Image.Image:
        """The map with the photograph over it in grey: RGB, of the photograph's size, unseen pixels hatched.

        Args:
            row: which explained token; all, averaged, when None.
            highest: the value that gets the last colour; when None the largest of all rows, so that rows compare, or of
                their mean. Give the same to several maps to compare them.
            side: pixels along the longer side at most.
            cmap: ``"heat"`` or the name of one of matplotlib's colour maps; one for signed values when None and some
                are negative.

        Raises:
            BadInput: no such colour map, or one whose values could not be told apart under a photograph.
        """
        values = self.row(row)
        top = highest or scale_of((values if row is None else self.values).numpy())
        return Image.fromarray(backdrop(self.image, self.layout, side).paint(values, top, cmap, self._signed(row)))

    # --- as files ---

    def save(self, path: str | Path, side: int | None = SIDE) -> list[Path]:
        """Write an overlay a row and ``map.npz``, which holds all that ``load`` needs; or one picture.

        The overlays of a map that was saved there before are removed; nothing else in the folder is. Whatever stops
        it, ``map.npz`` is the earlier map's or this one's.

        Args:
            path: a folder, made where it is not there; or ``"stop.png"`` (.jpg too) for one picture, the rows' mean.
            side: pixels along the longer side of the overlays, and of the photograph in ``map.npz``, at most; those of
                the original when None. Values and places are the original's either way. Overlays are PNG, every pixel
                its own, and JPEG where the photograph was shrunken to be looked at.

        Returns:
            The files written, in that order.

        Raises:
            BadFile: they cannot be written there.
            BadInput: a figure's format: ``lp.figures.save(lp.figures.maps(m), "stop.pdf")``.
        """
        target = place("map", path)
        kind = target.suffix.lower()
        if kind in _FIGURES and not target.is_dir():
            drawn = f"lp.figures.save(lp.figures.maps(m), {target.name!r})"
            raise BadInput(f"a map is saved as .png, .jpg or a folder; as {kind} it is drawn: {drawn}")
        if kind in _PICTURES and not target.is_dir():
            with whole("map", target) as part:
                part.write_bytes(_encoded(np.asarray(self.overlay(side=side)), _PICTURES[kind]))
            return [target]
        photograph = backdrop(self.image, self.layout, side)
        suffix = ".png" if photograph.picture.shape[1::-1] == tuple(self.layout.size) else ".jpg"
        names = _file_names((token.text for token in self.tokens), suffix)
        top, signed = scale_of(self.values.numpy()), self._signed(0)
        with together("map", target, "map.npz", earlier=_saved_names(target)) as part:
            rows = list(zip(self.values, names, strict=True))
            for values, name in tqdm(rows, desc=target.name, unit="map", delay=_PATIENCE, leave=False, disable=None):
                (part / name).write_bytes(_encoded(photograph.paint(values, top, signed=signed), suffix))
            kept = self._kept_photograph(photograph.picture, suffix)
            with (part / "map.npz").open("wb") as file:
                np.savez_compressed(file, **self._arrays(np.frombuffer(kept, np.uint8), suffix))
        return [target / name for name in [*names, "map.npz"]]

    def _signed(self, row: int | None) -> bool:
        """Whether there is a value below 0 in any row, since rows are seen on one scale, or in their mean."""
        return bool(((self.row() if row is None else self.values) < 0).any())

    @classmethod
    def load(cls, path: str | Path) -> ImageMap:
        """Read the ``.npz`` that ``save`` wrote (or the folder it is in).

        Raises:
            BadFile: it is not there, or is no map.
        """
        source = place("map", path)
        source = source / "map.npz" if source.is_dir() else source
        try:
            return cls(**load_map(source))
        except (BadInput, NotANumber) as error:
            raise BadFile(f"{source} is damaged: {error}") from None

    # --- details ---

    def _number(self, row: int) -> int:
        if not -len(self) <= row < len(self):
            raise OutOfRange(f"row {row} is not there: this map has rows 0 to {len(self) - 1}, one for each token")
        return row % len(self)

    def _kept_photograph(self, picture: npt.NDArray[np.uint8], suffix: str) -> bytes:
        """The map's own picture as a file, or where it was shrunken the smaller one."""
        same = picture.shape[1::-1] == self.image.size
        return stored_bytes(open_image(self.image)) if same else _encoded(picture, suffix)

    def _arrays(self, photograph: npt.NDArray[np.uint8], suffix: str) -> dict[str, Any]:
        told = {
            "method": self.method,
            "about": self.about,
            "grid": self.layout.grid,
            "frames": self.layout.frames,
            "tokens": [asdict(token) for token in self.tokens],
            "text_tokens": [asdict(token) for token in self.text_tokens],
            "overlays": suffix,
        }
        beside = {name: tensor.numpy() for name in ("marked", "text") if (tensor := getattr(self, name)) is not None}
        return {
            "values": self.values.numpy(),
            **{name: getattr(self.layout, name) for name in _LAYOUT},
            "size": np.array(self.layout.size),
            "seen": self.layout.seen,
            "image": photograph,
            "texts": np.array([token.text for token in self.tokens]),
            "ids": np.array([token.id for token in self.tokens]),
            "token_positions": np.array([token.position for token in self.tokens]),
            "told": np.array(json.dumps(told, ensure_ascii=False, default=str)),
            **beside,
        }


def remove_saved(folder: Path) -> bool:
    """Take away what ``ImageMap.save`` wrote into ``folder`` and nothing else.

    Returns:
        Whether there was a map of ours.

    Raises:
        OSError: a file cannot be removed.
    """
    names = _saved_names(folder)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    return bool(names)


def _saved_names(folder: Path) -> list[str]:
    """What ``ImageMap.save`` wrote there, as its own ``map.npz`` tells; nothing without one."""
    try:
        told = map_header(folder / "map.npz")
    except BadFile:
        return []
    return [*_file_names((token.text for token in told.tokens), told.overlays), "map.npz"]


def _file_names(texts: Iterable[str], suffix: str) -> list[str]:
    """Of each row's overlay: its number and its token's text, fit for any file system."""
    plain = (re.sub(r"[^\w-]+", "_", text).strip("_")[:_NAME_LENGTH] or "token" for text in texts)
    return [f"{row:03d}_{text}{suffix}" for row, text in enumerate(plain)]


def _encoded(picture: npt.NDArray[np.uint8], suffix: str) -> bytes:
    file = io.BytesIO()
    if suffix == ".jpg":
        Image.fromarray(picture).save(file, "JPEG", quality=_QUALITY, subsampling="4:4:4", optimize=True)
    else:
        Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
