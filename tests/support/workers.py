"""Worker processes that are shared by a test module, since starting them takes longer than most
tests.

There is a set of processes for each number of workers. Each set keeps its process group between
calls (`worker_process.py`). If a worker fails, its set is ended, and the next call starts a new
one.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from torch.distributed import TCPStore

from tests.support.commands import forking_python, variables, worker_variables
from tests.support.gpu import VISIBLE

ENDING_S = 30.0


class WorkerError(Exception):
    """A worker's exception, with its traceback."""


class Workers:
    """Processes with torchrun's environment that call functions together."""

    def __init__(self) -> None:
        self._sets: dict[tuple[int, str | None], WorkerSet] = {}
        """By number of workers and the GPUs that they see, which a test hides or not."""

    def run(
        self, workers: int, function: Callable[..., Any], *args: Any, timeout: float = 300.0
    ) -> list[Any]:
        """Call `function(*args)` on `workers` processes at once; return their results by rank.

        If one raises, all of these processes are ended, since its peers wait for it, and
        `WorkerError` is raised with its traceback.
        """
        key = workers, os.environ.get(VISIBLE)
        if key not in self._sets:
            self._sets[key] = WorkerSet(workers)
        try:
            return self._sets[key].run(function, args, timeout)
        except WorkerError:
            self._sets.pop(key).kill()
            raise

    def stop(self) -> None:
        """End the processes; the next `run` starts new ones."""
        for worker_set in self._sets.values():
            worker_set.stop()
        self._sets.clear()


class WorkerSet:
    """The processes of one world."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._stores: list[TCPStore] = []  # the first belongs to the process group and must be kept
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[Connection] = []
        for _ in range(size):
            ours, theirs = socket.socketpair()
            with theirs:
                self._processes.append(
                    subprocess.Popen(
                        [forking_python(), "-m", "tests.support.worker_process"],
                        stdin=theirs,
                        env=variables({"PYTHONPATH": os.pathsep.join(sys.path)}),
                    )
                )
            self._pipes.append(Connection(ours.detach()))

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], timeout: float) -> list[Any]:
        """Call the function on every process with a new store; return the results by rank."""
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._stores = [*self._stores[:1], store]
        for rank, pipe in enumerate(self._pipes):
            pipe.send_bytes(pickle.dumps((worker_variables(rank, self._size, store.port), function, args)))
        results: dict[int, Any] = {}
        while len(results) < self._size:
            waiting = {self._pipes[rank]: rank for rank in range(self._size) if rank not in results}
            ready = wait(list(waiting), timeout)
            if not ready:
                raise WorkerError(f"workers {list(waiting.values())} hang")
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = waiting[pipe]
                try:
                    # By value: torch's own pickler shares tensors.
                    ok, result = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    ok, result = False, f"ended with exit code {self._processes[rank].wait()}"
                if not ok:
                    raise WorkerError(f"worker {rank}:\n{result}")
                results[rank] = result
        return [results[rank] for rank in range(self._size)]

    def stop(self) -> None:
        """Tell the processes to end, and wait for them."""
        for pipe in self._pipes:
            pipe.close()
        try:
            for process in self._processes:
                process.wait(ENDING_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the processes at once."""
        for process in self._processes:
            process.kill()
            process.wait()
        for pipe in self._pipes:
            pipe.close()
