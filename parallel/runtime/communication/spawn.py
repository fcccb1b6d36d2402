"""Starting the workers of a short run on this machine without torchrun."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.multiprocessing.spawn import start_processes

from parallel.runtime.communication.bound_store import serve_store
from parallel.runtime.communication.interface import LOOPBACK

STORE_TIMEOUT = timedelta(seconds=300)
"""Time limit of calls of the store that state none; torch's default."""
GRACE_S = 5.0
"""Time that the others have to end after one failed, and again after they were terminated."""


def spawn_workers(function: Callable[..., Any], workers: int, *args: Any) -> list[Any]:
    """Call `function(*args)` in processes with torchrun's environment.

    Returns the results by rank, which must be picklable. If a worker raises, the others are
    terminated and `ProcessRaisedException` carries the traceback.
    """
    # The parent owns the store, on a port chosen by the system: no race for a free port.
    store = serve_store(LOOPBACK, 0, STORE_TIMEOUT)
    # Workers are forks of a server that has imported what they run.
    multiprocessing.set_forkserver_preload([function.__module__])
    context = multiprocessing.get_context("forkserver")
    with context.Manager() as manager:
        results = manager.dict()
        started = start_processes(
            _worker,
            (workers, store.port, results, function, args),
            nprocs=workers,
            join=False,
            start_method="forkserver",
        )
        while not started.join(grace_period=GRACE_S):
            pass
        return [results[rank] for rank in range(workers)]


def _worker(
    rank: int, workers: int, port: int, results: Any, function: Callable[..., Any], args: Any
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(workers),
        WORLD_SIZE=str(workers),
        MASTER_ADDR=LOOPBACK,
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # the store exists: connect to it
    )
    results[rank] = function(*args)
