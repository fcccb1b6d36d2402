"""Print comparisons and validations on the console."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from parallel.cli.tables import plain, plain_table, print_lines
from parallel.results.comparison import Comparison, Result, describe
from parallel.results.comparison_table import RESULTS, TIMES, WHO, WHO_SHORT, WORDS, Column, cells
from parallel.results.notes import notes
from parallel.results.validation import Validation, groups
from parallel.results.validation_table import SUMMARY, plan_table, summary, verdict
from parallel.results.validation_table import WORDS as VALIDATION_WORDS
from parallel.results.validation_table import describe as describe_validation

WIDE = 10_000
"""Columns if the output does not go to a terminal: each result stays on one line, for grep and
logs."""
STYLES = {"baseline": "dim", "machine": "dim italic"}


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the table and its notes. A terminal too narrow for one table gets two: epoch times,
    then the rest."""
    console.print(plain(describe(comparison.workload), "bold"), plain(comparison.hardware, "dim"), sep="\n")
    whole = _table(comparison.results, WHO + TIMES + RESULTS, console)
    if console.measure(whole, options=console.options.update(width=WIDE)).maximum <= console.width:
        console.print(whole)
    else:
        rest = tuple(column for column in RESULTS if column[0] != "top-5")
        console.print(_table(comparison.results, WHO_SHORT + TIMES, console, narrow=True))
        console.print(_table(comparison.results, WHO_SHORT + rest, console, narrow=True))
    console.print(
        plain("Epoch times in seconds. Speedup: ratio of medians, with a bootstrap interval.", "dim")
    )
    print_lines(console, *(f"· {note}" for note in notes(comparison)), "")


def print_validation(validation: Validation, console: Console) -> None:
    """Print the table of each group of plans, the summary and the verdict."""
    print_lines(console, describe_validation(validation))
    for (workers, batch), plans in groups(validation.rows).items():
        columns, rows = plan_table(plans)
        print_lines(console, "", f"{workers} workers, global batch {batch}")
        console.print(plain_table(columns, words=VALIDATION_WORDS, rows=rows))
    console.print()
    console.print(plain_table(SUMMARY, words=VALIDATION_WORDS, rows=summary(validation.rows)))
    print_lines(console, verdict(validation.rows))


def _table(
    results: Sequence[Result], columns: Sequence[Column], console: Console, narrow: bool = False
) -> Table:
    """Return a table; `narrow`: with less space between columns, and words that may wrap."""
    table = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        show_edge=False,
        pad_edge=False,
        padding=0 if narrow else (0, 1),
        collapse_padding=True,
    )
    names, lines = cells(results, columns)
    for name in names:
        word = name in WORDS
        table.add_column(
            name.replace("×", "\n×") if narrow else name,
            justify="left" if word else "right",
            no_wrap=not (narrow and word),
            style="bold" if name in ("strategy", "speedup") else "",
        )
    for result, line in zip(results, lines, strict=True):
        table.add_row(*map(plain, line), style=STYLES.get(result.role))
    return table
