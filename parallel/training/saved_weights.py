"""Weights on disk, to evaluate: those of a checkpoint, or of a finished run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from parallel.checkpoints.checkpoint import CHECKPOINTS, Checkpoint, readable_checkpoints
from parallel.checkpoints.manifest import MANIFEST
from parallel.config.stderr import print_to_stderr
from parallel.results.record_files import RECORD, read_record
from parallel.results.records import Epoch
from parallel.training.checkpointing import MODEL
from parallel.training.job import Job, empty_state

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class SavedWeights:
    """The weights and buffers of a model, and the configuration of the run that they are from."""

    path: Path
    """Checkpoint, or file of tensors."""
    described_in: Path
    """File with the configuration."""
    config: Mapping[str, Any]
    epoch: Epoch | None
    """Epoch after which the run had these weights. None: within an epoch."""
    shapes: Mapping[str, tuple[int, ...]]
    """By name in the model's `state_dict`."""
    tensor: Callable[[str], Tensor]
    """name → the whole tensor, on the CPU."""

    def read(self, kind: str, name: str) -> Tensor:
        """Return a tensor for `Engine.load`; the momentum, which evaluation does not use, is zero."""
        if kind == "momentum":
            return torch.zeros(()).expand(self.shapes[name])
        return self.tensor(name)


def find_weights(path: Path) -> Path:
    """Return the checkpoint or the file with the last weights of what a user named.

    That is a run directory, a checkpoint (its folder or manifest) or a file of tensors. Prints a
    warning for each damaged checkpoint that it passes over. Raises `ValueError` if there are none.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist: give a run directory, a checkpoint or a {SUFFIX} file")
    if path.suffix == SUFFIX:
        return path
    folder = path.parent if path.name == MANIFEST else path
    if (folder / MANIFEST).exists():
        Checkpoint(folder).check()
        return folder
    damaged: list[str] = []
    checkpoint = next(readable_checkpoints(folder / CHECKPOINTS, damaged), None)
    found = folder / MODEL if checkpoint is None else checkpoint.folder
    if not found.exists():
        reasons = "".join(f"; {sentence}" for sentence in damaged)
        raise ValueError(f"{path} has no weights: no whole checkpoint and no {MODEL}{reasons}")
    for sentence in damaged:
        print_to_stderr(f"warning: {sentence}; {found} is used instead")
    return found


def open_weights(path: Path) -> SavedWeights:
    """Open what `find_weights` returned. Raises `ValueError` that names a file that is damaged or
    missing."""
    return _of_file(path) if path.suffix == SUFFIX else _of_checkpoint(path)


def _of_checkpoint(folder: Path) -> SavedWeights:
    checkpoint = Checkpoint(folder)
    kinds = {name: kind for kind in ("weights", "buffers") for name in checkpoint.names(kind)}
    manifest = checkpoint.manifest
    return SavedWeights(
        path=folder,
        described_in=folder / MANIFEST,
        config=manifest.config,
        epoch=manifest.epochs[-1] if manifest.begun is None and manifest.epochs else None,
        shapes={name: checkpoint.shape(kind, name) for name, kind in kinds.items()},
        tensor=lambda name: checkpoint.read(kinds[name], name),
    )


def _of_file(path: Path) -> SavedWeights:
    record = read_record(path.parent)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: is not a file of tensors: {error}") from None

    def tensor(name: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    return SavedWeights(
        path=path,
        described_in=path.with_name(RECORD),
        config=record.config,
        epoch=record.epochs[-1],
        shapes=shapes,
        tensor=tensor,
    )


def refuse_other_model(weights: SavedWeights, job: Job) -> None:
    """Raise `ValueError` that names the first tensor that is missing, unknown or of another shape."""
    wanted = _used({name: tuple(tensor.shape) for name, tensor in empty_state(job).items()})
    there = _used(weights.shapes)
    model = f"model={job.config.model.label} with {job.data.num_classes} classes"
    for name in (*wanted, *there):
        if name not in there:
            raise ValueError(f"{weights.path} does not fit {model}: it lacks {name}")
        if name not in wanted:
            raise ValueError(f"{weights.path} does not fit {model}, which has no {name}")
        if there[name] != wanted[name]:
            raise ValueError(
                f"{weights.path} does not fit {model}: {name} has the shape {list(there[name])} "
                f"and not {list(wanted[name])}"
            )


def _used(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the tensors that evaluation uses: not the batches that batch normalisations count."""
    return {name: shape for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}
