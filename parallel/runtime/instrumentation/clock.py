"""How an epoch's time divides into data loading, compute, exposed communication and idle time.

Each worker records when its side of a message is ready (`started`) and while it is blocked by one
(`waiting`), in seconds since the barrier at the start of the epoch. After the epoch the workers
exchange their start times, and each divides its blocked time:

    idle           until the last of the peers that it receives from has started
    communication  the remainder, while the message is in transit

A worker is also idle from its last step until the last worker has ended the epoch. Compute is the
epoch minus data loading, communication and idle time, and so includes packing, the optimizer and
Python.

On a GPU all marks are events of the compute stream (`timer`), which NCCL's waits block. A wait for
data is then the time for which the device has nothing to do: it begins when the device has finished
the previous step, not when the host asks for the batch, and ends when the first kernel that needs the
batch can run.

Workers' clocks begin when each leaves the barrier. So the idle time of a wait and its communication are
told apart with the error by which the workers leave it at different moments.

With `phases` a clock also records what each step of each worker consists of, from which
`parallel.training.stragglers` names slow workers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from parallel.runtime.instrumentation.phases import Phase, open_phases
from parallel.runtime.instrumentation.timer import Timer, open_timer

MessageKey = tuple[object, ...]
"""Name of a message of a step, equal on every worker."""


@dataclass(frozen=True)
class TimeSplit:
    """Division of one worker's epoch, in seconds."""

    data_wait_s: float
    compute_s: float
    communication_s: float
    idle_s: float


class Waited(NamedTuple):
    """A wait for a message, in seconds since the start of the epoch."""

    key: MessageKey
    started: float
    """When this worker's side of the message was ready."""
    ready: float
    """When the last of its senders was ready."""
    begin: float
    end: float

    @property
    def arrives(self) -> float:
        """Time within the wait until which it is idle, and from which the message is in transit."""
        return min(max(self.begin, self.ready), self.end)


class Block(NamedTuple):
    """Time for which a worker was blocked by another one's part of a message."""

    step: int
    key: MessageKey
    occurrence: int
    source: int
    begin: Any
    end: Any
    without_core_s: float
    """Part of it for which the worker had no core."""


class Clock:
    """Records the times of one worker's epoch."""

    def __init__(self, device: torch.device, *, phases: bool = False, timer: Timer | None = None) -> None:
        """`phases`: record the phases of steps and the times blocked by each worker. `timer`: another
        one than the device's."""
        self._timer = open_timer(device) if timer is None else timer
        self.now: Callable[[], Any] = self._timer.mark
        """Return a mark of the present moment: on CUDA of when the device reaches it."""
        self._records_phases = phases
        self.phases = open_phases(self._timer, on=phases)
        self.reset()

    def reset(self) -> None:
        """Start an epoch. Call it right after a barrier."""
        self._timer.reset()
        self._starts: defaultdict[MessageKey, list[Any]] = defaultdict(list)
        self._waits: list[tuple[MessageKey, int, Sequence[int], Any, Any]] = []
        self._waited: defaultdict[MessageKey, int] = defaultdict(int)
        self._data: list[tuple[Any, Any]] = []
        self._loading: tuple[Any, Phase] | None = None
        self._finished = self._ended = self.now()
        self._blocks: list[Block] = []
        self._awaited: tuple[MessageKey, int] | None = None
        self.phases.reset()

    def seconds(self, mark: Any) -> float:
        """Return the time of a mark since the start of the epoch."""
        return self._timer.seconds(mark)

    def started(self, key: MessageKey) -> None:
        """Record that this worker's side of the message is ready."""
        self._starts[key].append(self.now())

    @contextmanager
    def waiting(self, key: MessageKey, sources: Sequence[int]) -> Iterator[None]:
        """Record the time of the block as waiting for a message from the workers `sources`."""
        begin = self.now()
        self._awaited = key, self._waited[key]
        yield
        self._awaited = None
        self._waits.append((key, self._waited[key], sources, begin, self.now()))
        self._waited[key] += 1

    @contextmanager
    def blocked(self, source: int | None = None) -> Iterator[None]:
        """Record the time of the block as blocked by other workers; by `source`, if its part of the
        message that is `waiting` is being received."""
        if not self._records_phases:
            yield
            return
        phase = self.phases.enter(Phase.WAITING)
        begin, without_core = self.now(), self.phases.without_core()
        yield
        end = self.now()
        self.phases.enter(phase)
        if source is not None and self._awaited is not None:
            without_core = self.phases.without_core() - without_core
            self._blocks.append(Block(self.phases.steps, *self._awaited, source, begin, end, without_core))

    @contextmanager
    def messaging(self) -> Iterator[None]:
        """Record the time of the block as this worker's own work on messages."""
        phase = self.phases.enter(Phase.MESSAGES)
        yield
        self.phases.enter(phase)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Record the time of the block, or of its part before `arrived`, as data loading."""
        self._loading = self.now(), self.phases.enter(Phase.LOADING)
        yield
        self.arrived()

    def arrived(self) -> None:
        """End a wait for data: the device can run the first kernel of the batch that is loading."""
        if self._loading is None:
            return
        begin, phase = self._loading
        self._loading = None
        self._data.append((begin, self.now()))
        self.phases.enter(phase)

    def finished(self) -> None:
        """Record that this worker's last step of the epoch has been enqueued, before the barrier."""
        self._finished = self.now()

    def ended(self) -> None:
        """Record the end of the epoch, after the barrier."""
        self._ended = self.now()

    @property
    def starts(self) -> dict[MessageKey, np.ndarray]:
        """Times at which this worker started each message, by step; input of the peers' `split`."""
        return {key: np.array([self.seconds(mark) for mark in marks]) for key, marks in self._starts.items()}

    @property
    def messages(self) -> list[tuple[MessageKey, float, float, float]]:
        """Finished messages: key, start, and begin and end of the wait."""
        return [
            (key, self.seconds(self._starts[key][occurrence]), self.seconds(begin), self.seconds(end))
            for key, occurrence, _, begin, end in self._waits
            if occurrence < len(self._starts[key])
        ]

    @property
    def loads(self) -> list[tuple[float, float]]:
        """Begin and end of each wait for a batch."""
        return [(self.seconds(begin), self.seconds(end)) for begin, end in self._data]

    def waits(self, starts: Sequence[Mapping[MessageKey, np.ndarray]]) -> Iterator[Waited]:
        """Yield each wait for a message; `starts` as in `split`."""
        for key, occurrence, sources, begin_mark, end_mark in self._waits:
            begin, end = self.seconds(begin_mark), self.seconds(end_mark)
            ready = max((starts[source][key][occurrence] for source in sources), default=begin)
            own = self._starts.get(key, ())
            started = self.seconds(own[occurrence]) if occurrence < len(own) else begin
            yield Waited(key, started, float(ready), begin, end)

    def split(self, seconds: float, starts: Sequence[Mapping[MessageKey, np.ndarray]]) -> TimeSplit:
        """Divide an epoch of `seconds`, which this worker has `finished` and which has `ended`.

        `starts` are those of all workers, by rank.
        """
        data = sum(until - begin for begin, until in self.loads)
        communication, idle = 0.0, self.seconds(self._ended) - self.seconds(self._finished)
        for wait in self.waits(starts):
            idle += wait.arrives - wait.begin
            communication += wait.end - wait.arrives
        return TimeSplit(data, max(0.0, seconds - data - communication - idle), communication, idle)

    def transit(self, starts: Sequence[Mapping[MessageKey, np.ndarray]]) -> np.ndarray:
        """Return the seconds that each worker blocked this one, in each step, with messages that it
        had started before this one did [steps, workers]. NaN: no message from it.

        A message that its sender starts later than its receiver is waited for as a rule, however fast
        it is. `starts` are those of all workers, by rank.
        """
        seconds = np.full((self.phases.steps, len(starts)), np.nan)
        seconds[:, list({block.source for block in self._blocks})] = 0.0
        for block in self._blocks:
            ready = starts[block.source][block.key][block.occurrence]
            own = self.seconds(self._starts[block.key][block.occurrence])
            if block.step < len(seconds) and ready <= own:
                blocked = self.seconds(block.end) - self.seconds(block.begin)
                seconds[block.step, block.source] += max(0.0, blocked - block.without_core_s)
        return seconds
