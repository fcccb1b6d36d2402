"""Interface of engines, with which the training loop trains: the runtime, or a peer's."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from parallel.checkpoints.piece import Piece, ReadTensor
from parallel.runtime.instrumentation.clock import Clock


class Engine(Protocol):
    """One worker's side of the training."""

    clock: Clock
    splits_time: bool
    """Whether the clock records when this engine waits for other workers."""
    image_positions: list[int]
    """Positions in the global batch of the images that this worker needs, in the order of its
    loaded rows."""
    label_positions: list[int]
    """Positions of the labels that this worker needs."""

    @property
    def bytes_sent(self) -> int:
        """Bytes that this worker has sent so far."""

    def train_step(self, images: Tensor, labels: Tensor, *, step: int, lr: float) -> Tensor:
        """Run one optimizer step on this worker's rows of a global batch.

        `step` counts optimizer steps and chooses the dropout masks. Returns this worker's part of
        the mean loss, in float64.
        """

    def complete(self) -> None:
        """Wait for what the last step left to the next one, such as the gathers of updated weights."""

    def evaluate_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return this worker's [loss, top-1 hits, top-5 hits, samples] of a validation batch."""

    def forget_momentum(self) -> None:
        """Reset the optimizer and the running statistics, after warm-up."""

    def pieces(self, kind: str) -> list[Piece]:
        """Return this worker's parts of all tensors of a kind (`parallel.checkpoints.piece.KINDS`):
        views of the training state, not copies."""

    def load(self, read: ReadTensor) -> None:
        """Replace weights, momentum and buffers by what `read` returns, between two steps, on all
        workers."""
