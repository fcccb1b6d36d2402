"""The training loss within an epoch, for epochs that take minutes.

A worker computes only its part of a step's loss: some samples, or nothing, if another worker has the
last layer. So a loss to show needs a sum over the workers. They add up their parts every `_every` steps,
not in every step: on a GPU, reading a loss waits until the step is done. The same sum tells all
workers how long worker 0 took, from which each computes the same number of steps until the next one:

    every' = every × EVERY_S / seconds,  at least 1 and at most GROWTH × every
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from parallel.runtime.communication.world import World

EVERY_S = 30.0
"""Seconds between two losses. A sum takes about a millisecond, less than 0.01 % of that."""
GROWTH = 10
"""Bound of one change: the first interval is one step, which may be far from typical."""


class StepLoss:
    """The mean loss of the last steps of an epoch, about every 30 s; an epoch shorter than that has none."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._every = 1
        self._start(0, 0.0)

    def begin(self, done: int) -> None:
        """Begin an epoch, of which `done` steps are done."""
        self._start(done, 0.0)

    def after(self, done: int, total: Tensor) -> float | None:
        """Return the mean loss of the steps since the last one, or None while it is too early.

        Every worker calls it after every step with its steps `done` and the sum `total` of its losses.
        """
        steps = done - self._done
        if steps < self._every:
            return None
        seconds = time.perf_counter() - self._since if self._world.rank == 0 else 0.0
        sums = torch.stack([total - self._total, torch.full_like(total, seconds)])
        loss, seconds = self._world.sum(sums).tolist()
        self._every = next_interval(steps, seconds)
        if seconds < EVERY_S / 2:
            return None
        self._start(done, total.clone())
        return loss / steps

    def _start(self, done: int, total: Tensor | float) -> None:
        self._done, self._total = done, total
        self._since = time.perf_counter()


def next_interval(steps: int, seconds: float) -> int:
    """Return the steps that take `EVERY_S` if `steps` took `seconds`."""
    return min(GROWTH * steps, max(1, math.ceil(steps * EVERY_S / max(seconds, 1e-9))))
