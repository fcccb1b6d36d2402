"""Starting a run at W&B: credentials, online or offline, a new run or one that goes on.

A run keeps what is needed to go on with it in the file `wandb.json` of its folder.
"""

from __future__ import annotations

import dataclasses
import json
import netrc
import os
import secrets
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from parallel.config import TrackerConfig
from parallel.config.documents import from_json, read_bytes
from parallel.config.typed import structure
from parallel.results.json_files import naming, write_atomically

INIT_TIMEOUT_S = 20.0
"""Time to wait for the server before the run goes offline, less than the 60 s for which other ranks
wait for this one."""
FINISH_TIMEOUT_S = 60.0
"""Time to wait for uploads at the end; the data stays on disk."""
FILE = "wandb.json"
"""File in a run's folder: its `KnownRun`."""
AGENT_SWEEP = "WANDB_SWEEP_ID"
"""Environment variable that an agent of W&B sets for the runs of its sweep, with WANDB_RUN_ID."""

Summary = dict[str, float | str]


@dataclass(frozen=True, kw_only=True)
class KnownRun:
    """A run at W&B, as far as it must be known to go on with it."""

    id: str
    project: str
    name: str
    group: str | None = None
    job_type: str
    tags: tuple[str, ...] = ()
    summary: dict[str, Any] = field(default_factory=dict)
    """The summary that was sent last; empty: none yet."""

    def write(self, folder: Path) -> None:
        """Write the file in the run's folder."""
        write_atomically(folder / FILE, json.dumps(dataclasses.asdict(self), indent=1).encode())


def read_known(folder: Path) -> KnownRun | None:
    """Return the W&B run of a folder. None: it has none.

    Raises `ValueError` if the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    with naming(path):
        return structure(KnownRun, from_json(read_bytes(path)), "content")


def new_id() -> str:
    """Return the id of a new run."""
    return secrets.token_hex(4)


def is_off(config: TrackerConfig) -> bool:
    """Return whether nothing is to be sent to W&B."""
    return config.name == "none" or (config.mode == "auto" and os.environ.get("WANDB_MODE") == "disabled")


def in_agent() -> bool:
    """Return whether an agent of `wandb sweep` started this process, and chose the run's id."""
    return bool(os.environ.get(AGENT_SWEEP))


def begin(
    config: TrackerConfig,
    known: KnownRun,
    directory: Path,
    *,
    goes_on: bool,
    settings: dict[str, Any] | None = None,
    measures: bool = True,
) -> Any:
    """Start the run at W&B and return W&B's object; its files are in `directory/wandb`.

    `goes_on`: the run may exist already, and is then continued. `measures`: whether W&B samples the
    load of the machine. Mode auto: the value of WANDB_MODE, otherwise online with an API key and
    offline without. If online is not possible, one line says why, and the run is kept offline. A run
    with parts that were not uploaded goes on offline, so that W&B gets its parts in order.
    """
    # Imported here: it takes longer to import than everything that a run without a tracker needs.
    import wandb

    options = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S,
        x_disable_stats=not measures,
    )

    def start(mode: str) -> Any:
        directory.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            project=known.project,
            dir=str(directory),
            name=known.name,
            id=known.id,  # within an agent, W&B takes the agent's id and project instead
            resume="allow" if goes_on else None,
            group=known.group,
            job_type=known.job_type,
            tags=known.tags,
            config=settings,
            mode=mode,  # type: ignore[arg-type]
            settings=options,
        )

    mode = "offline" if goes_on and offline_parts(directory, known.id) else _mode(config)
    try:
        return start(mode)
    except wandb.Error as error:
        if mode == "offline":
            raise
        print(f"W&B: {str(error).splitlines()[0]}; the run is kept offline", flush=True)
        wandb.teardown()  # its service still holds the id of the run that could not be started
        return start("offline")


def offline_parts(directory: Path, run_id: str) -> list[Path]:
    """Return the parts of a run that were kept offline and not uploaded since.

    W&B numbers parts that begin in the same second: `offline-run-TIME-ID`, `offline-run-TIME-ID-1`, ….
    """
    folder = directory / "wandb"
    parts = [*folder.glob(f"offline-run-*-{run_id}"), *folder.glob(f"offline-run-*-{run_id}-*")]
    return sorted(part for part in parts if not any(part.glob("*.wandb.synced")))


def upload_command(*folders: Path) -> str:
    """Return the command that uploads all runs that are kept offline in these folders.

    The folder `wandb`, not a part of it: a run that went on has several parts, which W&B uploads in
    order.
    """
    return f"wandb sync {shlex.join(str(folder / 'wandb') for folder in folders)}"


def _mode(config: TrackerConfig) -> str:
    if config.mode == "auto":
        return os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    if config.mode == "online" and not has_key():
        print("W&B: no key (`wandb login` or WANDB_API_KEY), so the run is kept offline", flush=True)
        return "offline"
    return config.mode


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
