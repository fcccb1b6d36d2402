"""The cost model of replicated models (DDP): buckets, all-reduces, and steps checked by hand."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from parallel.cli.compose import compose_config
from parallel.cluster import AllReduce, Cluster, open_cluster, read_cluster, write_cluster
from parallel.prediction.predict import Predictor, predict_step
from parallel.simulator.replicated import (
    Replicated,
    ReplicatedTimeline,
    all_reduce_s,
    buckets_of,
    elements_of,
    simulate_replicated,
)
from parallel.simulator.simulate import simulate
from tests.support.made_clusters import Rates, link, made_cluster
from tests.support.small_models import MODELS, graph_of

GRAPH = graph_of("tower")
BATCH = 8
DGX1 = ("cluster=dgx1", "experiment=imagenet", "trainer.batch_size=512")
BYTES = 4 * GRAPH.parameter_count


def cluster(slowdown: float = 0.0, bandwidth: float = 1e6, **changes: object) -> Cluster:
    return made_cluster(all_reduce=AllReduce(link(bandwidth), slowdown), compute=Rates(), **changes)


def k20() -> Cluster:
    return open_cluster(compose_config(["cluster=k20"]).cluster, 1)


def passes(where: Cluster) -> tuple[float, dict[str, float]]:
    """Return the seconds of all forwards, and of each backward, of half the batch."""
    rates, half, backward, forward = Rates(), BATCH // 2, dict[str, float](), 0.0
    for op in GRAPH:
        elements = half
        for extent in op.shape:
            elements *= extent
        seconds = rates.per_element_s * elements
        first = not GRAPH.trained_ops.intersection(op.inputs)
        forward += seconds
        backward[op.name] = 0.0 if op.name not in GRAPH.trained_ops else seconds * (1 if first else 2)
    return forward, backward


@pytest.mark.parametrize("bucket_bytes", [1, 600, 10**9])
def test_buckets_hold_every_gradient_once_in_the_order_of_backward(bucket_bytes: int) -> None:
    buckets = buckets_of(GRAPH, Replicated(bucket_bytes), 4)
    assert sum(nbytes for _, nbytes in buckets) == BYTES
    assert all(nbytes >= bucket_bytes for _, nbytes in buckets[:-1])
    names = [name for name, _ in itertools.groupby(name for names, _ in buckets for name in names)]
    assert names == [op.name for op in reversed(GRAPH.ops) if op.parameters]


def test_buckets_are_those_of_torch() -> None:
    """torch assigns gradients to buckets in this way, given the order in which they arrive."""
    shapes = [shape for op in reversed(GRAPH.ops) for shape in reversed(op.parameters.values())]
    tensors = [torch.empty(shape) for shape in shapes]
    for limits in ((1, 1), (600, 600), (100, 4000), (4000, 100)):
        indices, _ = torch._C._distributed_c10d._compute_bucket_assignment_by_size(tensors, list(limits))  # type: ignore[attr-defined]
        sizes = [sum(4 * tensors[i].numel() for i in bucket) for bucket in indices]
        assert [nbytes for _, nbytes in buckets_of(GRAPH, Replicated(limits[1], limits[0]), 4)] == sizes


def test_one_bucket_is_summed_after_backward() -> None:
    where = cluster()
    timeline = simulate_replicated(GRAPH, BATCH, 2, where, "fp32", Replicated(10**9))
    forward, backward = passes(where)
    update = Rates().per_update_s * GRAPH.parameter_count
    assert timeline.end_s == pytest.approx(forward + sum(backward.values()) + BYTES / 1e6 + update)
    split = timeline.split
    assert split.exposed_s == pytest.approx([BYTES / 1e6] * 2) and not split.idle_s.any()


def test_small_buckets_hide_behind_backward_and_slow_it_down() -> None:
    whole, parts, slow = (
        simulate_replicated(GRAPH, BATCH, 2, where, "fp32", Replicated(size))
        for where, size in ((cluster(), 10**9), (cluster(), 1), (cluster(1.0), 1))
    )
    assert parts.end_s < whole.end_s
    assert parts.split.exposed_s.max() < whole.split.exposed_s.max()
    assert parts.end_s < slow.end_s <= parts.end_s + BYTES / 1e6
    sums = [event for event in parts.events if event.kind == "sum"]
    assert all(before.end_s <= after.start_s for before, after in itertools.pairwise(sums))


def test_one_worker_sums_nothing() -> None:
    timeline = simulate_replicated(GRAPH, BATCH, 1, cluster(), "fp32", Replicated(1))
    assert {event.kind for event in timeline.events} == {"forward", "backward", "update"}
    plan = dataclasses.replace(timeline.program)
    assert timeline.end_s == pytest.approx(simulate(plan, cluster(), "fp32").end_s)


def test_all_reduces_are_measured_or_follow_from_the_links() -> None:
    assert all_reduce_s(1000, 2, cluster(bandwidth=500.0)) == 2.0
    ring = made_cluster(4, inside=link(1e3, 0.5))
    assert all_reduce_s(1000, 4, ring) == 0.5 + 2 * 3 / 4
    shared = made_cluster(4, inside=link(1e3, shared=True))
    assert all_reduce_s(1000, 4, shared) == 4 * 2 * 3 / 4
    hosts = made_cluster(2, 2, inside=link(1e6), between=link(1e3))
    assert all_reduce_s(1000, 4, hosts) == 2 * 3 / 4
    levels = 2 * 1 / 2 * 1000 / 1e6 + 2 * 1 / 2 * 1000 / 1e3
    assert all_reduce_s(1000, 4, hosts, hierarchical=True) == pytest.approx(levels)
    assert all_reduce_s(1000, 1, hosts) == all_reduce_s(0, 4, hosts) == 0.0


def test_every_worker_keeps_the_whole_momentum() -> None:
    timeline = simulate_replicated(GRAPH, BATCH, 2, cluster(), "fp32", Replicated(1))
    assert isinstance(timeline, ReplicatedTimeline)
    assert min(timeline.peak_memory) > 3 * BYTES


@pytest.mark.parametrize("model", MODELS)
def test_elements_are_those_of_the_model(model: str) -> None:
    graph, module = graph_of(model), MODELS[model][0]()
    assert isinstance(module, nn.Module)
    total = sum(elements_of(op, name) for op in graph for name in op.parameters)
    assert total == graph.parameter_count == sum(p.numel() for p in module.parameters())


def test_ddp_is_predicted_and_says_what_was_not_measured() -> None:
    config = compose_config([*DGX1, "strategy=ddp", "workers=4"])
    with pytest.warns(UserWarning, match="cluster dgx1 is described by data sheets: no time of alexnet owt"):
        found = Predictor().predict(config)
    assert 1 < found.speedup < 4
    ours = compose_config([*DGX1, "strategy=data_parallel", "workers=4"])
    with pytest.warns(UserWarning):
        plan = Predictor().predict(ours)
    assert found.timeline.step_s == pytest.approx(plan.timeline.step_s, rel=0.2)


def test_an_all_reduce_survives_a_cluster_file() -> None:
    where = dataclasses.replace(
        cluster(0.25),
        compute=read_cluster(write_cluster(k20())).compute,
        sources={"all_reduce.overlap_slowdown": "measured"},
    )
    assert read_cluster(write_cluster(where)) == where
    assert read_cluster(write_cluster(where)).sources == where.sources
    with pytest.raises(ValueError, match="all_reduce.overlap_slowdown"):
        read_cluster(write_cluster(where).replace("25 %", "125 %"))


def test_a_batch_that_does_not_divide_has_no_prediction() -> None:
    config = compose_config(["cluster=dgx1", "strategy=ddp", "workers=3", "trainer.batch_size=4"])
    with pytest.raises(ValueError, match="trainer.batch_size=4 must be a multiple of workers=3"):
        predict_step(config, GRAPH, None, k20().resized(3), (0, 0, 0))
