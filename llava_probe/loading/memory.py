"""How much memory a model will need, before it is loaded: by its files' tables, its dtype and its quantisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava_probe.loading.folder import FoundModel

#: Bytes of a number by safetensors' names and by torch's.
_BYTES = {
    **{"F64": 8.0, "F32": 4.0, "F16": 2.0, "BF16": 2.0, "F8_E4M3": 1.0, "F8_E5M2": 1.0},
    **{"float64": 8.0, "float32": 4.0, "float16": 2.0, "bfloat16": 2.0},
}

#: Bytes of a quantised number with its share of the scales, and of the tables and outer layers that stay as they are.
_QUANTISED = {"8bit": 1.1, "4bit": 0.6}


def memory_needed(found: FoundModel, dtype: Any = None, quantize: str | None = None) -> int | None:
    """Bytes that a model's weights will take; None where its files do not tell."""
    if found.weights is None:
        return None
    wanted = _BYTES.get(str(dtype).removeprefix("torch."))
    total = 0.0
    for name, count in found.weights.numbers.items():
        own = _BYTES.get(name)
        if own is None:  # whole numbers and booleans stay as they are
            total += count
        else:
            total += count * (_QUANTISED.get(quantize or "") or wanted or own)
    if not found.weights.numbers:
        stored = _BYTES.get(str(found.config.get("dtype") or found.config.get("torch_dtype")), 2.0)
        total = found.weights.stored / stored * (_QUANTISED.get(quantize or "") or wanted or stored)
    return round(total)


def free_memory() -> int | None:
    """Bytes of the computer's memory that are free for this process; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
    group = Path("/sys/fs/cgroup")
    try:  # a container's own limit
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = sum(
            int(line.split()[1])
            for line in (group / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
    except (OSError, ValueError):
        return available
    return min(available, max(0, limit - used + cached))
