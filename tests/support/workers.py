"""Four worker processes that stay for a test session: starting them costs more than most of what they are asked.

Every call gets a store of its own, so that its process group has nothing in common with the last one's.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import traceback
from collections.abc import Callable
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

MOST = 4


class WorkerError(Exception):
    """What a worker raised, with its traceback."""


class Workers:
    """Processes with torchrun's environment that call functions together."""

    def __init__(self) -> None:
        self._processes: list[Any] = []
        self._pipes: list[Any] = []

    def run(self, workers: int, function: Callable[..., Any], *args: Any, timeout: float = 60.0) -> list[Any]:
        """`function(*args)` on `workers` processes at once: their results, by rank.

        If one raises, all are ended, for its peers wait for it, and `WorkerError` has its traceback.
        """
        if not self._processes:
            self._start()
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for rank in range(workers):
            self._pipes[rank].send((rank, workers, store.port, function, args))
        results: dict[int, Any] = {}
        while len(results) < workers:
            waiting = [self._pipes[rank] for rank in range(workers) if rank not in results]
            ready = multiprocessing.connection.wait(waiting, timeout)
            if not ready:
                self.stop()
                raise WorkerError(f"workers {[self._pipes.index(pipe) for pipe in waiting]} hang")
            for pipe in ready:
                rank = self._pipes.index(pipe)
                ok, result = self._pipes[rank].recv()
                if not ok:
                    self.stop()
                    raise WorkerError(f"worker {rank}:\n{result}")
                results[rank] = result
        return [results[rank] for rank in range(workers)]

    def _start(self) -> None:
        multiprocessing.set_forkserver_preload(["torch.distributed", "parallel.verification.parity"])
        context = multiprocessing.get_context("forkserver")
        for _ in range(MOST):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def stop(self) -> None:
        """End the processes; the next `run` starts others."""
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []


def _serve(pipe: Any) -> None:
    while True:
        try:
            rank, workers, port, function, args = pipe.recv()
        except EOFError:
            return
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(workers), MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True",
        )
        try:
            pipe.send((True, function(*args)))
        except Exception:  # the test that called shows it
            pipe.send((False, traceback.format_exc()))
