"""Decode files with several processes that write into one memory-mapped array."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

CHUNK = 64
"""Files per request: tens of milliseconds of work, compared with tens of microseconds for a
request."""
BROKEN_SHARE = 0.01
"""Share of broken images above which a folder is rejected: it is probably not the data set."""

Broken = list[tuple[int, str]]
"""Row and reason of each image that cannot be decoded."""


def cores() -> int:
    """Return the number of cores that this process may use: those that it is bound to, and no more
    than Slurm has given its task (srun --cpus-per-task), which not every cluster binds."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(bound, int(given)) if given.isdecimal() and int(given) > 0 else bound


def own_cores() -> int:
    """Return this worker's equal part of the cores of its host, at least 1: workers decode at the same
    time. srun and mpirun, but not torchrun within them, have divided the cores among the workers already."""
    bound = "SLURM_CPUS_PER_TASK" in os.environ or "OMPI_COMM_WORLD_LOCAL_SIZE" in os.environ
    if bound and "TORCHELASTIC_RUN_ID" not in os.environ:
        return cores()
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def decode_all(
    root: Path,
    files: Sequence[str],
    size: int,
    pixels: Path | None,
    processes: int,
    progress: Callable[[int], None],
) -> Broken:
    """Decode every file under `root`, file i into row i of the .npy file `pixels`.

    Without `pixels` the files are only checked. `progress` is called with the number of files done.
    Raises `ValueError` as soon as more than 1 % of all files are broken, `OSError` when a file
    cannot be read, and `RuntimeError` when a decoder process dies.
    """
    broken: Broken = []
    done = 0
    starts = range(0, len(files), CHUNK)
    with contextlib.ExitStack() as stack:
        # Each decoder process has a thread that waits for its answers.
        pool = stack.enter_context(ThreadPoolExecutor(processes, "decode"))
        idle = SimpleQueue[Decoder]()
        for _ in range(min(processes, len(starts))):
            idle.put(stack.enter_context(Decoder(size, pixels)))

        def decode_chunk(start: int) -> tuple[int, Broken]:
            chunk = [str(root / file) for file in files[start : start + CHUNK]]
            decoder = idle.get()
            try:
                return len(chunk), decoder.decode(start, chunk)
            finally:
                idle.put(decoder)

        stack.push(lambda kind, *_: pool.shutdown(wait=False, cancel_futures=kind is not None))
        for future in as_completed([pool.submit(decode_chunk, start) for start in starts]):
            count, found = future.result()
            done += count
            broken += found
            refuse_if_broken(root, files, broken)
            progress(done)
    return sorted(broken)


def refuse_if_broken(root: Path, files: Sequence[str], broken: Broken) -> None:
    """Raise `ValueError` if too many of the files are broken."""
    if len(broken) > BROKEN_SHARE * len(files):
        row, reason = min(broken)
        raise ValueError(
            f"data.root={root} holds too many broken images: at least {len(broken)} of {len(files)} can't be "
            f"decoded, and up to {BROKEN_SHARE:.0%} would be skipped; one is {files[row]} ({reason})"
        )


class Decoder:
    """A decoder process that handles one request at a time (see `decoder.py`)."""

    def __init__(self, size: int, pixels: Path | None) -> None:
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        # Otherwise NumPy's BLAS would start a useless thread per core in each process.
        environment = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "parallel.data.decoder", str(size), str(pixels or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the pipes of a decoder process are missing")
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def decode(self, start: int, files: list[str]) -> Broken:
        """Decode files into the rows from `start` on and return the broken ones."""
        try:
            self._stdin.write(json.dumps({"start": start, "files": files}) + "\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        line = self._stdout.readline()
        if not line:
            raise self._died()
        answer = json.loads(line)
        if "failed" in answer:
            raise OSError(answer["failed"])
        return [(row, reason) for row, reason in answer["broken"]]

    def _died(self) -> RuntimeError:
        return RuntimeError(
            f"a decoder process ended with exit code {self._process.wait()} (a negative "
            "code is the signal that ended it: -7 when the disk is full, -9 when memory is)"
        )

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        with contextlib.suppress(BrokenPipeError):  # closing flushes; a dead decoder has been reported
            self._stdin.close()
        self._process.wait()
        self._stdout.close()


@contextlib.contextmanager
def progress_bar(title: str, total: int, verbose: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr if it is a terminal and `verbose`; yield a function that advances it."""
    if not (verbose and sys.stderr.isatty()):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)
