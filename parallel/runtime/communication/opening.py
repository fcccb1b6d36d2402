"""Open the world of a run: set up this worker's device and join the other workers."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist

from parallel.config import ClusterConfig, require
from parallel.runtime.communication.bound_store import connect_store
from parallel.runtime.communication.chaos import Chaos
from parallel.runtime.communication.device import (
    backend_of,
    choose_device,
    environment_size,
    gather_uuids,
    refuse_shared_gpus,
)
from parallel.runtime.communication.device_flags import DeviceFlags, check_precision, device_flags
from parallel.runtime.communication.groups import Groups
from parallel.runtime.communication.hosts import find_hosts
from parallel.runtime.communication.interface import choose_interface
from parallel.runtime.communication.neighbours import connect, meeting_place, neighbours_of
from parallel.runtime.communication.ordered_stream import OrderedStream
from parallel.runtime.communication.staging import CudaStaging, Staging
from parallel.runtime.communication.tokens import Tokens
from parallel.runtime.communication.world import World
from parallel.runtime.failure.errors import RunStopped
from parallel.runtime.failure.gpu import Device, Gpu
from parallel.runtime.failure.null_watch import SingleWatch
from parallel.runtime.failure.store import attempt, store_address
from parallel.runtime.failure.torch_watchdog import quiet_watchdog
from parallel.runtime.failure.watch import Watch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of `mallopt`, from malloc.h."""
GLOO_THREADS_END_S = 0.2
"""Far longer than the microseconds that gloo's threads need after the last collective."""
START_TIMEOUT_S = 600.0
"""Time limit of waits until the end of warm-up, unless cluster.timeout_s is longer: opening data,
the tracker's server and compilation take some workers longer than others. A worker that dies is
still noticed after cluster.timeout_s."""


@contextmanager
def open_world(
    cluster: ClusterConfig, chaos: Chaos | None = None, precision: str = "fp32", *, strict: bool = False
) -> Iterator[World]:
    """Set this worker's device, threads and allocator, and join the workers that torchrun started.

    `chaos` delays messages in host memory on purpose, hence not those of NCCL; `precision` is that of
    the trainer. `strict` exchanges messages of CPU workers under NCCL's rules (`ordered_stream`). Raises
    `ValueError` if the configured device or backend is not available or cannot compute in this
    precision, and `WorkerLost` from any wait for other workers when one of them died, hangs or failed.
    After an exception the process group stays open: closing it would make the other workers fail as
    well, and their errors might seem to be the first.
    """
    rank, size = int(os.environ.get("RANK", "0")), environment_size()
    device = choose_device(cluster)
    if chaos is not None:
        require(
            device.type == "cpu" or cluster.share_gpu,
            "cluster.device",
            cluster.device,
            "must be cpu in chaos mode, unless cluster.share_gpu=true",
        )
    if strict:
        require(device.type == "cpu", "cluster.device", cluster.device, "must be cpu in strict mode")
        require(chaos is None, "chaos", chaos, "must be None in strict mode")
    torch.set_num_threads(cluster.threads)
    keep_freed_memory()
    # Where a network fits its batch well, gradients become denormal, and a CPU computes several
    # times more slowly with denormal numbers. They are below 1e-37, so no result changes. All
    # strategies and the baseline are treated alike.
    torch.set_flush_denormal(True)
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        check_precision(precision, device)
        with device_flags(DeviceFlags.of(precision)):
            if size == 1:
                opened = _alone(cluster, device, chaos)
            else:
                opened = _join(cluster, rank, size, device, chaos, strict)
            with opened as world:
                yield world
    finally:
        torch.set_flush_denormal(False)  # as torch starts: a process may do something else afterwards


@contextmanager
def _alone(cluster: ClusterConfig, device: torch.device, chaos: Chaos | None) -> Iterator[World]:
    """Open the world of a single worker."""
    watch = SingleWatch()
    try:
        yield _with_hosts(World(0, 1, device, "none", watch, chaos=chaos), cluster)
    except Exception as error:
        if (instead := watch.instead_of(error)) is not error:
            raise instead from error
        raise
    finally:
        watch.close()


@contextmanager
def _join(
    cluster: ClusterConfig, rank: int, size: int, device: torch.device, chaos: Chaos | None, strict: bool
) -> Iterator[World]:
    """Join the other workers in a process group that a thread watches."""
    staging = open_staging(cluster, device)
    backend = backend_of(cluster, device)
    start_timeout = timedelta(seconds=max(START_TIMEOUT_S, cluster.timeout_s))
    choose_interface(backend, store_address()[0], os.environ)
    if backend == "nccl":
        quiet_watchdog(os.environ)
    watch = Watch(
        rank, size, cluster.timeout_s, start_timeout.total_seconds(), watched_device(device, backend)
    )
    watch.start()
    stream = OrderedStream(watch) if strict else None
    world = World(
        rank,
        size,
        device,
        backend,
        watch,
        chaos=chaos,
        stream=stream,
        staging=staging,
        groups=Groups(start_timeout),
    )
    try:
        _open_group(world, start_timeout)
        world = _with_hosts(world, cluster)
        if not strict:
            world = _with_connections(world, cluster, start_timeout)
        stopped: RunStopped | None = None
        try:
            yield world
        except RunStopped as error:  # on all workers alike: the group is closed in order
            stopped = error
        _leave(world)
    except BaseException as error:
        ended = watch.instead_of(error) if isinstance(error, Exception) else error
        watch.failed(ended)
        if ended is not error:
            raise ended from error
        raise
    watch.close()
    if backend == "gloo":
        _destroy_gloo()
    if stopped is not None:
        raise stopped


def _open_group(world: World, timeout: timedelta) -> None:
    """Open the process group of all workers."""
    nccl = world.backend == "nccl"
    world.watch.waits(("process group",), -1)
    # A restarted group must not read the addresses of the one before it.
    store = dist.PrefixStore(f"parallel/group/{attempt()}", connect_store(*store_address(), timeout))
    if nccl:
        refuse_shared_gpus(gather_uuids(store, world.rank, world.size, world.device))
    dist.init_process_group(
        world.backend,
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=timeout,
        device_id=world.device if nccl else None,  # creates the communicator now, with all ranks
    )
    world.watch.goes_on()


def _with_connections(world: World, cluster: ClusterConfig, timeout: timedelta) -> World:
    """Return the world with its tokens, and with the groups for large messages between hosts."""
    if cluster.shared_memory:
        world = replace(world, tokens=_open_tokens(world))
    if world.backend == "gloo" and len(world.neighbours) + 1 < world.size:  # on all workers or on none
        flows = [dist.new_group(timeout=timeout) for _ in range(cluster.flows - 1)]
        world = replace(world, flows=tuple(flows))
    return world


def _leave(world: World) -> None:
    """Close the connections to the other workers, which do the same. `_destroy_gloo` ends gloo's group."""
    world.barrier()
    if world.tokens is not None:
        world.tokens.close()
    if world.stream is not None:
        world.stream.close()
    if world.backend == "nccl":  # waits until all workers close theirs, and so is watched
        world.watch.waits(("the end of the process group",), -1)
        dist.destroy_process_group()


def _with_hosts(world: World, cluster: ClusterConfig) -> World:
    """Return the world with its hosts, which all workers find out together."""
    hosts = find_hosts(world.rank, world.size, world.device, world.backend, cluster, world.gather)
    return replace(world, hosts=hosts)


def _open_tokens(world: World) -> Tokens | None:
    """Return tokens between this worker and its neighbours, or None if there are none."""
    places = world.gather(meeting_place() if world.on_host.device.type == "cpu" else None)
    peers = neighbours_of(world.rank, world.host.workers, places)
    tokens = Tokens(connect(world.rank, peers, world.gather, world.barrier), world.watch)
    world.barrier()
    tokens.open()
    return tokens if tokens.peers else None


def open_staging(cluster: ClusterConfig, device: torch.device) -> Staging | None:
    """Return how tensors of the device travel between workers that share it; None: none do."""
    return CudaStaging(device) if cluster.share_gpu else None


def watched_device(device: torch.device, backend: str) -> Device | None:
    """Return what the watch needs of the device. None: a CPU, which does not lag behind its host."""
    return Gpu(device, backend) if device.type == "cuda" else None


def _destroy_gloo() -> None:
    # A gloo thread that is still dropping its last tensor needs the interpreter lock, and the
    # group's destructor waits for that thread while holding the lock: without this pause one run in
    # some dozens never ends.
    time.sleep(GLOO_THREADS_END_S)
    dist.destroy_process_group()


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
