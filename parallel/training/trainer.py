"""The training loop: the same for every strategy, around an engine that does the steps.

An epoch is timed between barriers; validation, records and tracking lie outside. Warm-up steps come before the first
epoch: they run at learning rate 0, so that they change no weight, and their momentum is forgotten.
"""

from __future__ import annotations

import dataclasses
import math
import os
import resource
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count
from pathlib import Path

import torch

from parallel.config import Config, TrainerConfig
from parallel.config.strategy import BASELINE, strategy_label
from parallel.data import DataSet, open_data
from parallel.data.loader import Batch, Loader, LoaderOptions
from parallel.graph import Graph, trace
from parallel.models import build_model
from parallel.plans import Plan
from parallel.program.lowering import lower
from parallel.program.precision import DTYPES
from parallel.program.required_memory import refuse_too_large
from parallel.results.environment import collect_environment
from parallel.results.record_files import RecordWriter
from parallel.results.records import Epoch, Record, Workload
from parallel.results.run_summary import run_summary
from parallel.results.tracker import Tracker, open_tracker
from parallel.runtime.communication.world import World, choose_device, open_world
from parallel.runtime.execution.available_memory import available_memory
from parallel.runtime.execution.ddp import DDPEngine
from parallel.runtime.execution.engine import Engine
from parallel.runtime.execution.options import EngineOptions
from parallel.runtime.execution.runtime import Runtime
from parallel.runtime.failure.errors import NotFinite
from parallel.runtime.failure.nonfinite import NonfiniteCheck
from parallel.runtime.instrumentation.observe import Observer
from parallel.runtime.instrumentation.trace import StepTrace, chosen_step
from parallel.strategies import build_plan
from parallel.training.plan_resolution import settle
from parallel.training.progress import Progress


@dataclass(frozen=True)
class Job:
    """Everything that is known of a run before its workers meet."""

    config: Config
    workers: int
    data: DataSet
    graph: Graph
    plan: Plan | None
    """None: the strategy is ddp, or searched and the workers have not met yet."""

    @property
    def label(self) -> str:
        """The strategy as rows and bars name it."""
        scheme = self.config.strategy.scheme
        return self.config.strategy.name + (f" {scheme}" if scheme else "")


def train(config: Config, run_dir: Path) -> None:
    """Train as configured, on the workers that torchrun started; worker 0 writes the record into `run_dir`.

    Raises `ValueError`, before any step, for what cannot be run.
    """
    choose_device(config.cluster)
    job = prepare(config, verbose=_is_first())
    with open_world(config.cluster) as world:
        if config.strategy.name == "searched":
            job = dataclasses.replace(job, plan=settle(config, job.graph, job.data.num_classes, world))
        check = make_check(job, world)
        engine = make_engine(job, world, check)
        if world.rank > 0:
            _Run(job, world, engine, check, Tracker(), None, None).train()
            return
        with (
            RecordWriter(run_dir) as writer,
            open_tracker(config.tracker, run_dir=run_dir, name=run_dir.name, group=config.sweep,
                         job_type=config.strategy.name, config_dict=dataclasses.asdict(config)) as tracker,
        ):
            started = _now()
            print(describe(job, world), flush=True)
            _Run(job, world, engine, check, tracker, writer, run_dir).train()
            record = make_record(job, world, run_dir, started, writer.epochs)
            writer.finish(record)
            tracker.finish(run_summary(record, run_dir.parent if config.sweep else None))
        print(f"record: {run_dir}", flush=True)


def prepare(config: Config, verbose: bool) -> Job:
    """Open the data and make the plan. `verbose` on one rank: it shows the progress of decoding."""
    data = open_data(config.data, config.model.image_size, config.trainer.seed, verbose)
    side = config.model.image_size
    with torch.device("meta"):
        graph = trace(build_model(config.model, data.num_classes, 0), (3, side, side))
    workers = config.workers or 1
    plan = None if config.strategy.name in ("ddp", "searched") else build_plan(graph, workers, config.strategy)
    return Job(config, workers, data, graph, plan)


def describe(job: Job, world: World) -> str:
    """What is about to run, in two lines: the model's size; workers, threads, batch, plan."""
    model, config, graph = job.config.model, job.config, job.graph
    size = graph.parameter_count * DTYPES[config.trainer.precision].itemsize
    plan = "" if job.plan is None else f", plan {job.plan.fingerprint}"
    place = f"cpu, cluster.threads={config.cluster.threads}" if world.device.type == "cpu" else "cuda"
    return (f"{model.label}, {model.image_size} px, {job.data.num_classes} classes: "
            f"{graph.parameter_count:,} parameters, {size / 2**20:.0f} MB, "
            f"{graph.multiply_adds / 1e9:.2f} G multiply-adds an image\n"
            f"{job.label}: workers={job.workers} on {place}; {job.data.name}, "
            f"global batch {config.trainer.batch_size}, {config.trainer.precision}{plan}")


def make_engine(job: Job, world: World, observer: Observer | None = None) -> Engine:
    """What trains: the runtime of the job's plan, or torch's DDP. Refuses a plan that is too large for the memory."""
    config, trainer = job.config, job.config.trainer
    program = None if job.plan is None else lower(job.graph, job.plan, trainer.batch_size)
    if program is not None:
        refuse_too_large(program, trainer.precision, world.gather(available_memory(world.device)))
    model = build_model(config.model, job.data.num_classes, trainer.seed)
    options = EngineOptions.from_config(trainer)
    if program is None:
        return DDPEngine(model, world, options, batch_size=trainer.batch_size,
                               bucket_mb=config.strategy.bucket_mb, observer=observer)
    return Runtime(program, model, world, options, observer=observer)


def make_check(job: Job, world: World) -> NonfiniteCheck | None:
    """What looks for values that are not finite, if the configuration asks for it."""
    if not job.config.trainer.check_finite:
        return None
    if job.plan is None:
        return NonfiniteCheck(job.graph, world, job.config.trainer.batch_size)
    return NonfiniteCheck(job.graph, world, job.config.trainer.batch_size, job.plan.micro_batches,
                       job.plan.update == "pass")


def learning_rate(config: TrainerConfig, epoch: int, progress: float) -> float:
    """Learning rate in epoch `epoch`, from 0, at the share `progress` of all steps.

    Scaling rules: linear, Goyal et al. 2017, section 2.1; square root, Krizhevsky 2014, section 5.
    """
    ratio = config.batch_size / config.base_batch_size
    lr = config.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[config.lr_scaling]
    if config.schedule == "step":
        return lr * config.gamma ** (epoch // config.step_epochs)
    if config.schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * progress))
    return lr


class _Run:
    """The epochs of one run on one worker."""

    def __init__(self, job: Job, world: World, engine: Engine, check: NonfiniteCheck | None, tracker: Tracker,
                 writer: RecordWriter | None, run_dir: Path | None) -> None:
        self._job, self._world, self._engine, self._tracker, self._writer = job, world, engine, tracker, writer
        self._check = check
        self._config = job.config.trainer
        self._train, self._val = (self._loader(train) for train in (True, False))
        self._progress = Progress(self._config.epochs, len(self._train), job.label,
                                  batch_size=self._config.batch_size, enabled=world.rank == 0)
        self._run_dir, self._trace = run_dir, None
        traced = chosen_step(self._config.trace, len(self._train), self._config.epochs)
        if traced is not None and isinstance(engine, Runtime):
            self._trace = StepTrace(engine, traced)

    def _loader(self, train: bool) -> Loader:
        config, data = self._job.config, self._job.data
        return Loader(
            data.train if train else data.val,
            LoaderOptions.from_config(config, data, DTYPES[config.trainer.precision]), train=train,
            image_positions=self._engine.image_positions, label_positions=self._engine.label_positions,
            device=self._world.device,
        )

    def train(self) -> None:
        with self._progress:
            self._warm_up()
            for epoch in range(self._config.epochs):
                row = self._epoch(epoch)
                if self._writer is not None:
                    self._writer.append(row)
                self._tracker.log_epoch(row)
                self._progress.epoch(row)

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

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """The epoch's batches, with the time spent waiting for them noted."""
        batches, watch = iter(self._train.epoch(epoch)), self._world.watch
        for step in count(epoch * len(self._train)):
            watch.at(f"step {step}")
            watch.does("loading data")
            with self._engine.clock.loading():
                batch = next(batches, None)
            if batch is None:
                return
            watch.goes_on()
            yield batch

    def _epoch(self, epoch: int) -> Epoch:
        engine, world, steps = self._engine, self._world, len(self._train)
        total = torch.zeros((), dtype=torch.float64, device=world.device)
        sent, first, lr = engine.bytes_sent, epoch * steps, 0.0
        world.barrier()
        engine.clock.reset()
        begin = time.perf_counter()
        for i, batch in enumerate(self._batches(epoch)):
            lr = learning_rate(self._config, epoch, (first + i) / (steps * self._config.epochs))
            if self._trace is not None:
                self._trace.before(first + i)
            loss = engine.train_step(batch.images, batch.labels, step=first + i, lr=lr)
            if self._trace is not None:
                self._trace.after(first + i)
            if self._check is not None:
                self._check.after(first + i, loss)
            total += loss
            self._progress.step(epoch + 1, i + 1, loss)
        own_end = time.perf_counter() - begin
        world.watch.at(f"the end of epoch {epoch + 1}")
        world.barrier()
        seconds = time.perf_counter() - begin
        split = self._split(seconds, own_end)
        if self._trace is not None and first <= self._trace.step < first + steps:
            self._trace.write(world, None if self._run_dir is None else self._run_dir / "trace.json")
        train_loss = world.sum(total).item() / steps
        if not math.isfinite(train_loss):
            raise NotFinite(f"the mean training loss of epoch {epoch + 1} is {train_loss}: trainer.check_finite=true "
                            f"names the step and the op where that begins; trainer.lr={lr:g} may be too large")
        sent_by_all = world.sum(torch.tensor(engine.bytes_sent - sent, dtype=torch.float64, device=world.device))
        memory = max(world.gather(peak_memory(world.device)))
        val_loss, top1, top5 = self._validate()
        if not math.isfinite(val_loss):
            raise NotFinite(f"the validation loss after epoch {epoch + 1} is {val_loss}, though the training loss was "
                            f"{train_loss:g}: trainer.lr={lr:g} may be too large")
        return Epoch(
            epoch=epoch + 1, seconds=seconds, images_per_second=steps * self._config.batch_size / seconds,
            train_loss=train_loss, val_loss=val_loss, val_top1=top1, val_top5=top5, **split,
            bytes_sent=round(sent_by_all.item()), peak_memory_bytes=memory, lr=lr,
        )

    def _split(self, seconds: float, own_end: float) -> dict[str, float]:
        """Mean over the workers of where the epoch's time went; only the wait for data if the engine hides the rest."""
        clock, world = self._engine.clock, self._world
        split = clock.split(seconds, own_end, world.gather(clock.starts))
        means = {}
        for field in dataclasses.fields(split):
            value = torch.tensor(getattr(split, field.name), dtype=torch.float64, device=world.device)
            means[field.name] = world.sum(value).item() / world.size
        return means if self._engine.splits_time else {"data_wait_s": means["data_wait_s"]}

    def _validate(self) -> tuple[float, float, float]:
        """Mean loss, top-1 and top-5 accuracy over the validation images."""
        self._progress.phase("validation")
        self._world.watch.at("the validation")
        sums = torch.zeros(4, dtype=torch.float64, device=self._world.device)
        for batch in self._val.epoch(0):
            sums += self._engine.evaluate_step(batch.images, batch.labels)
        loss, top1, top5, images = self._world.sum(sums).tolist()
        return loss / images, top1 / images, top5 / images


def make_record(job: Job, world: World, run_dir: Path, started: str, epochs: tuple[Epoch, ...]) -> Record:
    """The record of a run that has ended."""
    config, model = job.config, job.config.model
    parameters = job.graph.parameter_count
    cuda = world.device.type == "cuda"
    environment = collect_environment([torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda
                                      else [])
    return Record(
        name=run_dir.name, sweep=config.sweep, started=started, finished=_now(), command=shlex.join(sys.orig_argv),
        workload=Workload(
            model=model.name, variant=model.variant, num_classes=job.data.num_classes, image_size=model.image_size,
            data=job.data.name, train_images=len(job.data.train), batch_size=config.trainer.batch_size,
            precision=config.trainer.precision,
        ),
        strategy=config.strategy.name, scheme=config.strategy.scheme,
        label=strategy_label(config.strategy, None if job.plan is None else job.plan.fingerprint),
        baseline=config.strategy.name == BASELINE, workers=job.workers,
        threads=config.cluster.threads, device=world.device.type, backend=world.backend,
        warmup_steps=config.trainer.warmup_steps, parameters=parameters,
        parameter_bytes=parameters * DTYPES[config.trainer.precision].itemsize,
        forward_flops=2 * job.graph.multiply_adds, plan=None if job.plan is None else str(job.plan),
        config=dataclasses.asdict(config), environment=environment, epochs=epochs,
    )


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated on a GPU, resident in the process on a CPU; the most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts kilobytes, on macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
