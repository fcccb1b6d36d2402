"""A result is a record on disk; tables, plots, the report and the tracker's summary are views of records.

A run directory holds two files (`docs/records.md` says what each number means):

    record.json   the run: configuration, plan, versions, host, threads, commit
    epochs.csv    a row per epoch; the columns are the fields of `Epoch`

While a run lasts its epochs grow in `epochs.csv.part`. `record.json` is written last and in one piece, and carries
the number of epochs and the checksum of `epochs.csv`: it exists if and only if the run is whole.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from parallel.config import require
from parallel.results.checked import checked

FORMAT = 1
"""Number of the format below; a reader refuses any other."""
RECORD, EPOCHS, PART = "record.json", "epochs.csv", "epochs.csv.part"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What must be equal for two times to be compared. None: the source does not say."""

    model: str
    variant: str | None
    num_classes: int | None
    image_size: int | None
    data: str
    train_images: int | None
    batch_size: int | None
    """Global: over all workers."""
    precision: str | None


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch, a row of `epochs.csv`. None, an empty cell: not measured."""

    epoch: int
    """From 1."""
    seconds: float
    images_per_second: float | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    val_top1: float | None = None
    """Fraction, 0 to 1."""
    val_top5: float | None = None
    data_wait_s: float | None = None
    """This and the next three are means over the workers."""
    compute_s: float | None = None
    communication_s: float | None = None
    """Exposed: not hidden behind compute."""
    idle_s: float | None = None
    bytes_sent: int | None = None
    """By all workers together."""
    peak_memory_bytes: int | None = None
    """Of the worker that used most."""
    lr: float | None = None

    def __post_init__(self) -> None:
        require(self.epoch >= 1, "epoch", self.epoch, "must be at least 1")
        require(self.seconds > 0, "seconds", self.seconds, "must be positive")
        for name in ("val_top1", "val_top5"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, name, value, "must be a fraction from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One whole run."""

    format: int = FORMAT
    name: str
    sweep: str | None = None
    started: str | None
    """ISO 8601, UTC; so is `finished`. None: the source does not say."""
    finished: str | None
    command: str
    workload: Workload
    strategy: str
    scheme: str | None = None
    workers: int
    threads: int | None
    """CPU threads of each worker. None: the source does not say."""
    device: str
    backend: str | None
    warmup_steps: int | None
    """Untimed steps before the first epoch."""
    parameters: int | None = None
    parameter_bytes: int | None = None
    forward_flops: int | None = None
    """Of one image, a multiply-add counted as two."""
    plan: str | None = None
    """The plan's text; None if it is not one of ours (ddp)."""
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    epochs: tuple[Epoch, ...]
    directory: str | None = field(default=None, compare=False)
    """Where it was read from; not written."""

    def __post_init__(self) -> None:
        require(self.format == FORMAT, "format", self.format, f"cannot be read; this version reads {FORMAT}")
        require(self.workers >= 1, "workers", self.workers, "must be at least 1")
        require(self.threads is None or self.threads >= 1, "threads", self.threads, "must be at least 1")
        require(len(self.epochs) >= 1, "epochs", len(self.epochs), "must be at least 1: a record without is no result")
        numbers = [e.epoch for e in self.epochs]
        require(numbers == list(range(1, len(numbers) + 1)), "epochs", numbers, "must count from 1 without a gap")


COLUMNS = tuple(f.name for f in dataclasses.fields(Epoch))


class RecordWriter:
    """Writes the record of one run into `run_dir`: `append` at the end of every epoch, `finish` at the end of the run.

    Raises `ValueError` if `run_dir` already holds a whole record: a result is never overwritten. What an interrupted
    run left there is.
    """

    def __init__(self, run_dir: Path) -> None:
        require(not (run_dir / RECORD).exists(), "run_dir", run_dir, "already holds a finished run; choose another")
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / EPOCHS).unlink(missing_ok=True)
        self.run_dir = run_dir
        self._epochs: list[Epoch] = []
        self._part: IO[str] = open(run_dir / PART, "w", encoding="utf-8", newline="")
        self._write(COLUMNS)

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """The epochs appended so far."""
        return tuple(self._epochs)

    def append(self, epoch: Epoch) -> None:
        """Add a row to `epochs.csv.part`, visible at once to whoever watches the file."""
        self._epochs.append(epoch)
        self._write([_to_cell(getattr(epoch, name)) for name in COLUMNS])

    def finish(self, record: Record) -> None:
        """Make the run whole. `record.epochs` must be the epochs that were appended."""
        require(record.epochs == self.epochs, "record.epochs", len(record.epochs),
                f"must be the {len(self.epochs)} epochs that were appended")
        os.fsync(self._part.fileno())
        self._part.close()
        os.replace(self.run_dir / PART, self.run_dir / EPOCHS)
        write_whole(self.run_dir / RECORD, _to_json(record, (self.run_dir / EPOCHS).read_bytes()))

    def close(self) -> None:
        """Let go of the file; without `finish` the run stays unfinished, and its epochs in `epochs.csv.part`."""
        self._part.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, cells: Iterable[str]) -> None:
        csv.writer(self._part, lineterminator="\n").writerow(cells)
        self._part.flush()


def write_record(run_dir: Path, record: Record) -> None:
    """Write a record whose epochs are all known."""
    with RecordWriter(run_dir) as writer:
        for epoch in record.epochs:
            writer.append(epoch)
        writer.finish(record)


def read_record(path: Path) -> Record:
    """Read the record in a run directory (or at its `record.json`).

    Raises `ValueError` that names the file and what is wrong with it: absent, truncated, altered, of another format.
    """
    file = path if path.name == RECORD else path / RECORD
    if not file.is_file():
        raise ValueError(f"{file} does not exist: the run is not finished, or this is not a run directory")
    try:
        values = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is truncated or not JSON: {error}") from None
    try:
        if not isinstance(values, dict):
            raise ValueError(f"holds a {type(values).__name__}, not an object")
        require(values.get("format") == FORMAT, "format", values.get("format"), f"must be {FORMAT} to be read here")
        stated = values.pop("epochs", None)
        values["epochs"] = ()
        whole = checked(Record, values, skip=("directory", "epochs"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    epochs = _read_epochs(file.with_name(EPOCHS), stated, file)
    try:
        return Record(**whole, epochs=epochs, directory=str(file.parent))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def find_records(paths: Iterable[Path]) -> list[Record]:
    """Read every record at or below `paths`, oldest first, each once.

    Raises `ValueError` for a path that does not exist, for no record at all, and for a record that cannot be read.
    """
    files: set[Path] = set()
    paths = list(paths)
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist; give a run directory or a folder of them")
        files.update(p.resolve() for p in ([path] if path.is_file() else path.rglob(RECORD)))
    if not files:
        unfinished = len(unfinished_runs(paths))
        held = f"only unfinished runs ({unfinished})" if unfinished else f"no {RECORD}"
        raise ValueError(f"{', '.join(map(str, paths))} holds {held}: there is nothing to compare")
    return sorted((read_record(file) for file in files), key=lambda r: (r.started or "", r.directory or ""))


def no_runs(paths: Iterable[Path]) -> bool:
    """Whether there is no record at or below `paths`, all of which are folders."""
    return all(path.is_dir() and not any(path.rglob(RECORD)) for path in paths)


def unfinished_runs(paths: Iterable[Path]) -> list[Path]:
    """The run directories at or below `paths` that hold epochs but no record: interrupted, or still running."""
    parts = {file for path in paths if path.is_dir() for name in (PART, EPOCHS) for file in path.rglob(name)}
    return sorted({file.parent for file in parts if not (file.parent / RECORD).exists()})


def _to_json(record: Record, epochs: bytes) -> bytes:
    values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name != "directory"}
    values["workload"] = dataclasses.asdict(record.workload)
    values["epochs"] = {"count": len(record.epochs), "sha256": hashlib.sha256(epochs).hexdigest()}
    return (json.dumps(values, indent=2, allow_nan=False) + "\n").encode()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is either absent or whole, even if the machine stops in between."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read_epochs(path: Path, stated: object, record: Path) -> tuple[Epoch, ...]:
    """Read `epochs.csv` and hold it against what `record.json` states about it."""
    if not isinstance(stated, dict) or set(stated) != {"count", "sha256"}:
        raise ValueError(f"{record}: epochs={stated} must be an object of count and sha256")
    if not path.is_file():
        raise ValueError(f"{path} does not exist, yet {record} belongs to it")
    content = path.read_bytes()
    rows = list(csv.reader(io.StringIO(content.decode("utf-8", errors="replace"))))
    if len(rows) - 1 != stated["count"]:
        raise ValueError(f"{path} is truncated: {len(rows) - 1} epochs, but {RECORD} says {stated['count']}")
    if hashlib.sha256(content).hexdigest() != stated["sha256"]:
        raise ValueError(f"{path} was altered or truncated: its checksum is not the one in {RECORD}")
    if tuple(rows[0]) != COLUMNS:
        raise ValueError(f"{path}: columns {rows[0]} must be {list(COLUMNS)}")
    hints = typing.get_type_hints(Epoch)
    try:
        return tuple(_epoch(row, hints) for row in rows[1:])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _epoch(row: list[str], hints: dict[str, Any]) -> Epoch:
    values: dict[str, Any] = {name: _from_cell(text, hints[name]) for name, text in zip(COLUMNS, row, strict=True)}
    return Epoch(**values)


def _to_cell(value: float | int | None) -> str:
    return "" if value is None else repr(value)


def _from_cell(text: str, hint: Any) -> float | int | None:
    if not text and type(None) in typing.get_args(hint):
        return None
    return int(text) if int in (hint, *typing.get_args(hint)) else float(text)
