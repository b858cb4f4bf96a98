"""Results in lines and columns: on a screen, in a notebook, as CSV and as a frame, under the same names everywhere.

    Table({"token": [" red"], "probability": [0.9], "rank": [0]}).text()

A number that rounds to nothing has no sign.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from llava_probe.errors import BadInput
from llava_probe.escaping import visible
from llava_probe.stored import write_text

#: Digits behind the point, on a screen; files and frames hold all.
_DIGITS = 4
_CELL = "padding:.1em .7em;border:0"


@dataclass(frozen=True)
class Table:
    """Columns of equal length by name, a singular one; ``data`` is plain: texts, numbers, lists."""

    data: dict[str, list[Any]]

    def without(self, *names: str) -> Table:
        """The table without some of its columns."""
        return Table({name: column for name, column in self.data.items() if name not in names})

    def text(self) -> str:
        """A line for each row, texts at the left, numbers at the right, to print."""
        lines = [list(self.data), *self._lines()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        sides = ["<" if self._is_text(name) else ">" for name in self.data]
        form = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
        return "\n".join(form.format(*line).rstrip() for line in lines)

    def html(self, note: str = "") -> str:
        """The same as a table of a notebook, with a line under it; everything in it is text."""
        sides = ["left" if self._is_text(name) else "right" for name in self.data]
        head = "".join(_cell("th", name, side) for name, side in zip(self.data, sides, strict=True))
        rows = "".join(
            f"<tr>{''.join(_cell('td', cell, side) for cell, side in zip(line, sides, strict=True))}</tr>"
            for line in self._lines()
        )
        under = f'<div style="opacity:.7;font-size:.9em">{escape(note)}</div>' if note else ""
        return f"<div><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{under}</div>"

    def to_pandas(self) -> Any:
        """A DataFrame.

        Raises:
            BadInput: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise BadInput("to_pandas() needs pandas: pip install pandas; to_dict() and to_csv() do not") from error
        return pandas.DataFrame(self.data)

    def to_csv(self, path: str | Path) -> Path:
        """A .csv of all columns; lists stand in it with spaces between.

        Raises:
            BadFile: it cannot be written there.
        """
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(self.data)
        for line in zip(*self.data.values(), strict=True):
            writer.writerow([" ".join(map(str, cell)) if isinstance(cell, list) else cell for cell in line])
        return write_text("table", path, file.getvalue())

    def _lines(self) -> list[list[str]]:
        return [[_shown(cell) for cell in line] for line in zip(*self.data.values(), strict=True)]

    def _is_text(self, name: str) -> bool:
        return any(isinstance(cell, str) for cell in self.data[name])


class Tabular:
    """A result that is a table too: what it tells of itself as columns, taken away."""

    __slots__ = ()

    def _columns(self) -> Table:
        raise NotImplementedError

    def to_pandas(self) -> Any:
        """A DataFrame with all columns (needs pandas).

        Raises:
            BadInput: pandas is not installed.
        """
        return self._columns().to_pandas()

    def to_csv(self, path: str | Path) -> Path:
        """A .csv with all columns.

        Raises:
            BadFile: it cannot be written there.
        """
        return self._columns().to_csv(path)


def rounded(number: float, digits: int = _DIGITS) -> str:
    """A number for people: what rounds to nothing has no sign."""
    told = f"{number:.{digits}f}"
    return told.removeprefix("-") if not told.strip("-0.") else told


def _shown(cell: Any) -> str:
    if isinstance(cell, float):
        return rounded(cell)
    return visible(cell) if isinstance(cell, str) else str(cell)


def _cell(tag: str, text: str, side: str) -> str:
    return f'<{tag} style="{_CELL};text-align:{side};white-space:pre-wrap">{escape(text)}</{tag}>'
