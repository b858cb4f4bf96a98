"""What lies where a model is said to be, looked at by names and JSON before anything heavy is imported.

found = look("checkpoints/llava")     # or a sentence: no such folder, text-only, an adapter of X, cut short ...
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llava_probe import smol, tiny
from llava_probe.errors import BadModel, shortened
from llava_probe.loading.hub import repository
from llava_probe.loading.kinds import refuse_kind, refuse_original
from llava_probe.loading.weights import StoredWeights, stored_weights
from llava_probe.smol import SMOL, TINY
from llava_probe.stored import JSON_LIMIT, decoded, read_bytes

_PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_TOKENIZERS = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model"),
    *("tekken.json", "sentencepiece.bpe.model"),
)

#: Files that people give in place of a folder.
_FILES = {
    ".gguf": "a GGUF file, which llama.cpp reads; give the transformers checkpoint that it was made from",
    ".safetensors": "a file of weights alone; give the folder that holds it together with its config.json",
    ".bin": "a file of weights alone; give the folder that holds it together with its config.json",
    ".pt": "a file of weights alone; give the folder that holds it together with its config.json",
    ".pth": "a file of weights alone; give the folder that holds it together with its config.json",
    ".json": "a single file; give the folder that holds it",
}

#: Settings under which other files are read than those looked at here.
_ELSEWHERE = ("variant", "subfolder", "gguf_file", "use_safetensors", "state_dict")


@dataclass(frozen=True)
class FoundModel:
    """A model that can be loaded, as far as its files tell.

    Attributes:
        where: what transformers is given: a folder or a repository's name.
        config: of the model.
        adapter: where its PEFT adapter is, if it has one.
        weights: of a model whose files are all here.
    """

    where: str
    config: Mapping[str, Any]
    adapter: str | None = None
    weights: StoredWeights | None = None


def look(name: Any = None, *, adapter: Any = None, **settings: Any) -> FoundModel:
    """Find a model by its name, or say in a sentence why it cannot be loaded.

    Args:
        name: a folder, a repository on the hub, ``"tiny"``, which is also meant by None, ``"smol"``; the folder of an
            adapter whose base model can be found.
        adapter: the folder or repository of a PEFT adapter for it.
        **settings: of ``lp.load``; ``revision``, ``cache_dir``, ``token``, ``local_files_only``, ``trust_remote_code``
            tell here.

    Raises:
        BadModel: it is not there, incomplete, or another kind of model.
    """
    where = TINY if name is None else _text(name)
    extra = None if adapter is None else _text(adapter)
    if where == SMOL:
        if extra is None and not (smol.path() / "adapter_config.json").is_file():
            raise BadModel("the smol model's adapter is not in this copy of llava_probe; make smol trains it")
        return look(str(smol.base()), adapter=extra or str(smol.path()), **settings)
    if extra is not None:
        adapter_told(extra, settings)
    refuse_original(where)
    folder, whole = (tiny.path(), True) if where == TINY else _folder(where, settings)
    config = _json(folder / "config.json", where)
    if config is None:
        if extra is not None:
            raise BadModel(f"{where} is an adapter too; give adapter={extra!r} the model that both were made for")
        return _adapted(where, settings)
    refuse_kind(config, where, trust_remote_code=bool(settings.get("trust_remote_code")))
    weights = None
    if whole and not any(settings.get(one) is not None for one in _ELSEWHERE):
        weights = stored_weights(folder, where)
        for beside in folder.glob("*_config.json"):
            _json(beside, where)  # transformers does without some that are damaged, and says nothing
        _refuse_without_processor(folder, where)
    given = str(folder) if where == TINY or Path(where).expanduser().is_dir() else where
    return FoundModel(given, config, extra, weights)


def _text(name: Any) -> str:
    if not isinstance(name, str | os.PathLike):
        raise BadModel(f"a model is given by its folder or its name on the hub, like {TINY!r}; got {name!r}")
    text = os.fspath(name)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise BadModel(f"a model is given by its folder or its name on the hub, like {TINY!r}; got {text!r}")
    return text


def _folder(where: str, settings: Mapping[str, Any]) -> tuple[Path, bool]:
    """The folder of a model, and whether all of it should be there."""
    path = _expanded(where)
    try:
        if path.is_dir():
            return _checked(path, where), True
        if path.exists():
            told = _FILES.get(path.suffix.lower(), "a file; a model is a folder, or a name on the hub")
            raise BadModel(f"{where} is {told}")
    except OSError as error:
        raise BadModel(f"{shortened(where)} is no name of a folder: {error.strerror}") from error
    if _is_path(where):
        raise BadModel(f"there is no folder {where}{_beside(path)}")
    if "/" not in where and (close := get_close_matches(where.lower(), [TINY, SMOL], 1, cutoff=0.75)):
        raise BadModel(f"there is no folder or model {where!r}; did you mean {close[0]!r}, which ships inside?")
    return repository(where, settings)


def _expanded(where: str) -> Path:
    try:
        return Path(where).expanduser()
    except RuntimeError as error:  # ~nobody
        raise BadModel(f"{where} is no folder: there is no such user") from error


def _is_path(where: str) -> bool:
    """Whether a name can only be a path: names on the hub have one slash at most."""
    return (
        where.startswith(("/", "./", "../", "~", ".\\")) or where.count("/") > 1 or "\\" in where or where.endswith("/")
    )


def _beside(path: Path) -> str:
    """What lies where a folder was looked for."""
    parent = path.parent
    if not parent.is_dir():
        return f"; there is no {parent} either"
    folders = [entry.name for entry in sorted(parent.iterdir()) if entry.is_dir()]
    close = get_close_matches(path.name, folders, n=3, cutoff=0.5) or folders[:3]
    return f"; in {parent} are {', '.join(close)}" if close else ""


def _checked(path: Path, where: str) -> Path:
    """A folder that holds a model or an adapter."""
    if (path / "config.json").exists() or (path / "adapter_config.json").exists():
        return path
    if (path / "snapshots").is_dir():
        whole = path.name.removeprefix("models--").replace("--", "/")
        raise BadModel(f"{where} is the hub's cache of a model; load it by its name, {whole!r}")
    inner = sorted(
        entry.parent.name for pattern in ("config", "adapter_config") for entry in path.glob(f"*/{pattern}.json")
    )
    if inner:
        raise BadModel(
            f"{where} holds no config.json, but its folders {shortened(', '.join(inner))} do; give one of them"
        )
    held = sorted(entry.name for entry in path.iterdir())
    if any(name.endswith(".gguf") for name in held):
        raise BadModel(f"{where} holds {_FILES['.gguf']}")
    told = f"it holds {shortened(', '.join(held))}" if held else "it is empty"
    raise BadModel(f"{where} is a folder without a config.json, so no model is there: {told}")


def _json(path: Path, told: str) -> dict[str, Any] | None:
    """A JSON object, or None where there is nothing of the name."""
    if not path.exists():
        return None
    data = read_bytes(path.name, path, JSON_LIMIT, BadModel)
    return decoded(f"{path.name} of {told} is damaged", data, dict[str, Any], BadModel)


def _refuse_without_processor(folder: Path, where: str) -> None:
    for files, what in ((_PROCESSORS, "image processor"), (_TOKENIZERS, "tokenizer")):
        if not any((folder / name).is_file() for name in files):
            raise BadModel(
                f"{where} has a model and no {what} ({files[0]}); save that of the model it was made from beside it: "
                f"AutoProcessor.from_pretrained(MODEL).save_pretrained({where!r}), or give both to lp.VLM"
            )


# --- adapters ---


def adapter_told(where: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an adapter says of itself.

    Raises:
        BadModel: there is none, it lacks its weights, or PEFT is not installed.
    """
    if find_spec("peft") is None:
        raise BadModel(f"{where} is an adapter, and PEFT is not installed; pip install peft")
    folder, whole = _folder(where, {**settings, "revision": None})
    config = _json(folder / "adapter_config.json", where)
    if config is None:
        raise BadModel(f"{where} is no adapter: it has no adapter_config.json")
    if whole and not any((folder / f"adapter_model.{end}").is_file() for end in ("safetensors", "bin")):
        raise BadModel(f"{where} is an adapter without its weights (adapter_model.safetensors); finish its download")
    return config


def _adapted(where: str, settings: Mapping[str, Any]) -> FoundModel:
    """The model that an adapter was made for, with it."""
    base = adapter_told(where, settings).get("base_model_name_or_path")
    way = f"lp.load(MODEL, adapter={where!r}), on the command line --model MODEL --adapter {where}"
    if not isinstance(base, str) or not base:
        raise BadModel(f"{where} is an adapter that does not say of which model; name it: {way}")
    try:
        found = look(str(smol.base()) if base == SMOL else base, **{**settings, "revision": None})
    except BadModel as error:
        raise BadModel(
            f"{where} is an adapter of {base}, which cannot be loaded ({error}); give it by hand: {way}"
        ) from error
    return FoundModel(found.where, found.config, where, found.weights)
