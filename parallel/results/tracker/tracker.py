"""The tracker of one run: its epochs, its summary, its plan and record as artifacts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Any

from parallel.config import TrackerConfig
from parallel.results.record_files import EPOCHS, RECORD
from parallel.results.records import Epoch
from parallel.results.step_timeline import FILE as STEP
from parallel.results.tracker.connection import (
    KnownRun,
    Summary,
    begin,
    in_agent,
    is_off,
    new_id,
    read_known,
    upload_command,
)
from parallel.results.tracker.names import RunFacts, run_name, settings, tags

NAMES = {
    "epoch": "epoch",
    "seconds": "time/epoch_seconds",
    "images_per_second": "time/images_per_second",
    "data_wait_s": "time/data_wait_seconds",
    "compute_s": "time/compute_seconds",
    "communication_s": "time/communication_seconds",
    "idle_s": "time/idle_seconds",
    "checkpoint_s": "time/checkpoint_seconds",
    "timed": "time/timed",
    "train_loss": "train/loss",
    "lr": "train/lr",
    "val_loss": "val/loss",
    "val_top1": "val/top1",
    "val_top5": "val/top5",
    "bytes_sent": "cost/bytes_sent",
    "peak_memory_bytes": "cost/peak_memory_bytes",
}
"""Name on W&B of each field of `Epoch`; the part before the slash is the section of charts."""


class Tracker:
    """Interface of trackers, and the tracker that discards everything (`tracker=none`)."""

    def log_plan(self, text: str, fingerprint: str) -> None:
        """Send the plan that the run executes."""

    def log_epoch(self, epoch: Epoch) -> None:
        """Send one epoch."""

    def log_loss(self, step: int, loss: float) -> None:
        """Send the mean training loss of some steps within an epoch, which end with step `step`."""

    def finish(self, summary: Summary) -> None:
        """Send the summary of the finished run (`run_summary`) and its record. Leaving the `with`
        block ends the run."""

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run, as failed after an exception."""


class WandbTracker(Tracker):
    """A W&B run, online or offline."""

    def __init__(self, run: Any, known: KnownRun, run_dir: Path) -> None:
        self._run = run
        self._known = known
        self._dir = run_dir
        self._last: Summary = {}
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        run.define_metric("train/step")
        run.define_metric("train/step_loss", step_metric="train/step")

    def log_plan(self, text: str, fingerprint: str) -> None:
        # Imported here: workers other than rank 0 draw nothing.
        from parallel.results.report.html import alone
        from parallel.results.report.plan_grid import grid, parse

        files = {"plan.yaml": text}
        if (parsed := parse(text)) is not None:
            files["plan.html"] = alone(grid(parsed))
        written = {}
        for name, content in files.items():
            written[name] = self._dir / "wandb" / f"{fingerprint}-{name}"
            written[name].write_text(content, encoding="utf-8")
        log_files(self._run, f"plan-{fingerprint}", "plan", written)

    def log_epoch(self, epoch: Epoch) -> None:
        self._last = values_of(epoch)
        self._run.log(self._last)

    def log_loss(self, step: int, loss: float) -> None:
        self._run.log({"train/step": step, "train/step_loss": loss})

    def finish(self, summary: Summary) -> None:
        send_summary(self._run, self._last | summary)
        files = {name: self._dir / name for name in (RECORD, EPOCHS, STEP)}
        log_files(self._run, f"record-{self._known.id}", "record", files)
        dataclasses.replace(self._known, summary=summary).write(self._dir)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run.offline:
            said = f"W&B run kept offline; upload it with: {upload_command(self._dir)}"
        else:
            said = f"W&B run: {self._run.url}"
        self._run.finish(exit_code=0 if kind is None else 1)
        print(said, flush=True)


def values_of(epoch: Epoch) -> Summary:
    """Return the values of an epoch that were measured, by their names at W&B."""
    values = {NAMES[name]: value for name, value in dataclasses.asdict(epoch).items()}
    return {name: value for name, value in values.items() if value is not None}


def send_summary(run: Any, summary: Summary) -> None:
    """Send a summary, which must be complete.

    `wandb sync` gives a run that went on offline the summary of its last part alone.
    """
    for name, value in summary.items():
        run.summary[name] = value


def log_files(run: Any, name: str, kind: str, files: dict[str, Path]) -> None:
    """Send an artifact of these files, by their names in it, as far as they exist.

    Until they are uploaded, W&B reads them where they are, and makes no copies in the home folder.
    """
    import wandb

    artifact = wandb.Artifact(name, type=kind)
    for inside, path in files.items():
        if path.exists():
            artifact.add_file(str(path), name=inside, policy="immutable")
    run.log_artifact(artifact)


def open_tracker(config: TrackerConfig, facts: RunFacts, run_dir: Path, *, resumed: bool = False) -> Tracker:
    """Return the configured tracker. Use it in a `with` block, so that successive runs of one
    process stay apart.

    `resumed`: the run goes on from a checkpoint in `run_dir`, and so does its W&B run.
    """
    if is_off(config):
        return Tracker()
    before = read_known(run_dir) if resumed else None
    known = KnownRun(
        id=new_id() if before is None else before.id,
        project=config.project,
        name=run_name(facts),
        group=facts.config.sweep,
        job_type=facts.config.strategy.name,
        tags=tuple(tags(facts)),
    )
    # A job of an agent that starts again has the agent's id, also if it has no checkpoint yet.
    run = begin(config, known, run_dir, goes_on=before is not None or in_agent(), settings=settings(facts))
    known = dataclasses.replace(known, id=run.id, project=run.project)
    known.write(run_dir)
    return WandbTracker(run, known, run_dir)
