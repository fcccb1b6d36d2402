"""The timeline of a simulated step: its events, and how each worker spends the step.

The step of T seconds (the last clock plus the step overhead) is divided for each worker as in a
measured step (`parallel.runtime.instrumentation.clock`):

    computing    passes of its own parts, updates, step overhead, and the share σ
                 (`overlap_slowdown`) of communication through shared memory that is not hidden, since
                 there the worker itself spends that share copying; over a network, the backend copies
                 while the worker waits
    exposed      the rest of the communication that is not hidden: the worker computes nothing while
                 one of its messages is under way
    idle         the rest: it waits for other workers, or for a slower part of the same op

computing + exposed + idle = T. Utilisation is computing / T.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from parallel.cluster import Cluster
from parallel.graph import INPUT
from parallel.graph.box import Span
from parallel.program import Program
from parallel.program.required_memory import memory_of

COMPUTE, NETWORK = "compute", "network"
STREAMS = {
    "forward": COMPUTE,
    "backward": COMPUTE,
    "update": COMPUTE,
    "exchange": NETWORK,
    "exchange back": NETWORK,
    "sum": NETWORK,
    "gather": NETWORK,
}

ROUNDING = 1e-9
"""Share of the step below which idle time is a rounding error."""


@dataclass(frozen=True, eq=False)
class Event:
    """A pass of an op, an update, or a message, on all workers that take part."""

    kind: str
    """A key of `STREAMS`."""
    name: str
    """Name of the op, or of the edge as producer>consumer."""
    micro_batch: int | None
    workers: tuple[int, ...]
    start_s: float
    end_s: float
    own_s: np.ndarray | None
    """Seconds that each of the workers computes; None: all of the event."""
    kept: np.ndarray | None = None
    """Change of each worker's stored activations at the end of the event, in bytes."""

    @property
    def stream(self) -> str:
        return STREAMS[self.kind]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + ("" if self.micro_batch is None else f":{self.micro_batch}")


@dataclass(frozen=True, eq=False)
class Split:
    """Seconds of the step by worker [w]; the three add up to the step."""

    compute_s: np.ndarray
    exposed_s: np.ndarray
    idle_s: np.ndarray


@dataclass(frozen=True, eq=False)
class Timeline:
    """A simulated step."""

    program: Program
    cluster: Cluster
    precision: str
    events: tuple[Event, ...]
    """In the order of the program."""
    end_s: float
    """End of the last event, in seconds from the start."""

    @property
    def workers(self) -> int:
        return self.program.plan.workers

    @property
    def step_s(self) -> float:
        """Seconds of the step without loading."""
        return self.end_s + self.cluster.step_overhead_s

    @cached_property
    def images(self) -> tuple[int, ...]:
        """Number of images that each worker loads."""
        program, loaded = self.program, [set[Span]() for _ in range(self.workers)]
        for op in program.graph:
            if INPUT in op.inputs:
                for m, worker in itertools.product(
                    range(program.plan.micro_batches), program.plan[op.name].on
                ):
                    part = program.part(op.name, worker, m)
                    if part is not None:
                        loaded[worker].add(part.box.spans[0])  # loaded once, for all ops that read them
        return tuple(sum(stop - start for start, stop in spans) for spans in loaded)

    @property
    def loaded_step_s(self) -> float:
        """Seconds of the step with loading, which may overlap it."""
        return self.cluster.step_s(self.end_s, self.images)

    @property
    def data_wait_s(self) -> float:
        """Seconds of the step spent waiting for images."""
        return self.loaded_step_s - self.step_s

    @property
    def images_per_second(self) -> float:
        return self.program.batch_size / self.loaded_step_s

    @cached_property
    def split(self) -> Split:
        """Computing, exposed communication and idle time of each worker."""
        compute = np.full(self.workers, self.cluster.step_overhead_s)
        for event in self.events:
            if event.stream == COMPUTE:
                own_s = event.end_s - event.start_s if event.own_s is None else event.own_s
                compute[list(event.workers)] += own_s
        exposed, in_memory = np.zeros(self.workers), np.zeros(self.workers)
        for workers, events in self._alike():
            exposed[workers], in_memory[workers] = _exposed(events, self.end_s, self._copies)
        idle = self.step_s - compute - exposed
        idle = np.where(idle > ROUNDING * self.step_s, idle, 0.0)
        copying = self.cluster.overlap_slowdown * in_memory
        return Split(compute + copying, exposed - copying, idle)

    def _copies(self, event: Event) -> bool:
        """Return whether the workers of a message themselves copy it, within their node."""
        return self.cluster.shared_memory and len({self.cluster.hosts[w] for w in event.workers}) == 1

    def _alike(self) -> list[tuple[list[int], list[Event]]]:
        """Return the workers that take part in the same events, with these events."""
        sets = list(dict.fromkeys(event.workers for event in self.events))
        member = np.zeros((len(sets), self.workers), dtype=bool)
        for i, workers in enumerate(sets):
            member[i, list(workers)] = True
        groups: dict[bytes, list[int]] = {}
        for worker in range(self.workers):
            groups.setdefault(member[:, worker].tobytes(), []).append(worker)
        number = {workers: i for i, workers in enumerate(sets)}
        return [
            (workers, [e for e in self.events if member[number[e.workers], workers[0]]])
            for workers in groups.values()
        ]

    @property
    def mean_computing(self) -> np.ndarray:
        """Workers of the node that compute while worker w does, on average, including w [w]."""
        busy = [
            [(e.start_s, e.end_s) for e in self.events if e.stream == COMPUTE and worker in e.workers]
            for worker in range(self.workers)
        ]
        result = np.ones(self.workers)
        for number in range(self.cluster.node_of(self.workers - 1) + 1):
            node = [worker for worker in self.cluster.workers_of(number) if worker < self.workers]
            changes = sorted(
                (at, change)
                for worker in node
                for start, end in busy[worker]
                for at, change in ((start, 1), (end, -1))
            )
            times = np.array([at for at, _ in changes])
            count = np.cumsum([change for _, change in changes])  # computing from times[i] on
            worked = np.concatenate([[0.0], np.cumsum(count[:-1] * np.diff(times))]) if len(times) else times
            for worker in node:
                ends = np.array(busy[worker]).reshape(-1, 2)
                total = (ends[:, 1] - ends[:, 0]).sum()
                if total > 0:
                    start, end = np.interp(ends.T, times, worked)
                    result[worker] = (end - start).sum() / total
        return result

    @property
    def utilisation(self) -> np.ndarray:
        """Computing ÷ step by worker [w]."""
        return self.split.compute_s / self.step_s

    def activations(self, worker: int) -> list[tuple[float, int]]:
        """Return (time, bytes) at each change of a worker's stored activations."""
        changes, total = [], 0
        for event in self.events:
            if event.kept is not None and worker in event.workers:
                total += int(event.kept[event.workers.index(worker)])
                changes.append((event.end_s, total))
        return changes

    @cached_property
    def peak_memory(self) -> tuple[int, ...]:
        """Bytes that each worker needs, an upper estimate (`program.required_memory`)."""
        return tuple(memory_of(self.program, worker, self.precision).total for worker in range(self.workers))


def _exposed(events: list[Event], end_s: float, copies: Callable[[Event], bool]) -> tuple[float, float]:
    """Return the seconds in which a worker computes nothing and has a message under way, and how many of
    them it `copies` itself. Messages that pass at the same time count once."""
    computing = [(e.start_s, e.end_s) for e in events if e.stream == COMPUTE]
    gaps = zip(
        [0.0, *(end for _, end in computing)], [*(start for start, _ in computing), end_s], strict=True
    )
    messages, passed_s = [], 0.0
    for event in sorted((e for e in events if e.stream == NETWORK), key=lambda e: e.start_s):
        if event.end_s > passed_s:
            messages.append((max(event.start_s, passed_s), event.end_s, copies(event)))
            passed_s = event.end_s
    total, copied, first = 0.0, 0.0, 0
    for begin, end in gaps:
        while first < len(messages) and messages[first][1] <= begin:
            first += 1
        for start, stop, copying in itertools.islice(messages, first, None):
            if start >= end:
                break
            within = max(0.0, min(end, stop) - max(begin, start))
            total += within
            copied += within * copying
    return total, copied
