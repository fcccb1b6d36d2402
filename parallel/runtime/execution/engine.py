"""What the training loop asks of whatever trains: the runtime of our plans, or torch's DDP."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from parallel.runtime.instrumentation.clock import Clock


class Engine(Protocol):
    """One worker's side of the training."""

    clock: Clock
    splits_time: bool
    """Whether the clock sees when this engine waits for others."""
    image_positions: list[int]
    """Positions in the global batch of the images that this worker needs, in the order of its loaded rows."""
    label_positions: list[int]
    """Likewise of the labels."""

    @property
    def bytes_sent(self) -> int:
        """Bytes that this worker has sent so far."""

    def train_step(self, images: Tensor, labels: Tensor, *, step: int, lr: float) -> Tensor:
        """One optimizer step on this worker's rows of a global batch; returns its part of the mean loss (float64).

        `step` counts optimizer steps and chooses the dropout masks.
        """

    def evaluate_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """This worker's sums over a validation batch: [loss, top-1 hits, top-5 hits, samples], float64."""

    def forget_momentum(self) -> None:
        """Make the optimizer and running statistics as new, after warm-up."""
