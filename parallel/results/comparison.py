"""Which records may be compared, and the row of numbers that each group of them gives.

A comparison holds the records of one workload on one kind of hardware. Records that ran the same thing (strategy,
scheme, workers, threads, plan and options) are pooled into one row. The baseline of a row is `single` on one worker
with the row's threads per worker and the same treatment (compile, memory format). `single` with more threads than the
workers have is what a user of one machine would run instead: it is shown, marked, and held against the same baseline.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from parallel.config import STRATEGIES, StrategyConfig, TrainerConfig
from parallel.results.record_files import find_records
from parallel.results.records import Epoch, Record, Workload
from parallel.results.statistics import Speedup, Summary, speedup, summarise

BASELINE = "single"
TREATMENT = ("channels_last", "compile")
"""Fields of `trainer` that make a step faster and are not part of the workload: equal within a row and its baseline."""
OPTIONS = tuple(f.name for f in dataclasses.fields(StrategyConfig) if f.name not in ("name", "scheme", "path"))
SPLIT = ("compute_s", "communication_s", "data_wait_s", "idle_s")

Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Key:
    """What one row stands for."""

    strategy: str
    scheme: str | None
    workers: int
    threads: int | None
    treatment: Options
    options: Options
    plan: str | None
    """Short hash of the plan's text."""

    @staticmethod
    def of(record: Record) -> Key:
        """The row that `record` belongs to."""
        treatment = _options(record.config.get("trainer", {}), TREATMENT)
        options = _options(record.config.get("strategy", {}), OPTIONS)
        plan = None if record.plan is None else hashlib.sha256(record.plan.encode()).hexdigest()[:7]
        return Key(record.strategy, record.scheme, record.workers, record.threads, treatment, options, plan)


@dataclass(frozen=True)
class Row:
    """One line of the table: the pooled records of one key."""

    key: Key
    scheme: str
    """The scheme with what else tells this row from others, as Hydra overrides; "" if there is nothing to tell."""
    role: Literal["", "baseline", "machine"]
    """machine: `single` with more threads than the workers of the others have."""
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
        """Strategy and scheme in one."""
        return f"{self.key.strategy} {self.scheme}".strip()

    @property
    def epoch_times(self) -> tuple[float, ...]:
        """Seconds of every pooled epoch."""
        return _times(self.records)

    def split(self) -> dict[str, float] | None:
        """Mean seconds of an epoch by `SPLIT`, and as `other` what the four leave over; None if not measured."""
        epochs = [e for r in self.records for e in r.epochs if all(getattr(e, part) is not None for part in SPLIT)]
        if not epochs:
            return None
        parts = {part: _mean([getattr(e, part) for e in epochs]) for part in SPLIT}
        return {**parts, "other": max(0.0, _mean([e.seconds for e in epochs]) - sum(parts.values()))}

    def curve(self, name: str) -> list[tuple[int, float]]:
        """A field of `Epoch` by epoch, averaged over the records that got so far."""
        points: dict[int, list[float]] = defaultdict(list)
        for epoch in (e for r in self.records for e in r.epochs):
            value = getattr(epoch, name)
            if value is not None and math.isfinite(value):
                points[epoch.epoch].append(value)
        return [(number, _mean(values)) for number, values in sorted(points.items())]


@dataclass(frozen=True)
class Comparison:
    """The rows of one workload on one kind of hardware, the baseline first."""

    workload: Workload
    hardware: str
    rows: tuple[Row, ...]


def compare(records: Iterable[Record]) -> list[Comparison]:
    """Group records by what may be compared; a `Comparison` for each, in the order of their first records."""
    groups: dict[tuple[Workload, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.workload, hardware(record)].append(record)
    return [_compare_group(workload, machine, group) for (workload, machine), group in groups.items()]


def hardware(record: Record) -> str:
    """The kind of device that did the work: times on different kinds are not compared."""
    kind = record.device.split(":")[0]
    names = record.environment.get("gpus") if kind == "cuda" else [record.environment.get("cpu")]
    return f"{kind}: {', '.join(sorted({str(name) for name in names if name})) or 'unknown'}" if names else kind


def describe(workload: Workload) -> str:
    """A workload in one line; what is unknown is left out."""
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


def find_baseline(record: Record, records: Iterable[Record]) -> tuple[Record, ...]:
    """The records of the baseline of `record` among `records`; empty if there is none."""
    threads = record.threads
    key = Key.of(record)
    return tuple(r for r in records if _is_single(r) and r.threads == threads and r.workload == record.workload
                 and hardware(r) == hardware(record) and Key.of(r).treatment == key.treatment)


def speedup_in_sweep(record: Record, sweep_dir: Path) -> Speedup | None:
    """The speedup of `record` over the baseline among the finished runs in `sweep_dir`; None if none is there yet.

    Raises `ValueError` if a record in the folder cannot be read.
    """
    if _is_single(record):
        return Speedup(1.0)
    baseline = find_baseline(record, find_records([sweep_dir]))
    return speedup(_times(baseline), _times([record])) if baseline else None


def run_summary(record: Record, sweep_dir: Path | None) -> dict[str, float | str]:
    """What a tracker shows of a finished run, by name: `epoch_seconds/median`, `speedup`, and so on.

    Where there is no speedup, `speedup_note` says why: a finished run does not fail over what lies beside it.
    """
    times = summarise([e.seconds for e in record.epochs])
    names = ("min", "q1", "median", "mean", "q3", "max")
    summary: dict[str, float | str] = {f"epoch_seconds/{n}": v for n, v in zip(names, times.as_tuple(), strict=True)}
    rate = _median_of([record], "images_per_second")
    if rate is not None:
        summary["images_per_second"] = rate
    if sweep_dir is None:
        return summary | {"speedup_note": "the run belongs to no sweep"}
    try:
        ratio = speedup_in_sweep(record, sweep_dir)
    except ValueError as error:
        return summary | {"speedup_note": str(error)}
    if ratio is None:
        return summary | {"speedup_note": "no baseline with the same workload, hardware and threads had finished"}
    summary |= {"speedup": ratio.ratio, "efficiency": ratio.ratio / record.workers}
    if ratio.low is not None and ratio.high is not None:
        summary |= {"speedup_low": ratio.low, "speedup_high": ratio.high}
    return summary


def _compare_group(workload: Workload, machine: str, records: list[Record]) -> Comparison:
    pools: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        pools[Key.of(record)].append(record)
    labels = _schemes(pools)
    spread = [key for key in pools if key.strategy != BASELINE]
    rows = []
    for key, pool in pools.items():
        threads, role = _reference(key, spread)
        baseline = find_baseline(dataclasses.replace(pool[0], threads=threads), records)
        rows.append(_row(key, labels[key], role, pool, baseline))
    return Comparison(workload, machine, tuple(sorted(rows, key=_order)))


def _row(key: Key, scheme: str, role: Literal["", "baseline", "machine"], pool: Sequence[Record],
         baseline: Sequence[Record]) -> Row:
    ratio = None
    if role == "baseline":
        ratio = Speedup(1.0)
    elif baseline:
        ratio = speedup(_times(baseline), _times(pool))
    memory = [e.peak_memory_bytes for r in pool for e in r.epochs if e.peak_memory_bytes is not None]
    return Row(
        key=key, scheme=scheme, role=role, records=tuple(pool), epoch_s=summarise(_times(pool)), speedup=ratio,
        images_per_second=_median_of(pool, "images_per_second"),
        efficiency=None if ratio is None or role == "machine" else ratio.ratio / key.workers,
        top1=_last(pool, "val_top1"), top5=_last(pool, "val_top5"),
        bytes_per_epoch=_median_of(pool, "bytes_sent"), peak_memory_bytes=max(memory, default=None),
    )


def _reference(key: Key, spread: Sequence[Key]) -> tuple[int | None, Literal["", "baseline", "machine"]]:
    """The threads of the baseline that the row is held against, and the row's role."""
    if key.strategy != BASELINE or key.workers != 1:
        return key.threads, ""
    each = {other.threads for other in spread}
    fewer = [t for t in each if t is not None and key.threads is not None and t < key.threads]
    if len(fewer) == 1 and key.threads not in each:
        return fewer[0], "machine"
    return key.threads, "baseline"


def _order(row: Row) -> tuple[Any, ...]:
    key = row.key
    place = STRATEGIES.index(key.strategy) if key.strategy in STRATEGIES else len(STRATEGIES)
    return key.strategy != BASELINE, key.workers, key.threads or 0, place, key.strategy, row.scheme


def _schemes(keys: Iterable[Key]) -> dict[Key, str]:
    """What to call each key besides its strategy: its scheme, options that are not the default, its plan if need be."""
    defaults = dataclasses.asdict(StrategyConfig()) | dataclasses.asdict(TrainerConfig())
    labels = {}
    for key in keys:
        words = [key.scheme] if key.scheme else []
        words += [f"{name}={value}" for name, value in key.options + key.treatment if value != defaults[name]]
        if key.strategy == "from_file" and key.plan:
            words.append(f"plan {key.plan}")
        labels[key] = " ".join(words)
    shown = [(k.strategy, k.workers, k.threads, labels[k]) for k in labels]
    return {k: f"{labels[k]} plan {k.plan}".strip() if k.plan and k.strategy != "from_file" and shown.count(s) > 1
            else labels[k] for k, s in zip(labels, shown, strict=True)}


def _is_single(record: Record) -> bool:
    return record.strategy == BASELINE and record.workers == 1


def _options(values: dict[str, Any], names: Sequence[str]) -> Options:
    return tuple((name, values[name]) for name in names if name in values)


def _times(records: Iterable[Record]) -> tuple[float, ...]:
    return tuple(e.seconds for r in records for e in r.epochs)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _median_of(records: Iterable[Record], name: str) -> float | None:
    values = [getattr(e, name) for r in records for e in r.epochs if getattr(e, name) is not None]
    return summarise(values).median if values else None


def _last(records: Sequence[Record], name: str) -> float | None:
    """Mean over the records of the value after the last epoch."""
    last: list[Epoch] = [r.epochs[-1] for r in records]
    values = [getattr(e, name) for e in last if getattr(e, name) is not None]
    return _mean(values) if values else None
