"""HTML of the reports: Jinja2 templates in `templates/`, escaped automatically, and the data of a
table.

Charts remain our own SVG (`svg`): the pages load nothing, their colours follow the reader's light or
dark theme, and matplotlib's SVG does neither theme nor tooltips. The script of a page sorts tables
and copies commands; without it everything can be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from parallel.results.report.colours import PALETTE, strategy_class


@dataclass(frozen=True)
class HtmlLine:
    """One line of a table."""

    cells: Sequence[str]
    css: str = ""
    chip: str = ""
    """Colour of a mark before the first cell."""
    note: str = ""
    """Text after the cell of the table's note column."""
    below: str = ""
    """Second line of the first cell, which only narrow pages show, instead of columns."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """By column, a sentence on what makes its number doubtful: the number gets a mark."""

    @property
    def chip_class(self) -> str:
        """CSS class of the mark's colour, which is shorter than the colour; empty for other colours."""
        return f" {strategy_class(PALETTE.index(self.chip))}" if self.chip in PALETTE else ""


@dataclass(frozen=True)
class HtmlTable:
    """A table as `table.html.j2` draws it."""

    columns: Sequence[str]
    lines: Sequence[HtmlLine]
    words: Sequence[str] = ()
    """Columns of text, aligned left; the others are numbers."""
    key: Sequence[str] = ()
    """Columns in bold."""
    groups: Sequence[tuple[int, str]] = ()
    """Headings above the columns: how many columns each spans, and its text."""
    note_column: str = ""
    name: str = ""
    """Identifies the table in its page; only needed with `essential`."""
    essential: Sequence[str] = ()
    """Columns that a narrow page shows until the reader asks for the others. Empty: all."""

    @property
    def foldable(self) -> list[int]:
        """Places, from 1, of the columns that a narrow page leaves out at first."""
        return [i for i, c in enumerate(self.columns, start=1) if self.essential and c not in self.essential]

    @property
    def flagged(self) -> bool:
        """Whether any number has a mark."""
        return any(line.flags for line in self.lines)

    def kind(self, column: str) -> str:
        """Return the CSS classes of a column."""
        return " ".join(["word"] * (column in self.words) + ["key"] * (column in self.key))

    def named(self, line: HtmlLine) -> Iterator[tuple[str, str, str]]:
        """Yield each cell of a line with the name of its column and what sorts it; empty: its text."""
        for name, cell in zip(self.columns, line.cells, strict=True):
            number = None if name in self.words or PLAIN.fullmatch(cell) else sort_number(cell)
            yield name, cell, "" if number is None else f"{number:.9g}"


UNITS = {
    **{"": 1.0, "%": 1.0, "×": 1.0, "s": 1.0, "ms": 1e-3, "min": 60.0, "h": 3600.0},
    **{"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    **{"bit/s": 1.0, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9},
}
NUMBER = re.compile(
    r"([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?)"  # with commas between thousands
    r" ?([^\W\d_]+(?:/s)?|[%×])?"  # unit
    r"(?:–[\d.]+)?[ !✗†~]*"  # upper end of an interval, marks of doubt
)


PLAIN = re.compile(r"[\d.e+-]+")
"""Cells that are numbers as they are."""


def sort_number(cell: str) -> float | None:
    """Return the number that a cell states, in the base of its unit; of an interval its lower end.
    None: the cell is text."""
    found = NUMBER.fullmatch(cell)
    if found is None or (found[2] or "") not in UNITS:
        return None
    return float(found[1].replace(",", "")) * UNITS[found[2] or ""]


def render(template: str, **values: Any) -> Markup:
    """Return a template filled with `values`. Strings are escaped unless they are `Markup`."""
    return Markup(_environment().get_template(template).render(values))


def alone(drawing: str) -> str:
    """Return a page that holds nothing but one plot or drawing of the report."""
    style = render("style.css")
    return f"<!doctype html><meta charset='utf-8'><style>{style}</style><main>{drawing}</main>"


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("parallel.results.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
