"""Repetitions of the jobs of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel.cli.application import refuse_repeats
from parallel.cli.compose import compose_node, parse_overrides, shared_overrides, sweep_overrides
from parallel.cli.repeats import order_of_round, repeated
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
        "strategy=b,repeat=2",
        "strategy=a,repeat=2",
        "strategy=b,repeat=3",
        "strategy=a,repeat=3",
    ]
    assert [j.index for j in jobs] == [4, 5, 6, 7, 8, 9]
    assert [j.config.trainer.seed for j in jobs] == [7, 0, 1, 8, 2, 9]
    assert jobs[3].overrides[2:] == (
        "repeats=1",
        "repeat=2",
        "trainer.seed=8",
        "hydra.run.dir='/sweep/strategy=a,repeat=2'",
    )


@given(st.integers(2, 8), st.integers(2, 9), st.data())
def test_each_of_two_jobs_is_first_in_half_of_the_rounds(jobs: int, rounds: int, data: st.DataObject) -> None:
    """So that a machine that becomes slower during every round slows down both alike."""
    orders = [order_of_round(jobs, number) for number in range(1, rounds + 1)]
    assert all(sorted(order) == list(range(jobs)) for order in orders) and orders[0] == sorted(orders[0])
    one, other = data.draw(st.lists(st.integers(0, jobs - 1), min_size=2, max_size=2, unique=True))
    first = sum(order.index(one) < order.index(other) for order in orders)
    assert abs(2 * first - rounds) <= 1
    assert orders == [order_of_round(jobs, number) for number in range(1, rounds + 1)]


def test_more_rounds_have_other_orders() -> None:
    assert len({tuple(order_of_round(6, number)) for number in range(1, 9)}) == 8


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
