"""Validation of the simulator: predicted step times compared with measured ones.

    error e  predicted ÷ measured − 1 of a plan; mean and largest are of |e|  `ValidatedPlan.error`
    τ        Kendall's rank correlation (1938; τ-b) of predicted and          `_tau`
             measured times
    regret   measured time of the plan with the smallest predicted time ÷     `_regret`
             the smallest measured time
    terms    means of (predicted − measured) ÷ measured step for compute,     `_terms`
             exposed communication and idling; they add up to the mean of e

τ and regret compare plans for the same workers and batch, which form a group. Over several groups,
τ is the mean and regret the maximum. `python -m parallel.validate` measures and writes the JSON
file that is read here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel.config import require, require_number, require_one_of, require_plain
from parallel.config.checks import (
    MOST_CLASSES,
    MOST_PIXELS,
    MOST_SAMPLES,
    MOST_STEPS,
    MOST_THREADS,
    MOST_WORKERS,
    SEEDS,
)
from parallel.config.typed import structure
from parallel.results.json_files import naming, read_json, write_atomically
from parallel.results.records import LEAST_S, MOST_S

FORMAT = 1
PATTERN = "validation*.json"
"""Names of the files."""
KINDS = ("named", "optimum", "runner-up", "random")
"""Kinds of plans: of a named strategy; found by the search; the best that differ from it in one op;
drawn at random."""
CONFIDENCE = 0.95
"""Share of measured times within `interval_half_width`."""
MAX_MEAN_ERROR, MAX_ERROR, MIN_TAU, MAX_REGRET = 0.05, 0.15, 0.9, 1.03
"""Targets."""


@dataclass(frozen=True)
class StepSplit:
    """Parts of a step's time, as means over the workers."""

    compute_s: float
    exposed_s: float
    """Communication that does not overlap with compute."""
    idle_s: float

    def __post_init__(self) -> None:
        for name in ("compute_s", "exposed_s", "idle_s"):
            require_number(name, getattr(self, name), -MOST_S, MOST_S)

    @property
    def total_s(self) -> float:
        return self.compute_s + self.exposed_s + self.idle_s

    def scaled(self, total_s: float) -> StepSplit:
        """Return the same shares of another total."""
        factor = total_s / self.total_s
        return StepSplit(self.compute_s * factor, self.exposed_s * factor, self.idle_s * factor)


@dataclass(frozen=True, kw_only=True)
class ValidatedPlan:
    """One plan at one batch size: its prediction and its measurement."""

    name: str
    kind: str
    plan: str
    """Text of the plan file."""
    workers: int
    batch_size: int
    """Global."""
    held_out: bool
    """Whether calibration did not measure its batch size or the shape of some part of an op."""
    predicted_s: float
    measured_s: float
    """Median."""
    first_quartile_s: float
    third_quartile_s: float
    predicted: StepSplit
    measured: StepSplit

    def __post_init__(self) -> None:
        require_one_of("kind", self.kind, KINDS)
        require_number("workers", self.workers, 1, MOST_WORKERS)
        require_number("batch_size", self.batch_size, 1, MOST_SAMPLES)
        for name in ("predicted_s", "measured_s", "first_quartile_s", "third_quartile_s"):
            require_number(name, getattr(self, name), LEAST_S, MOST_S)
        require(
            self.first_quartile_s <= self.measured_s <= self.third_quartile_s,
            "measured_s",
            self.measured_s,
            f"must lie between its quartiles {self.first_quartile_s} and {self.third_quartile_s}",
        )
        for which in ("predicted", "measured"):
            total, whole = getattr(self, which).total_s, getattr(self, f"{which}_s")
            require(abs(total - whole) <= 1e-6 * whole, which, total, f"must add up to {which}_s={whole}")

    @property
    def error(self) -> float:
        """Signed relative error; positive where the prediction is too long."""
        return self.predicted_s / self.measured_s - 1


@dataclass(frozen=True)
class Terms:
    """Parts of the mean signed error."""

    compute: float
    exposed: float
    idle: float


@dataclass(frozen=True)
class Statistics:
    """Statistics of several plans."""

    rows: int
    mean: float
    largest: float
    tau: float | None
    """None: no group has two plans with different times."""
    regret: float
    terms: Terms

    def missed(self) -> list[str]:
        """Return the targets that the plans miss, in words."""
        missed = []
        if self.mean > MAX_MEAN_ERROR:
            missed.append(f"mean error {100 * self.mean:.3g} % (target: at most {100 * MAX_MEAN_ERROR:g} %)")
        if self.largest > MAX_ERROR:
            missed.append(f"largest error {100 * self.largest:.3g} % (target: at most {100 * MAX_ERROR:g} %)")
        if self.tau is not None and self.tau < MIN_TAU:
            missed.append(f"τ {self.tau:.3g} (target: at least {MIN_TAU:g})")
        if self.regret > MAX_REGRET:
            missed.append(f"regret {self.regret:.3g} (target: at most {MAX_REGRET:g})")
        return missed


@dataclass(frozen=True, kw_only=True)
class Validation:
    """One run of the measurement."""

    format: int = FORMAT
    model: str
    image_size: int
    num_classes: int
    precision: str
    cluster: str
    """Name and fingerprint of the cluster that the predictions are for."""
    device: str
    threads: int
    """CPU threads of each worker."""
    started: str
    command: str
    blocks: int
    """Number of measurements of each plan."""
    steps: int
    """Timed steps in each measurement."""
    seed: int
    environment: dict[str, Any]
    rows: tuple[ValidatedPlan, ...]

    def __post_init__(self) -> None:
        require(self.format == FORMAT, "format", self.format, f"cannot be read; this version reads {FORMAT}")
        require(len(self.rows) >= 1, "rows", len(self.rows), "must be at least 1")
        require_number("image_size", self.image_size, 1, MOST_PIXELS)
        require_number("num_classes", self.num_classes, 1, MOST_CLASSES)
        require_number("threads", self.threads, 1, MOST_THREADS)
        require_number("blocks", self.blocks, 1, MOST_STEPS)
        require_number("steps", self.steps, 1, MOST_STEPS)
        require_number("seed", self.seed, 0, SEEDS - 1)
        require_plain("environment", self.environment)

    @property
    def plans(self) -> int:
        """Number of different plans; a plan at two batch sizes counts once."""
        return len({row.plan for row in self.rows})


Group = tuple[int, int]
"""Workers and batch size."""


def groups(rows: Iterable[ValidatedPlan]) -> dict[Group, list[ValidatedPlan]]:
    """Return the plans by workers and batch size: plans of one group compete with each other."""
    found: dict[Group, list[ValidatedPlan]] = {}
    for row in sorted(rows, key=lambda row: (row.workers, row.batch_size)):
        found.setdefault((row.workers, row.batch_size), []).append(row)
    return found


def statistics(rows: Sequence[ValidatedPlan]) -> Statistics:
    """Return the statistics of one or more plans."""
    require(len(rows) >= 1, "rows", len(rows), "must be at least 1")
    errors = [abs(row.error) for row in rows]
    competing = list(groups(rows).values())
    taus = [tau for group in competing if (tau := _tau(group)) is not None]
    return Statistics(
        rows=len(rows),
        mean=sum(errors) / len(rows),
        largest=max(errors),
        tau=sum(taus) / len(taus) if taus else None,
        regret=max(map(_regret, competing)),
        terms=_terms(rows),
    )


def _tau(group: Sequence[ValidatedPlan]) -> float | None:
    if len(group) < 2:
        return None
    # Imported here: it takes half a second, and most comparisons have no validation.
    from scipy.stats import kendalltau

    found = float(kendalltau([row.predicted_s for row in group], [row.measured_s for row in group]).statistic)
    return None if math.isnan(found) else found


def _regret(group: Sequence[ValidatedPlan]) -> float:
    chosen = min(group, key=lambda row: row.predicted_s)
    return chosen.measured_s / min(row.measured_s for row in group)


def _terms(rows: Sequence[ValidatedPlan]) -> Terms:
    def mean(part: str) -> float:
        shares = [
            (getattr(row.predicted, part) - getattr(row.measured, part)) / row.measured_s for row in rows
        ]
        return sum(shares) / len(shares)

    return Terms(mean("compute_s"), mean("exposed_s"), mean("idle_s"))


def write_validation(path: Path, validation: Validation) -> None:
    """Write the file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        path,
        (
            json.dumps(dataclasses.asdict(validation), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        ).encode(),
    )


def read_validation(path: Path) -> Validation:
    """Read a file that `write_validation` wrote. Raises `ValueError` that names the file and the
    error."""
    values = read_json(path, FORMAT)
    with naming(path):
        return structure(Validation, values)


def kept_validation(cache: str, digest: str) -> Path:
    """Return the path of the newest validation of a cluster in the folder of calibrations.

    `digest`: that of the cluster's contents. The errors of one calibration are not those of another.
    """
    return Path(cache) / f"validation-{digest}.json"


def interval_half_width(rows: Sequence[ValidatedPlan]) -> float:
    """Return the relative half-width, around the predictions, within which 95 % of the measured times
    lie."""
    errors = sorted(abs(row.measured_s / row.predicted_s - 1) for row in rows)
    return errors[math.ceil(CONFIDENCE * len(errors)) - 1]


def read_error(path: Path) -> float:
    """Return `interval_half_width` of a validation file. Raises `ValueError` as `read_validation`."""
    return interval_half_width(read_validation(path).rows)


def find_validations(paths: Iterable[Path]) -> tuple[list[Validation], list[str]]:
    """Return every validation at or below the folders, oldest first, and an error for each file
    that cannot be read."""
    validations: list[Validation] = []
    errors: list[str] = []
    files = {file.resolve() for path in paths if path.is_dir() for file in path.rglob(PATTERN)}
    for file in sorted(files):
        try:
            validations.append(read_validation(file))
        except ValueError as error:
            errors.append(str(error))
    return sorted(validations, key=lambda found: found.started), errors
