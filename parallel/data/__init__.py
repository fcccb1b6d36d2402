"""The data sets by name. A new one is a file beside these and a line in one of the two tables.

`parallel.data.loader` makes batches of what is opened here. It is not imported here: it needs torch, and the
processes that decode images must do without (see `decoder.py`).
"""

from __future__ import annotations

from collections.abc import Callable

from parallel.config import DataConfig, require_one_of
from parallel.data import digits, dogs_vs_cats, imagenet, synthetic, tiny_imagenet
from parallel.data.dataset import ArrayImages, DataSet, Images
from parallel.data.layout import Layout, open_layout

__all__ = ["CLASSES", "IN_MEMORY", "ON_DISK", "ArrayImages", "DataSet", "Images", "known_classes", "known_images",
           "open_data"]

IN_MEMORY: dict[str, Callable[[DataConfig, int, int], DataSet]] = {
    "digits": digits.open_digits,
    "synthetic": synthetic.open_synthetic,
}

ON_DISK: dict[str, Layout] = {
    "tiny_imagenet": tiny_imagenet.LAYOUT,
    "dogs_vs_cats": dogs_vs_cats.LAYOUT,
    "imagenet": imagenet.LAYOUT,
}

CLASSES = {"digits": 10, "tiny_imagenet": 200, "dogs_vs_cats": 2, "imagenet": 1000}
"""Of each set as it is published, for what is asked without opening it; synthetic has as many as it is told to."""

TRAIN_IMAGES = {"digits": 1438, "tiny_imagenet": 100_000, "dogs_vs_cats": 22_500, "imagenet": 1_281_167,
                "synthetic": synthetic.TRAIN_IMAGES}
"""Likewise, as many as are left when some are kept for validation."""


def known_classes(data: DataConfig) -> int:
    """The number of classes that the configured data set has, nothing opened."""
    return data.num_classes if data.name == "synthetic" else CLASSES[data.name]


def known_images(data: DataConfig) -> int:
    """The number of training images that the configured data set has, nothing opened."""
    return data.train_images or TRAIN_IMAGES[data.name]


def open_data(data: DataConfig, image_size: int, seed: int, verbose: bool = False) -> DataSet:
    """Open the data set `data.name` for a model that takes squares of `image_size` pixels.

    `seed` is that of synthetic data; splits and subsets of the real sets never change. The first call decodes the
    images into a cache, which can take long: all ranks may call at once (one builds, the others wait), but do so
    before a collective starts to count its time-out. `verbose` shows progress and says what was skipped: for one rank.
    Raises `ValueError`, one sentence, for a folder that is missing, empty, of another layout, or full of broken files.
    """
    require_one_of("data.name", data.name, (*IN_MEMORY, *ON_DISK))
    if data.name in IN_MEMORY:
        return IN_MEMORY[data.name](data, image_size, seed)
    return open_layout(data.name, ON_DISK, data, image_size, verbose)
