"""Tables of scaling results: strong, weak, by batch, and in the form of Krizhevsky 2014.

The functions return column names and rows of cells; commands and the report print them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

from parallel.results import krizhevsky
from parallel.results.comparison import describe
from parallel.results.comparison_table import NOT_TRAINED, RESULT_CELLS
from parallel.results.formatting import count, duration, number, percent, seconds
from parallel.results.krizhevsky import PublishedRow
from parallel.results.notes import baseline_command, doubts
from parallel.results.records import Record
from parallel.results.result import Result
from parallel.results.scaling import BatchScaling, Point, Scaling

Table = tuple[list[str], list[list[str]]]
"""Column names, and rows of cells."""


def _marked(point: Point, name: str) -> str:
    return RESULT_CELLS[name](point.result)


def _error(point: Point) -> str:
    check = point.result.predicted
    if point.error is None or check is None:
        return "-"
    return f"{number(point.error)}{' !' * check.outside}{' ~' * (not check.calibrated)}"


COLUMNS: tuple[tuple[str, Callable[[Point], str]], ...] = (
    ("strategy", lambda p: p.result.key.strategy),
    ("scheme", lambda p: p.result.scheme or "-"),
    ("workers", lambda p: str(p.workers)),
    ("threads", lambda p: number(p.result.key.threads, "d")),
    ("network", lambda p: p.result.key.network or "-"),
    ("batch", lambda p: f"{p.batch_size:,}"),
    ("epochs", lambda p: str(len(p.result.epoch_times))),
    ("epoch s", lambda p: seconds(p.result.epoch_s.median)),
    ("images/s", lambda p: number(p.result.images_per_second, ",.1f")),
    *((name, partial(_marked, name=name)) for name in ("speedup", "95 %", "efficiency", "top-1")),
    ("predicted s", lambda p: "-" if p.predicted_s is None else seconds(p.predicted_s)),
    ("measured/predicted", _error),
)
WORDS = ("strategy", "scheme")
"""Columns of text; the others are numbers."""


def title(scaling: Scaling | BatchScaling) -> str:
    """Return what is fixed: `Weak scaling, batch 64 per worker`."""
    if isinstance(scaling, BatchScaling):
        return f"By batch, {count(scaling.workers, 'worker')}"
    per = " per worker" if scaling.kind == "weak" else ""
    kind = "global batch" if scaling.kind == "strong" else "batch"
    return f"{scaling.kind.capitalize()} scaling, {kind} {scaling.batch:,}{per}"


def heading(scaling: Scaling | BatchScaling) -> str:
    """Return the workload and the hardware in one line."""
    return f"{describe(scaling.workload)} · {scaling.hardware}"


def scaling_table(scaling: Scaling | BatchScaling) -> Table:
    """Return a row for each point; columns without a value are left out."""
    points = scaling.points
    used = [(name, cell) for name, cell in COLUMNS if {cell(point) for point in points} != {"-"}]
    return [name for name, _ in used], [[cell(point) for _, cell in used] for point in points]


def scaling_notes(scaling: Scaling | BatchScaling) -> list[str]:
    """Return sentences on missing baselines, each with the command that runs it, and on the marks of
    doubt."""
    return [*(_missing(scaling) if isinstance(scaling, Scaling) else []), *doubts(_named(scaling))]


def _missing(scaling: Scaling) -> list[str]:
    alone = [point for point in scaling.points if point.speedup is None]
    commands = dict.fromkeys(_baseline_command(point.result.records[0], scaling.batch) for point in alone)
    return [
        f"No speedups: one worker with a batch of {scaling.batch:,} is missing"
        + (f"; run it with: {command}" if command else "")
        for command in commands
    ]


def _named(scaling: Scaling | BatchScaling) -> list[Result]:
    """Return the results with labels that tell the points of a strategy apart."""
    named = []
    for point in scaling.points:
        at = f"on {count(point.workers, 'worker')}"
        if isinstance(scaling, BatchScaling):
            at = f"with batch {point.batch_size:,}"
        named.append(dataclasses.replace(point.result, scheme=f"{point.result.scheme} {at}".strip()))
    return named


def krizhevsky_table(scaling: Scaling) -> Table:
    """Return the runs of weak scaling in the columns of Krizhevsky's table, and his rows beside them.

    Rows are the baseline and one weird trick. `time` is that of all epochs, the mean over the runs.
    """
    ours: dict[tuple[int, bool], list[Point]] = {}
    for point in scaling.points:
        one_weird_trick = point.result.key.strategy == "one_weird_trick" and point.workers > 1
        if one_weird_trick or point.result.role == "baseline":
            ours.setdefault((point.workers, _whole(point)), []).append(point)
    theirs = {(row.gpus, row.whole): row for row in krizhevsky.ROWS}
    columns = ["workers", "batch (conv, FC)", "scheme", "cross-entropy", "top-1 error", "time", "speedup"]
    rows = []
    for key in sorted({*ours, *theirs}, key=lambda key: (key[0], not key[1])):
        published = _published_cells(theirs.get(key))
        points = ours.get(key, [])
        if not points:
            rows.append([str(key[0]), *["-"] * (len(columns) - 1), *published])
        for place, point in enumerate(points):
            rows.append([*_own_cells(point), *(published if place == 0 else [""] * len(published))])
    return [*columns, "published batch", *(f"published {name}" for name in columns[3:])], rows


def has_one_weird_trick(scaling: Scaling) -> bool:
    """Return whether Krizhevsky's table has a row of these runs beside the baseline."""
    return scaling.kind == "weak" and any(p.result.key.strategy == "one_weird_trick" for p in scaling.points)


def _whole(point: Point) -> bool:
    """Return whether the fully connected layers are updated with the gradient of the whole batch."""
    options = point.result.records[0].config.get("strategy", {})
    return point.workers == 1 or options.get("update") != "pass"


def _own_cells(point: Point) -> list[str]:
    records, batch = point.result.records, point.batch_size
    inner = batch if _whole(point) else batch // point.workers
    top1 = point.result.top1
    return [
        str(point.workers),
        f"{batch:,}, {inner:,}",
        point.result.scheme or "-",
        number(_last_loss(records), ".3f"),
        percent(None if top1 is None else 1 - top1, 2) + NOT_TRAINED * bool(point.result.not_trained),
        duration(_training_s(records)),
        _marked(point, "speedup"),
    ]


def _published_cells(row: PublishedRow | None) -> list[str]:
    if row is None:
        return ["-"] * 5
    convolutions, inner = row.batch
    return [
        f"{convolutions:,}, {inner:,}",
        f"{row.cross_entropy:.3f}",
        percent(row.top1_error, 2),
        duration(3600 * row.hours),
        f"{row.speedup:.2f}×",
    ]


def _last_loss(records: Sequence[Record]) -> float | None:
    """Return the validation loss after the last epoch, the mean over the records. None: not measured."""
    losses = [record.epochs[-1].val_loss for record in records]
    known = [loss for loss in losses if loss is not None]
    return sum(known) / len(known) if known else None


def _training_s(records: Sequence[Record]) -> float | None:
    """Return the seconds of all epochs, the mean over the records. None: some epoch was not timed."""
    if not all(epoch.timed for record in records for epoch in record.epochs):
        return None
    return sum(epoch.seconds for record in records for epoch in record.epochs) / len(records)


def _baseline_command(record: Record, batch: int) -> str | None:
    """Return the command that runs the baseline of `record` with this batch."""
    trainer = {**record.config.get("trainer", {}), "batch_size": batch}
    return baseline_command(
        dataclasses.replace(record, config={**record.config, "trainer": trainer}) if record.config else record
    )
