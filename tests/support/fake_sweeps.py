"""Jobs of sweeps that do not train: `tests.support.fake_job`."""

from __future__ import annotations

import json
from pathlib import Path

from parallel.cli.application import fit_world
from parallel.cli.compose import compose_config
from parallel.cli.sweep import Job

JOB = "tests.support.fake_job"


def fake(**actions: str) -> dict[str, str]:
    """Return the variable that says what jobs do, by strategy."""
    return {"FAKE_JOB": json.dumps(actions)}


def errors(text: str) -> list[str]:
    """Return the lines that are errors."""
    return [line for line in text.splitlines() if line.startswith("error")]


def job(tmp_path: Path, *overrides: str, workers: int = 2, index: int = 0) -> Job:
    """Return a job that `workers` processes run."""
    config = fit_world(compose_config([*overrides, f"workers={workers}"]), workers, launched=True)
    return Job(
        index=index,
        overrides=overrides,
        config=config,
        workers=workers,
        run_dir=tmp_path / "sweep" / "job",
        sweep_dir=tmp_path / "sweep",
    )
