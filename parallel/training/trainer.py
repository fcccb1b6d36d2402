"""Training from a configuration to a record."""

from __future__ import annotations

import dataclasses
import time
from contextlib import ExitStack
from pathlib import Path

from parallel.config import NEVER, Config, Searched
from parallel.plans import Plan, read_plan
from parallel.prediction.own import OwnPrediction
from parallel.results.record_files import RecordWriter
from parallel.results.records import Epoch, Record
from parallel.results.run_summary import run_summary
from parallel.results.tracker import RunFacts, Tracker, open_tracker
from parallel.runtime.communication.bandwidth import measured
from parallel.runtime.communication.device import choose_device
from parallel.runtime.communication.opening import open_world
from parallel.runtime.communication.world import World
from parallel.training.checkpointing import Checkpointing
from parallel.training.engines import open_engine
from parallel.training.job import Job, describe
from parallel.training.loop import Loop, open_check
from parallel.training.own_prediction import measured_line, predict_before_training, write_step
from parallel.training.plan_resolution import resolve_plan
from parallel.training.record import make_record, workload_of
from parallel.training.resuming import (
    StartPoint,
    attempts_of,
    epochs_before,
    find_start,
    lost_seconds,
    note_start,
    refuse_other_workload,
)
from parallel.training.same_data import prepare_together


def train(config: Config, run_dir: Path) -> None:
    """Train as configured on the workers that torchrun started; worker 0 writes the record to
    `run_dir`, which exists and is locked by the caller (`run_lock`).

    Raises `ValueError` before the first step for an invalid configuration.
    """
    choose_device(config.cluster)
    with open_world(config.cluster, precision=config.trainer.precision) as world:
        world = measured(world)
        job, start = _prepare(config, run_dir, world)
        check = open_check(job, world)
        engine = open_engine(job, world, check)
        loop = Loop(job, world, engine, start, check)
        attempts = attempts_of(start, job)
        starts = note_start(run_dir, anew=config.resume == NEVER) if world.rank == 0 else (time.time(),)
        before = epochs_before(start, attempts)
        with ExitStack() as stack:
            writer: RecordWriter | None = None
            tracker = Tracker()
            prediction = None
            if world.rank == 0:
                writer = stack.enter_context(RecordWriter(run_dir, before))
                tracker = stack.enter_context(_open_tracker(job, world, run_dir, start))
                if job.plan is not None:
                    tracker.log_plan(str(job.plan), job.plan.fingerprint)
                print(describe(job, world), flush=True)
                world.watch.does("predicting the run")
                prediction = predict_before_training(job, world, loop.steps_per_epoch)
                world.watch.goes_on()
            loop.warm_up()
            attempts = (*attempts[:-1], dataclasses.replace(attempts[-1], lost_s=lost_seconds(start, starts)))
            saved = start.step if start.checkpoint is not None and start.same_run else None
            checkpoints = Checkpointing(job, world, engine, run_dir, attempts, loop.steps_per_epoch, saved)

            def keep(epoch: Epoch) -> None:
                if writer is not None:
                    writer.append(epoch)
                    tracker.log_epoch(epoch)

            trace_path = run_dir / "trace.json" if world.rank == 0 else None
            epochs = loop.run(checkpoints, before, keep, tracker.log_loss, trace_path)
            load = loop.load()
            if writer is not None:
                record = make_record(
                    job,
                    world,
                    run_dir,
                    attempts=attempts,
                    restarts=len(starts) - 1,
                    epochs=epochs,
                    stragglers=loop.step_times.stragglers(),
                    load=load,
                    weights_changed=loop.weights_changed,
                )
                if prediction is not None:
                    record = dataclasses.replace(record, predicted=prediction.predicted)
                write_step(run_dir, loop.step_spans, prediction)
                writer.finish(record)
                _print_end(record, prediction)
                tracker.finish(run_summary(record, run_dir.parent if config.sweep else None))
        if world.rank == 0:
            print(f"record: {run_dir}", flush=True)


def _prepare(config: Config, run_dir: Path, world: World) -> tuple[Job, StartPoint]:
    """Return the run with its data and plan, and where it starts."""
    world.watch.does("opening the data")  # may take long: the workers watch each other meanwhile
    job = prepare_together(config, world)
    world.watch.goes_on()
    start = find_start(config, run_dir, world)
    if start.checkpoint is not None:
        refuse_other_workload(job, start.checkpoint)
    if isinstance(config.strategy, Searched):
        job = dataclasses.replace(job, plan=_searched_plan(job, config.strategy, start, world))
    return job, start


def _print_end(record: Record, prediction: OwnPrediction | None) -> None:
    """Print the measured time beside the predicted one, and the stragglers."""
    if prediction is not None and (line := measured_line(prediction, record.epochs)):
        print(line, flush=True)
    for straggler in record.stragglers or ():
        print(straggler.sentence(len(record.epochs)), flush=True)


def _searched_plan(job: Job, options: Searched, start: StartPoint, world: World) -> Plan:
    """Return the plan that the run had before if it still fits, and otherwise search for one."""
    manifest = start.manifest
    if manifest is not None and start.same_run and manifest.plan and manifest.workers == world.size:
        return read_plan(manifest.plan, job.graph)
    return resolve_plan(job.config, options, job.graph, world)


def _open_tracker(job: Job, world: World, run_dir: Path, start: StartPoint) -> Tracker:
    config, plan = job.config, job.plan
    fingerprint = None if plan is None else plan.fingerprint
    facts = RunFacts(
        config=config,
        workload=workload_of(job),
        label=config.strategy.full_label(fingerprint),
        workers=job.workers,
        hosts=max(1, len(world.hosts)),
        device=world.device.type,
        plan=fingerprint,
        folder=run_dir.name if config.sweep else None,
    )
    resumed = start.checkpoint is not None and start.same_run
    return open_tracker(config.tracker, facts, run_dir, resumed=resumed)
