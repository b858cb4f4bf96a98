"""What is ranked: every method, with the options that change what it says, and the baselines beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llava_probe.attribution.engine.target import Task
from llava_probe.evaluate.cases import Case
from llava_probe.maps.maps import ImageMap


@dataclass(frozen=True)
class Entry:
    """One line of the leaderboard.

    Attributes:
        method: one of ``lp.METHODS``; ``options``: its own.
        costly: whether it takes tens or hundreds of passes a case.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    costly: bool = False


#: By the name that tables show. Budgets of the perturbations are passes for each case.
ENTRIES: Mapping[str, Entry] = {
    "attention": Entry("attention"),
    "attention, last layer": Entry("attention", {"layers": -1}),
    "relative attention": Entry("relative_attention"),
    "rollout": Entry("rollout"),
    "attention × gradient": Entry("attention_gradient"),
    "gradient": Entry("gradient"),
    "gradient of pixels": Entry("gradient", {"on": "pixels"}),
    "input × gradient": Entry("input_x_gradient"),
    "input × gradient of pixels": Entry("input_x_gradient", {"on": "pixels"}),
    "integrated gradients": Entry("integrated_gradients", {"steps": 16}, costly=True),
    "integrated gradients of pixels": Entry("integrated_gradients", {"on": "pixels", "steps": 16}, costly=True),
    "LLaVA-CAM": Entry("llava_cam"),
    "relevance": Entry("relevance"),
    "relevance through the tower": Entry("relevance", {"through": "tower"}),
    "AttnLRP": Entry("attnlrp"),
    "TAM": Entry("tam"),
    "localisation heads": Entry("localisation_heads"),
    "occlusion": Entry("occlusion", costly=True),
    "occlusion, 3 × 3": Entry("occlusion", {"window": 3}, costly=True),
    "occlusion of pixels": Entry("occlusion", {"on": "pixels", "budget": 50}, costly=True),
    "RISE": Entry("rise", {"budget": 100}, costly=True),
    "RISE of pixels": Entry("rise", {"on": "pixels", "budget": 60}, costly=True),
}

BASELINES = ("centre prior", "edges", "random", "attention of another picture")


@dataclass(frozen=True)
class ScoringPlan:
    """What is run besides the scores against masks.

    Attributes:
        entries: by name.
        heads: for ``localisation_heads``; that entry is left out without.
        closer: how many of the questions also get deletion, insertion and the methods' rank agreement.
        random: how many are explained once more with the language model's layers random.
        own: maps beside the entries, by name, each made of the question that is explained and its cases: an oracle that
            knows the truth, say. A folder of scores knows a function by its own lines, not by what these call.
    """

    entries: Mapping[str, Entry] = field(default_factory=lambda: ENTRIES)
    heads: Any = None
    closer: int = 0
    random: int = 0
    own: Mapping[str, Callable[[Task, Sequence[Case]], ImageMap]] = field(default_factory=dict)

    def options(self, entry: Entry) -> dict[str, Any]:
        """An entry's options, the chosen heads among them."""
        return {**entry.options, **({"heads": self.heads} if entry.method == "localisation_heads" else {})}

    def runs(self) -> Iterator[tuple[str, Entry]]:
        """The entries that can be run."""
        for name, entry in self.entries.items():
            if entry.method != "localisation_heads" or self.heads is not None:
                yield name, entry
