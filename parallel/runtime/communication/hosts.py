"""Find out which workers share a host: memory, cores and GPUs.

Names prove nothing: containers on one machine may have equal host names, and virtual machines that
were started from one image equal boot ids. So every worker creates a file with a random name in shared memory
(/dev/shm), and tells which of all workers' files it sees there. Two workers share a host if

    each sees the other's file,
    their kernels have the same boot id, and
    they are in the same IPC namespace.

Containers with a /dev/shm of their own are hosts of their own, also on one machine. Where there is
no /dev/shm, as on macOS, the probe lies in the folder of temporary files, and the host's name must be
equal, too.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from parallel.config import ClusterConfig
from parallel.results.environment import memory_bytes
from parallel.results.hosts import Host
from parallel.runtime.communication.interface import chosen_interface
from parallel.runtime.failure.host_names import host_name, kernel_namespace

SHARED_MEMORY = Path("/dev/shm")

Gather = Callable[[Any], list[Any]]
"""Returns every worker's plain value by rank."""


@dataclass(frozen=True)
class Facts:
    """Plain values that one worker tells the others about where it runs."""

    probe: str
    """Name of its file in shared memory."""
    kernel: str
    """Boot id and IPC namespace."""
    name: str
    """Host name."""
    cores: tuple[int, ...]
    """Numbers of the cores that it may use; empty: not known."""
    threads: int
    gpu: str | None
    memory_bytes: int | None
    interface: str | None


def find_hosts(
    rank: int, size: int, device: torch.device, backend: str, cluster: ClusterConfig, gather: Gather
) -> tuple[Host, ...]:
    """Return the hosts of all workers; every worker calls it.

    Raises `ValueError` if shared memory cannot be written, or if the ranks of a host are not
    consecutive.
    """
    cores = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    with _probe(_shared_folder(), rank) if size > 1 else contextlib.nullcontext("") as probe:
        own = Facts(
            probe=probe,
            kernel=kernel_namespace("ipc"),
            name=host_name(),
            cores=cores,
            threads=cluster.threads,
            gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            memory_bytes=memory_bytes(),
            interface=chosen_interface(backend, os.environ) if size > 1 else None,
        )
        facts = [Facts(*values) for values in gather(tuple(vars(own).values()))]
        # Every worker's file lies there until all workers have looked.
        seen = gather(tuple((_shared_folder() / other.probe).exists() for other in facts))
    groups = group_workers([other.kernel for other in facts], seen)
    return tuple(_host(index, group, facts) for index, group in enumerate(groups))


def locate(rank: int, size: int, gather: Gather) -> tuple[int, int, int]:
    """Return this worker's place on its host, the number of workers there, and the number of the host.

    For workers that were started without a launcher that says so; every worker calls it. Raises
    `ValueError` as `find_hosts`.
    """
    with _probe(_shared_folder(), rank) as probe:
        told = gather([probe, kernel_namespace("ipc")])
        seen = gather([(_shared_folder() / name).exists() for name, _ in told])
        gather(None)  # the file lies there until all workers have looked
    groups = group_workers([kernel for _, kernel in told], seen)
    index, own = next((index, group) for index, group in enumerate(groups) if rank in group)
    return own.index(rank), len(own), index


def _shared_folder() -> Path:
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())


def group_workers(kernels: Sequence[str], seen: Sequence[Sequence[bool]]) -> list[tuple[int, ...]]:
    """Return the workers of each host, in order, from what they share.

    `seen[a][b]` says whether worker a sees b's file. Raises `ValueError` if the ranks of a host are
    not consecutive, and if sharing is not mutual among all of a host's workers.
    """
    workers = range(len(kernels))
    groups: list[tuple[int, ...]] = []
    for worker in workers:
        if any(worker in group for group in groups):
            continue
        group = tuple(b for b in workers if _share(kernels, seen, worker, b))
        for a in group:
            if tuple(b for b in workers if _share(kernels, seen, a, b)) != group:
                raise ValueError(
                    f"workers {worker} and {a} share memory, but not with the same other workers: their "
                    f"{SHARED_MEMORY} must be the same folder"
                )
        if group != tuple(range(group[0], group[0] + len(group))):
            raise ValueError(
                f"workers {', '.join(map(str, group))} share a host, but their ranks are not consecutive: "
                "number the ranks host by host, as torchrun does (with srun: --distribution=block)"
            )
        groups.append(group)
    return groups


def _share(kernels: Sequence[str], seen: Sequence[Sequence[bool]], a: int, b: int) -> bool:
    return a == b or (kernels[a] == kernels[b] and seen[a][b] and seen[b][a])


def _host(index: int, group: tuple[int, ...], facts: Sequence[Facts]) -> Host:
    own = [facts[worker] for worker in group]
    return Host(
        index=index,
        name=own[0].name,
        workers=group,
        threads=own[0].threads,
        cores=len({core for worker in own for core in worker.cores}) or None,
        gpus=tuple(worker.gpu for worker in own if worker.gpu is not None),
        memory_bytes=own[0].memory_bytes,
        interface=own[0].interface,
    )


@contextlib.contextmanager
def _probe(folder: Path, rank: int) -> Iterator[str]:
    """Create this worker's file and yield its name; delete it afterwards."""
    path = folder / f"parallel-{secrets.token_hex(16)}-{rank}"
    try:
        path.touch(exist_ok=False)
    except OSError as error:
        raise ValueError(
            f"{folder} can't be written ({error.strerror}): workers need it to find out who shares their memory"
        ) from error
    try:
        yield path.name
    finally:
        path.unlink(missing_ok=True)
