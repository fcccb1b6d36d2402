"""Calibration: shapes to measure, timed runs of small models, links fitted to synthetic times, the
command."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from parallel.calibration.link_fit import Pattern, Point, across, fit_link, patterns
from parallel.calibration.op_times import ADD, COPY, UPDATE, OpTimer
from parallel.calibration.options import CalibrationOptions
from parallel.calibration.progress import PhaseProgress, expected_s
from parallel.calibration.setup import Setup
from parallel.calibration.shapes import OpShape, compositions, model_runs, op_shapes
from parallel.calibration.speeds import changed_speeds, relative_speeds
from parallel.cli.values import prefixed_options
from parallel.cluster import Measured, open_cluster, read_cluster
from parallel.cluster.op_key import OpKey
from parallel.cluster.regression import cross_validate
from parallel.cluster.roofline import is_view
from parallel.cluster.table import BACKWARD, FORWARD, PARAMETERS, Timing
from parallel.config import ClusterConfig, Config, DataConfig, StrategyConfig
from parallel.graph import Graph, whole_part
from parallel.models.alexnet import AlexNetConfig
from parallel.program.lowering import lower
from parallel.results.hosts import Host
from parallel.runtime.communication.world import World
from parallel.strategies import DataParallel, ModelParallel, OneWeirdTrick, build_plan
from tests.support.commands import Run
from tests.support.small_models import MODELS, graph_of

CPU = torch.device("cpu")


class TestShapes:
    def test_compositions(self) -> None:
        assert list(compositions("nc", 4)) == [{"n": 1, "c": 4}, {"n": 2, "c": 2}, {"n": 4, "c": 1}]
        assert len(list(compositions("nckhw", 8))) == math.comb(3 + 4, 4), "three factors of 2 into five dims"

    @pytest.mark.parametrize(
        "strategy, workers",
        [
            (DataParallel(), 2),
            (OneWeirdTrick(scheme="a"), 2),
            (OneWeirdTrick(scheme="c"), 2),
            (ModelParallel(scheme="tensor"), 4),
            (ModelParallel(scheme="layers", micro_batches=4), 3),
        ],
    )
    def test_named_plans_ask_for_nothing_else(self, strategy: StrategyConfig, workers: int) -> None:
        graph, batch = graph_of("tower"), 24
        there = {op: {shape.key for shape in of} for op, of in op_shapes(graph, batch, workers).items()}
        program = lower(graph, build_plan(graph, workers, strategy), batch)
        for op in graph:
            # A step waits for the largest part of an op.
            keys = [
                OpKey.of(op, part)
                for m in range(program.plan.micro_batches)
                for worker in range(workers)
                if (part := program.part(op.name, worker, m)) is not None
            ]
            largest = max(keys, key=lambda key: (key.multiply_adds, key.elements_out))
            assert largest in there[op.name], f"{op.name} {program.plan[op.name]}"

    def test_no_shape_twice_and_the_whole_batch_first(self) -> None:
        for of in op_shapes(graph_of("towers"), 8, 4).values():
            assert len({shape.key for shape in of}) == len(of)
            assert of[0].part.box.shape[0] in (8, 2), "whole, or the part of one of four workers"

    def test_sizes_between(self) -> None:
        samples = {shape.part.box.shape[0] for shape in op_shapes(graph_of("tower"), 128, 1)["conv1"]}
        assert samples == {128, 64, 32, 16, 80, 40, 20, 10}

    def test_runs_have_every_shape_once(self) -> None:
        shapes = op_shapes(graph_of("tower"), 8, 2)
        dealt = [shape.key for run in model_runs(shapes) for shape in run.values()]
        assert sorted(map(str, dealt)) == sorted(str(shape.key) for of in shapes.values() for shape in of)


class TestOpTimer:
    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("precision, channels_last", [("fp32", True), ("bf16", True), ("fp64", False)])
    def test_every_shape_gets_its_times(self, model: str, precision: str, channels_last: bool) -> None:
        graph = graph_of(model)
        timer = OpTimer(graph, CPU, precision, channels_last, 3)
        trained: set[str] = set()
        for op in graph:
            if op.parameters or trained.intersection(op.inputs):
                trained.add(op.name)
        for run in model_runs(op_shapes(graph, 4, 3, (1,))):
            timer.run(run)
            ops, counts, _ = timer.times.collect()
            found = {key for key, _ in ops}
            for name, shape in run.items():
                op = graph[name]
                assert (shape.key, FORWARD) in found
                wants = trained.intersection(op.inputs)
                backward = (shape.key, BACKWARD if wants else PARAMETERS) in found
                assert backward == (name in trained), name
            assert all(seconds >= 0 for _, seconds in ops) and {kind for (kind, _), _ in counts} <= {
                UPDATE,
                ADD,
                COPY,
            }

    def test_counts(self) -> None:
        graph = graph_of("tower")
        timer = OpTimer(graph, CPU, "fp32", True, 2)
        shapes = whole(graph, 8)
        counts: set[tuple[str, int]] = set()
        for _ in range(2):
            timer.run(shapes)
            counts |= {key for key, _ in timer.times.collect()[1]}
        # fc3.weight is 11×90; only larger tensors count: fc3 is below, no tensor of this model is
        # above.
        assert {kind for kind, _ in counts} == {COPY}
        assert (COPY, 8 * 3 * 81) in counts, "three of conv1's seven channels"


def whole(graph: Graph, samples: int) -> Mapping[str, OpShape]:
    return {
        op.name: OpShape(op.name, whole_part(op, samples), OpKey.of(op, whole_part(op, samples)))
        for op in graph
    }


class TestLinks:
    node_of: Mapping[int, int] = dict.fromkeys(range(4), 0)

    def points(self, shared: bool, latency: float, speed: float, workers: int = 4) -> list[Point]:
        return [
            Point(pattern, size, latency + pattern.load(size, shared, self.node_of) / speed)
            for size in (4_000, 64_000, 1_000_000, 16_000_000)
            for pattern in patterns(range(workers))
        ]

    @pytest.mark.parametrize("workers", [2, 3, 4])
    @pytest.mark.parametrize("shared", [True, False])
    def test_a_link_is_found_again(self, shared: bool, workers: int) -> None:
        link, error = fit_link(self.points(shared, 1e-4, 2e9, workers), self.node_of)
        assert link.shared is shared
        assert error < 0.01
        assert link.latency_s == pytest.approx(1e-4, rel=0.01)
        for size in (5_000, 300_000, 10_000_000):
            assert link.seconds(size) == pytest.approx(1e-4 + size / 2e9, rel=0.03)

    def test_loads(self) -> None:
        exchange = next(p for p in patterns(range(3)) if p.name == "exchange 3")
        assert exchange.load(1000, False, self.node_of) == pytest.approx(1000)
        assert exchange.load(1000, True, self.node_of) == pytest.approx(3000)

    def test_two_workers_that_do_not_wait_for_each_other_share_nothing(self) -> None:
        """Loads of a shared link would all differ, so a curve through all points would fit, too."""
        speeds = {"exchange 2": 5.9e9, "one way": 6.5e9}
        points = [
            Point(p.pattern, p.nbytes, 3e-5 + p.nbytes / speeds[p.pattern.name])
            for p in self.points(False, 0.0, 1.0, workers=2)
        ]
        assert not fit_link(points, self.node_of)[0].shared

    def test_noise_makes_no_message_faster_than_a_smaller_one(self) -> None:
        noisy = [
            Point(p.pattern, p.nbytes, p.seconds * (1.5 if i % 3 else 0.6))
            for i, p in enumerate(self.points(False, 1e-4, 2e9))
        ]
        link, _ = fit_link(noisy, self.node_of)  # Link itself refuses one that falls
        assert link.seconds(1e3) <= link.seconds(1e9)

    def test_between_nodes(self) -> None:
        assert list(across([range(4)])) == []
        pairs = {p.name: set(p.sends) for p in across([range(2), range(2, 4)])}
        assert pairs["one way"] == {(0, 2)} and pairs["pairs"] == {(0, 2), (2, 0), (1, 3), (3, 1)}
        node_of = {0: 0, 1: 0, 2: 1, 3: 1}
        pattern = Pattern("pairs", {pair: 1.0 for pair in pairs["pairs"]})
        assert pattern.load(10, True, node_of) == 20 and pattern.load(10, False, node_of) == 10

    def test_between_nodes_of_different_size(self) -> None:
        pairs = {p.name: set(p.sends) for p in across([range(2), range(2, 3)])}
        assert pairs == {"one way": {(0, 2)}, "exchange 2": {(0, 2), (2, 0)}}


class TestSpeeds:
    @pytest.mark.parametrize(
        "seconds, speeds",
        [
            ([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [1.0, 1.0]),
            ([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]], [1.0, 0.5]),
            ([[2.1, 2.1, 2.1], [1.0, 1.0, 1.0], [1.02, 1.02, 1.02]], [0.49, 1.0, 1.0]),
            ([[1.0, 1.0, 1.0], [1.04, 1.04, 1.04]], [1.0, 1.0]),  # noise
            ([[1.0, 3.0, 1.0], [1.0, 1.0, 1.0]], [1.0, 1.0]),  # a short disturbance
            ([[2.0, 4.0, 2.0], [1.0, 2.0, 1.0]], [0.5, 1.0]),  # a disturbance of the whole machine
            ([[0.9], [1.0], [1.0], [1.0], [3.0]], [1.11, 1.0, 1.0, 1.0, 0.33]),  # the typical one is 1
        ],
    )
    def test_relative(self, seconds: list[list[float]], speeds: list[float]) -> None:
        assert relative_speeds(seconds) == speeds

    def test_changed(self) -> None:
        assert changed_speeds((), (), 2) is None
        assert changed_speeds((), (1.0, 0.9), 2) is None
        words = changed_speeds((1.0, 0.5), (), 2)
        assert words is not None and "have speeds of 100 %, 100 %, and had 100 %, 50 % when" in words
        assert "calibrate.fresh=true" in words


class TestSetup:
    def setup(self, rank: int, *cores: int, speeds: tuple[float, ...] = ()) -> Setup:
        """Return the setup of a worker on hosts with 2 and 1 workers and these cores."""
        hosts = (
            Host(index=0, name="a", workers=(0, 1), cores=cores[0]),
            Host(index=1, name="b", workers=(2,), cores=cores[1]),
        )
        unused: Any = None
        return Setup(
            config=Config(AlexNetConfig(), DataConfig("digits"), DataParallel()),
            options=CalibrationOptions(),
            world=World(rank, 3, CPU, "gloo", hosts=hosts),
            data=unused,
            graph=unused,
            known=None,
            progress=PhaseProgress(Console(), enabled=False),
            speeds=speeds,
        )

    @pytest.mark.parametrize(
        "cores, computing, computes",
        [((2, 1), 2, [True, True, True]), ((1, 8), 1, [True, False, True]), ((8, 1), 2, [True, True, True])],
    )
    def test_uneven_hosts(self, cores: tuple[int, int], computing: int, computes: list[bool]) -> None:
        setups = [self.setup(rank, *cores) for rank in range(3)]
        assert {setup.workers_per_node for setup in setups} == {2} and setups[0].nodes == 2
        assert [setup.place for setup in setups] == [0, 1, 0]
        assert {setup.computing_per_node for setup in setups} == {computing}
        assert [setup.computes for setup in setups] == computes

    def test_only_reference_workers_make_the_table(self) -> None:
        assert self.setup(0, 2, 1).of_references("abc") == ["a", "b", "c"]
        assert self.setup(0, 2, 1, speeds=(1.0, 0.7, 1.0)).of_references("abc") == ["a", "c"]


def test_cross_validation_holds_out_shapes() -> None:
    """Times that do not depend on the features cannot be predicted for unseen shapes."""
    graph, ops = graph_of("tower"), {}
    for i in range(1, 9):
        for op in graph:
            key = OpKey.of(op, whole_part(op, 4 * i))
            for name in (FORWARD, BACKWARD):
                ops[key, name] = Timing(1e-3 * (1 if (i * 7) % 3 else 10), 0.0, 1.0, 3)
    rows = {row.kind: row for row in cross_validate(ops)}
    assert rows["all"].samples == len(ops) == sum(row.samples for kind, row in rows.items() if kind != "all")
    assert rows["all"].mean > 0.3


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["calibrate.budget_s=0"], "calibrate.budget_s=0.0 must be positive and at most 1,000,000"),
        (["calibrate.budget_s=long"], "calibrate.budget_s='long' must be a number"),
        (["calibrate.fresh=yes"], "calibrate.fresh='yes' must be true or false"),
        (["calibrate.speed=1"], "calibrate has unknown speed; its keys are budget_s, fresh"),
    ],
)
def test_invalid_options(arguments: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        prefixed_options(CalibrationOptions, "calibrate", arguments)


def test_the_command(torchrun: Run, run: Run, tmp_path: Path) -> None:
    """Two workers measure and write a cluster; a second run measures only what is missing; one
    process fails."""
    arguments = (
        "parallel.calibrate",
        "model=small",
        "model.features=4000",
        "data=synthetic",
        "data.train_images=16",
        "data.num_classes=10",
        "workers=2",
        "trainer.batch_size=2",
        "calibrate.budget_s=0.05",
        "cluster.device=cpu",
        "cluster.cache=here",
    )
    first = torchrun(2, *arguments)
    assert first.returncode == 0, first.stderr
    assert "predicted times of shapes held out" in first.stdout
    (path,) = (tmp_path / "here").iterdir()
    cluster = read_cluster(path.read_text())
    assert cluster.workers == 2 and cluster.nodes == 1 and isinstance(cluster.compute, Measured)
    assert cluster == open_cluster(ClusterConfig(device="cpu", cache=str(path.parent)), 2)
    assert cluster.all_reduce is not None and 0 <= cluster.all_reduce.overlap_slowdown <= 1
    assert cluster.all_reduce.link.seconds(150e6) > cluster.all_reduce.link.seconds(4e3) > 0
    assert cluster.data_s_per_image > 0 and cluster.inside.seconds(1e6) > 0 and cluster.memory_bytes > 0
    second = torchrun(2, *arguments)
    assert second.returncode == 0, second.stderr
    again = read_cluster(path.read_text())
    assert again.inside == cluster.inside, "messages are not measured again"
    assert again.all_reduce == cluster.all_reduce
    assert isinstance(again.compute, Measured)
    before, after = cluster.compute.table.ops["fp32"], again.compute.table.ops["fp32"]
    assert len(after) > len(before) and all(after[key] == timing for key, timing in before.items())
    alone = run(*arguments)
    assert alone.returncode == 2 and "error: workers=2 needs a world of 2" in alone.stderr


def test_the_countdown(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    text = io.StringIO()
    with PhaseProgress(Console(file=text), True) as progress:
        progress.expect(expected_s(60, 0.2))
        progress.phase("ops")
        for now[0] in (105.0, 111.0, 112.0, 180.0):
            progress.done(0.5)
    assert text.getvalue().splitlines() == [
        "ops, about 77 s left",
        "ops, about 66 s left",
        "ops, some seconds left",
    ]
    silent = io.StringIO()
    with PhaseProgress(Console(file=silent), False) as progress:
        progress.phase("ops")
    assert not silent.getvalue()


def test_views_take_no_time() -> None:
    assert [op.name for op in graph_of("tower") if is_view(op)] == ["avgpool"]
