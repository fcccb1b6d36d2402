"""Where the archives of the public data sets are, and how to tell that one is whole."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from parallel.data.download.archives import Limits

CHUNK_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Checksum:
    """A digest of a file, in hexadecimal digits."""

    algorithm: str
    """A name of `hashlib`: sha256, md5."""
    digest: str
    source: str
    """Who states it."""


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """The archive of a data set as its publisher offers it."""

    address: str
    size: int
    """Bytes of the archive."""
    checksum: Checksum
    limits: Limits
    """Bounds of the unpacked files, some twice what the real archive holds."""

    @property
    def file_name(self) -> str:
        """Name of the archive: the end of its address."""
        return self.address.rpartition("/")[2]


PUBLISHED_SETS = {
    "tiny_imagenet": PublishedSet(
        address="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        size=248_100_043,
        checksum=Checksum(
            algorithm="md5",
            digest="90528d7ca1a48142e341f4ef8d21d0de",
            source="the loaders of several libraries; Stanford publishes none",
        ),
        limits=Limits(files=250_000, bytes=2 * 10**9),
    ),
    "dogs_vs_cats": PublishedSet(
        address=(
            "https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F/"
            "kagglecatsanddogs_5340.zip"
        ),
        size=824_887_076,
        checksum=Checksum(
            algorithm="sha256",
            digest="b7974bd00a84a99921f36ee4403f089853777b5ae8d151c76a86e64900334af9",
            source="the loaders of several libraries; Microsoft publishes none",
        ),
        limits=Limits(files=60_000, bytes=2 * 10**9),
    ),
}

WITH_ACCOUNT = {
    "imagenet": (
        "ImageNet (ILSVRC 2012) needs an account: https://image-net.org/download-images, or "
        "https://www.kaggle.com/c/imagenet-object-localization-challenge. Unpack it into class folders, "
        "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, and train with data=imagenet data.root=FOLDER"
    )
}
"""What to do for the sets that cannot be downloaded without an account."""


def file_digest(path: Path, algorithm: str) -> str:
    """Return the digest of a file in hexadecimal digits."""
    found = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def require_whole(archive: Path, published: PublishedSet) -> None:
    """Raise `ValueError` unless `archive` has the published length and checksum."""
    size = archive.stat().st_size
    if size != published.size:
        raise ValueError(
            f"{archive} is {'truncated' if size < published.size else 'altered'}: it has {size:,} bytes, and "
            f"the published {published.file_name} has {published.size:,}"
        )
    require_digest(archive, published.checksum)


def require_digest(archive: Path, expected: Checksum) -> None:
    """Raise `ValueError` unless `archive` has the expected digest."""
    found = file_digest(archive, expected.algorithm)
    if found != expected.digest.lower():
        raise ValueError(
            f"{archive} is altered: its {expected.algorithm} is {found} instead of {expected.digest} "
            f"(stated by {expected.source})"
        )
