"""The data sets by name. A new one is a file beside these and an entry in `DATA_SETS`.

`parallel.data.loader` makes batches of an open data set. It is not imported here, because it needs
torch and the processes that decode images must not import it (see `decoder.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parallel.config import DataConfig, ImageFilesConfig, require, require_one_of
from parallel.data import digits, dogs_vs_cats, imagenet, synthetic, tiny_imagenet
from parallel.data.dataset import ArrayImages, DataSet, Images
from parallel.data.layout import Layout, open_layout

__all__ = [
    "DATA_SETS",
    "ON_DISK",
    "ArrayImages",
    "DataSet",
    "Images",
    "Source",
    "known_classes",
    "known_images",
    "open_data",
]


@dataclass(frozen=True)
class Source:
    """A choice of `data=`, with what is known about the data set before it is opened."""

    options: DataConfig
    """Default options."""
    origin: Layout | Callable[[Any, int, int], DataSet]
    """Layout of the image files on disk, or a function (options, image size, seed) → data set."""
    train_images: int | None = None
    """Number of training images of the published set, without those kept for validation. None:
    data.train_images."""
    num_classes: int | None = None
    """Number of classes of the published set. None: data.num_classes."""


DATA_SETS: dict[str, Source] = {
    "digits": Source(DataConfig("digits"), digits.open_digits, 1_438, 10),
    "tiny_imagenet": Source(ImageFilesConfig("tiny_imagenet", flip=True), tiny_imagenet.LAYOUT, 100_000, 200),
    "dogs_vs_cats": Source(
        ImageFilesConfig("dogs_vs_cats", crop=True, flip=True), dogs_vs_cats.LAYOUT, 22_500, 2
    ),
    "imagenet": Source(ImageFilesConfig("imagenet", crop=True, flip=True), imagenet.LAYOUT, 1_281_167, 1000),
    "synthetic": Source(synthetic.SyntheticConfig(), synthetic.open_synthetic),
}

ON_DISK: dict[str, Layout] = {
    name: source.origin for name, source in DATA_SETS.items() if isinstance(source.origin, Layout)
}


def known_classes(data: DataConfig) -> int:
    """Return the number of classes of the configured data set without opening it."""
    classes = data.num_classes or DATA_SETS[data.name].num_classes
    if classes is None:
        raise ValueError(f"model.num_classes=None must be the number of classes of data={data.name}")
    return classes


def known_images(data: DataConfig) -> int:
    """Return the number of training images of the configured data set without opening it."""
    images = data.train_images or DATA_SETS[data.name].train_images
    if images is None:
        raise ValueError(f"data.train_images=None must be the number of training images of data={data.name}")
    return images


def open_data(data: DataConfig, image_size: int, seed: int, verbose: bool = False) -> DataSet:
    """Open the data set `data.name` for a model with square inputs of `image_size` pixels.

    `seed` determines synthetic data; splits and subsets of real data sets never change. The first
    call decodes the images into a cache, which can take long. All ranks may call at once (one
    builds the cache, the others wait), but not while a collective with a timeout is pending.
    `verbose` shows progress and reports skipped images; only one rank should set it. Raises
    `ValueError` for a folder that is missing, is empty, has another layout, or has too many broken
    files.
    """
    require_one_of("data.name", data.name, tuple(DATA_SETS))
    origin = DATA_SETS[data.name].origin
    if not isinstance(origin, Layout):
        opened = origin(data, image_size, seed)
        _require_as_configured(opened, data)
        return opened
    if not isinstance(data, ImageFilesConfig):
        raise TypeError(
            f"data={data.name} is opened with options of type {type(data).__name__}, not ImageFilesConfig"
        )
    return open_layout(data.name, ON_DISK, data, image_size, verbose)


def _require_as_configured(opened: DataSet, data: DataConfig) -> None:
    """Raise `ValueError` unless a data set is what its options state: records state both."""
    require(opened.name == data.name, "name", opened.name, f"of the data set must be data.name={data.name}")
    images = len(opened.train)
    require(
        data.train_images in (None, images),
        "data.train_images",
        data.train_images,
        f"must be the number of training images that data={data.name} returns; it returned {images}",
    )
