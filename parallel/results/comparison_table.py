"""Columns of the comparison table, on the console and in the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from parallel.results.disturbance import too_few_cores
from parallel.results.formatting import number, percent, seconds, size
from parallel.results.notes import SHARED_GPU, WITHIN_RUN
from parallel.results.prediction_check import UNCALIBRATED
from parallel.results.result import Result
from parallel.results.settings import shown

Column = tuple[str, Callable[[Result], str]]
"""Heading, and the cell of a result."""


def cells(results: Sequence[Result], columns: Sequence[Column]) -> tuple[list[str], list[list[str]]]:
    """Return the headings of the columns in which any of the results has a value, and each result's
    cells. Those of `VARYING` must have two values.

    Settings in which results differ are columns of their own, before the first of `columns` that is in
    neither `WHO` nor `WHO_SHORT`.
    """
    who = [column for column in columns if column in WHO + WHO_SHORT]
    rest = [column for column in columns if column not in who]
    used = []
    for name, cell in (*who, *_settings(results), *rest):
        values = {cell(result) for result in results} - {"-"}
        if len(values) > (name in VARYING) and not (name == "runs" and values == {"1"}):
            used.append((name, cell))
    return [name for name, _ in used], [[cell(result) for _, cell in used] for result in results]


def marks(names: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, str]:
    """Return the marks in the cells of a table, with what they mean."""
    cells = [cell for row in rows for name, cell in zip(names, row, strict=True) if name in MARKED]
    return {mark: meaning for mark, meaning in MARKS.items() if any(mark in cell for cell in cells)}


def _settings(results: Sequence[Result]) -> list[Column]:
    names = dict.fromkeys(name for result in results for name, _ in result.settings)
    return [(name, partial(_setting, name=name)) for name in names]


def _setting(result: Result, name: str) -> str:
    found = [value for key, value in result.settings if key == name]
    return shown(found[0]) if found else "-"


def _interval(result: Result) -> str:
    s = result.speedup
    if s is None or s.low is None or s.high is None:
        return "-"
    return f"{s.low:.2f}–{s.high:.2f}{WITHIN_RUN if s.covers == 'within-run' else ''}"


def _speedup(result: Result) -> str:
    if result.shares_gpu:
        return SHARED_GPU
    if result.speedup is None:
        return "-"
    crowded = any(map(too_few_cores, result.records))
    return f"{result.speedup.ratio:.2f}×{DISTURBED * bool(result.noisy or crowded)}"


def _efficiency(result: Result) -> str:
    above = result.efficiency is not None and result.efficiency > 1
    return percent(result.efficiency, 0) + DISTURBED * above


def _time(result: Result, place: int) -> str:
    return seconds(result.epoch_s.as_tuple()[place])


DISTURBED = "!"
"""Mark of numbers that others disturbed, or that seem to be: a note says what."""
NOT_TRAINED = "✗"
"""Mark of the accuracy of runs that have not learned anything."""
MARKS = {
    WITHIN_RUN: "covers the variation within a run only",
    SHARED_GPU: "workers shared a GPU, so that there is no speedup",
    DISTURBED: "disturbed by others, above linear speedup, or outside the error of the prediction",
    UNCALIBRATED: "predicted without a calibration for these runs",
    NOT_TRAINED: "did not learn",
}
"""What the marks in cells of `MARKED` mean."""
MARKED = ("measured/predicted", "speedup", "95 %", "efficiency", "top-1")
WORDS = ("strategy", "scheme")
"""Columns of text; the others are numbers."""
VARYING = ("hosts", "network")
"""Columns that are left out if their values are all equal."""
EPOCH_TIMES = ("min", "Q1", "median", "mean", "Q3", "max")
WHO: tuple[Column, ...] = (
    ("strategy", lambda r: r.key.strategy),
    ("scheme", lambda r: r.short_scheme or "-"),
    ("workers", lambda r: str(r.key.workers)),
    ("threads", lambda r: number(r.key.threads, "d")),
    ("hosts", lambda r: r.key.hosts_text),
    ("network", lambda r: r.key.network or "-"),
)
WHO_SHORT: tuple[Column, ...] = (
    ("strategy", lambda r: f"{r.key.strategy} {r.short_scheme}".strip()),
    ("workers×threads", lambda r: f"{r.key.workers}×{number(r.key.threads, 'd')}"),
    *WHO[-2:],
)
"""Narrow variant of `WHO`."""
TIMES: tuple[Column, ...] = (
    ("runs", lambda r: str(len(r.records))),
    ("epochs", lambda r: str(len(r.epoch_times))),
    *((name, partial(_time, place=place)) for place, name in enumerate(EPOCH_TIMES)),
)
RESULTS: tuple[Column, ...] = (
    ("predicted", lambda r: "-" if r.predicted is None else seconds(r.predicted.predicted_s)),
    ("measured/predicted", lambda r: "-" if r.predicted is None else str(r.predicted)),
    ("images/s", lambda r: number(r.images_per_second, ",.1f")),
    ("speedup", _speedup),
    ("95 %", _interval),
    ("efficiency", _efficiency),
    ("top-1", lambda r: percent(r.top1) + NOT_TRAINED * bool(r.not_trained and r.top1 is not None)),
    ("top-5", lambda r: percent(r.top5)),
    ("sent", lambda r: size(r.bytes_per_epoch)),
)
RESULT_CELLS = dict(RESULTS)
"""Cells with their marks of doubt, by heading."""
