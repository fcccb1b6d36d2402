"""A measured step as a trace, in the format of a simulated one: `trainer.trace`.

Computing: each of the program's steps is a bar, a forward or backward of a whole segment; what it waits for lies
within it. Network: a message is a bar from when the worker has made its side ready to when it has stopped waiting for
it, so it may have arrived earlier; where messages overlap they have lanes of their own. The sums of gradients start
within a backward, and an updated shard is waited for in the next step's forward.
"""

from __future__ import annotations

from pathlib import Path

from parallel.config import require
from parallel.plans.text import span_of
from parallel.program import Backward, Forward, Program, Start, Step, Update, Wait
from parallel.runtime.communication.world import World
from parallel.runtime.execution.runtime import Instruction, Runtime
from parallel.runtime.instrumentation.clock import Key
from parallel.simulator.timeline import COMPUTE, NETWORK
from parallel.simulator.trace import Bar, write_trace

STEADY = 10
"""Steps after which caches, allocators and clock rates have settled: the one that is traced when none is named."""


def chosen_step(trace: bool | int, steps: int, epochs: int) -> int | None:
    """The optimizer step that trainer.trace means, when an epoch has so many; None if there is to be no trace."""
    if trace is False:
        return None
    if trace is True:
        return max(0, min(STEADY, steps - 2))  # its last messages end in the next one
    require(0 <= trace < steps * epochs, "trainer.trace", trace,
            f"must be a step of the run, which has {steps * epochs:,}")
    return trace


class StepTrace:
    """Traces one step of a runtime."""

    def __init__(self, runtime: Runtime, step: int) -> None:
        self.step = step
        self._runtime = runtime
        self._marks: list[Instruction] = []

    def before(self, step: int) -> None:
        """Call before every step."""
        if step == self.step:
            self._runtime.trace = self._marks

    def after(self, step: int) -> None:
        """Call after every step."""
        if step == self.step:
            self._runtime.trace = None

    def write(self, world: World, path: Path | None) -> None:
        """Once the epoch that has the step is over, on all workers: worker 0 writes the trace to `path`."""
        bars = world.gather_to_first(self._bars(world.rank))
        if path is not None:
            first = min((bar.start_s for own in bars for bar in own), default=0.0)
            write_trace(path, [shifted(bar, first) for own in bars for bar in own],
                        title=f"step {self.step}, measured")

    def _bars(self, worker: int) -> list[Bar]:
        program, clock = self._runtime.program, self._runtime.clock
        if not self._marks:
            return []
        bars = [Bar(worker, COMPUTE, *named(program, step), clock.seconds(begin), clock.seconds(end))
                for step, begin, end in self._marks]
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
    """The bar, with times from the start of the step."""
    return Bar(bar.worker, bar.stream, bar.kind, bar.name, bar.start_s - first, bar.end_s - first, bar.details)


def named(program: Program, step: Step) -> tuple[str, str]:
    """What a step does, and to what."""
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


def message_name(program: Program, key: Key) -> tuple[str, str]:
    """Kind and name of the message with this key."""
    match key:
        case (("sum" | "gather") as kind, int(bucket)):
            return str(kind), bucket_name(program, bucket)
        case (int(exchange), int(m), way):
            name = program.exchanges[exchange, m].name
            return ("exchange back" if way == "<" else "exchange",
                    name if program.plan.micro_batches == 1 else f"{name}:{m}")
        case _:
            return "message", " ".join(map(str, key))


def bucket_name(program: Program, bucket: int) -> str:
    """The parameters of a bucket."""
    return span_of(".".join(name) for name in program.buckets[bucket].parameters)
