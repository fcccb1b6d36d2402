"""The world of a run: this worker's rank, its device, and the process group of the workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TypeVar

import torch
import torch.distributed as dist

from parallel.results.hosts import Host
from parallel.runtime.communication.chaos import Chaos
from parallel.runtime.communication.encoding import decode, encode
from parallel.runtime.communication.gathering import gather_bytes
from parallel.runtime.communication.groups import Groups, WorkerSet
from parallel.runtime.communication.ordered_stream import OrderedStream
from parallel.runtime.communication.staging import Staging
from parallel.runtime.communication.tokens import Tokens
from parallel.runtime.failure.errors import RunEnded
from parallel.runtime.failure.null_watch import NullWatch
from parallel.runtime.failure.watch import Watch

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This worker, its peers, and collective operations on all of them."""

    rank: int
    size: int
    device: torch.device
    backend: str
    """gloo or nccl; none for a single worker."""
    watch: NullWatch = field(default_factory=NullWatch, repr=False, compare=False)
    """Detects lost workers: every wait for others is reported to it and raises its error."""
    tokens: Tokens | None = field(default=None, repr=False, compare=False)
    """Connections to the neighbours: workers with which this one shares memory."""
    flows: tuple[dist.ProcessGroup, ...] = field(default=(), repr=False, compare=False)
    """Groups of all workers, each with its own connections, for large messages between hosts; none: they
    share the connections of all others."""
    chaos: Chaos | None = None
    """Options of chaos mode; None: off."""
    stream: OrderedStream | None = field(default=None, repr=False, compare=False)
    """Stream of all messages in strict mode; None: off."""
    staging: Staging | None = field(default=None, repr=False, compare=False)
    """Copies between the device and host memory, for workers that share a GPU; None: the backend takes the
    device's tensors."""
    transports: Iterator[int] = field(default_factory=count, repr=False, compare=False)
    """Numbers of transports, which every worker creates in the same order."""
    groups: Groups = field(default_factory=Groups, repr=False, compare=False)
    """Groups of workers that sum gradients by collectives."""
    hosts: tuple[Host, ...] = field(default=(), repr=False, compare=False)
    """The hosts of all workers. Empty in a world that was not opened with `open_world`."""

    @property
    def collectives(self) -> bool:
        """Whether the backend's own collectives sum gradients and gather weights."""
        return self.backend == "nccl"

    @property
    def host(self) -> Host:
        """The host of this worker."""
        return next(host for host in self.hosts if self.rank in host.workers)

    @property
    def neighbours(self) -> frozenset[int]:
        """Workers with which this one shares memory."""
        return frozenset() if self.tokens is None else self.tokens.peers

    @property
    def on_host(self) -> World:
        """This world as tensors in host memory see it; itself, unless tensors are staged."""
        return self if self.staging is None else replace(self, device=torch.device("cpu"), staging=None)

    @property
    def host_of(self) -> tuple[int, ...]:
        """Index of the host of each worker."""
        return tuple(host.index for host in self.hosts for _ in host.workers)

    @property
    def node_workers(self) -> tuple[int, ...]:
        """Number of workers of each host."""
        return tuple(len(host.workers) for host in self.hosts)

    @contextmanager
    def _together(self, what: str) -> Iterator[None]:
        self.watch.waits((what,), -1)
        try:
            if self.stream is not None:
                self.stream.drain()
            yield
        except RuntimeError as error:
            raise self.watch.lost(error) from error
        self.watch.goes_on()

    def started(self) -> None:
        """Wait until all workers have started; limit waits to `cluster.timeout_s` from now on."""
        self.barrier()
        if isinstance(self.watch, Watch):
            # The process group keeps the timeout of the start: it counts the time for which the whole job is
            # stopped (Ctrl-Z). The watch limits all waits that it is told of.
            self.watch.started()

    def open_groups(self, sets: Iterable[WorkerSet]) -> None:
        """Make the groups of these sets of workers that do not exist. All workers call it alike.

        A split of NCCL's communicator (`ncclCommSplit`) may deadlock while the communicator is at work, as it
        may be for the runtime before.
        """
        missing = self.groups.missing(sets)
        if missing:
            self.barrier()
        for workers in missing:
            with self._together("process group"):
                self.groups.make(workers)

    def barrier(self) -> None:
        """Wait until every worker has called this with its device idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.size > 1:
            with self._together("barrier"):
                dist.barrier()

    def gather(self, value: T) -> list[T]:
        """Return every worker's value, by rank, on every worker.

        A value consists of the types that `encoding` lists; nothing received is ever executed.
        """
        return [value] if self.size == 1 else self._gather("gather", value, None)

    def gather_to_first(self, value: T) -> list[T]:
        """Return every worker's value, as `gather`, on worker 0; an empty list on the others."""
        return [value] if self.size == 1 else self._gather("gather to worker 0", value, 0)

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what `make` returns on worker 0, on every worker; the others do not call it.

        The value is one that `gather` takes. A `ValueError` of `make` is raised on every worker.
        """
        made: list[T] = []
        failure: ValueError | None = None
        if self.rank == 0:
            try:
                made = [make()]
            except ValueError as error:
                failure = error
        values, sentence = self.gather((made, None if failure is None else str(failure)))[0]
        if sentence is not None:
            raise ValueError(sentence) from failure
        return values[0]

    def _gather(self, what: str, value: T, to: int | None) -> list[T]:
        own = encode(value)
        with self._together(what):
            messages = gather_bytes(own, self.size, self.on_host.device, to)
        values = []
        for rank, message in enumerate(messages):
            try:
                values.append(decode(message))
            except ValueError as error:
                raise RunEnded(f"worker {rank} sent a message that can't be read: {error}") from error
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum the workers' tensors in place, on every worker."""
        if self.size > 1:
            moved = self._moved(tensor)
            with self._together("sum"):
                dist.all_reduce(moved)
            self._put_back(tensor, moved)
        return tensor

    def start_sum(self, tensor: torch.Tensor) -> Callable[[], None]:
        """Start to sum the workers' tensors in place; return a function that waits for the sum.

        The backend's own all-reduce, as DDP starts it: for calibration.
        """
        moved = self._moved(tensor)
        work = dist.all_reduce(moved, async_op=True)
        if work is None:
            raise RuntimeError("this worker is in no process group")

        def wait() -> None:
            with self._together("sum"):
                work.wait()
            self._put_back(tensor, moved)

        return wait

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor as the process group takes it."""
        return tensor if self.staging is None else self.staging.to_host([tensor])[0]

    def _put_back(self, tensor: torch.Tensor, moved: torch.Tensor) -> None:
        if self.staging is not None:
            self.staging.to_device([(tensor, moved)])
