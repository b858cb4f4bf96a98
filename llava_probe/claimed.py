"""What a folder of a long run is made with, so that no other model or setting is mixed into it.

    claim(folder, vlm, {"max_new_tokens": 16}, what="answers")

A run that goes on, or shares its folder with others, must be the same run: the same weights and processor, the same
torch and transformers, under the same interventions, with the same settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from llava_probe.asking.identity import differences, model_of, processor_of
from llava_probe.errors import BadInput
from llava_probe.inside.passes import in_force
from llava_probe.model import VLM
from llava_probe.stored import converted, decoded, read_bytes, write_text

#: The note's name.
RUN = "run.json"
#: Bytes of one: a model's whole config, and settings.
_LARGEST = 10_000_000


def claim(folder: Path, vlm: VLM, settings: Mapping[str, Any], *, what: str, kind: Any = dict[str, Any]) -> None:
    """Note in a folder what it is made with, or see that it was made with the same.

    Args:
        folder: that is there.
        vlm: the model, as it is now.
        settings: what the lines depend on besides; plain data, or as text.
        what: the folder holds, for sentences.
        kind: what a note must hold, as a described type.

    Raises:
        BadInput: the folder holds what another model or setting made.
        BadFile: its note is damaged.
    """
    under = {"interventions": list(made)} if (made := in_force(vlm.anatomy)) else {}
    model = model_of(vlm.anatomy, vlm.model, in_full=True)
    versions = {each.__name__: each.__version__ for each in (torch, transformers)}
    processor = processor_of(vlm.processor, in_full=True)
    made_with = {"model": model, "processor": processor, "versions": versions, **under, **settings}
    mine = json.loads(json.dumps(made_with, default=str))
    path = folder / RUN
    if not path.exists():
        write_text(f"run of {what}", path, json.dumps(mine, indent=1, ensure_ascii=False))
    theirs = read_claim(folder, what, kind)
    if other := differences(theirs, mine, "{name}: {there}, here {here}"):
        told = "; ".join(other)
        raise BadInput(f"{folder} holds {what} that were made in another way ({told}); give another folder")


def read_claim(folder: Path, what: str, kind: Any = dict[str, Any]) -> dict[str, Any]:
    """What a folder's note says that it is made with; ``what`` and ``kind`` as for ``claim``.

    Raises:
        BadFile: it is not there, damaged, or says something else.
    """
    path = folder / RUN
    damaged = f"{path} (delete it, or give another folder for the {what}) is damaged"
    plain = decoded(damaged, read_bytes(f"note of how {what} were made", path, _LARGEST), dict[str, Any])
    converted(damaged, plain, kind)
    return plain
