"""Options that all networks share; each network defines its own in `parallel/models/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from parallel.config.checks import MOST_CLASSES, MOST_PIXELS, require, require_number, require_one_of


@dataclass(frozen=True)
class ModelConfig:
    """The network and its size."""

    name: str
    num_classes: int | None = None
    """Number of classes. None: that of the data set."""
    image_size: int = 64
    """Height and width of the input in pixels."""
    init: str = "kaiming"
    """Initial weights."""

    inits: ClassVar[tuple[str, ...]] = ("kaiming", "torch")
    least_size: ClassVar[int] = 1
    """Minimum image size in pixels."""
    poolings: ClassVar[str] = "its poolings"
    """The layers that require a minimum image size, for error messages."""

    def __post_init__(self) -> None:
        require_one_of("model.init", self.init, self.inits)
        require_number("model.num_classes", self.num_classes, 2, MOST_CLASSES)
        require(
            self.image_size >= self.least_size,
            "model.image_size",
            self.image_size,
            f"is too small: {self.poolings} need at least {self.least_size} pixels",
        )
        require_number("model.image_size", self.image_size, self.least_size, MOST_PIXELS)

    @property
    def variant(self) -> str | None:
        """Name of the variant. None: the network has only one."""
        return None

    @property
    def label(self) -> str:
        """Name and variant."""
        return " ".join(filter(None, (self.name, self.variant)))


def check_dropout(dropout: float) -> None:
    """Raise `ValueError` unless `dropout` is a probability below 1."""
    require(0.0 <= dropout < 1.0, "model.dropout", dropout, "must be in [0, 1)")
