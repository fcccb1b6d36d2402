"""Options that all data sets share, and options of data sets on disk."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config.checks import MOST_IMAGES, MOST_PIXELS, require_number

MOST_GB = 10**9
"""A billion GB, an exabyte."""
MOST_DECODERS = 1024
"""Processes that one host can start."""


@dataclass(frozen=True)
class DataConfig:
    """The data set, and the preparation of its images."""

    name: str
    stored_size: int | None = None
    """Side of the stored square images in pixels, at least model.image_size. None:
    model.image_size, or 8/7 of it with crop (256 for 224)."""
    crop: bool = False
    """Train on a random crop of the stored image (validation: the centre)."""
    flip: bool = False
    """Train on a random horizontal flip."""
    train_images: int | None = None
    """Number of training images to use (synthetic: to make). None: all."""
    val_images: int | None = None
    """Number of validation images to use (synthetic: to make). None: all."""

    def __post_init__(self) -> None:
        require_number("data.stored_size", self.stored_size, 1, MOST_PIXELS)
        for name in ("train_images", "val_images"):
            require_number(f"data.{name}", getattr(self, name), 1, MOST_IMAGES)

    @property
    def num_classes(self) -> int | None:
        """Configured number of classes. None: the data set determines it."""
        return None


@dataclass(frozen=True)
class ImageFilesConfig(DataConfig):
    """A data set of image files, with a cache of decoded pixels."""

    root: str | None = None
    """Folder of the data set, in the layout in which it is distributed."""
    cache: str = ".cache/parallel"
    """Folder of the caches of decoded images (uint8)."""
    cache_limit_gb: float = 64.0
    """Maximum size of a cache in GB. The images of a larger set stay JPEG and are decoded batch by
    batch."""
    decoders: int | None = None
    """Number of processes that decode images for a cache, and of each worker's threads that decode
    images by batch. None: one per core, for the threads one per core of the worker's equal part."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("data.cache_limit_gb", self.cache_limit_gb, 0, MOST_GB)
        require_number("data.decoders", self.decoders, 1, MOST_DECODERS)
