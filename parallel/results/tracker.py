"""Trackers send a run's epochs to W&B, in addition to the record on disk. No other module imports
W&B.

Open a tracker in rank 0 only. Without an API key the run is kept offline in `run_dir/wandb`, and
the command that uploads it is printed at the end. A missing network or account is never an error.
"""

from __future__ import annotations

import dataclasses
import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from parallel.config import TrackerConfig
from parallel.results.records import Epoch

INIT_TIMEOUT_S = 20.0
"""Time to wait for the server before the run goes offline, less than the 60 s for which other ranks
wait for this one."""
FINISH_TIMEOUT_S = 60.0
"""Time to wait for uploads at the end; the data stays on disk."""
ID = "wandb_id"
"""File in the run directory with the id of the W&B run."""
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

    def log_epoch(self, epoch: Epoch) -> None:
        """Send one epoch."""

    def finish(self, summary: Mapping[str, float | str]) -> None:
        """Send the summary of the finished run (`run_summary`). Leaving the `with` block ends the
        run."""

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the run, as failed after an exception."""


class WandbTracker(Tracker):
    """A W&B run, online or offline."""

    def __init__(self, run: Any) -> None:
        self._run = run
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")

    @property
    def directory(self) -> Path:
        """Folder of the run, the argument of `wandb sync`."""
        return Path(self._run.settings.sync_dir)

    def log_epoch(self, epoch: Epoch) -> None:
        values = {NAMES[name]: value for name, value in dataclasses.asdict(epoch).items()}
        self._run.log({name: value for name, value in values.items() if value is not None})

    def finish(self, summary: Mapping[str, float | str]) -> None:
        for name, value in summary.items():
            self._run.summary[name] = value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._run.offline:
            said = f"W&B run kept offline; upload it with: wandb sync {self.directory}"
        else:
            said = f"W&B run: {self._run.url}"
        self._run.finish(exit_code=0 if kind is None else 1)
        print(said, flush=True)


def open_tracker(
    config: TrackerConfig,
    *,
    run_dir: Path,
    name: str,
    group: str | None,
    job_type: str,
    config_dict: dict[str, Any],
    resumed: bool = False,
) -> Tracker:
    """Return the configured tracker. Use it in a `with` block, so that successive runs of one
    process stay apart.

    `resumed`: the run goes on from a checkpoint in `run_dir`, and so does its W&B run, whose id is in
    the file `wandb_id` there.

    Mode auto: the value of WANDB_MODE, otherwise online with an API key and offline without. If
    online is not possible, one line says why, and the run is kept offline.
    """
    if config.name == "none" or (config.mode == "auto" and os.environ.get("WANDB_MODE") == "disabled"):
        return Tracker()
    # Imported here: it takes longer to import than everything that a run without a tracker needs.
    import wandb

    settings = wandb.Settings(
        silent=True, console="off", init_timeout=INIT_TIMEOUT_S, finish_timeout=FINISH_TIMEOUT_S
    )
    mode = config.mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    elif mode == "online" and not has_key():
        print("W&B: no key (`wandb login` or WANDB_API_KEY), so the run is kept offline", flush=True)
        mode = "offline"

    def start(chosen: str) -> Tracker:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = run_dir / ID
        known = resumed and file.exists()
        if not known:
            file.write_text(secrets.token_hex(4))
        return WandbTracker(
            wandb.init(
                project=config.project,
                dir=str(run_dir),
                name=name,
                id=file.read_text(),
                resume="allow" if known else None,
                group=group,
                job_type=job_type,
                config=config_dict,
                mode=chosen,  # type: ignore[arg-type]
                settings=settings,
            )
        )

    try:
        return start(mode)
    except wandb.Error as error:
        if mode == "offline":
            raise
        print(f"W&B: {str(error).splitlines()[0]}; the run is kept offline", flush=True)
        return start("offline")


def has_key() -> bool:
    """Return whether W&B finds credentials without asking: in the environment, its settings or the
    netrc file."""
    import wandb

    settings = wandb.setup().settings
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or settings.api_key:
        return True
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    try:
        return netrc.netrc(str(path)).authenticators(urlsplit(settings.base_url).netloc) is not None
    except FileNotFoundError:
        return False
    except netrc.NetrcParseError as error:
        print(f"W&B: {path} cannot be read ({error}), so it counts as having no key", flush=True)
        return False
