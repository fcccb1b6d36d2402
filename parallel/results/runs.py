"""The runs of one configuration: their epoch times, and their speedup over those of another.

A sweep with `repeats` runs every combination once before any runs again (`parallel.cli.repeats`). Runs
of two sides are the rounds of such a sweep if                                              `in_rounds`

    each side has one run of each repetition, in the same sweep
    the runs were made one after another, those of one repetition before those of the next
    each side was first in half of the rounds, or with an odd number in one more or one less

Then the interval is that of the differences within rounds, else that of independent runs. Only the
design decides, never the widths of the intervals. Without the last rule, a machine that becomes slower
during every round would pass for a difference between the sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property

from parallel.results.records import Record
from parallel.results.statistics import Speedup, speedup_of_rounds, speedup_of_runs


@dataclass(frozen=True)
class Runs:
    """The runs of one configuration."""

    records: Sequence[Record]

    @cached_property
    def epoch_s(self) -> list[tuple[float, ...]]:
        """Seconds of the timed epochs of each run that has any."""
        return [times for record in self.records if (times := epoch_times([record]))]

    def speedup_over(self, baseline: Runs) -> Speedup:
        """Return the speedup of these runs over others."""
        rounds = in_rounds(baseline.records, self.records)
        if rounds is None:
            return speedup_of_runs(baseline.epoch_s, self.epoch_s)
        base, ours = zip(*rounds, strict=True)
        return speedup_of_rounds(Runs(base).epoch_s, Runs(ours).epoch_s)


def epoch_times(records: Iterable[Record]) -> tuple[float, ...]:
    """Return the seconds of every timed epoch of the records."""
    return tuple(e.seconds for r in records for e in r.epochs if e.timed)


def in_rounds(one: Sequence[Record], other: Sequence[Record]) -> list[tuple[Record, Record]] | None:
    """Return the two runs of each round, the earliest round first. None: the runs are no rounds."""
    if len(one) != len(other) or len(one) < 2:
        return None
    found = [_timed(record, side) for side, records in enumerate((one, other)) for record in records]
    runs = sorted(run for run in found if run is not None)
    if len(runs) < len(found) or len({run.record.sweep for run in runs}) > 1:
        return None
    if any(before.finished > after.started for before, after in zip(runs, runs[1:], strict=False)):
        return None
    rounds = [sorted(runs[i : i + 2], key=lambda run: run.side) for i in range(0, len(runs), 2)]
    if any((a.side, b.side, a.repeat) != (0, 1, b.repeat) for a, b in rounds):
        return None
    numbers = [run.repeat for run, _ in rounds]
    first = sum(run.side for run in runs[::2])  # rounds in which `other` was first
    if numbers != sorted(set(numbers)) or abs(2 * first - len(rounds)) > 1:
        return None
    return [(a.record, b.record) for a, b in rounds]


@dataclass(frozen=True, order=True)
class _Timed:
    """A run that may be one of a round."""

    started: datetime
    finished: datetime
    side: int
    repeat: int = field(compare=False)
    record: Record = field(compare=False)


def _timed(record: Record, side: int) -> _Timed | None:
    """Return a run of a sweep that has epochs and whose times are known; else None."""
    started, finished, repeat = _time(record.started), _time(record.finished), record.config.get("repeat")
    if record.sweep is None or not isinstance(repeat, int) or not any(e.timed for e in record.epochs):
        return None
    if started is None or finished is None:
        return None
    return _Timed(started, finished, side, repeat, record)


def _time(text: str | None) -> datetime | None:
    """Return a time of a record. None: it states none."""
    try:
        time = datetime.fromisoformat((text or "").replace("Z", "+00:00"))
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=timezone.utc)
