"""What is there to be read in the hidden states: linear probes with the controls that make their scores mean something.

    sweep = lp.fit_probe(features, label="colour")
    print(sweep)
    probe = sweep.probe("layer_16", "last_prompt")
    probe.map(trace, "red").overlay()

Only fitting needs scikit-learn (``pip install 'llava_probe[probes]'``); a saved probe is read and used without it.
"""

from llava_probe.probes.cell import Cell
from llava_probe.probes.fitting import fit_probe
from llava_probe.probes.probe import Probe, Reading
from llava_probe.probes.sweep import Comparison, Sweep

__all__ = ["Cell", "Comparison", "Probe", "Reading", "Sweep", "fit_probe"]
