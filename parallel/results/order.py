"""The order of the rows of comparisons by columns, as in `--sort speedup` or `--sort workers,-median`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence

from parallel.config import require
from parallel.results.comparison import Comparison
from parallel.results.comparison_table import EPOCH_TIMES, RESULTS, TIMES, WHO, cells
from parallel.results.result import Result

HEADINGS = tuple(name for name, _ in WHO + TIMES + RESULTS)
"""Every column that a table can have, without those of settings."""

Value = tuple[int, float, str]
"""Numbers before texts, and cells without a value last."""
UNKNOWN: Value = (2, 0.0, "")


def other_columns(columns: str) -> list[str]:
    """Return the names in `columns` that are not in `HEADINGS`: settings, or mistakes."""
    return [name for name, _ in _order(columns) if name not in HEADINGS]


def check_columns(columns: str, settings: Collection[str]) -> None:
    """Raise `ValueError` for a column that is neither one of `HEADINGS` nor one of `settings`."""
    for name in other_columns(columns):
        require(
            name in settings,
            "--sort",
            name,
            f"is not known; it must be one of {', '.join(HEADINGS)}, or an option such as trainer.lr",
        )


def sorted_by(comparisons: Sequence[Comparison], columns: str) -> list[Comparison]:
    """Return the comparisons with their rows ordered by columns, the first of which counts most.

    `columns` are headings of the table, separated by commas; `-` before one is from large to small.
    Rows without a value are last. A column that a table lacks changes nothing.
    """
    return [dataclasses.replace(c, results=_sorted(c.results, _order(columns))) for c in comparisons]


def _order(columns: str) -> list[tuple[str, bool]]:
    """Return the name of each column, and whether it is from large to small."""
    return [(name.removeprefix("-"), name.startswith("-")) for name in columns.split(",")]


def _sorted(results: Sequence[Result], order: Sequence[tuple[str, bool]]) -> tuple[Result, ...]:
    names, lines = cells(results, WHO + TIMES + RESULTS)
    rows = list(zip(results, lines, strict=True))
    for name, descending in reversed(order):  # sorting is stable
        values = [(_value(result, name, names, line), result, line) for result, line in rows]
        known = [each for each in values if each[0] != UNKNOWN]
        known.sort(key=lambda each: each[0], reverse=descending)
        rows = [(r, line) for _, r, line in [*known, *(e for e in values if e[0] == UNKNOWN)]]
    return tuple(result for result, _ in rows)


def _value(result: Result, name: str, names: Sequence[str], line: Sequence[str]) -> Value:
    if name in NUMBERS:
        number = _number(result, name)
        return UNKNOWN if number is None else (0, number, "")
    cell = line[names.index(name)] if name in names else "-"
    if cell == "-":
        return UNKNOWN
    number = next((value for key, value in result.settings if key == name), None)
    if isinstance(number, (int, float)):
        return 0, float(number), ""
    return (0, float(cell), "") if re.fullmatch(r"-?\d+(\.\d+)?", cell) else (1, 0.0, cell)


NUMBERS = (
    *EPOCH_TIMES,
    "predicted",
    "measured/predicted",
    "images/s",
    "speedup",
    "95 %",
    "efficiency",
    "top-1",
    "top-5",
    "sent",
)
"""Columns whose cells are not the numbers as they are."""


def _number(result: Result, name: str) -> float | None:
    """Return the unrounded number of a column of `NUMBERS`; for the interval its lower end."""
    if name in EPOCH_TIMES:
        return result.epoch_s.as_tuple()[EPOCH_TIMES.index(name)]
    ratio, check = result.speedup, result.predicted
    values: dict[str, float | None] = {
        "predicted": None if check is None else check.predicted_s,
        "measured/predicted": None if check is None else check.ratio,
        "images/s": result.images_per_second,
        "speedup": None if ratio is None else ratio.ratio,
        "95 %": None if ratio is None else ratio.low,
        "efficiency": result.efficiency,
        "top-1": result.top1,
        "top-5": result.top5,
        "sent": result.bytes_per_epoch,
    }
    return values[name]
