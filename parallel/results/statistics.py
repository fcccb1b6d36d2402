"""Summaries and speedups of epoch times in seconds, as tables and plots show them.

summary     minimum, first quartile, median, mean, third quartile, maximum      `summarise`
            (quartiles of type 7 of Hyndman and Fan 1996, as in R and NumPy)
speedup     median epoch of the baseline ÷ median epoch of the strategy         `speedup`
interval    95 % percentile bootstrap of that ratio (Efron and Tibshirani       `speedup`
            1993, ch. 13); both sides are resampled independently
efficiency  speedup ÷ workers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parallel.config import require

RESAMPLES = 10_000
"""With this many, the ends of a 95 % interval differ between seeds by less than a hundredth of its
width."""


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


@dataclass(frozen=True)
class Speedup:
    """Ratio of medians and its interval. The interval is None where one side has a single epoch,
    hence no spread."""

    ratio: float
    low: float | None = None
    high: float | None = None

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

    The interval covers the variation between epochs. It covers variation between runs only if
    several runs are pooled.
    """
    require(0 < confidence < 1, "confidence", confidence, "must lie between 0 and 1")
    base, ours = _checked("baseline_s", baseline_s), _checked("strategy_s", strategy_s)
    require(bool(base.min() > 0), "baseline_s", baseline_s, "must all be positive")
    require(bool(ours.min() > 0), "strategy_s", strategy_s, "must all be positive")
    ratio = float(_ratio_of_medians(base, ours))
    if base.size < 2 or ours.size < 2:
        return Speedup(ratio)
    # Imported here: it takes half a second, and most importers of this module compute no interval.
    from scipy.stats import bootstrap

    interval = bootstrap(
        (base, ours),
        _ratio_of_medians,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Speedup(ratio, float(interval.low), float(interval.high))


def _ratio_of_medians(baseline_s: np.ndarray, strategy_s: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(np.median(baseline_s, axis=axis) / np.median(strategy_s, axis=axis))


def _checked(name: str, values: Sequence[float]) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    require(x.ndim == 1 and x.size >= 1, name, values, "must be a list of at least one number")
    require(bool(np.isfinite(x).all()), name, values, "must all be finite")
    return x
