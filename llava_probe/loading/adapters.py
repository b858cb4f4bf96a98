"""Puts a PEFT adapter on a model, every tensor of its file in a module of it.

    model = put_on(model, "runs/street-signs", {})

PEFT warns of names that it does not find, or says nothing, and goes on with the model as it was: then every answer is
the base's. So what the file holds is compared with what the model holds afterwards, by name and by value, both ways.
Whether the model also *uses* it is seen on the row that is kept beside it (``check_row.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_probe.errors import BadModel
from llava_probe.faults import of_the_machine
from llava_probe.inside import seam

#: What PEFT's names begin with, before a module's own.
_PREFIX = "base_model.model."

#: The matrix of a LoRA update that training begins with at zero, and the one that it is multiplied with.
_PAIRS = ((".lora_B.", ".lora_A."), (".lora_embedding_B", ".lora_embedding_A"))

#: So many parts of two names' ends agree where one is the other under another prefix.
_ENDING = 3


@dataclass(frozen=True)
class _Binding:
    """How the tensors of an adapter's file and those of a model go together.

    Attributes:
        held, stored: in the model and in the file, by the file's names.
        unlike: names of those in both that have another shape or other values.
    """

    held: Mapping[str, Tensor]
    stored: Mapping[str, Tensor]
    unlike: tuple[str, ...]

    @property
    def loose(self) -> list[str]:
        """Those of the file that have no place in the model."""
        return [name for name in self.stored if name not in self.held]

    @property
    def empty(self) -> list[str]:
        """Those of the model that are not in the file."""
        return [name for name in self.held if name not in self.stored]

    @property
    def whole(self) -> bool:
        """Whether each of either side is one of the other."""
        return not (self.unlike or self.loose or self.empty)

    def __str__(self) -> str:
        bound = len(self.stored) - len(self.loose) - len(self.unlike)
        return f"{bound} of the {len(self.stored)} tensors of its file bind to a module of the model; {self._cause()}"

    def _cause(self) -> str:
        """The first that does not, and what is probably wrong."""
        if self.loose:
            first = self.loose[0]
            if (twin := _twin(first, self.empty)) is not None:
                return (
                    f"its {first} is {twin} in the model: the names have another prefix, of another version of "
                    "transformers or another wrapper; rename them, or save the adapter from the model as it is loaded"
                )
            if not first.startswith(_PREFIX):
                return f"{first} does not begin with {_PREFIX}, as PEFT's names do: another program saved it"
            return f"there is no place for {first}: the adapter is another model's, or its names were changed"
        if self.unlike:
            name = self.unlike[0]
            there, here = (list(one[name].shape) for one in (self.stored, self.held))
            if there != here:
                return f"{name} is {there} in the file and {here} in the model: it is another model's adapter"
            return f"the model holds other values of {name} than the file"
        return f"{self.empty[0]} is not in the file: it is incomplete, or adapter_config.json is another adapter's"


def put_on(model: Any, adapter: str, shared: Mapping[str, Any]) -> Any:
    """The model with an adapter on it, active, every tensor in its place.

    Args:
        model: of transformers; it is changed in place.
        adapter: the folder or repository of a PEFT adapter.
        shared: settings of ``lp.load``; ``token`` and ``cache_dir`` tell here.

    Raises:
        BadModel: a tensor of the file is in no module, or one of the adapter's in the model is not from the file: how
            many bind, the first that does not, and what is probably wrong. Or it was never trained and changes nothing.
    """
    from peft import PeftModel, get_peft_model_state_dict, load_peft_weights

    where = str(folder) if (folder := Path(adapter).expanduser()).is_dir() else adapter
    how = {key: shared[key] for key in ("token", "cache_dir") if key in shared}
    name = seam.checkpoint(model.config) or type(model).__name__
    try:
        with seam.under_old_names():
            adapted = PeftModel.from_pretrained(model, where, **how)
        stored = load_peft_weights(where, device="cpu", **how)
    except Exception as error:  # whatever of the adapter does not fit the model
        if of_the_machine(error):
            raise
        why = " ".join(str(error).split())
        if isinstance(error, KeyError | RuntimeError) and hasattr(model, "peft_config"):  # names or shapes
            held = get_peft_model_state_dict(model, save_embedding_layers=False)
            binding = _bound({_PREFIX + key: tensor for key, tensor in held.items()}, _stored(where, how), loaded=False)
            why = why if binding.whole else str(binding)
        raise BadModel(f"the adapter {adapter} does not fit {name}: {why}") from error
    # embeddings that were saved with it are the model's own; PEFT would ask the hub whether they are
    held = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    binding = _in_place(_bound(held, stored))
    if not binding.whole and (binding.unlike or not _renamed(adapted, where, how)):
        raise BadModel(f"the adapter {adapter} does not fit {name}: {binding}")
    if _changes_nothing(adapted, stored):
        raise BadModel(
            f"the adapter {adapter} was never trained: what it adds is zero everywhere, so {name} answers with it as "
            "without; it was saved before the first step, or another copy of the model was trained"
        )
    return adapted


def fill(adapted: Any, adapter: str) -> None:
    """Give a PEFT wrapper, whose adapter may be larger, the weights of another; each must find its place.

    Args:
        adapted: changed in place.
        adapter: the folder or repository of a PEFT adapter.

    Raises:
        BadModel: it cannot be read, or a tensor of it has no place.
    """
    from peft import get_peft_model_state_dict

    held = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    stored = _stored(adapter, {})
    if not stored:
        raise BadModel(f"the adapter {adapter} cannot be read, so nothing can start from it")
    with torch.no_grad():
        for name in held.keys() & stored.keys():
            if held[name].shape == stored[name].shape:
                held[name].copy_(stored[name])  # the model's own memory
    binding = _bound(held, stored)
    if binding.loose or binding.unlike:
        raise BadModel(f"the adapter {adapter} does not fit what is to be trained: {binding}")


# --- what binds ---


def _stored(where: str, how: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The tensors of an adapter's file; none where it cannot be read."""
    from peft import load_peft_weights

    try:
        return dict(load_peft_weights(where, device="cpu", **how))
    except Exception:  # of its formats: what was wrong with it is told already
        return {}


def _bound(held: Mapping[str, Tensor], stored: Mapping[str, Tensor], *, loaded: bool = True) -> _Binding:
    """What of a file is in a model; by names and shapes alone where it was not ``loaded``."""
    both = [name for name in stored if name in held]
    return _Binding(held, stored, tuple(name for name in both if not _equal(held[name], stored[name], loaded)))


def _equal(held: Tensor, stored: Tensor, values: bool) -> bool:
    """Whether a tensor is that of the file, in the model's dtype."""
    if held.shape != stored.shape or not values or held.is_meta:  # its numbers are on disk, put there from the file
        return held.shape == stored.shape
    return torch.equal(held.cpu(), stored.to(held.dtype))


def _in_place(binding: _Binding) -> _Binding:
    """With each tensor under the name that it has on both sides.

    PEFT takes new names for older ones and renames them out of the model where the two are alike: half of an adapter of
    DeepSeek-OCR-2, and the shared experts' of Mistral Large 4, are not loaded (0.21).
    """
    if binding.loose or binding.empty:
        return binding
    for name in binding.unlike:
        if binding.held[name].shape == binding.stored[name].shape:
            binding.held[name].copy_(binding.stored[name])  # the model's own memory
    return _bound(binding.held, binding.stored)


def _renamed(adapted: Any, where: str, how: Mapping[str, Any]) -> bool:
    """Whether PEFT finds a place for all, by its own tables of older names and of weights that are one by now."""
    found = adapted.load_adapter(where, adapted.active_adapter, **how)
    return not (found.missing_keys or found.unexpected_keys)


def _twin(name: str, others: Iterable[str]) -> str | None:
    """The one that ends as ``name`` does, block's number and all, after another prefix."""
    parts = name.split(".")
    numbered = max((len(parts) - at for at, part in enumerate(parts) if part.isdigit()), default=0)
    shared = {other: _shared_end(parts, other.split(".")) for other in others}
    best = max(shared, key=lambda other: shared[other], default=None)
    return best if best is not None and shared[best] >= max(_ENDING, numbered) else None


def _shared_end(one: list[str], other: list[str]) -> int:
    """How many parts at the end are the same."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((count for count, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


# --- what it changes ---


def _changes_nothing(adapted: Any, stored: Mapping[str, Tensor]) -> bool:
    """Whether every update is zero and every module saved whole is the one that was there; all else is a change."""
    from peft.utils import ModulesToSaveWrapper

    updates = {name for name in stored if ".lora_" in name}
    saved = []
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            before, own = (
                module.original_module.state_dict(),
                module.modules_to_save[adapted.active_adapter].state_dict(),
            )
            saved += [(before[name], own[name]) for name in own]
    if len(stored) > len(updates) + len(saved) or any(own.is_meta or not torch.equal(was, own) for was, own in saved):
        return False
    partners = {
        name: stored.get(name.replace(second, first)) for second, first in _PAIRS for name in updates if second in name
    }
    return not any(
        bool(stored[name].any()) and (partner is None or bool(partner.any())) for name, partner in partners.items()
    )
