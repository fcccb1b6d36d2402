"""A CPU worker's stream of messages with NCCL's semantics, to find out what NCCL would do.

    order        groups of sends and receives, and collectives, run one after the other, in the order in which
                 they are enqueued
    group        its operations progress together; it ends when all of them have
    no tags      what two workers exchange is matched by its order alone
    rendezvous   a send ends only when its receiver has reached the receive: nothing is buffered
    later        a worker does not wait for what it enqueues, and may read received data, or overwrite sent
                 data, only after `StreamWork.wait`

The stream is a thread, with another one for each peer and direction of the group that runs. The receiver
tells the sender that it is ready, and for what; the sender compares that with what it sends. The members of
a collective tell each other what they call before they start it. (NCCL would not notice, and move bytes that
mean something else, or hang.) All communication is gloo's.

NCCL gives each process group a stream of its own. Here all groups share one, which is stricter: operations of
several groups that are under way at a time must start in one order on all workers (NCCL's user guide, "Using
multiple NCCL communicators concurrently").
"""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.runtime.failure.watch import NullWatch

READY, DATA, CALL = 1, 2, 3
"""Tags within gloo, so that the kinds of message do not meet."""
READY_BYTES, CALL_BYTES = 256, 1024
UNLIMITED = timedelta(days=365)
POLL_S = 0.1
"""Interval at which a worker that waits looks whether the run is over."""


class WrongOrder(Exception):
    """Raised when a send meets the receive of another message, or a collective another one."""


@dataclass(frozen=True)
class Operation:
    """One operation of a group."""

    sends: bool
    tensor: Tensor
    """Contiguous: what is sent, or where it is received."""
    peer: int


@dataclass(frozen=True)
class Call:
    """What a worker calls a collective with: the same on all of its members."""

    kind: str
    key: tuple[object, ...]
    tensor: Tensor
    """The whole tensor, which the collective divides."""
    workers: tuple[int, ...]

    def __str__(self) -> str:
        what = f"{self.kind} {_named(self.key, self.tensor)}"
        return f"{what} among workers {', '.join(map(str, self.workers))}"


@dataclass
class StreamWork:
    """A group or a collective on the stream: a handle to wait for, like NCCL's work."""

    run: Callable[[], None]
    """Blocks until it has ended."""
    _watch: NullWatch
    _deliver: Callable[[], None]
    """Makes received data readable."""
    ended: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def wait(self) -> None:
        """Block until the group has ended. Raises `WrongOrder`, and `RuntimeError` if the run is over."""
        while not self.ended.wait(POLL_S):
            if self._watch.over:
                raise RuntimeError("the run is over")
        if self.error is not None:
            raise self.error
        self._deliver()


class OrderedStream:
    """The stream of one worker. Its thread starts with the first group."""

    def __init__(self, watch: NullWatch) -> None:
        self._watch = watch
        self._groups: queue.SimpleQueue[StreamWork | None] = queue.SimpleQueue()
        self._last: StreamWork | None = None
        self._thread = threading.Thread(target=self._run, name="ordered stream", daemon=True)

    def enqueue(
        self, key: tuple[object, ...], operations: Sequence[Operation], deliver: Callable[[], None]
    ) -> StreamWork:
        """Append a group; return its handle, whose `wait` calls `deliver`."""
        return self._append(partial(_run_group, key, operations), deliver)

    def enqueue_collective(
        self, call: Call, collective: Callable[[], dist.Work | None], deliver: Callable[[], None]
    ) -> StreamWork:
        """Append a collective, which is started when all before it has ended and its members have agreed on
        the call; return its handle."""

        def run() -> None:
            _agree(call)
            _wait(collective())

        return self._append(run, deliver)

    def _append(self, run: Callable[[], None], deliver: Callable[[], None]) -> StreamWork:
        if self._last is None:
            self._thread.start()
        self._last = StreamWork(run, self._watch, deliver)
        self._groups.put(self._last)
        return self._last

    def drain(self) -> None:
        """Block until all groups have ended, as a collective on the same communicator does.

        It delivers nothing. Raises what `StreamWork.wait` raises.
        """
        last = self._last
        while last is not None and not last.ended.wait(POLL_S):
            if self._watch.over:
                raise RuntimeError("the run is over")
        if last is not None and last.error is not None:
            raise last.error

    def close(self) -> None:
        """End the thread, after all groups."""
        if self._last is not None:
            self._groups.put(None)
            self._thread.join()

    def _run(self) -> None:
        failed: Exception | None = None
        while (group := self._groups.get()) is not None:
            try:
                if failed is None:
                    group.run()
            except (RuntimeError, WrongOrder) as error:
                failed = error
            group.error = failed
            group.ended.set()


def _run_group(key: tuple[object, ...], operations: Sequence[Operation]) -> None:
    """Run the operations of a group together. Raises the first exception of one."""
    ways = defaultdict[tuple[bool, int], list[Operation]](list)
    for operation in operations:
        ways[operation.sends, operation.peer].append(operation)
    outcomes: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def run(way: Sequence[Operation]) -> None:
        try:
            for operation in way:
                (_send if operation.sends else _receive)(key, operation)
        except (RuntimeError, WrongOrder) as error:
            outcomes.put(error)
        else:
            outcomes.put(None)

    for way in ways.values():
        threading.Thread(target=run, args=(way,), daemon=True).start()
    for _ in ways:
        error = outcomes.get()
        if error is not None:  # the other operations may never end
            raise error


def _send(key: tuple[object, ...], operation: Operation) -> None:
    ready = torch.empty(READY_BYTES, dtype=torch.uint8)
    _wait(dist.irecv(ready, operation.peer, tag=READY))
    ours, theirs = _described(key, operation.tensor), ready.numpy().tobytes()
    if ours != theirs:
        raise WrongOrder(
            f"sends {_text(ours)} to worker {operation.peer}, which is to receive {_text(theirs)} from here"
        )
    _wait(dist.isend(operation.tensor.detach(), operation.peer, tag=DATA))


def _receive(key: tuple[object, ...], operation: Operation) -> None:
    arrives = dist.irecv(operation.tensor, operation.peer, tag=DATA)
    described = np.frombuffer(_described(key, operation.tensor), np.uint8).copy()
    _wait(dist.isend(torch.from_numpy(described), operation.peer, tag=READY))
    _wait(arrives)


def _agree(call: Call) -> None:
    """Compare a call with those of the other members. Raises `WrongOrder` that names two that differ.

    Members that have come to a collective of other workers do not answer, which the watch reports.
    """
    ours = _padded(str(call), CALL_BYTES)
    others = [worker for worker in call.workers if worker != dist.get_rank()]
    told = {other: torch.empty(CALL_BYTES, dtype=torch.uint8) for other in others}
    arriving = [(other, dist.irecv(tensor, other, tag=CALL)) for other, tensor in told.items()]
    own = torch.from_numpy(np.frombuffer(ours, np.uint8).copy())
    leaving = [dist.isend(own, other, tag=CALL) for other in others]
    for other, arrives in arriving:
        _wait(arrives)
        theirs = told[other].numpy().tobytes()
        if ours != theirs:
            raise WrongOrder(f"calls {_text(ours)}, and worker {other} calls {_text(theirs)}")
    for sent in leaving:
        _wait(sent)


def _wait(work: dist.Work | None) -> None:
    if work is None:
        raise RuntimeError("this worker is in no process group")
    work.wait(UNLIMITED)


def _described(key: tuple[object, ...], tensor: Tensor) -> bytes:
    """Return what is sent or received, the same at both ends."""
    return _padded(_named(key, tensor), READY_BYTES)


def _named(key: tuple[object, ...], tensor: Tensor) -> str:
    return f"{' '.join(map(str, key))}: {tensor.numel()} elements of {tensor.dtype}"


def _padded(text: str, size: int) -> bytes:
    return text.encode()[:size].ljust(size)


def _text(described: bytes) -> str:
    return repr(described.decode(errors="replace").rstrip())
