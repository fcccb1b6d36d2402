"""Repetitions of the jobs of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from parallel.cli.application import refuse_repeats
from parallel.cli.compose import compose_node, parse_overrides, shared_overrides, sweep_overrides
from parallel.cli.repeats import repeated
from parallel.cli.sweep import Job
from parallel.config import Config, DataConfig, StrategyConfig
from parallel.config.trainer import TrainerConfig
from parallel.models.alexnet import AlexNetConfig

SWEEP = Path("/sweep")


def job(index: int, name: str, repeats: int, seed: int = 0) -> Job:
    config = Config(
        AlexNetConfig(),
        DataConfig("digits"),
        StrategyConfig(name),
        trainer=TrainerConfig(seed=seed),
        repeats=repeats,
    )
    return Job(
        index=index,
        overrides=(f"strategy={name}", f"repeats={repeats}"),
        config=config,
        workers=1,
        run_dir=SWEEP / f"strategy={name}",
        sweep_dir=SWEEP,
    )


def test_all_run_once_before_any_runs_again() -> None:
    jobs = repeated([job(4, "a", 3, seed=7), job(5, "b", 3)])
    assert [j.run_dir.name for j in jobs] == [
        "strategy=a",
        "strategy=b",
        "strategy=a,repeat=2",
        "strategy=b,repeat=2",
        "strategy=a,repeat=3",
        "strategy=b,repeat=3",
    ]
    assert [j.index for j in jobs] == [4, 5, 6, 7, 8, 9]
    assert [j.config.trainer.seed for j in jobs] == [7, 0, 8, 1, 9, 2]
    assert jobs[2].overrides[2:] == (
        "repeats=1",
        "repeat=2",
        "trainer.seed=8",
        "hydra.run.dir='/sweep/strategy=a,repeat=2'",
    )


def test_the_first_repetition_is_the_run_without() -> None:
    """So that finished runs count when a sweep is repeated later."""
    (alone,), (first, *_) = repeated([job(0, "a", 1)]), repeated([job(0, "a", 3)])
    assert (first.config, first.run_dir) == (alone.config, alone.run_dir)


def test_jobs_may_have_their_own_numbers() -> None:
    jobs = repeated([job(0, "a", 1), job(1, "b", 2)])
    assert [j.label for j in jobs] == ["strategy=a", "strategy=b", "strategy=b,repeat=2"]


def test_a_sweep_keeps_its_name_and_folders_with_more_repetitions() -> None:
    def sweep(*overrides: str) -> str:
        parsed = parse_overrides(overrides)
        return sweep_overrides(parsed, compose_node(shared_overrides(parsed)))[0]

    assert sweep("strategy=single,ddp", "repeats=3") == sweep("strategy=single,ddp")


def test_a_single_run_is_not_repeated() -> None:
    config = job(0, "a", 3).config
    with pytest.raises(ValueError, match=r"repeats=3 needs a sweep"):
        refuse_repeats(config)
    with pytest.raises(ValueError, match="repeats=0 must be at least 1"):
        job(0, "a", 0)
