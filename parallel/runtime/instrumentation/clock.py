"""Where an epoch's time goes: waiting for data, computing, communication that is not hidden, idling.

Each worker notes when it makes its side of an exchange ready (`started`) and from when to when it is blocked by one
(`waited`), in seconds since the barrier that begins the epoch. After the epoch the workers tell each other when they
started, and each divides its blocked time:

    idle           until the last of the peers that it receives from had started
    communication  the rest: the message was on its way

Compute is what remains of the epoch when data, communication and idle are taken away, so it includes packing,
the optimizer and Python. On CUDA the marks are events of the compute stream, which is what NCCL's waits hold up.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Key = tuple[object, ...]
"""Names one message exchange of a step, the same on every worker."""


@dataclass(frozen=True)
class TimeSplit:
    """Seconds of one worker's epoch."""

    data_wait_s: float
    compute_s: float
    communication_s: float
    idle_s: float


class Clock:
    """The marks of one worker's epoch."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        """Begin an epoch; call it right after a barrier."""
        self._origin = self.now()
        self._starts: defaultdict[Key, list[Any]] = defaultdict(list)
        self._waits: list[tuple[Key, int, Sequence[int], Any, Any]] = []
        self._waited: defaultdict[Key, int] = defaultdict(int)
        self._data: list[tuple[Any, Any]] = []

    def now(self) -> Any:
        """A mark of this moment: on CUDA of when the device gets there."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, mark: Any) -> float:
        """When a mark was, since the epoch began."""
        return self._origin.elapsed_time(mark) / 1000 if self._cuda else mark - self._origin

    def started(self, key: Key) -> None:
        """This worker's side of the exchange is ready."""
        self._starts[key].append(self.now())

    @contextmanager
    def waiting(self, key: Key, sources: Sequence[int]) -> Iterator[None]:
        """Blocked until the exchange with the workers `sources` is done."""
        begin = self.now()
        yield
        self._waits.append((key, self._waited[key], sources, begin, self.now()))
        self._waited[key] += 1

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Blocked until a batch is there."""
        begin = time.perf_counter()
        yield
        self._data.append((begin, time.perf_counter()))

    @property
    def starts(self) -> dict[Key, np.ndarray]:
        """Per exchange, when this worker started it in each step; for the peers' `split`."""
        return {key: np.array([self.seconds(mark) for mark in marks]) for key, marks in self._starts.items()}

    @property
    def messages(self) -> list[tuple[Key, float, float, float]]:
        """Of every exchange that has ended: its name, when this worker started it, and from when to when it waited."""
        return [(key, self.seconds(self._starts[key][occurrence]), self.seconds(begin), self.seconds(end))
                for key, occurrence, _, begin, end in self._waits if occurrence < len(self._starts[key])]

    def split(self, seconds: float, own_end: float, starts: Sequence[dict[Key, np.ndarray]]) -> TimeSplit:
        """Divide an epoch of `seconds`, which this worker itself ended at `own_end`; `starts` are by rank."""
        data = sum(end - begin for begin, end in self._data)
        communication, idle = 0.0, seconds - own_end
        for key, occurrence, sources, begin_mark, end_mark in self._waits:
            begin, end = self.seconds(begin_mark), self.seconds(end_mark)
            ready = max((starts[source][key][occurrence] for source in sources), default=begin)
            until = min(max(begin, ready), end)
            idle += until - begin
            communication += end - until
        return TimeSplit(data, max(0.0, seconds - data - communication - idle), communication, idle)
