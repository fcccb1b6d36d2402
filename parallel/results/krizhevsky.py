"""Table 1 of Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks".

AlexNet (variant `owt`) on ImageNet, 90 epochs, NVIDIA K20 GPUs; cross-entropy and top-1 error on the
validation images.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks, table 1"
MACHINE = "ImageNet, 90 epochs, K20"
EPOCHS = 90
BATCH_OF_ONE = 128
"""Global batch ÷ GPUs: weak scaling."""


@dataclass(frozen=True)
class PublishedRow:
    """One row of the table."""

    gpus: int
    whole: bool
    """Whether the fully connected layers see the whole batch, and their weights are updated once per
    step. Otherwise they see the batch of one GPU at a time, and are updated after every pass."""
    cross_entropy: float
    top1_error: float
    """Fraction."""
    hours: float
    speedup: float

    @property
    def batch(self) -> tuple[int, int]:
        """Batch of the convolutions and of the fully connected layers."""
        convolutions = BATCH_OF_ONE * self.gpus
        return convolutions, convolutions if self.whole else BATCH_OF_ONE


ROWS = (
    PublishedRow(1, True, 2.611, 0.4233, 98.05, 1.0),
    PublishedRow(2, True, 2.624, 0.4263, 50.24, 1.95),
    PublishedRow(2, False, 2.614, 0.4227, 50.90, 1.93),
    PublishedRow(4, True, 2.637, 0.4259, 26.20, 3.74),
    PublishedRow(4, False, 2.625, 0.4244, 26.78, 3.66),
    PublishedRow(8, True, 2.678, 0.4328, 15.68, 6.25),
    PublishedRow(8, False, 2.651, 0.4286, 15.91, 6.16),
)
