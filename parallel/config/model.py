"""What the options of every network have in common; a network's own are beside it, in `parallel/models/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parallel.config.checks import require, require_one_of


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and at what size."""

    name: str
    num_classes: int | None = None
    """None: as many as the data set has."""
    image_size: int = 64
    """Height and width of the input in pixels."""
    init: str = "kaiming"
    """Initial weights."""

    inits: ClassVar[tuple[str, ...]] = ("kaiming", "torch")
    least_size: ClassVar[int] = 1
    """Smallest image, in pixels."""
    poolings: ClassVar[str] = "its poolings"
    """Why images have a smallest size."""

    def __post_init__(self) -> None:
        require_one_of("model.init", self.init, self.inits)
        require(self.num_classes is None or self.num_classes >= 2, "model.num_classes", self.num_classes,
                "must be at least 2")
        require(self.image_size >= self.least_size, "model.image_size", self.image_size,
                f"is too small: {self.poolings} need at least {self.least_size} pixels")

    @property
    def variant(self) -> str | None:
        """Which of several published networks of this name. None: there is only one."""
        return None

    @property
    def label(self) -> str:
        """Name and variant."""
        return " ".join(filter(None, (self.name, self.variant)))


def check_dropout(dropout: float) -> None:
    """Raise `ValueError` unless `dropout` is a probability below 1."""
    require(0.0 <= dropout < 1.0, "model.dropout", dropout, "must be in [0, 1)")
