"""What came from models, files and servers, as text for people: it is shown, and never acts on where it is shown.

A token may be an escape sequence that clears a terminal, a file's name may end a table's cell, an answer may be a
script. Here are the terminal, Markdown and HTML; in a page that its own script draws, ``view/web/src/text.ts``.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_MARKS = re.compile(r"([\\`*_{}\[\]<>()#|~$!])")


def visible(text: str, *, lines: bool = False) -> str:
    r"""``text`` with each character that a terminal would obey or hide written out, as Python writes it: ``\x1b``.

    Args:
        text: of any origin.
        lines: whether line ends stay as they are.
    """
    return "".join(
        letter if letter.isprintable() or (lines and letter == "\n") else letter.encode("unicode_escape").decode()
        for letter in text
    )


def quoted(text: str) -> str:
    """A token's text between quotes, so that its spaces are seen."""
    return f'"{visible(text)}"'


def in_markdown(text: object) -> str:
    """``text`` as words of a line of Markdown, in a table too: no mark-up, no HTML, no end of line."""
    return _MARKS.sub(r"\\\1", visible(str(text).replace("\n", "⏎")))


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; cells stand in it as they are, so what comes from others goes through ``in_markdown``."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def in_html(text: object) -> str:
    """``text`` as words of a page, between tags or inside quotes: no mark-up, no hidden letter, no turned direction."""
    return html.escape(visible(str(text), lines=True))
