"""Naming stragglers: workers that lose time in comparison with workers that have the same part.

Every worker records, step by step, its own seconds of loading, forward, backward and messages, and
how long each other worker blocked it with a message that it had started first. Let x_w(t) be one of
these measures of worker w in step t, and a_w the amount of work behind it (images, multiply-adds,
bytes). The time that w loses in the step is

    d_w(t) = x_w(t) − median over its peers p of x_p(t) · a_w / a_p

where peers are the workers with the same ops whose amounts are within `EQUAL` of its own. A worker
without a peer is not judged: plans are uneven on purpose. A message has two ends, so the measures of
`messages` are three: the worker's own work on them; the shortest of the times for which it blocks
the workers that receive from it; and, if it receives from several, the shortest of the times for
which they block it. Both ends of one slow link between two workers are alike: then the sender is
named.

w is a straggler if it loses at least `LEAST_SHARE` of a step, and this is no chance: the steps are
divided into batches (batch means, Law & Kelton; they need not be independent within a
batch), and a one-sided t-test of their means, or of their medians, is significant. Means see a
delay in some steps only; medians are not disturbed by a single long pause. The tests of a run
(workers, measures, epochs) together have the level `LEVEL` (Bonferroni). Noise that slows one
worker throughout, such as another program on its core, is no chance: it is named as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from parallel.program import Program
from parallel.results.stragglers import Straggler
from parallel.runtime.instrumentation.phases import OWN, Phase

LEAST_SHARE = 0.05
"""Fraction of a step below which a loss is not worth a sentence."""
LEVEL = 0.001
"""Probability that a run without a straggler names one, if batches are independent."""
MEANS, MEDIANS = 10, 20
"""Batches of means and of medians, at least: fewer for means, so that each has some of the steps with
a delay."""
LEAST_STEPS = 10
"""Fewer steps (or means of steps, see `BLOCKS`) are not judged."""
EQUAL = 1.1
"""Largest ratio of the amounts of work of workers that are compared."""
BLOCKS = 64
"""Means that a worker reports per epoch, so that long epochs need little memory."""


@dataclass(frozen=True)
class Part:
    """Work of one worker in a step."""

    ops: frozenset[str]
    multiply_adds: int
    bytes_sent: int
    images: int
    host: str | None
    """Name of its host if the run has several."""


@dataclass(frozen=True)
class EpochTimes:
    """Times of one epoch by block of steps, in seconds per step."""

    epoch: int
    step_s: float
    own: np.ndarray
    """[workers, blocks, phases of `OWN`]"""
    transit: np.ndarray
    """[receiving worker, blocks, sending worker]; NaN: no message between them."""


def part_of(program: Program | None, worker: int, itemsize: int, images: int, host: str | None) -> Part:
    """Return a worker's part. Without a program (ddp) all workers do the same."""
    if program is None:
        return Part(frozenset(), 0, 0, images, host)
    ops = {op for segment in program.segments if worker in segment.workers for op in segment.ops}
    return Part(
        frozenset(ops), program.multiply_adds(worker), program.bytes_sent(worker, itemsize), images, host
    )


def blocks(seconds: np.ndarray) -> np.ndarray:
    """Return at most `BLOCKS` means over successive steps [steps, …], for steps [steps, …]."""
    if len(seconds) <= BLOCKS:
        return seconds
    return np.stack([part.mean(axis=0) for part in np.array_split(seconds, BLOCKS)])


def find_stragglers(parts: Sequence[Part], epochs: Sequence[EpochTimes]) -> tuple[Straggler, ...] | None:
    """Return the stragglers of a run, the most costly first.

    `parts` are by worker. None: there was nothing to compare, because no worker has a peer or the
    steps are too few.
    """
    losses: dict[tuple[int, str, str], list[_Loss]] = {}
    for epoch in epochs:
        for (worker, cause, measure), lost in _losses(parts, epoch).items():
            losses.setdefault((worker, cause, measure), []).append(_Loss(epoch.epoch, epoch.step_s, lost))
    judged = {key: own for key, own in losses.items() if sum(map(len, own)) >= LEAST_STEPS}
    if not judged:
        return None
    tests = sum(len(_ROUTES) * len(_windows(own)) for own in judged.values())
    found: dict[tuple[int, str], Straggler] = {}
    for (worker, cause, _), own in judged.items():
        loss = _judge(own, LEVEL / tests)
        known = found.get((worker, cause))
        if loss is None or (known is not None and known.lost_s >= loss.lost_s):
            continue
        found[worker, cause] = Straggler(
            worker=worker,
            host=parts[worker].host,
            cause=cause,
            lost_s=loss.lost_s,
            share=min(1.0, loss.lost_s / loss.step_s),
            epochs=loss.epochs,
        )
    return tuple(sorted(found.values(), key=lambda straggler: -straggler.share))


def _losses(parts: Sequence[Part], epoch: EpochTimes) -> dict[tuple[int, str, str], np.ndarray]:
    """Return d_w [blocks] by worker w, cause and measure, where w has peers."""
    own = dict(zip(OWN, np.moveaxis(epoch.own, 2, 0), strict=True))  # [workers, blocks] by phase
    measures = {
        ("loading", "own"): own[Phase.LOADING],
        ("forward", "own"): own[Phase.FORWARD],
        ("backward", "own"): own[Phase.BACKWARD],
        ("messages", "own"): own[Phase.MESSAGES],
        ("messages", "sent"): _shortest(epoch.transit.transpose(2, 1, 0), least=1),
        ("messages", "received"): _shortest(epoch.transit, least=2),
    }
    losses = {}
    for (cause, measure), seconds in measures.items():
        for worker, peers in enumerate(_peers(parts, cause)):
            if not peers:
                continue
            of_peers = np.stack([scale * seconds[peer] for peer, scale in peers.items()])
            lost = seconds[worker] - np.median(of_peers, axis=0)
            if not np.isnan(lost).any():
                losses[worker, cause, measure] = lost
    return losses


def _peers(parts: Sequence[Part], cause: str) -> list[dict[int, float]]:
    """Return the peers of each worker, with the ratio of its amount of work to theirs."""

    def ratio(one: Part, other: Part) -> float | None:
        if cause == "loading":
            return _ratio(one.images, other.images)
        compute = _ratio(one.multiply_adds, other.multiply_adds) if one.ops == other.ops else None
        return compute if cause != "messages" or compute is None else _ratio(one.bytes_sent, other.bytes_sent)

    return [
        {
            peer: found
            for peer, other in enumerate(parts)
            if peer != worker and (found := ratio(part, other)) is not None
        }
        for worker, part in enumerate(parts)
    ]


def _ratio(one: int, other: int) -> float | None:
    """Return one ÷ other, or None if they differ by more than `EQUAL`."""
    if one == other:
        return 1.0
    return one / other if max(one, other) <= EQUAL * min(one, other) else None


def _shortest(transit: np.ndarray, least: int) -> np.ndarray:
    """Return the minimum over the last axis without NaN [workers, blocks, others]; NaN if fewer
    than `least` are left."""
    missing = np.isnan(transit)
    shortest = np.where(missing, np.inf, transit).min(axis=2)
    return np.where((~missing).sum(axis=2) >= least, shortest, np.nan)


@dataclass(frozen=True)
class _Loss:
    """Time that one worker loses by one measure in an epoch."""

    epoch: int
    step_s: float
    lost: np.ndarray
    """[blocks], d_w"""

    def __len__(self) -> int:
        return len(self.lost)


@dataclass(frozen=True)
class _Found:
    """A loss that is large and no chance."""

    lost_s: float
    step_s: float
    epochs: tuple[int, ...]


def _windows(losses: Sequence[_Loss]) -> list[Sequence[_Loss]]:
    """Return the parts of a run that are judged: all of it, and every epoch that is long enough."""
    single = [[loss] for loss in losses if len(loss) >= LEAST_STEPS and len(losses) > 1]
    return [losses, *single]


def _judge(losses: Sequence[_Loss], level: float) -> _Found | None:
    """Return the loss of a worker by one measure, if any test finds one."""
    found = [(window, lost) for window in _windows(losses) if (lost := _lost(window, level)) is not None]
    if not found:
        return None
    epochs = {loss.epoch for window, _ in found if len(window) == 1 for loss in window}
    if len(found[0][0]) == len(losses):  # the run as a whole: with the epochs too short for a test
        epochs |= {loss.epoch for loss in losses if loss.lost.mean() >= LEAST_SHARE * loss.step_s}
    chosen = [loss for loss in losses if loss.epoch in epochs] or losses
    lost = _lost(chosen, level)
    return _Found(
        found[0][1] if lost is None else lost,
        float(np.mean([loss.step_s for loss in chosen])),
        tuple(loss.epoch for loss in chosen),
    )


_ROUTES: tuple[tuple[Callable[..., np.ndarray], int], ...] = ((np.mean, MEANS), (np.median, MEDIANS))


def _lost(losses: Sequence[_Loss], level: float) -> float | None:
    """Return the seconds lost per step, if they are large and no chance by batch means or batch
    medians."""
    step_s = float(np.mean([loss.step_s for loss in losses]))
    lost = np.concatenate([loss.lost for loss in losses])
    for route, least in _ROUTES:
        size = max(1, len(lost) // least)
        count = len(lost) // size
        values = route(lost[-count * size :].reshape(count, size), axis=1)  # drops some of the first steps
        mean, error = values.mean(), values.std(ddof=1) / np.sqrt(count)
        if mean >= LEAST_SHARE * step_s and mean >= error * stats.t.isf(level, count - 1):
            return float(mean)
    return None
