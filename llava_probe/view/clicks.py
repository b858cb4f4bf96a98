"""What a click in the component asks of the model: a method that was not computed yet, the question without a region.

    acted(results, vlm, {"compute": "relevance", "run": 0, "picture": 0, "tokens": [211]})
    acted(results, vlm, {"ask": "without", "run": 0, "picture": 0, "box": [96, 50, 160, 114]})

What is behind the live viewer; how a region is taken away (``cutting.py``) it shares with the app.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava_probe.attribution import METHODS, attribute
from llava_probe.errors import BadInput, shortened
from llava_probe.interventions.ablate import ablate
from llava_probe.model import VLM
from llava_probe.trace.region import Region
from llava_probe.trace.request import spelled
from llava_probe.trace.trace import Trace
from llava_probe.view.cutting import HOW_CUT, cut_tokens
from llava_probe.view.page.runs import MOST_RUNS, Result, gathered

#: Visual tokens around a region that go with it: attention mixes neighbours before the language model sees them.
RING = 1

#: The methods that a click can compute: attention is there from the start, and heads have to be found first.
OFFERED = tuple(name for name in METHODS if name not in ("attention", "localisation_heads"))


def acted(results: list[Result], vlm: VLM, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Do what was clicked, put what came of it among ``results``, and tell what to show of it.

    Args:
        results: shown so far; the new one is put where it belongs.
        vlm: the model.
        asked: of the component: ``run`` and ``picture``, and either ``compute`` with ``tokens`` (positions; none: the
            content words) or ``ask`` with ``box`` (x0, y0, x1, y1), in pixels of the original.

    Returns:
        The part of the component's selection that shows it.

    Raises:
        BadInput: something else, and what ``attribute`` and ``ablate`` refuse.
    """
    runs = gathered(results)
    run, image = asked.get("run"), asked.get("picture")
    if not isinstance(run, int) or not isinstance(image, int) or not 0 <= run < len(runs) or runs[run].trace is None:
        raise BadInput(f"a click names a run with a trace, and a picture; got {shortened(repr(dict(asked)))}")
    trace = runs[run].trace
    assert trace is not None
    if image not in range(len(trace.images)):
        raise BadInput(f"picture {image} is not there: this trace has {len(trace.images)}")
    if trace.interventions:
        raise BadInput(
            f"this answer was made under {shortened(', '.join(map(spelled, trace.interventions)))}, and a click asks "
            "the model as it is: start from the answer that it gives without"
        )
    method, way = asked.get("compute"), asked.get("ask")
    if method in METHODS:
        m = attribute(vlm, trace, str(method), image, list(asked.get("tokens") or ()) or None)
        place = next(at for at, result in enumerate(results) if result is trace)
        results.insert(place + 1 + len(runs[run].maps), m)
        return {"map": len(runs[run].maps)}
    if way in HOW_CUT:
        if len(runs) == MOST_RUNS:
            raise BadInput(f"a viewer holds {MOST_RUNS} answers; begin a new one")
        results.append(ask_again(vlm, trace, str(way), image, asked.get("box")))
        return {"beside": len(runs), "map": "attention"}
    raise BadInput(f"a click computes one of {', '.join(METHODS)}, or asks {' or '.join(HOW_CUT)}")


def ask_again(vlm: VLM, trace: Trace, way: str, image: int, box: Any) -> Trace:
    """The question of a trace once more, without what a box on the photograph holds, or with only that.

    Args:
        vlm, trace: the model, and what it was asked.
        way: one of ``HOW_CUT``.
        image: which picture.
        box: (x0, y0, x1, y1) in pixels of the original.

    Raises:
        BadInput, OutOfRange: no box, one without visual tokens, or ``"only"`` one with all of them.
    """
    if not isinstance(box, list | tuple):
        raise BadInput("mark a region on the photograph first")
    region = Region(tuple(box), image=image, ring=RING)
    with ablate(vlm, tokens=cut_tokens(region, way, trace.layouts[image])):
        return vlm.rerun(trace)
