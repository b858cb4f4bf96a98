"""How well a map finds what is known to be there, how sure that is, and what knows nothing of the model would score.

    score = pointing(m, mask, row)                    # also energy_inside, average_precision, iou, tam_scores, ...
    summary(scores, [case.picture for case in cases])     # with an interval over pictures
    pointing(centre_prior(m), mask, row)                  # what has to be beaten
    deletion_insertion(vlm, trace, m).deletion_auc        # whether the model needs what the map marks
    with randomised(vlm): ...                             # whether the map is the model's doing at all

A mask is [height, width] bool on the original photograph. ``row`` counts the map's explained tokens from 0; without it
the mean of all rows is judged. Cases come from ``tiny_cases``, where everything is known, or from a file of yours.

``evaluate.pointing``, ``infidelity``, ``sensitivity``, ``randomised`` and ``otsu`` are the functions; what else is in
their files is imported from there: ``from llava_probe.evaluate.infidelity import random_removals``.
"""

from llava_probe.evaluate.baselines import centre_prior, edges, of_another, random
from llava_probe.evaluate.cases import Case, read_cases, write_cases
from llava_probe.evaluate.energy import energy_inside
from llava_probe.evaluate.faithfulness import Curves, Drops, comprehensiveness, deletion_insertion, sufficiency
from llava_probe.evaluate.infidelity import Infidelity, infidelity
from llava_probe.evaluate.otsu import otsu
from llava_probe.evaluate.overlap import Overlap, iou
from llava_probe.evaluate.pointing import pointing, touches
from llava_probe.evaluate.precision import Curve, average_precision, pr_area, pr_curve
from llava_probe.evaluate.randomised import randomised
from llava_probe.evaluate.ranks import Agreement, agreement, spearman, top_overlap
from llava_probe.evaluate.sensitivity import Sensitivity, sensitivity
from llava_probe.evaluate.summary import Difference, Score, difference, summary
from llava_probe.evaluate.tam import TamScores, tam_scores
from llava_probe.evaluate.tiny_cases import tiny_cases

__all__ = [
    "Agreement",
    "Case",
    "Curve",
    "Curves",
    "Difference",
    "Drops",
    "Infidelity",
    "Overlap",
    "Score",
    "Sensitivity",
    "TamScores",
    "agreement",
    "average_precision",
    "centre_prior",
    "comprehensiveness",
    "deletion_insertion",
    "difference",
    "edges",
    "energy_inside",
    "infidelity",
    "iou",
    "of_another",
    "otsu",
    "pointing",
    "pr_area",
    "pr_curve",
    "random",
    "randomised",
    "read_cases",
    "sensitivity",
    "spearman",
    "sufficiency",
    "summary",
    "tam_scores",
    "tiny_cases",
    "top_overlap",
    "touches",
    "write_cases",
]
