"""Trace of a measured step, in the format of simulated traces: `trainer.trace`.

Compute lane: each instruction of the program is a bar, with its waits inside. Network lane: a
message is a bar from when this worker's side is ready until this worker stops waiting for it, so it
may have arrived earlier; overlapping messages get separate lanes. Gradient sums start within a
backward; updated shards are waited for in the forward of the next step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from parallel.config import require
from parallel.plans.text import span_of
from parallel.program import Backward, Forward, Program, Start, Step, Update, Wait
from parallel.runtime.instrumentation.clock import Clock, MessageKey
from parallel.runtime.instrumentation.group import Group
from parallel.simulator.timeline import COMPUTE, NETWORK
from parallel.simulator.trace import Bar, write_trace

STEADY = 10
"""The step that is traced by default: by then caches, allocators and clock rates are steady."""

TimedInstruction = tuple[Step, Any, Any]
"""An instruction of the program, and the clock's marks of when the worker began and ended it."""


class Traceable(Protocol):
    """An engine that can time its instructions."""

    program: Program
    clock: Clock
    trace: list[TimedInstruction] | None
    """If it is a list, each step appends its instructions to it."""


def chosen_step(trace: bool | int, steps: int, epochs: int) -> int | None:
    """Return the optimizer step that trainer.trace selects, or None for no trace.

    `steps` are those of an epoch.
    """
    if trace is False:
        return None
    if trace is True:
        return max(0, min(STEADY, steps - 2))  # its last messages end in the next one
    require(
        0 <= trace < steps * epochs,
        "trainer.trace",
        trace,
        f"must be a step of the run, which has {steps * epochs:,}",
    )
    return trace


class StepTrace:
    """Traces one step of an engine."""

    def __init__(self, engine: Traceable, step: int) -> None:
        self.step = step
        self._engine = engine
        self._marks: list[TimedInstruction] = []

    @property
    def program(self) -> Program:
        """The program whose step is traced."""
        return self._engine.program

    @property
    def clock(self) -> Clock:
        """The clock of this worker."""
        return self._engine.clock

    def instructions(self) -> Iterator[tuple[str, float, float]]:
        """Yield name, begin and end of each instruction of the traced step, since the start of its
        epoch."""
        for step, begin, end in self._marks:
            yield " ".join(named(self.program, step)), self.clock.seconds(begin), self.clock.seconds(end)

    def before(self, step: int) -> None:
        """Call before every step."""
        if step == self.step:
            self._engine.trace = self._marks

    def after(self, step: int) -> None:
        """Call after every step."""
        if step == self.step:
            self._engine.trace = None

    def write(self, group: Group, path: Path | None) -> None:
        """Collect the trace and write it to `path`, None on all workers but 0.

        Call it after the step's epoch.
        """
        own = [dataclasses.astuple(bar) for bar in self._bars(group.rank)]
        bars = [Bar(*values) for values in chain.from_iterable(group.gather_to_first(own))]
        if path is not None:
            first = min((bar.start_s for bar in bars), default=0.0)
            write_trace(path, [shifted(bar, first) for bar in bars], title=f"step {self.step}, measured")

    def _bars(self, worker: int) -> list[Bar]:
        program, clock = self._engine.program, self._engine.clock
        if not self._marks:
            return []
        bars = [
            Bar(worker, COMPUTE, *named(program, step), clock.seconds(begin), clock.seconds(end))
            for step, begin, end in self._marks
        ]
        first, last = bars[0].start_s, bars[-1].end_s
        for key, start, begin, end in clock.messages:
            if end < first or start > last:
                continue
            kind, name = message_name(program, key)
            bars.append(Bar(worker, NETWORK, kind, name, max(start, first), end))
            if begin < last:
                bars.append(Bar(worker, COMPUTE, "wait", f"{kind} {name}", max(begin, first), min(end, last)))
        return bars


def shifted(bar: Bar, first: float) -> Bar:
    """Return the bar with times relative to `first`."""
    return dataclasses.replace(bar, start_s=bar.start_s - first, end_s=bar.end_s - first)


def named(program: Program, step: Step) -> tuple[str, str]:
    """Return the kind of an instruction, and the name of what it works on."""

    def batch(m: int | None) -> str:
        return "" if m is None or program.plan.micro_batches == 1 else f":{m}"

    match step:
        case Forward(segment, m):
            return "forward", span_of(program.segments[segment].ops) + batch(m)
        case Backward(segment, m, _):
            return "backward", span_of(reversed(program.segments[segment].ops)) + batch(m)
        case Start(exchange, m, backward):
            return "start", ("back " if backward else "") + program.exchanges[exchange, m].name + batch(m)
        case Wait(exchange, m, backward):
            return "finish", ("back " if backward else "") + program.exchanges[exchange, m].name + batch(m)
        case Update(bucket):
            return "update", bucket_name(program, bucket)


def message_name(program: Program, key: MessageKey) -> tuple[str, str]:
    """Return the kind and name of the message with this key."""
    match key:
        case (("sum" | "gather") as kind, int(bucket)):
            return str(kind), bucket_name(program, bucket)
        case (("sum" | "gather") as kind, int(bucket), "within" | "between" as level, *_):
            return str(kind), f"{bucket_name(program, bucket)} {level} hosts"
        case (int(exchange), int(m), way):
            name = program.exchanges[exchange, m].name
            return (
                "exchange back" if way == "<" else "exchange",
                name if program.plan.micro_batches == 1 else f"{name}:{m}",
            )
        case _:
            return "message", " ".join(map(str, key))


def bucket_name(program: Program, bucket: int) -> str:
    """Return the name of a bucket: its first and last parameter."""
    return span_of(".".join(name) for name in program.buckets[bucket].parameters)
