"""Checks that the workers of a run make together before anything else is done.

All have the same code and configuration (`fingerprint.py`), or all end with the sentence that says
which host differs. Clocks that are apart, and a launcher that executes what the network sends, are
no reason to end: worker 0 prints a warning.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import psutil

from parallel.cli.fingerprint import Fingerprint, fingerprint, refuse_differences
from parallel.cli.local_ranks import find_local_rank
from parallel.cli.ranks import Ranks
from parallel.config import Config
from parallel.config.stderr import print_to_stderr
from parallel.runtime.communication.interface import check_interface, find_endpoint

if TYPE_CHECKING:
    from parallel.cli.ranks import Store

CLOCKS_APART_S = 5.0
"""Difference of clocks that is worth a warning: the times of checkpoints and files are compared with it."""

UNPICKLES = (
    "torchrun was started with its c10d rendezvous (--standalone and --nnodes=1:2 use it, too), which executes what "
    "anybody sends who reaches its port, open on all interfaces: use python -m parallel.torchrun (docs/security.md)"
)


def agree(ranks: Ranks, config: Config) -> None:
    """Check all workers. Raises `ValueError` on all of them if one differs.

    Call it on every worker at once. One worker agrees with itself, but its launcher is looked at.
    """
    if ranks.world > 1:
        _compare(ranks, config)
    if (
        ranks.rank == 0
        and "TORCHELASTIC_RUN_ID" in ranks.environment
        and unpickles(ranks.environment, psutil.Process(os.getppid()).cmdline())
    ):
        print_to_stderr(f"warning: {UNPICKLES}")


def _compare(ranks: Ranks, config: Config) -> None:
    ranks.allow(config.cluster.timeout_s)
    find_local_rank(ranks)
    own = _fingerprint(ranks, config)
    texts = ranks.collect("fingerprint", own.encode())
    fingerprints: list[Fingerprint] = []

    def judge() -> str:
        for rank, text in enumerate(texts):
            try:
                fingerprints.append(Fingerprint.decode(text))
            except ValueError as error:
                raise ValueError(f"worker {rank} sent no fingerprint: {error}") from error
        refuse_differences(fingerprints)
        return ",".join(map(str, _first_of_other_hosts(fingerprints)))

    asked = [int(rank) for rank in ranks.share("agreement", judge).split(",") if rank]
    limit = timedelta(seconds=ranks.limit_s)
    offsets = ranks.call(lambda store: measure_offsets(store, ranks.rank, asked, limit)) if asked else {}
    for rank, (offset, uncertainty) in offsets.items():
        sentence = clock_warning(fingerprints[rank].host, own.host, offset, uncertainty)
        if sentence is not None:
            print_to_stderr(f"warning: {sentence}")


def _fingerprint(ranks: Ranks, config: Config) -> Fingerprint:
    """Return this worker's fingerprint, also if it cannot take part: the others would wait for it."""
    from parallel.runtime.communication.device import backend_of, choose_device  # imports torch

    try:
        backend = backend_of(config.cluster, choose_device(config.cluster))
        check_interface(ranks.environment)
        endpoint = find_endpoint(backend, ranks.environment.get("MASTER_ADDR", ""), ranks.environment)
    except ValueError as error:
        return fingerprint(config, problem=str(error))
    return fingerprint(config, endpoint=endpoint)


def _first_of_other_hosts(fingerprints: list[Fingerprint]) -> list[int]:
    hosts = [own.host for own in fingerprints]
    return [rank for rank, host in enumerate(hosts) if host != hosts[0] and hosts.index(host) == rank]


def measure_offsets(
    store: Store, rank: int, asked: list[int], limit: timedelta
) -> dict[int, tuple[float, float]]:
    """Return, on worker 0, how far the clock of each worker of `asked` is ahead, and the largest
    error of that, in seconds. A wait for a worker may last `limit`.

    A clock is read between a question and its answer; half of the round trip is the error (Cristian
    1989). The others return nothing.
    """
    offsets = {}
    try:
        if rank in asked:
            store.wait([f"clock/question/{rank}"], limit)
            store.set(f"clock/answer/{rank}", repr(time.time()))
        for other in asked if rank == 0 else ():
            begin = time.time()
            store.set(f"clock/question/{other}", "")
            store.wait([f"clock/answer/{other}"], limit)
            theirs = float(store.get(f"clock/answer/{other}"))
            end = time.time()
            offsets[other] = theirs - (begin + end) / 2, (end - begin) / 2
    except RuntimeError as error:
        raise ValueError(
            f"the clocks of the hosts can't be compared: {str(error).splitlines()[0]}"
        ) from error
    return offsets


def clock_warning(there: str, here: str, offset: float, uncertainty: float) -> str | None:
    """Return the sentence on the clock of host `there`, or None if it is close to that of `here`."""
    if not abs(offset) - uncertainty > CLOCKS_APART_S:
        return None
    return (
        f"the clock of host {there} is {abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} that of host "
        f"{here} (±{uncertainty:.3f} s): set both by NTP; times in records and of files are not comparable"
    )


def unpickles(environment: Mapping[str, str], launcher: Sequence[str]) -> bool:
    """Return whether the command `launcher` is a torchrun that keeps a pickle in its store.

    It names a run that it starts with `--standalone`, or without any address, by a UUID.
    """
    chosen = environment.get("PET_RDZV_BACKEND", "") == "c10d"
    stated = any("c10d" in word or word == "--standalone" for word in launcher)
    return chosen or stated or _is_uuid(environment["TORCHELASTIC_RUN_ID"])


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
