"""Lowering: bytes that programs move, holders of parameters, and sources of inputs."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parallel.graph import INPUT, Graph, trace
from parallel.graph.box import Box, Span
from parallel.models import build_model
from parallel.models.alexnet import AlexNetConfig
from parallel.plans import Plan, read_plan
from parallel.program import Program
from parallel.program.bucket import ALIGNMENT
from parallel.program.lowering import BUCKET_BYTES, lower
from parallel.strategies import STRATEGIES, build_plan
from tests.support.options import model_options
from tests.support.small_models import MODELS, graph_of, plans

with torch.device("meta"):
    OWT = trace(build_model(AlexNetConfig(image_size=224), 1000, seed=0), (3, 224, 224))
CONV, FULLY_CONNECTED = 2_469_696, 58_631_144
GATHERED = 9216 + 4096 + 4096
GRAPHS = {name: graph_of(name) for name in MODELS}


def program_of(workers: int, batch: int, graph: Graph = OWT, *, name: str, **options: Any) -> Program:
    strategy = dataclasses.replace(STRATEGIES[name].options, **options)
    return lower(graph, build_plan(graph, workers, strategy), batch)


def edges(program: Program) -> list[str]:
    return sorted({exchange.name for exchange in program.exchanges.values()})


def mean_bytes(program: Program, itemsize: int = 4) -> float:
    workers = program.plan.workers
    return sum(program.bytes_sent(worker, itemsize) for worker in range(workers)) / workers


# Which exchanges there are.


def test_single_and_data_parallel_exchange_nothing() -> None:
    single = program_of(1, 8, name="single")
    assert [str(step) for step in single.steps[0]] == [
        "F0:0",
        "B0:0",
        *(f"U{b.index}" for b in single.buckets),
    ]
    assert single.bytes_sent(0, 4) == 0
    data_parallel = program_of(4, 8, name="data_parallel")
    assert not data_parallel.exchanges
    assert len(data_parallel.segments) == 1
    assert {len(bucket.workers) for bucket in data_parallel.buckets} == {4}


@pytest.mark.parametrize("scheme", ["a", "b", "c"])
def test_one_weird_trick_exchanges_before_every_linear_layer_and_the_loss(scheme: str) -> None:
    program = program_of(2, 8, name="one_weird_trick", scheme=scheme)
    assert edges(program) == ["drop6>fc6", "drop7>fc7", "fc8>loss", "relu7>fc8"]
    assert len(program.exchanges) == 4 * program.plan.micro_batches
    assert [segment.merged for segment in program.segments] == [scheme != "a", False, False, False, False]


def test_layers_exchange_between_stages_only() -> None:
    program = program_of(2, 8, name="model_parallel", micro_batches=4)
    (edge,) = edges(program)
    (consumer,) = (op for op in OWT if f"{op.inputs[0]}>{op.name}" == edge)
    assert program.plan[consumer.inputs[0]].on == (0,)
    assert program.plan[consumer.name].on == (1,)
    for exchange in program.exchanges.values():
        assert [(t.source, t.target, t.box) for t in exchange.transfers] == [
            (0, 1, Box.whole((2, *OWT[exchange.value].shape)).replace(0, exchange.holds[0].spans[0]))
        ]


def test_a_split_in_height_exchanges_halos() -> None:
    plan = read_plan("{workers: 2, ops: {conv1: {h: 2, on: [0, 1]}, flatten: {on: [0]}}}", GRAPHS["tower"])
    program = lower(GRAPHS["tower"], plan, 4)
    pool = next(e for e in program.exchanges.values() if e.consumer == "pool1")
    # Nine rows in parts of 4 and 5; the pool's rows 0:2 read rows 0:5, its rows 2:4 rows 4:9.
    assert [(t.source, t.target, t.box.spans[2]) for t in pool.transfers] == [
        (0, 0, (0, 4)),
        (1, 0, (4, 5)),
        (1, 1, (4, 9)),
    ]
    assert "conv1>relu1" not in edges(program)


def test_partial_sums_are_added_by_the_exchange() -> None:
    plan = read_plan("{workers: 2, ops: {conv1: {on: [0]}, fc3: {k: 2, on: [0, 1]}}}", GRAPHS["tower"])
    exchange = next(e for e in lower(GRAPHS["tower"], plan, 4).exchanges.values() if e.value == "fc3")
    assert exchange.adds
    assert exchange.holds == {0: Box.whole((4, 11)), 1: Box.whole((4, 11))}
    assert exchange.needs == {0: Box(((0, 4), (0, 5))), 1: Box(((0, 4), (5, 11)))}


def test_partial_sums_are_exchanged_where_each_worker_needs_all_of_them() -> None:
    """Both boxes are the whole map, but workers hold partial sums and need their total."""
    plan = read_plan(
        "{workers: 2, ops: {pool1: {on: [0]}, conv2: {k: 2, on: [0, 1]}, conv3: {c: 2, on: [0, 1]}}}",
        GRAPHS["weightless"],
    )
    exchange = next(e for e in lower(GRAPHS["weightless"], plan, 4).exchanges.values() if e.value == "conv2")
    assert exchange.holds == exchange.needs
    assert len(exchange.transfers) == 4


def test_who_computes_what_in_a_pass() -> None:
    b = program_of(3, 18, name="one_weird_trick", scheme="b")
    c = program_of(3, 18, name="one_weird_trick", scheme="c")

    def rows(program: Program, op: str, m: int) -> list[Span | None]:
        parts = (program.part(op, worker, m) for worker in range(3))
        return [part and part.box.spans[0] for part in parts]

    assert rows(b, "conv1", 1) == [None, (6, 12), None]  # all of pass 1 is worker 1's
    assert rows(c, "conv1", 1) == [(6, 8), (8, 10), (10, 12)]  # a third of it is each worker's
    assert rows(b, "fc6", 1) == rows(c, "fc6", 1) == [(6, 12)] * 3


def test_scheme_c_starts_the_next_pass_s_exchange_before_this_pass_s_compute() -> None:
    program = program_of(2, 8, name="one_weird_trick", scheme="c")
    steps = [str(step) for step in program.steps[0]]
    assert steps[:6] == ["F0", "X0:0>", "W0:0>", "X0:1>", "F1:0", "X1:0>"]


def test_program_of_a_small_pipeline_as_text() -> None:
    plan = read_plan(
        "{workers: 2, micro_batches: 2, ops: {conv1: {on: [0]}, fc3: {on: [1]}}}", GRAPHS["tower"]
    )
    assert str(lower(GRAPHS["tower"], plan, 4)).splitlines() == [
        "segment 0 on [0]: conv1 relu1 pool1 conv2 relu2 pool2 avgpool flatten drop3",
        "segment 1 on [1]: fc3 relu3 drop4 fc4 relu4 fc5 loss",
        # Both sides start an exchange: one sends, the other makes ready to receive.
        "worker 0: F0:0 X0:0> F0:1 X0:1> <X0:0 <W0:0 B0:0 <X0:1 <W0:1 B0:1 U1",
        "worker 1: X0:0> W0:0> F1:0 X0:1> B1:0 <X0:0 W0:1> F1:1 B1:1 <X0:1 U0",
    ]


# How much they move: the closed forms.


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
def test_data_parallel_sends_the_bytes_of_a_ring(workers: int) -> None:
    """8 (N − 1) / N · (Wc + Wf) bytes per worker and step in fp32."""
    program = program_of(workers, 8, name="data_parallel")
    assert mean_bytes(program) == pytest.approx(
        8 * (workers - 1) / workers * (CONV + FULLY_CONNECTED), rel=1e-12
    )
    shares = [program.bytes_sent(worker, 4) for worker in range(workers)]
    # Shards differ by one element at most.
    assert max(shares) - min(shares) <= 4 * len(program.buckets) * workers


@pytest.mark.parametrize("workers", [2, 4, 8])
@pytest.mark.parametrize(("scheme", "update"), [("a", "step"), ("b", "step"), ("c", "step"), ("c", "pass")])
def test_one_weird_trick_sends_conv_weights_and_gathered_activations(
    workers: int, scheme: str, update: str
) -> None:
    """8 (N − 1) / N · Wc + 8 (N − 1) · b · A; also each worker's 1/N of the logits goes to the loss
    of their rows."""
    local = 16
    program = program_of(workers, local * workers, name="one_weird_trick", scheme=scheme, update=update)
    expected = (
        8 * (workers - 1) / workers * CONV
        + 8 * (workers - 1) * local * GATHERED
        + 8 * (workers - 1) * local * 1000 / workers
    )
    assert mean_bytes(program) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_one_weird_trick_moves_less_below_the_published_batch(workers: int) -> None:
    """A = 9216 + 4096 + 4096: at batch Wf / A ≈ 3,368 both move the same bytes except for the
    logits, whatever the number of workers."""
    below, above = 3200, 3600
    data_parallel = mean_bytes(program_of(workers, below, name="data_parallel"))
    assert mean_bytes(program_of(workers, below, name="one_weird_trick", scheme="a")) < data_parallel
    assert mean_bytes(program_of(workers, above, name="one_weird_trick", scheme="a")) > data_parallel


def test_bf16_halves_exchanges_and_gathers_and_not_the_sums() -> None:
    for strategy in ("data_parallel", "model_parallel"):
        program = program_of(2, 8, name=strategy)
        assert all(bucket.rounded for bucket in program.buckets)
        narrow, wide = (program.sent(0, itemsize) for itemsize in (2, 4))
        assert wide.total > 0
        assert (2 * narrow.forward, 2 * narrow.backward) == (wide.forward, wide.backward)
        assert (narrow.sums, 2 * narrow.gathers) == (wide.sums, wide.gathers)


def test_pipeline_sends_the_activations_between_its_stages() -> None:
    program = program_of(2, 8, name="model_parallel", micro_batches=4)
    size = next(iter(program.exchanges.values())).holds[0].volume
    # 4 micro-batches, 4 bytes per element.
    assert program.bytes_sent(0, 4) == program.bytes_sent(1, 4) == 4 * 4 * size


# Parameters.


def test_parameters_held() -> None:
    assert [program_of(4, 8, name="data_parallel").parameters_held(w) for w in range(4)] == [
        CONV + FULLY_CONNECTED
    ] * 4
    assert [program_of(4, 16, name="one_weird_trick").parameters_held(w) for w in range(4)] == [
        CONV + FULLY_CONNECTED // 4
    ] * 4
    layers = program_of(4, 8, name="model_parallel")
    assert sum(layers.parameters_held(w) for w in range(4)) == CONV + FULLY_CONNECTED


def test_large_parameters_have_a_bucket_of_their_own_and_small_ones_share() -> None:
    buckets = program_of(2, 8, name="data_parallel").buckets
    assert [bucket.index for bucket in buckets] == list(range(len(buckets)))
    for bucket in buckets:
        if len(bucket.parameters) > 1:
            assert max(box.volume for box in bucket.boxes) * 4 < BUCKET_BYTES
    alone = [bucket.parameters[0] for bucket in buckets if len(bucket.parameters) == 1]
    assert alone[:3] == [("fc8", "weight"), ("fc7", "weight"), ("fc6", "weight")]  # in the order of backward
    assert len(buckets) < sum(len(op.parameters) for op in OWT)


def test_buckets_of_collectives_are_larger_aligned_and_padded() -> None:
    plan = build_plan(OWT, 8, STRATEGIES["data_parallel"].options)
    program = lower(OWT, plan, 16, (0, 0, 0, 0, 1, 1, 1, 1), collectives=True)
    assert [(bucket.parameters[0], bucket.parameters[-1]) for bucket in program.buckets] == [
        (("fc8", "weight"), ("fc7", "weight")),
        (("fc7", "bias"), ("fc6", "weight")),
        (("fc6", "bias"), ("conv1", "bias")),
    ]
    for bucket in program.buckets:
        assert bucket.collective and bucket.levels is None
        assert {*(offset % ALIGNMENT for offset in bucket.offsets), bucket.padded % (8 * ALIGNMENT)} == {0}
        assert 0 <= bucket.padded - bucket.size < 8 * ALIGNMENT
        assert {stop - start for start, stop in map(bucket.shard, range(8))} == {bucket.padded // 8}
        ends = [offset + box.volume for offset, box in zip(bucket.offsets, bucket.boxes, strict=True)]
        assert all(end <= offset for end, offset in zip(ends, bucket.offsets[1:], strict=False))
        assert bucket.sums(3) == (bucket.padded // 8 * 7,) * 2
    assert program.parameters_held(0) == CONV + FULLY_CONNECTED
    single = build_plan(OWT, 1, STRATEGIES["single"].options)
    assert lower(OWT, single, 16, collectives=True).buckets == lower(OWT, single, 16).buckets


drawn_programs = st.sampled_from(sorted(GRAPHS)).flatmap(
    lambda name: st.tuples(plans(GRAPHS[name]), st.booleans()).map(
        lambda drawn: lower(GRAPHS[name], *drawn[0], collectives=drawn[1])
    )
)
any_program = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@any_program
@given(drawn_programs)
def test_every_parameter_is_once_on_each_worker_that_uses_it_and_whole_on_all(program: Program) -> None:
    held: dict[int, Counter[tuple[str, str, Box]]] = defaultdict(Counter)
    for bucket in program.buckets:
        assert tuple(sorted(set(bucket.workers))) == bucket.workers
        shards = [position for worker in bucket.workers for position in range(*bucket.shard(worker))]
        assert shards == list(range(bucket.padded))
        assert bucket.collective or bucket.padded == bucket.size
        for worker in bucket.workers:
            held[worker].update(
                (op, name, box) for (op, name), box in zip(bucket.parameters, bucket.boxes, strict=True)
            )
    for worker in range(program.plan.workers):
        used = {
            (op.name, name, box)
            for op in program.graph
            for m in range(program.plan.micro_batches)
            if (part := program.part(op.name, worker, m))
            for name, box in op.parameter_boxes(part).items()
        }
        assert held[worker] == Counter(used)
    for op in program.graph:
        for name, shape in op.parameters.items():
            covered = torch.zeros(shape)
            for bucket in program.buckets:
                if (op.name, name) in bucket.parameters:
                    box = bucket.boxes[bucket.parameters.index((op.name, name))]
                    covered[box.within(Box.whole(shape))] += 1
            assert (covered == 1).all()


@any_program
@given(drawn_programs)
def test_every_input_comes_whole_and_from_where_it_is_held(program: Program) -> None:
    exchanged = {(e.value, e.consumer, e.micro_batch): e for e in program.exchanges.values()}
    for op in program.graph:
        for which, producer in enumerate(op.inputs):
            for m in range(program.plan.micro_batches):
                exchange = exchanged.get((producer, op.name, m))
                for worker in range(program.plan.workers):
                    needed = program.inputs(worker, m, op.name)
                    held = None if producer == INPUT else program.output(producer, worker, m)
                    if exchange is None:  # every worker has exactly what it needs
                        assert producer == INPUT or held == (needed[which] if needed else None)
                        continue
                    assert exchange.holds.get(worker) == held
                    assert exchange.needs.get(worker) == (needed[which] if needed else None)
                    pieces = [t.box.volume for t in exchange.transfers if t.target == worker]
                    # Partial sums of every element.
                    times = program.plan[producer].terms(program.graph[producer])
                    assert sum(pieces) == (needed[which].volume * times if needed else 0)


def test_a_batch_that_the_plan_cannot_cut_is_refused() -> None:
    with pytest.raises(
        ValueError, match="^trainer.batch_size=9 must be a multiple of the plan's micro_batches=4$"
    ):
        program_of(2, 9, name="model_parallel", micro_batches=4)


def test_plan_with_one_worker_idle_gives_it_an_empty_list() -> None:
    plan: Plan = read_plan("{workers: 3, ops: {conv1: {n: 2, on: [0, 2]}}}", GRAPHS["odd"])
    assert [bool(steps) for steps in lower(GRAPHS["odd"], plan, 4).steps] == [True, False, True]


# Models that are no chains.


def test_data_parallel_exchanges_nothing_but_the_statistics() -> None:
    program = program_of(3, 6, GRAPHS["residual"], name="data_parallel")
    assert edges(program) == sorted(
        f"{op.name}.sums>{op.name}" for op in GRAPHS["residual"] if f"{op.name}.sums" in GRAPHS["residual"]
    )
    exchange = next(e for e in program.exchanges.values() if e.value == "bn1.sums")
    assert exchange.adds and exchange.wide and exchange.holds == exchange.needs
    assert set(exchange.holds.values()) == {Box(((0, 1), (0, 5), (0, 3)))}
    # The projection reads the output of an earlier segment without an exchange, so it begins no
    # segment.
    assert [" ".join(segment.ops) for segment in program.segments][5:7] == [
        "layer2.bn2 layer2.downsample.0 layer2.downsample.1.sums",
        "layer2.downsample.1 layer2.add layer2.relu_1 concat bn3.sums",
    ]


def test_statistics_of_whole_channels_are_not_exchanged() -> None:
    plan = read_plan("{workers: 2, ops: {conv1: {c: 2, on: [0, 1]}}}", GRAPHS["residual"])
    assert not [name for name in edges(lower(GRAPHS["residual"], plan, 4)) if "bn1.sums" in name]


@pytest.mark.parametrize(
    ("ops", "but"),
    [
        ("conv1: {on: [0]}", ()),
        ("conv1: {c: 2, on: [1, 0]}", ()),
        ("conv1: {on: [0]}, layer2.conv1: {on: [1]}", ()),
        ("conv1: {on: [0]}, bn1.sums: {on: [1]}", ("bn1",)),  # elsewhere
        ("conv1: {on: [0]}, bn1: {on: [1]}", ("bn1",)),
        ("conv1: {on: [0]}, bn1.sums: {c: 2, on: [0, 1]}, bn1: {c: 2, on: [0, 1]}", ("bn1",)),  # receive x
        (
            "conv1: {on: [0]}, bn1.sums: {n: 2, on: [0, 1]}, bn1: {n: 2, on: [0, 1]}, relu: {on: [0]}",
            ("bn1",),
        ),
        ("conv1: {on: [0]}, layer1.conv1: {h: 2, on: [0, 1]}, layer1.conv2: {on: [0]}", ("layer1.bn1",)),
    ],
)
def test_a_batch_norm_computes_its_statistics_where_they_lie_whole(ops: str, but: tuple[str, ...]) -> None:
    graph = GRAPHS["residual"]
    norms = {op.name for op in graph if op.fuses is not None}
    program = lower(graph, read_plan(f"{{workers: 2, ops: {{{ops}}}}}", graph), 6)
    assert len(norms) >= 6 and program.fused == {f"{name}.sums" for name in norms.difference(but)}
    assert all((f"{name}.sums + {name}" in str(program)) == (name not in but) for name in norms)


def test_each_reader_of_a_value_has_an_exchange_of_its_own() -> None:
    plan = read_plan(
        "{workers: 2, ops: {conv1: {on: [0]}, conv3: {on: [1]}, fc5: {on: [1]}, fc6: {on: [0]}}}",
        GRAPHS["branches"],
    )
    assert edges(lower(GRAPHS["branches"], plan, 4)) == [
        "add>concat",
        "conv2>add",
        "conv2>conv3",
        "drop5>concat_1",
        "flatten>fc5",
    ]


def test_ops_for_other_samples_are_in_a_segment_of_their_own() -> None:
    """`conv2` is split in n; `pool`, which reads the images like `conv1`, in h: same workers, no
    exchange."""
    plan = read_plan(
        "{workers: 2, ops: {conv1: {h: 2, on: [0, 1]}, conv2: {n: 2, on: [0, 1]}}}", GRAPHS["branches"]
    )
    program = lower(GRAPHS["branches"], plan, 4)
    for segment in program.segments:
        for worker in segment.workers:
            parts = [program.part(name, worker, 0) for name in segment.ops]
            assert len({part.box.spans[0] for part in parts if part}) == 1
    assert any(segment.ops[0] == "pool" for segment in program.segments)


@pytest.mark.parametrize("workers", [2, 4])
def test_bytes_of_a_residual_network_and_of_vgg(workers: int) -> None:
    """ResNet-18: the ring of all weights, and three float64 sums for 4,800 channels to all others,
    both ways."""

    def graph(name: str) -> Graph:
        with torch.device("meta"):
            return trace(build_model(model_options(name), 1000, seed=0), (3, 64, 64))

    ring, others = 8 * (workers - 1) / workers, workers - 1
    resnet = program_of(workers, 16, graph("resnet18"), name="data_parallel")
    assert mean_bytes(resnet) == pytest.approx(ring * 11_689_512 + 2 * others * 4_800 * 3 * 8, rel=1e-12)
    local, linear = 4, 25088 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    vgg = program_of(workers, local * workers, graph("vgg16"), name="one_weird_trick")
    gathered = 8 * others * local * (25088 + 4096 + 4096 + 1000 / workers)
    assert mean_bytes(vgg) == pytest.approx(ring * (138_357_544 - linear) + gathered, rel=1e-12)
