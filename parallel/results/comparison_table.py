"""Columns of the comparison table, on the console and in the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from parallel.results.comparison import Result
from parallel.results.formatting import number, percent, seconds, size

Column = tuple[str, Callable[[Result], str]]
"""Heading, and the cell of a result."""


def cells(results: Sequence[Result], columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    """Return the headings of the columns in which any of the results has a value, and each result's
    cells."""
    used = [(name, cell) for name, cell in columns if any(cell(result) != "-" for result in results)]
    return [name for name, _ in used], [[cell(result) for _, cell in used] for result in results]


def _interval(result: Result) -> str:
    s = result.speedup
    return "-" if s is None or s.low is None or s.high is None else f"{s.low:.2f}–{s.high:.2f}"


def _time(result: Result, place: int) -> str:
    return seconds(result.epoch_s.as_tuple()[place])


WORDS = ("strategy", "scheme")
"""Columns of text; the others are numbers."""
EPOCH_TIMES = ("min", "Q1", "median", "mean", "Q3", "max")
WHO: tuple[Column, ...] = (
    ("strategy", lambda r: r.key.strategy),
    ("scheme", lambda r: r.scheme or "-"),
    ("workers", lambda r: str(r.key.workers)),
    ("threads", lambda r: number(r.key.threads, "d")),
)
WHO_SHORT: tuple[Column, ...] = (
    ("strategy", lambda r: r.label),
    ("workers×threads", lambda r: f"{r.key.workers}×{number(r.key.threads, 'd')}"),
)
"""Narrow variant of `WHO`."""
TIMES: tuple[Column, ...] = (
    ("epochs", lambda r: str(len(r.epoch_times))),
    *((name, partial(_time, place=place)) for place, name in enumerate(EPOCH_TIMES)),
)
RESULTS: tuple[Column, ...] = (
    ("images/s", lambda r: number(r.images_per_second, ",.1f")),
    ("speedup", lambda r: "-" if r.speedup is None else f"{r.speedup.ratio:.2f}×"),
    ("95 %", _interval),
    ("efficiency", lambda r: percent(r.efficiency, 0)),
    ("top-1", lambda r: percent(r.top1)),
    ("top-5", lambda r: percent(r.top5)),
    ("sent", lambda r: size(r.bytes_per_epoch)),
)
