"""Delays planted in one worker of real runs are named in its record, with their cause."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from parallel.results.record_files import read_record
from tests.support.commands import run_module
from tests.support.planted_delays import Case

DELAY_S = 0.03
"""Several times the step of the small network."""
SMALL = (
    "model=small",
    "data=synthetic",
    "data.train_images=160",
    "data.val_images=8",
    "trainer.batch_size=8",
    "trainer.epochs=1",
    "trainer.checkpoint.final=false",
    "tracker=none",
    "workers=2",
)


@pytest.mark.parametrize("shared_memory", ["true", "false"], ids=["memory", "network"])
def test_planted_delays_are_named(tmp_path: Path, shared_memory: str) -> None:
    overrides = (*SMALL, "strategy=data_parallel", f"cluster.shared_memory={shared_memory}")
    causes = ("loading", "forward", "backward", "messages", "sending")
    cases = [
        Case(directory=str(tmp_path / cause), overrides=overrides, cause=cause, worker=i % 2, delay_s=DELAY_S)
        for i, cause in enumerate(causes)
    ]
    check(tmp_path, cases)


def test_delays_in_ddp_are_named(tmp_path: Path) -> None:
    cases = [
        Case(
            directory=str(tmp_path / cause),
            overrides=(*SMALL, "strategy=ddp"),
            cause=cause,
            worker=1,
            delay_s=DELAY_S,
        )
        for cause in ("loading", "module_forward", "module_backward")
    ]
    check(tmp_path, cases)


def check(folder: Path, cases: list[Case]) -> None:
    """Run the cases; each record must name what was planted first."""
    file = folder / "cases.json"
    file.write_text(json.dumps([dataclasses.asdict(case) for case in cases]))
    ended = run_module(2, "tests.support.planted_delays", str(file), folder=folder, timeout=240.0)
    assert ended.codes == [0, 0], ended.err
    for case in cases:
        found = read_record(Path(case.directory)).stragglers
        assert found, case
        cause = {"sending": "messages"}.get(str(case.cause), str(case.cause).removeprefix("module_"))
        assert (found[0].worker, found[0].cause) == (case.worker, cause), found
        assert found[0].lost_s == pytest.approx(DELAY_S, rel=1.5), found
        assert found[0].sentence(1) in ended.out
