"""What kind of model a config.json is of, told before torch or transformers are imported.

Which kinds transformers loads as vision-language models is read from the text of its own tables; where a table is not
found as expected, nothing is refused here and loading itself tells.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from sys import modules
from typing import Any

from llava_probe.errors import BadModel

#: Original LLaVA checkpoints, which transformers cannot load, and their converted twins.
TWINS = {
    "liuhaotian/llava-v1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "liuhaotian/llava-v1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "liuhaotian/llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "liuhaotian/llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "liuhaotian/llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    "liuhaotian/llava-v1.6-34b": "llava-hf/llava-v1.6-34b-hf",
}

#: What the original code calls its language models.
_ORIGINAL = {f"llava_{decoder}" for decoder in ("llama", "mistral", "mpt", "qwen", "gemma", "mixtral")}

#: Twins of original checkpoints by version, decoder and width.
_BY_SHAPE = {
    ("1.5", "llama", 4096): "llava-hf/llava-1.5-7b-hf",
    ("1.5", "llama", 5120): "llava-hf/llava-1.5-13b-hf",
    ("1.6", "llama", 4096): "llava-hf/llava-v1.6-vicuna-7b-hf",
    ("1.6", "llama", 5120): "llava-hf/llava-v1.6-vicuna-13b-hf",
    ("1.6", "llama", 7168): "llava-hf/llava-v1.6-34b-hf",
    ("1.6", "mistral", 4096): "llava-hf/llava-v1.6-mistral-7b-hf",
    ("1.6", "qwen", 896): "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    ("1.6", "qwen", 3584): "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    ("1.6", "qwen", 8192): "llava-hf/llava-onevision-qwen2-72b-ov-hf",
}

#: Tables of transformers whose models read words alone, and what such a model is.
_TEXT = {
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "text-only",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": "text-only",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": "text-only",
}
_PICTURES = {
    "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES": "an encoder of pictures and words that answers nothing",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": "an image classifier, which has no language model",
    "MODEL_FOR_IMAGE_MAPPING_NAMES": "an image encoder, which has no language model",
}


def refuse_original(name: str) -> None:
    """Refuse a name of the original LLaVA repositories.

    Raises:
        BadModel: it is one; the sentence names its converted twin.
    """
    if name.startswith("liuhaotian/"):
        raise BadModel(_original(name, TWINS.get(name)))


def _original(told: str, twin: str | None) -> str:
    instead = f"load its twin {twin!r}" if twin else "look for a converted checkpoint whose name ends in -hf"
    return f"{told} is an original LLaVA checkpoint, which transformers cannot read; {instead}"


def refuse_kind(config: Mapping[str, Any], told: str, *, trust_remote_code: bool = False) -> None:
    """Refuse what is no vision-language model that transformers can load, as far as its config tells.

    Args:
        config: what config.json holds.
        told: how the user calls it.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        BadModel: it is another kind of model; the sentence names it.
    """
    kind, named = config.get("model_type"), config.get("architectures")
    made = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    if _is_original(config, made):
        raise BadModel(_original(told, _twin(config, made)))
    if not isinstance(kind, str):
        raise BadModel(f"{told}: its config.json names no model_type, so it is no model of transformers")
    pictures, known = _table("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"), _known()
    if not pictures or kind in pictures or _registered(kind):
        return
    what = made or kind
    if "auto_map" in config:
        if trust_remote_code:
            return
        raise BadModel(
            f"{told} ({what}) comes with code of its own, which runs only if you trust it: read it, then say "
            "trust_remote_code=True; or look for a checkpoint of it whose name ends in -hf"
        )
    if kind not in known:
        with_version = f", it was saved by {saved}" if (saved := config.get("transformers_version")) else ""
        raise BadModel(
            f"{told} is a {kind!r} ({what}), which transformers {version('transformers')} does not know{with_version}; "
            "pip install -U transformers"
        )
    raise BadModel(f"{told} is {_described(kind, what)}; a vision-language model reads a picture and generates text")


def _is_original(config: Mapping[str, Any], made: str | None) -> bool:
    code = made is not None and made.startswith("Llava") and made.endswith("ForCausalLM")
    tower = "mm_vision_tower" in config and "vision_config" not in config
    return code or tower or str(config.get("model_type")) in _ORIGINAL  # what is no text is told later


def _twin(config: Mapping[str, Any], made: str | None) -> str | None:
    decoder = f"{made} {config.get('model_type')}".lower()
    found = next((one for one in ("mistral", "qwen", "llama") if one in decoder.replace("forcausallm", "")), "llama")
    release = "1.6" if "anyres" in str(config.get("image_aspect_ratio")) else "1.5"
    width = config.get("hidden_size")
    return _BY_SHAPE.get((release, found, width)) if isinstance(width, int) else None


def _described(kind: str, what: str) -> str:
    for table, words in _TEXT.items():
        if kind in _table(table):
            return f"{words}: {what}"
    for table, words in _PICTURES.items():
        if kind in _table(table):
            return f"{words}: {what}"
    return f"no vision-language model: {what}"


def _registered(kind: str) -> bool:
    """Whether somebody registered a kind of their own with transformers in this process."""
    auto = modules.get("transformers.models.auto.configuration_auto")
    return auto is not None and kind in auto.CONFIG_MAPPING and kind not in _known()


@cache
def _known() -> frozenset[str]:
    """All words in transformers' lists of kinds: each kind is one of them, however the lists are put together."""
    words = (node for tree in _trees()[1:] for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return frozenset(word.value for word in words if isinstance(word.value, str))


@cache
def _table(name: str) -> frozenset[str]:
    """The kinds that one of transformers' tables lists; empty where there is no such table."""
    found: set[str] = set()
    for statement in (one for tree in _trees() for one in tree.body if isinstance(one, ast.Assign | ast.AnnAssign)):
        target = getattr(statement, "target", None) or getattr(statement, "targets", [None])[0]
        if isinstance(target, ast.Name) and target.id.endswith(name) and statement.value is not None:
            found |= {
                str(ast.literal_eval(pair.elts[0]))
                for pair in ast.walk(statement.value)
                if isinstance(pair, ast.Tuple) and pair.elts and _is_name(pair.elts[0])
            }
    return frozenset(found)


def _is_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@cache
def _trees() -> tuple[ast.Module, ...]:
    """The files of transformers that list which kinds there are, models first."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        return ()
    folder = Path(spec.origin).parent / "models" / "auto"
    files = (folder / f"{file}.py" for file in ("modeling_auto", "auto_mappings", "configuration_auto"))
    return tuple(ast.parse(file.read_text(encoding="utf-8")) for file in files if file.is_file())
