"""Writing checkpoints: the state is copied at once, and written while training goes on.

All workers write into one folder that is no checkpoint yet, each a file of tensors and a note with
its size and checksum. Worker 0 collects the notes, writes the manifest and renames the folder. So a
checkpoint appears when every file is on disk and was read back, or not at all, whoever dies when.

    step-00000042.partial-5e0f/worker-0.safetensors, worker-0.json, …     being written
    step-00000042/worker-0.safetensors, …, checkpoint.json                a checkpoint
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from parallel.checkpoints.checkpoint import Checkpoint, folder_name, sha256, whole_checkpoints
from parallel.checkpoints.manifest import FORMAT, MANIFEST, File, Manifest
from parallel.checkpoints.piece import Piece, to_header
from parallel.checkpoints.tensor_files import write_tensors
from parallel.config.stderr import print_to_stderr
from parallel.config.typed import structure
from parallel.data.awaited_thread import AwaitedThread
from parallel.results.json_files import read_json, sync_folder, write_atomically

PARTIAL = ".partial-"
POLL_S = 0.05
"""Seconds between two looks for the other workers' notes, on disks that other hosts write to."""
WRITE_ERRORS = (OSError, SafetensorError, ValueError)
"""Errors of disks and damaged files, which need no traceback."""


class Saver:
    """One worker's side of writing the checkpoints of a run."""

    def __init__(
        self,
        folder: Path,
        rank: int,
        workers: int,
        token: str,
        *,
        keep: int,
        best: bool,
        pinned: bool = False,
    ) -> None:
        """`token` is the same on all workers and differs between attempts. `pinned`: the state is on
        a GPU, and copies go to pinned memory."""
        self.folder = folder
        self._rank, self._workers, self._token = rank, workers, token
        self._keep, self._best, self._pinned = keep, best, pinned
        self._copies: list[Tensor] = []
        self._thread: AwaitedThread | None = None
        self._written, self._abandoned = threading.Event(), threading.Event()
        self._problem = ""
        self._partial: Path | None = None

    def clear(self) -> None:
        """Remove what earlier attempts left unfinished. Only worker 0, before any worker saves."""
        for left in self.folder.glob(f"*{PARTIAL}*"):
            shutil.rmtree(left)

    def save(self, pieces: Sequence[Piece], step: int, manifest: Manifest | None) -> None:
        """Copy the pieces and write them in the background. Call `complete` on the one before first.

        Worker 0 gives the manifest, still without files.
        """
        self._copy(pieces)
        copied = [Piece(piece.place, values) for piece, values in zip(pieces, self._copies, strict=True)]
        self._written.clear()
        self._abandoned.clear()
        self._problem = ""
        self._partial = path = self.folder / f"{folder_name(step)}{PARTIAL}{self._token}"
        # A program that ends meanwhile waits for this worker's files, but for those of no other.
        self._thread = AwaitedThread(
            lambda: self._work(path, copied, manifest), "checkpoint", self._abandoned.set
        )

    @property
    def busy(self) -> bool:
        """Whether this worker's files are still being written."""
        return self._thread is not None and not self._written.is_set()

    @property
    def problem(self) -> str:
        """What went wrong with the last checkpoint, or ""."""
        return self._problem

    def complete(self, succeeded: bool) -> str:
        """Wait for the end of a checkpoint with which no worker is busy; return the problem, or "".

        Unless all workers `succeeded`, or if worker 0 itself fails at the end, worker 0 removes it.
        """
        if not succeeded:
            self._abandoned.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failed = not succeeded or self._problem != ""
        if failed and self._rank == 0 and self._partial is not None and self._partial.exists():
            shutil.rmtree(self._partial)
        return self._problem

    def remove_old(self, keep: int) -> None:
        """Remove all checkpoints but the newest ones and, if asked for, the best."""
        old = whole_checkpoints(self.folder)
        best = _best_of(old) if self._best else None
        for path in old[keep:]:
            if path != best:
                remove(path)

    def _copy(self, pieces: Sequence[Piece]) -> None:
        # The copies are kept: on a CPU the page faults of new memory take many times the copy.
        if not self._copies:
            self._copies = [
                torch.empty(piece.values.shape, dtype=piece.values.dtype, pin_memory=self._pinned)
                for piece in pieces
            ]
        for copy, piece in zip(self._copies, pieces, strict=True):
            copy.copy_(piece.values, non_blocking=True)
        if self._pinned:
            torch.cuda.synchronize()

    def _work(self, partial: Path, pieces: Sequence[Piece], manifest: Manifest | None) -> None:
        try:
            partial.mkdir(parents=True, exist_ok=True)
            file = self._write(partial, pieces)
            write_atomically(partial / f"{Path(file.name).stem}.json", _to_note(file))
            self._written.set()
            if manifest is not None:
                self._finish(partial, manifest)
        except Exception as error:  # the training goes on without this checkpoint, and says so
            if not isinstance(error, WRITE_ERRORS):  # a programming error: its place must not be lost
                trace = traceback.format_exc().rstrip()
                print_to_stderr(f"worker {self._rank} failed while it wrote a checkpoint\n{trace}")
            self._problem = f"{type(error).__name__}: {error}"
        finally:
            self._written.set()

    def _write(self, partial: Path, pieces: Sequence[Piece]) -> File:
        path = partial / f"worker-{self._rank}.safetensors"
        tensors = {piece.place.key: piece.values for piece in pieces}
        write_tensors(path, tensors, {"pieces": to_header(piece.place for piece in pieces)})
        return File(path.name, path.stat().st_size, sha256(path))

    def _finish(self, partial: Path, manifest: Manifest) -> None:
        """Turn the partial folder into a checkpoint when all notes are there. Only worker 0."""
        notes = [partial / f"worker-{rank}.json" for rank in range(self._workers)]
        while not all(note.exists() for note in notes):
            if self._abandoned.wait(POLL_S):
                return
        files = []
        for note in notes:
            values = read_json(note, FORMAT)
            files.append(structure(File, {key: values[key] for key in values if key != "format"}))
            note.unlink()
        write_atomically(partial / MANIFEST, dataclasses.replace(manifest, files=tuple(files)).to_json())
        sync_folder(partial)
        path = self.folder / folder_name(manifest.step)
        if path.exists():  # a damaged one, since training went on from before it
            remove(path)
        partial.rename(path)
        sync_folder(self.folder)
        self.remove_old(self._keep)


def remove(path: Path) -> None:
    """Remove a checkpoint, its manifest first: what is left is no checkpoint."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)


def _best_of(paths: Sequence[Path]) -> Path | None:
    """Return the checkpoint with the highest validation accuracy; the earliest of equal ones."""
    best, highest = None, -1.0
    for path in reversed(paths):
        try:
            epochs = Checkpoint(path).manifest.epochs
        except ValueError:
            continue  # damaged: no run can use it, and resuming names it
        top1 = epochs[-1].val_top1 if epochs else None
        if top1 is not None and top1 > highest:
            best, highest = path, top1
    return best


def _to_note(file: File) -> bytes:
    return json.dumps({"format": FORMAT, **dataclasses.asdict(file)}).encode()
