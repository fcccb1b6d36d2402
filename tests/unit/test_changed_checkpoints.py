"""Checkpoints whose files were changed at random."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from parallel.checkpoints.checkpoint import Checkpoint, folder_name
from parallel.checkpoints.manifest import MANIFEST, Begun
from parallel.checkpoints.piece import KINDS, from_header
from tests.support.made_checkpoints import describe, edit, rewrite, save, savers, state

# Not made smaller: every example copies and reads files, and hundreds of them say no more than the first.
CHANGED = settings(
    max_examples=200, phases=(Phase.explicit, Phase.reuse, Phase.generate), report_multiple_bugs=False
)
KEYS = st.sampled_from(
    ["name", "files", "bytes", "sha256", "step", "workers", "epochs", "kind", "shape", "box", "x"]
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=9),
    st.lists(st.integers(-2, 9), max_size=3),
    st.dictionaries(KEYS, st.integers(-2, 9), max_size=2),
)


def places_in(values: Any) -> list[tuple[Any, Any]]:
    """Return all containers and keys in JSON values."""
    if not isinstance(values, (dict, list)):
        return []
    keys = list(values) if isinstance(values, dict) else list(range(len(values)))
    return [*((values, key) for key in keys), *(place for key in keys for place in places_in(values[key]))]


def change_json(draw: st.DataObject, values: Any) -> None:
    """Replace, remove or rename a value anywhere in JSON values, or put one in the place of another."""
    for _ in range(draw.draw(st.integers(1, 3), "changes")):
        container, key = draw.draw(st.sampled_from(places_in(values)), "place")
        kind = draw.draw(st.sampled_from(["replace", "remove", "rename", "copy", "repeat"]), "kind")
        if kind == "replace":
            container[key] = draw.draw(VALUES, "value")
        elif kind == "rename" and isinstance(container, dict):
            container[draw.draw(st.one_of(KEYS, st.text(max_size=5)), "key")] = container.pop(key)
        elif kind == "copy":
            other, where = draw.draw(st.sampled_from(places_in(values)), "other")
            container[key] = json.loads(json.dumps(other[where]))
        elif kind == "repeat" and isinstance(container, list):
            container.append(json.loads(json.dumps(container[key])))
        elif kind == "remove" and len(places_in(values)) > 1:
            del container[key]


def change_bytes(draw: st.DataObject, content: bytes) -> bytes:
    """Flip, cut, insert or repeat bytes."""
    changed = bytearray(content)
    for _ in range(draw.draw(st.integers(1, 3), "changes")):
        # A third of the changes in the first bytes, which hold lengths and the beginning of a header.
        least = draw.draw(st.sampled_from([16, len(content), len(content)]), "within")
        at = draw.draw(st.integers(0, max(0, min(least, len(changed)) - 1)), "at")
        kind = draw.draw(st.sampled_from(["flip", "set", "cut", "insert", "drop"]), "kind")
        if kind == "flip" and changed:
            changed[at] ^= 1 << draw.draw(st.integers(0, 7), "bit")
        elif kind == "set" and changed:
            changed[at] = draw.draw(st.sampled_from(b'\x00\xff\\"{}[],:-e9'), "byte")
        elif kind == "cut":
            del changed[at:]
        elif kind == "insert":
            changed[at:at] = draw.draw(st.binary(max_size=9), "bytes")
        elif kind == "drop":
            del changed[at : at + draw.draw(st.integers(1, 20), "bytes")]
    return bytes(changed)


def read_all(path: Path) -> dict[tuple[str, str], Tensor]:
    """Return all tensors of a checkpoint, read as resuming and evaluation do."""
    checkpoint = Checkpoint(path)
    checkpoint.check()
    return {(kind, name): checkpoint.read(kind, name) for kind in KINDS for name in checkpoint.names(kind)}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after step 1, by two workers, with an epoch under way."""
    folder = tmp_path_factory.mktemp("original")
    begun = Begun(steps=1, seconds=1.0, loss=0.5, bytes_sent=7)
    assert save(savers(folder, 2), 1, steps_per_epoch=2, epochs=(), begun=begun) == ["", ""]
    return folder / folder_name(1)


def read_changed(original: Path, change: Callable[[Path], Any], *, same: bool) -> None:
    """Read a changed copy: it must raise `ValueError` with one line or, if `same`, return what was saved."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / original.name
        shutil.copytree(original, copy)
        change(copy)
        try:
            found = read_all(copy)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1 and str(copy) in str(error)
            return
    expected = state(1)
    assert not same or found.keys() == {("weights", name) for name in expected}
    assert not same or all(torch.equal(found["weights", name], tensor) for name, tensor in expected.items())


@CHANGED
@given(st.data())
def test_a_manifest_with_other_values(original: Path, data: st.DataObject) -> None:
    read_changed(original, lambda path: edit(path / MANIFEST, partial(change_json, data)), same=True)


FILES = st.sampled_from([MANIFEST, "worker-0.safetensors", "worker-1.safetensors"])


@CHANGED
@given(st.data())
def test_files_with_other_bytes(original: Path, data: st.DataObject) -> None:
    name = data.draw(FILES, "file")

    def change(path: Path) -> None:
        (path / name).write_bytes(change_bytes(data, (path / name).read_bytes()))

    read_changed(original, change, same=True)


@CHANGED
@given(st.data())
def test_files_with_other_bytes_that_the_manifest_describes(original: Path, data: st.DataObject) -> None:
    """A checksum does not help here: other tensors are possible, but no other error."""

    def change(path: Path) -> None:
        file = path / "worker-1.safetensors"
        file.write_bytes(change_bytes(data, file.read_bytes()))
        describe(file)

    read_changed(original, change, same=False)


@CHANGED
@given(st.data())
def test_headers_with_other_values_that_the_manifest_describes(original: Path, data: st.DataObject) -> None:
    """Names, shapes and places change in the header alone, or in a header and tensors that still fit."""

    def change(tensors: dict[str, Tensor], pieces: list[dict[str, Any]]) -> None:
        change_json(data, pieces)
        if data.draw(st.booleans(), "renamed"):
            try:
                keys = [place.key for place in from_header({"pieces": json.dumps(pieces)})]
            except ValueError:
                return
            values = list(tensors.values())
            tensors.clear()
            tensors.update({key: values[i % len(values)].clone() for i, key in enumerate(keys)})

    read_changed(original, lambda path: rewrite(path / "worker-1.safetensors", change), same=False)
