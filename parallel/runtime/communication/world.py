"""The world of a run: this worker's rank, its device, and the process group of the workers."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from parallel.config import ClusterConfig, require
from parallel.runtime.communication.chaos import Chaos
from parallel.runtime.communication.neighbours import connect, place
from parallel.runtime.communication.tokens import Tokens
from parallel.runtime.failure.errors import RunStopped
from parallel.runtime.failure.store import attempt
from parallel.runtime.failure.watch import NullWatch, SingleWatch, Watch
from parallel.runtime.failure.wording import is_about_peers

T = TypeVar("T")

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of `mallopt`, from malloc.h."""
GLOO_THREADS_END_S = 0.2
"""Far longer than the microseconds that gloo's threads need after the last collective."""
START_TIMEOUT_S = 600.0
"""Time limit of waits until the end of warm-up, unless cluster.timeout_s is longer: opening data,
the tracker's server and compilation take some workers longer than others. A worker that dies is
still noticed after cluster.timeout_s."""


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
    chaos: Chaos | None = None
    """Options of chaos mode; None: off."""
    transports: Iterator[int] = field(default_factory=count, repr=False, compare=False)
    """Numbers of transports, which every worker creates in the same order."""

    @property
    def neighbours(self) -> frozenset[int]:
        """Workers with which this one shares memory."""
        return frozenset() if self.tokens is None else self.tokens.peers

    @contextmanager
    def _together(self, what: str) -> Iterator[None]:
        self.watch.waits((what,), -1)
        try:
            yield
        except RuntimeError as error:
            raise self.watch.lost(error) from error
        self.watch.goes_on()

    def started(self) -> None:
        """Wait until all workers have started; limit waits to `cluster.timeout_s` from now on."""
        self.barrier()
        if isinstance(self.watch, Watch):
            timeout = self.watch.started()
            # gloo keeps the timeout of the start: it counts the time for which the whole job is
            # stopped (Ctrl-Z). The watch limits all waits but those inside DDP.
            if self.backend == "nccl" and dist.group.WORLD is not None:
                dist.group.WORLD.set_timeout(timeout)

    def barrier(self) -> None:
        """Wait until every worker has called this with its device idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if self.size > 1:
            with self._together("barrier"):
                dist.barrier()

    def gather(self, value: T) -> list[T]:
        """Return every worker's value, by rank, on every worker."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._together("gather"):
            dist.all_gather_object(values, value)
        return values

    def gather_to_first(self, value: T) -> list[T]:
        """Return every worker's value, by rank, on worker 0; an empty list on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        with self._together("gather to worker 0"):
            dist.gather_object(value, values, dst=0)
        return values or []

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum the workers' tensors in place, on every worker."""
        if self.size > 1:
            with self._together("sum"):
                dist.all_reduce(tensor)
        return tensor


def environment_size() -> int:
    """Return the number of workers that the launcher started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def choose_device(cluster: ClusterConfig) -> torch.device:
    """Return this worker's device.

    Raises `ValueError` if the configured device or backend is not available.
    """
    cuda = torch.cuda.is_available()
    require(
        cluster.device != "cuda" or cuda,
        "cluster.device",
        "cuda",
        "needs a GPU, and torch sees none; use cpu",
    )
    require(
        cluster.backend != "nccl" or cuda,
        "cluster.backend",
        "nccl",
        "needs GPUs, and torch sees none; use gloo",
    )
    if cluster.device == "cpu" or not cuda:
        require(
            cluster.backend != "nccl",
            "cluster.backend",
            "nccl",
            "needs cluster.device=cuda; with cpu use gloo",
        )
        return torch.device("cpu")
    require(
        cluster.backend != "gloo" or environment_size() == 1,
        "cluster.backend",
        "gloo",
        "needs cluster.device=cpu; with cuda use nccl",
    )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    here = torch.cuda.device_count()
    require(
        local < here, "workers", local + 1, f"on this machine are more than its GPUs, {here}: one GPU each"
    )
    return torch.device("cuda", local)


def _open_tokens(world: World) -> Tokens | None:
    """Return tokens between this worker and its neighbours, or None if there are none."""
    places = world.gather(place() if world.device.type == "cpu" else None)
    own = places[world.rank]
    here = frozenset(rank for rank, other in enumerate(places) if other is not None and other == own)
    tokens = Tokens(connect(world.rank, here - {world.rank}, world.gather, world.barrier), world.watch)
    world.barrier()
    tokens.open()
    return tokens if tokens.peers else None


@contextmanager
def open_world(cluster: ClusterConfig, chaos: Chaos | None = None) -> Iterator[World]:
    """Set this worker's device, threads and allocator, and join the workers that torchrun started.

    `chaos` delays messages on purpose; CPUs only. Raises `ValueError` if the configured device or
    backend is not available, and `WorkerLost` from any wait for other workers when one of them
    died, hangs or failed. After an exception the process group stays open: closing it would make
    the other workers fail as well, and their errors might seem to be the first.
    """
    rank, size = int(os.environ.get("RANK", "0")), environment_size()
    device = choose_device(cluster)
    if chaos is not None and device.type != "cpu":
        raise ValueError("chaos mode needs cluster.device=cpu")
    torch.set_num_threads(cluster.threads)
    keep_freed_memory()
    # Where a network fits its batch well, gradients become denormal, and a CPU computes several
    # times more slowly with denormal numbers. They are below 1e-37, so no result changes. All
    # strategies and the baseline are treated alike.
    torch.set_flush_denormal(True)
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if size == 1:
            watch = SingleWatch()
            try:
                yield World(0, 1, device, "none", watch, chaos=chaos)
            finally:
                watch.close()
        else:
            with _join(cluster, rank, size, device, chaos) as world:
                yield world
    finally:
        torch.set_flush_denormal(False)  # as torch starts: a process may do something else afterwards


@contextmanager
def _join(
    cluster: ClusterConfig, rank: int, size: int, device: torch.device, chaos: Chaos | None
) -> Iterator[World]:
    """Join the other workers in a process group that a thread watches."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    start_timeout = timedelta(seconds=max(START_TIMEOUT_S, cluster.timeout_s))
    watch = Watch(rank, size, cluster.timeout_s, start_timeout.total_seconds())
    watch.start()
    world = World(rank, size, device, backend, watch, chaos=chaos)
    try:
        watch.waits(("process group",), -1)
        store, _, _ = next(rendezvous("env://", rank, size, timeout=start_timeout))
        dist.init_process_group(
            backend,
            # A restarted group must not read the addresses of the one before it.
            store=dist.PrefixStore(f"parallel/group/{attempt()}", store),
            rank=rank,
            world_size=size,
            timeout=start_timeout,
            device_id=device if backend == "nccl" else None,  # creates the communicator now, with all ranks
        )
        watch.goes_on()
        if cluster.shared_memory:
            world = replace(world, tokens=_open_tokens(world))
        stopped: RunStopped | None = None
        try:
            yield world
        except RunStopped as error:  # on all workers alike: the group is closed in order
            stopped = error
        world.barrier()
        if world.tokens is not None:
            world.tokens.close()
    except BaseException as error:
        if isinstance(error, RuntimeError) and is_about_peers(error):  # raised by DDP
            lost = watch.lost(error)
            watch.failed(lost)
            raise lost from error
        watch.failed(error)
        raise
    watch.close()
    # A gloo thread that is still dropping its last tensor needs the interpreter lock, and the
    # group's destructor waits for that thread while holding the lock: without this pause one run in
    # some dozens never ends.
    time.sleep(GLOO_THREADS_END_S if backend == "gloo" else 0.0)
    dist.destroy_process_group()
    if stopped is not None:
        raise stopped


def keep_freed_memory() -> None:
    """Let glibc keep large buffers after they are freed.

    By default it returns each to the kernel, and the page faults of the next step cost up to a
    fifth of the step. It is called for every strategy and the baseline alike: otherwise speedups
    would compare allocators.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    libc.mallopt(M_TOP_PAD, 64 << 20)
