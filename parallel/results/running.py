"""Runs that have not finished: what their rows say so far, and whether they are at work."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel.config.documents import from_yaml, read_bytes, read_text
from parallel.config.typed import structure_text
from parallel.results.formatting import count, percent, seconds
from parallel.results.json_files import naming
from parallel.results.record_files import COLUMNS, EPOCHS, PART, unfinished_runs
from parallel.results.records import Epoch
from parallel.results.run_lock import at_work

HYDRA_CONFIG = Path(".hydra") / "config.yaml"


@dataclass(frozen=True)
class Running:
    """A run directory without a record."""

    run_dir: Path
    epochs: tuple[Epoch, ...]
    """The rows that are complete."""
    planned: int | None
    """Epochs of its configuration. None: it does not lie in the folder."""
    at_work: bool
    """Whether its process runs. False: it was interrupted, or runs on another host."""

    @property
    def progress(self) -> str:
        """`3 of 10 epochs`."""
        done = len(self.epochs)
        return count(done, "epoch") if self.planned is None else f"{done:,} of {count(self.planned, 'epoch')}"

    def __str__(self) -> str:
        parts = [self.progress]
        if self.epochs:
            last = self.epochs[-1]
            parts.append(f"the last in {seconds(last.seconds)} s")
            parts += [] if last.train_loss is None else [f"loss {last.train_loss:.4g}"]
            parts += [] if last.val_top1 is None else [f"top-1 {percent(last.val_top1)}"]
        return f"{self.run_dir}: {', '.join(parts)}"


def running_runs(paths: Iterable[Path]) -> tuple[list[Running], list[str]]:
    """Return the unfinished runs at or below `paths`, and an error for each whose files cannot be
    read."""
    found, errors = [], []
    for run_dir in unfinished_runs(paths):
        try:
            found.append(Running(run_dir, _epochs_so_far(run_dir), _planned(run_dir), at_work(run_dir)))
        except ValueError as error:
            errors.append(str(error))
    return found, errors


def _epochs_so_far(run_dir: Path) -> tuple[Epoch, ...]:
    path = run_dir / PART if (run_dir / PART).is_file() else run_dir / EPOCHS
    with naming(path):
        text = read_bytes(path).decode("utf-8", errors="replace")
        complete = text[: text.rfind("\n") + 1]  # the rest of the last row is still being written
        header, *rows = list(csv.reader(io.StringIO(complete))) or [list(COLUMNS)]
        if header != list(COLUMNS) or any(len(row) != len(COLUMNS) for row in rows):
            raise ValueError("not a table of epochs of this version")
        return tuple(structure_text(Epoch, dict(zip(COLUMNS, row, strict=True))) for row in rows)


def _planned(run_dir: Path) -> int | None:
    path = run_dir / HYDRA_CONFIG
    if not path.is_file():
        return None
    with naming(path):
        config: Any = from_yaml(read_text(path))
    trainer = config.get("trainer") if isinstance(config, dict) else None
    epochs = trainer.get("epochs") if isinstance(trainer, dict) else None
    return epochs if isinstance(epochs, int) else None
