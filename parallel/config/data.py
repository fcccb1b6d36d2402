"""What the options of every data set have in common, and those of data sets that lie on disk."""

from __future__ import annotations

from dataclasses import dataclass

from parallel.config.checks import require


@dataclass(frozen=True)
class DataConfig:
    """Which data set, and how its images are prepared."""

    name: str
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
    """Use only this many validation images (synthetic: make this many). None: all."""

    def __post_init__(self) -> None:
        require(self.stored_size is None or self.stored_size >= 1, "data.stored_size", self.stored_size,
                "must be at least 1 pixel")
        for name in ("train_images", "val_images"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"data.{name}", value, "must be at least 1")

    @property
    def num_classes(self) -> int | None:
        """Classes of a data set that has as many as it is told to. None: the data set brings its own."""
        return None


@dataclass(frozen=True)
class ImageFilesConfig(DataConfig):
    """A data set of image files, and where their decoded pixels are cached."""

    root: str | None = None
    """Folder of the data set as it is distributed."""
    cache: str = ".cache/parallel"
    """Folder of the decoded uint8 caches."""
    cache_limit_gb: float = 64.0
    """A decoded cache larger than this is not made: the images stay JPEG and are decoded by batch."""
    decoders: int | None = None
    """Processes that decode while a cache is built. None: one per core."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.cache_limit_gb >= 0, "data.cache_limit_gb", self.cache_limit_gb, "must not be negative")
        require(self.decoders is None or self.decoders >= 1, "data.decoders", self.decoders, "must be at least 1")
