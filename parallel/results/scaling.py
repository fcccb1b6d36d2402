"""Strong and weak scaling, and the effect of the batch, from the comparisons of a workload.

strong scaling  the global batch is fixed. Baseline: one worker with this batch        `strong_scaling`
weak scaling    the batch of a worker is fixed, so the global batch grows with the      `weak_scaling`
                workers. Baseline: one worker with its own batch
speedup         images per second ÷ those of the baseline (medians over epochs). With equal batches
                this is the ratio of epoch times
efficiency      speedup ÷ workers

Comparisons hold one global batch each. Those that differ in nothing else are scaled together.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from parallel.results.baselines import Baselines
from parallel.results.comparison import Comparison
from parallel.results.predicted_means import predicted_epoch_s, predicted_rate
from parallel.results.records import Record, Workload
from parallel.results.result import Result
from parallel.results.runs import epoch_times, in_rounds
from parallel.results.statistics import Speedup, speedup_of_rounds, speedup_of_runs

Kind = Literal["strong", "weak"]


@dataclass(frozen=True)
class Point:
    """A result within a scaling: measured and predicted."""

    result: Result
    """Its speedup and efficiency are those of the scaling."""
    batch_size: int
    """Global."""
    predicted_speedup: float | None
    """None: a run of the result or of the baseline has no prediction."""

    @property
    def workers(self) -> int:
        """Number of workers."""
        return self.result.key.workers

    @property
    def speedup(self) -> Speedup | None:
        """Speedup of the scaling. None: there is no baseline."""
        return self.result.speedup

    @property
    def efficiency(self) -> float | None:
        """Speedup ÷ workers."""
        return self.result.efficiency

    @property
    def predicted_efficiency(self) -> float | None:
        """Predicted speedup ÷ workers."""
        return None if self.predicted_speedup is None else self.predicted_speedup / self.workers

    @property
    def predicted_s(self) -> float | None:
        """Predicted seconds of an epoch: the mean over the runs. None: a run has no prediction."""
        return predicted_epoch_s(self.result.records)

    @property
    def error(self) -> float | None:
        """Measured median epoch ÷ predicted one."""
        return None if self.predicted_s is None else self.result.epoch_s.median / self.predicted_s


@dataclass(frozen=True)
class Line:
    """The points of one strategy with its options, by workers or by batch."""

    name: str
    place: int
    """Place of the strategy, which chooses the colour."""
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Scaling:
    """The results of one workload that are scaled together."""

    kind: Kind
    workload: Workload
    """Without its batch."""
    hardware: str
    batch: int
    """Global batch for strong scaling, batch of each worker for weak scaling."""
    baseline: Point | None
    """The baseline with the fewest threads. None: it was not run."""
    points: tuple[Point, ...]
    """All points, baselines first, then by strategy and workers."""

    @property
    def lines(self) -> tuple[Line, ...]:
        """The points of each strategy by workers; one that was not run on one worker starts at the
        baseline."""
        parallel = [point for point in self.points if not point.result.key.baseline]
        lines = []
        for line in lines_of(parallel):
            first, points = line.points[0], line.points
            if first.workers > 1 and self.baseline and self.baseline.result.key.threads == _threads(first):
                points = (self.baseline, *points)
            lines.append(dataclasses.replace(line, points=points))
        return tuple(lines)


@dataclass(frozen=True)
class BatchScaling:
    """Results of one workload and number of workers with several global batches. Speedups are over one
    worker with the same batch."""

    workload: Workload
    """Without its batch."""
    hardware: str
    workers: int
    points: tuple[Point, ...]
    """By strategy, then batch."""

    @property
    def lines(self) -> tuple[Line, ...]:
        """The points of each strategy by batch."""
        return lines_of(self.points)


def without_batch(workload: Workload) -> Workload:
    """Return the workload with an unknown global batch."""
    return dataclasses.replace(workload, batch_size=None)


def strong_scaling(comparisons: Iterable[Comparison]) -> list[Scaling]:
    """Return a scaling for each comparison in which a strategy ran on several numbers of workers,
    by batch."""
    found = []
    for comparison in sorted(comparisons, key=lambda comparison: comparison.workload.batch_size or 0):
        points = [_own_point(comparison, result) for result in comparison.results if _scales(result)]
        scaling = _scaling("strong", comparison, comparison.workload.batch_size or 0, points)
        if any(len({point.workers for point in line.points}) > 1 for line in _measured(scaling)):
            found.append(scaling)
    return found


def weak_scaling(comparisons: Iterable[Comparison]) -> list[Scaling]:
    """Return a scaling for each workload and batch of a worker with which several numbers of workers
    ran, by batch."""
    found = []
    for group in _groups(comparisons):
        pools: dict[int, list[tuple[int, Result]]] = defaultdict(list)
        for comparison in group:
            batch = comparison.workload.batch_size
            for result in comparison.results:
                if batch is not None and batch % result.key.workers == 0 and _scales(result):
                    pools[batch // result.key.workers].append((batch, result))
        for own, pool in sorted(pools.items()):
            if len({result.key.workers for _, result in pool}) > 1:  # before intervals, which take time
                points = [_weak_point(result, batch, _baseline(group, own, result)) for batch, result in pool]
                found.append(_scaling("weak", group[0], own, points))
    return found


def batch_scaling(comparisons: Iterable[Comparison]) -> list[BatchScaling]:
    """Return the results of each workload and number of workers with which a strategy ran with several
    global batches."""
    found = []
    for group in _groups(comparisons):
        pools: dict[int, list[Point]] = defaultdict(list)
        for comparison in group:
            for result in comparison.results:
                if comparison.workload.batch_size is not None and _scales(result):
                    pools[result.key.workers].append(_own_point(comparison, result))
        for workers, points in sorted(pools.items()):
            points.sort(key=_by_strategy)
            if any(len({p.batch_size for p in line.points}) > 1 for line in lines_of(points)):
                workload = without_batch(group[0].workload)
                found.append(BatchScaling(workload, group[0].hardware, workers, tuple(points)))
    return found


def lines_of(points: Iterable[Point]) -> tuple[Line, ...]:
    """Return the points of each strategy with its options, threads and network, in the order of their
    first points."""
    pools: dict[tuple[str, int | None, str | None], list[Point]] = defaultdict(list)
    for point in points:
        key = point.result.key
        pools[point.result.label, key.threads, key.network].append(point)
    several = len({threads for _, threads, _ in pools}) > 1
    return tuple(
        Line(
            " ".join(
                [label, *([f"{threads} threads"] if several else []), *([f"at {network}"] if network else [])]
            ),
            pool[0].result.place,
            tuple(sorted(pool, key=lambda point: (point.workers, point.batch_size))),
        )
        for (label, threads, network), pool in pools.items()
    )


def _scales(result: Result) -> bool:
    """Return whether a result is a point: it has a worker for each device, and as many threads as others."""
    return result.role != "machine" and not result.shares_gpu


def _groups(comparisons: Iterable[Comparison]) -> list[list[Comparison]]:
    """Return the comparisons that differ only in the global batch."""
    groups: dict[tuple[Workload, str], list[Comparison]] = defaultdict(list)
    for comparison in comparisons:
        groups[without_batch(comparison.workload), comparison.hardware].append(comparison)
    return list(groups.values())


def _scaling(kind: Kind, of: Comparison, batch: int, points: Sequence[Point]) -> Scaling:
    baselines = [point for point in points if point.result.role == "baseline"]
    return Scaling(
        kind,
        without_batch(of.workload),
        of.hardware,
        batch,
        min(baselines, key=lambda point: _threads(point) or 0, default=None),
        tuple(sorted(points, key=_by_strategy)),
    )


def _measured(scaling: Scaling) -> tuple[Line, ...]:
    return lines_of(point for point in scaling.points if not point.result.key.baseline)


def _by_strategy(point: Point) -> tuple[bool, int, str, int, int]:
    result = point.result
    return not result.key.baseline, result.place, result.label, point.workers, point.batch_size


def _threads(point: Point) -> int | None:
    return point.result.key.threads


def _own_point(comparison: Comparison, result: Result) -> Point:
    """Return the point of a result that is compared with the baseline of its own comparison."""
    ratio = _ratio(predicted_rate(result.records), predicted_rate(result.baseline))
    return Point(result, comparison.workload.batch_size or 0, ratio)


def _weak_point(result: Result, batch: int, baseline: Sequence[Record]) -> Point:
    """Return the point of a result that is compared with runs with another global batch."""
    ratio = None
    if result.role == "baseline":
        ratio = Speedup(1.0)
    elif baseline:
        ratio = image_speedup(baseline, result.records)
    efficiency = None if ratio is None else ratio.ratio / result.key.workers
    result = dataclasses.replace(result, speedup=ratio, efficiency=efficiency)
    return Point(result, batch, _ratio(predicted_rate(result.records), predicted_rate(baseline)))


def _baseline(comparisons: Iterable[Comparison], batch: int, result: Result) -> tuple[Record, ...]:
    """Return the runs of one worker with this batch that are the baseline of `result`; maybe none."""
    alone = [
        record
        for comparison in comparisons
        for other in comparison.results
        if comparison.workload.batch_size == batch and other.key.baseline
        for record in other.records
    ]
    return Baselines(alone).of(result.key.settings, result.key.threads)


def image_speedup(baseline: Sequence[Record], records: Sequence[Record]) -> Speedup:
    """Return the ratio of images per second to those of the baseline, with the interval that
    `Runs.speedup_over` gives for epoch times."""
    rounds = in_rounds(baseline, records)
    if rounds is None:
        return speedup_of_runs([image_times([r]) for r in baseline], [image_times([r]) for r in records])
    base, ours = zip(*rounds, strict=True)
    return speedup_of_rounds([image_times([r]) for r in base], [image_times([r]) for r in ours])


def image_times(records: Sequence[Record]) -> tuple[float, ...]:
    """Return the seconds per image of every timed epoch.

    A batch that does not divide the images drops some of them, so that epochs with different batches
    train different numbers of images.
    """
    rates = [epoch.images_per_second for record in records for epoch in record.epochs if epoch.timed]
    if all(rate is not None for rate in rates):
        return tuple(1 / rate for rate in rates if rate is not None)
    images = records[0].workload.train_images or 1
    return tuple(seconds / images for seconds in epoch_times(records))


def _ratio(rate: float | None, baseline: float | None) -> float | None:
    return None if rate is None or not baseline else rate / baseline
