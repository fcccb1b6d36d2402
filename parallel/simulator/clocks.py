"""The two clocks of every worker, and what computing and messages do to them.

C[w] is when worker w will have computed all that it was given, N[w] when all its messages will have been sent and
received. What takes d seconds on the workers Q, and may begin at r, gives

    computing   start = max(r, C[q] for q in Q)    end = start + d    C[q] = end
    a message   start = max(r, N[q] for q in Q)    end = start + d    N[q] = end    C[q] = C[q] + σ·d

So the workers of an op keep in step (the slowest part decides), and so do those of an exchange or sync. The last term
is what messages under way take from computing: σ, the cluster's overlap_slowdown, of their time is lost to their
workers, at once. It delays no one who waits for the message anyway: C ≤ r then, and C + σ·d ≤ start + d.
Everything is a maximum or a sum: when any duration grows, no time becomes earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter


class WorkerGroup:
    """Some workers, as indices into a list of clocks."""

    def __init__(self, workers: Sequence[int]) -> None:
        self.workers = tuple(sorted(workers))
        first, last = self.workers[0], self.workers[-1]
        self._run = slice(first, last + 1) if last - first + 1 == len(self.workers) else None
        self._pick = itemgetter(*self.workers)

    def latest(self, clock: list[float]) -> float:
        """The latest time of their clocks."""
        return max(clock[self._run]) if self._run is not None else max(self._pick(clock))

    def set(self, clock: list[float], time: float) -> None:
        """Put all their clocks to `time`."""
        if self._run is not None:
            clock[self._run] = [time] * len(self.workers)
        else:
            for worker in self.workers:
                clock[worker] = time

    def add(self, clock: list[float], seconds: float) -> None:
        """Put all their clocks forward."""
        for worker in self.workers:
            clock[worker] += seconds


class Clocks:
    """The clocks of all workers."""

    def __init__(self, workers: int, slowdown: float) -> None:
        self.compute = [0.0] * workers
        self.network = [0.0] * workers
        self.slowdown = slowdown

    def work(self, group: WorkerGroup, ready: float, seconds: float) -> float:
        """Compute; returns when it ends."""
        latest = group.latest(self.compute)
        end = (ready if ready > latest else latest) + seconds
        group.set(self.compute, end)
        return end

    def message(self, group: WorkerGroup, ready: float, seconds: float) -> float:
        """Send and receive; returns when it ends."""
        latest = group.latest(self.network)
        end = (ready if ready > latest else latest) + seconds
        group.set(self.network, end)
        if self.slowdown:
            group.add(self.compute, self.slowdown * seconds)
        return end

    @property
    def end(self) -> float:
        """When all have done everything."""
        return max(max(self.compute), max(self.network))
