"""The columns of the comparison table, and how each number is written, on a terminal as in the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from parallel.results.comparison import Result

Column = tuple[str, Callable[[Result], str]]


def number(value: float | None, form: str = ".2f", unit: str = "") -> str:
    """A value as the table shows it; "-" where there is none."""
    return "-" if value is None else f"{value:{form}}{unit}"


def seconds(value: float) -> str:
    """Seconds to the hundredth, below one to the ten-thousandth."""
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def size(value: float | None) -> str:
    """Bytes in decimal units, as networks count them."""
    if value is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def interval(result: Result) -> str:
    """The 95 % interval of the speedup."""
    s = result.speedup
    return "-" if s is None or s.low is None or s.high is None else f"{s.low:.2f}–{s.high:.2f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as per cent."""
    return number(None if value is None else 100 * value, f".{digits}f", " %")


def cells(results: Sequence[Result], columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    """The names of the columns that have something to say for any of these results, and the cells of each result."""
    used = [(name, cell) for name, cell in columns if any(cell(result) != "-" for result in results)]
    return [name for name, _ in used], [[cell(result) for _, cell in used] for result in results]


def _time(result: Result, place: int) -> str:
    return seconds(result.epoch_s.as_tuple()[place])


NUMBERS = ("min", "Q1", "median", "mean", "Q3", "max")
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
"""For a narrow terminal."""
TIMES: tuple[Column, ...] = (
    ("epochs", lambda r: str(len(r.epoch_times))),
    *((name, partial(_time, place=place)) for place, name in enumerate(NUMBERS)),
)
RESULTS: tuple[Column, ...] = (
    ("images/s", lambda r: number(r.images_per_second, ",.1f")),
    ("speedup", lambda r: "-" if r.speedup is None else f"{r.speedup.ratio:.2f}×"),
    ("95 %", interval),
    ("efficiency", lambda r: percent(r.efficiency, 0)),
    ("top-1", lambda r: percent(r.top1)),
    ("top-5", lambda r: percent(r.top5)),
    ("sent", lambda r: size(r.bytes_per_epoch)),
)
