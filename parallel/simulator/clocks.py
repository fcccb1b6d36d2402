"""Two clocks for each worker: when it finishes computing, and when it finishes communicating.

C[w] is the time at which worker w has finished all computing so far, N[w] the time at which all its
messages have been sent and received. A task of d seconds on the workers Q that is ready at time r
advances them by

    computing    start = max(r, C[q] for q in Q)    end = start + d    C[q] = end
    a message    start = max(r, N[q] for q in Q)    end = start + d    N[q] = end   C[q] = C[q] + σ·d

So the workers of an op stay in step (the slowest part decides), and so do those of an exchange or
gradient sum. σ is the cluster's `overlap_slowdown`: a message takes σ of its time from the
computing of its workers, at once. Workers that wait for the message are not delayed by this, since
then C ≤ r and C + σ·d ≤ start + d. A gather of updated parameters has only updates beside it: it
takes σ of no more than its own update's seconds u, so that those of all gathers take at most σ·Σu.

Links between nodes are full duplex. In a pipeline, the activations of one micro-batch and the
gradients of another pass them at the same time (`TwoWayClocks`). There worker w has two clocks for
messages, S[w] when all have been sent, R[w] when all have been received. An exchange from the workers
A of one stage to the workers B of another, on other nodes, sets one clock of each:

    start = max(r, S[a] for a in A, R[b] for b in B)    end = start + d    S[a] = end    R[b] = end

All other messages set both clocks of their workers. With one micro-batch, exchanges between stages
follow one another in any case, and one clock N suffices.

Times are only maximised and added, so a longer duration never makes any task end earlier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter


class WorkerGroup:
    """A set of workers, as indices into a list of clocks."""

    def __init__(self, workers: Sequence[int]) -> None:
        self.workers = tuple(sorted(workers))
        first, last = self.workers[0], self.workers[-1]
        contiguous = last - first + 1 == len(self.workers)
        self._slice = slice(first, last + 1) if contiguous else None
        self._pick = itemgetter(*self.workers)

    def latest(self, clock: list[float]) -> float:
        """Return the latest time of the group's clocks."""
        return max(clock[self._slice]) if self._slice is not None else max(self._pick(clock))

    def set(self, clock: list[float], time: float) -> None:
        """Set the group's clocks to `time`."""
        if self._slice is not None:
            clock[self._slice] = [time] * len(self.workers)
        else:
            for worker in self.workers:
                clock[worker] = time

    def advance(self, clock: list[float], seconds: float) -> None:
        """Advance the group's clocks by `seconds`."""
        for worker in self.workers:
            clock[worker] += seconds


class Clocks:
    """The clocks of all workers, in seconds from the start of the step."""

    def __init__(self, workers: int, slowdown: float) -> None:
        self.compute = [0.0] * workers
        self.network = [0.0] * workers
        self.slowdown = slowdown

    def work(self, group: WorkerGroup, ready: float, seconds: float) -> float:
        """Compute for `seconds`, not before `ready`; return the end."""
        latest = group.latest(self.compute)
        end = (ready if ready > latest else latest) + seconds
        group.set(self.compute, end)
        return end

    def message_starts(self, group: WorkerGroup, ready: float) -> float:
        """Return when a message of the group can start, not before `ready`."""
        return max(ready, group.latest(self.network))

    def message(self, group: WorkerGroup, ready: float, seconds: float, beside_s: float = math.inf) -> float:
        """Communicate for `seconds`, not before `ready`; return the end.

        `beside_s`: seconds of computing that the message can slow down, if that is less.
        """
        latest = group.latest(self.network)
        end = (ready if ready > latest else latest) + seconds
        group.set(self.network, end)
        if self.slowdown:
            group.advance(self.compute, self.slowdown * min(seconds, beside_s))
        return end

    @property
    def end(self) -> float:
        """Time at which all workers have finished."""
        return max(max(self.compute), max(self.network))


class TwoWayClocks(Clocks):
    """Clocks of workers that may send and receive different messages at the same time.

    `network` is S, and `receiving` is R.
    """

    def __init__(self, workers: int, slowdown: float) -> None:
        super().__init__(workers, slowdown)
        self.receiving = [0.0] * workers

    def message_starts(self, group: WorkerGroup, ready: float) -> float:
        return max(ready, group.latest(self.network), group.latest(self.receiving))

    def message(self, group: WorkerGroup, ready: float, seconds: float, beside_s: float = math.inf) -> float:
        end = super().message(group, self.message_starts(group, ready), seconds, beside_s)
        group.set(self.receiving, end)
        return end

    def exchange_starts(self, senders: WorkerGroup, receivers: WorkerGroup, ready: float) -> float:
        """Return when an exchange from one stage to another can start, not before `ready`."""
        return max(ready, senders.latest(self.network), receivers.latest(self.receiving))

    def exchange(self, senders: WorkerGroup, receivers: WorkerGroup, ready: float, seconds: float) -> float:
        """Send from one stage to another for `seconds`, not before `ready`; return the end."""
        end = self.exchange_starts(senders, receivers, ready) + seconds
        senders.set(self.network, end)
        receivers.set(self.receiving, end)
        for group in (senders, receivers) if self.slowdown else ():
            group.advance(self.compute, self.slowdown * seconds)
        return end

    @property
    def end(self) -> float:
        return max(super().end, max(self.receiving))


class Groups:
    """Worker groups, made once for each set of workers."""

    def __init__(self) -> None:
        self._groups: dict[tuple[int, ...], WorkerGroup] = {}

    def __getitem__(self, workers: tuple[int, ...]) -> WorkerGroup:
        if workers not in self._groups:
            self._groups[workers] = WorkerGroup(workers)
        return self._groups[workers]
