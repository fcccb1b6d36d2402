"""Saving the state of a run: when, by which worker, and what is said if it fails.

A checkpoint that cannot be written does not end a run: worker 0 prints a warning, and the
checkpoints before it stay.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from parallel.checkpoints.checkpoint import CHECKPOINTS, Checkpoint, folder_name, whole_checkpoints
from parallel.checkpoints.manifest import Begun, Manifest
from parallel.checkpoints.saver import WRITE_ERRORS, Saver, remove
from parallel.checkpoints.schedule import Schedule
from parallel.checkpoints.tensor_files import write_tensors
from parallel.config import one_line
from parallel.config.stderr import print_to_stderr
from parallel.results.json_files import sync_folder
from parallel.results.records import Attempt, Epoch
from parallel.runtime.communication.world import World
from parallel.runtime.execution.engine import Engine
from parallel.runtime.failure.errors import RunStopped
from parallel.runtime.failure.host_names import describe_host, host_name
from parallel.training.job import Job, empty_state
from parallel.training.record import workload_of

MODEL = "model.safetensors"
"""The weights of a finished run, with the names of the model's `state_dict`."""
POLL_S = 0.05
"""Seconds between two looks at the other workers at the end of a run."""
SAVED_KINDS = ("weights", "momentum", "buffers")


@dataclass(frozen=True)
class _Report:
    """What a worker says before a checkpoint."""

    busy: bool
    """Whether it still writes the one before."""
    problem: str
    begun: Begun | None


class Checkpointing:
    """Saves the state of a run on one of its workers."""

    def __init__(
        self,
        job: Job,
        world: World,
        engine: Engine,
        run_dir: Path,
        attempts: tuple[Attempt, ...],
        steps_per_epoch: int,
        saved_step: int | None = None,
    ) -> None:
        """`attempts` are those so far, this one last; `saved_step` is the step of the newest
        checkpoint in the folder. Call it on all workers at once.

        Raises `ValueError` if the workers do not share the folder of the run.
        """
        self._job, self._world, self._engine = job, world, engine
        self._run_dir = run_dir
        self._options = job.config.trainer.checkpoint
        self._attempts, self._steps_per_epoch = attempts, steps_per_epoch
        self._schedule = Schedule(self._options.interval, steps_per_epoch, attempts[-1].step)
        self._last_s = time.monotonic()
        self._saved_step = saved_step
        self._postponed = False
        self.waited_s = 0.0
        """Time that training waited for checkpoints so far."""
        self._saver = self._open_saver()

    def _open_saver(self) -> Saver:
        world, options = self._world, self._options
        folder = self._run_dir / CHECKPOINTS
        token = world.gather(secrets.token_hex(4))[0]
        saver = Saver(
            folder,
            world.rank,
            world.size,
            token,
            keep=options.keep,
            best=options.best,
            pinned=world.device.type == "cuda",
        )
        if world.rank == 0:
            folder.mkdir(exist_ok=True)
            saver.clear()
            (folder / token).touch()
        world.barrier()
        seen = world.gather((host_name(), (folder / token).exists()))
        if world.rank == 0:
            (folder / token).unlink()
        blind = [(host, rank) for rank, (host, sees) in enumerate(seen) if not sees]
        if blind:
            ranks = [rank for host, rank in blind if host == blind[0][0]]
            raise ValueError(
                f"hydra.run.dir={self._run_dir} is not shared: {describe_host(blind[0][0], ranks)} does not "
                f"see what {describe_host(seen[0][0], [0])} writes there; choose a folder on a disk that all "
                "hosts share"
            )
        return saver

    def after_step(
        self, step: int, epochs: tuple[Epoch, ...], begun: Callable[[], Begun | None] = lambda: None
    ) -> None:
        """Save if a checkpoint is due after `step` steps.

        `begun` returns the epoch under way, with this worker's part of its losses and bytes.
        """
        seconds = 0.0
        if self._schedule.looks(step):
            seconds = self._world.gather(time.monotonic() - self._last_s)[0]
        if self._schedule.due(step, seconds) or self._postponed:
            self.save(step, epochs, begun())

    def save(self, step: int, epochs: tuple[Epoch, ...], begun: Begun | None) -> None:
        """Save the state after `step` steps: copy it now, and write it in the background.

        If the one before is still being written, it is saved after a later step.
        """
        begin = time.perf_counter()
        reports = self._reports(begun)
        self._postponed = any(report.busy for report in reports)
        if self._postponed:
            return
        self._world.watch.does("saving a checkpoint")
        self._complete(reports)
        begun = _together(begun, reports)
        pieces = [piece for kind in SAVED_KINDS for piece in self._engine.pieces(kind)]
        manifest = self._manifest(step, epochs, begun) if self._world.rank == 0 else None
        self._saver.save(pieces, step, manifest)
        self._schedule.saved(step)
        self._saved_step, self._last_s = step, time.monotonic()
        self._world.watch.goes_on()
        self.waited_s += time.perf_counter() - begin

    @property
    def on(self) -> bool:
        """Whether checkpoints are saved during the run."""
        return self._options.interval is not None

    def stop(self, step: int, epochs: tuple[Epoch, ...], begun: Callable[[], Begun | None]) -> None:
        """Save the state after `step` steps, and wait until it is on disk. Raises `RunStopped`."""
        if self._saved_step != step:
            self._complete(self._await_reports())
            self.save(step, epochs, begun())
        self._complete(self._await_reports())
        raise RunStopped(
            f"stopped by a signal after step {step}: the same command with hydra.run.dir={self._run_dir} goes on"
        )

    def finish(self, step: int, epochs: tuple[Epoch, ...]) -> None:
        """Save the last state, and wait until it is on disk; write the weights of the finished run."""
        if self._saved_step != step and self._options.saves:
            self._complete(self._await_reports())
            self.save(step, epochs, None)
        self._complete(self._await_reports())
        if self._world.rank > 0:
            return
        newest = self._run_dir / CHECKPOINTS / folder_name(step)
        if self._options.final and newest.exists():
            try:
                write_model(Checkpoint(newest), self._job, self._run_dir / MODEL)
            except WRITE_ERRORS as error:  # as for checkpoints: the run is worth more
                self._warn(f"{self._run_dir / MODEL} was not written: {one_line(error)}")
        if self._options.interval is None:
            for path in whole_checkpoints(self._saver.folder):
                remove(path)
            if not any(self._saver.folder.iterdir()):
                self._saver.folder.rmdir()
        else:
            self._saver.remove_old(1)

    def _reports(self, begun: Begun | None = None) -> list[_Report]:
        """Return how far each worker is with the checkpoint before."""
        own = self._saver.busy, self._saver.problem, None if begun is None else vars(begun)
        return [
            _Report(busy, problem, None if values is None else Begun(**values))
            for busy, problem, values in self._world.gather(own)
        ]

    def _await_reports(self) -> list[_Report]:
        # A loop, so that no worker waits for another longer than cluster.timeout_s on a slow disk.
        reports = self._reports()
        while any(report.busy for report in reports):
            time.sleep(POLL_S)
            reports = self._reports()
        return reports

    def _complete(self, reports: Sequence[_Report]) -> None:
        """End the checkpoint before, with which no worker is busy."""
        problems = [
            f"worker {rank}: {report.problem}" for rank, report in enumerate(reports) if report.problem
        ]
        problem = self._saver.complete(succeeded=not problems)
        if problems or problem:
            self._warn(
                f"the checkpoint after step {self._saved_step} was not written: {problems[0] if problems else problem}"
            )

    def _warn(self, sentence: str) -> None:
        if self._world.rank == 0:
            print_to_stderr(f"warning: {sentence}")

    def _manifest(self, step: int, epochs: tuple[Epoch, ...], begun: Begun | None) -> Manifest:
        job, config = self._job, self._job.config
        return Manifest(
            run=self._run_dir.name,
            time=time.time(),
            step=step,
            steps_per_epoch=self._steps_per_epoch,
            workload=workload_of(job),
            seed=config.trainer.seed,
            strategy=config.strategy.name,
            workers=job.workers,
            plan=None if job.plan is None else str(job.plan),
            config=dataclasses.asdict(config),
            attempts=self._attempts,
            epochs=epochs,
            begun=begun,
        )


def _together(begun: Begun | None, reports: Sequence[_Report]) -> Begun | None:
    """Return the part of the epoch that all workers have trained."""
    parts = [report.begun for report in reports if report.begun is not None]
    if begun is None:
        return None
    return dataclasses.replace(
        begun, loss=sum(part.loss for part in parts), bytes_sent=sum(part.bytes_sent for part in parts)
    )


def write_model(checkpoint: Checkpoint, job: Job, path: Path) -> None:
    """Write the weights and buffers of a checkpoint as a `state_dict` of the model."""
    state = {name: _tensor_of(checkpoint, name, like) for name, like in empty_state(job).items()}
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        write_tensors(temporary, state, {"format": "pt", "step": str(checkpoint.step)})
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _tensor_of(checkpoint: Checkpoint, name: str, like: Tensor) -> Tensor:
    if name.endswith("num_batches_tracked"):  # batch norms count steps, and use the count nowhere here
        return torch.tensor(checkpoint.step, dtype=like.dtype)
    kind = "weights" if name in checkpoint.names("weights") else "buffers"
    return checkpoint.read(kind, name).contiguous()
