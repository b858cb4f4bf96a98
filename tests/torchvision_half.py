"""torchvision's Python half, for processors that cannot do without it.

The wheels of torchvision are built against one build of torch and fail to import beside another: their compiled
operators do not load. No processor calls those operators, so their schemas are declared to torch here, and the rest
of torchvision imports. ``make test`` puts the package beside the environment (``pip install --no-deps --target``), not
into it: this must run before transformers is imported.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch

FOLDER = Path(sys.prefix) / "torchvision-half"

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor a, Tensor b, float s, SymInt h, SymInt w, int r, bool al) -> Tensor",
    "_roi_align_backward(Tensor a, Tensor b, float s, SymInt h, SymInt w, SymInt n, SymInt c, SymInt y, SymInt x, "
    "int r, bool al) -> Tensor",
    "roi_pool(Tensor a, Tensor b, float s, SymInt h, SymInt w) -> (Tensor, Tensor)",
    "_roi_pool_backward(Tensor a, Tensor b, Tensor m, float s, SymInt h, SymInt w, SymInt n, SymInt c, SymInt y, "
    "SymInt x) -> Tensor",
    "ps_roi_align(Tensor a, Tensor b, float s, SymInt h, SymInt w, int r) -> (Tensor, Tensor)",
    "_ps_roi_align_backward(Tensor a, Tensor b, Tensor m, float s, SymInt h, SymInt w, int r, SymInt n, SymInt c, "
    "SymInt y, SymInt x) -> Tensor",
    "ps_roi_pool(Tensor a, Tensor b, float s, SymInt h, SymInt w) -> (Tensor, Tensor)",
    "_ps_roi_pool_backward(Tensor a, Tensor b, Tensor m, float s, SymInt h, SymInt w, SymInt n, SymInt c, SymInt y, "
    "SymInt x) -> Tensor",
    "deform_conv2d(Tensor a, Tensor b, Tensor o, Tensor m, Tensor bias, SymInt sh, SymInt sw, SymInt ph, SymInt pw, "
    "SymInt dh, SymInt dw, SymInt g, SymInt og, bool u) -> Tensor",
    "_deform_conv2d_backward(Tensor g, Tensor a, Tensor b, Tensor o, Tensor m, Tensor bias, SymInt sh, SymInt sw, "
    "SymInt ph, SymInt pw, SymInt dh, SymInt dw, SymInt gr, SymInt og, bool u) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
)

_library = None


def present() -> bool:
    """Make torchvision importable where it was put for the tests; whether it is there."""
    global _library
    if find_spec("torchvision") is not None:
        return True
    if not FOLDER.is_dir():
        return False
    sys.path.append(str(FOLDER))
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        _library.define(schema)
    return True
