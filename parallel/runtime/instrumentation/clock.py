"""How an epoch's time divides into data loading, compute, exposed communication and idle time.

Each worker records when its side of a message is ready (`started`) and while it is blocked by one
(`waiting`), in seconds since the barrier at the start of the epoch. After the epoch the workers
exchange their start times, and each divides its blocked time:

    idle           until the last of the peers that it receives from has started
    communication  the remainder, while the message is in transit

Compute is the epoch minus data loading, communication and idle time, and so includes packing, the
optimizer and Python. On CUDA the marks are events of the compute stream, which NCCL's waits block.
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

MessageKey = tuple[object, ...]
"""Name of a message of a step, equal on every worker."""


@dataclass(frozen=True)
class TimeSplit:
    """Division of one worker's epoch, in seconds."""

    data_wait_s: float
    compute_s: float
    communication_s: float
    idle_s: float


class Clock:
    """Records the times of one worker's epoch."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        """Start an epoch. Call it right after a barrier."""
        self._origin = self.now()
        self._starts: defaultdict[MessageKey, list[Any]] = defaultdict(list)
        self._waits: list[tuple[MessageKey, int, Sequence[int], Any, Any]] = []
        self._waited: defaultdict[MessageKey, int] = defaultdict(int)
        self._data: list[tuple[Any, Any]] = []

    def now(self) -> Any:
        """Return a mark of the present moment: on CUDA of when the device reaches it."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, mark: Any) -> float:
        """Return the time of a mark since the start of the epoch."""
        return self._origin.elapsed_time(mark) / 1000 if self._cuda else mark - self._origin

    def started(self, key: MessageKey) -> None:
        """Record that this worker's side of the message is ready."""
        self._starts[key].append(self.now())

    @contextmanager
    def waiting(self, key: MessageKey, sources: Sequence[int]) -> Iterator[None]:
        """Record the time of the block as waiting for a message from the workers `sources`."""
        begin = self.now()
        yield
        self._waits.append((key, self._waited[key], sources, begin, self.now()))
        self._waited[key] += 1

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Record the time of the block as data loading."""
        begin = time.perf_counter()
        yield
        self._data.append((begin, time.perf_counter()))

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

    def split(
        self, seconds: float, own_end: float, starts: Sequence[dict[MessageKey, np.ndarray]]
    ) -> TimeSplit:
        """Divide an epoch of `seconds` that this worker finished at `own_end`.

        `starts` are those of all workers, by rank.
        """
        data = sum(end - begin for begin, end in self._data)
        communication, idle = 0.0, seconds - own_end
        for key, occurrence, sources, begin_mark, end_mark in self._waits:
            begin, end = self.seconds(begin_mark), self.seconds(end_mark)
            ready = max((starts[source][key][occurrence] for source in sources), default=begin)
            until = min(max(begin, ready), end)
            idle += until - begin
            communication += end - until
        return TimeSplit(data, max(0.0, seconds - data - communication - idle), communication, idle)
