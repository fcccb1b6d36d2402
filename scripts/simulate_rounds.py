"""Simulate how often intervals of speedups are wrong, to choose how to compute them.

    python scripts/simulate_rounds.py [variances | orders]

All strategies have the same time in truth. The logarithm of the median epoch of strategy i in round r is
drift + residual, with normal residuals of variance v_i. For two strategies it prints the share of
experiments whose 95 % interval of the ratio does not contain 1, and the median half-width of the
intervals ÷ the standard error of the mean difference.

variances  What follows from residuals that differ. The drift is common to a round.
    runs     independent runs (Welch), at a drift of 5 standard deviations of a residual
    pooled   residual variance of the table strategies × rounds, (k - 1)(n - 1) degrees of freedom
    bounded  the same, and at least the variance of the differences of the pair
    sides    variance of each of the two from its residuals in the table, scaled up so that it is never
             too small; degrees of freedom of Welch
    paired   variance of the differences of the pair, n - 1 degrees of freedom
orders     What follows from drift within rounds, by the order of the runs in them: paired, and runs
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from scipy.special import stdtrit

from parallel.cli.repeats import order_of_round

EXPERIMENTS = 20_000
METHODS = ("runs", "pooled", "bounded", "sides", "paired")
VARIANCES = ((1, 1, 1), (1, 1, 4), (1, 4, 1), (1, 4, 4), (4, 4, 1), (1, 2, 1), (1, 2, 4))
"""Variances of the first of the pair, of the second, and of all others."""
DRIFTS = ("rounds", "walk", "trend", "warming", "wave")
Interval = tuple[np.ndarray, np.ndarray]
"""Absolute differences and half-widths, by experiment."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study", choices=("variances", "orders"), nargs="?", default="variances")
    parser.add_argument("--experiments", type=int, default=EXPERIMENTS)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    if arguments.study == "variances":
        study_variances(arguments.experiments, rng)
    else:
        study_orders(arguments.experiments, rng)


def study_variances(experiments: int, rng: np.random.Generator) -> None:
    """Print a line for each number of rounds, of strategies, and residual variances."""
    print("rounds strategies variances " + "".join(f"{name:>15}" for name in METHODS))
    for rounds, strategies in itertools.product((2, 3, 4, 5, 8), (2, 3, 4, 5, 7)):
        for first, second, others in VARIANCES:
            if strategies == 2 and others > 1:
                continue
            variances = np.array([first, second, *[others] * (strategies - 2)], float)
            residuals = rng.standard_normal((experiments, strategies, rounds)) * np.sqrt(variances)[:, None]
            drift = 5 * rng.standard_normal((experiments, 1, rounds))
            error = np.sqrt((first + second) / rounds)
            cells = [_cell(found, error) for found in intervals(residuals + drift)]
            print(f"{rounds:6} {strategies:10} {first:3}, {second}, {others} " + "".join(cells), flush=True)


def intervals(y: np.ndarray) -> list[Interval]:
    """Return the interval of each of `METHODS` for the first two strategies; y [experiments, k, n]."""
    _, k, n = y.shape
    difference = y[:, 0] - y[:, 1]
    distance = np.abs(difference.mean(axis=1))
    pair = difference.var(axis=1, ddof=1)
    rest = y - y.mean(axis=2, keepdims=True)
    rest = rest - rest.mean(axis=1, keepdims=True)
    squares = (rest**2).sum(axis=2) / (n - 1)
    pooled = 2 * squares.sum(axis=1) / (k - 1)
    freedom = np.float64((k - 1) * (n - 1))
    # E of a strategy's square: (1 - 2/k) v + Σ v / k²; the two have at least this part of their variances.
    one, two = squares[:, :2].T / ((1 - 2 / k) + 2 / k**2) if k > 2 else (pair / 2, pair / 2)
    sides = _welch(one, two, n) if k > 2 else np.float64(n - 1)
    return [
        (distance, _half_width(*_independent(y), n)),
        (distance, _half_width(pooled, freedom, n)),
        (distance, _half_width(np.maximum(pooled, pair), freedom, n)),
        (distance, _half_width(one + two, sides, n)),
        (distance, _half_width(pair, np.float64(n - 1), n)),
    ]


def study_orders(experiments: int, rng: np.random.Generator) -> None:
    """Print a line for each kind and size of drift, and order of the runs."""
    print("largest share over 2, 4 and 7 strategies, of neighbours and of first and last: paired / runs")
    for kind, size, order in itertools.product(DRIFTS, (0.01, 0.05, 0.2), ("fixed", "random", "sweep")):
        cells = []
        for rounds in (2, 3, 4, 5, 8):
            found = np.array(
                [
                    _shares(_pair(kind, size, order, (experiments, rounds, strategies), other, rng))
                    for strategies in (2, 4, 7)
                    for other in {1, strategies - 1}
                ]
            ).max(axis=0)
            cells.append(f"{rounds:3}: {found[0]:5.1f} /{found[1]:5.1f} %")
        print(f"{kind:8}{size:6.0%} {order:7}" + "".join(cells), flush=True)


def _pair(
    kind: str, size: float, order: str, shape: tuple[int, int, int], other: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the logarithms of strategy 0 and of another, with residuals of 1 %: [experiments, 2, n]."""
    experiments, rounds, strategies = shape
    y = _drift(kind, size, shape, rng) + 0.01 * rng.standard_normal(shape)  # by round and place in it
    orders = np.tile(np.arange(strategies), (experiments, rounds, 1))
    if order == "random":
        orders = rng.permuted(orders, axis=2)
    elif order == "sweep":
        orders[:] = [order_of_round(strategies, number + 1) for number in range(rounds)]
    places = np.argsort(orders, axis=2)
    return np.moveaxis(np.take_along_axis(y, places[:, :, [0, other]], axis=2), 2, 1)


def _drift(kind: str, size: float, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    experiments, rounds, strategies = shape
    time = np.arange(rounds * strategies).reshape(rounds, strategies) / strategies  # in rounds
    if kind == "rounds":
        return np.repeat(rng.normal(0, size, (experiments, rounds, 1)), strategies, axis=2)
    if kind == "walk":
        steps = rng.normal(0, size / np.sqrt(strategies), (experiments, time.size))
        return np.cumsum(steps, axis=1).reshape(shape)
    if kind == "wave":
        period, phase = rng.uniform(0.5, 6, (experiments, 1, 1)), rng.random((experiments, 1, 1))
        return size * np.sin(2 * np.pi * (time / period + phase))
    return size * np.broadcast_to(time if kind == "trend" else np.exp(-time), shape)


def _shares(y: np.ndarray) -> tuple[float, float]:
    n = y.shape[2]
    difference = y[:, 0] - y[:, 1]
    distance = np.abs(difference.mean(axis=1))
    paired = _half_width(difference.var(axis=1, ddof=1), np.float64(n - 1), n)
    independent = _half_width(*_independent(y), n)
    return 100 * float((distance > paired).mean()), 100 * float((distance > independent).mean())


def _independent(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one, two = y[:, 0].var(axis=1, ddof=1), y[:, 1].var(axis=1, ddof=1)
    return one + two, _welch(one, two, y.shape[2])


def _welch(one: np.ndarray, two: np.ndarray, n: int) -> np.ndarray:
    return (one + two) ** 2 / ((one**2 + two**2) / (n - 1))


def _half_width(variance: np.ndarray, freedom: np.ndarray | np.float64, n: int) -> np.ndarray:
    return np.asarray(stdtrit(freedom, 0.975) * np.sqrt(variance / n))


def _cell(found: Interval, error: float) -> str:
    distance, half_width = found
    return f"{100 * (distance > half_width).mean():6.1f} %{np.median(half_width) / error:7.2f}"


if __name__ == "__main__":
    main()
