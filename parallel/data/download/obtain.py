"""Bring a public data set into a folder in which `open_data` finds it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from parallel.data import DATA_SETS, ON_DISK
from parallel.data.download.archives import unpack
from parallel.data.download.published_sets import (
    Checksum,
    PublishedSet,
    file_digest,
    require_digest,
    require_whole,
)
from parallel.data.download.resumable import download
from parallel.data.layout import stand_in

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Obtained:
    """A data set in its folder."""

    root: Path
    """Folder for data.root."""
    train_images: int
    val_images: int
    published_images: int
    """Training images of the published set."""
    sha256: str | None
    """Checksum of the archive. None: the set was there already."""

    @property
    def is_whole(self) -> bool:
        """Whether it has the published number of training images."""
        return self.train_images == self.published_images


def obtain(
    name: str,
    published: PublishedSet,
    root: Path,
    *,
    address: str | None = None,
    archive: Path | None = None,
    sha256: str | None = None,
    downloaded: Progress,
    unpacked: Progress,
) -> Obtained:
    """Download the data set `name`, or take it from `archive`, and unpack it into `root`.

    `address` is a mirror, `sha256` a digest that the archive must have. A set that is in `root`
    already stays as it is. `root` appears only when it is complete. A downloaded archive is removed
    when it has been unpacked; a damaged one, too, so that the next attempt starts over. Raises
    `ValueError` for anything that is not this set.
    """
    layout = ON_DISK[name]
    found = layout.find(root) if root.is_dir() else None
    if found is not None:
        other = stand_in(found)
        if other:
            raise ValueError(
                f"{root} holds {other} in the layout of {name}: remove it, or choose another --out"
            )
        return _described(name, root, found, None)
    if root.exists() and any(root.iterdir()):
        raise ValueError(f"{root} is not empty, and holds no {name}: looked for {layout.text}")
    given = archive or _download(published, address or published.address, root, downloaded)
    try:
        digest = _check(given, published, sha256, downloaded=archive is None)
    except ValueError:
        if archive is None:
            given.unlink()
        raise
    obtained = _unpack(name, given, published, root, digest, unpacked)
    if archive is None:
        given.unlink()
    return obtained


def _unpack(
    name: str, archive: Path, published: PublishedSet, root: Path, digest: str, progress: Progress
) -> Obtained:
    layout = ON_DISK[name]
    temporary = root.with_name(f"{root.name}.tmp-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        unpack(archive, temporary, published.limits, progress)
        found = layout.find(temporary)
        if found is None:
            inner = next(temporary.rglob("*.zip"), None)
            hint = f"; it holds {inner.name}: unpack that one, and give it" if inner else ""
            raise ValueError(f"{archive} holds no {name}: looked for {layout.text}{hint}")
        obtained = _described(name, root, found, digest)
        if root.exists():
            root.rmdir()  # it is empty
        temporary.rename(root)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    return obtained


def _download(published: PublishedSet, address: str, root: Path, progress: Progress) -> Path:
    file = root.with_name(published.file_name)
    if not file.exists():
        download(address, file, published.size, progress)
    return file


def _check(archive: Path, published: PublishedSet, sha256: str | None, *, downloaded: bool) -> str:
    """Return the SHA-256 of the archive. Raises `ValueError` if it is not what it should be.

    An archive of another name is another one, such as Kaggle's, of which no checksum is known.
    """
    if downloaded or archive.name == published.file_name:
        require_whole(archive, published)
    if sha256 is not None:
        require_digest(archive, Checksum(algorithm="sha256", digest=sha256, source="--sha256"))
    return file_digest(archive, "sha256")


def _described(name: str, root: Path, found: Path, digest: str | None) -> Obtained:
    listing = ON_DISK[name].listing(found)
    return Obtained(
        root=root,
        train_images=len(listing.train.files),
        val_images=len(listing.val.files),
        published_images=DATA_SETS[name].train_images or 0,
        sha256=digest,
    )
