"""The published numbers with which predictions are compared, and their ranks."""

from __future__ import annotations

import json

import pytest

from parallel.cli.compose import compose_config, compose_node
from parallel.config import ImageFilesConfig
from parallel.graph.configured import graph_of
from parallel.results import krizhevsky
from parallel.strategies import Single
from scripts.beside_published import (
    ONE_WEIRD_TRICK,
    TIMES,
    epochs,
    hours,
    mean_epochs,
    predicted,
    ranks,
    readings,
)

PUBLISHED = json.loads(TIMES.read_text(encoding="utf-8"))


def test_speedups_are_ratios_of_hours() -> None:
    alone, *rows = krizhevsky.ROWS
    for row in rows:
        assert row.speedup == pytest.approx(alone.hours / row.hours, abs=0.011)
    assert [row.batch for row in rows[:2]] == [(256, 256), (256, 128)]


def test_the_published_means() -> None:
    means = mean_epochs(PUBLISHED, "dogs_vs_cats")
    assert {name: round(mean, 1) for name, mean in means.items()} == pytest.approx(
        {"single": 266.6, "data_parallel": 314.5, "model_parallel": 320.4, "one_weird_trick": 210.5}, abs=0.11
    )


def test_ranks() -> None:
    assert ranks([3.0, 1.0, 1.0005, 2.0]) == ["4", "1=", "1=", "3"]


def test_one_gpu_takes_as_long_as_its_images() -> None:
    config = compose_config([*ONE_WEIRD_TRICK, "trainer.batch_size=128"])
    found = predicted(config, graph_of(config), Single(), 1)
    assert hours(found, 90) == pytest.approx(90 * 1_281_167 * found.timeline.loaded_step_s / 128 / 3600)
    assert hours(found, 90) == pytest.approx(krizhevsky.ROWS[0].hours, rel=0.2)


def test_loading_hides_what_the_strategies_do() -> None:
    """Two processors feed the two GPUs: with loading all strategies tie, without it they do not."""
    table = epochs(PUBLISHED, "tiny_imagenet")
    cells = [list(column.cells) for column in table.columns]
    assert cells[1] == ["281.7", "304.7", "287.1", "296.7"] and cells[2] == ["1", "4", "2", "3"]
    assert cells[4] == ["1="] * 4
    assert sorted(cells[6]) == ["1", "2", "3", "4"]


def test_what_an_epoch_of_dogs_vs_cats_can_be() -> None:
    """With 2,000 images, one weird trick would save thirty times as much as one GPU computes."""
    of = PUBLISHED["sets"]["dogs_vs_cats"]
    few = {**of, "readings": of["readings"][:2]}
    table = readings({**PUBLISHED, "sets": {"dogs_vs_cats": few}}, "dogs_vs_cats")
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert [row[0] for row in rows] == ["25,000 images, batch 128", "2,000 + 800 images, batch 128"]
    saved = [-float(str(row[8]).replace(",", "")) for row in rows]
    computing = [float(str(row[3])) for row in rows]
    assert saved[0] > 2 * computing[0] and saved[1] > 30 * computing[1]


@pytest.mark.parametrize(
    ("choice", "images", "size"), [("tiny_imagenet", None, 64), ("dogs_vs_cats", 2_000, 224)]
)
def test_the_published_experiment(choice: str, images: int | None, size: int) -> None:
    config = compose_config(["experiment=published", f"published={choice}", "strategy=one_weird_trick"])
    assert (config.data.name, config.data.train_images) == (choice, images)
    assert (config.trainer.epochs, config.model.image_size, config.workers) == (20, size, 2)
    assert config.trainer.batch_size == 128, "as in the predictions"
    assert isinstance(config.data, ImageFilesConfig) and config.data.root == f"data/{choice}"
    swept = compose_node(["experiment=published"]).hydra.sweeper.params
    assert swept.published == "tiny_imagenet,dogs_vs_cats"
    assert {"single", "data_parallel", "model_parallel", "one_weird_trick", "searched"} < set(
        swept.strategy.split(",")
    )
