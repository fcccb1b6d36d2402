"""Print comparisons, scaling and validations on the console."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from parallel.cli.tables import plain, plain_table, print_lines
from parallel.config import printable
from parallel.results.appendix import EPOCH, Appendix
from parallel.results.comparison import Comparison, describe
from parallel.results.comparison_table import RESULTS, TIMES, WHO, WHO_SHORT, WORDS, Column, cells
from parallel.results.crossover import Crossover, PredictedMap
from parallel.results.crossover_table import WORDS as CROSSOVER_WORDS
from parallel.results.crossover_table import crossover_notes, crossover_table
from parallel.results.crossover_table import title as crossover_title
from parallel.results.krizhevsky import MACHINE, SOURCE
from parallel.results.notes import notes
from parallel.results.result import Result
from parallel.results.scaling import Scaling
from parallel.results.scaling_table import WORDS as SCALING_WORDS
from parallel.results.scaling_table import (
    has_one_weird_trick,
    heading,
    krizhevsky_table,
    scaling_notes,
    scaling_table,
    title,
)
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
    console.print(plain("Epoch times in seconds. Speedup: ratio of medians, with a 95 % interval.", "dim"))
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
            # The key of a setting in a record may be any text.
            Text(printable(name).replace("×", "\n×") if narrow else printable(name)),
            justify="left" if word else "right",
            no_wrap=not (narrow and word),
            style="bold" if name in ("strategy", "speedup") else "",
        )
    for result, line in zip(results, lines, strict=True):
        table.add_row(*map(plain, line), style=STYLES.get(result.role))
    return table


def print_scaling(scaling: Scaling, console: Console) -> None:
    """Print a scaling, its notes, and beside one weird trick's weak scaling the published table."""
    console.print(plain(title(scaling), "bold"), plain(heading(scaling), "dim"), sep="\n")
    columns, rows = scaling_table(scaling)
    console.print(plain_table(columns, words=SCALING_WORDS, rows=rows))
    print_lines(console, *(f"· {note}" for note in scaling_notes(scaling)))
    if has_one_weird_trick(scaling):
        columns, rows = krizhevsky_table(scaling)
        print_lines(console, "", f"In the form of {SOURCE} ({MACHINE}):")
        console.print(plain_table(columns, words=("scheme",), rows=rows))
    print_lines(console, "")


def print_appendix(appendix: Appendix, console: Console) -> None:
    """Print every epoch beside the published ones."""
    console.print(
        plain(f"{appendix.title}: every epoch, seconds", "bold"), plain(appendix.about, "dim"), sep="\n"
    )
    columns, rows = appendix.table()
    heads = [head for name, of in appendix.strategies.items() for head in [name, *[""] * (len(of) - 1)]]
    console.print(plain_table([EPOCH, *heads], words=(EPOCH,), rows=[["", *columns[1:]], *rows]))
    print_lines(console, *(f"· {note}" for note in appendix.notes), "")


def print_crossover(crossover: Crossover, predicted: PredictedMap | None, console: Console) -> None:
    """Print who wins where."""
    heading = plain(f"Who wins where: {crossover_title(crossover)}", "bold")
    console.print(heading, plain(crossover.hardware, "dim"), sep="\n")
    columns, rows = crossover_table(crossover)
    console.print(plain_table(columns, words=CROSSOVER_WORDS, rows=rows))
    print_lines(console, *(f"· {note}" for note in crossover_notes(crossover, predicted)), "")
