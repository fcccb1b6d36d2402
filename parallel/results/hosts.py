"""Hosts of a run, as records list them and messages name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallel.config import require, require_number
from parallel.config.checks import MOST_BYTES, MOST_THREADS, MOST_WORKERS
from parallel.results.formatting import count, listed, rate


@dataclass(frozen=True, kw_only=True)
class Host:
    """Workers that share memory, cores and GPUs, and what they share. None: not known."""

    index: int
    """From 0, in the order of the hosts' first workers."""
    name: str
    """Host name of the first of its workers. Two hosts may have the same."""
    workers: tuple[int, ...]
    """Consecutive ranks."""
    threads: int | None = None
    """CPU threads of each worker."""
    cores: int | None = None
    """Cores that its workers may use."""
    gpus: tuple[str, ...] = ()
    """GPU of each worker; empty if workers compute on CPUs."""
    memory_bytes: int | None = None
    interface: str | None = None
    """Network interface of gloo or NCCL. None: not known, or a single worker."""
    bandwidth: float | None = None
    """Measured bytes per second to the next host, the first host being next to the last. None: not
    measured, or a single host."""

    def __post_init__(self) -> None:
        require_number("index", self.index, 0, MOST_WORKERS)
        first = self.workers[0] if self.workers else 0
        require(
            len(self.workers) >= 1
            and first >= 0
            and self.workers == tuple(range(first, first + len(self.workers))),
            "workers",
            self.workers,
            "must be consecutive numbers",
        )
        require_number("threads", self.threads, 1, MOST_THREADS)
        require_number("cores", self.cores, 1, MOST_WORKERS)
        require_number("memory_bytes", self.memory_bytes, 1, MOST_BYTES)
        require_number("bandwidth", self.bandwidth, 0, MOST_BYTES)


def require_hosts(hosts: Sequence[Host], workers: int) -> None:
    """Raise `ValueError` unless the hosts have all workers, each once and in order."""
    require(
        [host.index for host in hosts] == list(range(len(hosts))),
        "hosts",
        [host.index for host in hosts],
        "must be numbered from 0",
    )
    ranks = [worker for host in hosts for worker in host.workers]
    require(
        ranks == list(range(workers)), "hosts", ranks, f"must have the workers 0 to {workers - 1} in order"
    )


def slowest_bandwidth(hosts: Sequence[Host]) -> float | None:
    """Return the lowest measured bandwidth between hosts in bytes per second; None if there is none."""
    return min((host.bandwidth for host in hosts if host.bandwidth is not None), default=None)


def hosts_line(hosts: Sequence[Host]) -> str:
    """Return `2 hosts: a (workers 0, 1), b (worker 2), 940 Mbit/s over eth0`."""
    named = [f"{host.name} ({listed('worker', host.workers)})" for host in hosts]
    bandwidth = slowest_bandwidth(hosts)
    interfaces = list(dict.fromkeys(host.interface for host in hosts if host.interface))
    network = [] if bandwidth is None else [rate(bandwidth)]
    network += [f"over {', '.join(interfaces)}"] if interfaces else []
    return f"{count(len(hosts), 'host')}: {', '.join([*named, *([' '.join(network)] if network else [])])}"
