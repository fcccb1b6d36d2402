"""Starting the workers of a short run on this machine, without torchrun: for `verify` and the tests."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from torch.distributed import TCPStore
from torch.multiprocessing.spawn import start_processes

GRACE_S = 5.0
"""How long the others have to end by themselves when one has failed, and again to hear that they must."""


def spawn_workers(function: Callable[..., Any], workers: int, *args: Any) -> list[Any]:
    """Call `function(*args)` in `workers` processes with torchrun's environment; their results, by rank.

    Results must be picklable. When one worker raises, the others are ended, and `ProcessRaisedException` carries its
    traceback.
    """
    # The parent holds the store, on a port that the system chose: no race for a free one.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    multiprocessing.set_forkserver_preload(["parallel.runtime.execution.ddp", "parallel.runtime.execution.runtime"])
    context = multiprocessing.get_context("forkserver")
    with context.Manager() as manager:
        results = manager.dict()
        started = start_processes(_worker, (workers, store.port, results, function, args), nprocs=workers,
                                  join=False, start_method="forkserver")
        while not started.join(grace_period=GRACE_S):
            pass
        return [results[rank] for rank in range(workers)]


def _worker(rank: int, workers: int, port: int, results: Any, function: Callable[..., Any], args: Any) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(workers), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # the store is there already: connect to it
    )
    results[rank] = function(*args)
