"""HTML of the reports: Jinja2 templates in `templates/`, escaped automatically, and the data of a
table.

Charts remain our own SVG (`svg`): the pages contain no script and load nothing, their colours
follow the reader's light or dark theme, and matplotlib's SVG does neither theme nor tooltips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class HtmlLine:
    """One line of a table."""

    cells: Sequence[str]
    css: str = ""
    chip: str = ""
    """Colour of a mark before the first cell."""
    note: str = ""
    """Text after the cell of the table's note column."""


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

    def kind(self, column: str) -> str:
        """Return the CSS classes of a column."""
        return " ".join(["word"] * (column in self.words) + ["key"] * (column in self.key))

    def named(self, line: HtmlLine) -> Iterator[tuple[str, str]]:
        """Yield each cell of a line with the name of its column."""
        return zip(self.columns, line.cells, strict=True)


def render(template: str, **values: Any) -> Markup:
    """Return a template filled with `values`. Strings are escaped unless they are `Markup`."""
    return Markup(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("parallel.results.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
