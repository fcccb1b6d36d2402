"""Chaos mode: messages arrive late on purpose, so that a missing wait is always detected.

A transport in chaos mode postpones everything it sends by a random delay, at most until its worker
next blocks, so a run that does not deadlock without delays does not deadlock with them.
Destinations of messages hold NaN until `wait` has returned, and received tensors hold NaN again
after `release`.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from parallel.config import require


@dataclass(frozen=True)
class Chaos:
    """Options of chaos mode: the same seed gives the same delays."""

    seed: int = 0
    max_delay_s: float = 0.005
    """Delays are drawn uniformly from 0 to this many seconds."""

    def __post_init__(self) -> None:
        require(0 <= self.max_delay_s <= 1, "max_delay_s", self.max_delay_s, "must be from 0 to 1 s")


class Postponed:
    """Actions that run in the order of their addition, each after a random delay."""

    def __init__(self, chaos: Chaos, rank: int, number: int) -> None:
        """`rank` and `number` tell the transports of a run apart."""
        self._random = random.Random(f"{chaos.seed} {rank} {number}")
        self._max_delay_s = chaos.max_delay_s
        self._actions: deque[tuple[float, Callable[[], None]]] = deque()

    def add(self, action: Callable[[], None]) -> None:
        """Run `action` after a random delay."""
        self._actions.append((time.monotonic() + self._random.uniform(0.0, self._max_delay_s), action))

    def run_due(self) -> None:
        """Run the actions whose delay has passed, up to the first whose delay has not."""
        while self._actions and self._actions[0][0] <= time.monotonic():
            self._actions.popleft()[1]()

    def run_all(self) -> None:
        """Run every action, sleeping until each is due."""
        while self._actions:
            due, action = self._actions.popleft()
            time.sleep(max(0.0, due - time.monotonic()))
            action()


def poison(tensor: Tensor) -> None:
    """Fill a tensor with NaN, which every result computed from it shows."""
    if tensor.is_floating_point():
        tensor.detach().fill_(float("nan"))
