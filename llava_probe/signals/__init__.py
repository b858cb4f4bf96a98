"""When not to believe an answer: calibration, the benchmarks of made-up objects, and a few answers weighed."""

from llava_probe.signals.binding import Binding
from llava_probe.signals.bins import Bins
from llava_probe.signals.calibration import Calibration, calibration
from llava_probe.signals.chair import CaptionReport, Chair, chair
from llava_probe.signals.fits import Calibrator, fit_calibrator
from llava_probe.signals.hallucination import SIGNALS, Hallucination, SignalKind, hallucination
from llava_probe.signals.measured import Estimate
from llava_probe.signals.mentions import Mention
from llava_probe.signals.multiple_choice import MultipleChoice, multiple_choice
from llava_probe.signals.pope import Pope, PopeSplit, pope
from llava_probe.signals.signal_table import SignalScore, SignalTable, signal_table
from llava_probe.signals.yes_no import Verdicts

__all__ = [
    "SIGNALS",
    "Binding",
    "Bins",
    "Calibration",
    "Calibrator",
    "CaptionReport",
    "Chair",
    "Estimate",
    "Hallucination",
    "Mention",
    "MultipleChoice",
    "Pope",
    "PopeSplit",
    "SignalKind",
    "SignalScore",
    "SignalTable",
    "Verdicts",
    "calibration",
    "chair",
    "fit_calibrator",
    "hallucination",
    "multiple_choice",
    "pope",
    "signal_table",
]
