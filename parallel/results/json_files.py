"""JSON files that are either absent or complete, and errors that name the file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parallel.config import one_line, require
from parallel.config.documents import from_json, read_bytes
from parallel.config.typed import structure


def read_json(path: Path, *formats: int) -> dict[str, Any]:
    """Return the JSON object in a file whose `format` is one of `formats`. Raises `ValueError` that
    names the file."""
    content = read_bytes(path)
    try:
        values = from_json(content)
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from None
    with naming(path):
        values = structure(dict[str, Any], values, "content")
        require(
            values.get("format") in formats,
            "format",
            values.get("format"),
            f"must be {' or '.join(map(str, formats))} to be read here",
        )
    return values


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Prefix the message of a `ValueError` with the file's path, as one line."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error)}") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either absent or complete, even if the machine stops in between."""
    os.replace(write_beside(path, content), path)
    sync_folder(path.parent)


def write_beside(path: Path, content: bytes) -> Path:
    """Write a file that is to be renamed to `path`; return it. After an error it does not exist."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def sync_folder(folder: Path) -> None:
    """Write a folder's own entries, such as a new name in it, to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
