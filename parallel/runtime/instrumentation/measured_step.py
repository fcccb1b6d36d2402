"""One measured step as spans of `results.step_timeline`, written beside the predicted one.

    data            the wait for the batch, with which the step begins
    compute         instructions of the program, without the waits inside them
    idle            waits until the last of the senders is ready, as in `clock`
    communication   the rest of a wait; hidden: from when both sides of a message are ready until this
                    worker waits for it, while it computes. The message may have arrived earlier

Every worker counts from the barrier at the start of the epoch; the step starts with the first worker.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import numpy as np

from parallel.program.message_size import received_bytes
from parallel.results.step_timeline import Span
from parallel.runtime.instrumentation.clock import Clock, MessageKey
from parallel.runtime.instrumentation.group import Group
from parallel.runtime.instrumentation.trace import StepTrace, message_name
from parallel.simulator.step_spans import joined, pieces

Starts = Sequence[Mapping[MessageKey, np.ndarray]]


def measured_step(trace: StepTrace, group: Group, starts: Starts, itemsize: int) -> tuple[Span, ...]:
    """Return the spans of all workers on worker 0, none on the others.

    Call it on all workers after the step's epoch. `starts`: those of all workers' clocks; `itemsize`: bytes
    per element of an activation.
    """
    own = [dataclasses.astuple(span) for span in _spans(trace, group.rank, starts, itemsize)]
    names = [field.name for field in dataclasses.fields(Span)]
    every = [
        dict(zip(names, values, strict=True)) for values in chain.from_iterable(group.gather_to_first(own))
    ]
    first = min((values["start_s"] for values in every), default=0.0)
    spans = [
        Span(**values | {"start_s": values["start_s"] - first, "end_s": values["end_s"] - first})
        for values in every
    ]
    return tuple(sorted(spans, key=lambda span: (span.worker, span.start_s, span.end_s)))


def _spans(trace: StepTrace, worker: int, starts: Starts, itemsize: int) -> Iterator[Span]:
    """Yield the spans of one worker, in seconds since the start of the epoch."""

    def span(start: float, end: float, kind: str, name: str, hidden: bool = False, received: int = 0) -> Span:
        return Span(
            worker=worker, start_s=start, end_s=end, kind=kind, name=name, hidden=hidden, received=received
        )

    clock = trace.clock
    instructions = list(trace.instructions())
    if not instructions:
        return
    first, last = instructions[0][1], instructions[-1][2]
    loading = _loading_before(clock, first)
    if loading is not None:
        yield span(*loading, "data", "loading")
    waits = [wait for wait in clock.waits(starts) if wait.begin < last and wait.end > first]
    blocked = joined((wait.begin, wait.end) for wait in waits)
    computing = []
    for name, start, end in instructions:
        for at, until, within in pieces((start, end), blocked):
            if not within:
                computing.append((at, until))
                yield span(at, until, "compute", name)
    computing = joined(computing)
    for wait in waits:
        name = " ".join(message_name(trace.program, wait.key))
        received = received_bytes(trace.program, worker, wait.key, itemsize)
        begin, end = max(wait.begin, first), min(wait.end, last)
        arrives = min(max(wait.arrives, begin), end)
        if arrives > begin:
            yield span(begin, arrives, "idle", name, received=received)
        if end > arrives:
            yield span(arrives, end, "communication", name, received=received)
        for at, until, within in pieces((max(wait.started, wait.ready, first), begin), computing):
            if within:
                yield span(at, until, "communication", name, hidden=True, received=received)


def _loading_before(clock: Clock, first: float) -> tuple[float, float] | None:
    """Return the wait for the batch of the step whose first instruction begins at `first`."""
    return next(((begin, end) for begin, end in reversed(clock.loads) if end <= first), None)
