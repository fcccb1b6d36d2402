"""Results: the pooled records of one configuration, with their statistics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from parallel.results.disturbance import noise, not_trained
from parallel.results.formatting import count
from parallel.results.prediction_check import PredictionCheck, check_prediction
from parallel.results.records import Record
from parallel.results.runs import Runs, epoch_times
from parallel.results.settings import Settings
from parallel.results.statistics import Speedup, Summary, summarise

DIVERGED = 1e30
"""Losses from here on, and NaN, are not drawn."""
EPOCH_PARTS = ("compute_s", "communication_s", "data_wait_s", "idle_s")
"""Fields of `Epoch` that its seconds divide into."""
Role = Literal["", "baseline", "machine"]


@dataclass(frozen=True)
class Key:
    """The configuration that the records of one result share."""

    strategy: str
    label: str
    workers: int
    threads: int | None
    settings: Settings
    plan: str | None
    """Fingerprint of the plan."""
    baseline: bool
    hosts: tuple[int, ...] | None
    """Workers of each host. None: not recorded."""
    network: str | None
    """Typical bandwidth between the hosts. None: not measured, or a single host."""

    @property
    def hosts_text(self) -> str:
        """`1`, `2 × 4` (hosts × workers) or `2 + 1` (workers of each); `-` if not recorded."""
        if not self.hosts:
            return "-"
        if len(set(self.hosts)) > 1:
            return " + ".join(map(str, self.hosts))
        return "1" if len(self.hosts) == 1 else f"{len(self.hosts)} × {self.hosts[0]}"


@dataclass(frozen=True)
class Result:
    """The pooled records of one configuration: one line of the table, one mark in each plot."""

    key: Key
    scheme: str
    """The label without the strategy's name; where results share a label, with the settings in which
    they differ and the plan."""
    short_scheme: str
    """The scheme without the settings."""
    settings: Settings
    """The settings in which results of the comparison differ, with their short names."""
    place: int
    """Place of the strategy among all that are compared, which orders rows and chooses colours."""
    role: Role
    """machine: a baseline run with more threads than the workers of the other results."""
    records: tuple[Record, ...]
    baseline: tuple[Record, ...]
    """The runs that the speedup is relative to."""
    epoch_s: Summary
    images_per_second: float | None
    speedup: Speedup | None
    efficiency: float | None
    top1: float | None
    top5: float | None
    bytes_per_epoch: float | None
    peak_memory_bytes: int | None

    @property
    def label(self) -> str:
        """Strategy and scheme."""
        return f"{self.key.strategy} {self.scheme}".strip()

    @property
    def shares_gpu(self) -> bool:
        """Whether workers shared a GPU: its times are those of workers that waited for each other."""
        return self.records[0].shares_gpu

    @property
    def epoch_times(self) -> tuple[float, ...]:
        """Seconds of every pooled epoch."""
        return epoch_times(self.records)

    @property
    def noisy(self) -> str:
        """Sentence on the runs whose machines were busy with other things; empty if none was."""
        found = [(record.name, said) for record in self.records if (said := noise(record))]
        if not found:
            return ""
        name, said = found[0]
        return f"{self.label} ({name}) {said}{_more(found)}"

    @property
    def not_trained(self) -> str:
        """Why its runs, or some of them, have not learned anything; empty if all have, or nothing is
        known."""
        found = [(record.name, said) for record in self.records if (said := not_trained(record))]
        if not found:
            return ""
        name, said = found[0]
        return f"{self.label} ({name}) {said}{_more(found)}"

    @property
    def predicted(self) -> PredictionCheck | None:
        """The runs' predictions of themselves beside their times. None: they made none."""
        return check_prediction(self.records, self.epoch_s.median)

    def time_split(self) -> dict[str, float] | None:
        """Return the mean seconds of each of `EPOCH_PARTS`, and of the rest as `other`. None: not
        measured."""
        epochs = [
            e
            for r in self.records
            for e in r.epochs
            if e.timed and all(getattr(e, part) is not None for part in EPOCH_PARTS)
        ]
        if not epochs:
            return None
        parts = {part: _mean([getattr(e, part) for e in epochs]) for part in EPOCH_PARTS}
        return {**parts, "other": max(0.0, _mean([e.seconds for e in epochs]) - sum(parts.values()))}

    def curve(self, name: str) -> list[tuple[int, float]]:
        """Return (epoch, mean over the records that reached it) of a field of `Epoch`; of times, those
        of timed epochs."""
        points: dict[int, list[float]] = defaultdict(list)
        for epoch in (e for r in self.records for e in r.epochs):
            value = getattr(epoch, name)
            if name == "seconds" and not epoch.timed:
                continue
            if value is not None and abs(value) < DIVERGED:
                points[epoch.epoch].append(value)
        return [(number, _mean(values)) for number, values in sorted(points.items())]


def pooled(*, key: Key, role: Role, pool: Sequence[Record], baseline: Runs, **described: Any) -> Result:
    """Return the result of the records in `pool`, with their statistics; `described`: its other fields."""
    ratio = None
    compared = not pool[0].side_by_side and not pool[0].shares_gpu
    if role == "baseline" and compared:
        ratio = Speedup(1.0)
    elif baseline.records and compared:
        ratio = Runs(pool).speedup_over(baseline)
    memory = [e.peak_memory_bytes for r in pool for e in r.epochs if e.peak_memory_bytes is not None]
    return Result(
        key=key,
        role=role,
        records=tuple(pool),
        baseline=tuple(baseline.records),
        epoch_s=summarise(epoch_times(pool)),
        speedup=ratio,
        images_per_second=median_of(pool, "images_per_second"),
        efficiency=None if ratio is None or role == "machine" else ratio.ratio / key.workers,
        top1=_after_last_epoch(pool, "val_top1"),
        top5=_after_last_epoch(pool, "val_top5"),
        bytes_per_epoch=median_of(pool, "bytes_sent"),
        peak_memory_bytes=max(memory, default=None),
        **described,
    )


def trained(results: Sequence[Result]) -> list[Result]:
    """Return the results whose runs have learned something, or all if none has."""
    return [result for result in results if not result.not_trained] or list(results)


def median_of(records: Iterable[Record], name: str) -> float | None:
    """Return the median of a field over all timed epochs. None: not measured."""
    epochs = [e for r in records for e in r.epochs if e.timed]
    values = [getattr(e, name) for e in epochs if getattr(e, name) is not None]
    return summarise(values).median if values else None


def workers_and_threads(result: Result) -> str:
    """Return `2 workers × 1 thread`, with the hosts and their network if there are several."""
    key = result.key
    words = count(key.workers, "worker")
    words += "" if key.threads is None else f" × {count(key.threads, 'thread')}"
    hosts = key.hosts or ()
    if len(hosts) > 1:
        words += f" on {len(hosts)} hosts" if len(set(hosts)) == 1 else f" on hosts of {key.hosts_text}"
    return words if key.network is None else f"{words} at {key.network}"


def _more(found: Sequence[object]) -> str:
    return f", and {count(len(found) - 1, 'other run')} likewise" if len(found) > 1 else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _after_last_epoch(records: Sequence[Record], name: str) -> float | None:
    """Return the mean over the records of a field of their last epochs. None: not measured."""
    last = [r.epochs[-1] for r in records]
    values = [getattr(e, name) for e in last if getattr(e, name) is not None]
    return _mean(values) if values else None
