"""How signatures and docstrings are read: as they are written, and names lead to their place on the API pages.

Classes are documented under the name that users type (``llava_probe.Trace``) and written in a module of their own
(``llava_probe.trace.trace``). Other packages' names are not linked: that would need their lists from other hosts.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from docutils import nodes
from sphinx.util.nodes import make_refnode

#: What a user makes by calling it; of everything else a signature would only repeat its attributes.
MADE_BY_HAND = {"VLM", "Capture", "Region", "Direction", "Cluster", "Features", "ImageMap"}

#: Written in signatures, and no page's matter: other packages, kinds of arguments, and what ``lp.`` does not show.
ELSEWHERE = [
    ("py:.*", r"(torch|np|npt|PIL|Image|pandas|pyarrow|datasets|nn|os)(\..*)?"),
    (
        "py:.*",
        r"(Any|Callable|Iterable|Iterator|Mapping.*|Sequence|Literal|Path|Tensor|Axes|Canvas|Figure|ScalarMappable|Unpack)",
    ),
    (
        "py:.*",
        r"(At|Place|Tokens|Label|Named|Result|Contrast|Asked|PosedQuestion|Phase|PartName|Change|How|Align|Width|Dpi|Title|Colours)",
    ),
    ("py:.*", r"(Count|CountFromZero|Seed|Positive|Finite|Portion|Share|Shares|Scores|Times)"),
    ("py:.*", r"(BinCount|DrawCount|Coverage|HeldOut|FitKind|CocoFiles|(cheats\.)?Cheat|Item|ScoringPlan)"),
    ("py:.*", r"\w*(Array|Numeric|Numbers|Options|Positions|Samples|Method|Like)"),
]

#: What a context gives is one of these, and its page says what all of them have.
INTERVENTIONS = ("KnockOut", "Reweighting", "Ablation", "Patch", "Steering")

_SIGNED = ("function", "method", "class", "exception")


def as_written(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, str] | None:
    """A signature with the annotations of the source, neither evaluated nor expanded."""
    if what in ("class", "exception") and name.rpartition(".")[2] not in MADE_BY_HAND:
        return "", ""
    if what not in _SIGNED or signature is None:
        return None
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return None
    parameters = [each for each in found.parameters.values() if each.name not in ("self", "cls")]
    shown = found.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    back = "" if what == "class" or not isinstance(found.return_annotation, str) else found.return_annotation
    return _unquoted(str(shown)), back


def _unquoted(signature: str) -> str:
    """Annotations that are strings, without their quotes; of a number with limits, the number."""
    plain = re.sub(r": '([^']*)'(?=[,)=]| =)", r": \1", signature)
    return re.sub(r"Annotated\[(\w+), \w+\([^)]*\)\]", r"\1", plain)


def in_our_words(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Before napoleon reads a docstring: what stands before a colon is no type, and stars are stars."""
    for number, line in enumerate(lines):
        lines[number] = re.sub(r"(?<=[ ,])\*\*(\w+)(?=[,:])", r"\*\*\1", line) if ", **" in line else line
    if what == "module":
        _examples_as_code(lines)
    plain = [0] if what in ("attribute", "property", "data") and lines else []
    plain += [number + 1 for number, line in enumerate(lines[:-1]) if line.strip() in ("Returns:", "Yields:")]
    for number in plain:
        lines[number] = lines[number].replace(": ", "\N{RATIO} ")


def _examples_as_code(lines: list[str]) -> None:
    """A module opens with an example, indented behind an empty line."""
    for number in range(len(lines) - 1, 0, -1):
        before = [line for line in lines[:number] if line.strip()]
        if lines[number].startswith("    ") and not lines[number - 1].strip() and not before[-1].startswith("    "):
            lines[number:number] = [".. code-block:: python", ""]


def colons_again(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """After napoleon: what stood in for a colon."""
    lines[:] = [line.replace("\N{RATIO}", ":") for line in lines]


_OURS = re.compile(r"lp\.(\w+)(?:\(.*\))?")


def linked(app: Any, doctree: nodes.document, page: str) -> None:
    """``lp.load`` in a text leads to where it is documented, with or without arguments behind it."""
    objects = app.env.get_domain("py").objects
    for literal in list(doctree.findall(nodes.literal)):
        found = _OURS.fullmatch(literal.astext())
        place = objects.get(f"llava_probe.{found[1]}") if found else None
        if place is None or isinstance(literal.parent, nodes.reference | nodes.title):
            continue
        reference = make_refnode(app.builder, page, place.docname, place.node_id, literal.deepcopy())
        literal.replace_self(reference)


def documented(app: Any, env: Any, node: Any, content: nodes.Element) -> nodes.Element | None:
    """The place where ``a.b.Name`` is documented, when one page documents a ``Name`` and no other does."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"].rpartition(".")[2]
    name = "Intervention" if name in INTERVENTIONS else name
    objects = env.get_domain("py").objects
    found = {full for full, place in objects.items() if full.rpartition(".")[2] == name and not place.aliased}
    shown = f"llava_probe.{name}"
    target = shown if shown in found else found.pop() if len(found) == 1 else None
    if target is None or not name[:1].isupper():
        return None
    place = objects[target]
    return make_refnode(app.builder, node["refdoc"], place.docname, place.node_id, content, target)
