"""The project's commands in processes forked from one that has imported torch already.

`run_module(world, "parallel.train", …)` does what torchrun's workers do, with their environment, exit codes and
streams, in a second instead of ten: only torchrun itself is left out. What it does has tests of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch.distributed import TCPStore

from tests.conftest import LAUNCHER_VARIABLES, ROOT

PRELOAD = ["torch.distributed", "torch._dynamo", "sklearn.datasets", "hydra", "parallel.training.trainer",
           "parallel.verification.parity"]


@dataclass(frozen=True)
class Ended:
    """What a job of one or more ranks came to."""

    codes: list[int | None]
    out: str
    err: str
    """Of all ranks together."""


def run_module(world: int, module: str, *arguments: str, folder: Path, environment: Mapping[str, str] | None = None,
               timeout: float = 120.0) -> Ended:
    """Run `python -m module arguments` in `folder`: with `world` 1 as plain python, else as torchrun's workers."""
    multiprocessing.set_forkserver_preload(PRELOAD)
    context = multiprocessing.get_context("forkserver")
    variables = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
    variables |= {"WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = []
    for rank in range(world):
        own = {} if world == 1 else {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        everything = {**variables, **own, **(environment or {})}
        processes.append(context.Process(target=_run, args=(module, arguments, str(folder), everything)))
    with open(folder / "out", "wb"), open(folder / "err", "wb"):
        pass
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout)
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    out, err = ((folder / name).read_text() for name in ("out", "err"))
    for name in ("out", "err"):
        (folder / name).unlink()
    return Ended(codes, out, err)


def _run(module: str, arguments: tuple[str, ...], folder: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
