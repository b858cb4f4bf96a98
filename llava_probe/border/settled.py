"""What a process is set to changes nothing that is made here: a trace is the one that its defaults would have given.

A default dtype or device, inference mode, autocast, NumPy's way with errors and Pillow's limit for large pictures
belong to whoever set them. While a public function runs they are as Python starts with them, and then as they were.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

#: Loading follows its caller: where a model goes is what ``with torch.device(...)`` around it says.
_FOLLOWS = ("llava_probe.loading",)

_NUMPY: dict[str, Any] = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}

#: Pillow's own limit, in pixels.
_LARGE = 1024 * 1024 * 1024 // 4 // 3

_NOTHING = nullcontext()


def settled(module: str) -> Any:
    """A context in which a function of ``module`` runs; one that does nothing where nothing was set."""
    loaded = sys.modules.get
    torch, numpy, pillow = loaded("torch"), loaded("numpy"), loaded("PIL.Image")
    if module in _FOLLOWS or torch is None or not hasattr(torch, "get_default_device"):
        return _NOTHING
    strange = (
        torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
        or torch.get_default_dtype() is not torch.float32
        or torch.is_inference_mode_enabled()
        or torch.empty(0).device.type != "cpu"  # a fifth of what asking for the default device takes
        or (numpy is not None and numpy.geterr() != _NUMPY)
        or (pillow is not None and pillow.MAX_IMAGE_PIXELS != _LARGE)
    )
    return _as_python_starts(torch) if strange else _NOTHING


@contextmanager
def _as_python_starts(torch: Any) -> Iterator[None]:
    import numpy as np
    from PIL import Image

    dtype, large = torch.get_default_dtype(), Image.MAX_IMAGE_PIXELS
    with ExitStack() as undo:
        undo.callback(torch.set_default_dtype, dtype)
        undo.callback(setattr, Image, "MAX_IMAGE_PIXELS", large)
        torch.set_default_dtype(torch.float32)
        Image.MAX_IMAGE_PIXELS = _LARGE
        undo.enter_context(np.errstate(**_NUMPY))
        if torch.get_default_device().type != "cpu":
            undo.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            undo.enter_context(torch.inference_mode(False))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                undo.enter_context(torch.autocast(kind, enabled=False))
        yield
