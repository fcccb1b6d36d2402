"""Summaries and speedups of epoch times in seconds, as tables and plots show them.

    summary     minimum, first quartile, median, mean, third quartile, maximum      `summarise`
                (quartiles of type 7 of Hyndman and Fan 1996, as in R and NumPy)
    speedup     median epoch of the baseline ÷ median epoch of the strategy         `speedup`
    within run  95 % percentile bootstrap of that ratio (Efron and Tibshirani       `speedup`
                1993, ch. 13); the epochs of both sides are resampled independently
    across runs the ratio × exp(± t · s), with the variance of its logarithm        `speedup_of_runs`
                s² = Σ over both sides of max(b, w) ÷ runs
                b    sample variance of the logarithms of the runs' medians
                w    mean over the runs of the bootstrap variance of such a logarithm,
                     epochs being resampled within their run
                and t the quantile of Student's distribution at the degrees of
                freedom of Welch (1947), which few runs need
    over rounds exp(d̄ ± t · s), with d the logarithm of the ratio of the medians    `speedup_of_rounds`
                of the two runs of a round, d̄ its mean, the variance
                s² = max(variance of d, Σ over both sides of w) ÷ rounds
                and t at rounds - 1 degrees of freedom. The speedup is exp(d̄)
    efficiency  speedup ÷ workers

The levels of the hierarchical bootstrap (Davison and Hinkley 1997, section 3.8) are runs, then epochs
within runs. Resampling the two or three runs themselves gives intervals that are far too narrow, so `b`
takes the place of the first level.

Rounds are the blocks of a randomised complete block design (Montgomery, Design and Analysis of
Experiments, ch. 4): what a slow hour adds to both runs of a round is not in d. The residual variance of
the whole table, strategies × rounds, would have more degrees of freedom, but it is that of no pair: with
messages a strategy varies more than without, and two noisy rows among quiet ones would differ from each
other by chance in up to 18 % of comparisons (`scripts/simulate_rounds.py`).

The bootstrap needs the medians of samples that are drawn with replacement. The k-th smallest of n draws
from sorted values x is x[⌊n·U⌋], with U the k-th smallest of n uniform numbers, which has the
distribution Beta(k, n - k + 1): so a median costs one or two random numbers.                `_drawn`
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from parallel.config import require

RESAMPLES = 10_000
"""With this many, the ends of a 95 % interval differ between seeds by less than a hundredth of its
width."""
VARIANCE_RESAMPLES = 2_000
"""With this many, a variance is known to 3 %."""
FEWEST_EPOCHS = 10
"""Epochs of a side from which an interval within a run is given. With fewer it is far too narrow."""


@dataclass(frozen=True)
class Summary:
    """Five-number summary and mean, in the unit of the values."""

    minimum: float
    first_quartile: float
    median: float
    mean: float
    third_quartile: float
    maximum: float

    def as_tuple(self) -> tuple[float, float, float, float, float, float]:
        """Return minimum, first quartile, median, mean, third quartile, maximum, in this order."""
        return self.minimum, self.first_quartile, self.median, self.mean, self.third_quartile, self.maximum


Variation = Literal["rounds", "runs", "within-run"]
"""What an interval covers: the variation of differences within rounds, between runs, or between the
epochs of a run only."""


@dataclass(frozen=True)
class Speedup:
    """Ratio of medians and its interval. The interval is None where too little is known of the
    spread."""

    ratio: float
    low: float | None = None
    high: float | None = None
    covers: Variation | None = None
    """What the interval covers. None: there is none."""

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.ratio:.2f}×"
        return f"{self.ratio:.2f}× [{self.low:.2f}, {self.high:.2f}]"


def summarise(values: Sequence[float]) -> Summary:
    """Summarise one or more finite values."""
    x = _checked("values", values)
    minimum, q1, median, q3, maximum = np.quantile(x, (0, 0.25, 0.5, 0.75, 1), method="linear").tolist()
    return Summary(minimum, q1, median, float(x.mean()), q3, maximum)


def speedup(
    baseline_s: Sequence[float],
    strategy_s: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Speedup:
    """Return the ratio of the baseline's median epoch time to the strategy's, with its bootstrap
    interval.

    The interval covers the variation between epochs only. There is none if a side has a single epoch.
    """
    require(0 < confidence < 1, "confidence", confidence, "must lie between 0 and 1")
    base, ours = _positive("baseline_s", baseline_s), _positive("strategy_s", strategy_s)
    ratio = float(np.median(base) / np.median(ours))
    if base.size < 2 or ours.size < 2:
        return Speedup(ratio)
    ratios = _medians(base, resamples, 2 * seed) / _medians(ours, resamples, 2 * seed + 1)
    low, high = np.quantile(ratios, (0.5 - confidence / 2, 0.5 + confidence / 2)).tolist()
    return Speedup(ratio, low, high, "within-run")


def speedup_of_runs(
    baseline_s: Sequence[Sequence[float]], strategy_s: Sequence[Sequence[float]], *, confidence: float = 0.95
) -> Speedup:
    """Return the ratio of the baseline's median epoch time to the strategy's, from the epoch times of
    each run.

    The interval covers the variation between runs if both sides have several. Otherwise it is that of
    `speedup`, or None if a side has fewer than `FEWEST_EPOCHS` epochs.
    """
    pooled = [[time for run in side for time in run] for side in (baseline_s, strategy_s)]
    if min(len(baseline_s), len(strategy_s)) < 2:
        if min(map(len, pooled)) >= FEWEST_EPOCHS:
            return speedup(*pooled, confidence=confidence)
        base, ours = _positive("baseline_s", pooled[0]), _positive("strategy_s", pooled[1])
        return Speedup(float(np.median(base) / np.median(ours)))
    ratio = float(np.median(pooled[0]) / np.median(pooled[1]))
    variances = [_variance(tuple(map(tuple, side))) for side in (baseline_s, strategy_s)]
    sizes = [len(baseline_s), len(strategy_s)]
    total = sum(variances)
    if total == 0:
        return Speedup(ratio, ratio, ratio, "runs")
    freedom = total**2 / sum(v**2 / (runs - 1) for v, runs in zip(variances, sizes, strict=True))
    return _student(ratio, total, freedom, confidence, "runs")


def speedup_of_rounds(
    baseline_s: Sequence[Sequence[float]], strategy_s: Sequence[Sequence[float]], *, confidence: float = 0.95
) -> Speedup:
    """Return the geometric mean, over the rounds, of the ratio of the baseline's median epoch time to
    the strategy's, with its interval.

    Run i of both sides belongs to round i. Raises `ValueError` for less than two rounds.
    """
    rounds = len(baseline_s)
    require(rounds == len(strategy_s), "strategy_s", len(strategy_s), f"must have {rounds} runs: one a round")
    require(rounds >= 2, "baseline_s", rounds, "must have at least two runs: one a round")
    sides = [tuple(map(tuple, side)) for side in (baseline_s, strategy_s)]
    base, ours = (np.log([np.median(run) for run in _runs(side)]) for side in sides)
    differences = base - ours
    variance = max(float(np.var(differences, ddof=1)), sum(map(_within, sides))) / rounds
    return _student(math.exp(differences.mean()), variance, rounds - 1, confidence, "rounds")


MOST_LOG = 100.0
"""Half-widths of two wild runs may be beyond what a float holds."""


def _student(ratio: float, variance: float, freedom: float, confidence: float, covers: Variation) -> Speedup:
    """Return a ratio with the t-interval of its logarithm, of which `variance` is that of the mean."""
    # Imported here: most importers of this module compute no interval.
    from scipy.special import stdtrit

    half_width = float(stdtrit(freedom, 0.5 + confidence / 2)) * math.sqrt(variance)
    spread = math.exp(min(half_width, MOST_LOG))
    return Speedup(ratio, ratio / spread, ratio * spread, covers)


Side = tuple[tuple[float, ...], ...]
"""Epoch times of each run of a side."""


@lru_cache(maxsize=256)
def _variance(side: Side) -> float:
    """Return the variance of the mean of the logarithms of the runs' medians."""
    between = float(np.var([math.log(np.median(run)) for run in _runs(side)], ddof=1))
    return max(between, _within(side)) / len(side)


def _within(side: Side) -> float:
    """Return the variance of the logarithm of a run's median, from its epochs: the mean over the runs."""
    return sum(map(_within_run, side)) / len(side)


@lru_cache(maxsize=1024)
def _within_run(run: tuple[float, ...]) -> float:
    return float(np.var(np.log(_medians(_positive("epoch times", run), VARIANCE_RESAMPLES, 0))))


def _runs(side: Side) -> list[np.ndarray]:
    return [_positive("epoch times", run) for run in side]


def _medians(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return the medians of samples of the values, drawn with replacement, as large as they are."""
    x = np.sort(values)
    low, high = _drawn(x.size, resamples, seed)
    return 0.5 * (x[low] + x[high])


@lru_cache(maxsize=64)
def _drawn(size: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places, among `size` sorted values, of the one or two in the middle of each sample."""
    rng = np.random.default_rng(seed)
    middle = (size + 1) // 2
    lower = rng.beta(middle, size - middle + 1, resamples)
    upper = lower
    if size % 2 == 0:  # the smallest of the size / 2 uniform numbers above `lower`
        upper = lower + (1 - lower) * (1 - rng.random(resamples) ** (1 / middle))
    low, high = ((size * uniform).astype(np.int64).clip(max=size - 1) for uniform in (lower, upper))
    return low, high


def _positive(name: str, values: Sequence[float]) -> np.ndarray:
    x = _checked(name, values)
    require(bool(x.min() > 0), name, values, "must all be positive")
    return x


def _checked(name: str, values: Sequence[float]) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    require(x.ndim == 1 and x.size >= 1, name, values, "must be a list of at least one number")
    require(bool(np.isfinite(x).all()), name, values, "must all be finite")
    return x
