"""Comparisons: which records are comparable, and the statistics of each group of them.

A comparison holds the records of one workload on one kind of hardware. Records of the same
configuration (strategy with its options, workers, threads, plan, treatment) are pooled into one
`Result`. The baseline of a result is the one-worker run with the same threads per worker and the
same treatment (compile, memory format).

A one-worker run with more threads than the workers of the other results is what a user of a single
machine would run instead of any of them. It has the role `machine` and is compared with the same
baseline as the others.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from parallel.config import TrainerConfig
from parallel.results.formatting import count
from parallel.results.records import Record, Workload, plan_fingerprint
from parallel.results.statistics import Speedup, Summary, speedup, summarise

TREATMENT = ("channels_last", "compile")
"""Fields of `trainer` that change the speed of a step but not the workload: equal within a result
and its baseline."""
DIVERGED = 1e30
"""Losses from here on, and NaN, are not drawn."""
EPOCH_PARTS = ("compute_s", "communication_s", "data_wait_s", "idle_s")
"""Fields of `Epoch` that its seconds divide into."""

Options = tuple[tuple[str, Any], ...]
Role = Literal["", "baseline", "machine"]


@dataclass(frozen=True)
class Key:
    """The configuration that the records of one result share."""

    strategy: str
    label: str
    workers: int
    threads: int | None
    treatment: Options
    plan: str | None
    """Fingerprint of the plan."""
    baseline: bool


@dataclass(frozen=True)
class Result:
    """The pooled records of one configuration: one line of the table, one mark in each plot."""

    key: Key
    scheme: str
    """The label without the strategy's name, with the treatment and, where results share a label,
    the plan."""
    place: int
    """Place of the strategy among all that are compared, which orders rows and chooses colours."""
    role: Role
    """machine: a baseline run with more threads than the workers of the other results."""
    records: tuple[Record, ...]
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
    def epoch_times(self) -> tuple[float, ...]:
        """Seconds of every pooled epoch."""
        return epoch_times(self.records)

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
        """Return (epoch, mean over the records that reached it) of a field of `Epoch`."""
        points: dict[int, list[float]] = defaultdict(list)
        for epoch in (e for r in self.records for e in r.epochs):
            value = getattr(epoch, name)
            if value is not None and abs(value) < DIVERGED:
                points[epoch.epoch].append(value)
        return [(number, _mean(values)) for number, values in sorted(points.items())]


@dataclass(frozen=True)
class Comparison:
    """The results of one workload on one kind of hardware, the baseline first."""

    workload: Workload
    hardware: str
    results: tuple[Result, ...]
    untimed: tuple[Record, ...] = ()
    """Runs that are left out, because none of their epochs was timed."""


def compare(records: Iterable[Record]) -> list[Comparison]:
    """Group records by workload and hardware: one `Comparison` for each, in the order of their
    first records.

    Strategies have the order of their first records too, after the baseline's. Raises `ValueError`
    if no run has a timed epoch.
    """
    records = tuple(records)
    order = list(
        dict.fromkeys(record.strategy for record in sorted(records, key=lambda record: not record.baseline))
    )
    groups: dict[tuple[Workload, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.workload, hardware(record)].append(record)
    comparisons = [
        Comparison(
            workload,
            machine,
            _results([record for record in group if _is_timed(record)], order),
            tuple(record for record in group if not _is_timed(record)),
        )
        for (workload, machine), group in groups.items()
    ]
    found = [comparison for comparison in comparisons if comparison.results]
    if comparisons and not found:
        raise ValueError("none of the runs has an epoch that it trained in one piece: there are no times")
    return found


def _is_timed(record: Record) -> bool:
    return any(epoch.timed for epoch in record.epochs)


def hardware(record: Record) -> str:
    """Return the kind of device of a run. Times on different kinds are not compared."""
    kind = record.device.split(":")[0]
    names = record.environment.get("gpus") if kind == "cuda" else [record.environment.get("cpu")]
    if not names:
        return kind
    return f"{kind}: {', '.join(sorted({str(name) for name in names if name})) or 'unknown'}"


def describe(workload: Workload) -> str:
    """Return a workload in one line, without what is unknown."""
    w = workload
    parts = (
        f"{w.model} {w.variant}" if w.variant else w.model,
        f"{w.data}, {w.train_images:,} images" if w.train_images else w.data,
        f"{w.image_size} px" if w.image_size else None,
        f"{w.num_classes} classes" if w.num_classes else None,
        f"batch {w.batch_size:,}" if w.batch_size else None,
        w.precision,
    )
    return " · ".join(part for part in parts if part)


def workers_and_threads(result: Result) -> str:
    """Return "2 workers × 1 thread"."""
    key = result.key
    workers = count(key.workers, "worker")
    return workers if key.threads is None else f"{workers} × {count(key.threads, 'thread')}"


def baseline_of(record: Record, records: Iterable[Record], threads: int | None) -> tuple[Record, ...]:
    """Return the runs among `records` that are the baseline of `record` at `threads` threads; maybe
    none."""
    return tuple(
        r
        for r in records
        if r.baseline
        and _is_timed(r)
        and r.threads == threads
        and r.workload == record.workload
        and hardware(r) == hardware(record)
        and _treatment(r) == _treatment(record)
    )


def epoch_times(records: Iterable[Record]) -> tuple[float, ...]:
    """Return the seconds of every timed epoch of the records."""
    return tuple(e.seconds for r in records for e in r.epochs if e.timed)


def median_of(records: Iterable[Record], name: str) -> float | None:
    """Return the median of a field over all timed epochs. None: not measured."""
    epochs = [e for r in records for e in r.epochs if e.timed]
    values = [getattr(e, name) for e in epochs if getattr(e, name) is not None]
    return summarise(values).median if values else None


def _results(records: Sequence[Record], order: Sequence[str]) -> tuple[Result, ...]:
    pools: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        pools[_key(record)].append(record)
    schemes = _schemes(pools)
    parallel = [key for key in pools if not key.baseline]
    results = []
    for key, pool in pools.items():
        threads, role = _reference(key, parallel)
        baseline = baseline_of(pool[0], records, threads)
        results.append(_result(key, schemes[key], order.index(key.strategy), role, pool, baseline))
    return tuple(sorted(results, key=_order))


def _key(record: Record) -> Key:
    plan = None if record.plan is None else plan_fingerprint(record.plan)
    return Key(
        record.strategy,
        record.label,
        record.workers,
        record.threads,
        _treatment(record),
        plan,
        record.baseline,
    )


def _treatment(record: Record) -> Options:
    trainer = record.config.get("trainer", {})
    return tuple((name, trainer[name]) for name in TREATMENT if name in trainer)


def _result(
    key: Key, scheme: str, place: int, role: Role, pool: Sequence[Record], baseline: Sequence[Record]
) -> Result:
    ratio = None
    if role == "baseline":
        ratio = Speedup(1.0)
    elif baseline:
        ratio = speedup(epoch_times(baseline), epoch_times(pool))
    memory = [e.peak_memory_bytes for r in pool for e in r.epochs if e.peak_memory_bytes is not None]
    return Result(
        key=key,
        scheme=scheme,
        place=place,
        role=role,
        records=tuple(pool),
        epoch_s=summarise(epoch_times(pool)),
        speedup=ratio,
        images_per_second=median_of(pool, "images_per_second"),
        efficiency=None if ratio is None or role == "machine" else ratio.ratio / key.workers,
        top1=_after_last_epoch(pool, "val_top1"),
        top5=_after_last_epoch(pool, "val_top5"),
        bytes_per_epoch=median_of(pool, "bytes_sent"),
        peak_memory_bytes=max(memory, default=None),
    )


def _reference(key: Key, parallel: Sequence[Key]) -> tuple[int | None, Role]:
    """Return the threads of the baseline that a result is compared with, and the result's role."""
    if not key.baseline:
        return key.threads, ""
    others = {other.threads for other in parallel}
    fewer = [t for t in others if t is not None and key.threads is not None and t < key.threads]
    if len(fewer) == 1 and key.threads not in others:
        return fewer[0], "machine"
    return key.threads, "baseline"


def _order(result: Result) -> tuple[Any, ...]:
    key = result.key
    return not key.baseline, key.workers, key.threads or 0, result.place, result.scheme


def _schemes(keys: Iterable[Key]) -> dict[Key, str]:
    """Return the label of each configuration, without its strategy."""
    defaults = dataclasses.asdict(TrainerConfig())
    schemes = {}
    for key in keys:
        words = [key.label.removeprefix(key.strategy).strip()]
        words += [f"{name}={value}" for name, value in key.treatment if value != defaults[name]]
        schemes[key] = " ".join(filter(None, words))
    shown = [(key.label, key.workers, key.threads, scheme) for key, scheme in schemes.items()]
    for (key, scheme), line in zip(list(schemes.items()), shown, strict=True):
        if shown.count(line) > 1 and key.plan and key.plan not in scheme:
            schemes[key] = f"{scheme} plan {key.plan}".strip()
    return schemes


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _after_last_epoch(records: Sequence[Record], name: str) -> float | None:
    """Return the mean over the records of a field of their last epochs. None: not measured."""
    last = [r.epochs[-1] for r in records]
    values = [getattr(e, name) for e in last if getattr(e, name) is not None]
    return _mean(values) if values else None
