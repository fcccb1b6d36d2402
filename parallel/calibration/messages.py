"""Latency and bandwidth of the runtime's own messages, and what they take from computing.

Patterns, of B bytes that the busiest worker sends:

    exchange g   every worker of g sends B / (g − 1) to each other one, and receives as much: gathers and gradient sums
    one way      a worker sends B to another: a hand-over between stages
    pairs        every even worker sends B to the next, all at once

A link that each worker has to itself takes as long for all of them; one that is shared, as much longer as there are
bytes. The one is taken by which the times of every pattern follow better from those of the others, fitted to all:

    seconds(B) = latency + B / bandwidth(B)     by isotonic regression of log seconds over the load: the times of larger
                                                messages never fall

The bandwidth is that beyond the time of the smallest messages. The latency of the link is what a step sees: the workers
have computed before they send, and one is later than the other (`waiting_s`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression

from parallel.calibration.op_times import Stopwatch
from parallel.cluster import Link
from parallel.runtime.communication.transport import Message, Receive, Transport
from parallel.runtime.communication.world import World

SIZES = tuple(int(kilobytes * 1000) for kilobytes in (4, 16, 64, 250, 1000, 4000, 16000, 50000, 150000))
"""Bytes; fc6's weights are 151 MB."""
LOOP_BYTES, LOOP_MOST = 1_000_000, 64
"""Messages are repeated until so many bytes have gone, or so often, so that the barrier around them does not count."""
SLOTS = 4
"""Small messages take turns with so many names: a message waits until the last one of its name was read, in a step
long ago, but in a loop just now."""
HIDDEN_BYTES = 50_000_000
"""Of the message beside which is computed."""
LONGER = 1.5
"""How much longer the computing is than the message."""

Waiter = Callable[[], None]


@dataclass(frozen=True)
class Pattern:
    """Who sends how much of B bytes to whom."""

    name: str
    sends: Mapping[tuple[int, int], float] = field(hash=False)
    """By source and target: share of B."""

    def load(self, nbytes: float, shared: bool, node_of: Mapping[int, int]) -> float:
        """What `Link` calls the load: of one worker, or, shared, of a node."""
        out: dict[int, float] = {}
        into: dict[int, float] = {}
        for (source, target), share in self.sends.items():
            a, b = (node_of[source], node_of[target]) if shared else (source, target)
            out[a] = out.get(a, 0.0) + share * nbytes
            into[b] = into.get(b, 0.0) + share * nbytes
        return max([*out.values(), *into.values()])


def patterns(workers: Sequence[int]) -> Iterator[Pattern]:
    """Those among these workers; each two of them must be joined by the link that is measured."""
    for size in range(2, len(workers) + 1):
        group = workers[:size]
        yield Pattern(f"exchange {size}", {(a, b): 1 / (size - 1) for a in group for b in group if a != b})
    if len(workers) >= 2:
        yield Pattern("one way", {(workers[0], workers[1]): 1.0})
    if len(workers) >= 4:
        yield Pattern("pairs", {(a, b): 1.0 for a, b in zip(workers[::2], workers[1::2], strict=False)})


def across(nodes: Sequence[Sequence[int]]) -> Iterator[Pattern]:
    """Patterns between nodes: one pair of workers, and all workers with those of another node; none if there is one."""
    if len(nodes) < 2:
        return
    first, second = nodes[0], nodes[1]
    both = list(zip(first, second, strict=True))
    yield Pattern("one way", {both[0]: 1.0})
    yield Pattern("exchange 2", {both[0]: 1.0, both[0][::-1]: 1.0})
    if len(both) > 1:
        yield Pattern("pairs", {pair: 1.0 for a, b in both for pair in ((a, b), (b, a))})


@dataclass(frozen=True)
class Point:
    """One pattern at one size."""

    pattern: Pattern
    nbytes: int
    seconds: float


class Messages:
    """Measures the messages of one world; every worker calls the same methods in the same order."""

    def __init__(self, world: World, transport: Transport) -> None:
        self._world, self._transport = world, transport
        self._watch = Stopwatch(world.device)
        self._out = torch.ones(2 * max(SIZES) // 4, device=world.device)

    def seconds(self, pattern: Pattern, nbytes: int) -> float:
        """Of one message, for the worker that it takes longest."""
        world = self._world
        taking_part = any(world.rank in pair for pair in pattern.sends)
        repeats = max(2, min(LOOP_MOST, math.ceil(LOOP_BYTES / nbytes)))
        for turn in range(SLOTS if taking_part else 0):
            self.start(pattern, nbytes, turn)()  # the first of a size makes the memory that it goes through
        world.barrier()
        begin = self._watch.mark()
        for turn in range(repeats if taking_part else 0):
            self.start(pattern, nbytes, turn)()
        end = self._watch.mark()
        return max(world.gather(self._watch.seconds(begin, end) if taking_part else 0.0)) / repeats

    def start(self, pattern: Pattern, nbytes: int, turn: int = 0) -> Waiter:
        """Begin this worker's side; what is returned waits for it. Received is as gradients are: wherever it lies. What
        is sent lies in the caches as far as they hold it: in a step, it has just been computed."""
        sends, receives = [], []
        used = 0
        for (source, target), share in pattern.sends.items():
            numbers = max(1, int(share * nbytes / 4))
            if source == self._world.rank:
                sends.append((target, self._out[used : used + numbers]))
                used += numbers
            if target == self._world.rank:
                receives.append(Receive(source, (numbers,), self._out.dtype))
        slot = turn % SLOTS if nbytes <= LOOP_BYTES else 0
        message = self._transport.start(("calibrate", pattern.name, slot), sends, receives)
        return lambda: self._end(message)

    def _end(self, message: Message) -> None:
        self._transport.wait(message)
        self._transport.release(message)

def overlap_slowdown(messages: Messages, world: World, compute: Callable[[], None], rounds: int) -> float:
    """Share of the time of messages that computing beside them takes longer, from 0 to 1: the median over all."""
    watch, everyone = Stopwatch(world.device), next(p for p in reversed(list(patterns(range(world.size))))
                                                    if p.name.startswith("exchange"))

    def timed(nbytes: int, times: int) -> float:
        world.barrier()
        begin = watch.mark()
        wait = messages.start(everyone, nbytes) if nbytes else None
        for _ in range(times):
            compute()
        end = watch.mark()
        if wait is not None:
            wait()
        return watch.seconds(begin, end)

    message_s = statistics.median(messages.seconds(everyone, HIDDEN_BYTES) for _ in range(rounds))
    timed(0, 1)
    times = max(1, math.ceil(LONGER * message_s / statistics.median(max(world.gather(timed(0, 1))) for _ in range(3))))
    slower = [timed(HIDDEN_BYTES, times) - timed(0, times) for _ in range(rounds)]
    every = [seconds for of in world.gather(slower) for seconds in of]
    return min(1.0, max(0.0, statistics.median(every) / message_s))


def waiting_s(messages: Messages, world: World, chosen: Sequence[Pattern],
              compute: Callable[[Callable[[], None]], None], rounds: int) -> float:
    """Seconds by which computing takes longer for every small message that the workers exchange in between: they are
    never there at the same time. `compute` calls what it is given between its parts; of the patterns, the widest."""
    watch, widest = Stopwatch(world.device), max(chosen, key=lambda pattern: len({w for p in pattern.sends for w in p}))
    count = 0

    def exchange() -> None:
        nonlocal count
        count += 1
        messages.start(widest, SIZES[0], count)()

    def timed(between: Callable[[], None]) -> float:
        world.barrier()
        begin = watch.mark()
        compute(between)
        return max(world.gather(watch.seconds(begin, watch.mark())))

    timed(exchange)
    parts = count
    longer = statistics.median(timed(exchange) - timed(lambda: None) for _ in range(rounds))
    return max(0.0, longer / parts)


def fit_link(points: Sequence[Point], node_of: Mapping[int, int]) -> tuple[Link, float]:
    """The link that explains the points best, and its mean relative error."""
    shared = min((False, True), key=lambda shared: _unexplained(points, node_of, shared))
    link = _fit(points, node_of, shared)
    return link, _error(link, points, node_of)


def _unexplained(points: Sequence[Point], node_of: Mapping[int, int], shared: bool) -> float:
    """Mean relative error of each pattern's times by a link that is fitted to the other patterns."""
    names = {point.pattern.name for point in points}
    if len(names) == 1:
        return _error(_fit(points, node_of, shared), points, node_of)
    return float(np.mean([
        _error(_fit([p for p in points if p.pattern.name != name], node_of, shared),
               [p for p in points if p.pattern.name == name], node_of)
        for name in sorted(names)]))


def _error(link: Link, points: Sequence[Point], node_of: Mapping[int, int]) -> float:
    return float(np.mean([abs(link.seconds(p.pattern.load(p.nbytes, link.shared, node_of)) / p.seconds - 1)
                          for p in points]))


def _fit(points: Sequence[Point], node_of: Mapping[int, int], shared: bool) -> Link:
    loads = np.array([p.pattern.load(p.nbytes, shared, node_of) for p in points])
    seconds = np.array([p.seconds for p in points])
    smooth = np.exp(IsotonicRegression(out_of_bounds="clip").fit_transform(np.log(loads), np.log(seconds)))
    by_load = dict(sorted(zip(loads.tolist(), smooth.tolist(), strict=True)))
    sizes = list(by_load)
    # What the smallest load takes beyond the largest one's time per byte.
    latency = max(0.0, by_load[sizes[0]] - sizes[0] * by_load[sizes[-1]] / sizes[-1])
    return Link(latency, tuple(_rising([(size, by_load[size] - latency) for size in sizes])), shared)


def _rising(times: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Points (bytes, bytes/s), rounded; of loads that take equally long only the largest."""
    for i, (size, seconds) in enumerate(times):
        if i + 1 == len(times) or times[i + 1][1] > seconds * 1.001:
            yield float(round(size)), float(f"{size / seconds:.5g}")
