"""Which strategy wins where: the fastest by link rate and global batch, from the comparisons of a sweep.

winner    the result with the smallest median epoch time in a cell, of those that trained (all if none did)
by        the winner's speedup over the runner-up, with the interval of `Runs.speedup_over`
tie       the interval contains 1: another run may have another winner
border    between two batches of one rate with different predicted winners, where their times are equal:
          the logarithm of their ratio is interpolated linearly over that of the batch        `border`

A `Crossover` is the map of one image size: everything else is equal in its cells.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from parallel.config.quantities import parse_rate
from parallel.results.baselines import hardware
from parallel.results.comparison import Comparison
from parallel.results.predicted_means import predicted_epoch_s
from parallel.results.records import Record, Workload
from parallel.results.result import Result, trained
from parallel.results.runs import Runs
from parallel.results.statistics import Speedup

NOT_LIMITED = math.inf
"""Rate of links that are not limited, and of workers on one host."""


@dataclass(frozen=True)
class Cell:
    """The strategies at one link rate and global batch, the fastest first."""

    rate: float
    """Bits per second of a host's link."""
    batch: int
    results: tuple[Result, ...]

    @cached_property
    def rivals(self) -> tuple[Result, ...]:
        """The results that trained, or all if none did, the fastest first."""
        return tuple(trained(self.results))

    @property
    def winner(self) -> Result:
        """The fastest result that trained."""
        return self.rivals[0]

    @property
    def runner_up(self) -> Result:
        """The second of them."""
        return self.rivals[1]

    @cached_property
    def by(self) -> Speedup:
        """The runner-up's time ÷ the winner's."""
        return Runs(self.winner.records).speedup_over(Runs(self.runner_up.records))

    @property
    def tie(self) -> bool:
        """Whether the interval contains 1."""
        return self.by.low is not None and self.by.low <= 1

    @cached_property
    def predicted(self) -> Result | None:
        """The result whose runs predicted the smallest time. None: some run has no prediction."""
        times = [(predicted_epoch_s(result.records), result) for result in self.results]
        known = [(seconds, result) for seconds, result in times if seconds is not None]
        return min(known, key=lambda found: found[0])[1] if len(known) == len(times) else None


@dataclass(frozen=True)
class Crossover:
    """The cells of one workload, whose batch varies, by link rate."""

    workload: Workload
    """Without its batch and the number of images, which may follow the batch."""
    hardware: str
    """Without the rate of the links."""
    workers: int
    cells: tuple[Cell, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """Link rates, the slowest first."""
        return tuple(sorted({cell.rate for cell in self.cells}))

    @property
    def batches(self) -> tuple[int, ...]:
        """Global batches, the smallest first."""
        return tuple(sorted({cell.batch for cell in self.cells}))

    def cell(self, rate: float, batch: int) -> Cell | None:
        """Return the cell at a rate and a batch. None: nothing to compare ran there."""
        return next((c for c in self.cells if (c.rate, c.batch) == (rate, batch)), None)

    @property
    def labels(self) -> dict[str, Result]:
        """One result of each strategy with its options, by label, in the order of their places."""
        results = {result.label: result for cell in self.cells for result in cell.results}
        return dict(sorted(results.items(), key=lambda item: (item[1].place, item[0])))


@dataclass(frozen=True)
class PredictedCell:
    """Predicted seconds of a step at one link rate and global batch, by label."""

    rate: float
    batch: int
    step_s: Mapping[str, float]

    @property
    def winner(self) -> str:
        """Label with the smallest time."""
        return min(self.step_s, key=self.step_s.__getitem__)


@dataclass(frozen=True)
class PredictedMap:
    """Predictions on a grid that may be finer than that of the measured cells."""

    cluster: str
    """Name of the cluster whose links' rate was replaced."""
    cells: tuple[PredictedCell, ...]

    def row(self, rate: float) -> tuple[PredictedCell, ...]:
        """Return the cells of a rate, the smallest batch first."""
        return tuple(sorted((c for c in self.cells if c.rate == rate), key=lambda c: c.batch))

    def borders(self, rate: float) -> list[tuple[float, str, str]]:
        """Return the batches at which the predicted winner of a rate changes, each with the winners below
        and above."""
        row = self.row(rate)
        return [
            (border(low, high), low.winner, high.winner)
            for low, high in zip(row, row[1:], strict=False)
            if low.winner != high.winner
        ]


def border(low: PredictedCell, high: PredictedCell) -> float:
    """Return the batch at which the winners of two cells of one rate are equally fast."""

    def lead(cell: PredictedCell) -> float:
        return math.log(cell.step_s[high.winner] / cell.step_s[low.winner])

    before, after = lead(low), -lead(high)
    share = before / (before + after) if before + after > 0 else 0.5
    return math.exp(math.log(low.batch) + share * math.log(high.batch / low.batch))


def crossovers(comparisons: Iterable[Comparison]) -> list[Crossover]:
    """Return the maps with at least two cells in which two strategies besides the baseline ran, by image
    size and workers.

    The number of images may follow the batch. If one cell has two numbers of images, each has a map.
    """
    pools: dict[_Place, list[_Contest]] = defaultdict(list)
    for comparison in comparisons:
        for results in _contests([result for result in comparison.results if not result.shares_gpu]):
            contest = _Contest(comparison.workload, results)
            if comparison.workload.batch_size is not None:
                pools[contest.place].append(contest)
    found = []
    for place, contests in pools.items():
        groups: dict[int | None, list[_Contest]] = defaultdict(list)
        several = len({contest.cell for contest in contests}) < len(contests)
        for contest in contests:
            groups[contest.workload.train_images if several else None].append(contest)
        for images, group in groups.items():
            cells = sorted(
                (Cell(*contest.cell, _fastest_first(contest.results)) for contest in group),
                key=lambda cell: (cell.rate, cell.batch),
            )
            if len(cells) > 1:
                workload = dataclasses.replace(place.workload, train_images=images)
                found.append(Crossover(workload, place.hardware, place.workers, tuple(cells)))
    return sorted(found, key=lambda c: (c.workload.image_size or 0, c.workers))


@dataclass(frozen=True)
class _Place:
    """Everything that is equal in the cells of a map."""

    workload: Workload
    hardware: str
    workers: int
    threads: int | None


@dataclass(frozen=True)
class _Contest:
    """Results that are compared in one cell: a baseline, if there is one, then those of equal workers."""

    workload: Workload
    results: Sequence[Result]

    @property
    def place(self) -> _Place:
        key, record = self.results[-1].key, self.results[-1].records[0]
        workload = dataclasses.replace(self.workload, batch_size=None, train_images=None)
        return _Place(workload, _without_rate(record), key.workers, key.threads)

    @property
    def cell(self) -> tuple[float, int]:
        return link_rate(self.results[-1].records[0]), self.workload.batch_size or 0


def _contests(results: Sequence[Result]) -> list[list[Result]]:
    """Return the results of each number of workers and threads in which two strategies ran, after the
    baseline with these threads; of all of them, two must have trained."""
    pools: dict[tuple[int, int | None], list[Result]] = defaultdict(list)
    for result in results:
        if not result.key.baseline:
            pools[result.key.workers, result.key.threads].append(result)
    baselines = [result for result in results if result.key.baseline]
    contests = [
        [*(one for one in baselines if one.key.threads == threads), *pool]
        for (workers, threads), pool in pools.items()
        if workers > 1 and len({result.label for result in pool}) > 1
    ]
    return [contest for contest in contests if len(trained(contest)) > 1]


def _fastest_first(results: Sequence[Result]) -> tuple[Result, ...]:
    return tuple(sorted(results, key=lambda result: result.epoch_s.median))


def link_rate(record: Record) -> float:
    """Return the rate of the emulated links of a run in bits per second. Unequal ones count as the
    slowest."""
    emulated: Mapping[str, Any] = record.environment.get("emulated") or {}
    rate = emulated.get("rate")
    rates = rate if isinstance(rate, list) else [rate]
    return min(NOT_LIMITED if one is None else parse_rate("emulated.rate", str(one)) for one in rates)


def _without_rate(record: Record) -> str:
    """Return the hardware of a run, with its emulated hosts, and without the rate of their links."""
    emulated = record.environment.get("emulated")
    if emulated is None:
        return hardware(record)
    environment = {**record.environment, "emulated": {**emulated, "rate": None}}
    return hardware(dataclasses.replace(record, environment=environment))
