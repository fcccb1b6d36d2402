"""Runs of a small model whose workers misbehave: `tests.support.altered_training`."""

from __future__ import annotations

from pathlib import Path

SMALL = (
    "model=small",
    "data.train_images=24",
    "data.val_images=12",
    "trainer.batch_size=12",
    "tracker=none",
    "cluster.timeout_s=3",
    "strategy=data_parallel",
    "trainer.warmup_steps=1",
)
ALTERED = "tests.support.altered_training"


def epochs(folder: Path) -> int:
    """Return the number of lines that the run has written."""
    return sum(len(path.read_text().splitlines()) for path in folder.glob("runs/*/epochs.csv.part"))
