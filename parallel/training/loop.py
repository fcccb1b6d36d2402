"""The training loop, the same for every strategy; an engine runs the steps.

The time of an epoch is measured between barriers and excludes validation, records and tracking. It ends
when all workers have the updated weights: the gathers that the last step leaves to the next one count, too.
Warm-up steps precede the first epoch. They have learning rate 0, so they change no weights, and the
momentum is reset after them.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from parallel.checkpoints.manifest import Begun
from parallel.config import TrainerConfig
from parallel.data.loader import Batch
from parallel.program.precision import ACTIVATION_BYTES
from parallel.results.load import Load
from parallel.results.records import Epoch
from parallel.results.step_timeline import Span
from parallel.runtime.communication.world import World
from parallel.runtime.execution.engine import Engine
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.failure.errors import NotFinite
from parallel.runtime.failure.nonfinite import NonfiniteCheck
from parallel.runtime.instrumentation.clock import TimeSplit
from parallel.runtime.instrumentation.load import LoadMeter
from parallel.runtime.instrumentation.measured_step import Starts, measured_step
from parallel.runtime.instrumentation.trace import StepTrace, chosen_step
from parallel.training.checkpointing import Checkpointing
from parallel.training.epoch_under_way import EpochUnderWay
from parallel.training.evaluation import open_loader, validate
from parallel.training.job import Job
from parallel.training.late_loss import LateLoss
from parallel.training.progress import Progress
from parallel.training.resuming import StartPoint
from parallel.training.step_loss import StepLoss
from parallel.training.step_times import StepTimes


def open_check(job: Job, world: World) -> NonfiniteCheck | None:
    """Return the check for infinities and NaNs, or None without `trainer.check_finite`."""
    if not job.config.trainer.check_finite:
        return None
    if job.plan is None:
        return NonfiniteCheck(job.graph, world, job.config.trainer.batch_size)
    return NonfiniteCheck(
        job.graph, world, job.config.trainer.batch_size, job.plan.micro_batches, job.plan.update == "pass"
    )


def learning_rate(config: TrainerConfig, epoch: int, progress: float) -> float:
    """Return the learning rate in epoch `epoch` (from 0) after the fraction `progress` of all
    steps.

    Scaling rules: linear, Goyal et al. 2017, section 2.1; square root, Krizhevsky 2014, section 5.
    """
    ratio = config.batch_size / config.base_batch_size
    lr = config.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.lr_scaling]
    if config.schedule == "step":
        return lr * config.gamma ** (epoch // config.step_epochs)
    if config.schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * progress))
    return lr


class Loop:
    """The epochs of one run on one worker."""

    def __init__(
        self, job: Job, world: World, engine: Engine, start: StartPoint, check: NonfiniteCheck | None = None
    ) -> None:
        self._start = start
        self._job = job
        self._world = world
        self._engine = engine
        self._check = check
        self._config = job.config.trainer
        self._train = open_loader(job, engine, world, train=True)
        self._val = open_loader(job, engine, world, train=False)
        self._progress = Progress(
            self._config.epochs,
            len(self._train),
            job.label,
            batch_size=self._config.batch_size,
            done=start.step,
            enabled=world.rank == 0,
        )
        self._begun = None if start.manifest is None else start.manifest.begun
        """The part of the epoch under way that was trained before this run started."""
        traced = chosen_step(self._config.trace, len(self._train), self._config.epochs)
        self._writes_trace = traced is not None
        self._trace = None
        if isinstance(engine, Runtime) and not self._config.graphs:
            # A traced step takes some microseconds more per instruction: one step of a run is enough.
            # A replayed step runs no instructions.
            self._trace = StepTrace(engine, self._middle_step(start.step) if traced is None else traced)
        self.step_spans: tuple[Span, ...] = ()
        """The measured step, on worker 0, after its epoch. Empty: the engine does not time its
        instructions."""
        self._load = LoadMeter()
        self.weights_changed: bool | None = None
        """Whether the epochs changed any weight. None: none has been trained."""
        self._step_loss = StepLoss(world)
        self._late_loss = LateLoss(world.device)
        self._after_loss: Callable[[int, float], None] = lambda step, loss: None
        self.step_times = StepTimes(world, engine, ACTIVATION_BYTES[self._config.precision])

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self._train)

    def _middle_step(self, begun: int) -> int:
        """Return the step in the middle of what is left of the epoch after `begun` steps."""
        steps = len(self._train)
        return begun + (steps - begun % steps) // 2

    def load(self) -> Load | None:
        """Return the load of the machines during the epochs so far, on worker 0. All workers call it at
        once."""
        return self._load.of_hosts(self._world, [host.workers for host in self._world.hosts])

    def warm_up(self) -> None:
        """Run the untimed steps, and load the state of the checkpoint that the run starts at."""
        with self._progress:
            self._warm_up()
            if self._start.checkpoint is not None:
                self._progress.phase("loading the checkpoint")
                self._engine.load(self._start.checkpoint.read)
                self._world.barrier()

    def run(
        self,
        checkpoints: Checkpointing,
        before: tuple[Epoch, ...],
        after_epoch: Callable[[Epoch], None],
        after_loss: Callable[[int, float], None],
        trace_path: Path | None,
    ) -> tuple[Epoch, ...]:
        """Train the epochs after `before` and call `after_epoch` after each; return all epochs.

        Calls `after_loss` on every worker with the steps done and the mean loss of the last ones, about
        twice a minute. Writes the trace, if any, to `trace_path`.
        """
        self._after_loss = after_loss
        rows, waited_s = before, 0.0
        weights = checksums(self._engine)
        with self._progress:
            for epoch in range(len(before), self._config.epochs):
                row = self._epoch(epoch, rows, checkpoints, trace_path)
                rows = (*rows, replace(row, checkpoint_s=checkpoints.waited_s - waited_s))
                waited_s = checkpoints.waited_s
                checkpoints.after_step((epoch + 1) * len(self._train), rows)
                after_epoch(rows[-1])
                self._progress.epoch(rows[-1])
            checkpoints.finish(len(rows) * len(self._train), rows)
        if len(rows) > len(before):
            self.weights_changed = any(self._world.gather(checksums(self._engine) != weights))
        return rows

    def _warm_up(self) -> None:
        self._progress.phase("warm-up")
        self._world.watch.at("warm-up")
        batches = self._train.epoch(0)
        for _, batch in zip(range(self._config.warmup_steps), batches, strict=False):
            self._engine.train_step(batch.images, batch.labels, step=0, lr=0.0)
            self._engine.evaluate_step(batch.images, batch.labels)
        batches.close()  # type: ignore[attr-defined]
        self._engine.forget_momentum()
        self._world.started()

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from `first` on, and record the time spent waiting for
        them."""
        batches = iter(self._train.epoch(epoch, first))
        watch = self._world.watch
        for step in count(epoch * len(self._train) + first):
            watch.at(f"step {step}")
            watch.does("loading data")
            with self._engine.clock.loading():
                batch = next(batches, None)
            if batch is None:
                return
            watch.goes_on()
            yield batch

    def _epoch(
        self, epoch: int, before: tuple[Epoch, ...], checkpoints: Checkpointing, trace_path: Path | None
    ) -> Epoch:
        """Train and validate one epoch, or the rest of it. The result covers all workers."""
        begun, self._begun = self._begun, None
        world, steps = self._world, len(self._train)
        trained = self._train_epoch(epoch, begun, before, checkpoints, trace_path)
        train_loss = trained.loss / steps
        if not math.isfinite(train_loss):
            raise NotFinite(
                f"the mean training loss of epoch {epoch + 1} is {train_loss}: trainer.check_finite=true "
                f"names the first step and op with such a value; trainer.lr={trained.lr:g} may be too large"
            )
        memory = max(world.gather(peak_memory(world.device)))
        self._progress.phase("validation")
        scores = validate(self._engine, world, self._val)
        if not math.isfinite(scores.loss):
            raise NotFinite(
                f"the validation loss after epoch {epoch + 1} is {scores.loss}, though the training loss was "
                f"{train_loss:g}: trainer.lr={trained.lr:g} may be too large"
            )
        return Epoch(
            epoch=epoch + 1,
            seconds=trained.seconds,
            timed=begun is None,
            images_per_second=steps * self._config.batch_size / trained.seconds,
            train_loss=train_loss,
            val_loss=scores.loss,
            val_top1=scores.top1,
            val_top5=scores.top5,
            data_wait_s=trained.split.get("data_wait_s"),
            compute_s=trained.split.get("compute_s"),
            communication_s=trained.split.get("communication_s"),
            idle_s=trained.split.get("idle_s"),
            bytes_sent=trained.bytes_sent,
            peak_memory_bytes=memory,
            lr=trained.lr,
        )

    def _train_epoch(
        self,
        epoch: int,
        begun: Begun | None,
        before: tuple[Epoch, ...],
        checkpoints: Checkpointing,
        trace_path: Path | None,
    ) -> _Trained:
        """Train what is left of an epoch after `begun`. The result covers all workers and the whole epoch."""
        engine, world, steps = self._engine, self._world, len(self._train)
        world.barrier()
        self._load.begin()
        engine.clock.reset()
        under_way = EpochUnderWay(engine, begun if world.rank == 0 else None)

        def after_step(done: int, total: Tensor) -> None:
            checkpoints.after_step(epoch * steps + done, before, partial(under_way.after, done, total))

        def before_step(done: int, total: Tensor) -> None:
            step = epoch * steps + done
            if checkpoints.on and world.watch.stops(step):
                checkpoints.stop(
                    step, before, partial(under_way.after, done, total) if done else lambda: None
                )

        first = 0 if begun is None else begun.steps
        total, lr = self._steps(epoch, first, before_step, after_step)
        world.watch.at(f"the end of epoch {epoch + 1}")
        engine.complete()
        engine.clock.finished()
        world.barrier()
        seconds = under_way.seconds
        engine.clock.ended()
        self._load.end()
        starts = world.gather(engine.clock.starts)
        split = self._means(engine.clock.split(seconds, starts))
        self.step_times.note(epoch + 1, seconds / (steps - first), starts)
        self._measure_step(epoch, starts, trace_path)
        loss = world.sum(total).item()
        sent = torch.tensor(under_way.bytes_sent, dtype=torch.float64, device=world.device)
        bytes_sent = round(world.sum(sent).item())
        if begun is None:
            return _Trained(seconds=seconds, split=split, loss=loss, bytes_sent=bytes_sent, lr=lr)
        return _Trained(
            seconds=seconds + begun.seconds,
            split={},  # not known for the part before
            loss=loss + begun.loss,
            bytes_sent=bytes_sent + begun.bytes_sent,
            lr=lr,
        )

    def _measure_step(self, epoch: int, starts: Starts, trace_path: Path | None) -> None:
        """Collect the traced step, if it is in this epoch, and write the trace, if it was asked for."""
        steps = len(self._train)
        if self._trace is None or not epoch * steps <= self._trace.step < (epoch + 1) * steps:
            return
        activation_bytes = ACTIVATION_BYTES[self._config.precision]
        self.step_spans = measured_step(self._trace, self._world, starts, activation_bytes)
        if self._writes_trace:
            self._trace.write(self._world, trace_path)

    def _steps(
        self,
        epoch: int,
        begun: int,
        before_step: Callable[[int, Tensor], None],
        after_step: Callable[[int, Tensor], None],
    ) -> tuple[Tensor, float]:
        """Train on all batches but the first `begun`; return the sum of this worker's losses and
        the last learning rate.

        Both functions are called with the number of batches done and the sum so far; `after_step`
        not after the last batch.
        """
        steps = len(self._train)
        first = epoch * steps
        total = torch.zeros((), dtype=torch.float64, device=self._world.device)
        lr = 0.0
        self._step_loss.begin(begun)
        before_step(begun, total)
        for i, batch in enumerate(self._batches(epoch, begun), start=begun):
            lr = learning_rate(self._config, epoch, (first + i) / (steps * self._config.epochs))
            if self._trace is not None:
                self._trace.before(first + i)
            loss = self._engine.train_step(batch.images, batch.labels, step=first + i, lr=lr)
            if self._trace is not None:
                self._trace.after(first + i)
            if self._check is not None:
                self._check.after(first + i, loss)
            total += loss
            self._engine.clock.phases.end_step()
            shown = partial(self._late_loss.read, loss) if self._world.size == 1 else None
            self._progress.step(epoch + 1, i + 1, shown)
            if i + 1 < steps:
                mean = self._step_loss.after(i + 1, total)
                if mean is not None:
                    self._progress.loss(epoch + 1, i + 1, mean)
                    self._after_loss(first + i + 1, mean)
                after_step(i + 1, total)
                before_step(i + 1, total)
        return total, lr

    def _means(self, split: TimeSplit) -> dict[str, float]:
        """Return the parts of the epoch's time, as means over the workers.

        If the engine does not record its waits, only the wait for data is returned.
        """
        world = self._world
        means = {}
        for field in fields(split):
            value = torch.tensor(getattr(split, field.name), dtype=torch.float64, device=world.device)
            means[field.name] = world.sum(value).item() / world.size
        return means if self._engine.splits_time else {"data_wait_s": means["data_wait_s"]}


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """The training of an epoch, on all workers."""

    seconds: float
    split: Mapping[str, float]
    """Parts of the time, as means over the workers."""
    loss: float
    """Sum over the steps."""
    bytes_sent: int
    lr: float
    """Learning rate of the last step."""


def checksums(engine: Engine) -> list[float]:
    """Return the sum of each of this worker's pieces of the weights, which training changes."""
    return [piece.values.sum(dtype=torch.float64).item() for piece in engine.pieces("weights")]


def peak_memory(device: torch.device) -> int:
    """Return the peak memory so far in bytes: allocated memory on a GPU, resident memory on a
    CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts kilobytes, on macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
