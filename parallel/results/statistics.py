"""The numbers that tables and plots show, from epoch times in seconds.

    summary      minimum, first quartile, median, mean, third quartile, maximum, in the order the field prints them;
                 quartiles as R does by default: type 7 of Hyndman and Fan 1996, NumPy's `linear`      `summarise`
    speedup      median of the baseline's epoch times ÷ median of the strategy's                       `speedup`
    interval     95 %, percentile bootstrap of that ratio (Efron and Tibshirani 1993, ch. 13):
                 epochs of both sides drawn anew with replacement, independently                       `speedup`
    efficiency   speedup ÷ workers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parallel.config import require

RESAMPLES = 10_000
"""At this number the ends of a 95 % interval move by less than a hundredth of its width from seed to seed."""


@dataclass(frozen=True)
class Summary:
    """Five numbers and the mean, in the unit of the values."""

    minimum: float
    first_quartile: float
    median: float
    mean: float
    third_quartile: float
    maximum: float

    def as_tuple(self) -> tuple[float, float, float, float, float, float]:
        """In the field's order: minimum, first quartile, median, mean, third quartile, maximum."""
        return self.minimum, self.first_quartile, self.median, self.mean, self.third_quartile, self.maximum


@dataclass(frozen=True)
class Speedup:
    """A ratio of medians, and its interval; None where one side has a single epoch, which tells nothing of spread."""

    ratio: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.ratio:.2f}×"
        return f"{self.ratio:.2f}× [{self.low:.2f}, {self.high:.2f}]"


def summarise(values: Sequence[float]) -> Summary:
    """The summary of one or more finite values."""
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
    """How many times faster the strategy's median epoch is than the baseline's.

    The interval covers the spread from epoch to epoch; what changes from run to run it sees only as far as several
    runs were pooled.
    """
    require(0 < confidence < 1, "confidence", confidence, "must lie between 0 and 1")
    base, ours = _checked("baseline_s", baseline_s), _checked("strategy_s", strategy_s)
    require(bool(base.min() > 0), "baseline_s", baseline_s, "must all be positive")
    require(bool(ours.min() > 0), "strategy_s", strategy_s, "must all be positive")
    ratio = float(np.median(base) / np.median(ours))
    if base.size < 2 or ours.size < 2:
        return Speedup(ratio)
    rng = np.random.default_rng(seed)
    tail = (1 - confidence) / 2
    ratios = _resampled_medians(base, resamples, rng) / _resampled_medians(ours, resamples, rng)
    low, high = np.quantile(ratios, (tail, 1 - tail)).tolist()
    return Speedup(ratio, low, high)


def _resampled_medians(x: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(np.median(x[rng.integers(0, x.size, (resamples, x.size))], axis=1))  # [resamples]


def _checked(name: str, values: Sequence[float]) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    require(x.ndim == 1 and x.size >= 1, name, values, "must be a list of at least one number")
    require(bool(np.isfinite(x).all()), name, values, "must all be finite")
    return x
