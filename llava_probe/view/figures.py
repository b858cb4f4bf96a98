"""Figures fit for a paper: plain matplotlib in and out, one style, sized in columns.

    lp.figures.save(lp.figures.maps(m), "stop.pdf")

A figure bears the name of what it draws: ``lp.figures.confidence(lp.confidence(trace))``. Each takes ``ax=`` to be
drawn among your own, ``width=`` (``"column"``, ``"page"`` or inches) and ``title=``; those whose colours are values
also ``cmap=`` and ``highest=``, and ``lp.figures.mappable`` gives their colours for a colour bar of your own.
"""

from llava_probe.view.calibration_figures import reliability, risk_coverage
from llava_probe.view.canvas import mappable, save
from llava_probe.view.compare_figures import changed, models_compared
from llava_probe.view.feature_figures import features
from llava_probe.view.finetune_figures import losses
from llava_probe.view.head_figures import layers, layers_heads
from llava_probe.view.lens_figures import lens, tuned_lens, words_on
from llava_probe.view.map_figures import compare, head_maps, maps
from llava_probe.view.patch_words import contextual_words
from llava_probe.view.probe_figures import confusion, probes
from llava_probe.view.signal_figures import signal_scores
from llava_probe.view.sweep_figures import attribution_patching, causal_trace, dose_response, information_flow
from llava_probe.view.trace_figures import confidence, tokens
from llava_probe.view.written_figures import written, written_from

__all__ = [
    "attribution_patching",
    "causal_trace",
    "changed",
    "compare",
    "confidence",
    "confusion",
    "contextual_words",
    "dose_response",
    "features",
    "head_maps",
    "information_flow",
    "layers",
    "layers_heads",
    "lens",
    "losses",
    "mappable",
    "maps",
    "models_compared",
    "probes",
    "reliability",
    "risk_coverage",
    "save",
    "signal_scores",
    "tokens",
    "tuned_lens",
    "words_on",
    "written",
    "written_from",
]


def __dir__() -> list[str]:
    return sorted(__all__)
