"""Mutation test of `parallel.verify`: introduce one mistake at a time and check that it is found.

    python scripts/mutations.py [--only TEXT]

Each mutation of `mutation_list.py` is applied to a copy of the package. The default plans of
`parallel.verify` then run on the copy for two steps with random delays, up to the first difference.
The unchanged package must pass first. Prints a Markdown table; exit code 1 if a mutation was
missed.

Each run is a fork of this process, which has imported torch but no module of the package. The
workers are forks of that fork, since importing torch would take longer than running the plans.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from mutation_list import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parent.parent
PASSED = "passed"
TIMEOUT_S = 600.0
"""Time limit of a mutation."""
WAIT_S = 30.0
"""Time limit of a wait for another worker: a mutation may cause a deadlock."""
STORE_TIMEOUT = timedelta(seconds=300)
"""torch's default."""
LIBRARIES = (
    "torch.distributed",
    "torch.distributed.rendezvous",
    "torch.fx",
    "torch.multiprocessing.spawn",
    "torch.nn.parallel",
    "scipy.stats",
    "sklearn.svm",
    "sklearn.model_selection",
    "rich",
    "yaml",
)
"""Libraries to import once, before the forks."""
FORKS = multiprocessing.get_context("fork")


class WorkerFailed(Exception):
    """Raised with the type and message of a worker's exception."""


def changed(mutation: Mutation, tree: Path) -> str:
    """Return the changed text of the mutation's file. Raises `ValueError` unless the old text
    occurs once."""
    text = (tree / mutation.file).read_text(encoding="utf-8")
    if (times := text.count(mutation.old)) != 1:
        raise ValueError(
            f"{mutation.breaks}: {mutation.file} has {mutation.old.strip()!r} {times} times, not once"
        )
    return text.replace(mutation.old, mutation.new)


def outcome(mutation: Mutation | None) -> str:
    """Return the result of verifying the changed package: `PASSED`, a difference or an error."""
    with tempfile.TemporaryDirectory(prefix="mutation_") as folder:
        tree = Path(folder)
        shutil.copytree(ROOT / "parallel", tree / "parallel")
        if mutation is not None:
            (tree / mutation.file).write_text(changed(mutation, tree), encoding="utf-8")
        ours, theirs = FORKS.Pipe(duplex=False)
        process = FORKS.Process(target=_verify, args=(tree, theirs))
        process.start()
        theirs.close()
        try:
            return str(ours.recv()) if ours.poll(TIMEOUT_S) else f"no end after {TIMEOUT_S:g} s"
        except EOFError:
            return "the process died"
        finally:
            if process.pid is not None:
                os.killpg(process.pid, signal.SIGKILL)  # the workers are in its group
            process.join()


def _verify(tree: Path, result: Connection) -> None:
    """Verify the package in `tree`; runs in its own process."""
    os.setpgid(0, 0)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)  # gloo reports every broken connection
    sys.path.insert(0, str(tree))
    try:
        verify = importlib.import_module("parallel.verification.verify")
        chaos = importlib.import_module("parallel.runtime.communication.chaos").Chaos()
        with patch.object(verify, "spawn_workers", fork_workers):
            for plan, found in verify.verify_defaults(2, chaos, WAIT_S):
                if not found.ok:
                    result.send(f"{plan.label}: {found.first or found.worst}")
                    return
        result.send(PASSED)
    except WorkerFailed as error:
        result.send(str(error).splitlines()[0])
    except Exception as error:
        result.send(f"{type(error).__name__}: {error}".splitlines()[0])


def fork_workers(function: Callable[..., Any], workers: int, *args: Any) -> list[Any]:
    """Call `function(*args)` in forks with torchrun's environment, and return the results by
    rank."""
    bound_store = importlib.import_module("parallel.runtime.communication.bound_store")
    store = bound_store.serve_store("127.0.0.1", 0, STORE_TIMEOUT)
    pipes: list[Connection] = []
    for rank in range(workers):
        ours, theirs = FORKS.Pipe(duplex=False)
        FORKS.Process(
            target=_work, args=(rank, workers, store.port, theirs, function, args), daemon=True
        ).start()
        theirs.close()
        pipes.append(ours)
    results: dict[Connection, Any] = {}
    while len(results) < workers:
        for pipe in wait([pipe for pipe in pipes if pipe not in results]):
            assert isinstance(pipe, Connection)
            ok, results[pipe] = pipe.recv()
            if not ok:
                raise WorkerFailed(results[pipe])
    return [results[pipe] for pipe in pipes]


def _work(
    rank: int,
    workers: int,
    port: int,
    result: Connection,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(workers),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )
    try:
        result.send((True, function(*args)))
    except Exception as error:
        result.send((False, "".join(traceback.format_exception_only(error)).strip()))
    os._exit(0)  # without cleaning up the parent's state


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="mutations whose description or file contains this text")
    only = parser.parse_args().only
    chosen = [mutation for mutation in MUTATIONS if only in mutation.breaks or only in mutation.file]
    for mutation in MUTATIONS:  # check all of them before the runs, which take minutes
        changed(mutation, ROOT)
    for library in LIBRARIES:
        importlib.import_module(library)
    torch.set_num_threads(1)
    if not only and (found := outcome(None)) != PASSED:
        sys.exit(f"error: the unchanged package does not pass: {found}")
    print("| mutation | file | found by |\n|---|---|---|", flush=True)
    missed = 0
    begin = time.monotonic()
    for mutation in chosen:
        found = outcome(mutation)
        missed += found == PASSED
        text = "**missed**" if found == PASSED else found.replace("|", "\\|")
        print(f"| {mutation.breaks} | {mutation.file.removeprefix('parallel/')} | {text} |", flush=True)
    print(f"\n{len(chosen) - missed} of {len(chosen)} mutations found, in {time.monotonic() - begin:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
