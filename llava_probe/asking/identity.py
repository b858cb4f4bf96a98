"""Which model it is: what a record of it must say so that another one is not taken for it.

The name of a checkpoint is too little: an adapter is switched off, a vision layer is set to another one, a weight is
written to, a forward is replaced, and the same name gives other numbers. So a model is known by its whole config (that
of generation belongs to a request), by each adapter and its state, by what its modules hold besides tensors, by
whatever else hangs on them, and by every bit of its weights (``inside/weights.py``).

Hooks and forwards of the user's are told by name, with the numbers that they close over; what they read elsewhere is
not seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from llava_probe.errors import shortened
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy
from llava_probe.inside.weights import tensor_digest, weights_digest
from llava_probe.smol import shipped_name

#: Entries of a config that change no number, or that are told apart.
_APART = {
    *("transformers_version", "architectures", "dtype", "torch_dtype", "attn_implementation"),
    *("return_dict", "output_hidden_states", "output_attentions"),
    *("id2label", "label2id", "problem_type", "use_cache"),
}

#: What modules count and note while they run or are loaded.
_NOTES = {
    *("training", "gradient_checkpointing", "name_or_path", "max_seq_len_cached", "loss_type", "kernel_config"),
    "active_adapter",  # told as the adapter's
}

#: What belongs to a model and not to how it is run: a kernel, a precision and a folder's name make no other model.
_MODEL = ("class", "quantization", "adapter", "config", "modules", "weights")

_SCALARS = (bool, int, float, str)

#: What a record has under a name that is not in it.
_NOTHING = object()

#: How many differences a sentence names.
_NAMED = 6


def model_of(anatomy: Anatomy, held: Any, *, in_full: bool = False) -> dict[str, Any]:
    """Which model it is; plain data that are equal where all that decides its numbers is.

    Args:
        anatomy: its parts.
        held: the model as the user holds it, a PEFT wrapper say.
        in_full: with the whole config and not its digest, and with all weights read anew: for what is worth more time
            than an answer. Otherwise what was read stays remembered while no tensor is written to.
    """
    model = anatomy.model
    outer = held if isinstance(held, nn.Module) else model
    modules = dict(outer.named_modules())
    parts = [("", model.config), *((path, part.config) for path, part in modules.items() if _is_part(part, outer))]
    quantization = getattr(model.config, "quantization_config", None)
    config, weights = _config(parts), weights_digest(outer, anew=in_full)
    told: dict[str, Any] = {
        "model": _name(model),
        "revision": seam.revision(model.config),
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": _attention(anatomy, parts),
        "quantization": None if quantization is None else str(getattr(quantization, "quant_method", quantization)),
        "adapter": _adapter(outer, modules),
        "config": config if in_full else _digest(config),
        "modules": _modules(modules),
        "weights": weights.sha256,
    }
    if weights.unseen:
        told["weights_not_seen"] = f"{len(weights.unseen)}: {shortened(', '.join(weights.unseen))}"
    if changed := list(_changed(modules)):
        told["changed"] = changed
    return told


def in_brief(told: Mapping[str, Any]) -> dict[str, Any]:
    """What ``model_of`` tells in full, as it tells it otherwise: the two can be compared."""
    return {**told, "config": _digest(told["config"])} if isinstance(told.get("config"), Mapping) else dict(told)


def processor_of(processor: Any, *, in_full: bool = False) -> str:
    """A digest of what turns pictures and words into inputs: all settings and the template.

    Args:
        processor: of the model.
        in_full: with the vocabulary too, which takes longer to read than an answer may; a trace tells its tokens.
    """
    told = [_settings(processor), getattr(processor, "chat_template", None), len(processor.tokenizer)]
    return _digest([*told, *([sorted(processor.tokenizer.get_vocab().items())] if in_full else [])])


def _settings(processor: Any) -> Any:
    try:
        return processor.to_dict()
    except Exception:  # a part that is not to be written out without a font beside it, say
        parts = [processor, processor.image_processor, getattr(processor, "video_processor", None)]
        return [{name: held for name, held in vars(part).items() if _is_plain(held)} for part in parts if part]


def decoding_of(model: Any) -> dict[str, Any]:
    """What the model's own generation config says that is not so anyway: it decides where a request says nothing."""
    told = model.generation_config.to_diff_dict()
    return dict(_as_json({name: value for name, value in told.items() if not _is_apart(name)}))


def differences(there: Any, here: Any, words: str = "{name}: {there} | {here}") -> list[str]:
    """What differs in two records, each by its name: ``adapter.active: "a" | "b"``; many are counted."""
    found = [
        words.format(name=name, there=_shown(one), here=_shown(other)) for name, one, other in _apart(there, here, "")
    ]
    return found if len(found) <= _NAMED else [*found[:_NAMED], f"{len(found) - _NAMED} more"]


def other_model(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In what the model of one record is another than that of the other, as far as both tell.

    The same model in another precision is no other one, and its bits cannot be compared; nor is one with a hook on it,
    which may do no more than look.
    """
    told = [name for name in _MODEL if name != "weights" or there.get("dtype") == here.get("dtype")]
    shared = [name for name in told if name in there and name in here]
    one, other = ({name: record[name] for name in shared if name in record} for record in (there, here))
    return differences(one, other)


def other_numbers(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In what a model's numbers are others': as ``other_model``, and by revision and precision."""
    bound, own = ({name: told.get(name) for name in ("revision", "dtype")} for told in (there, here))
    return [*other_model(there, here), *differences(bound, own)]


def _apart(there: Any, here: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for part in dict.fromkeys([*there, *here]):
            inner = f"{name}.{part}" if name else str(part)
            yield from _apart(there.get(part, _NOTHING), here.get(part, _NOTHING), inner)
    elif there != here:
        yield name, there, here


def _shown(value: Any) -> str:
    return "nothing" if value is _NOTHING else shortened(json.dumps(value, ensure_ascii=False, default=str))


def _name(model: Any) -> str:
    where = seam.checkpoint(model.config)
    return shipped_name(where) or where or type(model).__name__


def _is_part(module: nn.Module, outer: nn.Module) -> bool:
    return module is not outer and isinstance(module, PreTrainedModel)


def _attention(anatomy: Anatomy, parts: Sequence[tuple[str, Any]]) -> str:
    """The decoder's kernel, and those of other parts where they have another."""
    own = seam.implementation(anatomy.decoder.owner.config)
    other = {path: kernel for path, part in parts if path and (kernel := seam.implementation(part)) not in (own, None)}
    return own if not other else f"{own} ({', '.join(f'{path}: {kernel}' for path, kernel in other.items())})"


# --- config ---


def _config(parts: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """All entries of the config and of those inside it, as JSON gives them back.

    A part of the model may have another config than the one that the whole names: it is told under the part's path.
    """
    told: dict[str, Any] = {}
    known: set[int] = set()
    for path, config in parts:
        if id(config) not in known:
            known |= {id(config), *(id(getattr(config, name, None)) for name in getattr(config, "sub_configs", ()))}
            told |= {path: _plain(config.to_dict())} if path else _plain(config.to_dict())
    return dict(_as_json(told))


def _as_json(told: Any) -> Any:
    return json.loads(json.dumps(told, default=str, sort_keys=True))


def _plain(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {str(name): _plain(value) for name, value in config.items() if not _is_apart(str(name))}
    return [_plain(value) for value in config] if isinstance(config, list | tuple) else config


def _is_apart(name: str) -> bool:
    return name.startswith("_") or name in _APART  # a private name says where it was loaded from, and how it is run


# --- adapters ---


def _adapter(outer: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, Any] | None:
    """The adapters on a model (PEFT's, or transformers' own), which are active, and in what state each layer's is."""
    layers = {name: module for name, module in modules.items() if seam.is_adapter(module)}
    configs = seam.adapter_configs(outer)
    if not layers and not configs:
        return None
    states = {name: seam.adapter_state(layer) for name, layer in layers.items()}
    active = [name for state in states.values() for name in state["active"]] if layers else seam.active_prompts(outer)
    merged = [name for state in states.values() for name in state["merged"]]
    told: dict[str, Any] = {"active": ", ".join(dict.fromkeys(active)) or "none"}
    if merged:
        told["merged"] = ", ".join(dict.fromkeys(merged))
    for name, config in configs.items():
        told[f"{name}: {config}"] = _range([state["scaling"].get(name) for state in states.values()])
    return {**told, "layers": _digest(states)}


def _range(numbers: list[Any]) -> str:
    known = sorted({number for number in numbers if isinstance(number, int | float)})
    return f"scaling {known[0]:g}{f' to {known[-1]:g}' * (len(known) > 1)}" if known else "no scaling"


# --- what hangs on the modules ---


def _modules(modules: Mapping[str, nn.Module]) -> str:
    """A digest of each module's class and of the numbers and words that it holds: a scale, an index, an epsilon."""
    told = hashlib.sha256()
    for path, module in modules.items():
        held = [each for each in vars(module).items() if each[0][0] != "_" and _is_setting(*each)]
        told.update(f"{path} {type(module).__name__} {sorted(held)}\n".encode())
    return told.hexdigest()[:16]


def _is_setting(name: str, value: Any) -> bool:
    """Whether a module's public attribute is a setting: plain data, and nothing that it notes by itself.

    ``None`` is no setting: it stands where a pass leaves something (Qwen-VL's ``rope_deltas``).
    """
    return value is not None and name not in _NOTES and _is_plain(value)


def _is_plain(value: Any) -> bool:
    if value is None or isinstance(value, _SCALARS):
        return True
    if isinstance(value, dict):
        return all(_is_plain(entry) for pair in value.items() for entry in pair)
    return isinstance(value, list | tuple) and all(map(_is_plain, value))


def _changed(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """What somebody hung on a module or put in its forward's place, by name."""
    if modules[""].training:
        yield "in training mode"
    for path, module in modules.items():
        place = path or type(module).__name__
        for hook in seam.hooks_of_others(module):
            yield f"hook on {place}: {_called(hook)}"
        if (forward := seam.forward_in_place(module)) is not None:
            yield f"forward of {place}: {_called(forward)}"
    for kind in dict.fromkeys(type(module) for module in modules.values()):
        owner = next((one for one in kind.__mro__ if "forward" in vars(one)), kind)
        forward = vars(owner).get("forward")
        if getattr(forward, "__module__", owner.__module__).partition(".")[0] != owner.__module__.partition(".")[0]:
            yield f"forward of every {owner.__name__}: {_called(forward)}"


def _called(function: Any) -> str:
    """A function by name, with a digest of the numbers that it carries."""
    carried: list[str] = []
    while isinstance(function, partial):
        carried += map(_carried, [*function.args, *function.keywords.values()])
        function = function.func
    for cell in getattr(function, "__closure__", None) or ():
        try:
            carried.append(_carried(cell.cell_contents))
        except ValueError:  # not filled yet
            continue
    carried += map(_carried, getattr(function, "__defaults__", None) or ())
    if not hasattr(function, "__qualname__"):
        carried += [f"{name}={_carried(value)}" for name, value in sorted(getattr(function, "__dict__", {}).items())]
        function = type(function)
    name = f"{function.__module__}.{function.__qualname__}"
    return f"{name} ({_digest(carried)})" if carried else name


def _carried(value: Any) -> str:
    if isinstance(value, Tensor):
        return tensor_digest(value)
    return repr(value) if _is_plain(value) else type(value).__name__


def _digest(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]
