"""The cost model: loads of exchanges and gradient sums against a count over all pairs, and costs by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.cluster import Cluster, Roofline
from parallel.cluster.files import read_cluster, write_cluster
from parallel.graph import INPUT, Graph
from parallel.graph.ops import Op
from parallel.plans import Layout, Plan, make_plan
from parallel.program import Exchange
from parallel.program.levels import Levels, by_host
from parallel.program.lowering import BUCKET_BYTES, COLLECTIVE_BYTES, lower
from parallel.simulator.communication_volume import (
    ExchangeVolume,
    Holders,
    Volume,
    by_node,
    ring_volume,
    sharing_of,
    sync_volume,
)
from parallel.simulator.cost_model import CostModel
from parallel.simulator.partition import Grids, Partition, PartSizes
from tests.support.made_clusters import Rates, link, made_cluster
from tests.support.small_models import MODELS, graph_of, plans

GRAPHS = {name: graph_of(name) for name in MODELS}
TWO_NODES = made_cluster(2, 2)
UNEVEN = made_cluster(3, 2, node_workers=(1, 3))
BOTH = pytest.mark.parametrize("cluster", [TWO_NODES, UNEVEN], ids=["even", "uneven"])


def edges(graph: Graph) -> list[tuple[Op, Op, int]]:
    return [
        (graph[producer], op, i) for op in graph for i, producer in enumerate(op.inputs) if producer != INPUT
    ]


def counted(exchange: Exchange, cluster: Cluster) -> dict[str, list[int]]:
    """Count what `communication_volume` computes, transfer by transfer."""
    names = (
        "inside.out",
        "inside.into",
        "between.out",
        "between.into",
        "own",
        "scattered.out",
        "scattered.into",
    )
    counts = {name: [0] * cluster.workers for name in names}
    for t in exchange.transfers:
        if t.source == t.target:
            counts["own"][t.source] += t.box.volume
            continue
        level = "inside" if cluster.node_of(t.source) == cluster.node_of(t.target) else "between"
        counts[f"{level}.out"][t.source] += t.box.volume
        counts[f"{level}.into"][t.target] += t.box.volume
        counts["scattered.out"][t.source] += t.box.volume * (
            t.box.shape[1:] != exchange.holds[t.source].shape[1:]
        )
        counts["scattered.into"][t.target] += t.box.volume * (
            t.box.shape[1:] != exchange.needs[t.target].shape[1:]
        )
    return counts


def computed(volume: Volume, cluster: Cluster) -> dict[str, list[int]]:
    there = by_node(cluster.workers, cluster).reshape(-1) >= 0
    sides = {"inside": volume.inside, "between": volume.between, "scattered": volume.scattered}
    counts = {f"{name}.{way}": getattr(side, way) for name, side in sides.items() for way in ("out", "into")}
    return {
        name: count.reshape(-1)[there].astype(int).tolist()
        for name, count in {**counts, "own": volume.own}.items()
    }


@BOTH
@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_loads_are_those_of_all_transfers(name: str, cluster: Cluster, data: st.DataObject) -> None:
    graph = GRAPHS[name]
    plan, batch = data.draw(plans(graph))
    plan = dataclasses.replace(plan, scheme="a", update="step")
    program, samples = lower(graph, plan, batch), batch // plan.micro_batches
    for exchange in program.exchanges.values():
        consumer = graph[exchange.consumer]
        which = consumer.inputs.index(exchange.value)
        partitions = [
            Partition(graph[name], Grids.of([plan[name]], cluster.workers), samples, of)
            for name, of in ((exchange.value, None), (consumer.name, which))
        ]
        zero, everyone = np.zeros(1, dtype=int), by_node(cluster.workers, cluster)
        volume = ExchangeVolume(*partitions, cluster).between(zero, zero, everyone)
        assert computed(volume, cluster) == counted(exchange, cluster)
        assert exchange.moved == tuple(
            {worker: int(elements[worker]) for worker in boxes}
            for elements, boxes in (
                (volume.moving.out[0][everyone >= 0], exchange.holds),
                (volume.moving.into[0][everyone >= 0], exchange.needs),
            )
        )


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_parts_of_a_kind_have_the_sizes_of_every_part(name: str, data: st.DataObject) -> None:
    graph = GRAPHS[name]
    plan, batch = data.draw(plans(graph))
    for op in graph:
        kinds = PartSizes(op).kinds(plan[op.name].cuts, plan[op.name].samples_by_index(batch))
        for position, worker in enumerate(plan[op.name].on):
            part, kind = plan[op.name].part(op, worker, (0, batch)), kinds.parts[kinds.of[position]]
            assert part.box.shape == kind.box.shape
            assert [box.shape for box in op.needs(part)] == [box.shape for box in op.needs(kind)]
            assert op.multiply_adds(part) == op.multiply_adds(kind)
            assert op.kept_bytes(part, 4) == op.kept_bytes(kind, 4)


def sync_counted(graph: Graph, plan: Plan, op: Op, cluster: Cluster) -> float:
    """Return seconds of summing an op's gradients, over all pairs of workers; tensors are large."""
    seconds, layout = 0.0, plan[op.name]
    for name in op.parameters:
        boxes = {
            w: box for w in layout.on if (box := op.parameter_boxes(layout.part(op, w, (0, 4))).get(name))
        }
        out = {True: [0] * cluster.workers, False: [0] * cluster.workers}
        for worker, box in boxes.items():
            group = by_host([w for w, other in boxes.items() if other == box], cluster.hosts)
            near = next(len(host) for host in group if worker in host)
            out[True][worker] = ceil((near - 1) * box.volume / near)
            out[False][worker] = ceil((len(group) - 1) * box.volume / (len(group) * near))
        if cluster.between is None:
            raise AssertionError("two nodes, two links")
        seconds += cluster.inside.seconds(4 * max(out[True])) + cluster.between.seconds(4 * max(out[False]))
    return seconds


@BOTH
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_sync_is_in_levels(cluster: Cluster, data: st.DataObject) -> None:
    """Without latency, the cost of a small tensor is that of its bytes."""
    graph = GRAPHS["tower"]
    plan, batch = data.draw(plans(graph))
    cost_model = CostModel(graph, batch, cluster, "fp32")
    for op in graph:
        sync = cost_model.sync(op, plan[op.name])
        assert sync.sum_s == sync.gather_s == pytest.approx(sync_counted(graph, plan, op, cluster))


def test_workers_compute_at_their_speeds() -> None:
    """Speeds of 1 and ½: times of the slow worker's parts are doubled, whatever it computes."""
    graph, halves = GRAPHS["tower"], made_cluster(compute=Rates(1e-6, 1e-7, 1e-8, 1e-8), speeds=(1.0, 0.5))
    even = dataclasses.replace(halves, speeds=())
    slow, fast = CostModel(graph, 6, halves, "fp32"), CostModel(graph, 6, even, "fp32")
    op, layout = graph["conv2"], Layout(on=(0, 1), n=(2, 1))
    assert fast.part_seconds(op, layout, (4, 2)) == pytest.approx(
        slow.part_seconds(op, layout, (4, 2)) * [[1.0], [0.5]]
    )
    assert slow.compute(op, layout, 6) == fast.compute(op, layout, 6)
    assert slow.compute(op, Layout(on=(0, 1), n=2), 6) == pytest.approx(
        [2 * s for s in fast.compute(op, Layout(on=(0, 1), n=2), 6)]
    )
    for one in (Layout(on=(1,)), Layout(on=(0, 1), n=2)):
        assert slow.sync(op, one).update_s == pytest.approx(2 * fast.sync(op, one).update_s)
        assert slow.accumulate(op, one) == pytest.approx(2 * fast.accumulate(op, one))
    alone = Layout(on=(0,))
    assert slow.sync(op, alone) == fast.sync(op, alone)
    shares = Layout(on=(0, 1), c=(3, 1))
    assert slow.accumulate(op, shares) == fast.accumulate(op, shares)
    assert slow.sync(op, shares).update_s == fast.sync(op, shares).update_s
    to_slow = graph["conv2"], shares, graph["relu2"], Layout(on=(1,)), 0, 6
    assert slow.exchange(*to_slow)[0] > fast.exchange(*to_slow)[0]


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=3), k=st.integers(1, 3))
def test_the_cost_model_counts_what_the_levels_move(counts: list[int], k: int) -> None:
    """`k` boxes of 5040 elements, dealt to the workers of hosts of any sizes."""
    workers = sum(counts) // k * k
    if workers == 0:
        return
    cluster = made_cluster(
        max(counts), len(counts), node_workers=tuple(counts), between=link(), inside=link()
    )
    layout = Layout(on=tuple(range(workers)), n=workers // k, c=k)
    elements = np.full((1, 1, cluster.workers), 5040)
    everyone = np.arange(cluster.workers)[None]
    holders = Holders.of(Grids.of([layout], cluster.workers), everyone, cluster)
    volume = sync_volume(holders, elements)
    for box in range(k):
        group = [worker for worker in range(workers) if worker % k == box]
        levels = Levels(5040, by_host(group, cluster.hosts))
        for worker in group:
            start, stop = levels.shard(worker)
            assert volume.shard[0, 0, worker] == stop - start
            assert volume.between.out[0, 0, worker] == levels.between(worker)
            moved = volume.within.out[0, 0, worker] + volume.between.out[0, 0, worker]
            assert levels.sums(worker) == (moved, volume.added[0, 0, worker]) == (moved, moved)


def test_the_level_between_nodes_has_the_bytes_of_one_worker_per_node() -> None:
    """Of 4 workers on 2 nodes each sends half inside, then a quarter to the other node, not a half."""
    graph = GRAPHS["tower"]
    cluster = made_cluster(2, 2, between=link(1e5, shared=True), shared_memory=True)
    sync = CostModel(graph, 4, cluster, "fp32").sync(graph["conv2"], Layout(on=(0, 1, 2, 3), n=4))
    inside, between = (10 * 7 * 9 // 2 + 5) * 4 / 1e6, 2 * (-(-10 * 7 * 9 // 4) + 3) * 4 / 1e5
    assert sync.sum_s == pytest.approx(inside + between)
    assert sync.gather_s == pytest.approx(between), "the weights of a node are common memory"


def test_a_small_tensor_pays_its_part_of_a_full_bucket() -> None:
    graph = GRAPHS["tower"]
    fast = made_cluster(inside=link(1e9, latency_s=1.0))
    sync = CostModel(graph, 4, fast, "fp32").sync(graph["conv2"], Layout(on=(0, 1), n=2))
    weight, bias = 10 * 7 * 9, 10
    assert sync.sum_s == pytest.approx((weight + bias) * 4 / BUCKET_BYTES * (1.0 + BUCKET_BYTES / 2 / 1e9))
    assert sync.update_s == pytest.approx((weight + bias) / 2 * 1e-7)


def test_weights_in_shared_memory_are_announced_not_sent() -> None:
    graph, cluster = GRAPHS["tower"], made_cluster(2, 2, inside=link(latency_s=1.0), shared_memory=True)
    cost_model, numbers = CostModel(graph, 4, cluster, "fp32"), 10 * 7 * 9 + 10
    near = cost_model.sync(graph["conv2"], Layout(on=(0, 1), n=2))
    assert near.gather_s == pytest.approx(numbers * 4 / BUCKET_BYTES) and near.sum_s > near.gather_s
    far = cost_model.sync(graph["conv2"], Layout(on=(0, 2), n=2))
    assert far.gather_s == far.sum_s
    written = dataclasses.replace(cluster, compute=Roofline({"fp32": 1e12}, {}, 1e11, 0.0))
    assert read_cluster(write_cluster(written)).shared_memory


def test_collectives_are_rings_and_one_message_beside_backward() -> None:
    """Of 4 workers on 2 nodes each sends 3/4 of a tensor, half of it to the other node."""
    graph, rates = GRAPHS["tower"], Rates(per_copy_s=1e-8, per_add_s=1e-8)
    cluster = made_cluster(
        2, 2, inside=link(1e9), between=link(1e5, 1e-3, shared=True), compute=rates, collectives=True
    )
    sync = CostModel(graph, 4, cluster, "fp32").sync(graph["conv2"], Layout(on=(0, 1, 2, 3), n=4))
    weight, bias = 10 * 7 * 9, 10
    ring = (weight + bias) * 4 * (3 / 4 / 1e5 + 1e-3 / COLLECTIVE_BYTES)
    shard = -(-weight // 4) + 3
    assert sync.sum_s == pytest.approx(2 * ring + shard * 1e-7)
    assert sync.update_s == pytest.approx((weight + bias) * 1e-8) and sync.gather_s == 0
    lone = CostModel(graph, 4, cluster, "fp32").sync(graph["fc3"], Layout(on=(0, 1), c=2))
    assert (lone.sum_s, lone.gather_s) == (0.0, 0.0)
    assert lone.update_s == pytest.approx((6 * 90 + 6) * 1e-7)


@pytest.mark.parametrize("collectives", [False, True])
def test_bf16_gathers_half_the_bytes_of_weights_that_are_read_rounded(collectives: bool) -> None:
    graph, layout = GRAPHS["residual"], Layout(on=(0, 1), n=2)
    cluster = made_cluster(collectives=collectives, compute=Rates(per_update_s=0.0))
    costs = {precision: CostModel(graph, 4, cluster, precision) for precision in ("fp32", "bf16")}
    for name, saved in (("conv1", 1 / 2), ("fc", 1 / 2), ("bn1", 0.0)):
        fp32, bf16 = (cost.sync(graph[name], layout) for cost in costs.values())
        gather_s = fp32.sum_s / 2 if collectives else fp32.gather_s
        assert gather_s > 0
        if collectives:
            assert bf16.sum_s == pytest.approx(fp32.sum_s - saved * gather_s) and bf16.gather_s == 0
        else:
            assert bf16.gather_s == pytest.approx((1 - saved) * gather_s) and bf16.sum_s == fp32.sum_s


def test_workers_keep_only_a_shard_of_rounded_weights() -> None:
    """And the search counts what the program needs."""
    graph = GRAPHS["tower"]
    cost = CostModel(graph, 4, made_cluster(), "bf16")
    parameters, outputs = 11 * 90 + 11, 4 * 11
    alone, halves = Layout(on=(0,)), Layout(on=(0, 1), n=2)
    assert cost.memory(graph["fc3"], alone, 4) == parameters * (4 + 2 + 3 * 4) + outputs * 2
    assert cost.memory(graph["fc3"], halves, 4) == pytest.approx(
        parameters * (4 // 2 + 2 + 3 * 4) + outputs // 2 * 2, abs=24
    )


@pytest.mark.parametrize(("sizes", "group"), [((2, 2), (0, 1, 2, 3)), ((1, 3), (0, 1, 3)), ((4,), (0, 2, 3))])
def test_rings_send_the_bytes_of_the_program(sizes: tuple[int, ...], group: tuple[int, ...]) -> None:
    """Bytes are those of a bucket that is summed by a collective, without padding."""
    cluster = made_cluster(max(sizes), len(sizes), node_workers=sizes, between=link(), collectives=True)
    layout, everyone = Layout(on=group, n=len(group)), by_node(cluster.workers, cluster)
    grids = Grids.of([layout], cluster.workers)
    holders, elements = Holders.of(grids, everyone, cluster), np.where(everyone >= 0, 5040, 0)[None]
    volume = ring_volume(holders, sharing_of(grids, everyone, cluster), elements)
    for worker in group:
        place = np.argwhere(everyone == worker)[0]
        sent = sum(float(side.out[0, place[0], place[1]]) for side in (volume.within, volume.between))
        assert sent == pytest.approx(5040 * (len(group) - 1) / len(group))
    hosts = [cluster.node_of(worker) for worker in group]
    if len(set(hosts)) > 1:  # the ring leaves every node once
        leaving = volume.between.out[0].sum(axis=-1)
        assert leaving == pytest.approx([5040 * (len(group) - 1) / len(group)] * len(sizes))


def test_one_holder_has_nothing_to_sum() -> None:
    graph = GRAPHS["tower"]
    sync = CostModel(graph, 4, made_cluster(), "fp32").sync(graph["fc3"], Layout(on=(0, 1), c=2))
    assert (sync.sum_s, sync.gather_s) == (0.0, 0.0)
    assert sync.update_s == pytest.approx((6 * 90 + 6) * 1e-7)


def both_ways(cluster: Cluster, workers: int) -> tuple[float, float]:
    """Return the exchange before fc3 [4 samples, 90 features], from a split in n to one in c."""
    graph, on = GRAPHS["tower"], tuple(range(workers))
    return CostModel(graph, 4, cluster, "fp32").exchange(
        graph["drop3"], Layout(on=on, n=workers), graph["fc3"], Layout(on=on, c=workers), 0, 4
    )


def test_links_are_shared_or_not() -> None:
    sent = 2 * 90 * 4  # bytes: half of the batch to the other worker
    assert both_ways(made_cluster(), 2) == pytest.approx((sent / 1e6, sent / 1e6))
    assert both_ways(made_cluster(inside=link(shared=True)), 2) == pytest.approx((2 * sent / 1e6,) * 2)
    latency = made_cluster(inside=link(latency_s=1.0))
    assert both_ways(latency, 2) == pytest.approx((1.0 + sent / 1e6,) * 2)


def test_the_slowest_level_decides() -> None:
    # Bytes: one of four samples; every worker sends it to three others, two of them on the other node.
    piece = 90 * 4
    assert both_ways(made_cluster(2, 2), 4)[0] == pytest.approx(2 * piece / 1e5)
    assert both_ways(made_cluster(2, 2, between=link(1e5, shared=True)), 4)[0] == pytest.approx(
        4 * piece / 1e5
    )
    assert both_ways(made_cluster(2, 2, between=link(1e9)), 4)[0] == pytest.approx(piece / 1e6)


def test_pieces_are_copied_or_added() -> None:
    """Forward: the samples arrive in place, and each worker copies its own half to them. Backward: both pieces, its
    own and the other's, are all of its half: it copies one and adds the other."""
    copying = made_cluster(inside=link(1e30), compute=Rates(per_copy_s=1.0))
    assert both_ways(copying, 2) == pytest.approx((180.0, 180.0))
    adding = made_cluster(inside=link(1e30), compute=Rates(per_add_s=1.0))
    assert both_ways(adding, 2) == pytest.approx((0.0, 180.0))


def test_pieces_that_are_not_contiguous_are_packed_unless_memory_is_shared() -> None:
    """From halves of the features to halves of the samples: rows lie together and are sent as they are; a worker puts
    the other's columns into their place, and its own: 90 elements each. Backward it packs columns."""
    graph = GRAPHS["tower"]
    for shared, packed in ((False, 90.0), (True, 0.0)):
        cluster = made_cluster(inside=link(1e30), compute=Rates(per_copy_s=1.0), shared_memory=shared)
        cost_model = CostModel(graph, 4, cluster, "fp32")
        layouts = Layout(on=(0, 1), c=2), Layout(on=(0, 1), n=2)
        found = cost_model.exchange(graph["flatten"], layouts[0], graph["drop3"], layouts[1], 0, 4)
        assert found == pytest.approx((180.0, packed))


def test_the_cost_is_that_of_the_slowest_part() -> None:
    graph = GRAPHS["tower"]
    cost_model = CostModel(graph, 5, made_cluster(), "fp32")
    layout = Layout(on=(0, 1), n=2)  # 2 and 3 samples of 7 maps of 9×9
    assert cost_model.compute(graph["relu1"], layout, 5) == pytest.approx((3 * 567e-6, 2 * 3 * 567e-6))
    # No input gradient.
    assert cost_model.compute(graph["conv1"], layout, 5) == pytest.approx((3 * 567e-6, 3 * 567e-6))
    seconds = cost_model.part_seconds(graph["relu1"], layout, layout.samples_by_index(5))
    assert seconds[:, 0] == pytest.approx(np.array([2, 3]) * 567e-6)


def test_ops_before_any_parameters_have_no_backward_cost() -> None:
    graph = GRAPHS["weightless"]
    cost_model = CostModel(graph, 4, made_cluster(), "fp32")
    assert cost_model.compute(graph["pool1"], Layout(on=(0,)), 4)[1] == 0.0
    assert cost_model.compute(graph["conv2"], Layout(on=(0,)), 4)[1] > 0.0


def test_memory_counts_parameters_and_activations() -> None:
    graph = GRAPHS["tower"]
    cost_model = CostModel(graph, 4, made_cluster(), "fp32")
    parameters, outputs = 11 * 90 + 11, 4 * 11
    assert cost_model.memory(graph["fc3"], Layout(on=(0,)), 4) == parameters * 4 * 4 + outputs * 4
    halves = Layout(on=(0, 1), n=2)  # the shard's momentum and as much received: no less than on one worker
    assert cost_model.memory(graph["fc3"], halves, 4) == pytest.approx(
        parameters * 4 * 4 + outputs // 2 * 4, abs=16
    )
    assert cost_model.memory(graph["fc3"], Layout(on=(0, 1), c=2), 4) == (6 * 90 + 6) * 4 * 4 + 4 * 6 * 4


def test_an_unknown_precision_is_refused() -> None:
    class Single(Rates):
        def precisions(self) -> tuple[str, ...]:
            return ("fp32",)

    with pytest.raises(ValueError, match="trainer.precision=bf16 has no times in cluster made; it has fp32"):
        CostModel(GRAPHS["tower"], 4, made_cluster(compute=Single()), "bf16")


@pytest.mark.parametrize(
    "make",
    [
        lambda graph: make_plan(graph, 2, {"conv1": Layout(on=(0, 1), n=2)}),
        lambda graph: make_plan(graph, 2, {"conv1": Layout(on=(0, 1), c=2)}),
    ],
    ids=["n", "c"],
)
def test_what_stays_where_it_is_costs_nothing(make: Callable[[Graph], Plan]) -> None:
    graph = GRAPHS["tower"]
    plan, cost_model = make(graph), CostModel(graph, 4, made_cluster(), "fp32")
    assert cost_model.exchange(graph["conv1"], plan["conv1"], graph["relu1"], plan["relu1"], 0, 4) == (
        0.0,
        0.0,
    )
