"""Interface of data sets: labelled images that are read by index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from parallel.config import DataConfig, require

Triple = tuple[float, float, float]

# Mean and standard deviation per channel of ImageNet's training images in [0, 1], the usual choice
# for photographs.
PHOTO_MEAN: Triple = (0.485, 0.456, 0.406)
PHOTO_STD: Triple = (0.229, 0.224, 0.225)

SUBSET_SEED = 0  # the images that train_images and val_images keep must not change with trainer.seed


class Images(Protocol):
    """Square images of one size, and their labels."""

    @property
    def labels(self) -> np.ndarray:
        """int64 [n]"""

    @property
    def size(self) -> int:
        """Side in pixels."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at `indices`, in that order: uint8 [k, size, size, 3]. Called from a
        background thread."""


@dataclass(frozen=True)
class DataSet:
    """An open data set."""

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    train: Images
    val: Images
    mean: Triple
    """Mean per channel of pixels in [0, 1]."""
    std: Triple


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory: uint8 [n, size, size, channels]; a single channel is read as three."""

    pixels: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        n, height, width, channels = self.pixels.shape
        require(
            height == width and channels in (1, 3),
            "pixels.shape",
            self.pixels.shape,
            "must be [n, size, size, 1 or 3]",
        )
        require(
            self.labels.shape == (n,), "labels.shape", self.labels.shape, f"must be ({n},), one per image"
        )
        require(self.pixels.dtype == np.uint8, "pixels.dtype", self.pixels.dtype, "must be uint8")
        require(self.labels.dtype == np.int64, "labels.dtype", self.labels.dtype, "must be int64")

    @property
    def size(self) -> int:
        return int(self.pixels.shape[1])

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> np.ndarray:
        images = self.pixels.take(indices, axis=0)
        return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)


def stored_side(data: DataConfig, image_size: int) -> int:
    """Return the side of the stored image in pixels: data.stored_size, or the size that the model
    needs.

    With random crops, the default is 8/7 of the model's size: 256 for 224, as in AlexNet's paper
    (section 4.1). Raises `ValueError` if the stored image is smaller than the model's, or not
    larger with random crops.
    """
    side = data.stored_size
    if side is None:
        side = round(image_size * 8 / 7) if data.crop else image_size
    require(side >= image_size, "data.stored_size", side, f"must be at least model.image_size={image_size}")
    require(
        not data.crop or side > image_size,
        "data.stored_size",
        side,
        f"leaves no room for data.crop=true: it must be more than model.image_size={image_size}",
    )
    return side


def subset(split: str, labels: np.ndarray, wanted: int | None) -> np.ndarray:
    """Return the sorted rows of a split to use: all, or `wanted` of them, drawn with a fixed seed.

    Each class keeps its share: numbers are rounded by largest remainder, so that they differ from
    the exact share by less than one image. `split` is train or val, `labels` [n]. Raises
    `ValueError` if `wanted` is more than n.
    """
    available = len(labels)
    if wanted is None:
        return np.arange(available)
    require(
        wanted <= available,
        f"data.{split}_images",
        wanted,
        f"is more than the {available} images of the split",
    )
    order = np.random.default_rng(SUBSET_SEED).permutation(available)
    by_class = order[np.argsort(labels[order], kind="stable")]  # shuffled within each class
    _, sizes = np.unique(labels, return_counts=True)
    counts, remainders = np.divmod(sizes * wanted, available)
    # A stable sort: of equal remainders, those of the first classes are rounded up.
    counts[np.argsort(-remainders, kind="stable")[: wanted - counts.sum()]] += 1
    starts = np.cumsum(sizes) - sizes
    kept = [by_class[start : start + count] for start, count in zip(starts, counts, strict=True)]
    return np.sort(np.concatenate(kept))


def stratified_split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into a part with the (rounded) fraction `share` of each class, and the rest; both
    sorted."""
    rng = np.random.default_rng(seed)
    first = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        first.append(rows[: round(share * len(rows))])
    chosen = np.sort(np.concatenate(first))
    return chosen, np.setdiff1d(np.arange(len(labels)), chosen)
