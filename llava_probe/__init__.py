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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what __getattr__ hands out, for editors and type checkers: test_names.py compares the two
    from llava_probe import compare as compare
    from llava_probe import evaluate as evaluate
    from llava_probe import lens as lens
    from llava_probe import view as view
    from llava_probe.agreement import check as check
    from llava_probe.analyzers.attention import attention_map as attention_map
    from llava_probe.analyzers.confidence import confidence as confidence
    from llava_probe.analyzers.heads import heads as heads
    from llava_probe.analyzers.rollout import rollout as rollout
    from llava_probe.analyzers.sinks import sinks as sinks
    from llava_probe.attribution import METHODS as METHODS
    from llava_probe.attribution import attribute as attribute
    from llava_probe.compare.models import compare_models as compare_models
    from llava_probe.errors import BadFile as BadFile
    from llava_probe.errors import BadImage as BadImage
    from llava_probe.errors import BadInput as BadInput
    from llava_probe.errors import BadModel as BadModel
    from llava_probe.errors import NotActed as NotActed
    from llava_probe.errors import NotANumber as NotANumber
    from llava_probe.errors import NotCaptured as NotCaptured
    from llava_probe.errors import OutOfRange as OutOfRange
    from llava_probe.errors import ProbeError as ProbeError
    from llava_probe.features.engines import Cluster as Cluster
    from llava_probe.features.extract import extract as extract
    from llava_probe.features.reading import Features as Features
    from llava_probe.finetune.finetune import finetune as finetune
    from llava_probe.interventions.ablate import ablate as ablate
    from llava_probe.interventions.directions import Direction as Direction
    from llava_probe.interventions.knock_out import knock_out as knock_out
    from llava_probe.interventions.patch import patch as patch
    from llava_probe.interventions.reweight import reweight as reweight
    from llava_probe.interventions.steer import steer as steer
    from llava_probe.layout import ImageLayout as ImageLayout
    from llava_probe.layout.family_table import families as families
    from llava_probe.lens.bank import WordBank as WordBank
    from llava_probe.lens.fit import fit_lens as fit_lens
    from llava_probe.lens.parts import written_by as written_by
    from llava_probe.lens.tuned import TunedLens as TunedLens
    from llava_probe.lens.word_bank import word_bank as word_bank
    from llava_probe.loading import load as load
    from llava_probe.maps.maps import ImageMap as ImageMap
    from llava_probe.model import VLM as VLM
    from llava_probe.pictures.images import open_image as open_image
    from llava_probe.probes import Probe as Probe
    from llava_probe.probes import fit_probe as fit_probe
    from llava_probe.signals.calibration import calibration as calibration
    from llava_probe.signals.chair import chair as chair
    from llava_probe.signals.fits import Calibrator as Calibrator
    from llava_probe.signals.fits import fit_calibrator as fit_calibrator
    from llava_probe.signals.hallucination import SIGNALS as SIGNALS
    from llava_probe.signals.hallucination import hallucination as hallucination
    from llava_probe.signals.multiple_choice import multiple_choice as multiple_choice
    from llava_probe.signals.pope import pope as pope
    from llava_probe.signals.signal_table import signal_table as signal_table
    from llava_probe.sweeps.attribution_patching import attribution_patching as attribution_patching
    from llava_probe.sweeps.causal_trace import causal_trace as causal_trace
    from llava_probe.sweeps.dose_response import dose_response as dose_response
    from llava_probe.sweeps.information_flow import information_flow as information_flow
    from llava_probe.trace.capture import Capture as Capture
    from llava_probe.trace.explained import ALL as ALL
    from llava_probe.trace.explained import ANSWER as ANSWER
    from llava_probe.trace.explained import GENERATED as GENERATED
    from llava_probe.trace.explained import IMAGE as IMAGE
    from llava_probe.trace.explained import LAST as LAST
    from llava_probe.trace.explained import PREDICTING as PREDICTING
    from llava_probe.trace.explained import PROMPT as PROMPT
    from llava_probe.trace.explained import QUESTION as QUESTION
    from llava_probe.trace.explained import SPECIAL as SPECIAL
    from llava_probe.trace.explained import TEXT as TEXT
    from llava_probe.trace.region import Region as Region
    from llava_probe.trace.tokens import Token as Token
    from llava_probe.trace.trace import Trace as Trace
    from llava_probe.view import figures as figures
    from llava_probe.view.page import page as page

__version__ = "0.1.0"

_NAMES = {
    "VLM": "model",
    "load": "loading",
    "check": "agreement",
    "Capture": "trace.capture",
    "Trace": "trace.trace",
    "Token": "trace.tokens",
    "Region": "trace.region",
    "ImageLayout": "layout",
    "open_image": "pictures.images",
    "ImageMap": "maps.maps",
    "confidence": "analyzers.confidence",
    "attention_map": "analyzers.attention",
    "rollout": "analyzers.rollout",
    "heads": "analyzers.heads",
    "sinks": "analyzers.sinks",
    "attribute": "attribution",
    "written_by": "lens.parts",
    "METHODS": "attribution",
    "extract": "features.extract",
    "Cluster": "features.engines",
    "Features": "features.reading",
    "fit_probe": "probes",
    "finetune": "finetune.finetune",
    "Probe": "probes",
    "lens": "lens",
    "fit_lens": "lens.fit",
    "TunedLens": "lens.tuned",
    "word_bank": "lens.word_bank",
    "WordBank": "lens.bank",
    "compare": "compare",
    "compare_models": "compare.models",
    "families": "layout.family_table",
    "knock_out": "interventions.knock_out",
    "reweight": "interventions.reweight",
    "ablate": "interventions.ablate",
    "patch": "interventions.patch",
    "steer": "interventions.steer",
    "Direction": "interventions.directions",
    "attribution_patching": "sweeps.attribution_patching",
    "causal_trace": "sweeps.causal_trace",
    "dose_response": "sweeps.dose_response",
    "information_flow": "sweeps.information_flow",
    "calibration": "signals.calibration",
    "SIGNALS": "signals.hallucination",
    "hallucination": "signals.hallucination",
    "signal_table": "signals.signal_table",
    "fit_calibrator": "signals.fits",
    "Calibrator": "signals.fits",
    "pope": "signals.pope",
    "chair": "signals.chair",
    "multiple_choice": "signals.multiple_choice",
    "evaluate": "evaluate",
    "page": "view.page",
    "view": "view",
    "figures": "view.figures",
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
_MODULES = {"compare", "evaluate", "figures", "lens", "view"}

__all__ = list(_NAMES)


if not TYPE_CHECKING:  # else a name that is not there would pass for Any

    def __getattr__(name: str) -> Any:
        if name not in _NAMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f"{__name__}.{_NAMES[name]}")
        value = module if name in _MODULES else getattr(module, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
