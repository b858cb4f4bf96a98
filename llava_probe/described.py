"""The types that describe what a file of ours holds: all of it, so that a key nobody knows is refused too.

``stored.decoded`` reads JSON into them; a field of another type, a missing and a surplus one are each a sentence.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import msgspec

#: Whole numbers as an int64 tensor holds them, and those of them that count or name a place.
Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a JSON object in a file of ours holds, all of it."""


def like(kind: type, name: str, **types: Any) -> Any:
    """A ``Stored`` with the fields of a dataclass, whose ``asdict`` was written, all of them required.

    Args:
        kind: the dataclass.
        name: of the new type.
        types: of fields that are narrower in a file than the dataclass says.
    """
    hints = get_type_hints(kind)
    described = [(each.name, types.get(each.name, hints[each.name])) for each in fields(kind)]
    return msgspec.defstruct(name, described, bases=(Stored,), frozen=True, forbid_unknown_fields=True)
