"""Decode many files with many processes, each writing its rows straight into one memory-mapped array."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

CHUNK = 64  # files per request: some tens of milliseconds of work, against some tens of microseconds for asking
BROKEN_SHARE = 0.01  # more broken images than this, and the folder is not what its user thinks it is

Broken = list[tuple[int, str]]
"""Row and reason of each image that can't be decoded."""


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_all(root: Path, files: Sequence[str], size: int, pixels: Path | None, processes: int,
               progress: Callable[[int], None]) -> Broken:
    """Decode every file under `root`, file i into row i of the .npy file `pixels` (None: only see whether it decodes).

    `progress` is told how many are done. Raises `ValueError` as soon as more than 1 % of all files are broken,
    `OSError` when a file can't be read, `RuntimeError` when a decoder dies.
    """
    broken: Broken = []
    done = 0
    starts = iter(range(0, len(files), CHUNK))
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())

        def give(decoder: Decoder, start: int) -> None:
            decoder.ask(start, [str(root / file) for file in files[start:start + CHUNK]])

        # zip asks `range` first: the other way round it would take a start from the iterator and drop it.
        for _, start in zip(range(processes), starts, strict=False):
            decoder = stack.enter_context(Decoder(size, pixels))
            selector.register(decoder.stdout, selectors.EVENT_READ, decoder)
            give(decoder, start)
        while selector.get_map():
            for key, _ in selector.select():
                decoder = key.data
                asked, found = decoder.answer()
                done += asked
                broken += found
                refuse_if_broken(root, files, broken)
                progress(done)
                following = next(starts, None)
                if following is None:
                    selector.unregister(key.fileobj)
                else:
                    give(decoder, following)
    return sorted(broken)


def refuse_if_broken(root: Path, files: Sequence[str], broken: Broken) -> None:
    if len(broken) > BROKEN_SHARE * len(files):
        row, reason = min(broken)
        raise ValueError(f"data.root={root} holds too many broken images: at least {len(broken)} of {len(files)} can't "
                         f"be decoded, and up to {BROKEN_SHARE:.0%} would be skipped; one is {files[row]} ({reason})")


class Decoder:
    """One decoder process, which answers one request at a time (see `decoder.py`)."""

    def __init__(self, size: int, pixels: Path | None) -> None:
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        # NumPy's BLAS would start a thread per core in each of them, for nothing.
        environment = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "parallel.data.decoder", str(size), str(pixels or "")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the pipes of a decoder process are missing")
        self._stdin, self.stdout = self._process.stdin, self._process.stdout
        self._asked = 0

    def ask(self, start: int, files: list[str]) -> None:
        self._asked = len(files)
        try:
            self._stdin.write(json.dumps({"start": start, "files": files}) + "\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def answer(self) -> tuple[int, Broken]:
        """How many files were asked for, and which of them are broken."""
        line = self.stdout.readline()
        if not line:
            raise self._died()
        answer = json.loads(line)
        if "failed" in answer:
            raise OSError(answer["failed"])
        return self._asked, [(row, reason) for row, reason in answer["broken"]]

    def _died(self) -> RuntimeError:
        return RuntimeError(f"a decoder process ended with exit code {self._process.wait()} (a negative code is the "
                            "signal that ended it: -7 when the disk is full, -9 when memory is)")

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
        with contextlib.suppress(BrokenPipeError):  # it is dead, and closing flushes: the error that told is on its way
            self._stdin.close()
        self._process.wait()
        self.stdout.close()


@contextlib.contextmanager
def progress_bar(title: str, total: int, verbose: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr if that is a terminal and `verbose`; yields what to call with the number done."""
    if not (verbose and sys.stderr.isatty()):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)
