"""Validations as words: the table of plans, what the groups come to, and where the error comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parallel.results.table import percent
from parallel.results.validation import KINDS, Row, Statistics, Validation, groups, statistics

Column = tuple[str, Callable[[Row], str]]


def signed(value: float) -> str:
    """A fraction as per cent, with its sign."""
    return f"{100 * value:+.1f} %"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f}"


def _both(part: str) -> Callable[[Row], str]:
    return lambda row: f"{_ms(getattr(row.predicted, part))} | {_ms(getattr(row.measured, part))}"


COLUMNS: tuple[Column, ...] = (
    ("plan", lambda row: row.name),
    ("kind", lambda row: row.kind),
    ("held out", lambda row: "yes" if row.held_out else ""),
    ("predicted ms", lambda row: _ms(row.predicted_s)),
    ("measured", lambda row: _ms(row.measured_s)),
    ("Q1–Q3", lambda row: f"{_ms(row.first_quartile_s)}–{_ms(row.third_quartile_s)}"),
    ("error", lambda row: signed(row.error)),
    ("compute ms, predicted | measured", _both("compute_s")),
    ("exposed", _both("exposed_s")),
    ("idle", _both("idle_s")),
)
WORDS = ("plan", "kind", "held out", "rows")
SUMMARY = ("rows", "number", "mean error", "largest", "τ", "regret", "signed error", "of compute", "of exposed",
           "of idle")


def fastest_first(rows: Sequence[Row]) -> list[Row]:
    """As tables list them."""
    return sorted(rows, key=lambda row: row.measured_s)


def describe(validation: Validation) -> str:
    """What was run, in a line."""
    return (f"{validation.model}, {validation.image_size} px, {validation.num_classes} classes, "
            f"{validation.precision}; {validation.device}, {validation.threads} "
            f"thread{'s' * (validation.threads > 1)} a worker; {len(validation.rows)} rows of {validation.plans} "
            f"plans; {validation.blocks} blocks of {validation.steps} steps; predicted with cluster "
            f"{validation.cluster}")


def subsets(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """What is summed up: all rows, those held out, every group of workers and batch, every kind of plan."""
    named = [("all", list(rows)), ("held out", [row for row in rows if row.held_out])]
    of = groups(rows)
    if len(of) > 1:
        named += [(f"{workers} workers, batch {batch}", group) for (workers, batch), group in of.items()]
    named += [(f"{kind} plans", [row for row in rows if row.kind == kind]) for kind in KINDS]
    return [(name, chosen) for name, chosen in named if chosen]


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """The cells of a line for each subset, under `SUMMARY`."""
    return [_line(name, statistics(chosen)) for name, chosen in subsets(rows)]


def _line(name: str, found: Statistics) -> list[str]:
    # Among plans of one kind, which is the fastest is not what anybody asks.
    terms, alike = found.terms, name.endswith("plans")
    return [name, str(found.rows), percent(found.mean), percent(found.largest),
            "-" if found.tau is None or alike else f"{found.tau:.3f}", "-" if alike else f"{found.regret:.3f}",
            signed(terms.compute + terms.exposed + terms.idle), signed(terms.compute), signed(terms.exposed),
            signed(terms.idle)]


def verdict(rows: Sequence[Row]) -> str:
    """Whether the rows that are held out, or all where none is, do what is aimed at."""
    chosen = [row for row in rows if row.held_out] or list(rows)
    which = "held-out plans" if any(row.held_out for row in rows) else "all plans; none is held out"
    missed = statistics(chosen).missed()
    return f"Targets missed ({which}): {'; '.join(missed)}." if missed else f"All targets are met ({which})."


def print_validation(validation: Validation, console: Console) -> None:
    """Print the table of each group, the summary and the verdict."""
    console.print(Text(describe(validation)), soft_wrap=True)
    for (workers, batch), rows in groups(validation.rows).items():
        console.print(Text(f"\n{workers} workers, global batch {batch}"))
        console.print(_table([name for name, _ in COLUMNS],
                             [[cell(row) for _, cell in COLUMNS] for row in fastest_first(rows)]))
    console.print()
    console.print(_table(SUMMARY, summary(validation.rows)))
    console.print(Text(verdict(validation.rows)), soft_wrap=True)


def _table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for name in names:
        table.add_column(Text(name), justify="left" if name in WORDS else "right", no_wrap=True)
    for line in lines:
        table.add_row(*map(Text, line))
    return table
