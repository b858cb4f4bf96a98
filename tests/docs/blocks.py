"""The code of a page as a reader would run it: block after block, in one session, in an empty folder.

    page = Page.read(path)
    page.run(folder, names)            # where a block of text follows one of code, that is what it must print

Three liberties, so that pages may say what pages say: ``...`` as the body of a context is one run of the model, ``...``
in a list is no item, and a name of the hub is a stand-in (``desk.py``).

    python -m tests.docs.blocks        # run the guides and keep the pictures that they make
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^(?P<fence>`{3,}|:{3,})(?P<info>.*)$")
#: How far a number may be off on another machine or release: a few of the last digits that pages print.
_RELATIVE, _ABSOLUTE = 0.02, 0.011
_LOOSELY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_SHOWN = re.compile(r"!\[[^\]]*\]\((pictures/[^)]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: what stands behind the fence; ``line``: of its first line, from 1.
        printed: what it must print, where a block of text follows.
    """

    language: str
    line: int
    text: str
    printed: str | None = None


@dataclass(frozen=True)
class Page:
    """A page and its blocks."""

    path: Path
    blocks: tuple[Block, ...]

    @classmethod
    def read(cls, path: Path) -> Page:
        """The blocks of a Markdown file; of a directive only what is code."""
        lines = path.read_text(encoding="utf-8").splitlines()
        return cls(path, tuple(_with_output(list(_fenced(lines)), lines)))

    @property
    def name(self) -> str:
        """From the repository's root."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def python(self) -> tuple[Block, ...]:
        """Its blocks of Python."""
        return tuple(block for block in self.blocks if block.language == "python")

    @property
    def commands(self) -> tuple[str, ...]:
        """The lines of its blocks for a shell, continued ones joined and comments left out."""
        shells = [block.text for block in self.blocks if block.language in ("", "sh", "console")]
        lines = re.sub(r"\\\n\s*", "", "\n".join(shells)).splitlines()
        return tuple(line.partition(" #")[0].strip() for line in lines if _COMMAND.match(line))

    @property
    def pictures(self) -> tuple[str, ...]:
        """The pictures that its own code makes, as it names them."""
        return tuple(_SHOWN.findall(self.path.read_text(encoding="utf-8")))

    def run(self, folder: Path, names: Mapping[str, Any]) -> None:
        """Run its Python in ``folder``, with ``names`` there from the start.

        Raises:
            AssertionError: a block printed something else than the page says.
        """
        session = {"__name__": "page", **names}
        with contextlib.chdir(folder):
            for block in self.python:
                said = io.StringIO()
                with contextlib.redirect_stdout(said):
                    exec(compile(_readable(block), str(self.path), "exec"), session)
                if block.printed is not None:
                    told = f"{self.name}:{block.line} prints\n{said.getvalue()}\nand the page says\n{block.printed}"
                    assert agrees(block.printed, said.getvalue()), told


def agrees(told: str, said: str) -> bool:
    """Whether a page says what was printed: spaces, ``...`` and the last digits of numbers aside."""
    if not doctest.OutputChecker().check_output(_NUMBER.sub("#", told), _NUMBER.sub("#", said), _LOOSELY):
        return False
    one, other = ([float(number) for number in _NUMBER.findall(text)] for text in (told, said))
    if len(one) != len(other):
        return "..." in told
    return all(math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE) for a, b in zip(one, other, strict=True))


_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?(?!\w)")
_COMMAND = re.compile(r"^(llava-probe|make|pip|python|\.venv/bin/)\S*( |$)")


def guides() -> list[Page]:
    """README and every page of the site that has code."""
    pages = [Page.read(path) for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]]
    return [page for page in pages if page.blocks]


def _fenced(lines: list[str]) -> Iterator[tuple[Block, int]]:
    """Blocks of code, and the line after each."""
    start, info, fence = 0, "", ""
    for number, line in enumerate(lines):
        found = _FENCE.match(line)
        if fence:
            if found and found["fence"].startswith(fence) and not found["info"].strip():
                yield Block(info, start + 2, "\n".join(lines[start + 1 : number]) + "\n"), number + 1
                fence = ""
        elif found and found["fence"][0] == "`":
            info, fence, start = found["info"].strip(), found["fence"], number


def _with_output(found: list[tuple[Block, int]], lines: list[str]) -> Iterator[Block]:
    for (block, end), (after, _) in zip(found, [*found[1:], (None, 0)], strict=True):
        if block.language == "python" and after is not None and after.language == "text":
            between = lines[end : after.line - 2]
            if not any(line.strip() for line in between):
                yield Block(block.language, block.line, block.text, after.text)
                continue
        if block.language != "text" and not block.language.startswith("{"):
            yield block


def _readable(block: Block) -> ast.Module:
    """Its code, with the lines of the page, and ``...`` read as pages mean it."""
    return ast.fix_missing_locations(_AndSoOn().visit(ast.parse("\n" * (block.line - 1) + block.text)))


class _AndSoOn(ast.NodeTransformer):
    def visit_List(self, node: ast.List) -> ast.AST:
        node.elts = [each for each in node.elts if not _is_dots(each)]
        return self.generic_visit(node)

    def visit_With(self, node: ast.With) -> ast.AST:
        if len(node.body) == 1 and isinstance(node.body[0], ast.Expr) and _is_dots(node.body[0].value):
            node.body = ast.parse("run()").body
        return self.generic_visit(node)


def _is_dots(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def keep_pictures() -> None:
    """Run the guides that show pictures of their own, and keep these beside them."""
    import tempfile

    import llava_probe as lp
    from tests.docs import desk

    vlm = lp.load()
    for page in guides():
        if page.pictures:
            with tempfile.TemporaryDirectory() as folder, desk.stand_ins(vlm):
                desk.lay(Path(folder))
                page.run(Path(folder), desk.names(page.name, vlm))
                for picture in page.pictures:
                    kept = page.path.parent / picture
                    kept.parent.mkdir(exist_ok=True)
                    kept.write_bytes((Path(folder) / kept.name).read_bytes())
                    print(kept.relative_to(ROOT))


if __name__ == "__main__":
    keep_pictures()
