"""Statistics of measured times: means with little noise, quartiles, rounding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import trim_mean

from parallel.cluster.table import Timing

TRIMMED = 0.1
"""Share of the samples dropped at each end. The mean of the rest adds up over the ops of a step, as
a median does not where workers take turns on a core, and an outlier does not move it."""


def trimmed_mean(seconds: Sequence[float]) -> float:
    """Return the mean of the middle four fifths."""
    return rounded(trim_mean(seconds, TRIMMED))


def timing(seconds: Sequence[float]) -> Timing:
    """Return trimmed mean, quartiles and count."""
    low, high = (rounded(value) for value in np.quantile(seconds, (0.25, 0.75)))
    return Timing(trimmed_mean(seconds), low, high, len(seconds))


def rounded(value: float) -> float:
    """Return the value with five significant digits, more than any measurement has."""
    return float(f"{value:.5g}")
