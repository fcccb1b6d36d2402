"""Checkpoints on disk: pieces, manifests, reading, writing that may stop at any point, and when one is due."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from parallel.checkpoints import saver as saver_module
from parallel.checkpoints.checkpoint import Checkpoint, folder_name, readable_checkpoints, whole_checkpoints
from parallel.checkpoints.manifest import MANIFEST, Begun, Manifest
from parallel.checkpoints.piece import KINDS, Piece, Place, assembled, from_header, pieces_of_span, to_header
from parallel.checkpoints.saver import PARTIAL, Saver, remove
from parallel.checkpoints.schedule import Schedule
from parallel.config import CheckpointConfig, Config, DataConfig, ModelConfig
from parallel.data import DataSet
from parallel.graph.box import Box, cut
from parallel.graph.memory_order import in_memory_order
from parallel.models import MODELS, Model, build_model
from parallel.models.resnet import ResNet18Config
from parallel.results.records import Attempt, Epoch, Workload
from parallel.strategies import Single
from parallel.training.checkpointing import write_model
from parallel.training.job import Job
from tests.support.commands import ROOT, variables
from tests.support.small_models import CLASSES, tower

STEPS = 3
GIVEN = {"weights": (4, 3, 2, 2), "bias": (5,), "scale": ()}


EXITS = """
import sys, torch
from pathlib import Path
from parallel.checkpoints.piece import Piece, Place
from tests.unit.test_checkpoint_files import made_manifest, savers
size = 4_000_000
piece = Piece(Place("weights", "large", (size,), ((0, size),), False, 0, size), torch.zeros(size))
for name, workers in (("alone", 1), ("others", 2)):
    saver = savers(Path(sys.argv[1]) / name, workers)[0]
    saver.save([piece], 1, made_manifest(1, workers))
sys.exit(130)
"""
"""A program that ends while it writes two checkpoints. In one, another worker never writes its file."""


# Pieces


def tiles(draw: st.DrawFn, box: Box) -> list[Box]:
    """Draw boxes that tile `box`: it is cut at a random position of a random dim, again and again."""
    whole = [box]
    for _ in range(draw(st.integers(0, 4))):
        chosen = draw(st.integers(0, len(whole) - 1))
        long = [dim for dim, length in enumerate(whole[chosen].shape) if length > 1]
        if long:
            dim = draw(st.sampled_from(long))
            parent = whole.pop(chosen)
            start, stop = parent.spans[dim]
            middle = draw(st.integers(start + 1, stop - 1))
            whole += [parent.replace(dim, (start, middle)), parent.replace(dim, (middle, stop))]
    return whole


@st.composite
def split_tensors(draw: st.DrawFn) -> tuple[dict[str, Tensor], list[Piece]]:
    """Draw tensors, and pieces of them as workers hold them: buckets of boxes, cut into shards."""
    tensors, boxes = {}, []
    for number in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
        name = f"op{number}.weight"
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        tensors[name] = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        boxes += [(name, shape, box) for box in tiles(draw, Box.whole(shape))]
    pieces = []
    for dtype in {tensor.dtype for tensor in tensors.values()}:
        same = draw(st.permutations([entry for entry in boxes if tensors[entry[0]].dtype == dtype]))
        channels_last = draw(st.booleans())
        parts = [
            in_memory_order(tensors[name][box.within(Box.whole(shape))], channels_last).reshape(-1)
            for name, shape, box in same
        ]
        gaps = [torch.full((draw(st.integers(0, 3)),), float("nan"), dtype=dtype) for _ in parts]
        padded = [torch.cat([part, gap]) for part, gap in zip(parts, gaps, strict=True)]
        offsets = list(itertools.accumulate(map(len, padded[:-1]), initial=0))
        flat = torch.cat(padded)
        shards = draw(st.integers(1, 4))
        for shard in range(shards):
            span = cut(len(flat), shards, shard)
            pieces += pieces_of_span("weights", same, offsets, span, flat[slice(*span)], channels_last)
    return tensors, draw(st.permutations(pieces))


def of(pieces: Sequence[Piece], name: str) -> list[Piece]:
    return [piece for piece in pieces if piece.place.name == name]


@given(split_tensors())
def test_pieces_make_up_the_tensor(split: tuple[dict[str, Tensor], list[Piece]]) -> None:
    tensors, pieces = split
    for name, tensor in tensors.items():
        again = assembled(of(pieces, name))
        assert again.dtype == tensor.dtype and torch.equal(again, tensor)
    places = [piece.place for piece in pieces]
    assert from_header({"pieces": to_header(places)}) == tuple(places)
    assert len({place.key for place in places}) == len(places)


@given(split_tensors(), st.data())
def test_a_missing_or_doubled_piece_is_refused(
    split: tuple[dict[str, Tensor], list[Piece]], data: st.DataObject
) -> None:
    _, pieces = split
    piece = data.draw(st.sampled_from(pieces))
    own = of(pieces, piece.place.name)
    if len(own) > 1:
        with pytest.raises(ValueError, match="lacks its elements|has pieces of|overlapping"):
            assembled([other for other in own if other is not piece])
    with pytest.raises(ValueError, match="repeats its elements"):
        assembled([*own, piece])


def piece(
    box: Sequence[tuple[int, int]],
    start: int = 0,
    stop: int | None = None,
    shape: tuple[int, ...] = (2, 4),
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> Piece:
    spans = tuple(tuple(span) for span in box)
    end = Box(spans).volume if stop is None else stop  # type: ignore[arg-type]
    return Piece(
        Place("weights", "fc.weight", shape, spans, channels_last, start, end),
        torch.arange(start, end).to(dtype),
    )


@pytest.mark.parametrize(
    ("pieces", "sentence"),
    [
        ([piece([(0, 2), (0, 2)])], "fc.weight has pieces of 4 of its 8 elements"),
        (
            [piece([(0, 2), (0, 3)]), piece([(0, 2), (2, 3)])],
            r"fc.weight has the overlapping pieces \[0:2, 0:3\] and \[0:2, 2:3\]",
        ),
        (
            [piece([(0, 2), (0, 4)], 0, 3), piece([(0, 2), (0, 4)], 4, 8)],
            r"\[0:2, 0:4\] lacks its elements 3:4",
        ),
        (
            [piece([(0, 2), (0, 4)], 0, 5), piece([(0, 2), (0, 4)], 3, 8)],
            r"\[0:2, 0:4\] repeats its elements 3:5",
        ),
        ([piece([(0, 2), (0, 4)], 0, 5)], r"\[0:2, 0:4\] lacks its elements 5:8"),
        (
            [piece([(0, 2), (0, 2)]), piece([(0, 2), (2, 4)], dtype=torch.float64)],
            "different shapes or dtypes",
        ),
        ([piece([(0, 2), (0, 2)]), piece([(0, 2), (2, 4)], shape=(2, 5))], "different shapes or dtypes"),
        (
            [piece([(0, 2), (0, 4)], 0, 5), piece([(0, 2), (0, 4)], 5, 8, channels_last=True)],
            "different memory orders",
        ),
    ],
)
def test_pieces_that_do_not_fit(pieces: list[Piece], sentence: str) -> None:
    for order in (pieces, pieces[::-1]):
        with pytest.raises(ValueError) as caught:
            assembled(order)
    pytest.raises(ValueError, assembled, pieces).match(sentence)
    assert "\n" not in str(caught.value)


def test_a_huge_shape_allocates_nothing() -> None:
    part = piece([(0, 1), (0, 1)], shape=(10**12, 10**12))
    with pytest.raises(ValueError, match=f"has pieces of 1 of its {10**24} elements"):
        assembled([part])


PLACE = Place("weights", "conv1.weight", (4, 3), ((0, 2), (0, 3)), False, 1, 4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"kind": "losses"},
            "kind=losses is not known; it must be one of weights, momentum, buffers, gradients",
        ),
        ({"box": ((0, 2),)}, r"box=\(\(0, 2\),\) must be a box in a tensor of shape \(4, 3\)"),
        ({"box": ((0, 5), (0, 3))}, "box=.* must be a box in a tensor"),
        ({"box": ((-1, 2), (0, 3))}, "box=.* must be a box in a tensor"),
        ({"box": ((2, 2), (0, 3))}, "box=.* must be a box in a tensor"),
        ({"box": ((0, 1, 2), (0, 3))}, "box=.* must be a box in a tensor"),
        ({"start": -1}, "start:stop=-1:4 must be a span of the 6 elements of the box"),
        ({"stop": 7}, "start:stop=1:7 must be a span of the 6 elements"),
        ({"start": 4}, "start:stop=4:4 must be a span"),
    ],
)
def test_rules_of_places(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        dataclasses.replace(PLACE, **changes)


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (None, "pieces=None is missing from the file's header"),
        ({}, "pieces=None is missing from the file's header"),
        ({"pieces": "{}"}, r"pieces=\{\} must be a list"),
        ({"pieces": "[1]"}, r"pieces\[0\]=1 must be a mapping"),
        (
            {"pieces": to_header([PLACE]).replace("false", "0")},
            r"pieces\[0\].channels_last=0 must be true or false",
        ),
        (
            {"pieces": to_header([PLACE]).replace('"stop": 4', '"stop": 9')},
            r"pieces\[0\].start:stop=1:9 must be",
        ),
        (
            {"pieces": to_header([PLACE]).replace('"stop"', '"end"')},
            r"pieces\[0\] lacks stop and has unknown end",
        ),
        ({"pieces": "["}, "truncated or not JSON"),
    ],
)
def test_headers(header: dict[str, str] | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        from_header(header)


# Manifests


def made_manifest(
    step: int = STEPS, workers: int = 1, top1: Sequence[float] = (), **changes: Any
) -> Manifest:
    values: dict[str, Any] = {
        "run": "run",
        "time": 1.5,
        "step": step,
        "steps_per_epoch": 1,
        "workload": Workload(
            model="small",
            variant=None,
            num_classes=5,
            image_size=20,
            data="digits",
            train_images=40,
            batch_size=8,
            precision="fp32",
        ),
        "seed": 0,
        "strategy": "data_parallel",
        "workers": workers,
        "plan": None,
        "config": {"trainer": {"lr": 0.5}},
        "attempts": (Attempt(step=0, started="2026-01-01", label="any", workers=workers, plan=None),),
        "epochs": tuple(
            Epoch(epoch=1 + i, seconds=1.0, val_top1=top1[i] if i < len(top1) else None) for i in range(step)
        ),
        "begun": None,
    }
    return Manifest(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": 2}, "format=2 cannot be read; this version reads 1"),
        ({"workers": 0}, "workers=0 must be at least 1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0 must be at least 1"),
        ({"epochs": made_manifest(2).epochs}, "step=3 must be 2, the steps of its epochs"),
        ({"steps_per_epoch": 2}, "step=3 must be 6, the steps of its epochs"),
        ({"time": float("nan")}, "time=nan must be a time in seconds"),
        (
            {"begun": Begun(steps=1, seconds=1.0, loss=1.0, bytes_sent=0)},
            "begun.steps=1 must be fewer than an epoch's",
        ),
    ],
)
def test_rules_of_manifests(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        made_manifest(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"seconds": -1.0}, "seconds=-1.0 must be a time in seconds"),
        ({"seconds": float("inf")}, "seconds=inf must be a time in seconds"),
        ({"bytes_sent": -1}, "bytes_sent=-1 must not be negative"),
    ],
)
def test_rules_of_begun_epochs(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        dataclasses.replace(Begun(steps=1, seconds=1.0, loss=1.0, bytes_sent=0), **changes)


def test_an_epoch_under_way() -> None:
    begun = Begun(steps=3, seconds=1.0, loss=1.0, bytes_sent=0)
    assert made_manifest(step=7, steps_per_epoch=4, epochs=made_manifest(1).epochs, begun=begun).step == 7


# Checkpoints


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in GIVEN.items()}


def shard(seed: int, rank: int, workers: int) -> list[Piece]:
    """Return a worker's part of `state(seed)`, as of a bucket of whole tensors."""
    tensors = state(seed)
    parts = [in_memory_order(tensor, True).reshape(-1) for tensor in tensors.values()]
    flat, offsets = torch.cat(parts), list(itertools.accumulate(map(len, parts[:-1]), initial=0))
    span = cut(len(flat), workers, rank)
    boxes = [(name, shape, Box.whole(shape)) for name, shape in GIVEN.items()]
    return list(pieces_of_span("weights", boxes, offsets, span, flat[slice(*span)], True))


def savers(
    folder: Path, workers: int, keep: int = 2, best: bool = False, token: str = "token"
) -> list[Saver]:
    return [Saver(folder, rank, workers, token, keep=keep, best=best) for rank in range(workers)]


def save(together: Sequence[Saver], step: int, **changes: Any) -> list[str]:
    """Save `state(step)` and return what the workers report."""
    for rank in reversed(range(len(together))):
        manifest = made_manifest(step, len(together), **changes) if rank == 0 else None
        together[rank].save(shard(step, rank, len(together)), step, manifest)
    return complete(together)


def complete(together: Sequence[Saver]) -> list[str]:
    """End a checkpoint as `Checkpointing` does, and return the problem of each worker."""
    for one in together:
        assert one._thread is not None
        while one.busy:
            one._written.wait()
    succeeded = not any(one.problem for one in together)
    return [one.complete(succeeded) for one in together]


def check_state(checkpoint: Checkpoint) -> None:
    """Check that a checkpoint holds exactly the state after its step."""
    expected = state(checkpoint.step)
    assert set(checkpoint.names("weights")) == set(expected) and checkpoint.names("momentum") == []
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read("weights", name), tensor)
        assert checkpoint.shape("weights", name) == tensor.shape


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the checkpoints after steps 1 and 2, by two workers."""
    together = savers(tmp_path, 2)
    assert save(together, 1) == save(together, 2) == ["", ""]
    return tmp_path


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


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def rewrite(path: Path, change: Callable[[dict[str, Tensor], list[dict[str, Any]]], Any]) -> None:
    """Change tensors and header of a file, and the manifest so that it describes the changed file."""
    with safe_open(path, framework="pt") as file:
        pieces = json.loads(file.metadata()["pieces"])
    tensors = load_file(path)
    change(tensors, pieces)
    save_file(tensors, path, {"pieces": json.dumps(pieces)})
    describe(path)


def describe(path: Path) -> None:
    """Put size and checksum of a file into its manifest."""
    stated = {"bytes": path.stat().st_size, "sha256": saver_module.sha256(path)}

    def change(values: dict[str, Any]) -> None:
        for file in values["files"]:
            if file["name"] == path.name:
                file.update(stated)

    edit(path.parent / MANIFEST, change)


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


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


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


# Saving


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


# When a checkpoint is due


def test_intervals_in_epochs_and_steps() -> None:
    def due(every: str) -> list[int]:
        schedule = Schedule(CheckpointConfig(every).interval, 4, 0)
        found = []
        for step in range(1, 17):
            assert not schedule.looks(step)
            if schedule.due(step):
                found.append(step)
                schedule.saved(step)
        return found

    assert due("1 epoch") == [4, 8, 12, 16]
    assert due("3 epochs") == [12]
    assert due("5 steps") == [5, 10, 15]
    assert due("never") == []


def saved_at(minutes: int, durations: Sequence[float], workers: int = 3) -> tuple[list[float], int]:
    """Return when a run with these times of steps saves, and how often its workers look at the clock."""
    schedules = [Schedule((minutes, "minute"), 100, 7) for _ in range(workers)]
    now = last = 0.0
    found, looks = [], 0
    for step, duration in enumerate(durations, start=8):
        now += duration
        asked = {schedule.looks(step) for schedule in schedules}
        assert len(asked) == 1  # a worker that looked alone would wait for the others for ever
        looks += asked == {True}
        due = {schedule.due(step, now - last if asked == {True} else 0.0) for schedule in schedules}
        assert len(due) == 1
        if due == {True}:
            found.append(now)
            last = now
            for schedule in schedules:
                schedule.saved(step)
    return found, looks


@given(
    st.integers(1, 20),
    st.floats(0.001, 400.0),
    st.lists(st.tuples(st.floats(0.2, 5.0), st.floats(0.2, 3.0)), min_size=1, max_size=4),
)
def test_intervals_in_minutes(minutes: int, step_s: float, phases: list[tuple[float, float]]) -> None:
    """Steps of changing speed: each phase lasts some intervals, with steps so many times as long."""
    interval = 60.0 * minutes
    step_s = max(step_s, interval / 2000)  # keeps the number of steps small
    durations: list[float] = []
    for factor, intervals in phases:
        durations += [factor * step_s] * (1 + round(intervals * interval / (factor * step_s)))
    found, looks = saved_at(minutes, durations)
    longest = max(durations)
    for before, after in zip([0.0, *found], found, strict=False):
        assert interval - longest <= after - before <= 1.45 * interval + 1.5 * longest
    assert sum(durations) - max([0.0, *found]) <= 1.45 * interval + 1.5 * longest
    assert looks <= (1 + sum(durations) / interval) * 150


def test_looks_are_few() -> None:
    found, looks = saved_at(10, [0.05] * 30_000)
    assert [round(at) for at in found] == [600, 1200] and looks < 80


# The weights of a finished run


def checkpoint_of(model: torch.nn.Module, folder: Path) -> Checkpoint:
    """Save a model as a run on one worker does, without the batches that batch norms count."""
    pieces = []
    kinds = {name: "weights" for name, _ in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            shape = tuple(tensor.shape)
            last = kinds.get(name) == "weights"
            place = Place(
                kinds.get(name, "buffers"), name, shape, Box.whole(shape).spans, last, 0, tensor.numel()
            )
            pieces.append(Piece(place, in_memory_order(tensor, last).reshape(-1)))
    (one,) = savers(folder, 1)
    one.save(pieces, STEPS, made_manifest())
    assert complete([one]) == [""]
    return Checkpoint(folder / folder_name(STEPS))


@pytest.mark.parametrize("name", ["tower", "resnet18"])
def test_a_plain_model_loads_the_weights_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    options: ModelConfig = ResNet18Config(image_size=32)
    if name == "tower":
        options = ModelConfig("tower")
        monkeypatch.setitem(MODELS, "tower", Model(options, lambda _, classes: tower()))
    config = Config(options, DataConfig("digits"), Single())
    data = DataSet("digits", CLASSES, tuple("abcde"), *[None] * 2, (0.0,) * 3, (1.0,) * 3)  # type: ignore[arg-type]
    job = Job(config, 1, data, None, None)  # type: ignore[arg-type]
    trained = build_model(options, CLASSES, seed=3)
    for buffer in trained.buffers():
        buffer.copy_(torch.rand(buffer.shape) if buffer.is_floating_point() else torch.tensor(STEPS))
    write_model(checkpoint_of(trained, tmp_path), job, tmp_path / "model.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", folder_name(STEPS)]
    plain = build_model(options, CLASSES, seed=4)
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    counts = [name for name, _ in plain.named_buffers() if name.endswith("num_batches_tracked")]
    assert (len(counts) > 0) == (name == "resnet18")
    for key, tensor in trained.state_dict().items():
        assert torch.equal(plain.state_dict()[key], tensor), key


# Files that were changed at random


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
