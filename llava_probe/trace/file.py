"""A trace as one file: tensors, pictures and provenance, readable without the model.

The file is a safetensors file (never pickle): tensors under their record names, pictures as PNG bytes, everything
else as JSON in its header beside a checksum. It is written next to its place and moved there when complete, so a
full disk or a kill leaves the old file or none.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava_probe.errors import BadFile
from llava_probe.layout import ImageLayout
from llava_probe.trace.capture import Capture
from llava_probe.trace.request import Request, from_plain, to_plain
from llava_probe.trace.sizes import Sizes
from llava_probe.trace.spellings import Spellings
from llava_probe.trace.tokens import Token
from llava_probe.whole_file import checksum, write_tensors

#: 2 keeps the question in plain words, the model's sizes, what ends an answer and interventions; 1 is still read.
TRACE_FORMAT = 2

Kept = TypeVar("Kept")

_SHARED = ("vision_hidden", "vision_attention")

_LAYOUT_ARRAYS = ("positions", "boxes", "tiles")
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
    source = Path(path).expanduser()
    try:
        with safe_open(source, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if "llava_probe.format" not in metadata:
                raise BadFile(f"{source} is a safetensors file but no trace of llava_probe, or a damaged one")
            if int(metadata["llava_probe.format"]) > TRACE_FORMAT:
                raise BadFile(f"{source} was written by a newer llava_probe (format {metadata['llava_probe.format']})")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError as error:
        raise BadFile(f"there is no trace at {source}") from error
    except BadFile:
        raise
    except (OSError, SafetensorError, ValueError, UnicodeDecodeError) as error:
        raise BadFile(f"{source} is no trace, or a damaged one: {error}") from error
    if checksum(metadata.get("trace", ""), tensors) != metadata.get("digest"):
        raise BadFile(f"{source} is damaged: its checksum does not match its contents")
    told = json.loads(metadata["trace"])
    pictures = (io.BytesIO(tensors[f"images/{number}"].numpy().tobytes()) for number in range(told["images"]))
    images = tuple(Image.open(picture).convert("RGB") for picture in pictures)
    return _restored(kind, told, "", tensors, images)


def _described(trace: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The trace's plain data; its tensors go into ``tensors`` under ``prefix``."""
    request = trace.request
    for name, tensor in trace.records.items():
        if not prefix or name not in _SHARED:  # alternatives share the pictures and what the tower made of them
            tensors[f"{prefix}records/{name}"] = tensor.contiguous()
    for name, tensor in (request.inputs or {}).items():
        tensors[f"{prefix}inputs/{name}"] = tensor.contiguous().clone()  # alternatives hold the very same
    for number, layout in enumerate(trace.layouts):
        for array in _LAYOUT_ARRAYS:
            tensors[f"{prefix}layouts/{number}/{array}"] = torch.tensor(getattr(layout, array))
    if not prefix:  # alternatives share the pictures and the spellings
        told: dict[str, Any] = {"texts": {str(token): text for token, text in trace.spellings.texts.items()}}
        told |= {"special": sorted(trace.spellings.special), "whole": trace.spellings.whole}
        tensors["spellings"] = _bytes(json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode())
        for number, image in enumerate(trace.images):
            png = io.BytesIO()
            image.save(png, format="PNG", compress_level=1)
            tensors[f"images/{number}"] = _bytes(png.getvalue())
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
            "capture": asdict(request.capture),
            "question": request.question,
            "system": request.system,
            "template": {name: to_plain(value) for name, value in request.template.items()},
        },
        "sizes": asdict(trace.sizes),
        "ends": sorted(trace.ends),
        "interventions": trace.interventions,
        "alternatives": [
            _described(other, f"{prefix}alternatives/{number}/", tensors)
            for number, other in enumerate(trace.alternatives)
        ],
    }


def _restored(
    kind: Callable[..., Kept],
    told: dict[str, Any],
    prefix: str,
    tensors: Mapping[str, Tensor],
    images: tuple[Image.Image, ...],
) -> Kept:
    def under(folder: str) -> dict[str, Tensor]:
        start = f"{prefix}{folder}/"
        return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}

    asked, spelled = told["request"], _spellings(tensors["spellings"].numpy().tobytes())
    plain: dict[str, Any] = {name: told[name] for name in _PLAIN} | {name: tuple(told[name]) for name in _AXES}
    layouts = tuple(
        ImageLayout(
            tuple(layout["size"]),
            **{array: tensors[f"{prefix}layouts/{number}/{array}"].numpy() for array in _LAYOUT_ARRAYS},
            grid=None if layout["grid"] is None else tuple(layout["grid"]),
            frames=tuple(layout["frames"]),
        )
        for number, layout in enumerate(told["layouts"])
    )
    return kind(
        **plain,
        tokens=tuple(Token(token, text, role, at) for at, (token, text, role) in enumerate(told["tokens"])),
        images=images,
        layouts=layouts,
        request=Request(
            prompt=asked["prompt"],
            messages=from_plain(asked["messages"]),
            inputs=None if asked["inputs"] is None else under("inputs"),
            videos=tuple(asked["videos"]),
            answer=None if asked["answer"] is None else tuple(asked["answer"]),
            generate={name: from_plain(value) for name, value in asked["generate"].items()},
            processor={name: from_plain(value) for name, value in asked["processor"].items()},
            seed=asked["seed"],
            batch=asked["batch"],
            sequence=asked["sequence"],
            capture=Capture(**asked["capture"]),
            question=asked.get("question"),
            system=asked.get("system"),
            template={name: from_plain(value) for name, value in asked.get("template", {}).items()},
        ),
        sizes=_sizes(told),
        records=under("records")
        | {name: tensors[f"records/{name}"] for name in _SHARED if f"records/{name}" in tensors},
        spellings=spelled,
        ends=frozenset(told["ends"]) if "ends" in told else spelled.special,
        interventions=tuple(told.get("interventions", ())),
        alternatives=tuple(
            _restored(kind, other, f"{prefix}alternatives/{number}/", tensors, images)
            for number, other in enumerate(told["alternatives"])
        ),
    )


def _sizes(told: Mapping[str, Any]) -> Sizes:
    """The model's sizes; the first format had them, but for the width, among the provenance."""
    if "sizes" not in told:
        made = told["provenance"]
        others = made.get("other_layers") or {}
        sizes = {"layers": made["layer_count"], "heads": made["head_count"], "vocabulary": made["vocabulary"]}
        sizes |= {"width": None, "dtype": made["dtype"], "other_layers": others}
    else:
        sizes = told["sizes"]
    return Sizes(**sizes | {"other_layers": {int(layer): kind for layer, kind in sizes["other_layers"].items()}})


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@lru_cache(maxsize=4)
def _spellings(data: bytes) -> Spellings:
    """Read once for all the traces of one model: a vocabulary's strings take megabytes."""
    told = json.loads(data)
    texts = {int(token): text for token, text in told["texts"].items()}
    return Spellings(texts, frozenset(told["special"]), told["whole"])
