"""The cache of decoded images: a uint8 array on disk, built once and read by index.

    <cache>/<name>-<fingerprint>/images.npy      uint8 [files, size, size, 3]; memory-mapped, so ranks share its pages
                                 cache.json      settings, versions, the checksum of images.npy, and
                                                 the broken files with the reason
    <cache>/<name>-<fingerprint>.lock            held by the process that builds; contains the number of images decoded

The fingerprint covers the settings and the path, length and modification time of every file, so a
cache for other settings or files is never read. A complete folder is renamed into place. The lock
is the kernel's (flock): it is released if its holder dies, and the next process removes the
incomplete folder.

A data set that is too large for the cache stays in its files (`FileImages`). All files are still
decoded once to find broken ones; the folder then contains only `cache.json`.

Every process that opens a cache checks what costs nothing: the form of `cache.json`, and length,
shape and type of the array. One process of each host (LOCAL_RANK 0, or the only one) also checks
all pixels against the checksum.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from parallel.config import ImageFilesConfig, require, require_number
from parallel.config.documents import from_json, read_bytes
from parallel.config.typed import structure
from parallel.data.build import Broken, cores, decode_all, own_cores, progress_bar
from parallel.data.decode import BrokenImageError, decode

FORMAT = 2  # increase it when the content for the same files and settings, or cache.json, changes
PIXELS, METADATA = "images.npy", "cache.json"
CHUNK_BYTES = 2**24
"""Bytes that are hashed at once, by a thread of its own."""
GB = 1e9
POLL_S = 0.1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFiles:
    """Labelled image files of one split."""

    root: Path
    files: tuple[str, ...]
    """Paths relative to `root`."""
    labels: np.ndarray
    """int64 [files]"""

    def take(self, rows: np.ndarray) -> ImageFiles:
        """Return the files at `rows`."""
        return ImageFiles(self.root, tuple(self.files[row] for row in rows), self.labels[rows])


class CachedImages:
    """Images in a memory-mapped array."""

    def __init__(self, pixels: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> None:
        self._pixels, self._rows, self.labels, self.size = pixels, rows, labels, int(pixels.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: np.ndarray) -> np.ndarray:
        images: np.ndarray = self._pixels.take(self._rows[indices], axis=0)  # take releases the GIL
        return images


class FileImages:
    """Images in files, which threads decode when they are read."""

    def __init__(self, source: ImageFiles, size: int, threads: int) -> None:
        self._source, self.labels, self.size = source, source.labels, size
        self._pool = ThreadPoolExecutor(threads, "decode")

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), self.size, self.size, 3), dtype=np.uint8)

        def fill(row: int) -> None:
            path = self._source.root / self._source.files[indices[row]]
            try:
                images[row] = decode(path.read_bytes(), self.size)
            except BrokenImageError as error:
                raise ValueError(
                    f"{path} is broken, but was not when the cache was built: {error}"
                ) from error

        for _ in self._pool.map(fill, range(len(indices))):
            pass
        return images


def open_images(
    name: str, source: ImageFiles, size: int, data: ImageFilesConfig, verbose: bool
) -> CachedImages | FileImages:
    """Open the images of `source` as squares of `size` pixels, without broken ones; build the cache
    if there is none.

    Several processes may call this at once: one builds, the others wait. `name` is the prefix of
    the cache's name. `verbose` shows progress and reports skipped images; only one rank should set
    it. Raises `ValueError` if more than 1 % of the images are broken, or if the cache cannot be
    written or is damaged.
    """
    decoded = len(source.files) * size * size * 3
    stay = decoded > data.cache_limit_gb * GB
    folder = Path(data.cache) / f"{name}-{fingerprint(source, size, stay)}"
    if not folder.exists():
        _build_once(folder, source, size, stay, data, verbose)
    stated = _read_metadata(folder, len(source.files))
    broken = [(image.row, image.reason) for image in stated.broken]
    rows = np.setdiff1d(np.arange(len(source.files)), np.array([row for row, _ in broken], dtype=np.int64))
    if verbose and broken:
        log.warning(
            "%s: %d of %d images are broken and skipped; %s lists them",
            name,
            len(broken),
            len(source.files),
            folder / METADATA,
        )
    if stay:
        if verbose:
            log.warning(
                "%s: %.3g GB decoded is more than data.cache_limit_gb=%g, so the images stay JPEG and are "
                "decoded by batch",
                name,
                decoded / GB,
                data.cache_limit_gb,
            )
        return FileImages(source.take(rows), size, data.decoders or own_cores())
    pixels = _map_pixels(folder, len(source.files), size)
    if os.environ.get("LOCAL_RANK", "0") == "0" and checksum(folder / PIXELS) != stated.checksum:
        raise _damaged(folder, f"the checksum of {PIXELS} is not the one in {METADATA}")
    return CachedImages(pixels, rows, source.labels[rows])


def checksum(path: Path) -> str:
    """Return the SHA-256 of the SHA-256 digests of all chunks of a file, and of its length.

    Chunks are hashed by a thread per core: the hash takes longer than reading from memory or a fast
    disk. On one core it does about 1 GB/s.
    """

    def digest(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(CHUNK_BYTES)).digest()

    size = path.stat().st_size
    whole = hashlib.sha256(str(size).encode())
    with ThreadPoolExecutor(cores(), "checksum") as pool:
        for part in pool.map(digest, range(0, size, CHUNK_BYTES)):
            whole.update(part)
    return whole.hexdigest()


def fingerprint(source: ImageFiles, size: int, stay: bool) -> str:
    """Return the hash of the settings and files, 16 hexadecimal digits. Raises `ValueError` if a
    file is missing."""
    digest = hashlib.blake2b(json.dumps([FORMAT, size, stay]).encode(), digest_size=8)
    for file in source.files:
        try:
            state = os.stat(source.root / file)
        except FileNotFoundError:
            raise ValueError(f"data.root={source.root} lacks the file {file}") from None
        digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _build_once(
    folder: Path, source: ImageFiles, size: int, stay: bool, data: ImageFilesConfig, verbose: bool
) -> None:
    title, total = f"decoding {folder.name.rpartition('-')[0]}", len(source.files)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock_file = open(f"{folder}.lock", "a+b", buffering=0)
    except OSError as error:
        raise ValueError(f"data.cache={data.cache} can't be written: {error}") from error
    with lock_file, progress_bar(title, total, verbose) as show:
        fd = lock_file.fileno()
        waited = False
        while not _try_lock(fd):
            if verbose and not waited:
                log.info("waiting for the process that is %s", title)
            waited = True
            show(_done(fd))
            time.sleep(POLL_S)
        if folder.exists():
            return

        def progress(done: int) -> None:
            _tell_done(fd, done)
            show(done)

        progress(0)
        if verbose:
            log.info("%s: %d images into %s", title, total, folder)
        with _whole_or_nothing(folder) as temporary:
            _build(temporary, source, size, stay, data, progress)


def _build(
    folder: Path,
    source: ImageFiles,
    size: int,
    stay: bool,
    data: ImageFilesConfig,
    progress: Callable[[int], None],
) -> None:
    pixels = None
    if not stay:
        shape = (len(source.files), size, size, 3)
        needed, free = int(np.prod(shape)), shutil.disk_usage(folder).free
        if needed > free:
            raise ValueError(
                f"data.cache={data.cache} has {free / GB:.1f} GB free and the decoded images take "
                f"{needed / GB:.1f} GB: choose another folder, or set data.cache_limit_gb below that "
                "to keep the images as JPEG"
            )
        pixels = folder / PIXELS
        np.lib.format.open_memmap(pixels, mode="w+", dtype=np.uint8, shape=shape)
    broken = decode_all(source.root, source.files, size, pixels, data.decoders or cores(), progress)
    stated = None if pixels is None else checksum(pixels)
    _write_metadata(folder / METADATA, source, size, broken, stated)
    for file in folder.iterdir():
        with file.open("r+b") as opened:
            os.fsync(opened)  # without it, a power cut after the rename could leave empty files


def _write_metadata(path: Path, source: ImageFiles, size: int, broken: Broken, stated: str | None) -> None:
    path.write_text(
        json.dumps(
            {
                "format": FORMAT,
                "root": str(source.root.absolute()),
                "images": len(source.files),
                "size": size,
                "checksum": stated,
                "versions": {package: version(package) for package in ("simplejpeg", "pillow")},
                "broken": [
                    {"row": row, "file": source.files[row], "reason": reason} for row, reason in broken
                ],
            },
            indent=1,
        )
    )


@dataclass(frozen=True)
class _Broken:
    """A file that cannot be decoded."""

    row: int
    file: str
    reason: str


@dataclass(frozen=True)
class _Metadata:
    """The content of `cache.json`."""

    format: int
    root: str
    images: int
    size: int
    checksum: str | None
    """Checksum of the array. None: there is none, because the images stay in their files."""
    versions: dict[str, str]
    broken: tuple[_Broken, ...]


def _read_metadata(folder: Path, count: int) -> _Metadata:
    try:
        stated = structure(_Metadata, from_json(read_bytes(folder / METADATA)))
        require(stated.images == count, "images", stated.images, f"must be {count}")
        for image in stated.broken:
            require_number("broken.row", image.row, 0, count - 1)
    except ValueError as error:
        raise _damaged(folder, error) from error
    return stated


def _map_pixels(folder: Path, count: int, size: int) -> np.ndarray:
    try:
        pixels: np.ndarray = np.load(folder / PIXELS, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    if pixels.shape != (count, size, size, 3) or pixels.dtype != np.uint8:
        raise _damaged(folder, f"{PIXELS} is {pixels.dtype} {pixels.shape}")
    return pixels


def _damaged(folder: Path, reason: object) -> ValueError:
    return ValueError(f"the cache {folder} is damaged ({reason}): remove it, so that it is built again")


@contextlib.contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` if the block succeeds, and is removed
    otherwise.

    The caller must hold the folder's lock. Other temporary folders belong to dead processes and are
    removed.
    """
    for left in folder.parent.glob(f"{folder.name}.tmp-*"):
        shutil.rmtree(left)
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _tell_done(fd: int, done: int) -> None:
    os.ftruncate(fd, 0)
    # The file is in append mode: this writes at offset 0 after the truncation.
    os.write(fd, str(done).encode())


def _done(fd: int) -> int:
    return int(os.pread(fd, 20, 0) or 0)
