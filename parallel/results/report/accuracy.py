"""Accuracy against time: training seconds until each accuracy, and the curve between."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from parallel.results.formatting import seconds
from parallel.results.records import Record
from parallel.results.result import Result

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995)
"""Top-1 accuracies that a table can have columns for."""
MOST_LEVELS = 4


def thresholds(results: Sequence[Result]) -> list[float]:
    """Return the highest of `LEVELS` that some run reached, but not all within the first epoch."""
    runs = [points for result in results for record in result.records if (points := _points(record))]
    useful = [
        level
        for level in LEVELS
        if any(_reached(points, level) is not None for points in runs)
        and any(points[0][1] < level for points in runs)
    ]
    return useful[-MOST_LEVELS:]


def time_to(result: Result, level: float) -> float | None:
    """Return the training seconds until top-1 accuracy `level`, a median over the runs. None: a run
    did not reach it, or has no times of its own."""
    times = [_reached(_points(record), level) for record in result.records]
    reached = [time for time in times if time is not None]
    return median(reached) if reached and len(reached) == len(times) else None


def accuracy_table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Return headings and a row of cells per result; no headings: no accuracy was measured."""
    levels = thresholds(results)
    if not levels:
        return [], []
    rows = []
    for result in results:
        cells = ["" if (t := time_to(result, level)) is None else f"{seconds(t)} s" for level in levels]
        rows.append([result.label, str(result.key.workers), *cells])
    return ["strategy", "workers", *(f"to {100 * level:g} %" for level in levels)], rows


def over_time(result: Result) -> list[tuple[float, float]]:
    """Return (training seconds, top-1 accuracy in percent) after each epoch, means over the runs."""
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for record in result.records:
        for place, point in enumerate(_points(record)):
            found[place].append(point)
    return [
        (sum(t for t, _ in points) / len(points), 100 * sum(a for _, a in points) / len(points))
        for _, points in sorted(found.items())
    ]


def _points(record: Record) -> list[tuple[float, float]]:
    """Return (training seconds so far, accuracy); empty if an epoch has no time of its own or no
    accuracy."""
    if any(not epoch.timed or epoch.val_top1 is None for epoch in record.epochs):
        return []
    so_far = itertools.accumulate(epoch.seconds for epoch in record.epochs)
    return [(t, epoch.val_top1 or 0.0) for t, epoch in zip(so_far, record.epochs, strict=True)]


def _reached(points: Sequence[tuple[float, float]], level: float) -> float | None:
    return next((t for t, accuracy in points if accuracy >= level), None)
