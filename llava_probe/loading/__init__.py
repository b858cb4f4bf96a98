"""A model and its processor by name: from the hub, from a folder, or one of those that ship inside.

What lies there is looked at first, by names and JSON (``folder.py``): a model that cannot be loaded is told in a
sentence before torch is imported, which takes seconds. ``pretrained.py`` then loads what was found, ``adapters.py``
puts an adapter on, and ``check_row.py`` sees that what was trained is what was loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_probe.border import Seed, checked
from llava_probe.errors import BadInput
from llava_probe.loading.folder import look
from llava_probe.loading.quantized import check_quantize

if TYPE_CHECKING:
    from llava_probe.model import VLM

__all__ = ["check_quantize", "load", "look", "model_given", "refuse_settings"]


@checked
def load(
    name: str | Path | None = None,
    *,
    adapter: str | Path | None = None,
    merge: bool = False,
    revision: str | None = None,
    quantize: str | None = None,
    random_weights: Seed | None = None,
    **kwargs: Any,
) -> VLM:
    """Load a model and its processor; with no name the tiny one that ships inside (in float32).

    Args:
        name: a repository on the Hugging Face hub, a folder, ``"tiny"`` or ``"smol"``, which ship inside; the folder of
            a PEFT adapter loads the model that it was made for, with it.
        adapter: the folder or repository of a PEFT adapter, put on the model and made active. All of it must find its
            place, and where ``check_row.safetensors`` lies beside it (or in a model's folder, as ``lp.finetune`` leaves
            it) the logits of its row must be those of the end of training and not the base's.
        merge: put what the adapter adds into the weights, for good: a plain model, which answers as quickly as its base
            (smol's passes take 0.6 of the time) and has nothing to switch off. Held to the check row once more.
        revision: a branch, tag or commit of the repository.
        quantize: ``"4bit"`` (NF4) or ``"8bit"``: the weights by bitsandbytes, which must be installed.
        random_weights: a seed: the model's shape with the weights that its training began with, none of what it learnt;
            a control for probes.
        **kwargs: passed to ``AutoModelForImageTextToText.from_pretrained``: ``dtype``, ``device_map``,
            ``quantization_config``, ``attn_implementation``, ``trust_remote_code`` ...

    Raises:
        BadModel: nothing is there, it is incomplete, or it is no vision-language model; the sentence says what it is
            and what to type instead. Or an adapter that does not fit, would do nothing, or is another when merged; or
            a model that is not as it was trained.
        BadInput: nothing to merge, or no check row to try it on.
    """
    settings = {**kwargs, **({} if revision is None else {"revision": revision})}
    check_quantize(quantize, settings, adapter=adapter, random_weights=random_weights)
    found = look(name, adapter=adapter, **settings)
    if merge and found.adapter is None:
        raise BadInput(f"merge=True, but {found.where} is loaded without an adapter: there is nothing to merge")
    from llava_probe.loading.pretrained import loaded

    return loaded(found, name, merge=merge, quantize=quantize, random_weights=random_weights, settings=settings)


def model_given(vlm: VLM | str | Path, settings: Mapping[str, Any]) -> VLM:
    """A model that somebody holds, or that is loaded by its name with these settings.

    Raises:
        BadInput: settings for one that is loaded already.
    """
    refuse_settings(vlm, settings)
    return load(str(vlm), **settings) if isinstance(vlm, str | Path) else vlm


def refuse_settings(vlm: Any, settings: Mapping[str, Any]) -> None:
    """Settings are for loading a model by name.

    Raises:
        BadInput: there are some, and the model is loaded already.
    """
    if settings and not (vlm is None or isinstance(vlm, str | Path)):
        raise BadInput(f"{', '.join(settings)}: for loading a model by name; this one is loaded already")
