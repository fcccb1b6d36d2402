"""Fit a link to the measured times of message patterns.

Patterns, with B bytes sent by the busiest worker:

    exchange g   each of g workers sends B / (g − 1) to every other one: gathers, gradient sums
    one way      one worker sends B to another: activations from stage to stage
    pairs        every even worker sends B to the next one, all at once

The fit decides whether the link's bandwidth belongs to each worker or is shared by a node: it keeps
the assumption under which a link fitted to all patterns but one predicts that one best
(`_held_out_error`). With it, a link is fitted to all:

    seconds(B) = latency + B / bandwidth(B)

by isotonic regression of log seconds over log load, so that a larger message is never faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from sklearn.isotonic import IsotonicRegression

from parallel.calibration.samples import rounded
from parallel.cluster import Link


@dataclass(frozen=True)
class Pattern:
    """A set of messages; the busiest sender sends B bytes."""

    name: str
    sends: Mapping[tuple[int, int], float] = field(hash=False)
    """Share of B for each (source, target)."""

    def load(self, nbytes: float, shared: bool, node_of: Mapping[int, int]) -> float:
        """Return the load on the link as `Link` defines it."""
        out: dict[int, float] = {}
        into: dict[int, float] = {}
        for (source, target), share in self.sends.items():
            a, b = (node_of[source], node_of[target]) if shared else (source, target)
            out[a] = out.get(a, 0.0) + share * nbytes
            into[b] = into.get(b, 0.0) + share * nbytes
        return max([*out.values(), *into.values()])


def patterns(workers: Sequence[int]) -> Iterator[Pattern]:
    """Yield the patterns among workers that are all joined by the link to be measured."""
    for size in range(2, len(workers) + 1):
        group = workers[:size]
        yield Pattern(f"exchange {size}", {(a, b): 1 / (size - 1) for a in group for b in group if a != b})
    if len(workers) >= 2:
        yield Pattern("one way", {(workers[0], workers[1]): 1.0})
    if len(workers) >= 4:
        yield Pattern("pairs", {(a, b): 1.0 for a, b in zip(workers[::2], workers[1::2], strict=False)})


def across(nodes: Sequence[Sequence[int]]) -> Iterator[Pattern]:
    """Yield the patterns between the first two nodes: one pair of workers, and all pairs.

    A node with more workers than the other leaves the rest of its workers out.
    """
    if len(nodes) < 2:
        return
    first, second = nodes[0], nodes[1]
    both = list(zip(first, second, strict=False))
    yield Pattern("one way", {both[0]: 1.0})
    yield Pattern("exchange 2", {both[0]: 1.0, both[0][::-1]: 1.0})
    if len(both) > 1:
        yield Pattern("pairs", {pair: 1.0 for a, b in both for pair in ((a, b), (b, a))})


@dataclass(frozen=True)
class Point:
    """The measured time of a pattern at one size."""

    pattern: Pattern
    nbytes: int
    seconds: float


def fit_link(points: Sequence[Point], node_of: Mapping[int, int]) -> tuple[Link, float]:
    """Return the link that predicts the points best, and its mean relative error."""
    shared = min((False, True), key=lambda shared: _held_out_error(points, node_of, shared))
    link = _fit(points, node_of, shared)
    return link, _error(link, points, node_of)


def _held_out_error(points: Sequence[Point], node_of: Mapping[int, int], shared: bool) -> float:
    """Return the mean relative error of each pattern under a link fitted to the others."""
    names = {point.pattern.name for point in points}
    if len(names) == 1:
        return _error(_fit(points, node_of, shared), points, node_of)
    return float(
        np.mean(
            [
                _error(
                    _fit([p for p in points if p.pattern.name != name], node_of, shared),
                    [p for p in points if p.pattern.name == name],
                    node_of,
                )
                for name in sorted(names)
            ]
        )
    )


def _error(link: Link, points: Sequence[Point], node_of: Mapping[int, int]) -> float:
    """Return the mean relative error of the link's times."""
    return float(
        np.mean(
            [
                abs(link.seconds(p.pattern.load(p.nbytes, link.shared, node_of)) / p.seconds - 1)
                for p in points
            ]
        )
    )


def _fit(points: Sequence[Point], node_of: Mapping[int, int], shared: bool) -> Link:
    """Return the link fitted to the points."""
    loads = np.array([p.pattern.load(p.nbytes, shared, node_of) for p in points])
    seconds = np.array([p.seconds for p in points])
    smooth = np.exp(IsotonicRegression(out_of_bounds="clip").fit_transform(np.log(loads), np.log(seconds)))
    by_load = dict(sorted(zip(loads.tolist(), smooth.tolist(), strict=True)))
    sizes = list(by_load)
    # The latency is the time of the smallest load beyond what the bandwidth of the largest load
    # explains.
    latency = max(0.0, by_load[sizes[0]] - sizes[0] * by_load[sizes[-1]] / sizes[-1])
    return Link(latency, tuple(_rising([(size, by_load[size] - latency) for size in sizes])), shared)


def _rising(times: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Yield points (bytes, bytes/s), rounded; of loads with equal times only the largest."""
    for i, (size, seconds) in enumerate(times):
        if i + 1 == len(times) or times[i + 1][1] > seconds * 1.001:
            yield float(round(size)), rounded(size / seconds)
