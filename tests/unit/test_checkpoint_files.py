"""Checkpoints on disk: what is there, and damaged ones that are named and passed over."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parallel.checkpoints.checkpoint import Checkpoint, folder_name, readable_checkpoints, whole_checkpoints
from parallel.checkpoints.manifest import MANIFEST
from parallel.checkpoints.saver import PARTIAL
from tests.support.made_checkpoints import (
    check_state,
    describe,
    edit,
    flip,
    made_manifest,
    rewrite,
    save,
    savers,
    two_checkpoints,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return two_checkpoints(tmp_path)


def test_what_is_on_disk(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000001", "step-00000002"]
    names = ["checkpoint.json", "worker-0.safetensors", "worker-1.safetensors"]
    assert sorted(path.name for path in (folder / "step-00000001").iterdir()) == names
    checkpoint = Checkpoint(folder / "step-00000002")
    checkpoint.check()
    check_state(checkpoint)
    with pytest.raises(ValueError, match="step-00000002 has no momentum of bias$"):
        checkpoint.read("momentum", "bias")
    files = checkpoint.manifest.files
    assert dataclasses.replace(checkpoint.manifest, files=()) == made_manifest(2, 2)
    assert [file.name for file in files] == names[1:]


def test_files_have_the_permissions_of_their_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    save(savers(tmp_path / "checkpoints", 1), 1)
    mode = (tmp_path / "checkpoints" / "step-00000001" / "worker-0.safetensors").stat().st_mode & 0o777
    assert mode == (tmp_path / "checkpoints" / "step-00000001").stat().st_mode & 0o666


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing file": (
        lambda path: (path / "worker-1.safetensors").unlink(),
        "worker-1.safetensors: does not exist, although checkpoint.json beside it refers to it",
    ),
    "truncated file": (
        lambda path: os.truncate(path / "worker-1.safetensors", 99),
        "worker-1.safetensors: truncated or altered: 99 bytes, but checkpoint.json says ",
    ),
    "altered file": (
        lambda path: flip(path / "worker-1.safetensors", -1),
        "worker-1.safetensors: altered: its checksum is not the one in checkpoint.json",
    ),
    "truncated manifest": (
        lambda path: os.truncate(path / MANIFEST, 99),
        "checkpoint.json is truncated or not JSON: ",
    ),
    "other format": (
        lambda path: edit(path / MANIFEST, lambda values: values.update(format=2)),
        "checkpoint.json: format=2 must be 1 to be read here",
    ),
    "unknown key": (
        lambda path: edit(path / MANIFEST, lambda values: values.update({"le\nss": 2})),
        "checkpoint.json: manifest has unknown le ss; its keys are format, ",
    ),
    "missing files": (
        lambda path: edit(path / MANIFEST, lambda values: values.pop("files")),
        "checkpoint.json: files=0 must be one for each of workers=2",
    ),
    "file elsewhere": (
        lambda path: edit(path / MANIFEST, lambda values: values["files"][0].update(name="../a.safetensors")),
        "checkpoint.json: files[0].name='../a.safetensors' must be worker-N.safetensors",
    ),
    "no tensors": (
        lambda path: (
            (path / "worker-1.safetensors").write_bytes(b"{}"),
            describe(path / "worker-1.safetensors"),
        ),
        "worker-1.safetensors: is not a file of tensors: ",
    ),
    "header without a tensor": (
        lambda path: rewrite(path / "worker-1.safetensors", lambda tensors, pieces: pieces.pop()),
        "worker-1.safetensors: its header does not fit its tensors: weights/",
    ),
    "tensor without a header": (
        lambda path: rewrite(path / "worker-1.safetensors", lambda tensors, pieces: tensors.popitem()),
        "worker-1.safetensors: its header does not fit its tensors: weights/",
    ),
    "invalid place": (
        lambda path: rewrite(
            path / "worker-1.safetensors", lambda tensors, pieces: pieces[0].update(kind="w")
        ),
        "worker-1.safetensors: pieces[0].kind=w is not known; it must be one of ",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoints_are_named_and_passed_over(folder: Path, damage: str) -> None:
    change, sentence = DAMAGE[damage]
    newest = folder / "step-00000002"
    change(newest)
    with pytest.raises(ValueError) as caught:
        Checkpoint(newest).check()
    assert str(caught.value).startswith(f"{newest}/{sentence}") and "\n" not in str(caught.value)
    damaged: list[str] = []
    (readable,) = readable_checkpoints(folder, damaged)
    assert damaged == [str(caught.value)]
    assert readable.step == 1
    check_state(readable)


def test_a_header_that_states_another_length(folder: Path) -> None:
    path = folder / "step-00000002" / "worker-1.safetensors"
    rewrite(path, lambda tensors, pieces: tensors.update({key: t[:-1] for key, t in tensors.items()}))
    checkpoint = Checkpoint(folder / "step-00000002")
    checkpoint.check()
    with pytest.raises(ValueError, match=r"worker-1.safetensors: weights/weights \[.*\] .* has the shape \("):
        checkpoint.read("weights", "weights")


def test_only_whole_checkpoints_count(folder: Path) -> None:
    for name in ("step-00000009", f"step-00000008{PARTIAL}x", "step-", "step-x1", "other"):
        shutil.copytree(folder / "step-00000002", folder / name)
    (folder / "step-00000009" / MANIFEST).unlink()
    assert [path.name for path in whole_checkpoints(folder)] == ["step-00000002", "step-00000001"]
    shutil.copytree(folder / "step-00000002", folder / folder_name(123_456_789))
    assert whole_checkpoints(folder)[0].name == "step-123456789"
    assert whole_checkpoints(folder / "nowhere") == []
