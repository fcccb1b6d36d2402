"""Download a file over HTTP, continuing where an earlier attempt ended.

Bytes go to FILE.part, which is renamed to FILE when it has its full length. A part that is there is
continued with a Range request (RFC 9110, section 14). A server that answers with the whole file
starts it over.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from parallel.config import require

CHUNK_BYTES = 2**18
TIMEOUT_S = 30.0
"""Seconds without a byte after which a connection counts as broken."""
ATTEMPTS, FIRST_ATTEMPTS = 5, 2
"""Attempts in a row that bring no byte before the download ends; the second for an address that has
brought none at all."""
WAIT_S = 1.0
"""Wait before another attempt; it doubles with every attempt that brings no byte."""
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

BROKEN = (http.client.HTTPException, urllib.error.URLError, ConnectionError, TimeoutError)
"""What a connection raises if it cannot be made or breaks. An answer with an error code is a
`URLError`, too."""


class Unreachable(ValueError):
    """Raised if no connection can be made, or all break."""


def download(
    address: str, file: Path, size: int, progress: Callable[[int], None], wait_s: float = WAIT_S
) -> None:
    """Download `address`, which has `size` bytes, to `file`. `progress` is called with the bytes done.

    Raises `Unreachable`, after which the next call continues, and `ValueError` for an address that
    refuses, a file of another size, or a full disk.
    """
    require(address.startswith(("http://", "https://")), "address", address, "must be http:// or https://")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    before, failures = _length(part), 0
    while (done := _length(part)) < size:
        free = shutil.disk_usage(file.parent).free
        if size - done > free:
            raise ValueError(f"{file} needs {size - done:,} more bytes, and the disk has {free:,} bytes free")
        reason = _continue(address, part, size, progress)
        failures = 0 if _length(part) > done else failures + 1
        if failures == (ATTEMPTS if done > before else FIRST_ATTEMPTS):
            arrived = f"; {done:,} of {size:,} bytes are here, and the same command continues" if done else ""
            raise Unreachable(f"{address} cannot be reached ({reason}){arrived}")
        if _length(part) < size:
            time.sleep(wait_s * 2**failures)
    if _length(part) > size:
        part.unlink()
        raise ValueError(f"{address} has more than the {size:,} bytes of the published archive")
    part.rename(file)


def _continue(address: str, part: Path, size: int, progress: Callable[[int], None]) -> str:
    """Append what the server sends to `part`, and return why it ended before `size` bytes, if it did.

    Raises `ValueError` if the server refuses or has a file of another size.
    """
    done = _length(part)
    request = urllib.request.Request(address, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            start = _start(answer, address, done, size)
            with part.open("r+b" if start else "wb") as out:
                out.seek(start)
                # One byte more than expected shows that the file is longer.
                while start <= size and (chunk := answer.read(min(CHUNK_BYTES, size + 1 - start))):
                    out.write(chunk)
                    start += len(chunk)
                    progress(start)
    except urllib.error.HTTPError as error:
        with contextlib.closing(error):
            if error.code < 500:
                raise ValueError(f"{address} answers {error.code} {error.reason}") from error
            return f"{error.code} {error.reason}"
    except BROKEN as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    return "the connection was closed"


def _start(answer: http.client.HTTPResponse, address: str, done: int, size: int) -> int:
    """Return the position of the first byte of an answer: `done`, or 0 if the server sends the whole
    file. Raises `ValueError` for a file of another size."""
    start, total = 0, answer.headers.get("Content-Length")
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
        stated = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if stated is None or int(stated[1]) != done:
            raise ValueError(f"{address} answers with other bytes than those asked for, from {done:,} on")
        start, total = done, stated[3]
    if total is not None and total.isdecimal() and int(total) != size:
        raise ValueError(
            f"{address} has {int(total):,} bytes instead of the {size:,} of the published archive"
        )
    return start


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
