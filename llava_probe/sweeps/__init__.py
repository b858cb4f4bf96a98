"""What interventions show, swept over layers, places and strengths: frozen results with tables and intervals."""

from llava_probe.sweeps.attribution_patching import AttributionPatching, attribution_patching
from llava_probe.sweeps.causal_trace import CausalTrace, causal_trace
from llava_probe.sweeps.dose_response import DoseResponse, dose_response
from llava_probe.sweeps.information_flow import InformationFlow, information_flow

__all__ = [
    "AttributionPatching",
    "CausalTrace",
    "DoseResponse",
    "InformationFlow",
    "attribution_patching",
    "causal_trace",
    "dose_response",
    "information_flow",
]
