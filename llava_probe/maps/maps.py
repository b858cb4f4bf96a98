"""One value per visual token for each explained token, whatever method made it, and its way onto the photograph.

    m = lp.attention_map(trace)
    m.pixels(0)              # [height, width] on the original, NaN where the model saw nothing
    m.overlay(0).show()      # the photograph with the map over it, token by token, nothing smoothed
    m.save("maps/")          # a PNG a row, and one .npz that plots again

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
from llava_probe.maps.file import load_map
from llava_probe.maps.overlay import backdrop, is_copy
from llava_probe.stored import path_of
from llava_probe.trace.tokens import Token

#: Longer side of saved overlays, in pixels: finer than any model's patches, and a megabyte in place of ten.
SIDE = 1200

_LAYOUT = ("positions", "boxes", "tiles")
_NAME_LENGTH = 24  # of a token's text in a file name
_PATIENCE = 2.0  # seconds before saving shows a progress bar: an overlay of a 12-megapixel photograph takes as long


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
        about: plain data: the options, and ``"unit"``, what a value is, for colour bars.
        text: [T, M] the same for the M tokens of prompt and answer that are no picture, where the method has a value
            for them; ``text_tokens``: these tokens.

    Raises:
        BadInput: values, layout, picture and tokens that do not fit each other.
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

    # --- seeing ---

    def overlay(
        self, row: int | None = None, highest: Positive | None = None, side: Count | None = None
    ) -> Image.Image:
        """The photograph with the map over it: RGB, of the photograph's size, unseen pixels hatched.

        Args:
            row: which explained token; all, averaged, when None.
            highest: the value that gets the full colour; the row's own largest when None. Give the same to several
                to compare them.
            side: pixels along the longer side at most.
        """
        return Image.fromarray(backdrop(self.image, self.layout, side).paint(self.row(row), highest))

    # --- as files ---

    def save(self, folder: str | Path, side: int | None = SIDE) -> list[Path]:
        """Write an overlay a row and ``map.npz``, which holds all that ``load`` needs.

        The overlays of a map that was saved there before are removed; nothing else in the folder is.

        Args:
            folder: where to; made where it is not there.
            side: pixels along the longer side of the overlays, and of the photograph in ``map.npz``, at most; those of
                the original when None. Values and places are the original's either way.

        Returns:
            The files written, in that order.

        Raises:
            BadFile: the folder cannot be written to.
        """
        target = path_of("map's folder", folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
            remove_saved(target)
            written = [target / name for name in _file_names(token.text for token in self.tokens)]
            photograph = backdrop(self.image, self.layout, side)
            rows = list(zip(self.values, written, strict=True))
            for values, path in tqdm(rows, desc=target.name, unit="map", delay=_PATIENCE, leave=False, disable=None):
                Image.fromarray(photograph.paint(values)).save(path)
            written.append(target / "map.npz")
            np.savez_compressed(written[-1], **self._arrays(photograph.picture))
        except OSError as error:
            raise BadFile(f"the map could not be written to {target}: {error}") from error
        return written

    @classmethod
    def load(cls, path: str | Path) -> ImageMap:
        """Read the ``.npz`` that ``save`` wrote (or the folder it is in).

        Raises:
            BadFile: it is not there, or is no map.
        """
        source = path_of("map", path)
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

    def _arrays(self, photograph: npt.NDArray[np.uint8]) -> dict[str, Any]:
        told = {
            "method": self.method,
            "about": self.about,
            "grid": self.layout.grid,
            "frames": self.layout.frames,
            "tokens": [asdict(token) for token in self.tokens],
            "text_tokens": [asdict(token) for token in self.text_tokens],
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
    source = folder / "map.npz"
    try:
        names = _file_names(token.text for token in load_map(source)["tokens"])
    except BadFile:
        return False
    for name in [*names, source.name]:
        (folder / name).unlink(missing_ok=True)
    return True


def _file_names(texts: Iterable[str]) -> list[str]:
    """Of each row's overlay: its number and its token's text, fit for any file system."""
    plain = (re.sub(r"[^\w-]+", "_", text).strip("_")[:_NAME_LENGTH] or "token" for text in texts)
    return [f"{row:03d}_{text}.png" for row, text in enumerate(plain)]
