"""The timeline: tiny plans by hand, and properties of any plan."""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from parallel.cluster import Cluster
from parallel.graph import Graph, trace
from parallel.graph.ops import Op
from parallel.plans import Layout, Plan, make_plan
from parallel.program.lowering import lower
from parallel.simulator.clocks import Clocks, WorkerGroup
from parallel.simulator.cost_model import CostModel, Sync, Traffic
from parallel.simulator.delta import DeltaSimulation, full_step_s
from parallel.simulator.simulate import lower_on, simulate
from parallel.simulator.step_spans import step_spans
from parallel.simulator.timeline import Event, Timeline
from scripts.random_moves import random_moves
from tests.support.made_clusters import Rates, link, made_cluster
from tests.support.small_models import MODELS, graph_of, plans

GRAPHS = {name: graph_of(name) for name in MODELS}
FOUR = made_cluster(
    2, 2, compute=Rates(per_add_s=1e-8, per_copy_s=1e-8), overlap_slowdown=0.3, step_overhead_s=1e-3
)
UNEVEN = dataclasses.replace(
    FOUR,
    workers_per_node=3,
    node_workers=(1, 3),
    speeds=(1.0, 0.5, 2.0, 0.7),
    core_contention=(1.0, 1.2, 1.5),
)
CLUSTERS = pytest.mark.parametrize("cluster", [FOUR, UNEVEN], ids=["even", "uneven"])


def examples(few: int, many: int) -> pytest.MarkDecorator:
    """Draw few examples in every run of the tests, and many among the slow tests."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])


def two_layers() -> Graph:
    """Return a graph of fc1, fc2 and the loss, with 8 inputs, 4 features and 2 classes."""
    return trace(
        nn.Sequential(OrderedDict(fc1=nn.Linear(8, 4, bias=False), fc2=nn.Linear(4, 2, bias=False))), (8,)
    )


TWO = two_layers()
HAND = Rates(of_op={"fc1": 2.0, "fc2": 1.0, "loss": 0.0}, per_update_s=0.25)
"""Seconds per sample. fc1's backward computes no gradient of the images and takes 2 s; fc2's takes
2 · 1 s."""


def timeline(plan: Plan, batch_size: int, cluster: Cluster) -> Timeline:
    graph = TWO if "fc1" in plan.layouts else GRAPHS["tower"]
    return simulate(lower(graph, plan, batch_size), cluster, "fp32")


def shown(line: Timeline) -> list[tuple[str, float, float]]:
    """Return the events that take time."""
    return [
        (str(event), round(event.start_s, 9), round(event.end_s, 9))
        for event in line.events
        if event.end_s > event.start_s
    ]


def test_one_worker_by_hand() -> None:
    line = timeline(
        make_plan(TWO, 1, {"fc1": Layout(on=(0,))}), 1, made_cluster(compute=HAND, step_overhead_s=0.5)
    )
    # 8 and 32 weights at 0.25 s.
    assert shown(line) == [
        ("forward fc1", 0, 2),
        ("forward fc2", 2, 3),
        ("backward fc2", 3, 5),
        ("backward fc1", 5, 7),
        ("update fc2", 7, 9),
        ("update fc1", 9, 17),
    ]
    assert line.step_s == 17.5
    assert line.utilisation.tolist() == [1.0]


def halves(seconds: float) -> Cluster:
    """Return two workers that take `seconds` to send half of fc2's weights, 16 bytes."""
    return made_cluster(compute=HAND, inside=link(16 / seconds))


def test_two_workers_data_parallel_by_hand() -> None:
    """Each has one sample and sums halves: 1 s for fc2's weights, 4 s for fc1's, partly hidden by
    backward."""
    line = timeline(make_plan(TWO, 2, {"fc1": Layout(on=(0, 1), n=2)}), 2, halves(1.0))
    # fc2: 8 weights, 32 bytes, half of them sent; fc1: 32 weights, 128 bytes.
    assert shown(line) == [
        ("forward fc1", 0, 2),
        ("forward fc2", 2, 3),
        ("backward fc2", 3, 5),
        ("sum fc2", 5, 6),
        ("backward fc1", 5, 7),
        ("sum fc1", 7, 11),
        ("update fc2", 7, 8),
        ("gather fc2", 11, 12),
        ("update fc1", 11, 15),
        ("gather fc1", 15, 19),
    ]
    assert line.split.compute_s.tolist() == [12, 12]  # 7 and the updates, 1 + 4
    assert line.split.exposed_s.tolist() == [7, 7]  # from 8 to 11 and from 15 to 19
    assert line.split.idle_s.tolist() == [0, 0]


def test_hidden_messages_slow_computing_down() -> None:
    plan, cluster = make_plan(TWO, 2, {"fc1": Layout(on=(0, 1), n=2)}), halves(1.0)
    line = timeline(plan, 2, dataclasses.replace(cluster, overlap_slowdown=0.5))
    assert ("backward fc1", 5.5, 7.5) in shown(line)  # half of sum fc2's second was taken
    assert line.step_s == pytest.approx(19.5)


def test_gathers_slow_only_updates_down() -> None:
    clocks, both = Clocks(2, 0.5), WorkerGroup((0, 1))
    assert clocks.message(both, 1.0, 10.0, beside_s=2.0) == 11.0
    assert clocks.compute == [1.0, 1.0]
    assert clocks.message(both, 0.0, 10.0) == 21.0
    assert clocks.compute == [6.0, 6.0]


def test_two_stages_by_hand() -> None:
    """fc1 on worker 0, fc2 and the loss on worker 1; 4 features of one sample are 16 bytes, 1 s."""
    plan = make_plan(TWO, 2, {"fc1": Layout(on=(0,)), "fc2": Layout(on=(1,))})
    line = timeline(plan, 1, halves(1.0))
    assert shown(line) == [
        ("forward fc1", 0, 2),
        ("exchange fc1>fc2", 2, 3),
        ("forward fc2", 3, 4),
        ("backward fc2", 4, 6),
        ("exchange back fc1>fc2", 6, 7),
        ("backward fc1", 7, 9),
        ("update fc2", 6, 8),
        ("update fc1", 9, 17),
    ]
    assert line.step_s == 17
    split = line.split
    assert split.compute_s.tolist() == [12, 5]
    assert split.exposed_s.tolist() == [2, 1]  # worker 1 updates while it sends the gradient back
    assert split.idle_s.tolist() == [3, 11]


def test_the_slowest_part_decides_and_the_other_idles() -> None:
    line = timeline(make_plan(TWO, 2, {"fc1": Layout(on=(0, 1), n=2)}), 3, made_cluster(compute=HAND))
    assert shown(line)[0] == ("forward fc1", 0, 4)  # 1 and 2 samples
    assert line.split.idle_s[0] == pytest.approx(2 + 1 + 2 + 2)  # a sample less in each task
    assert line.split.idle_s[1] == 0


def test_workers_that_finish_leave_their_cores_to_the_others() -> None:
    """Alone the parts take 1, 2 and 4 s; two at once take 1.5 times as long, three twice as
    long."""
    cost_model = CostModel(TWO, 4, made_cluster(3, 2, core_contention=(1.0, 1.5, 2.0)), "fp32")
    seconds = np.array([4.0, 1.0, 2.0, 4.0])
    # 1 s of all three takes 2, the next second of two takes 1.5, the last two of one 2; the fourth
    # is in another node.
    assert cost_model.processor_sharing(seconds, Layout(on=(0, 1, 2, 3), n=4)).tolist() == [
        5.5,
        2.0,
        3.5,
        4.0,
    ]
    assert cost_model.processor_sharing(seconds[:1], Layout(on=(0,)), computing=2).tolist() == [6.0]
    assert cost_model.processor_sharing(seconds[:1], Layout(on=(0,)), computing=1.5).tolist() == [5.0]
    # With two computing per node, worker 0 shares with another op; workers 3 and 4 only with each
    # other.
    assert cost_model.processor_sharing(seconds[:3], Layout(on=(0, 3, 4), n=3), computing=2).tolist() == [
        6.0,
        1.5,
        2.5,
    ]


def test_workers_of_a_pipeline_contend_while_they_compute_at_once() -> None:
    layers = OrderedDict((f"fc{i}", nn.Linear(4, 4, bias=False)) for i in range(2))
    graph = trace(nn.Sequential(layers), (4,))
    plan = make_plan(graph, 2, {name: Layout(on=(i,)) for i, name in enumerate(layers)}, micro_batches=2)
    rates = Rates(of_op={**dict.fromkeys(layers, 1.0), "loss": 0.0}, per_update_s=0.0)
    free = made_cluster(2, compute=rates, inside=link(1e30))
    line = simulate(lower(graph, plan, 2), free, "fp32")
    # Stage 0 computes no input gradient: 2 · (1 + 1) s of worker 0, 2 · (1 + 2) of worker 1, 2 s at
    # once.
    assert line.step_s == pytest.approx(8.0)
    assert line.mean_computing == pytest.approx([1 + 2 / 4, 1 + 2 / 6])
    shared = simulate(lower(graph, plan, 2), dataclasses.replace(free, core_contention=(1.0, 2.0)), "fp32")
    assert 8.0 < shared.step_s < 2 * 8.0
    one = made_cluster(2, compute=rates, inside=link(1e30), core_contention=(1.0, 1.0))
    assert simulate(lower(graph, plan, 2), one, "fp32").step_s == line.step_s


def test_micro_batches_add_their_gradients_up() -> None:
    """Two micro-batches of fc2, 8 weights, and fc1, 32: the second backward of each takes 1 s per
    element longer."""
    plan = make_plan(TWO, 1, {"fc1": Layout(on=(0,))}, micro_batches=2)
    cluster = made_cluster(1, compute=HAND)
    dearer = dataclasses.replace(cluster, compute=dataclasses.replace(HAND, per_add_s=1.0))
    assert timeline(plan, 2, dearer).step_s - timeline(plan, 2, cluster).step_s == pytest.approx(8 + 32)


@pytest.mark.parametrize(("stages", "batches"), [(2, 4), (4, 4), (3, 8), (4, 12)])
@pytest.mark.parametrize("pipeline", ["1f1b", "fill_drain"])
def test_a_pipeline_of_equal_stages_has_the_bubble_of_the_papers(
    stages: int, batches: int, pipeline: str
) -> None:
    """Bubble / time = (S − 1) / (m + S − 1): Huang et al. 2019, section 2.1; Narayanan et al. 2021,
    section 2.2."""
    layers = OrderedDict((f"fc{i}", nn.Linear(4, 4, bias=False)) for i in range(stages))
    graph = trace(nn.Sequential(layers), (4,))
    plan = make_plan(
        graph,
        stages,
        {name: Layout(on=(i,)) for i, name in enumerate(layers)},
        micro_batches=batches,
        pipeline=pipeline,
    )

    class Equal(Rates):
        def backward_s(self, op: Op, part: object, precision: str, input_gradient: bool) -> float:
            return 0.0 if op.name == "loss" else 2.0

    rates = Equal(of_op={**dict.fromkeys(layers, 1.0), "loss": 0.0}, per_update_s=0.0)
    cluster = made_cluster(stages, compute=rates, inside=link(1e30))
    line = simulate(lower(graph, plan, batches), cluster, "fp32")
    bubble = (stages - 1) / (batches + stages - 1)
    assert line.step_s == pytest.approx(3 * (batches + stages - 1))
    assert line.utilisation == pytest.approx(1 - bubble)


def two_way_pipeline(nodes: int) -> Timeline:
    """Return two stages of one worker each and four micro-batches of a sample, whose exchanges take 2 s."""
    plan = make_plan(
        TWO, 2, {"fc1": Layout(on=(0,)), "fc2": Layout(on=(1,))}, micro_batches=4, pipeline="1f1b"
    )
    compute = Rates(of_op={"fc1": 1.0, "fc2": 1.0, "loss": 0.0}, per_update_s=0.0)
    return timeline(
        plan, 4, made_cluster(2 // nodes, nodes, compute=compute, inside=link(8), between=link(8))
    )


def test_stages_on_different_nodes_send_in_both_directions_at_once() -> None:
    line = two_way_pipeline(nodes=2)
    # 16 bytes in 2 s. While worker 1 returns the gradient of micro-batch 0, that of 2 is on its way to it.
    assert [row for row in shown(line) if "exchange" in row[0]] == [
        ("exchange fc1>fc2:0", 1, 3),
        ("exchange fc1>fc2:1", 3, 5),
        ("exchange back fc1>fc2:0", 6, 8),
        ("exchange back fc1>fc2:1", 9, 11),
        ("exchange fc1>fc2:2", 10, 12),
        ("exchange back fc1>fc2:2", 15, 17),
        ("exchange fc1>fc2:3", 13, 15),
        ("exchange back fc1>fc2:3", 18, 20),
    ]


def test_messages_inside_a_node_follow_each_other() -> None:
    line = two_way_pipeline(nodes=1)
    for worker in range(2):
        own = [e for e in line.events if worker in e.workers and e.stream == "network"]
        assert all(before.end_s <= after.start_s for before, after in itertools.pairwise(own))
    assert line.end_s > two_way_pipeline(nodes=2).end_s


def test_messages_that_pass_at_the_same_time_are_exposed_once() -> None:
    line = two_way_pipeline(nodes=2)
    split = line.split
    assert split.compute_s + split.exposed_s + split.idle_s == pytest.approx(np.full(2, line.step_s))
    shown_spans = [span for span in step_spans(line) if not span.hidden]
    for worker in range(2):
        own = [span for span in shown_spans if span.worker == worker]
        assert all(a.end_s <= b.start_s + 1e-9 for a, b in itertools.pairwise(own))
        waited = sum(span.end_s - span.start_s for span in own if span.kind == "communication")
        assert waited == pytest.approx(split.exposed_s[worker])


@pytest.mark.parametrize(("in_memory", "nodes", "copied"), [(True, 1, 0.5), (False, 1, 0.0), (True, 2, 0.0)])
def test_workers_copy_what_passes_through_shared_memory_alone(
    in_memory: bool, nodes: int, copied: float
) -> None:
    plan = make_plan(TWO, 2, {"fc1": Layout(on=(0,)), "fc2": Layout(on=(1,))})
    network = {"inside": link(16), "between": link(16)}
    cluster = made_cluster(
        2 // nodes, nodes, compute=HAND, overlap_slowdown=0.5, shared_memory=in_memory, **network
    )
    line = timeline(plan, 1, cluster)
    exposed = sum(e.end_s - e.start_s for e in line.events if e.kind.startswith("exchange"))
    assert exposed > 0 and line.split.exposed_s[0] == pytest.approx(exposed * (1 - copied))


def test_loading_is_reported_separately() -> None:
    plan = make_plan(TWO, 2, {"fc1": Layout(on=(0, 1), n=2)})
    for numbers, loaded in (
        ({}, 19 + 3.0),
        ({"data_shared": True}, 19 + 6.0),
        ({"data_overlaps": True}, 19.0),
    ):
        cluster = dataclasses.replace(halves(1.0), data_s_per_image=3.0, **numbers)
        line = timeline(plan, 2, cluster)
        assert (line.step_s, line.loaded_step_s, line.data_wait_s) == pytest.approx((19, loaded, loaded - 19))
        assert line.images_per_second == pytest.approx(2 / loaded)
    slow = dataclasses.replace(halves(1.0), data_s_per_image=30.0, data_overlaps=True)
    assert timeline(plan, 2, slow).data_wait_s == pytest.approx(11)


def test_too_few_workers_are_refused() -> None:
    plan = make_plan(TWO, 3, {"fc1": Layout(on=(0, 1, 2), n=3)})
    with pytest.raises(ValueError, match="workers=3 is more than the 2 of cluster made"):
        timeline(plan, 3, made_cluster())


def ways(event: Event, worker: int, line: Timeline) -> set[str]:
    """Return in which directions a message occupies a worker's link."""
    plan = line.program.plan
    if plan.micro_batches > 1 and event.kind.startswith("exchange"):
        producers, consumers = (plan[name].on for name in event.name.split(">"))
        if line.cluster.on_other_nodes(producers, consumers):
            return {"send" if (worker in producers) == (event.kind == "exchange") else "receive"}
    return {"send", "receive"}


@pytest.mark.parametrize("name", MODELS)
@examples(15, 40)
def test_time_is_computing_exposed_messages_and_idling(name: str, count: int) -> None:
    @settings(max_examples=count, deadline=None)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        plan, batch = data.draw(plans(GRAPHS[name]))
        line = simulate(lower(GRAPHS[name], plan, batch), UNEVEN, "fp32")
        split = line.split
        assert split.compute_s + split.exposed_s + split.idle_s == pytest.approx(
            np.full(plan.workers, line.step_s)
        )
        assert (split.exposed_s >= 0).all() and (split.idle_s >= 0).all()
        messages = np.zeros(plan.workers)
        for event in line.events:
            assert 0 <= event.start_s <= event.end_s <= line.end_s
            if event.stream == "network":
                messages[list(event.workers)] += event.end_s - event.start_s
        assert (split.exposed_s <= messages + 1e-12).all()
        for worker in range(plan.workers):
            of_worker = [e for e in line.events if worker in e.workers]
            sent = [e for e in of_worker if e.stream == "network" and "send" in ways(e, worker, line)]
            received = [e for e in of_worker if e.stream == "network" and "receive" in ways(e, worker, line)]
            for own in [e for e in of_worker if e.stream == "compute"], sent, received:
                assert all(before.end_s <= after.start_s for before, after in itertools.pairwise(own))
            assert all(nbytes >= 0 for _, nbytes in line.activations(worker))
            assert not line.activations(worker) or line.activations(worker)[-1][1] == 0

    check()


@CLUSTERS
@pytest.mark.parametrize("name", MODELS)
@examples(15, 40)
def test_the_recurrence_equals_the_simulation(name: str, cluster: Cluster, count: int) -> None:
    @settings(max_examples=count, deadline=None)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        graph = GRAPHS[name]
        plan, batch = data.draw(plans(graph))
        plan = dataclasses.replace(plan, micro_batches=1, scheme="a", update="step")
        cost_model = CostModel(graph, batch, cluster, "fp32")
        simulation = DeltaSimulation(cost_model, plan.workers, plan.layouts)
        assert simulation.step_s == full_step_s(plan, cost_model, memoised=False)

    check()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("workers", "cluster"), [(2, FOUR), (4, FOUR), (4, UNEVEN)])
@examples(15, 60)
def test_delta_simulation_equals_full_simulation_in_every_bit(
    name: str, workers: int, cluster: Cluster, count: int
) -> None:
    graph, batch = GRAPHS[name], 8
    cost_model = CostModel(graph, batch, cluster, "fp32")
    delta = DeltaSimulation(cost_model, workers, {graph.ops[0].name: Layout(on=(0,))})
    moves = random_moves(graph, workers, batch, seed=1)
    for i, (op, layout) in enumerate(itertools.islice(moves, count)):
        before, step_s = delta.step_s, delta.propose(op, layout)
        if i % 3:
            delta.accept()
            assert delta.step_s == step_s
        else:
            assert delta.step_s == before
        assert delta.step_s == full_step_s(delta.plan(), cost_model, memoised=i % 2 == 0)
        assert dict(make_plan(graph, workers, delta.decided).layouts) == delta.layouts


def test_programs_of_a_cluster_sum_as_its_runtime_does() -> None:
    graph = trace(nn.Sequential(OrderedDict(fc1=nn.Linear(8, 1 << 16), fc2=nn.Linear(1 << 16, 4))), (8,))
    plan = make_plan(graph, 4, {"fc1": Layout(on=(0, 1, 2, 3), n=4)})
    on_nodes = lower_on(FOUR, graph, plan, 8).buckets[0]
    assert on_nodes.hosts == ((0, 1), (2, 3)) and not on_nodes.collective
    assert lower_on(FOUR, graph, plan, 8, hosts=(0, 0, 0, 0)).buckets[0].hosts == ()
    by_collectives = lower_on(dataclasses.replace(FOUR, collectives=True), graph, plan, 8).buckets[0]
    assert by_collectives.collective and by_collectives.hosts == ()


def test_one_different_bit_makes_delta_and_full_simulation_differ() -> None:
    class Wrong(CostModel):
        def compute(self, op: Op, layout: Layout, samples: int) -> tuple[float, float]:
            forward_s, backward_s = super().compute(op, layout, samples)
            return forward_s, np.nextafter(backward_s, 1.0)  # used by the recurrence alone

    graph = GRAPHS["towers"]
    cost_model = Wrong(graph, 8, FOUR, "fp32")
    delta, different = DeltaSimulation(cost_model, 4, {graph.ops[0].name: Layout(on=(0, 1, 2, 3), n=4)}), 0
    for move in itertools.islice(random_moves(graph, 4, 8, seed=0), 40):
        step_s = delta.propose(*move)
        delta.accept()
        different += step_s != full_step_s(delta.plan(), cost_model, memoised=True)
    assert different > 0


def test_an_invalid_move_is_refused() -> None:
    delta = DeltaSimulation(CostModel(TWO, 4, made_cluster(), "fp32"), 2, {"fc1": Layout(on=(0, 1), n=2)})
    with pytest.raises(ValueError, match="ops.fc2.on=.*workers=2"):
        delta.propose("fc2", Layout(on=(2,)))
    with pytest.raises(ValueError, match="ops.fc1.h=2 splits a dim"):
        delta.propose("fc1", Layout(on=(0, 1), h=2))


class Dearer(CostModel):
    """A cost model with one increased cost."""

    raised: tuple[str, str] = ("", "")
    by: float = 0.0

    def part_seconds(self, op: Op, layout: Layout, rows: object) -> np.ndarray:
        extra = [self.by * (self.raised == (kind, op.name)) for kind in ("forward", "backward")]
        return super().part_seconds(op, layout, rows) + np.array(extra)  # type: ignore[arg-type]

    def traffic(self, producer: Op, layout: Layout, consumer: Op, *rest: object) -> Traffic:
        found = super().traffic(producer, layout, consumer, *rest)  # type: ignore[arg-type]
        extra = [
            self.by * (self.raised == (kind, consumer.name) and bool(found.workers))
            for kind in ("exchange", "exchange back")
        ]
        return Traffic(found.forward_s + extra[0], found.backward_s + extra[1], found.workers)

    def sync(self, op: Op, layout: Layout) -> Sync:
        found = super().sync(op, layout)
        extra = [self.by * (self.raised == (kind, op.name)) for kind in ("sum", "update", "gather")]
        return Sync(found.sum_s + extra[0], found.update_s + extra[1], found.gather_s + extra[2])


@pytest.mark.parametrize("name", MODELS)
@examples(20, 60)
def test_a_higher_cost_never_makes_the_step_shorter(name: str, count: int) -> None:
    @settings(max_examples=count, deadline=None)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        graph = GRAPHS[name]
        plan, batch = data.draw(plans(graph))
        program = lower(graph, plan, batch)
        cost_model = Dearer(graph, batch, FOUR, "fp32")
        before = simulate(program, FOUR, "fp32", cost_model).end_s
        kinds = ("forward", "backward", "exchange", "exchange back", "sum", "update", "gather")
        cost_model.raised = data.draw(st.sampled_from(kinds)), data.draw(st.sampled_from(graph.names))
        cost_model.by = data.draw(st.floats(1e-6, 1e-2))
        assert simulate(program, FOUR, "fp32", cost_model).end_s >= before - 1e-12

    check()


def test_groups_of_any_shape_move_the_clocks_alike() -> None:
    for workers in ((2,), (1, 2, 3), (3, 0), (0, 2)):
        clocks, group = Clocks(4, 0.5), WorkerGroup(workers)
        assert clocks.work(group, 1.0, 2.0) == 3.0
        assert clocks.message(group, 0.0, 4.0) == 4.0
        assert clocks.message(group, 1.0, 1.0) == 5.0
        assert clocks.compute == [5.5 if w in workers else 0.0 for w in range(4)]
        assert clocks.network == [5.0 if w in workers else 0.0 for w in range(4)]
        assert clocks.end == 5.5


def test_a_thousand_workers() -> None:
    graph = GRAPHS["tower"]
    cluster = made_cluster(8, 128)
    for degrees in ({"n": 1024}, {"n": 128, "h": 2, "w": 4}):
        plan = make_plan(
            graph,
            1024,
            {
                "conv1": Layout(on=tuple(range(1024)), **degrees),
                "conv2": Layout(on=tuple(range(1024)), n=1024),
            },
        )
        line = simulate(lower(graph, plan, 1024), cluster, "fp32")
        assert 0 < line.utilisation.min() <= line.utilisation.max() < 1
