"""The manifest of a checkpoint, `checkpoint.json`: everything but the tensors.

It is written last, after all files of tensors, so a folder with a manifest is a whole checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from parallel.config import require
from parallel.results.records import Attempt, Epoch, Workload

FORMAT = 1
MANIFEST = "checkpoint.json"
FILE_NAME = re.compile(r"worker-[0-9]{1,9}\.safetensors")


@dataclass(frozen=True)
class File:
    """A file of tensors."""

    name: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        valid = FILE_NAME.fullmatch(self.name) is not None
        require(valid, "name", repr(self.name), "must be worker-N.safetensors")


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The part of an epoch that was trained before the checkpoint."""

    steps: int
    seconds: float
    """Training time, as in `Epoch`."""
    loss: float
    """Sum of the losses of its steps."""
    bytes_sent: int
    """Sum over the workers."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", self.steps, "must be at least 1")
        require(0 <= self.seconds < math.inf, "seconds", self.seconds, "must be a time in seconds")
        require(self.bytes_sent >= 0, "bytes_sent", self.bytes_sent, "must not be negative")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about a checkpoint but its tensors."""

    format: int = FORMAT
    run: str
    """Name of the run that wrote it."""
    time: float
    """When the state was copied: seconds since 1970."""
    step: int
    """Optimizer steps of the whole training so far."""
    steps_per_epoch: int
    workload: Workload
    seed: int
    strategy: str
    workers: int
    plan: str | None
    """Text of the plan. None: the engine runs no plan (ddp)."""
    config: dict[str, Any]
    attempts: tuple[Attempt, ...]
    epochs: tuple[Epoch, ...]
    """Finished epochs."""
    begun: Begun | None
    """The epoch under way; None between epochs."""
    files: tuple[File, ...] = ()

    def __post_init__(self) -> None:
        require(self.format == FORMAT, "format", self.format, f"cannot be read; this version reads {FORMAT}")
        require(0 <= self.time < math.inf, "time", self.time, "must be a time in seconds")
        require(self.workers >= 1, "workers", self.workers, "must be at least 1")
        require(self.steps_per_epoch >= 1, "steps_per_epoch", self.steps_per_epoch, "must be at least 1")
        begun = 0 if self.begun is None else self.begun.steps
        require(0 <= begun < self.steps_per_epoch, "begun.steps", begun, "must be fewer than an epoch's")
        counted = len(self.epochs) * self.steps_per_epoch + begun
        require(self.step == counted, "step", self.step, f"must be {counted}, the steps of its epochs")

    def to_json(self) -> bytes:
        """Return the content of the file."""
        return (json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n").encode()
