"""Saving checkpoints: programs that die, full disks, and which checkpoints are kept."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from parallel.checkpoints import saver as saver_module
from parallel.checkpoints.checkpoint import Checkpoint, readable_checkpoints, whole_checkpoints
from parallel.checkpoints.manifest import MANIFEST
from parallel.checkpoints.saver import PARTIAL, remove
from tests.support.commands import ROOT, variables
from tests.support.made_checkpoints import (
    check_state,
    complete,
    flip,
    made_manifest,
    save,
    savers,
    shard,
    two_checkpoints,
)

EXITS = """
import sys, torch
from pathlib import Path
from parallel.checkpoints.piece import Piece, Place
from tests.support.made_checkpoints import made_manifest, savers
size = 4_000_000
piece = Piece(Place("weights", "large", (size,), ((0, size),), False, 0, size), torch.zeros(size))
for name, workers in (("alone", 1), ("others", 2)):
    saver = savers(Path(sys.argv[1]) / name, workers)[0]
    saver.save([piece], 1, made_manifest(1, workers))
sys.exit(130)
"""
"""A program that ends while it writes two checkpoints. In one, another worker never writes its file."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return two_checkpoints(tmp_path)


class Died(BaseException):
    """The process ends here."""


class Now:
    """In place of a thread: runs when it is made, and dies with its process."""

    def __init__(self, run: Callable[[], None], name: str, tell_to_end: Callable[[], None]) -> None:
        run()

    def join(self) -> None:
        pass


class Operations:
    """Counts the operations that change a file system, and dies instead of one."""

    EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod")

    def __init__(self) -> None:
        self.done, self.most, self.counting = 0, -1, False

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.counting or event not in self.EVENTS:
            return
        if event == "open" and not (isinstance(args[1], str) and "w" in args[1]):
            return  # for reading
        if self.done == self.most:
            self.counting = False  # what a dead process would do after this is not done
            raise Died
        self.done += 1


@pytest.fixture(scope="module")
def operations() -> Operations:
    found = Operations()
    sys.addaudithook(found.hook)  # stays, and does nothing after this module
    return found


def die_after(operations: Operations, most: int, action: Callable[[], Any]) -> bool:
    """Return whether `action` died instead of its operation number `most`."""
    operations.done, operations.most, operations.counting = 0, most, True
    try:
        action()
        return False
    except Died:
        return True
    finally:
        operations.counting = False


def check_folder(folder: Path, *steps: int, altered: str = "") -> int:
    """Check that the newest whole checkpoint has one of these steps and is what was saved; return
    its step.

    No other has a manifest but, if it is still there, that with the file `altered`.
    """
    damaged: list[str] = []
    readable = list(readable_checkpoints(folder, damaged))
    assert readable[0].step in steps
    for checkpoint in readable:
        check_state(checkpoint)
    assert damaged in ([], [f"{folder / altered}: altered: its checksum is not the one in {MANIFEST}"])
    return readable[0].step


@pytest.mark.parametrize("replaced", [False, True], ids=["new", "in the place of a damaged one"])
def test_dying_at_any_point_leaves_whole_checkpoints(
    folder: Path, tmp_path: Path, operations: Operations, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """Die instead of each operation on files; then the next attempt cleans up and saves."""
    altered = "step-00000003/worker-0.safetensors"
    if replaced:
        assert save(savers(folder, 2, keep=3), 3) == ["", ""]
        flip(folder / altered, -1)
    monkeypatch.setattr(saver_module, "AwaitedThread", Now)
    most, died = 0, True
    found: set[int] = set()
    while died:
        copy = tmp_path / f"copy-{most}"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("copy-*"))
        died = die_after(operations, most, lambda: save(savers(copy, 2), 3))  # noqa: B023
        found.add(check_folder(copy, 2, 3, altered=altered if replaced else "nothing"))
        again = savers(copy, 2, token="again")
        again[0].clear()
        assert list(copy.glob(f"*{PARTIAL}*")) == []
        assert save(again, 3) == ["", ""]
        damaged: list[str] = []
        assert [checkpoint.step for checkpoint in readable_checkpoints(copy, damaged)] == [3, 2]
        assert damaged == []
        most += 1
    assert most > 15 and found == {2, 3}


def test_a_checkpoint_loses_its_manifest_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(path: Path) -> None:
        raise Died

    monkeypatch.setattr(saver_module.shutil, "rmtree", die)
    with pytest.raises(Died):
        remove(folder / "step-00000002")
    assert [path.name for path in whole_checkpoints(folder)] == ["step-00000001"]


def test_dying_within_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(path: Path, tensors: Any, metadata: Any) -> None:
        write_tensors(path, tensors, metadata)
        os.truncate(path, path.stat().st_size // 2)
        raise Died

    write_tensors = saver_module.write_tensors
    monkeypatch.setattr(saver_module, "AwaitedThread", Now)
    monkeypatch.setattr(saver_module, "write_tensors", torn)
    with pytest.raises(Died):
        save(savers(folder, 2), 3)
    check_folder(folder, 2)


def full_disk(worker: int) -> Callable[..., None]:
    """Return a `write_tensors` for which the disk is full on one worker, after half of the file."""
    write_tensors = saver_module.write_tensors

    def write(path: Path, tensors: Any, metadata: Any) -> None:
        write_tensors(path, tensors, metadata)
        if path.name == f"worker-{worker}.safetensors":
            os.truncate(path, path.stat().st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return write


@pytest.mark.parametrize("worker", [0, 1])
def test_a_full_disk_leaves_the_checkpoints_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch, worker: int
) -> None:
    together = savers(folder, 2)
    with monkeypatch.context() as patch:
        patch.setattr(saver_module, "write_tensors", full_disk(worker))
        problems = save(together, 3)
    assert problems[worker] == "OSError: [Errno 28] No space left on device" and problems[1 - worker] == ""
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]
    check_folder(folder, 2)
    assert save(together, 4) == ["", ""]
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000004"]


def test_a_disk_that_is_full_at_the_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, content: bytes) -> None:
        if path.name == MANIFEST:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_atomically(path, content)

    write_atomically = saver_module.write_atomically
    monkeypatch.setattr(saver_module, "write_atomically", write)
    assert save(savers(folder, 2), 3) == ["OSError: [Errno 28] No space left on device", ""]
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize(
    ("error", "traced"),
    [
        (OSError("no"), False),
        (SafetensorError("no"), False),
        (ValueError("no"), False),
        (TypeError("no"), True),
    ],
)
def test_only_a_programming_error_prints_its_traceback(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    traced: bool,
) -> None:
    def broken(path: Path, tensors: Any, metadata: Any) -> None:
        raise error

    monkeypatch.setattr(saver_module, "write_tensors", broken)
    assert save(savers(folder, 1), 3) == [f"{type(error).__name__}: no"]
    printed = capsys.readouterr().err
    assert ("in broken\n" in printed) == traced
    assert printed.startswith("worker 0 failed while it wrote a checkpoint\nTraceback") == traced


def test_what_is_saved_is_the_state_at_the_time(tmp_path: Path) -> None:
    """The copies are reused, and training goes on in the tensors that the pieces show."""
    (one,) = savers(tmp_path, 1)
    pieces = shard(1, 0, 1)
    for step in (1, 2):
        for own, value in zip(pieces, shard(step, 0, 1), strict=True):
            own.values.copy_(value.values)
        one.save(pieces, step, made_manifest(step))
        for own in pieces:
            own.values.zero_()
        assert complete([one]) == [""]
    for checkpoint in readable_checkpoints(tmp_path, []):
        check_state(checkpoint)


def test_a_program_that_ends_waits_for_its_checkpoint(tmp_path: Path) -> None:
    """It waits for its own files, but for those of no other worker."""
    ended = subprocess.run([sys.executable, "-c", EXITS, str(tmp_path)], env=variables(), cwd=ROOT, text=True)
    assert ended.returncode == 130
    (whole,) = readable_checkpoints(tmp_path / "alone", [])
    assert whole.shape("weights", "large") == (4_000_000,)
    (partial,) = (tmp_path / "others").iterdir()
    assert PARTIAL in partial.name
    assert sorted(path.name for path in partial.iterdir()) == ["worker-0.json", "worker-0.safetensors"]


def test_a_worker_without_tensors(tmp_path: Path) -> None:
    together = savers(tmp_path, 2)
    together[1].save([], 1, None)
    together[0].save(shard(1, 0, 1), 1, made_manifest(1, 2))
    assert complete(together) == ["", ""]
    check_state(Checkpoint(tmp_path / "step-00000001"))


@pytest.mark.parametrize(
    ("keep", "best", "kept"),
    [(1, False, [6]), (2, False, [6, 5]), (2, True, [6, 5, 3]), (9, False, [6, 5, 4, 3, 2, 1])],
)
def test_which_checkpoints_are_kept(tmp_path: Path, keep: int, best: bool, kept: list[int]) -> None:
    (one,) = savers(tmp_path, 1, keep, best)
    for step in range(1, 7):
        assert save([one], step, top1=(0.1, 0.2, 0.9, 0.9, 0.3, 0.8)) == [""]
    assert [Checkpoint(path).step for path in whole_checkpoints(tmp_path)] == kept
    one.remove_old(1)
    assert [Checkpoint(path).step for path in whole_checkpoints(tmp_path)] == ([6, 3] if best else [6])


def test_the_best_is_found_beside_damaged_ones(tmp_path: Path) -> None:
    (one,) = savers(tmp_path, 1, keep=1, best=True)
    for step in (1, 2):
        assert save([one], step, top1=(0.9, 0.2)) == [""]
    os.truncate(tmp_path / "step-00000002" / MANIFEST, 9)
    assert save([one], 3, top1=(0.9, 0.2, 0.1)) == [""]
    assert [path.name for path in whole_checkpoints(tmp_path)] == ["step-00000003", "step-00000001"]
