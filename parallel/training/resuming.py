"""Where a run starts: at its first step, or at a checkpoint.

resume=auto     the newest whole checkpoint in the run directory, of this configuration
resume=PATH     the newest whole checkpoint of another run, or the given one; the run is a new one
resume=never    the first step; checkpoints in the run directory are removed
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel.checkpoints.checkpoint import CHECKPOINTS, Checkpoint, readable_checkpoints, whole_checkpoints
from parallel.checkpoints.manifest import MANIFEST, Manifest
from parallel.checkpoints.saver import remove
from parallel.config import AUTO, NEVER, Config, require
from parallel.config.stderr import print_to_stderr
from parallel.results.json_files import write_atomically
from parallel.results.records import Attempt, Epoch, plan_fingerprint
from parallel.runtime.communication.world import World
from parallel.training.job import Job
from parallel.training.record import now, workload_of

STARTS = "starts"
"""File in a run directory with the time of each start of the run, in seconds since 1970."""
FREE = (
    "workers",
    "resume",
    "sweep",
    "tracker",
    "cluster",
    "trainer.checkpoint",
    "data.root",
    "data.cache",
    "data.cache_limit_gb",
    "data.decoders",
)
"""Parts of the configuration that may change when a run continues in its own folder."""


@dataclass(frozen=True)
class StartPoint:
    """Where a run starts."""

    checkpoint: Checkpoint | None = None
    same_run: bool = True
    """Whether the checkpoint is of this run, and not of another that it goes on from."""

    @property
    def manifest(self) -> Manifest | None:
        """Manifest of the checkpoint, if there is one."""
        return None if self.checkpoint is None else self.checkpoint.manifest

    @property
    def step(self) -> int:
        """Optimizer steps that are done."""
        return 0 if self.manifest is None else self.manifest.step


def find_start(config: Config, run_dir: Path, world: World) -> StartPoint:
    """Return where the run starts, the same on all workers.

    Worker 0 prints a warning for each damaged checkpoint that it passes over. Raises `ValueError`
    if `resume` names no checkpoint, or none that is whole.
    """
    folder = world.from_first(lambda: _chosen(config, run_dir))
    if folder is None:
        return StartPoint()
    return StartPoint(Checkpoint(Path(folder)), same_run=config.resume == AUTO)


def _chosen(config: Config, run_dir: Path) -> str | None:
    """Return the folder of the checkpoint to start at, or None for the first step."""
    own = run_dir / CHECKPOINTS
    if config.resume == AUTO:
        checkpoint = _newest(own)
        if checkpoint is not None:
            refuse_other_configuration(config, checkpoint)
    elif config.resume == NEVER:
        checkpoint = None
        for path in whole_checkpoints(own):
            remove(path)
    else:
        if whole_checkpoints(own):
            raise ValueError(
                f"hydra.run.dir={run_dir} holds an unfinished run with checkpoints: choose another folder for "
                f"what goes on from resume={config.resume}"
            )
        checkpoint = _named(Path(config.resume))
    return None if checkpoint is None else str(checkpoint.folder)


def _named(path: Path) -> Checkpoint:
    """Return the checkpoint that a user named: its folder or manifest, or a run directory."""
    path = path.parent if path.name == MANIFEST else path
    if (path / MANIFEST).is_file():
        checkpoint = Checkpoint(path)
        checkpoint.check()
        return checkpoint
    found = _newest(path / CHECKPOINTS)
    if found is None:
        raise ValueError(
            f"resume={path} must be auto, never, a checkpoint (a folder with {MANIFEST}) or a run directory "
            "with a whole checkpoint"
        )
    return found


def _newest(folder: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint, and warn of newer ones that are damaged."""
    damaged: list[str] = []
    checkpoint = next(readable_checkpoints(folder, damaged), None)
    for sentence in damaged:
        instead = "there is no other" if checkpoint is None else f"{checkpoint.folder} is used instead"
        print_to_stderr(f"warning: {sentence}; {instead}")
    if damaged and checkpoint is None:
        raise ValueError(
            f"{folder} has no whole checkpoint: resume=never begins again and removes what is there"
        )
    return checkpoint


def refuse_other_configuration(config: Config, checkpoint: Checkpoint) -> None:
    """Raise `ValueError` that names what differs from the configuration of the checkpoint."""
    here, there = _options(dataclasses.asdict(config)), _options(checkpoint.manifest.config)
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            raise ValueError(
                f"{checkpoint.folder} is of another configuration, with {name}={there.get(name)} and not "
                f"{here.get(name)}: choose another hydra.run.dir, or begin again with resume=never, or go on "
                f"with the new configuration in a run of its own: resume={checkpoint.folder}"
            )


def holds_other_run(run_dir: Path, config: Config) -> bool:
    """Return whether the newest whole checkpoint in `run_dir` is of another configuration."""
    checkpoint = next(readable_checkpoints(run_dir / CHECKPOINTS, []), None)
    return checkpoint is not None and _options(dataclasses.asdict(config)) != _options(
        checkpoint.manifest.config
    )


def refuse_other_workload(job: Job, checkpoint: Checkpoint) -> None:
    """Raise `ValueError` that names what differs in model, data, batch, precision or seed."""
    manifest = checkpoint.manifest
    here = {**dataclasses.asdict(workload_of(job)), "seed": job.config.trainer.seed}
    there = {**dataclasses.asdict(manifest.workload), "seed": manifest.seed}
    different = [f"{name}={there[name]} and not {here[name]}" for name in here if here[name] != there[name]]
    if different:
        raise ValueError(f"{checkpoint.folder} cannot be continued here: it has {', '.join(different)}")
    require(
        job.config.trainer.epochs >= len(manifest.epochs),
        "trainer.epochs",
        job.config.trainer.epochs,
        f"must be at least {len(manifest.epochs)}, the epochs that {checkpoint.folder} has done",
    )


def attempts_of(start: StartPoint, job: Job) -> tuple[Attempt, ...]:
    """Return the attempts of the training, the one that starts now last."""
    plan = None if job.plan is None else plan_fingerprint(str(job.plan))
    label = job.config.strategy.full_label(plan)
    this = Attempt(step=start.step, started=now(), label=label, workers=job.workers, plan=plan)
    return (*(() if start.manifest is None else start.manifest.attempts), this)


def epochs_before(start: StartPoint, attempts: tuple[Attempt, ...]) -> tuple[Epoch, ...]:
    """Return the epochs that are done; those of another run, plan or number of workers as untimed."""
    this, manifest = attempts[-1], start.manifest
    if manifest is None:
        return ()
    epochs = []
    for epoch in manifest.epochs:
        first_step = (epoch.epoch - 1) * manifest.steps_per_epoch
        own = [attempt for attempt in attempts[:-1] if attempt.step <= first_step][-1]
        same = (own.label, own.workers, own.plan) == (this.label, this.workers, this.plan)
        epochs.append(dataclasses.replace(epoch, timed=epoch.timed and same and start.same_run))
    return tuple(epochs)


def note_start(run_dir: Path, anew: bool) -> tuple[float, ...]:
    """Note in the run directory that the run starts; return the times of all its starts, this one
    last.

    `anew`: forget those before. Only worker 0.
    """
    file = run_dir / STARTS
    before = file.read_text().split() if file.exists() and not anew else []
    times = (*(float(text) for text in before), time.time())
    write_atomically(file, "".join(f"{seconds:.3f}\n" for seconds in times).encode())
    return times


def lost_seconds(start: StartPoint, starts: Sequence[float]) -> float:
    """Return the time since the state was copied that the run continues from, or since its first
    start."""
    if start.manifest is None:
        return max(0.0, time.time() - starts[0]) if len(starts) > 1 else 0.0
    return max(0.0, time.time() - start.manifest.time) if start.same_run else 0.0


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that must be equal when a run continues, by dotted name."""
    config = json.loads(json.dumps(config))  # tuples as the lists that files have
    flat = {
        f"{group}.{name}" if isinstance(values, dict) else group: value
        for group, values in config.items()
        for name, value in (values.items() if isinstance(values, dict) else [("", values)])
    }
    return {
        name: value for name, value in flat.items() if name not in FREE and name.partition(".")[0] not in FREE
    }
