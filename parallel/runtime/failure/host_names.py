"""Hosts in the words of messages.

A host has the launcher's number there, if it gives one, and not the index that the record lists:
two agents of torchrun on one machine share memory, but fail independently.
"""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from parallel.config import printable
from parallel.results.formatting import listed

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NUMBER = "GROUP_RANK"
"""Environment variable with the launcher's number of the host, set by torchrun and for tasks of Slurm."""
PER_HOST = "LOCAL_WORLD_SIZE"
"""Environment variable with the number of workers that the launcher started on this host."""


def host_name() -> str:
    """Return the name of this host."""
    return printable(socket.gethostname())


def boot_id() -> str:
    """Return what the kernel chose at random when it started; elsewhere than on Linux the host's name."""
    return BOOT_ID.read_text().strip() if BOOT_ID.is_file() else socket.gethostname()


def kernel_namespace(kind: str) -> str:
    """Return a text that processes share which run on one kernel in one namespace: `net`, `ipc`, `pid`."""
    path = Path(f"/proc/self/ns/{kind}")
    return f"{boot_id()} {os.readlink(path) if path.is_symlink() else ''}"


def numbered_host(environment: Mapping[str, str] = os.environ) -> str:
    """Return this host as `2 node17`; only the name if the launcher gives it no number."""
    return " ".join([*filter(None, [environment.get(NUMBER)]), host_name()])


def workers_per_host(rank: int, size: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return how many workers the launcher started on each host; 0: unknown, or not equally many."""
    here = int(environment.get(PER_HOST, "0"))
    return here if here and size % here == 0 and environment.get(NUMBER) == str(rank // here) else 0


def describe_host(host: str, workers: Sequence[int]) -> str:
    """Return a host and workers of it in words.

    `2 node17` becomes `host 2 (node17, workers 4, 5)`, and `node17` becomes `host node17 (workers 4, 5)`.
    """
    number, _, name = printable(host).rpartition(" ")
    named = listed("worker", workers)
    return f"host {number} ({name}, {named})" if number else f"host {name} ({named})"


def describe_workers(workers: Sequence[int], hosts: Mapping[int, str], per_host: int) -> str:
    """Return workers by host: `host 1 (node17, workers 2, 3) and worker 5`.

    `hosts` has every worker's host by rank (`numbered_host`), "" where it is not known. Its number is
    known even so where the launcher started `per_host` workers on each (`workers_per_host`).
    """
    numbered = {host.partition(" ")[0]: host for host in hosts.values() if " " in host}
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for worker in workers:
        number = str(worker // per_host) if per_host else ""
        groups[hosts[worker] or numbered.get(number, ""), number].append(worker)
    words = []
    for (host, number), group in groups.items():
        named = listed("worker", group)
        words.append(describe_host(host, group) if host else f"host {number} ({named})" if number else named)
    return " and ".join(words)


def refuse_problems(problems: Sequence[tuple[str, str]]) -> None:
    """Raise `ValueError` if a worker has a problem; `problems` has host and sentence or "", by rank.

    A problem that all workers have is stated as it is; another one names the first host that has it.
    """
    sentences = {sentence for _, sentence in problems}
    if len(sentences) == 1 and "" not in sentences:
        raise ValueError(sentences.pop())
    for host, sentence in problems:
        if sentence:
            alike = [rank for rank, other in enumerate(problems) if other == (host, sentence)]
            raise ValueError(f"{describe_host(host, alike)}: {sentence}")
