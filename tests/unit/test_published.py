"""The published numbers with which predictions are compared, and their ranks."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import yaml

from parallel.cli.compose import compose_config
from parallel.graph.configured import graph_of
from parallel.strategies import Single
from scripts.beside_published import PUBLISHED, epochs, hours, predicted, ranks

NUMBERS = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
TIMES = Path(__file__).parents[1] / "data" / "published_epoch_times.json"


def test_speedups_are_ratios_of_hours() -> None:
    published = NUMBERS["one_weird_trick"]
    for row in published["rows"]:
        assert row["speedup"] == pytest.approx(published["single_hours"] / row["hours"], abs=0.011)


def test_epochs_are_the_means_of_the_published_ones() -> None:
    of = {
        (e["data"], e["strategy"]): e["epoch_times_s"] for e in json.loads(TIMES.read_text())["experiments"]
    }
    for name, numbers in NUMBERS["two_p100"]["sets"].items():
        for strategy, mean in numbers["epoch_s"].items():
            assert mean == pytest.approx(statistics.fmean(of[name, strategy]), abs=0.051)


def test_ranks() -> None:
    assert ranks([3.0, 1.0, 1.0005, 2.0]) == ["4", "1=", "1=", "3"]


def test_one_gpu_takes_as_long_as_its_images() -> None:
    published = NUMBERS["one_weird_trick"]
    config = compose_config([*published["overrides"], "trainer.batch_size=128"])
    found = predicted(config, graph_of(config), Single(), 1)
    assert hours(found, 90) == pytest.approx(90 * 1_281_167 * found.timeline.loaded_step_s / 128 / 3600)
    assert hours(found, 90) == pytest.approx(published["single_hours"], rel=0.2)


def test_loading_hides_what_the_strategies_do() -> None:
    """Two processors feed the two GPUs: with loading all strategies tie, without it they do not."""
    table = epochs(NUMBERS["two_p100"]["sets"]["tiny_imagenet"])
    cells = [list(column.cells) for column in table.columns]
    assert cells[1] == ["281.7", "304.7", "287.0", "296.7"] and cells[2] == ["1", "4", "2", "3"]
    assert cells[4] == ["1="] * 4
    assert sorted(cells[6]) == ["1", "2", "3", "4"]
