"""What lies in one cell of a data set, as we take it: texts, pictures, masks, chats, and values to carry along."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from PIL import Image

from llava_probe.errors import BadImage, BadInput, ProbeError, refusing, shortened
from llava_probe.features.by_column import by_column
from llava_probe.features.rows import PICTURES
from llava_probe.pictures.images import fingerprint, open_image

KEY_DIGITS = 32  # 128 bits of sha256: no two pictures of any data set meet
_BEGINNING = 65_536  # bytes of a file that tell it from others of its length

_ADDRESS = re.compile(r"(data):|[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # as ``open_image`` tells them from paths
_PICTURE_INSIDE = ("bytes", "path", "url", "file_name")  # of a dict that stands for one
_PICTURE_KEYS = ("image", "path", "url", "image_url")  # of a part of a chat
_WRITTEN_OUT = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")  # how PNG, JPEG, GIF and WebP begin in base64
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
_NOTHING = ("NAType", "NaTType")  # of pandas, which need not be there
ROLE_NAMES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_FILMS = (".mp4", ".avi", ".mkv", ".mov", ".webm")
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")  # how bytes of pictures begin
MARK = "<image>"  # LLaVA's own place for a picture in a conversation
_WIDEST = 2**63  # whole numbers that an index can hold are smaller


def is_empty(value: Any) -> bool:
    """Also NaN, NA and NaT, which is how pandas writes that there is nothing."""
    if isinstance(value, float):
        return math.isnan(value)
    if value is None or isinstance(value, (str, list, tuple)):
        return not value
    return type(value).__name__ in _NOTHING or (getattr(value, "ndim", None) == 0 and bool(value != value))


def text(value: Any) -> str:
    """A text, or a number as one.

    Raises:
        BadInput: it is neither.
    """
    value = plain_value(value)
    if isinstance(value, (str, int, float)):
        return str(value)
    raise BadInput(f"is a {type(value).__name__}, not a text")


def picture(value: Any, folder: Path) -> Any:
    """What ``open_image`` takes, or a list of such; relative paths start at the folder.

    Raises:
        BadInput: it is no picture.
    """
    if str(getattr(value, "dtype", "")) == "object":  # as pandas reads lists from a file
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return _one_picture(value, folder)
    return [_one_picture(one, folder) for one in value]


def _one_picture(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):  # as Hugging Face keeps pictures, and as others write where one lies
        held = next((value[key] for key in _PICTURE_INSIDE if not is_empty(value.get(key))), None)
        if held is None:
            keys = shortened(", ".join(map(str, value)))
            raise BadInput(f"is a dict of {keys}, none of which holds a picture: {', '.join(_PICTURE_INSIDE)}")
        value = held
    if isinstance(value, (str, os.PathLike)):
        return located(os.fspath(value), folder)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, Image.Image) or _is_array(value):
        return value
    raise BadInput(f"is of type {type(value).__name__}, not a path, URL, bytes, PIL picture or array")


def located(given: str, folder: Path) -> str:
    r"""An absolute path, or a URL as it is.

    A picture written out in base64 becomes a URL; a path written with ``\\`` is turned where no file goes by it.
    """
    if _ADDRESS.match(given):
        return given
    if given.startswith(_WRITTEN_OUT) and _BASE64.fullmatch(given):
        return f"data:image;base64,{''.join(given.split())}"
    if "\\" in given and os.sep == "/" and not os.path.exists(os.path.join(folder, given)):  # noqa: PTH110, PTH118
        given = given.replace("\\", "/")
    if given.startswith("~/"):
        return str(Path(given).expanduser())
    return os.path.join(folder, given)  # noqa: PTH118  # pathlib interns every name that it sees: memory that grows


def is_address(given: str) -> bool:
    """Whether it is a URL and no path."""
    return _ADDRESS.match(given) is not None


def is_stored(value: Any) -> bool:
    """A picture by its type, or as Hugging Face stores one."""
    if isinstance(value, Mapping):
        return value.keys() == {"bytes", "path"} and isinstance(value.get("bytes"), bytes)
    return isinstance(value, Image.Image)


def looks_like_a_picture(value: Any) -> bool:
    """A picture, a film, or a text that names one."""
    if isinstance(value, (list, tuple)):
        return bool(value) and not isinstance(value[0], (list, tuple)) and looks_like_a_picture(value[0])
    if isinstance(value, bytes):
        return value.startswith(_MAGIC)
    if isinstance(value, str):
        if len(value) > 4096:
            return value[:11].lower() == "data:image/"
        named = value.partition("?")[0] if is_address(value) else value
        return "\n" not in named and Path(named).suffix.lower() in {*PICTURES, *_FILMS}
    return is_stored(value)


def _is_array(value: Any) -> bool:
    """Also of a tensor; not of a numpy scalar."""
    return hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0


def mask(value: Any, folder: Path) -> Any:
    """What ``regions.read_mask`` takes: arrays as bool, paths absolute, the rest as it was given.

    Raises:
        BadInput: an array that is no mask.
    """
    from llava_probe.pictures import regions  # numpy, which reading a data set does not need

    if isinstance(value, Mapping) and "counts" not in value and "polygons" not in value:
        value = value.get("bytes") or value.get("path") or value
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        return value
    if isinstance(value, (str, os.PathLike)):
        return located(os.fspath(value), folder)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, Image.Image):
        return value
    if _is_array(value):
        return regions.read_mask(value)
    if isinstance(value, (list, tuple)):
        listed = plain_value(value)
        try:
            return regions.read_mask(listed)
        except BadInput:
            return listed  # polygons, which want the picture's size
    if isinstance(value, Mapping):
        return {str(key): inner if isinstance(inner, bytes) else plain_value(inner) for key, inner in value.items()}
    raise BadInput(f"is a {type(value).__name__}, not a path, picture, array, run-length mask or polygons")


def chat(value: Any, folder: Path, pictures: int) -> tuple[list[dict[str, Any]], str | None]:
    """A chat as messages for a template, and the answer of LLaVA's last turn.

    Messages are kept as they are, but for the relative paths in them. LLaVA's ``from`` and ``value`` become roles, the
    marks in the values places for pictures.

    Raises:
        BadInput: it is no chat.
    """
    given = turns_of(value)
    if not all("from" in turn for turn in given):
        return [_located_message(turn, folder) for turn in given], None
    turns = [_turn(turn) for turn in given]
    answer = None
    if turns[-1]["role"] == "assistant":
        answer = "".join(part.get("text", "") for part in turns.pop()["content"])
    if not turns:
        raise BadInput("is a chat in which nobody asks")
    if not any(part["type"] == "image" for part in parts_of(turns)):
        first = next((turn for turn in turns if turn["role"] == "user"), turns[0])
        first["content"] = [{"type": "image"}] * pictures + first["content"]
    return turns, answer


def turns_of(value: Any) -> list[Mapping[str, Any]]:
    """The messages or turns of a chat: a list of dicts, as it is, as JSON or column by column.

    Raises:
        BadInput: it is no chat.
    """
    if isinstance(value, str):
        with refusing("is no chat: it is a text and no JSON"):
            value = json.loads(value)
    if hasattr(value, "tolist"):  # as pandas reads lists from a file
        value = value.tolist()
    if isinstance(value, Mapping) and (columns := by_column(value)) is not None:
        value = list(columns[1]())
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(turn, Mapping) for turn in value):
        raise BadInput("is no chat: a list of messages with role and content, or of turns with from and value")
    return list(value)


def marked_parts(said: str) -> list[dict[str, Any]]:
    """Words and the places for pictures between them."""
    content: list[dict[str, Any]] = []
    for number, words in enumerate(said.split(MARK)):
        content += [{"type": "image"}] if number else []
        content += [{"type": "text", "text": words.strip()}] if words.strip() else []
    return content


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    role, said = ROLE_NAMES.get(str(turn.get("from"))), turn.get("value")
    if role is None or not isinstance(said, str):
        raise BadInput(f"holds a turn of {shortened(repr(turn.get('from')))}; LLaVA's are of human, gpt and system")
    if role == "assistant":
        return {"role": role, "content": [{"type": "text", "text": said}]}
    return {"role": role, "content": marked_parts(said)}


def _located_message(message: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        content = [_located_part(part, folder) if isinstance(part, Mapping) else part for part in content]
    return {**message, "content": content} if "content" in message else dict(message)


def _located_part(part: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    kept = {key: value for key, value in part.items() if value is not None}  # as columnar files fill in
    for key in _PICTURE_KEYS:
        if isinstance(kept.get(key), (str, os.PathLike)) and kept.get("type") != "text":
            kept[key] = located(os.fspath(kept[key]), folder)
    return kept


def parts_of(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The parts of a chat's messages, in order."""
    for message in messages:
        content = message.get("content")
        if isinstance(content, (list, tuple)):
            yield from (part for part in content if isinstance(part, Mapping))


def shows_pictures(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a picture lies inside the chat itself."""
    return bool(_shown(messages))


def chat_key(messages: Sequence[Mapping[str, Any]]) -> str:
    """Equal for chats that show the same pictures; empty where none shows any."""
    keys = [
        value if isinstance(value, str) else json.dumps(plain_value(value), sort_keys=True)
        for value in _shown(messages)
    ]
    return "|".join(picture_key(key) for key in keys)


def _shown(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What the parts of a chat hold besides texts and bare places."""
    beside = [{key: value for key, value in part.items() if key not in ("type", "text")} for part in parts_of(messages)]
    keys = ("image", "path", "url")
    return [next((part[key] for key in keys if not is_empty(part.get(key))), part) for part in beside if part]


class Pattern(Formatter):
    """A text with the names of columns in braces, as in ``val2014/COCO_val2014_{image_id:012}.jpg``.

    Attributes:
        fields: the columns that it names.

    Raises:
        BadInput: its braces name no columns.
    """

    def __init__(self, given: str, what: str) -> None:
        self._given, self._what = given, what
        try:
            fields = [name for _, name, _, _ in self.parse(given) if name is not None]
        except ValueError as error:
            raise BadInput(f"{what}={shortened(repr(given))} has braces that fit no columns: {error}") from None
        self.fields = tuple(dict.fromkeys(fields))
        if not all(name.isidentifier() for name in self.fields):
            raise BadInput(
                f"{what}={shortened(repr(given))} wants a column's name in its braces, as in "
                "{image_id:012}; a brace itself is written twice"
            )

    def of(self, row: Mapping[str, Any]) -> str:
        """The text for a row.

        Raises:
            BadInput: the row has no such column, or it does not fit the form.
        """
        for name in self.fields:
            if is_empty(row.get(name)):
                raise BadInput(f"{name} is empty, and {self._what}={shortened(repr(self._given))} wants it")
        try:
            return self.vformat(self._given, (), row)
        except (ValueError, TypeError, KeyError) as error:
            raise BadInput(f"does not fit {self._what}={shortened(repr(self._given))}: {error}") from None

    def format_field(self, value: Any, format_spec: str) -> str:
        """Digits of a text count as a number where a width is asked for: tables hold only texts."""
        value = plain_value(value)
        counts = format_spec and isinstance(value, str) and value.isdecimal()
        return format(int(value) if counts else value, format_spec)


def plain_value(value: Any) -> Any:
    """The value as str, int, float, bool, None or lists and dicts of those; a picture as its key.

    Raises:
        BadInput: it is nested too deep, or a whole number beyond 64 bits.
    """
    try:
        return _plain(value)
    except RecursionError:
        raise BadInput("is nested too deep to be carried along") from None


def _plain(value: Any) -> Any:
    if isinstance(value, int) and not -_WIDEST <= value < _WIDEST:
        try:
            return str(value)
        except ValueError:  # thousands of digits, which Python does not write out
            raise BadInput("is a whole number of thousands of digits") from None
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(_plain, value), key=str)  # a set's own order differs between processes
    if isinstance(value, (bytes, Image.Image)):
        return picture_key(value)
    if hasattr(value, "tolist"):  # numpy and torch, scalars among them
        listed = value.tolist()
        return _plain(listed) if type(listed) is not type(value) else str(value)
    return str(value)


def picture_key(image: Any) -> str:
    """Equal for equal pictures and in every process: a path, or a sha256."""
    if image is None:
        return ""
    if isinstance(image, (list, tuple)):
        return "|".join(map(picture_key, image))
    if isinstance(image, (str, os.PathLike)):
        given = os.fspath(image)
        address = _ADDRESS.match(given)
        return short_hash(given.encode("utf-8", "surrogatepass")) if address and address[1] else given
    if isinstance(image, bytes):
        return short_hash(image)
    try:
        return f"sha256:{fingerprint(open_image(image))[:KEY_DIGITS]}"
    except BadImage as error:  # such samples fail alike, when their picture is opened
        return f"unreadable: {error}"


def content_key(image: Any) -> str:
    """Likewise, one for all files that hold the same, and another where a file was changed: by length and beginning."""
    if isinstance(image, (list, tuple)):
        return "|".join(map(content_key, image))
    if not isinstance(image, (str, os.PathLike)) or is_address(os.fspath(image)):
        return picture_key(image)
    try:
        with Path(image).open("rb") as file:
            return f"{os.fstat(file.fileno()).st_size} {hashlib.sha256(file.read(_BEGINNING)).hexdigest()}"
    except OSError:  # such samples fail alike, when their picture is opened
        return picture_key(image)


def mask_key(given: Any) -> str:
    """Likewise of a mask: a path, or a sha256 of what is inside."""
    if given is None or isinstance(given, (str, bytes)):
        return picture_key(given)
    if isinstance(given, (Mapping, list)):
        return short_hash(json.dumps(plain_value(given), sort_keys=True).encode())
    from llava_probe.pictures import regions

    try:
        read = regions.read_mask(given)
    except ProbeError as error:
        return f"unreadable: {error}"
    return short_hash(f"{read.shape}:".encode() + read.tobytes())


def short_hash(data: bytes) -> str:
    """Sha256 in hex, cut to ``KEY_DIGITS``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()[:KEY_DIGITS]}"
