"""The record of a run: configuration, environment, and the measurements of every epoch.

Tables, plots, the report and the tracker's summary are computed from records; `record_files` keeps
them on disk, and `docs/records.md` explains each field.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

from parallel.config import require, require_number, require_plain, require_positive
from parallel.config.checks import MOST_BYTES, MOST_STEPS, MOST_THREADS, MOST_WORKERS
from parallel.config.quantities import parse_rate
from parallel.config.typed import structure
from parallel.results.hosts import Host, require_hosts
from parallel.results.load import Load
from parallel.results.predicted import Predicted
from parallel.results.stragglers import Straggler

FORMAT = 3
"""Version of the fields below. Formats 1 and 2 can be read, too (`old_formats`); any other is
rejected."""
LEAST_S, MOST_S = 1e-9, 1e9
"""Bounds of measured seconds: a nanosecond and 30 years."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Everything that must be equal for two times to be comparable. None: the source does not
    state the value."""

    model: str
    variant: str | None
    num_classes: int | None
    image_size: int | None
    data: str
    train_images: int | None
    batch_size: int | None
    """Global, over all workers."""
    precision: str | None

    def __post_init__(self) -> None:
        for name in ("num_classes", "image_size", "train_images", "batch_size"):
            require_number(name, getattr(self, name), 1, MOST_BYTES)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch, a row of `epochs.csv`. None (an empty cell): not measured."""

    epoch: int
    """From 1."""
    seconds: float
    images_per_second: float | None = None
    train_loss: float | None = None
    """NaN or infinite, as val_loss, in a run that diverged; all other numbers are finite."""
    val_loss: float | None = None
    val_top1: float | None = None
    """Fraction, 0 to 1."""
    val_top5: float | None = None
    data_wait_s: float | None = None
    """Mean over the workers, as are the next three."""
    compute_s: float | None = None
    communication_s: float | None = None
    """Exposed communication only: not overlapped with compute."""
    idle_s: float | None = None
    bytes_sent: int | None = None
    """Sum over the workers."""
    peak_memory_bytes: int | None = None
    """Maximum over the workers."""
    lr: float | None = None
    checkpoint_s: float | None = None
    """Time that training waited for copies of its state since the end of the epoch before; those
    within the epoch are part of `seconds`."""
    timed: bool = True
    """Whether `seconds` is the time of an epoch of this run. False: the epoch was continued from a
    checkpoint, or trained before this run took the training over. It counts in losses, not in
    times."""

    def __post_init__(self) -> None:
        require_number("epoch", self.epoch, 1, MOST_STEPS)
        require_number("seconds", self.seconds, LEAST_S, MOST_S)
        require_positive("images_per_second", self.images_per_second, MOST_BYTES)
        for name in ("data_wait_s", "compute_s", "communication_s", "idle_s", "checkpoint_s"):
            require_number(name, getattr(self, name), 0, MOST_S)
        for name in ("bytes_sent", "peak_memory_bytes"):
            require_number(name, getattr(self, name), 0, MOST_BYTES)
        require_number("lr", self.lr, 0, 1e20)
        for name in ("val_top1", "val_top5"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, name, value, "must be a fraction from 0 to 1")


@dataclass(frozen=True)
class _Trainer:
    """Fields of `config.trainer` that tables and notes use."""

    channels_last: bool | None = None
    compile: bool | None = None


@dataclass(frozen=True)
class _Groups:
    """Groups of `config`, which are mappings."""

    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {key: self.trainer[key] for key in ("channels_last", "compile") if key in self.trainer}
        structure(_Trainer, known, "trainer")


@dataclass(frozen=True)
class _Emulated:
    """Fields of `environment.emulated` that are computed with."""

    hosts: int
    rate: Any = None
    """Rate of the hosts' links: None, `1gbit`, or a list with one of them for each host."""

    def __post_init__(self) -> None:
        require_number("hosts", self.hosts, 1, MOST_WORKERS)
        for rate in self.rate if isinstance(self.rate, list) else [self.rate]:
            require(rate is None or isinstance(rate, str), "rate", rate, "must be text such as 1gbit")
            if rate is not None:
                parse_rate("rate", rate)


@dataclass(frozen=True)
class _Environment:
    """Fields of `environment` that are not text."""

    gpus: tuple[str, ...] | None = None
    cuda: dict[str, Any] | None = None
    variables: dict[str, str] | None = None
    cpu_count: int | None = None
    machine_cpus: int | None = None
    memory_bytes: int | None = None
    emulated: dict[str, Any] | None = None
    side_by_side: int | None = None

    def __post_init__(self) -> None:
        require_number("cpu_count", self.cpu_count, 1, MOST_WORKERS)
        require_number("machine_cpus", self.machine_cpus, 1, MOST_WORKERS)
        require_number("memory_bytes", self.memory_bytes, 1, MOST_BYTES)
        if self.emulated is not None:
            known = {key: self.emulated[key] for key in ("hosts", "rate") if key in self.emulated}
            structure(_Emulated, known, "emulated")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a training: the first, or one that continued from a checkpoint."""

    step: int
    """Optimizer steps that it found done."""
    started: str
    """ISO 8601 in UTC."""
    label: str
    """The strategy with its options, as in `Record`."""
    workers: int
    plan: str | None
    """Fingerprint of the plan."""
    lost_s: float = 0.0
    """Time from the copy of the state that it continued from, or from the first start if there was
    none, to its first step."""

    def __post_init__(self) -> None:
        require_number("step", self.step, 0, MOST_BYTES)
        require_number("workers", self.workers, 1, MOST_WORKERS)
        require_number("lost_s", self.lost_s, 0, MOST_S)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished run."""

    format: int = FORMAT
    name: str
    sweep: str | None = None
    started: str | None
    """ISO 8601 in UTC, as is `finished`. None: the source does not state it."""
    finished: str | None
    command: str
    workload: Workload
    strategy: str
    scheme: str | None = None
    label: str
    """The strategy with everything that distinguishes its runs, as Hydra overrides: `model_parallel
    layers micro_batches=4`."""
    baseline: bool
    """Whether speedups are measured against this run: the whole network on one worker."""
    workers: int
    threads: int | None
    """CPU threads of each worker. None: the source does not state them."""
    device: str
    backend: str | None
    hosts: tuple[Host, ...] = ()
    """Hosts of the workers. Empty: not recorded."""
    transport: str | None = None
    """How workers of one host pass messages: shared memory or loopback. None: not recorded, GPUs, or a
    single worker on each host."""
    warmup_steps: int | None
    """Untimed steps before the first epoch."""
    parameters: int | None = None
    parameter_bytes: int | None = None
    forward_flops: int | None = None
    """FLOPs of the forward pass of one image; a multiply-add counts as two."""
    plan: str | None = None
    """Text of the plan. None: the engine runs no plan (ddp)."""
    attempts: tuple[Attempt, ...] = ()
    """The starts whose steps are part of the result, the first one first. Empty: not recorded."""
    restarts: int = 0
    """How many times this run was started again, also in vain."""
    stragglers: tuple[Straggler, ...] | None = None
    """Workers that were slower than others with the same part, the most costly first. None: not
    looked for, or nothing to compare."""
    weights_changed: bool | None = None
    """Whether the epochs of this run changed any weight. None: not recorded, or no epoch was left to
    train."""
    load: Load | None = None
    """What its machines did besides it. None: not measured."""
    predicted: Predicted | None = None
    """The run's prediction of itself. None: this machine was not calibrated, or the engine has no cost
    model."""
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    epochs: tuple[Epoch, ...]
    directory: str | None = field(default=None, compare=False)
    """Folder that the record was read from; not written."""

    def __post_init__(self) -> None:
        require(self.format == FORMAT, "format", self.format, f"cannot be read; this version reads {FORMAT}")
        require_number("workers", self.workers, 1, MOST_WORKERS)
        require(
            not self.baseline or self.workers == 1,
            "workers",
            self.workers,
            "must be 1 in a baseline: speedups are measured against one worker (baseline=true)",
        )
        require_number("threads", self.threads, 1, MOST_THREADS)
        require_number("restarts", self.restarts, 0, MOST_STEPS)
        require_number("warmup_steps", self.warmup_steps, 0, MOST_STEPS)
        for straggler in self.stragglers or ():
            require_number("stragglers.worker", straggler.worker, 0, self.workers - 1)
        for name in ("parameters", "parameter_bytes", "forward_flops"):
            require_number(name, getattr(self, name), 0, MOST_BYTES)
        if self.hosts:
            require_hosts(self.hosts, self.workers)
        require_plain("config", self.config)
        require_plain("environment", self.environment)
        for cls, name in ((_Groups, "config"), (_Environment, "environment")):
            known = [field.name for field in dataclasses.fields(cls)]
            values = getattr(self, name)
            structure(cls, {key: values[key] for key in known if key in values}, name)
        require(len(self.epochs) >= 1, "epochs", len(self.epochs), "must be at least 1: a record has results")
        numbers = [e.epoch for e in self.epochs]
        require(
            numbers == list(range(1, len(numbers) + 1)), "epochs", numbers, "must count from 1 without a gap"
        )

    @property
    def side_by_side(self) -> bool:
        """Whether other jobs ran on the same machine, so that its times are not compared."""
        return self.environment.get("side_by_side") is not None

    @property
    def shares_gpu(self) -> bool:
        """Whether its workers may have shared a GPU, so that its times are not compared."""
        return self.workers > 1 and (self.config.get("cluster") or {}).get("share_gpu") is True

    @property
    def lost_s(self) -> float:
        """Seconds lost between checkpoints and the steps that continued from them."""
        return sum(attempt.lost_s for attempt in self.attempts)


def plan_fingerprint(plan: str) -> str:
    """Return eight hexadecimal digits that differ for different plans, as `Plan.fingerprint`
    does."""
    return hashlib.sha256(plan.encode()).hexdigest()[:8]
