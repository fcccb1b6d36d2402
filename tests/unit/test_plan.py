"""Plans: text form, ops that are not named, and the message of every error."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from torch import nn

from parallel.graph import INPUT, Graph, trace
from parallel.graph.box import Box
from parallel.graph.ops import Part
from parallel.plans import Layout, Plan, check_batch, follow, make_plan, read_plan
from parallel.strategies import DataParallel, build_plan
from tests.support.refusals import refused
from tests.support.small_models import graph_of, plans

TOWER, TOWERS = graph_of("tower"), graph_of("towers")


# Text.


@settings(max_examples=100, deadline=None)
@given(plans(TOWERS))
def test_text_reads_back_as_the_same_plan(drawn: tuple[Plan, int]) -> None:
    plan, _ = drawn
    again = read_plan(str(plan), TOWERS)
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.fingerprint == plan.fingerprint
    assert read_plan(str(plan), TOWERS, plan.workers) == plan


def test_text_of_a_plan_and_of_a_layout() -> None:
    plan = make_plan(
        TOWER,
        4,
        {
            "conv1": Layout(on=(0, 1, 2, 3), n=4),
            "conv2": Layout(on=(0, 2, 1, 3), h=2, w=2),
            "fc3": Layout(on=(0, 1, 2), c=3),
        },
    )
    text = str(plan)
    assert text.startswith(
        "workers: 4\nmicro_batches: 1\nscheme: a\npipeline: 1f1b\nupdate: step\nops:\n"
        "  conv1: {n: 4, on: [0, 1, 2, 3]}\n"
    )
    assert "\n  conv2: {h: 2, w: 2, on: [0, 2, 1, 3]}\n" in text
    assert "\n  fc3: {c: 3, on: [0, 1, 2]}\n" in text
    assert str(plan["conv2"]) == "h2 w2 @0,2,1,3"
    assert str(Layout(on=(5,))) == "@5"


@pytest.mark.parametrize("key", ["on", "'on'", '"on"'])
def test_the_word_on_is_a_key_and_not_a_truth_value(key: str) -> None:
    plan = read_plan(f"workers: 2\nops:\n  conv1: {{n: 2, {key}: [1, 0]}}\n", TOWER)
    assert plan["conv1"] == Layout(on=(1, 0), n=2)
    assert plan == read_plan(f"workers: 2\nops:\n  conv1:\n    n: 2\n    {key}:\n    - 1\n    - 0\n", TOWER)


def test_settings_are_read() -> None:
    plan = read_plan(
        "{workers: 2, micro_batches: 2, scheme: c, pipeline: fill_drain, update: pass, "
        "ops: {conv1: {n: 2, on: [0, 1]}}}",
        TOWER,
    )
    assert (plan.workers, plan.micro_batches, plan.scheme, plan.pipeline, plan.update) == (
        2,
        2,
        "c",
        "fill_drain",
        "pass",
    )


def test_plans_that_differ_have_different_fingerprints() -> None:
    texts = [
        "{workers: 2, ops: {conv1: {n: 2, on: [0, 1]}}}",
        "{workers: 2, ops: {conv1: {n: 2, on: [1, 0]}}}",
        "{workers: 2, ops: {conv1: {h: 2, on: [0, 1]}}}",
        "{workers: 3, ops: {conv1: {n: 2, on: [0, 1]}}}",
        "{workers: 2, micro_batches: 2, ops: {conv1: {n: 2, on: [0, 1]}}}",
        "{workers: 2, pipeline: fill_drain, ops: {conv1: {n: 2, on: [0, 1]}}}",
    ]
    found = [read_plan(text, TOWER) for text in texts]
    assert len({plan.fingerprint for plan in found}) == len(set(found)) == len(texts)


# Layouts.


def test_parts_are_numbered_row_major_over_n_c_k_h_w() -> None:
    layout = Layout(on=(7, 5, 3, 1, 6, 4, 2, 0), n=2, c=2, w=2)
    assert layout.index(7) == {"n": 0, "c": 0, "k": 0, "h": 0, "w": 0}
    assert layout.index(5) == {"n": 0, "c": 0, "k": 0, "h": 0, "w": 1}
    assert layout.index(3) == {"n": 0, "c": 1, "k": 0, "h": 0, "w": 0}
    assert layout.index(6) == {"n": 1, "c": 0, "k": 0, "h": 0, "w": 0}
    op = TOWER["conv2"]  # [10, 4, 4]
    assert layout.part(op, 3, (6, 11)) == Part(Box(((6, 8), (5, 10), (0, 4), (0, 2))))
    assert layout.part(op, 0, (6, 11)) == Part(Box(((8, 11), (5, 10), (0, 4), (2, 4))))


def test_part_of_a_reduction() -> None:
    layout = Layout(on=(0, 1, 2), k=3)
    assert [layout.part(TOWER["fc4"], worker, (0, 2)).k for worker in range(3)] == [(0, 3), (3, 7), (7, 11)]
    assert layout.part(TOWER["fc4"], 1, (0, 2)).box == Box(((0, 2), (0, 9)))
    assert Layout(on=(0,)).part(TOWER["fc4"], 0, (0, 2)).k is None


def test_weights_give_uneven_parts() -> None:
    layout = Layout(on=(1, 0), n=(6, 2))
    assert layout == Layout(on=(1, 0), n=(3, 1)) and layout.degrees == (2, 1, 1, 1, 1)
    assert Layout(on=(1, 0), n=(4, 4)) == Layout(on=(1, 0), n=2)
    assert str(layout) == "n3:1 @1,0"
    op = TOWER["conv2"]  # [10, 4, 4]
    assert layout.part(op, 1, (6, 14)) == Part(Box(((6, 12), (0, 10), (0, 4), (0, 4))))
    assert layout.part(op, 0, (6, 14)) == Part(Box(((12, 14), (0, 10), (0, 4), (0, 4))))
    assert layout.samples_by_index(9) == (6, 3)
    rows = Layout(on=(0, 1, 2), h=(2, 1, 1))
    assert [rows.part(op, worker, (0, 1)).box.spans[2] for worker in range(3)] == [(0, 2), (2, 3), (3, 4)]
    sums = Layout(on=(0, 1), k=(10, 1))
    assert [sums.part(TOWER["fc4"], worker, (0, 2)).k for worker in range(2)] == [(0, 10), (10, 11)]


FOLLOWS = [
    ("relu1", Layout(on=(2, 0), n=2), Layout(on=(2, 0), n=2)),
    ("relu1", Layout(on=(2, 0), n=(3, 1)), Layout(on=(2, 0), n=(3, 1))),
    ("relu1", Layout(on=(0, 1), k=(2, 1)), Layout(on=(0, 1), c=(2, 1))),
    ("relu1", Layout(on=(0, 1, 2, 3), c=(2, 1), k=2), Layout(on=(0, 1, 2, 3), c=(2, 2, 1, 1))),
    ("pool2", Layout(on=(0, 1), h=(5, 1)), Layout(on=(0, 1), h=(5, 1))),
    ("pool2", Layout(on=(0, 1), h=(1, 6)), Layout(on=(0, 1), c=(1, 6))),
    ("flatten", Layout(on=(0, 1, 2, 3), h=(3, 1), w=(1, 2)), Layout(on=(0, 1, 2, 3), c=(3, 6, 1, 2))),
    ("fc5", Layout(on=(0, 1), c=(1, 8)), Layout(on=(0, 1), n=(1, 8))),
    ("loss", Layout(on=(0, 1, 2, 3), n=(3, 1), c=2), Layout(on=(0, 1, 2, 3), n=(3, 3, 1, 1))),
    ("relu1", Layout(on=(0, 1, 2, 3), h=2, w=2), Layout(on=(0, 1, 2, 3), h=2, w=2)),
    ("relu1", Layout(on=(0, 1), k=2), Layout(on=(0, 1), c=2)),  # the reduced output is split
    ("relu1", Layout(on=(0, 1, 2, 3), c=2, k=2), Layout(on=(0, 1, 2, 3), c=4)),
    ("pool2", Layout(on=(0, 1, 2, 3), h=4), Layout(on=(0, 1, 2, 3), c=4)),  # 3 rows only
    ("flatten", Layout(on=(0, 1, 2, 3), h=2, w=2), Layout(on=(0, 1, 2, 3), c=4)),
    ("flatten", Layout(on=(0, 1, 2, 3), n=2, w=2), Layout(on=(0, 1, 2, 3), n=2, c=2)),
    ("fc5", Layout(on=tuple(range(6)), c=6), Layout(on=tuple(range(6)), n=6)),  # 5 classes only
    ("loss", Layout(on=(0, 1), c=2), Layout(on=(0, 1), n=2)),
    ("loss", Layout(on=(0, 1, 2, 3), n=2, k=2), Layout(on=(0, 1, 2, 3), n=4)),
]


@pytest.mark.parametrize(
    ("op", "producer", "expected"), FOLLOWS, ids=[f"{op} {layout}" for op, layout, _ in FOLLOWS]
)
def test_follow(op: str, producer: Layout, expected: Layout) -> None:
    assert follow(TOWER[op], producer) == expected


def test_an_average_pool_that_changes_the_map_is_followed_in_channels() -> None:
    assert follow(TOWERS["avgpool"], Layout(on=(0, 1), h=2)) == Layout(on=(0, 1), c=2)
    assert follow(TOWER["avgpool"], Layout(on=(0, 1), h=2)) == Layout(on=(0, 1), h=2)


def test_unnamed_ops_follow_their_producer_down_the_graph() -> None:
    plan = read_plan("{workers: 3, ops: {conv1: {h: 3, on: [2, 1, 0]}, fc3: {on: [1]}}}", TOWER)
    assert plan["pool2"] == Layout(on=(2, 1, 0), h=3)
    assert plan["drop3"] == Layout(on=(2, 1, 0), c=3)
    assert plan["loss"] == plan["fc3"] == Layout(on=(1,))


# Errors.

REFUSED = [
    (
        "{workers: 2, ops: {conv9: {on: [0]}}}",
        f"ops=conv9 is not an op of the model; its ops are {', '.join(TOWER.names)}",
    ),
    (
        "{workers: 2, ops: {fc3: {on: [0]}}}",
        "ops.conv1: the first op must be named, because the others follow it",
    ),
    (
        "{workers: 20, ops: {conv1: {c: 8, on: [0, 1, 2, 3, 4, 5, 6, 7]}}}",
        "ops.conv1.c=8 is more parts than the dim has positions, 7",
    ),
    (
        "{workers: 4, ops: {conv1: {k: 4, on: [0, 1, 2, 3]}}}",
        "ops.conv1.k=4 is more parts than the dim has positions, 3",
    ),
    (
        "{workers: 4, ops: {conv1: {on: [0]}, pool2: {w: 4, on: [0, 1, 2, 3]}}}",
        "ops.pool2.w=4 is more parts than the dim has positions, 3",
    ),
    (
        "{workers: 2, ops: {conv1: {on: [0]}, fc3: {h: 2, on: [0, 1]}}}",
        "ops.fc3.h=2 splits a dim that Linear cannot be split in; it has n, c, k",
    ),
    (
        "{workers: 2, ops: {conv1: {on: [0]}, pool1: {k: 2, on: [0, 1]}}}",
        "ops.pool1.k=2 splits a dim that MaxPool2d cannot be split in; it has n, c, h, w",
    ),
    (
        "{workers: 2, ops: {conv1: {on: [0]}, loss: {c: 2, on: [0, 1]}}}",
        "ops.loss.c=2 splits a dim that CrossEntropy cannot be split in; it has n",
    ),
    (
        "{workers: 2, ops: {conv1: {n: 2, on: [0, 2]}}}",
        "ops.conv1.on=[0, 2] names a worker outside workers=2",
    ),
    (
        "{workers: 2, ops: {conv1: {n: 2, on: [0, -1]}}}",
        "ops.conv1.on=[0, -1] must name workers from 0 and below 65,536",
    ),
    ("{workers: 2, ops: {conv1: {n: 2, on: [1, 1]}}}", "ops.conv1.on=[1, 1] must not name a worker twice"),
    (
        "{workers: 4, ops: {conv1: {n: 2, h: 2, on: [0, 1, 2]}}}",
        "ops.conv1.on=[0, 1, 2] must name as many workers as there are parts, 4",
    ),
    (
        "{workers: 4, ops: {conv1: {on: []}}}",
        "ops.conv1.on=[] must name as many workers as there are parts, 1",
    ),
    (
        "{workers: 2, ops: {conv1: {n: 0, on: []}}}",
        "ops.conv1.n=0 must be a degree of at least 1 and at most 65,536",
    ),
    ("{workers: 2, ops: {conv1: {n: 2.0, on: [0, 1]}}}", "ops.conv1.n=2.0 must be a whole number or a list"),
    ("{workers: 2, ops: {conv1: {n: true, on: [0]}}}", "ops.conv1.n=True must be a whole number or a list"),
    ("{workers: 2, ops: {conv1: {n: [2, x], on: [0, 1]}}}", "ops.conv1.n[1]='x' must be a whole number"),
    (
        "{workers: 2, ops: {conv1: {n: [2, 0], on: [0, 1]}}}",
        "ops.conv1.n=[2, 0] must list weights of at least 1 and at most 1,000,000",
    ),
    (
        "{workers: 2, ops: {conv1: {n: [], on: [0]}}}",
        "ops.conv1.n=[] must list at least 1 and at most 65,536 weights",
    ),
    (
        "{workers: 3, ops: {conv1: {n: [2, 1], on: [0, 1, 2]}}}",
        "ops.conv1.on=[0, 1, 2] must name as many workers as there are parts, 2",
    ),
    (
        "{workers: 2, ops: {conv1: {c: [1, 9], on: [0, 1]}}}",
        "ops.conv1.c=[1, 9] leaves a part of the dim's 7 positions empty",
    ),
    (
        "{workers: 2, scheme: b, micro_batches: 2, ops: {conv1: {n: [2, 1], on: [0, 1]}}}",
        "scheme=b needs its first op split into equal parts, not n2:1 @0,1: every pass takes as many samples",
    ),
    ("{workers: 2, ops: {conv1: {n: 2}}}", "ops.conv1 lacks on"),
    ("{workers: 2, ops: {conv1: {on: 0}}}", "ops.conv1.on=0 must be a list"),
    ("{workers: 2, ops: {conv1: {on: [a]}}}", "ops.conv1.on[0]='a' must be a whole number"),
    (
        "{workers: 2, ops: {conv1: {m: 2, on: [0, 1]}}}",
        "ops.conv1 has unknown m; its keys are on, n, c, k, h, w",
    ),
    ("{workers: 2, ops: {conv1: 2}}", "ops.conv1=2 must be a mapping"),
    (
        "{workers: 2, layers: {}, ops: {conv1: {on: [0]}}}",
        "plan file has unknown layers; its keys are workers, ops, micro_batches, scheme, pipeline, update",
    ),
    ("{ops: {conv1: {on: [0]}}}", "plan file lacks workers"),
    ("{workers: two, ops: {conv1: {on: [0]}}}", "workers='two' must be a whole number"),
    ("{workers: true, ops: {conv1: {on: [0]}}}", "workers=True must be a whole number"),
    ("{workers: 2, micro_batches: 1.5, ops: {conv1: {on: [0]}}}", "micro_batches=1.5 must be a whole number"),
    (
        "{workers: 2, micro_batches: 0, ops: {conv1: {on: [0]}}}",
        "micro_batches=0 must be at least 1 and at most 4,096",
    ),
    ("{workers: 2, scheme: d, ops: {conv1: {on: [0]}}}", "scheme=d is not known; it must be one of a, b, c"),
    (
        "{workers: 2, pipeline: zigzag, ops: {conv1: {on: [0]}}}",
        "pipeline=zigzag is not known; it must be one of fill_drain, 1f1b",
    ),
    (
        "{workers: 2, update: never, ops: {conv1: {on: [0]}}}",
        "update=never is not known; it must be one of step, pass",
    ),
    (
        "{workers: 2, update: pass, ops: {conv1: {on: [0]}}}",
        "update=pass needs passes, which scheme=a does not have",
    ),
    (
        "{workers: 2, scheme: b, ops: {conv1: {n: 2, on: [0, 1]}}}",
        "micro_batches=1 must be the number of passes of scheme b, one for each of 2 workers",
    ),
    (
        "{workers: 2, scheme: c, micro_batches: 4, ops: {conv1: {n: 2, on: [0, 1]}}}",
        "micro_batches=4 must be the number of passes of scheme c, one for each of 2 workers",
    ),
    (
        "{workers: 2, scheme: c, micro_batches: 2, ops: {conv1: {h: 2, on: [0, 1]}}}",
        "scheme=c needs its first op split in n alone, not h2 @0,1",
    ),
    ("workers: 2\nops:\n  - conv1", "the plan must be a mapping with the keys workers and ops"),
    ("[1, 2]", "the plan must be a mapping with the keys workers and ops"),
    ("", "the plan must be a mapping with the keys workers and ops"),
]


@pytest.mark.parametrize(("text", "sentence"), REFUSED, ids=[sentence[:50] for _, sentence in REFUSED])
def test_a_plan_that_is_not_legal_is_refused(text: str, sentence: str) -> None:
    with refused(sentence):
        read_plan(text, TOWER)


def test_what_is_not_yaml_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^the plan is not valid YAML: .*line 1, column 12") as raised:
        read_plan("{workers: 2: 3", TOWER)
    assert "\n" not in str(raised.value)


def test_plan_for_another_number_of_workers_is_refused() -> None:
    with refused("workers=4 does not fit the plan, which is for 2"):
        read_plan("{workers: 2, ops: {conv1: {on: [0]}}}", TOWER, workers=4)


def test_layouts_made_by_a_program_are_checked_as_well() -> None:
    with refused("ops.conv1.on=[0, 1] names a worker outside workers=1"):
        make_plan(TOWER, 1, {"conv1": Layout(on=(0, 1), n=2)})
    with refused("on=[3, 3] must not name a worker twice"):
        Layout(on=(3, 3), n=2)
    with refused("workers=0 must be at least 1 and at most 65,536"):
        Plan(workers=0, layouts={})


BATCHES = [
    (
        "{workers: 2, micro_batches: 3, ops: {conv1: {n: 2, on: [0, 1]}}}",
        8,
        "trainer.batch_size=8 must be a multiple of the plan's micro_batches=3",
    ),
    (
        "{workers: 4, ops: {conv1: {on: [0]}, fc3: {n: 4, on: [0, 1, 2, 3]}}}",
        3,
        "trainer.batch_size=3 is too small: fc3 is split in n into 4 parts of 3 samples",
    ),
    (
        "{workers: 2, micro_batches: 4, ops: {conv1: {n: 2, on: [0, 1]}}}",
        4,
        "trainer.batch_size=4 is too small: conv1 is split in n into 2 parts of 1 samples (1 of 4 micro-batches)",
    ),
]


@pytest.mark.parametrize(("text", "batch", "sentence"), BATCHES, ids=["multiple", "n", "n of a micro-batch"])
def test_a_batch_that_cannot_be_cut_is_refused(text: str, batch: int, sentence: str) -> None:
    with refused(sentence):
        check_batch(TOWER, read_plan(text, TOWER), batch)


def test_a_batch_that_can_be_cut_unevenly_is_not_refused() -> None:
    check_batch(TOWER, build_plan(TOWER, 4, DataParallel()), 7)


def test_graphs_know_their_ops() -> None:
    graph: Graph = TOWER
    assert "conv1" in graph
    assert "conv9" not in graph
    assert graph["fc4"].inputs == ("drop4",)
    assert graph.names[-1] == "loss"


def test_a_key_given_twice_is_refused() -> None:
    text = "workers: 1\nops:\n  conv1: {on: [0]}\n  conv1: {on: [0]}\n"
    with pytest.raises(ValueError, match="^the plan is invalid: conv1 is given twice$"):
        read_plan(text, graph_of("tower"))


# Models that are not chains.

RESIDUAL, BRANCHES = graph_of("residual"), graph_of("branches")


def test_ops_with_several_inputs_follow_the_first_that_is_no_image() -> None:
    plan = read_plan(
        "{workers: 3, ops: {conv1: {n: 3, on: [0, 1, 2]}, side: {on: [1]}, layer2.bn1: {c: 2, on: [2, 0]}}}",
        RESIDUAL,
    )
    assert plan["layer1.bn1"] == plan["layer1.bn1.sums"] == plan["layer1.conv1"] == Layout(on=(0, 1, 2), n=3)
    assert plan["concat"] == plan["bn3"] == plan["side"] == Layout(on=(1,))
    assert plan["layer2.bn1.sums"] == Layout(on=(0, 1, 2), n=3)
    assert plan["layer2.bn2"] == plan["layer2.add"] == Layout(on=(2, 0), c=2)
    assert read_plan("{workers: 2, ops: {conv1: {h: 2, on: [1, 0]}}}", BRANCHES)["pool"] == Layout(
        on=(1, 0), h=2
    )


def test_an_op_that_reads_the_images_alone_follows_the_first_op() -> None:
    assert BRANCHES["pool"].inputs == (INPUT,) and BRANCHES.followed(BRANCHES["pool"]) == "conv1"
    assert BRANCHES.followed(BRANCHES["add"]) == "conv3", "of two producers the first"


def test_sums_have_the_parts_of_what_they_sum() -> None:
    layout, op = Layout(on=(0, 1, 2, 3), n=2, w=2), RESIDUAL["bn1.sums"]
    part = layout.part(op, 3, (0, 6))
    assert part == Part(Box(((3, 6), (0, 5), (0, 6), (2, 5))))
    assert op.output_box(part) == Box(((0, 1), (0, 5), (0, 3)))
    assert [layout.terms(RESIDUAL[name]) for name in ("bn1.sums", "bn1", "conv1")] == [4, 1, 1]
    assert Layout(on=(0, 1), k=2).terms(RESIDUAL["conv1"]) == 2


def test_batch_norm_refuses_micro_batches_and_a_batch_without_variance() -> None:
    rule = "must be 1: bn1.sums needs the statistics of the whole batch (schemes b and c cut it into passes)"
    with refused(f"micro_batches=2 {rule}"):
        read_plan("{workers: 2, micro_batches: 2, ops: {conv1: {on: [0]}}}", RESIDUAL)
    with refused(f"micro_batches=2 {rule}"):
        read_plan("{workers: 2, scheme: c, micro_batches: 2, ops: {conv1: {n: 2, on: [0, 1]}}}", RESIDUAL)
    one = read_plan("{workers: 1, ops: {'0': {on: [0]}}}", POINT)
    check_batch(POINT, one, 2)
    with refused("trainer.batch_size=1 is too small: 1.sums needs 2 samples"):
        check_batch(POINT, one, 1)


POINT = trace(nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten()), (2, 2, 2))
