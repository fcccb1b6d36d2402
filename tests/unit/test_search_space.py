"""Which plans the search chooses from."""

from __future__ import annotations

import itertools
import math
from random import Random

import pytest
import torch

from parallel.graph import Graph, trace
from parallel.graph.box import Cut
from parallel.models import build_model
from parallel.models.alexnet import AlexNetConfig
from parallel.plans import Layout, check_batch, make_plan
from parallel.search.space import block_sizes, divisors, leaders_of, space_of, speed_weights, splits
from parallel.strategies import DataParallel
from parallel.strategies.data_parallel import data_parallel
from parallel.strategies.named import named_plans
from tests.support.made_clusters import made_cluster
from tests.support.made_searches import case, cluster_of
from tests.support.small_models import graph_of


def alexnet(image_size: int = 64) -> Graph:
    with torch.device("meta"):
        model = build_model(AlexNetConfig(image_size=image_size), 10, seed=0)
    return trace(model, (3, image_size, image_size))


ALEXNET = alexnet()


def test_decided_ops_are_those_with_weights_and_the_poolings() -> None:
    assert tuple(dict.fromkeys(leaders_of(ALEXNET).values())) == (
        "conv1",
        "pool1",
        "conv2",
        "pool2",
        "conv3",
        "conv4",
        "conv5",
        "pool5",
        "avgpool",
        "fc6",
        "fc7",
        "fc8",
    )
    large = leaders_of(alexnet(224))
    assert large["avgpool"] == "pool5"  # at 224 pixels it changes nothing
    assert leaders_of(graph_of("residual"))["loss"] != "loss"


@pytest.mark.parametrize(
    ("workers", "per_node", "sizes"),
    [
        (1, 8, (1,)),
        (6, 8, (1, 2, 3, 4, 5, 6)),
        (6, 3, (1, 2, 3, 6)),  # no block of 4 or 5 straddles two nodes of 3
        (12, 4, (1, 2, 3, 4, 8, 12)),
        (64, 8, (1, 2, 4, 8, 16, 32, 64)),
    ],
)
def test_blocks_fit_the_nodes(workers: int, per_node: int, sizes: tuple[int, ...]) -> None:
    assert block_sizes(workers, per_node) == sizes


def test_splits_are_all_products_within_the_limits() -> None:
    assert sorted(splits(4, (4, 2, 4))) == [(1, 1, 4), (1, 2, 2), (2, 1, 2), (2, 2, 1), (4, 1, 1)]
    assert divisors(12) == (1, 2, 3, 4, 6, 12)


@pytest.mark.parametrize(("workers", "count"), [(1, 1), (2, 6), (4, 26), (8, 94)])
def test_candidates_are_counted(workers: int, count: int) -> None:
    """conv2 may be split in all five dims, but its 7×7 map not into 8 parts."""
    space = space_of(ALEXNET, 128, workers, cluster_of(16))
    expected = sum(1 for size in range(1, workers + 1) for _ in splits(size, (128, 192, 64, 7, 7)))
    assert len(space.candidates["conv2"]) == expected == count
    assert space.count == math.prod(len(found) for found in space.candidates.values())


def test_every_plan_of_the_space_is_legal_and_found_again() -> None:
    random = Random(0)
    shapes = (("tower", 6), ("towers", 4), ("odd", 3), ("residual", 4), ("branches", 5))
    for (name, workers), uneven in itertools.product(shapes, (False, True)):
        made = case(graph_of(name), workers, uneven=uneven)
        space = made.space
        for _ in range(15):
            chosen = made.some_plan(random)
            plan = space.plan(chosen)
            check_batch(space.graph, plan, space.batch_size)
            found = space.find(plan)
            assert found is not None and str(space.plan(found)) == str(plan)


@pytest.mark.parametrize(
    ("speeds", "contention", "weights"),
    [
        ((1.0, 0.5), (), (2, 1)),
        ((0.5, 0.5), (), 2),
        ((1.0, 0.75, 0.25), (), (4, 3, 1)),
        ((1.0, 0.52), (), (2, 1)),  # the slow part takes 1.3 % longer than in proportion
        ((1.0, 0.55), (), (9, 5)),
        ((1.0, 1.0, 1.0), (1.0, 2.0), (2, 1, 1)),  # worker 0 has a node, and its cores, to itself
    ],
)
def test_weights_are_in_proportion_to_what_workers_compute(
    speeds: tuple[float, ...], contention: tuple[float, ...], weights: Cut
) -> None:
    nodes = {"node_workers": (1, 2)} if len(speeds) == 3 else {}
    contention = contention if nodes else ()
    cluster = made_cluster(2, 2 if nodes else 1, speeds=speeds, core_contention=contention, **nodes)
    assert speed_weights(range(len(speeds)), cluster) == weights


def test_blocks_of_unequal_workers_take_the_fastest_first() -> None:
    cluster = made_cluster(2, speeds=(0.5, 1.0))
    space = space_of(ALEXNET, 128, 2, cluster)
    layouts = {str(space.layout("conv2", i)) for i in range(len(space.candidates["conv2"]))}
    assert {"@1", "n2 @1,0", "n2:1 @1,0"} <= layouts and "c2:1 @1,0" not in layouts
    linear = {str(space.layout("fc6", i)) for i in range(len(space.candidates["fc6"]))}
    assert {"n2:1 @1,0", "c2:1 @1,0"} <= linear
    large = space_of(
        ALEXNET, 128, 12, made_cluster(7, 2, node_workers=(5, 7), speeds=(1.0,) * 9 + (0.5,) * 3)
    )
    assert large.sizes == (1, 2, 3, 4, 5, 6, 8, 9, 12)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_named_plans_lie_in_the_space_or_are_pipelines_and_passes(workers: int) -> None:
    space = space_of(ALEXNET, 128, workers, cluster_of(8))
    found = {
        label: space.find(plan) is not None for label, plan in named_plans(ALEXNET, workers, 128).items()
    }
    assert found["data_parallel"] and found["one_weird_trick a"] and found["model_parallel tensor"]
    assert workers == 1 or not any(found[label] for label in found if label[-1] in "bc248")


def test_plans_on_other_workers_are_not_in_the_space() -> None:
    space = space_of(ALEXNET, 128, 2, cluster_of(2))
    assert space.find(data_parallel(ALEXNET, 2, DataParallel())) is not None
    turned = make_plan(ALEXNET, 2, {"conv1": Layout((1, 0), n=2)})
    assert space.find(turned) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 3}, "workers=3 is more than cluster made has: 2"),
        ({"dims": "x"}, "search.dims=x must be some of the dims nckhw"),
        ({"sizes": (4,)}, "search.sizes=4 must be from 1 to workers=2"),
        (
            {"dims": "kh", "sizes": (2,)},
            "search: no layout of pool5 is left by sizes=[2], dims=kh and "
            "trainer.batch_size=1: the op can be cut at most into {'h': 1}",
        ),
    ],
)
def test_an_empty_space_says_why(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        space_of(**{"graph": ALEXNET, "batch_size": 1, "workers": 2, "cluster": cluster_of(2), **arguments})  # type: ignore
    assert message in str(error.value)
