"""Records on disk: a run directory holds two files.

    record.json   the run: configuration, plan, versions, host, threads, commit
    epochs.csv    one row per epoch; the columns are the fields of `Epoch`

While a run lasts, its epochs accumulate in `epochs.csv.part`. `record.json` is written last and in
one piece, and holds the number of epochs and the checksum of `epochs.csv`: it exists if and only if
the run has finished.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from parallel.config import require
from parallel.config.documents import read_bytes
from parallel.config.typed import structure, structure_text
from parallel.results.json_files import naming, read_json, write_beside
from parallel.results.old_formats import NEW_COLUMNS, upgraded
from parallel.results.record_checks import cut_texts, require_consistent
from parallel.results.records import FORMAT, Epoch, Record

RECORD, EPOCHS, PART = "record.json", "epochs.csv", "epochs.csv.part"
COLUMNS = tuple(f.name for f in dataclasses.fields(Epoch))
COLUMNS_BEFORE = tuple(name for name in COLUMNS if name not in NEW_COLUMNS)
"""Columns of formats 1 and 2."""


class NotWritten(Exception):
    """A record that cannot be written, as on a full disk."""


class RecordWriter:
    """Writes the record of one run into `run_dir`: `append` after every epoch, `finish` after the
    run.

    Raises `ValueError` if `run_dir` already holds a finished record, which is never overwritten.
    Files of an interrupted run are. Methods raise `NotWritten` where the disk is full; the epochs
    before then stay in `epochs.csv.part`.
    """

    def __init__(self, run_dir: Path, epochs: Iterable[Epoch] = ()) -> None:
        """`epochs` were trained before, and are written at once: the run continues."""
        require(
            not (run_dir / RECORD).exists(),
            "run_dir",
            run_dir,
            "already holds a finished run; choose another",
        )
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / EPOCHS).unlink(missing_ok=True)
        self.run_dir = run_dir
        self._epochs: list[Epoch] = []
        self._content = b""
        """What the file must hold."""
        self._part: IO[bytes] = open(run_dir / PART, "wb", buffering=0)
        self._write(COLUMNS)
        for epoch in epochs:
            self.append(epoch)

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """The epochs appended so far."""
        return tuple(self._epochs)

    def append(self, epoch: Epoch) -> None:
        """Add a row to `epochs.csv.part`, immediately visible to readers of the file."""
        self._write([_to_cell(getattr(epoch, name)) for name in COLUMNS])
        self._epochs.append(epoch)

    def finish(self, record: Record) -> None:
        """Complete the record. `record.epochs` must be the epochs that were appended.

        Raises `ValueError` if another program has changed the file of the epochs.
        """
        require(
            record.epochs == self.epochs,
            "record.epochs",
            len(record.epochs),
            f"must be the {len(self.epochs)} epochs that were appended",
        )
        part = self.run_dir / PART
        if not part.exists() or part.read_bytes() != self._content:
            raise ValueError(f"{part} must hold the epochs of this run: another program has changed it")
        with self._telling(RECORD):
            os.fsync(self._part.fileno())
            self._part.close()
            # Before the epochs are renamed: renaming needs no space on the disk.
            written = write_beside(self.run_dir / RECORD, _to_json(record, self._content))
        os.replace(part, self.run_dir / EPOCHS)
        os.replace(written, self.run_dir / RECORD)

    def close(self) -> None:
        """Close the file. Without `finish` the run stays unfinished, with its epochs in
        `epochs.csv.part`."""
        self._part.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, cells: Iterable[str]) -> None:
        row = io.StringIO(newline="")
        csv.writer(row, lineterminator="\n").writerow(cells)
        left = content = row.getvalue().encode()
        with self._telling(PART):
            try:
                while left:
                    left = left[self._part.write(left) :]
            except OSError:
                self._part.truncate(self._part.seek(len(self._content)))  # no part of a row
                raise
        self._content += content

    @contextlib.contextmanager
    def _telling(self, name: str) -> Iterator[None]:
        """Raise `NotWritten` for an error of writing the file `name`."""
        try:
            yield
        except OSError as error:
            raise NotWritten(
                f"{self.run_dir / name} can't be written: {error.strerror}; "
                f"the {len(self._epochs)} epochs before are kept in {PART}"
            ) from error


def write_record(run_dir: Path, record: Record) -> None:
    """Write a complete record."""
    with RecordWriter(run_dir) as writer:
        for epoch in record.epochs:
            writer.append(epoch)
        writer.finish(record)


def read_record(path: Path) -> Record:
    """Read the record in a run directory, or the given `record.json`.

    Long texts that are only shown are cut. Raises `ValueError` that names the file and the error: absent,
    truncated, altered, of another format, contradicting itself.
    """
    file = path if path.name == RECORD else path / RECORD
    if not file.is_file():
        raise ValueError(f"{file} does not exist: the run is not finished, or this is not a run directory")
    values = read_json(file, 1, 2, FORMAT)
    columns = COLUMNS if values["format"] == FORMAT else COLUMNS_BEFORE
    with naming(file):
        values = cut_texts(upgraded(values))
        require(
            "directory" not in values, "directory", values.get("directory"), "is not a field of a record file"
        )
        stated = structure(_StatedEpochs, values.get("epochs"), "epochs")
    with naming(file.with_name(EPOCHS)):
        epochs = _read_epochs(file.with_name(EPOCHS), stated, columns)
    with naming(file):
        record = structure(Record, {**values, "epochs": epochs, "directory": str(file.parent)})
        require_consistent(record)
    return record


def find_records(paths: Iterable[Path]) -> tuple[list[Record], list[str]]:
    """Read every record at or below `paths` once, oldest first. Also return an error for each
    record in a folder that cannot be read.

    Raises `ValueError` for a path that does not exist, for no records, and if a record that is
    itself in `paths`, or all of them, cannot be read.
    """
    named: set[Path] = set()
    files: set[Path] = set()
    paths = list(paths)
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist; give a run directory or a folder of them")
        record = path if path.is_file() else path / RECORD
        named.update([record.resolve()] if record.is_file() else [])
        files.update(file.resolve() for file in path.rglob(RECORD))
    files |= named
    if not files:
        unfinished = len(unfinished_runs(paths))
        held = f"only unfinished runs ({unfinished})" if unfinished else f"no {RECORD}"
        raise ValueError(f"{', '.join(map(str, paths))} holds {held}: there is nothing to compare")
    records: list[Record] = []
    errors: list[str] = []
    for file in sorted(files):
        try:
            records.append(read_record(file))
        except ValueError as error:
            if file in named:
                raise
            errors.append(str(error))
    if not records:
        raise ValueError(f"none of the {len(files)} records can be read: {'; '.join(errors)}")
    return sorted(records, key=lambda r: (r.started or "", r.directory or "")), errors


def no_runs(paths: Iterable[Path]) -> bool:
    """Return whether `paths` are folders without any record."""
    return all(path.is_dir() and not any(path.rglob(RECORD)) for path in paths)


def unfinished_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the run directories at or below `paths` with epochs but no record: interrupted or
    still running."""
    parts = {file for path in paths if path.is_dir() for name in (PART, EPOCHS) for file in path.rglob(name)}
    return sorted({file.parent for file in parts if not (file.parent / RECORD).exists()})


@dataclass(frozen=True)
class _StatedEpochs:
    """The statement in `record.json` about `epochs.csv`."""

    count: int
    sha256: str


def _read_epochs(path: Path, stated: _StatedEpochs, columns: tuple[str, ...]) -> tuple[Epoch, ...]:
    """Read `epochs.csv` and check it against the statement in `record.json`."""
    if not path.is_file():
        raise ValueError(f"does not exist, although {RECORD} beside it refers to it")
    content = read_bytes(path)
    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8", errors="replace"))))
    except csv.Error as error:
        raise ValueError(f"not CSV: {error}") from None
    header, rows = lines[:1], lines[1:]
    if len(rows) != stated.count:
        raise ValueError(f"truncated: {len(rows)} epochs, but {RECORD} says {stated.count}")
    if hashlib.sha256(content).hexdigest() != stated.sha256:
        raise ValueError(f"altered or truncated: its checksum is not the one in {RECORD}")
    require(header == [list(columns)], "columns", header, f"must be {list(columns)}")
    for number, row in enumerate(rows, start=1):
        require(len(row) == len(columns), f"cells of row {number}", len(row), f"must be {len(columns)}")
    return tuple(structure_text(Epoch, dict(zip(columns, row, strict=True))) for row in rows)


def _to_json(record: Record, epochs: bytes) -> bytes:
    values = dataclasses.asdict(record)
    del values["directory"]
    values["epochs"] = {"count": len(record.epochs), "sha256": hashlib.sha256(epochs).hexdigest()}
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()


def _to_cell(value: float | int | None) -> str:
    return "" if value is None else repr(value).lower()
