"""Predicted step times held against measured ones.

    error e       predicted ÷ measured − 1, of a plan; mean and largest are those of |e|                 `Row.error`
    τ             Kendall's rank correlation (1938; τ-b) of predicted and measured times                  `_tau`
    regret        measured time of the plan that is predicted to be fastest ÷ the smallest measured time  `_regret`
    by term       mean of (predicted − measured) ÷ measured step, of computing, of communication that is not hidden
                  and of idling: they add up to the mean of e                                             `Terms`

τ and regret compare plans for the same workers and batch, which are a group; of several groups, τ is the mean and
regret the largest. `scripts/validate_simulator.py` measures, into a JSON file that the functions here read.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel.config import require, require_one_of
from parallel.config.typed import structure
from parallel.results.json_files import naming, read_json, write_atomically

FORMAT = 1
PATTERN = "validation*.json"
"""Files that reports look for."""
KINDS = ("named", "optimum", "runner-up", "random")
"""Of plans: those of a named strategy; the search's; the best of those that differ from it in one op; and others."""
MEAN, LARGEST, TAU, REGRET = 0.05, 0.15, 0.9, 1.03
"""What is aimed at: a mean and a largest error of at most so much, τ at least, regret at most so much."""


@dataclass(frozen=True)
class Split:
    """Where a step's seconds go: mean over the workers."""

    compute_s: float
    exposed_s: float
    """Communication that is not hidden."""
    idle_s: float

    @property
    def total_s(self) -> float:
        return self.compute_s + self.exposed_s + self.idle_s

    def scaled(self, total_s: float) -> Split:
        """The same shares of another total."""
        factor = total_s / self.total_s
        return Split(self.compute_s * factor, self.exposed_s * factor, self.idle_s * factor)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One plan at one batch size."""

    name: str
    kind: str
    plan: str
    """As a plan file."""
    workers: int
    batch_size: int
    """Global."""
    held_out: bool
    """Some part of it has a shape that calibration did not measure: its batch size, or how the plan cuts an op."""
    predicted_s: float
    measured_s: float
    """Median."""
    first_quartile_s: float
    third_quartile_s: float
    predicted: Split
    measured: Split

    def __post_init__(self) -> None:
        require_one_of("kind", self.kind, KINDS)
        for name in ("workers", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("predicted_s", "measured_s", "first_quartile_s", "third_quartile_s"):
            require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "must be positive seconds")
        require(self.first_quartile_s <= self.measured_s <= self.third_quartile_s, "measured_s", self.measured_s,
                f"must lie between its quartiles {self.first_quartile_s} and {self.third_quartile_s}")
        for which in ("predicted", "measured"):
            total, whole = getattr(self, which).total_s, getattr(self, f"{which}_s")
            require(abs(total - whole) <= 1e-6 * whole, which, total, f"must add up to {which}_s={whole}")

    @property
    def error(self) -> float:
        """Signed: above 0, the prediction is too long."""
        return self.predicted_s / self.measured_s - 1


@dataclass(frozen=True)
class Terms:
    """Parts of a mean signed error."""

    compute: float
    exposed: float
    idle: float


@dataclass(frozen=True)
class Statistics:
    """What some rows come to."""

    rows: int
    mean: float
    largest: float
    tau: float | None
    """None: no group has two plans whose times differ."""
    regret: float
    terms: Terms

    def missed(self) -> list[str]:
        """The targets that these rows miss, in words."""
        found = [("mean error", 100 * self.mean, "%", self.mean <= MEAN, f"at most {100 * MEAN:g} %"),
                 ("largest error", 100 * self.largest, "%", self.largest <= LARGEST, f"at most {100 * LARGEST:g} %"),
                 ("τ", self.tau, "", self.tau is None or self.tau >= TAU, f"at least {TAU:g}"),
                 ("regret", self.regret, "", self.regret <= REGRET, f"at most {REGRET:g}")]
        return [f"{name} {value:.3g}{' ' * bool(unit)}{unit} (aim: {rule})" for name, value, unit, ok, rule in found
                if not ok and value is not None]


@dataclass(frozen=True, kw_only=True)
class Validation:
    """One run of the measurement."""

    format: int = FORMAT
    model: str
    image_size: int
    num_classes: int
    precision: str
    cluster: str
    """Name and fingerprint of what the predictions were made with."""
    device: str
    threads: int
    """Of each worker."""
    started: str
    command: str
    blocks: int
    """How often each plan was measured."""
    steps: int
    """Timed steps of each measurement."""
    seed: int
    environment: dict[str, Any]
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        require(self.format == FORMAT, "format", self.format, f"cannot be read; this version reads {FORMAT}")
        require(len(self.rows) >= 1, "rows", len(self.rows), "must be at least 1")

    @property
    def plans(self) -> int:
        """Different ones, whatever the batch size."""
        return len({row.plan for row in self.rows})


Group = tuple[int, int]
"""Workers and batch size."""


def groups(rows: Iterable[Row]) -> dict[Group, list[Row]]:
    """The rows that compete with each other, by workers and batch."""
    found: dict[Group, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.workers, row.batch_size)):
        found.setdefault((row.workers, row.batch_size), []).append(row)
    return found


def statistics(rows: Sequence[Row]) -> Statistics:
    """Of one or more rows."""
    require(len(rows) >= 1, "rows", len(rows), "must be at least 1")
    errors = [abs(row.error) for row in rows]
    of = list(groups(rows).values())
    taus = [tau for group in of if (tau := _tau(group)) is not None]
    return Statistics(len(rows), sum(errors) / len(rows), max(errors), sum(taus) / len(taus) if taus else None,
                      max(_regret(group) for group in of), _terms(rows))


def _tau(group: Sequence[Row]) -> float | None:
    if len(group) < 2:
        return None
    from scipy.stats import kendalltau  # takes half a second, and `parallel.compare` mostly has no validation

    found = float(kendalltau([row.predicted_s for row in group], [row.measured_s for row in group]).statistic)
    return None if math.isnan(found) else found


def _regret(group: Sequence[Row]) -> float:
    chosen = min(group, key=lambda row: row.predicted_s)
    return chosen.measured_s / min(row.measured_s for row in group)


def _terms(rows: Sequence[Row]) -> Terms:
    def mean(part: str) -> float:
        return sum((getattr(row.predicted, part) - getattr(row.measured, part)) / row.measured_s for row in rows
                   ) / len(rows)

    return Terms(mean("compute_s"), mean("exposed_s"), mean("idle_s"))


def write_validation(path: Path, validation: Validation) -> None:
    """Write the file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(dataclasses.asdict(validation), indent=2, allow_nan=False, ensure_ascii=False)
                       + "\n").encode())


def read_validation(path: Path) -> Validation:
    """Read what `write_validation` wrote. Raises `ValueError` that names the file and what is wrong with it."""
    values = read_json(path, FORMAT)
    with naming(path):
        return structure(Validation, values)


def find_validations(paths: Iterable[Path]) -> list[Validation]:
    """Every validation at or below the folders, oldest first."""
    files = {file.resolve() for path in paths if path.is_dir() for file in path.rglob(PATTERN)}
    return sorted((read_validation(file) for file in files), key=lambda found: found.started)
