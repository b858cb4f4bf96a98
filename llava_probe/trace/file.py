"""A trace as one file: tensors, pictures and provenance, readable without the model.

The file is a safetensors file (never pickle): tensors under their record names, pictures as the photographs' own
files (PNG where those would give other pixels), everything else as JSON in its header beside a checksum. It is written
next to its place and moved there when complete, so a full disk or a kill leaves the old file or none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict as as_dict
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from msgspec.structs import asdict
from PIL import Image
from torch import Tensor

from llava_probe.errors import BadFile
from llava_probe.layout import ImageLayout
from llava_probe.pictures.images import check_density, open_stored, stored_bytes
from llava_probe.stored import decoded, refused
from llava_probe.trace.capture import Capture
from llava_probe.trace.header import (
    LAYOUT_ARRAYS,
    SHARED,
    StoredRequest,
    StoredSpellings,
    StoredTrace,
    check_trace,
    layout_of,
    stored_sizes,
)
from llava_probe.trace.request import Request, from_plain, to_plain
from llava_probe.trace.spellings import Spellings
from llava_probe.trace.tokens import Token
from llava_probe.whole_file import Contents, checksum, read_tensors, write_tensors

#: 2 keeps the question in plain words, the model's sizes, what ends an answer and interventions; 1 is still read.
TRACE_FORMAT = 2

Kept = TypeVar("Kept")

_PLAIN = ("answer", "prompt_length", "sequence_score", "provenance")
_AXES = ("hidden_layers", "hidden_positions", "attention_layers", "attention_heads", "attention_positions")


def save_trace(trace: Any, path: str | Path) -> Path:
    """Write ``trace`` to ``path``, whole or not at all.

    Raises:
        BadFile: the place cannot be written, or the disk is full; what was there before is still there.
    """
    tensors: dict[str, Tensor] = {}
    header = json.dumps(_described(trace, "", tensors), ensure_ascii=False)
    metadata = {"llava_probe.format": str(TRACE_FORMAT), "trace": header, "digest": checksum(header, tensors)}
    return write_tensors("trace", path, tensors, metadata)


def load_trace(path: str | Path, kind: Callable[..., Kept]) -> Kept:
    """Read a trace written by ``save_trace``; ``kind``, the class itself, makes it of its fields.

    Raises:
        BadFile: there is no such file, it is damaged, is no trace, or was written by a newer version.
    """
    held = read_tensors("trace", path, key="llava_probe.format", header="trace", newest=TRACE_FORMAT)
    trace = decoded(f"the header of {held.source} is damaged", held.header, StoredTrace)
    check_trace(held, trace)
    pictures = [held.tensors[f"images/{number}"].numpy().tobytes() for number in range(trace.images)]
    check_density(pictures, str(held.source))
    images = tuple(
        open_stored(picture, f"picture {number} of {held.source}") for number, picture in enumerate(pictures)
    )
    spelled = _spellings(held.tensors["spellings"].numpy().tobytes(), f"the spellings of {held.source}")
    return _restored(kind, trace, "", held, images, spelled)


def _described(trace: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The trace's plain data; its tensors go into ``tensors`` under ``prefix``."""
    request = trace.request
    for name, tensor in trace.records.items():
        if not prefix or name not in SHARED:  # alternatives share the pictures and what the tower made of them
            tensors[f"{prefix}records/{name}"] = tensor.contiguous()
    for name, tensor in (request.inputs or {}).items():
        tensors[f"{prefix}inputs/{name}"] = tensor.contiguous().clone()  # alternatives hold the very same
    for number, layout in enumerate(trace.layouts):
        for array in LAYOUT_ARRAYS:
            tensors[f"{prefix}layouts/{number}/{array}"] = torch.tensor(getattr(layout, array))
    if not prefix:  # alternatives share the pictures and the spellings
        spelled: dict[str, Any] = {"texts": {str(token): text for token, text in trace.spellings.texts.items()}}
        spelled |= {"special": sorted(trace.spellings.special), "whole": trace.spellings.whole}
        tensors["spellings"] = _bytes(json.dumps(spelled, ensure_ascii=False, separators=(",", ":")).encode())
        for number, image in enumerate(trace.images):
            tensors[f"images/{number}"] = _bytes(stored_bytes(image))
    return {
        **{name: getattr(trace, name) for name in (*_PLAIN, *_AXES)},
        "tokens": [[token.id, token.text, token.role] for token in trace.tokens],
        "images": len(trace.images),
        "layouts": [{"size": layout.size, "grid": layout.grid, "frames": layout.frames} for layout in trace.layouts],
        "request": {
            "prompt": request.prompt,
            "messages": to_plain(request.messages),
            "inputs": sorted(request.inputs) if request.inputs is not None else None,
            "videos": request.videos,
            "answer": request.answer,
            "generate": {name: to_plain(value) for name, value in request.generate.items()},
            "processor": {name: to_plain(value) for name, value in request.processor.items()},
            "seed": request.seed,
            "batch": request.batch,
            "sequence": request.sequence,
            "capture": as_dict(request.capture),
            "question": request.question,
            "system": request.system,
            "template": {name: to_plain(value) for name, value in request.template.items()},
        },
        "sizes": as_dict(trace.sizes),
        "ends": sorted(trace.ends),
        "interventions": trace.interventions,
        "alternatives": [
            _described(other, f"{prefix}alternatives/{number}/", tensors)
            for number, other in enumerate(trace.alternatives)
        ],
    }


def _restored(
    kind: Callable[..., Kept],
    trace: StoredTrace,
    prefix: str,
    held: Contents,
    images: tuple[Image.Image, ...],
    spelled: Spellings,
) -> Kept:
    def under(folder: str) -> dict[str, Tensor]:
        start = f"{prefix}{folder}/"
        return {name.removeprefix(start): value for name, value in held.tensors.items() if name.startswith(start)}

    plain: dict[str, Any] = {name: getattr(trace, name) for name in (*_PLAIN, *_AXES)}
    return kind(
        **plain,
        tokens=tuple(Token(token, text, role, at) for at, (token, text, role) in enumerate(trace.tokens)),
        images=images,
        layouts=tuple(_layouts(trace, prefix, held, images)),
        request=_request(trace.request, under("inputs"), held.source),
        sizes=stored_sizes(trace, held.source),
        records=under("records")
        | {name: held.tensors[f"records/{name}"] for name in SHARED if f"records/{name}" in held.tensors},
        spellings=spelled,
        ends=spelled.special if trace.ends is None else frozenset(trace.ends),
        interventions=trace.interventions,
        alternatives=tuple(
            _restored(kind, other, f"{prefix}alternatives/{number}/", held, images, spelled)
            for number, other in enumerate(trace.alternatives)
        ),
    )


def _layouts(trace: StoredTrace, prefix: str, held: Contents, images: tuple[Image.Image, ...]) -> Iterator[ImageLayout]:
    for number, (layout, image) in enumerate(zip(trace.layouts, images, strict=bool(trace.layouts))):
        if layout.size != image.size:
            raise BadFile(
                f"{held.source} is damaged: picture {number} is {image.size} pixels, its layout {layout.size}"
            )
        yield layout_of(layout, {name: held.tensors[f"{prefix}layouts/{number}/{name}"] for name in LAYOUT_ARRAYS})


def _request(asked: StoredRequest, inputs: dict[str, Tensor], source: Path) -> Request:
    with refused(f"what {source} says of the request is damaged"):  # settings are torch's and transformers'
        return Request(
            prompt=asked.prompt,
            messages=from_plain(asked.messages),
            inputs=None if asked.inputs is None else inputs,
            videos=asked.videos,
            answer=asked.answer,
            generate={name: from_plain(value) for name, value in asked.generate.items()},
            processor={name: from_plain(value) for name, value in asked.processor.items()},
            seed=asked.seed,
            batch=asked.batch,
            sequence=asked.sequence,
            capture=Capture(**asdict(asked.capture)),
            question=asked.question,
            system=asked.system,
            template={name: from_plain(value) for name, value in asked.template.items()},
        )


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@lru_cache(maxsize=4)
def _spellings(data: bytes, what: str) -> Spellings:
    """Read once for all the traces of one model: a vocabulary's strings take megabytes."""
    found = decoded(f"{what} are damaged", data, StoredSpellings)
    return Spellings(found.texts, frozenset(found.special), found.whole)
