"""One step of a run as spans of time, measured and predicted: the file step.json.

Both timelines begin at 0 s, the start of the step. Spans of one worker may overlap: communication
that goes on behind computing is `hidden`, and only the rest of it delays the worker. Time in no span
is the worker's own: preparing, updating, Python.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from parallel.config import require, require_number, require_one_of
from parallel.config.checks import MOST_BYTES, MOST_SECONDS, MOST_WORKERS
from parallel.config.typed import structure
from parallel.results.json_files import naming, read_json, write_atomically

FILE = "step.json"
"""Name of the file in a run directory."""
FORMAT = 1
KINDS = ("compute", "communication", "idle", "data")


@dataclass(frozen=True, kw_only=True)
class Span:
    """A time span of one worker."""

    worker: int
    start_s: float
    """Seconds from the start of the step, as `end_s`."""
    end_s: float
    kind: str
    """compute; communication; idle: waiting for other workers; data: waiting for images."""
    name: str
    """What runs: a pass with its ops, or an exchange with its op."""
    hidden: bool = False
    """Whether it is communication behind which the worker computes."""
    received: int = 0
    """Bytes that the worker receives with the message; every span of a message states them. 0: none, or
    not recorded."""

    def __post_init__(self) -> None:
        require_number("worker", self.worker, 0, MOST_WORKERS - 1)
        require_number("start_s", self.start_s, 0, MOST_SECONDS)
        require_number("end_s", self.end_s, self.start_s, MOST_SECONDS)
        require_one_of("kind", self.kind, KINDS)
        require_number("received", self.received, 0, MOST_BYTES)
        hideable = self.kind == "communication" or not self.hidden
        require(hideable, "hidden", self.hidden, f"must be false for kind={self.kind}")


@dataclass(frozen=True)
class StepTimelines:
    """The measured step and the predicted one, each in the order of start times. Empty: there is
    none."""

    measured: tuple[Span, ...] = ()
    predicted: tuple[Span, ...] = ()


def write(path: Path, timelines: StepTimelines) -> None:
    """Write the file, complete or not at all."""
    values = {"format": FORMAT, **dataclasses.asdict(timelines)}
    write_atomically(path, json.dumps(values, allow_nan=False).encode() + b"\n")


def read(path: Path) -> StepTimelines:
    """Read the file. Raises `ValueError` that names the file and the error."""
    values = read_json(path, FORMAT)
    del values["format"]
    with naming(path):
        return structure(StepTimelines, values)
