"""A microscope for vision-language models.

    import llava_probe as lp

    vlm = lp.load()
    trace = vlm.generate("scene.png", "What is the text on the stop sign?")
    lp.confidence(trace).table()
    lp.attention_map(trace).overlay()

Names are imported when first used, so that ``import llava_probe`` and ``llava-probe --help`` are quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "VLM": "model",
    "load": "loading",
    "check": "agreement",
    "Capture": "trace.capture",
    "Trace": "trace.trace",
    "Token": "trace.tokens",
    "ImageLayout": "layout",
    "open_image": "pictures.images",
    "ImageMap": "maps.maps",
    "confidence": "analyzers.confidence",
    "attention_map": "analyzers.attention",
    "rollout": "analyzers.rollout",
    "heads": "analyzers.heads",
    "sinks": "analyzers.sinks",
    "attribute": "attribution",
    "METHODS": "attribution",
    "extract": "features.extract",
    "Cluster": "features.engines",
    "Features": "features.reading",
    "fit_probe": "probes",
    "Probe": "probes",
    "families": "layout.family_table",
    "knock_out": "interventions",
    "evaluate": "evaluate",
    "figures": "view.figures",
    "probe_figures": "view.probe_figures",
    **dict.fromkeys(
        ("ALL", "ANSWER", "GENERATED", "IMAGE", "LAST", "PREDICTING", "PROMPT", "QUESTION", "SPECIAL", "TEXT"),
        "trace.explained",
    ),
    **dict.fromkeys(
        (
            "ProbeError",
            "BadInput",
            "BadImage",
            "BadModel",
            "BadFile",
            "NotActed",
            "NotCaptured",
            "NotANumber",
            "OutOfRange",
        ),
        "errors",
    ),
}

#: Names that are a module as a whole.
_MODULES = {"evaluate", "figures", "probe_figures"}

__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_NAMES[name]}")
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
