"""What a prediction rests on: measured times, a regression, or data sheets; and how to calibrate."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Sequence, Set
from typing import Any

from parallel.cluster import Cluster, Measured
from parallel.config import Config

SHORT_S = 60
"""`calibrate.budget_s` of the command that a message names."""
HARDWARE = ("device", "backend", "threads", "shared_memory", "flows", "cache")
"""Fields of `cluster` that a calibration depends on."""
TREATMENT = ("precision", "channels_last")
"""Fields of `trainer`, besides the batch size, that it depends on."""


def workload_text(config: Config) -> str:
    """Return what a calibration is for: the model, its images and the batch."""
    return (
        f"{config.model.label} at {config.model.image_size} px with batch {config.trainer.batch_size} "
        f"in {config.trainer.precision}"
    )


def doubts(config: Config, cluster: Cluster, predicted: Set[str]) -> str:
    """Return a sentence that says what was not measured on this cluster, or "" if all was.

    `predicted`: names of the ops whose times were predicted (`RecordingCompute`).
    """
    if not predicted:
        return ""
    if not isinstance(cluster.compute, Measured):
        return (
            f"cluster {cluster.name} is described by data sheets: no time of {config.model.label} was "
            "measured on it"
        )
    return (
        f"cluster {cluster.name} was not calibrated for all of {workload_text(config)}: a regression predicts "
        f"the ops that it did not measure; calibrate with: {calibration_command(config)}"
    )


def calibration_command(config: Config, workers: int | None = None) -> str:
    """Return the command that calibrates this machine for a configuration."""
    count = workers or config.worker_count()
    words = ["python", "-m", "parallel.torchrun", "--nproc-per-node", str(count), "-m", "parallel.calibrate"]
    words += [f"workers={count}", f"model={config.model.name}", f"data={config.data.name}"]
    words += [
        f"model.image_size={config.model.image_size}",
        f"trainer.batch_size={config.trainer.batch_size}",
    ]
    words += _changed("model", config.model, without=("name", "image_size", "init"))
    words += _changed("data", config.data, without=("name",))
    words += _changed("trainer", config.trainer, only=TREATMENT)
    words += _changed("cluster", config.cluster, only=HARDWARE)
    return shlex.join([*words, f"calibrate.budget_s={SHORT_S}"])


def _changed(
    group: str, values: Any, *, without: Sequence[str] = (), only: Sequence[str] | None = None
) -> Iterator[str]:
    """Yield overrides of the fields of a dataclass that differ from their defaults."""
    for field in dataclasses.fields(values):
        value, name = getattr(values, field.name), field.name
        named = name not in without and (only is None or name in only)
        if named and value is not None and value != field.default:
            yield f"{group}.{name}={str(value).lower() if isinstance(value, bool) else value}"
