"""Pipelines and passes: all plans of their space are proposed, and no bound exceeds what is simulated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from parallel.cluster import Cluster
from parallel.cluster.files import read_cluster
from parallel.graph import Graph, trace
from parallel.models import build_model
from parallel.models.alexnet import AlexNetConfig
from parallel.plans import Layout, Plan, check_batch, make_plan
from parallel.program.lowering import lower
from parallel.search import SearchConfig, search
from parallel.search.pipelines import Pipelines, space_in_words, stage_sizes
from parallel.search.proposal import Proposal, least_s
from parallel.search.space import leaders_of
from parallel.simulator import CostModel
from parallel.simulator.simulate import simulate
from tests.support.made_clusters import Rates, link, made_cluster
from tests.support.small_models import graph_of

ALMOST = 1 + 1e-9
FOLDER = Path(__file__).resolve().parents[2] / "conf" / "cluster"
CUTS = {
    "tower": ("conv1", "pool1", "conv2", "pool2", "fc3", "fc4", "fc5"),
    "towers": ("conv1", "pool1", "conv2", "conv3", "avgpool", "fc4", "fc5"),
    "weightless": ("pool1", "conv2", "conv3", "fc4"),
}
"""Chains, and the ops at which a stage may begin."""


def random_cluster(seed: int, workers: int, graph: Graph) -> Cluster:
    """Return random times of ops, links and overlaps, so that each is the bottleneck in some cases."""
    random = Random(seed)
    per_node = random.choice([1, 2, workers])
    nodes = -(-workers // per_node)
    uneven: dict[str, object] = {}
    if seed % 2 and workers > 2:
        per_node, nodes = workers - 1, 2
        uneven["node_workers"] = tuple(random.sample([1, per_node], 2))
    if seed % 2:
        count = workers if workers > 2 else nodes * per_node
        uneven["speeds"] = tuple(random.choice([0.3, 1.0, 1.0, 2.0]) for _ in range(count))

    def some_link() -> object:
        return link(10 ** random.uniform(4, 8), random.choice([0.0, 1e-4, 3e-3]), random.random() < 0.5)

    update_s, add_s, copy_s = (10 ** random.uniform(-8, -5) for _ in range(3))
    compute = Rates(
        1e-6,
        update_s,
        add_s,
        copy_s,
        {op.name: 10 ** random.uniform(-5, -2) for op in graph if random.random() < 0.5},
    )
    contention = tuple(0.9 + 0.4 * i for i in range(per_node)) if random.random() < 0.3 else ()
    return made_cluster(
        per_node,
        nodes,
        inside=some_link(),
        between=some_link() if nodes > 1 else None,
        compute=compute,
        overlap_slowdown=random.choice([0.0, 0.3, 1.0]),
        core_contention=contention,
        shared_memory=random.random() < 0.3,
        data_s_per_image=random.choice([0.0, 1e-3]),
        data_shared=random.random() < 0.5,
        data_overlaps=random.random() < 0.5,
        **uneven,
    )


def proposals(
    graph: Graph, batch: int, workers: int, cluster: Cluster, limit_s: float = math.inf
) -> list[Proposal]:
    cost_model = CostModel(graph, batch, cluster, "fp32")
    return list(Pipelines(graph, batch, workers, cluster, cost_model).proposals(limit_s))


def total_s(graph: Graph, plan: Plan, batch: int, cluster: Cluster) -> float:
    """Return the timeline in seconds, with the loading of images where it does not overlap."""
    line = simulate(lower(graph, plan, batch), cluster, "fp32")
    return line.end_s + (0.0 if cluster.data_overlaps else cluster.data_s(line.images))


def every_pipeline(graph: Graph, cuts: tuple[str, ...], batch: int, workers: int) -> Iterator[Plan]:
    """Yield all pipelines: sizes of stages, cuts, splits, micro-batches and orders."""
    linear = {op.name for op in graph if op.parameters and len(op.shape) == 1}
    for count in range(2, workers + 1):
        for sizes in itertools.product(range(1, workers + 1), repeat=count):
            if sum(sizes) > workers:
                continue
            blocks = [tuple(range(sum(sizes[:j]), sum(sizes[: j + 1]))) for j in range(count)]
            for starts in itertools.combinations(range(1, len(cuts)), count - 1):
                stage_of = [sum(start <= g for start in starts) for g in range(len(cuts))]
                for in_c in itertools.product((False, True), repeat=count):
                    layouts = {}
                    for name, stage in zip(cuts, stage_of, strict=True):
                        on = blocks[stage]
                        c = in_c[stage] and name in linear and graph[name].extent("c") >= len(on)
                        layouts[name] = Layout(on, c=len(on)) if c else Layout(on, n=len(on))
                    for m, order in itertools.product((1, 2, 4, 8), ("fill_drain", "1f1b")):
                        if batch % m == 0 and (m > 1 or order == "fill_drain"):
                            plan = make_plan(graph, workers, layouts, micro_batches=m, pipeline=order)
                            try:
                                check_batch(graph, plan, batch)
                            except ValueError:
                                continue
                            yield plan


@pytest.mark.parametrize(
    ("name", "workers"), [("weightless", 3), ("weightless", 4), ("tower", 3), ("towers", 2)]
)
def test_every_pipeline_is_proposed_once(name: str, workers: int) -> None:
    graph, batch = graph_of(name), 8
    proposed = proposals(graph, batch, workers, random_cluster(0, workers, graph))
    found = [str(proposal.make()) for proposal in proposed if proposal.family == "pipelines"]
    assert set(found) == {str(plan) for plan in every_pipeline(graph, CUTS[name], batch, workers)}
    assert len(set(found)) == len(found)


def test_stages_begin_where_a_single_tensor_enters() -> None:
    """No stage begins inside two branches that join later."""
    graph = graph_of("residual")
    found = {
        tuple(sorted({plan[op.name].on for op in graph})): plan
        for proposal in proposals(graph, 8, 2, random_cluster(0, 2, graph))
        for plan in [proposal.make()]
    }
    assert found
    leaders = leaders_of(graph)
    for plan in found.values():
        blocks = {plan[op.name].on for op in graph}
        firsts = {next(op.name for op in graph if plan[op.name].on == on) for on in blocks}
        assert all(leaders[name] == name and len(graph[name].inputs) == 1 for name in firsts)


def test_large_numbers_of_workers_have_fewer_sizes() -> None:
    assert stage_sizes(6) == ((1, 2, 3, 4, 5), frozenset(range(1, 6)))
    sizes, in_c = stage_sizes(12)
    assert sizes == (1, 2, 3, 4, 6, 8, 9, 10, 11) and in_c == {1, 2, 3, 4, 6, 8}
    assert space_in_words(6) == "pipelines of stages of any sizes, and passes"
    assert space_in_words(12) == "pipelines of stages of 1, 2, 3, 4, 6, 8, 9, 10, 11 workers, and passes"


@pytest.mark.parametrize("name", ["weightless", "tower", "towers", "residual", "branches"])
@pytest.mark.parametrize("seed", range(8))
def test_no_bound_exceeds_the_simulated_step(name: str, seed: int) -> None:
    graph, random = graph_of(name), Random(seed)
    workers, batch = random.choice([2, 3, 4]), random.choice([6, 8, 12])
    cluster = random_cluster(seed, workers, graph)
    cost_model = CostModel(graph, batch, cluster, "fp32")
    found = proposals(graph, batch, workers, cluster)
    for proposal in random.sample(found, min(20, len(found))):
        plan = proposal.make()
        seconds = total_s(graph, plan, batch, cluster)
        assert proposal.bound_s <= seconds * ALMOST, plan
        assert least_s(graph, plan, batch, cost_model) <= seconds * ALMOST, plan


def test_sums_overlap_with_the_last_backwards() -> None:
    """Sums take longest. They begin while conv1, which sums gradients too, still computes."""
    graph, batch = graph_of("tower"), 8
    cluster = made_cluster(3, inside=link(1e4), compute=Rates(1e-7, 0.0, 1e-5, 0.0, {"conv1": 5e-3}))
    checked = 0
    for proposal in proposals(graph, batch, 3, cluster):
        plan = proposal.make()
        if plan["conv2"].n == 2 and plan["fc5"].on == (2,) and plan.scheme == "a":
            checked += 1
            assert proposal.bound_s <= total_s(graph, plan, batch, cluster) * ALMOST, plan
    assert checked > 20


def test_fill_drain_may_turn_early_after_a_split_in_c() -> None:
    """The last stage waits for forwards of two time units, so it starts backward passes earlier."""
    graph, batch = graph_of("tower"), 8
    cluster = made_cluster(3, inside=link(1e9), compute=Rates(1e-6, of_op={"conv1": 1e-3}))
    checked = 0
    for proposal in proposals(graph, batch, 3, cluster):
        plan = proposal.make()
        if (
            plan.scheme == "a"
            and plan.pipeline == "fill_drain"
            and plan["fc3"].on == (0, 1)
            and plan["fc3"].c == 2
        ):
            checked += 1
            assert proposal.bound_s <= total_s(graph, plan, batch, cluster) * ALMOST, plan
    assert checked > 3


@pytest.mark.parametrize(("name", "seed"), [*(("weightless", seed) for seed in range(6)), ("tower", 6)])
def test_the_best_pipeline_is_never_pruned(name: str, seed: int) -> None:
    """The limit is just above the fastest pipeline, and far below most others."""
    graph, workers, batch = graph_of(name), 3, 8
    cluster = random_cluster(100 + seed, workers, graph)
    found = sorted(proposals(graph, batch, workers, cluster), key=lambda proposal: proposal.bound_s)
    best_s, best = math.inf, ""
    for proposal in found:
        if proposal.bound_s >= best_s:
            break
        plan = proposal.make()
        seconds = total_s(graph, plan, batch, cluster)
        if seconds < best_s:
            best_s, best = seconds, str(plan)
    few = proposals(graph, batch, workers, cluster, best_s * ALMOST)
    assert best in {str(proposal.make()) for proposal in few}
    assert len(few) < len(found) / 2
    assert not proposals(graph, batch, workers, cluster, 1e-9)


@pytest.mark.parametrize(("workers", "gain"), [(4, 0.05), (8, 0.14)])
def test_unequal_stages_win_over_slow_links(workers: int, gain: float) -> None:
    """AlexNet over 1 Gbit Ethernet: convolutions on all workers but one, linear layers on that one."""
    cluster = read_cluster((FOLDER / "ethernet_1g.yaml").read_text(encoding="utf-8")).resized(workers)
    with torch.device("meta"):
        graph = trace(build_model(AlexNetConfig(image_size=224), 1000, seed=0), (3, 224, 224))
    inside, best = (
        search(graph, 1024, workers, cluster, "fp32", SearchConfig(pipelines=on)) for on in (False, True)
    )
    assert best.step_s < (1 - gain) * inside.step_s
    assert best.stopped is None and best.bound_s == pytest.approx(best.step_s)
    assert best.plan["conv5"].on == tuple(range(workers - 1)) and best.plan["fc6"].on == (workers - 1,)
    line = simulate(lower(graph, best.plan, 1024), cluster, "fp32")
    assert best.step_s == pytest.approx(line.loaded_step_s)


def test_bounds_are_close() -> None:
    """If computing dominates, the bound is close to the step."""
    graph, batch, workers = graph_of("tower"), 8, 3
    cluster = made_cluster(3, inside=link(1e9), compute=Rates(1e-5))
    gaps = [
        total_s(graph, proposal.make(), batch, cluster) / proposal.bound_s
        for proposal in Random(1).sample(proposals(graph, batch, workers, cluster), 40)
    ]
    assert sorted(gaps)[20] < 1.02


def test_passes_are_proposed_for_linear_layers() -> None:
    graph = graph_of("tower")
    cluster = made_cluster(1, 2)
    passes = [proposal.make() for proposal in proposals(graph, 8, 2, cluster) if proposal.family == "passes"]
    assert {(plan.scheme, plan.micro_batches) for plan in passes} == {("b", 2), ("c", 2)}
    assert all(plan["conv1"].n == 2 and plan["fc5"].c == 2 for plan in passes)
