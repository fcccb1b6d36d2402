"""Training from a configuration to a record."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path

from parallel.config import Config, Searched
from parallel.results.record_files import RecordWriter
from parallel.results.records import Epoch
from parallel.results.run_lock import locked
from parallel.results.run_summary import run_summary
from parallel.results.tracker import open_tracker
from parallel.runtime.communication.world import choose_device, open_world
from parallel.training.engines import open_engine
from parallel.training.job import describe, prepare
from parallel.training.loop import Loop, open_check
from parallel.training.plan_resolution import resolve_plan
from parallel.training.record import make_record, now


def train(config: Config, run_dir: Path) -> None:
    """Train as configured on the workers that torchrun started; worker 0 writes the record to
    `run_dir`.

    Raises `ValueError` before the first step for an invalid configuration.
    """
    choose_device(config.cluster)
    with open_world(config.cluster) as world, locked(run_dir) if world.rank == 0 else nullcontext():
        world.watch.does("opening the data")  # may take long: the workers watch each other meanwhile
        job = prepare(config, verbose=world.rank == 0)
        world.watch.goes_on()
        if isinstance(config.strategy, Searched):
            job = dataclasses.replace(job, plan=resolve_plan(config, config.strategy, job.graph, world))
        check = open_check(job, world)
        loop = Loop(job, world, open_engine(job, world, check), check)
        if world.rank > 0:
            loop.run(lambda epoch: None, None)
            return
        with (
            RecordWriter(run_dir) as writer,
            open_tracker(
                config.tracker,
                run_dir=run_dir,
                name=run_dir.name,
                group=config.sweep,
                job_type=config.strategy.name,
                config_dict=dataclasses.asdict(config),
            ) as tracker,
        ):

            def keep(epoch: Epoch) -> None:
                writer.append(epoch)
                tracker.log_epoch(epoch)

            started = now()
            print(describe(job, world), flush=True)
            loop.run(keep, run_dir / "trace.json")
            record = make_record(job, world, run_dir, started, writer.epochs)
            writer.finish(record)
            tracker.finish(run_summary(record, run_dir.parent if config.sweep else None))
        print(f"record: {run_dir}", flush=True)
