"""Print Rich tables and lines, in the style of all commands.

All texts pass through `plain`, because records, plans and cluster files may hold characters that
control a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parallel.config import printable


def plain(text: str, style: str = "") -> Text:
    """Return text as it is, without markup; what could control the terminal is an escape."""
    return Text(printable(text), style=style)


def plain_table(
    columns: Sequence[str], *, words: Sequence[str] = (), rows: Iterable[Sequence[str]] = ()
) -> Table:
    """Return a table without borders.

    Columns in `words` are aligned left and may wrap; the others are aligned right and do not wrap.
    A `[` in a cell is not markup.
    """
    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for name in columns:
        if name in words:
            table.add_column(plain(name), overflow="fold")
        else:
            table.add_column(plain(name), justify="right", no_wrap=True)
    for row in rows:
        add_row(table, row)
    return table


def add_row(table: Table, cells: Sequence[str], style: str | None = None) -> None:
    """Add a row of plain text."""
    table.add_row(*map(plain, cells), style=style)


def print_lines(console: Console, *lines: str) -> None:
    """Print lines of plain text without wrapping them."""
    for line in lines:
        console.print(plain(line), soft_wrap=True)
