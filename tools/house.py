"""The rooms of the package and what stands on what, read from its imports: the house of CONTRIBUTING.md.

    python tools/house.py              # rooms, floors, and what is wrong; exit status 1 if anything is
    python tools/house.py --picture    # the floors as text, from the top down
    python tools/house.py --write      # that text into CONTRIBUTING.md, between its two markers

A room is a subpackage, or a loose file at the top. It stands one floor above the highest room that it imports. Three
things are wrong wherever they are: a circle of rooms or of files, an arrow to a room that ``ORDER`` puts above, a file
that is too long. An import inside a function or for types only counts like any other: who reads one file must read the
other. The package's own ``__init__``, which hands out names by looking them up later, is the front door and no room.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llava_probe"
PAGE = ROOT / "CONTRIBUTING.md"
MARKERS = ("<!-- house -->", "<!-- /house -->")

#: Which rooms may stand on which, from the ground up: a room imports its own line and those before it, none after it.
ORDER = (
    (
        "arrays.py",
        "border/",
        "errors.py",
        "escaping.py",
        "faults.py",
        "described.py",
        "stored.py",
        "whole_file.py",
        "json_lines.py",
        "resampling.py",
        "rooms.py",
        "tiny/",
    ),
    ("pictures/", "inside/"),
    ("layout/", "smol/"),
    ("trace/",),
    ("asking/", "maps/"),
    ("model.py", "loading/"),
    ("analyzers/", "probes/", "features/", "attribution/", "lens/", "interventions/"),
    ("agreement.py", "claimed.py", "evaluate/", "sweeps/", "compare/", "signals/", "finetune/"),
    ("view/", "leaderboard/", "report/"),
    ("cli/",),
    ("__main__.py",),
)
#: A file longer than this holds more than one idea.
LONGEST = 400
WIDTH = 116


@dataclass(frozen=True)
class Arrow:
    """One import: from a file, at a line, to another file; ``kind`` tells when it happens."""

    source: str
    line: int
    target: str
    kind: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line} → {self.target} ({self.kind})"


@dataclass(frozen=True)
class House:
    """A package's files by name (``room/file.py``) with their texts, and the arrows between them."""

    files: Mapping[str, str]
    arrows: tuple[Arrow, ...]
    order: Sequence[Sequence[str]] = ORDER

    @property
    def rooms(self) -> dict[str, list[str]]:
        """The files of each room, those that its ``__init__`` names in the order in which it does, then the others."""
        rooms: dict[str, list[str]] = {}
        for file in self.files:
            rooms.setdefault(room_of(file), []).append(file)
        for room, files in rooms.items():
            contents = self.files.get(f"{room}__init__.py", "")
            files.sort(key=lambda file: (_mentioned(contents, file), file))
        return rooms

    @property
    def floors(self) -> dict[str, int]:
        """Each room's floor, from 0; rooms of one circle stand on one."""
        links = self.links(room_of)
        circle_of = {room: circle for circle in circles(links) for room in circle}
        floors = dict.fromkeys(self.rooms, 0)
        for _ in floors:  # as often as the longest way up can be long
            for room, others in links.items():
                circle = circle_of.get(room, {room})
                floors[room] = max([floors[room], *(floors[other] + (other not in circle) for other in others)])
        return floors

    def links(self, name_of: Callable[[str], str]) -> dict[str, set[str]]:
        """What each room (``room_of``) or file (``str``) imports beside itself."""
        links: dict[str, set[str]] = {}
        for arrow in self.arrows:
            if name_of(arrow.source) != name_of(arrow.target):
                links.setdefault(name_of(arrow.source), set()).add(name_of(arrow.target))
        return links

    def wrong(self) -> dict[str, list[str]]:
        """What is wrong, by kind: nothing in any of them in a house that stands."""
        level = {room: number for number, line in enumerate(self.order) for room in line}
        ends = [(arrow, room_of(arrow.source), room_of(arrow.target)) for arrow in self.arrows]
        lines = {file: text.count("\n") for file, text in self.files.items()}
        return {
            "circles of rooms": [self._circle(circle, room_of) for circle in circles(self.links(room_of))],
            "circles of files": [self._circle(circle, str) for circle in circles(self.links(str))],
            "arrows upward": [
                str(arrow) for arrow, low, high in ends if level.get(high, 0) > level.get(low, len(level))
            ],
            "rooms without a place in ORDER": [room for room in self.rooms if room not in level],
            f"files of more than {LONGEST} lines": [f"{file} ({n})" for file, n in lines.items() if n > LONGEST],
        }

    def _circle(self, circle: set[str], name_of: Callable[[str], str]) -> str:
        """Its members, and a line for each arrow between two of them."""
        ends = {arrow: (name_of(arrow.source), name_of(arrow.target)) for arrow in self.arrows}
        inside = [f"\n    {arrow}" for arrow, (low, high) in ends.items() if low != high and {low, high} <= circle]
        return ", ".join(sorted(circle)) + "".join(inside)

    def picture(self) -> str:
        """The floors from the top down, each with its rooms and the names of their files."""
        lines = []
        for number in range(max(self.floors.values()), -1, -1):
            rooms = sorted(room for room, floor in self.floors.items() if floor == number)
            told = [self._told(room) for room in rooms if room.endswith("/")]
            if loose := [room for room in rooms if not room.endswith("/")]:
                told.append("   ".join(loose))
            lines += [f"{number if line is told[0] else '':>2}  {line}" for line in told]
        return "\n".join(lines)

    def table(self, docs: bool = False) -> str:
        """Each floor's rooms with their files, a file a line; with the first line of its docstring on demand."""
        lines = []
        for room, floor in sorted(self.floors.items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"{floor:>2}  {room}")
            for file in self.rooms[room]:
                first = (ast.get_docstring(ast.parse(self.files[file])) or "").split("\n")[0] if docs else ""
                if room.endswith("/") or first:
                    lines.append(f"      {file.removeprefix(room):<24}  {first}".rstrip())
        return "\n".join(lines)

    def _told(self, room: str) -> str:
        """A room and what is in it, in one line."""
        inside = [Path(file.removeprefix(room)) for file in self.rooms[room]]
        names = [path.stem for path in inside if len(path.parts) == 1 and path.stem != "__init__"]
        folders = dict.fromkeys(f"{path.parts[0]}/" for path in inside if len(path.parts) > 1)
        return textwrap.shorten(f"{room} ({', '.join([*folders, *names])})", WIDTH - 4, placeholder=" ...)")


def read(package: Path, order: Sequence[Sequence[str]] = ORDER) -> House:
    """The house that a package's files make."""
    files = {str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    files.pop("__init__.py", None)
    named = {".".join(Path(package.name, file).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    arrows = [
        Arrow(file, line, target, kind)
        for file, text in files.items()
        for name, line, kind in _imports(ast.parse(text), [package.name, *Path(file).parts[:-1]])
        if (target := named.get(name) or named.get(name.rpartition(".")[0])) and target != file
    ]
    return House(files, tuple(dict.fromkeys(arrows)), order)


def room_of(file: str) -> str:
    """``attribution/`` for ``attribution/engine/forward.py``, ``cli.py`` for itself."""
    folder, found, _ = file.partition("/")
    return folder + found


def circles(links: Mapping[str, set[str]]) -> list[set[str]]:
    """Groups of two and more of which each leads to all."""
    ahead = {name: set(others) for name, others in links.items()}
    for through in links:  # Warshall: every way that leads through this one
        for others in ahead.values():
            if through in others:
                others |= ahead[through]
    groups = {frozenset(other for other in ahead[name] if name in ahead.get(other, ())) for name in ahead}
    return sorted((set(group) for group in groups if group), key=sorted)


def _imports(node: ast.AST, folder: list[str], kind: str = "at the top") -> Iterator[tuple[str, int, str]]:
    """Every name imported, in full, with its line and when it is: ``from a import b`` gives ``a.b``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno, kind) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = folder[: len(folder) + 1 - child.level] if child.level else []
            start = ".".join([*base, *([child.module] if child.module else [])])
            yield from ((f"{start}.{alias.name}", child.lineno, kind) for alias in child.names)
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, folder, "inside a function")
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _imports(child, folder, "for types only")
        else:
            yield from _imports(child, folder, kind)


def _mentioned(contents: str, file: str) -> int:
    """Where a room's ``__init__`` imports a file; behind all that it does where it does not."""
    found = re.search(rf"^from \S*\.{Path(file).stem} import", contents, re.MULTILINE)
    return found.start() if found else len(contents)


def placed(page: str, picture: str) -> str:
    """The text of CONTRIBUTING.md with this picture between its markers."""
    before, found, rest = page.partition(MARKERS[0])
    _, ended, after = rest.partition(MARKERS[1])
    if not (found and ended):
        raise SystemExit(f"{PAGE.name} has no {' ... '.join(MARKERS)} to write between")
    return f"{before}{MARKERS[0]}\n```\n{picture}\n```\n{MARKERS[1]}{after}"


def main() -> int:
    """Print what was asked for; 1 if something is wrong with the house and it was asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--picture", action="store_true", help="print the floors as text")
    parser.add_argument("--write", action="store_true", help="write that text into CONTRIBUTING.md")
    parser.add_argument("--docs", action="store_true", help="the first line of each file's docstring")
    asked = parser.parse_args()
    house = read(PACKAGE)
    if asked.write:
        PAGE.write_text(placed(PAGE.read_text(encoding="utf-8"), house.picture()), encoding="utf-8")
    if asked.picture:
        print(house.picture())
    if asked.write or asked.picture:
        return 0
    print(house.table(asked.docs))
    print(f"\n{len(house.rooms)} rooms, {max(house.floors.values()) + 1} floors, {len(house.arrows)} arrows")
    for kind, told in house.wrong().items():
        print(f"{len(told)} {kind}", *told, sep="\n  ")
    return int(any(house.wrong().values()))


if __name__ == "__main__":
    sys.exit(main())
