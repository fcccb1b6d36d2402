"""Measure work on a worker's device.

A GPU runs behind the host. If it has nothing queued, work takes the time that the host needs to launch
it, and not that of the device. So the queue is filled first:

    hold      the device spins for h seconds
    begin     a mark behind the hold
    work      the host enqueues it, which takes `launch_s`
    end       a mark behind the work

If the device has not passed `begin` when `end` is enqueued, it finds all of the work in its queue, and
end − begin is its own time. Otherwise the lap is discarded, and the next hold is longer (`next_hold`).
The host's time to launch the work is measured as well, since the queue holds nothing else meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from parallel.runtime.communication.world import World
from parallel.runtime.instrumentation.timer import Timer, open_timer
from parallel.runtime.torch_private import spin_device

SHORTEST_HOLD_S, LONGEST_HOLD_S = 0.0005, 0.2
"""Bounds of a hold. The launch of an op takes some 20 to 200 µs."""
MARGIN = 3.0
"""A hold ÷ the time in which the host enqueued the last work: the next work may take longer."""
TRIES = 10
"""Attempts to measure work that all workers do together: holds grow from the shortest to the longest."""
SPINS = 1_000_000
"""Cycles of the device that are timed to learn how fast it spins: about a millisecond."""
WARM_UP_SPINS = 100
"""Times that many cycles before: an idle GPU's clock is several times slower, and rises within some 50 ms."""


def next_hold(hold_s: float, enqueued_s: float, filled: bool) -> float:
    """Return how long to hold the device for the next work.

    `enqueued_s`: the time in which the host enqueued the last work behind a hold of `hold_s`; `filled`:
    whether the hold was long enough. The hold at least doubles if not, and halves at most if so: one
    slow launch, such as the first one of a kernel, does not slow down all that follow.
    """
    wanted = MARGIN * enqueued_s
    chosen = max(wanted, hold_s / 2) if filled else max(wanted, 2 * hold_s)
    return min(LONGEST_HOLD_S, max(SHORTEST_HOLD_S, chosen))


class Lap(NamedTuple):
    """Times of one piece of work."""

    seconds: float | None
    """On the device. None: unknown, because the device may have waited for the host."""
    launch_s: float
    """Time in which the host enqueued it; on a CPU, in which it did it."""


class Begin(NamedTuple):
    """The beginning of a lap."""

    host: float
    mark: Any


class Hold:
    """Keeps a device busy for about some seconds, without use of its memory and caches."""

    def __init__(self, timer: Timer, spin: Callable[[int], None]) -> None:
        """`spin` enqueues a kernel that takes a number of the device's cycles."""
        self._spin = spin
        for _ in range(WARM_UP_SPINS):
            spin(SPINS)
        begin = timer.mark()
        spin(SPINS)
        self._cycles_per_s = SPINS / (timer.seconds(timer.mark()) - timer.seconds(begin))

    def __call__(self, seconds: float) -> None:
        self._spin(round(seconds * self._cycles_per_s))


class Stopwatch:
    """Measures pieces of work, with the queue filled if it has a hold, and marks as they are."""

    def __init__(self, timer: Timer, hold: Callable[[float], None] | None = None) -> None:
        """Without `hold` laps are taken as they come: the work does not only enqueue."""
        self._timer, self._hold = timer, hold
        self._hold_s = SHORTEST_HOLD_S

    @property
    def behind(self) -> bool:
        """Whether the device runs behind the host."""
        return self._timer.behind

    @property
    def holds(self) -> bool:
        """Whether laps are measured with the queue filled."""
        return self._hold is not None

    def begin(self, align: Callable[[], object] = lambda: None) -> Begin:
        """Begin a lap. Behind a hold, `align` enqueues work at which the workers' devices meet."""
        if self._hold is not None:
            self._hold(self._hold_s)
            align()
        return Begin(time.perf_counter(), self._timer.mark())

    def end(self, begin: Begin) -> Lap:
        """End a lap, and wait for the device."""
        end = self._timer.mark()
        launch_s = time.perf_counter() - begin.host
        filled = self._hold is None or not self._timer.passed(begin.mark)
        self._hold_s = next_hold(self._hold_s, launch_s, filled)
        seconds = self.seconds(begin.mark, end)
        return Lap(seconds if filled else None, launch_s)

    def mark(self) -> Any:
        """Return a time stamp of the device."""
        return self._timer.mark()

    def seconds(self, begin: Any, end: Any) -> float:
        """Return the seconds between two time stamps. Waits for the device."""
        until = self._timer.seconds(end)
        return until - self._timer.seconds(begin)


def open_stopwatch(device: torch.device, *, only_enqueues: bool = True) -> Stopwatch:
    """Return the stopwatch of a device. `only_enqueues`: whether the host enqueues the work without
    waiting for it, as all but messages that the host itself moves."""
    timer = open_timer(device)
    return Stopwatch(timer, Hold(timer, spin_device) if timer.behind and only_enqueues else None)


def seconds_together(
    watch: Stopwatch,
    world: World,
    work: Callable[[], object],
    align: Callable[[], object],
    finish: Callable[[], object] = lambda: None,
) -> list[float]:
    """Return each worker's seconds of `work`, which all workers begin after a barrier.

    `align` is enqueued before the first mark on devices that run behind, so that no worker's time
    contains the difference of the moments at which the workers begin. `finish` is called after the
    second mark. Raises `RuntimeError` if the queue of some device cannot be filled.
    """
    for _ in range(TRIES):
        world.barrier()
        begin = watch.begin(align)
        work()
        lap = watch.end(begin)
        finish()
        laps = world.gather(lap.seconds)
        known = [seconds for seconds in laps if seconds is not None]
        if len(known) == len(laps):
            return known
    raise RuntimeError(
        f"the device had work to do before the host had enqueued all of it in {TRIES} tries, the last one "
        f"behind a hold of {LONGEST_HOLD_S} s: the work waits for the device"
    )
