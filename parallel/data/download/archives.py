"""Unpack a ZIP archive that is not trusted.

All entries are checked before the first one is written. An archive is rejected as a whole if an
entry would leave the folder (absolute path, drive, `..`), is a link, a device or encrypted, if two
entries have one path, or if the files are more or larger than stated limits. `zipfile` returns no
more bytes than an entry declares, and compares its CRC-32, so the limits hold for what is written.
"""

from __future__ import annotations

import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from parallel.config import printable
from parallel.config.checks import shortened

METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}
ENCRYPTED = 0x1
"""Bit of `flag_bits`."""
MOST_PART_BYTES = 255
"""Bytes of a name that file systems accept."""
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    UnicodeError,
)
"""What `zipfile` raises for an archive that is damaged."""
DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that an archive may unpack to."""

    files: int
    bytes: int


def unpack(archive: Path, folder: Path, limits: Limits, progress: Callable[[int], None]) -> int:
    """Unpack the files of a ZIP archive into `folder` and return their number.

    `progress` is called with the number of files done. File modes, owners and times are not
    restored. Raises `ValueError` for an archive that is truncated, altered or unsafe, or does not
    fit on the disk; files may then be left in `folder`.
    """
    size = archive.stat().st_size
    if size > limits.bytes:  # before the list of its entries is read into memory
        raise ValueError(
            f"{archive} has {size:,} bytes, and even unpacked at most {limits.bytes:,} are expected"
        )
    try:
        with zipfile.ZipFile(archive) as opened:
            if any(not 0 <= info.header_offset < size for info in opened.infolist()):
                raise zipfile.BadZipFile("an entry begins outside of it")
            files = list(checked(archive, opened.infolist(), limits))
            _require_space(archive, folder, sum(info.file_size for info, _ in files))
            for number, (info, path) in enumerate(files, start=1):
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(info) as source, target.open("xb") as out:
                    shutil.copyfileobj(source, out)
                progress(number)
    except DAMAGED as error:
        raise ValueError(f"{archive} is truncated or altered, or no ZIP archive: {error}") from error
    return len(files)


def checked(
    archive: Path, entries: list[zipfile.ZipInfo], limits: Limits
) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Yield the files among the entries with their paths, which lie within the folder.

    Raises `ValueError` for an entry that must not be unpacked.
    """
    if len(entries) > limits.files:
        raise ValueError(f"{archive} has {len(entries):,} entries: at most {limits.files:,} are expected")
    total = sum(info.file_size for info in entries)
    if total > limits.bytes:
        raise ValueError(f"{archive} unpacks to {total:,} bytes: at most {limits.bytes:,} are expected")
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    for info in entries:
        path = _path(archive, info)
        if path in files or (path in folders and not _is_folder(info)) or files & set(path.parents):
            raise _unsafe(archive, info, "has the path of another entry")
        folders.update(path.parents)
        if _is_folder(info):
            folders.add(path)
        else:
            files.add(path)
            yield info, path


def _path(archive: Path, info: zipfile.ZipInfo) -> PurePosixPath:
    """Return the path of an entry below the folder. Some Windows programs write backslashes."""
    name = info.filename.replace("\\", "/")
    path = PurePosixPath(name)
    if path.is_absolute() or DRIVE.match(name):
        raise _unsafe(archive, info, "has an absolute path")
    if ".." in path.parts:
        raise _unsafe(archive, info, "leads out of the folder")
    if not path.parts or printable(name) != name:
        raise _unsafe(archive, info, "has no printable name")
    if any(len(part.encode()) > MOST_PART_BYTES for part in path.parts):
        raise _unsafe(archive, info, f"has a name of more than {MOST_PART_BYTES} bytes")
    kind = stat.S_IFMT(info.external_attr >> 16)  # of archives that Unix wrote; 0 elsewhere
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _unsafe(archive, info, "is a link" if kind == stat.S_IFLNK else "is a device or a pipe")
    if info.flag_bits & ENCRYPTED:
        raise _unsafe(archive, info, "is encrypted")
    if info.compress_type not in METHODS:
        raise _unsafe(archive, info, f"is not {' or '.join(METHODS.values())}")
    return path


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.filename.replace("\\", "/").endswith("/")


def _unsafe(archive: Path, info: zipfile.ZipInfo, reason: str) -> ValueError:
    return ValueError(
        f"{archive} is not unpacked: its entry {shortened(printable(info.filename))!r} {reason}"
    )


def _require_space(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{archive} unpacks to {needed:,} bytes, and {folder} has {free:,} bytes free")
