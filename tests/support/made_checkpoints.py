"""Checkpoints of made-up tensors, and what damages them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from parallel.checkpoints import saver as saver_module
from parallel.checkpoints.checkpoint import Checkpoint
from parallel.checkpoints.manifest import MANIFEST, Manifest
from parallel.checkpoints.piece import Piece, pieces_of_span
from parallel.checkpoints.saver import Saver
from parallel.graph.box import Box, cut
from parallel.graph.memory_order import in_memory_order
from parallel.results.records import Attempt, Epoch, Workload

STEPS = 3
GIVEN = {"weights": (4, 3, 2, 2), "bias": (5,), "scale": ()}
"""Shapes of the tensors."""


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


def two_checkpoints(folder: Path) -> Path:
    """Fill a folder with the checkpoints after steps 1 and 2, by two workers."""
    together = savers(folder, 2)
    assert save(together, 1) == save(together, 2) == ["", ""]
    return folder


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


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
