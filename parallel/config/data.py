"""Configuration of the data set."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config.checks import require, require_one_of

DATA_SETS = ("digits", "tiny_imagenet", "dogs_vs_cats", "imagenet", "synthetic")


@dataclass
class DataConfig:
    """Which data set, where it lies, and how its images are prepared."""

    name: str = "digits"
    root: str | None = None
    """Folder of the data set as it is distributed; digits and synthetic need none."""
    cache: str = ".cache/parallel"
    """Folder of the decoded uint8 caches."""
    cache_limit_gb: float = 64.0
    """A decoded cache larger than this is not made: the images stay JPEG and are decoded by batch."""
    stored_size: int | None = None
    """Side in pixels of the stored square image, at least model.image_size. None: model.image_size, or with crop
    8/7 of it (256 for 224)."""
    crop: bool = False
    """Train on a random crop of the stored image (validation: the centre)."""
    flip: bool = False
    """Train on a random horizontal flip."""
    train_images: int | None = None
    """Use only this many training images (synthetic: make this many). None: all."""
    val_images: int | None = None
    """Likewise for validation."""
    num_classes: int = 1000
    """Of synthetic data; the real sets bring their own."""
    decoders: int | None = None
    """Processes that decode while a cache is built. None: one per core."""

    def __post_init__(self) -> None:
        require_one_of("data.name", self.name, DATA_SETS)
        require(self.stored_size is None or self.stored_size >= 1, "data.stored_size", self.stored_size,
                "must be at least 1 pixel")
        require(self.cache_limit_gb >= 0, "data.cache_limit_gb", self.cache_limit_gb, "must not be negative")
        for name in ("train_images", "val_images", "decoders"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"data.{name}", value, "must be at least 1")
        require(self.num_classes >= 2, "data.num_classes", self.num_classes, "must be at least 2")
