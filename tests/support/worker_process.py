"""A worker of `workers.py`: calls the functions that it receives on standard input and returns the
results.

The first function that opens a world creates torch's process group. Later worlds reuse the group,
since creating and destroying one takes longer than many tests; everything else in a world is new.

Where the environment variable WORKER_COVERAGE names coverage's configuration, covered lines are
saved beside it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist

from parallel.runtime.communication import opening


def keep_process_group() -> None:
    """Make torch's process group outlive the worlds that are opened in it, and groups of some workers."""
    make, make_group = dist.init_process_group, dist.new_group
    groups: dict[tuple[int, ...], Any] = {}

    def make_once(*args: Any, **options: Any) -> None:
        if not dist.is_initialized():
            make(*args, **options)

    def make_group_once(ranks: list[int] | None = None, **options: Any) -> Any:
        if ranks is None:
            return make_group(**options)
        if tuple(ranks) not in groups:
            groups[tuple(ranks)] = make_group(ranks, **options)
        return groups[tuple(ranks)]

    dist.new_group = make_group_once
    dist.init_process_group = make_once
    dist.destroy_process_group = lambda group=None: None
    opening.GLOO_THREADS_END_S = 0.0  # a pause before the group is destroyed


def serve(pipe: Connection) -> None:
    """Call functions until the other end is closed."""
    while True:
        try:
            environment, function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        os.environ.update(environment)
        try:
            answer = pickle.dumps((True, function(*args)))
        except Exception:  # raised again in the test
            answer = pickle.dumps((False, traceback.format_exc()))
        pipe.send_bytes(answer)


@contextlib.contextmanager
def measuring(settings: str) -> Iterator[None]:
    """Measure coverage with the configuration file `settings`, or not at all if it is empty."""
    if not settings:
        yield
        return
    import coverage

    measured = coverage.Coverage(
        data_file=Path(settings).with_name(".coverage"), data_suffix=True, config_file=settings
    )
    measured.start()
    yield
    measured.stop()
    measured.save()


if __name__ == "__main__":
    requests = Connection(os.dup(sys.stdin.fileno()))
    keep_process_group()
    with measuring(os.environ.get("WORKER_COVERAGE", "")):
        serve(requests)
    os._exit(0)  # an interpreter that ends with an open process group may hang
