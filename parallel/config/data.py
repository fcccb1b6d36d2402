"""Options that all data sets share, and options of data sets on disk."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config.checks import require


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
        require(
            self.stored_size is None or self.stored_size >= 1,
            "data.stored_size",
            self.stored_size,
            "must be at least 1 pixel",
        )
        for name in ("train_images", "val_images"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"data.{name}", value, "must be at least 1")

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
    """Number of processes that decode images for a cache. None: one per core."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.cache_limit_gb >= 0, "data.cache_limit_gb", self.cache_limit_gb, "must not be negative")
        require(
            self.decoders is None or self.decoders >= 1, "data.decoders", self.decoders, "must be at least 1"
        )
