"""Random pixels with random labels, to measure everything except reading images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parallel.config import DataConfig, require_number
from parallel.config.checks import MOST_CLASSES
from parallel.data.dataset import DataSet, stored_side
from parallel.data.host_memory import require_memory

DISTINCT = 256
"""Number of images in memory, which repeat in turn; 38 MB at 224 px."""


@dataclass(frozen=True)
class SyntheticConfig(DataConfig):
    """Options of synthetic data."""

    name: str = "synthetic"
    train_images: int = 12_800
    val_images: int = 1_280
    num_classes: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("data.num_classes", self.num_classes, 2, MOST_CLASSES)


@dataclass(frozen=True)
class RepeatedImages:
    """Many images, of which only the first few are distinct: image i is `pixels[i %
    len(pixels)]`."""

    pixels: np.ndarray
    """uint8 [distinct, size, size, 3]"""
    labels: np.ndarray
    """int64 [n]"""

    @property
    def size(self) -> int:
        return int(self.pixels.shape[1])

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return self.pixels.take(indices % len(self.pixels), axis=0)


def open_synthetic(data: SyntheticConfig, image_size: int, seed: int) -> DataSet:
    """Make `data.train_images` and `data.val_images` random images with `data.num_classes`
    classes."""
    rng = np.random.default_rng(seed)
    side = stored_side(data, image_size)
    # The labels are int64, and so is the order of an epoch, which is made from two arrays.
    require_memory("model.image_size", image_size, DISTINCT * side * side * 3)
    for name, images in (("train_images", data.train_images), ("val_images", data.val_images)):
        require_memory(f"data.{name}", images, 3 * images * 8)
    pixels = rng.integers(0, 256, (DISTINCT, side, side, 3), dtype=np.uint8)
    train, val = (
        RepeatedImages(pixels, rng.integers(0, data.num_classes, count, dtype=np.int64))
        for count in (data.train_images, data.val_images)
    )
    names = tuple(str(label) for label in range(data.num_classes))
    flat = 1 / 12**0.5  # standard deviation of a uniform distribution on [0, 1]
    return DataSet(
        name="synthetic",
        num_classes=data.num_classes,
        class_names=names,
        train=train,
        val=val,
        mean=(0.5, 0.5, 0.5),
        std=(flat, flat, flat),
    )
