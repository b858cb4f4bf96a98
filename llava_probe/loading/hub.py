"""A repository on the Hugging Face hub: what of it lies in the cache, and whether more can be fetched.

Where there is no network, transformers tries for many seconds and then speaks of other things; so it is asked first
whether the hub can be reached at all.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from llava_probe.errors import BadModel, first_line

#: Seconds until a hub that does not answer counts as out of reach.
_PATIENCE = 1.5

#: Files of which one tells what a repository is.
_TELLING = ("config.json", "adapter_config.json")


def repository(name: str, settings: Mapping[str, Any]) -> tuple[Path, bool]:
    """The folder in the cache that holds a repository's config, fetched where it is not there.

    Args:
        name: ``owner/name``.
        settings: of ``lp.load``: ``revision``, ``cache_dir``, ``token``, ``local_files_only``.

    Returns:
        The folder, and whether nothing more can be fetched into it.

    Raises:
        BadModel: it is neither in the cache nor can it be fetched; the sentence says why.
    """
    closed = offline() or bool(settings.get("local_files_only"))
    cache = Path(settings.get("cache_dir") or _cache()).expanduser()
    revision = settings.get("revision") or "main"
    if (folder := _snapshot(cache, name, revision)) is not None:
        return folder, closed
    beside = f"{_similar(cache, name)}; the model that ships inside is called 'tiny'"
    of = name if revision == "main" else f"revision {revision} of {name}"
    if closed:
        raise BadModel(f"{of} is not in the cache {cache}, and nothing is downloaded (offline){beside}")
    endpoint = _endpoint()
    if not reachable(endpoint):
        raise BadModel(
            f"{of} is not in the cache {cache}, and {endpoint} did not answer within {_PATIENCE:g} s: no network? "
            f"Fetch it where there is one (hf download {name}){beside}"
        )
    return _fetched(name, of, settings, beside), False


def offline() -> bool:
    """Whether the user said that nothing is to be downloaded."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("TRANSFORMERS_OFFLINE", "").upper() in (
        "1",
        "ON",
        "YES",
        "TRUE",
    )


def reachable(endpoint: str) -> bool:
    """Whether a server takes a connection soon; one behind a proxy is taken at its word."""
    url = urlsplit(endpoint)
    if url.scheme in getproxies() or "all" in getproxies():
        return True
    answered = threading.Event()

    def connect() -> None:
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
            socket.create_connection((url.hostname or "", port), timeout=_PATIENCE).close()
            answered.set()
        except OSError:
            pass

    asking = threading.Thread(target=connect, daemon=True)  # looking a name up heeds no time limit
    asking.start()
    asking.join(_PATIENCE)
    return answered.is_set()


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _snapshot(cache: Path, name: str, revision: str) -> Path | None:
    """The folder of a revision that was read before."""
    home = cache / f"models--{name.replace('/', '--')}"
    try:
        commit = (home / "refs" / revision).read_text().strip()
    except (OSError, ValueError):
        commit = revision
    folder = home / "snapshots" / commit
    return folder if any((folder / file).is_file() for file in _TELLING) else None


def _similar(cache: Path, name: str) -> str:
    """What lies in the cache under a like name."""
    there = [path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*")]
    by_end = {one.rpartition("/")[2].lower(): one for one in there}
    close = get_close_matches(name.rpartition("/")[2].lower(), by_end, n=3, cutoff=0.5)
    return f"; in the cache are {', '.join(by_end[one] for one in close)}" if close else ""


def _fetched(name: str, of: str, settings: Mapping[str, Any], beside: str) -> Path:
    from huggingface_hub import errors as theirs
    from huggingface_hub import hf_hub_download

    how = {key: settings[key] for key in ("revision", "cache_dir", "token") if settings.get(key) is not None}
    for file in _TELLING:
        try:
            return Path(hf_hub_download(name, file, **how)).parent
        except theirs.LocalEntryNotFoundError as error:  # what it says where the network failed, and a kind of the next
            raise BadModel(f"{of} could not be fetched: {first_line(error)}{beside}") from error
        except theirs.EntryNotFoundError:
            continue
        except theirs.GatedRepoError as error:
            raise BadModel(
                f"{name} is gated: accept its terms at {_endpoint()}/{name}, then log in (hf auth login)"
            ) from error
        except theirs.RevisionNotFoundError as error:
            raise BadModel(f"{name} has no revision {settings.get('revision')!r}") from error
        except theirs.RepositoryNotFoundError as error:
            raise BadModel(
                f"there is no folder and no repository {name} on the hub, or it is private{beside}"
            ) from error
        except (OSError, ValueError) as error:  # theirs, of the network, of names that cannot be
            raise BadModel(f"{of} could not be fetched: {first_line(error)}{beside}") from error
    raise BadModel(f"{name} on the hub has no config.json: it is no model of transformers")
