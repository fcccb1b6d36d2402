"""Measure messages of the runtime: time by size, latency in a step, slowdown of computing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch

from parallel.calibration.link_fit import Pattern, patterns
from parallel.calibration.stopwatch import Stopwatch, open_stopwatch, seconds_together
from parallel.runtime.communication.transport import Message, Receive, Transport
from parallel.runtime.communication.world import World

SIZES = tuple(int(kilobytes * 1000) for kilobytes in (4, 16, 64, 250, 1000, 4000, 16000, 50000, 150000))
"""Bytes. The largest is about that of AlexNet's fc6 weights, 151 MB."""
LOOP_BYTES, LOOP_REPEATS = 1_000_000, 64
"""Small messages repeat up to this many bytes or times, so that barriers around them do not
count."""
SLOTS = 4
"""Number of message names that repeated small messages use in turn. A message waits until the
previous one with its name has been read. In a step this happened long before; in a loop with one
name it would cause waits."""
HIDDEN_BYTES = 50_000_000
"""Size of the message under way while the slowdown of computing is measured."""
LONGER = 1.5
"""Duration of that computing ÷ duration of the message."""
QUEUED = 16
"""Most messages, or runs of an op, that are measured at once behind a held device: its queue has room
for some thousand kernels and events. There, barriers do not count, and few repetitions suffice."""

Waiter = Callable[[], None]


class Messages:
    """Measures the messages of one world; every worker calls the same methods in the same order."""

    def __init__(self, world: World, transport: Transport) -> None:
        self._world, self._transport = world, transport
        # Only NCCL's messages are enqueued; with gloo, the host moves them.
        self.watch = open_stopwatch(world.device, only_enqueues=world.backend == "nccl")
        self._out = torch.ones(2 * max(SIZES) // 4, device=world.device)

    def seconds(self, pattern: Pattern, nbytes: int) -> float:
        """Return the seconds of one message on the slowest worker."""
        world = self._world
        taking_part = any(world.rank in pair for pair in pattern.sends)
        most = QUEUED if self.watch.holds else LOOP_REPEATS
        repeats = max(2, min(most, math.ceil(LOOP_BYTES / nbytes)))
        names = SLOTS if nbytes <= LOOP_BYTES else 1
        for turn in range(names if taking_part else 0):
            self.start(pattern, nbytes, turn)()  # the first message of a size allocates its memory

        def send(count: int) -> None:
            for turn in range(count if taking_part else 0):
                self.start(pattern, nbytes, turn)()

        own = seconds_together(self.watch, world, partial(send, repeats), align=partial(send, 1))
        return max(own[worker] for pair in pattern.sends for worker in pair) / repeats

    def start(self, pattern: Pattern, nbytes: int, turn: int = 0) -> Waiter:
        """Start this worker's sends and receives, and return a function that waits for them.

        Received data is left where it arrives, as gradients are. Sent data is in the caches as far
        as it fits, since in a step it has just been computed.
        """
        sends, receives, used = [], [], 0
        for (source, target), share in pattern.sends.items():
            elements = max(1, int(share * nbytes / 4))
            if source == self._world.rank:
                sends.append((target, self._out[used : used + elements]))
                used += elements
            if target == self._world.rank:
                receives.append(Receive(source, (elements,), self._out.dtype))
        slot = turn % SLOTS if nbytes <= LOOP_BYTES else 0
        message = self._transport.start(("calibrate", pattern.name, slot), sends, receives)
        return lambda: self._end(message)

    def _end(self, message: Message) -> None:
        self._transport.wait(message)
        self._transport.release(message)


def overlap_slowdown(messages: Messages, world: World, compute: Callable[[], None], rounds: int) -> float:
    """Return the median time that a message adds to concurrent computing ÷ the message's time."""
    everyone = next(p for p in reversed(list(patterns(range(world.size)))) if p.name.startswith("exchange"))
    message_s = statistics.median(messages.seconds(everyone, HIDDEN_BYTES) for _ in range(rounds))
    return slowdown_of(
        lambda: messages.start(everyone, HIDDEN_BYTES), message_s, world, messages.watch, compute, rounds
    )


def slowdown_of(
    start: Callable[[], Waiter],
    message_s: float,
    world: World,
    watch: Stopwatch,
    compute: Callable[[], None],
    rounds: int,
) -> float:
    """Return the median time that a message of `message_s` seconds adds to concurrent computing, as a
    share of the time that both last. `start` starts it and returns a function that waits for it."""
    waiting: list[Waiter] = []

    def finish() -> None:
        for wait in waiting:
            wait()
        waiting.clear()

    def timed(sends: bool, times: int) -> list[float]:
        def work() -> None:
            if sends:
                waiting.append(start())
            for _ in range(times):
                compute()

        return seconds_together(watch, world, work, align=lambda: start()(), finish=finish)

    timed(False, 1)
    compute_s = statistics.median(max(timed(False, 1)) for _ in range(3))
    times = max(1, math.ceil(LONGER * message_s / compute_s))
    if watch.holds:
        times = min(times, QUEUED)
    both_s = min(message_s, times * compute_s)
    every: list[float] = []
    for _ in range(rounds):
        busy, free = timed(True, times), timed(False, times)
        every += [longer - shorter for longer, shorter in zip(busy, free, strict=True)]
    return min(1.0, max(0.0, statistics.median(every) / both_s))


def latency_in_a_step_s(
    messages: Messages,
    world: World,
    chosen: Sequence[Pattern],
    compute: Callable[[Callable[[], None]], None],
    rounds: int,
) -> float:
    """Return the seconds that each small message adds between parts of the workers' computing.

    This is more than the latency of a message alone, since the workers never arrive at the same
    moment. `compute` calls its argument between its parts. The pattern with the most workers is
    used. The queue is not filled: as in a step, a message takes the host's time where the host is
    slower, and the device's where that is.
    """
    watch = messages.watch
    widest = max(chosen, key=lambda pattern: len({worker for pair in pattern.sends for worker in pair}))
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
