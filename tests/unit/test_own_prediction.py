"""A run's prediction of itself: what it rests on, how it is told, and its step as spans."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from parallel.cli.compose import compose_config
from parallel.cluster import Cluster, Measured, open_cluster, write_cluster
from parallel.cluster.machine import machine_of
from parallel.cluster.op_key import OpKey
from parallel.cluster.table import BACKWARD, FORWARD, PARAMETERS, Curve, Table, Timing
from parallel.config import Config
from parallel.graph import Graph
from parallel.graph.configured import graph_of
from parallel.plans import Plan
from parallel.prediction.basis import calibration_command
from parallel.prediction.own import OwnPrediction, OwnRun, predict_own
from parallel.prediction.plans import plan_of
from parallel.program.lowering import lower
from parallel.results.validation import kept_validation, write_validation
from parallel.simulator.simulate import simulate
from parallel.simulator.step_spans import joined, pieces, step_spans
from parallel.training.own_prediction import measured_line, no_prediction
from tests.support.made_clusters import link, made_cluster
from tests.support.made_records import made_epochs
from tests.support.made_validations import row, validation

MODEL = ("model=alexnet", "data=digits", "trainer.batch_size=8", "workers=2")
LOADING = {"data.per_image": "measured: digits at 64 px, all workers at once"}


def calibrated(graph: Graph, plan: Plan, batch: int, **changes: Any) -> Cluster:
    """Return a cluster with a time of 1 ms for every part of the plan, measured."""
    program, ops = lower(graph, plan, batch), {}
    for op, worker in itertools.product(graph, range(plan.workers)):
        part = program.part(op.name, worker, 0)
        if part is not None:
            for name in (FORWARD, BACKWARD, PARAMETERS):
                ops[OpKey.of(op, part), name] = Timing(1e-3, 1e-3, 1e-3, 9)
    curve = {"fp32": Curve(((1000, 1e-3),))}
    table = Table({"fp32": ops}, curve, curve, curve)
    return made_cluster(compute=Measured(table), inside=link(1e9, 1e-3), sources=LOADING, **changes)


def run_of(tmp_path: Path, *overrides: str, **changes: Any) -> OwnRun:
    """Return a run of data parallelism with a calibrated cluster file."""
    config = compose_config([*MODEL, "strategy=data_parallel"])
    graph = graph_of(config)
    plan = plan_of(config, graph)
    file = tmp_path / "cluster.yaml"
    file.write_text(write_cluster(calibrated(graph, plan, 8, **changes)), encoding="utf-8")
    config = compose_config([*MODEL, "strategy=data_parallel", f"cluster.file={file}", *overrides])
    return OwnRun(config=config, graph=graph, plan=plan, steps=10, node_workers=(2,), hosts=(0, 0))


def predicted(tmp_path: Path, *overrides: str, **changes: Any) -> OwnPrediction:
    return predict_own(run_of(tmp_path, *overrides, **changes))


def test_times_of_an_epoch_add_up(tmp_path: Path) -> None:
    found = predicted(tmp_path, data_s_per_image=1e-3).predicted
    assert found.epoch_s == pytest.approx(10 * found.step_s)
    assert found.data_wait_s == pytest.approx(10 * 4e-3), "four images of each worker"
    parts = found.compute_s + found.communication_s + found.idle_s + found.data_wait_s
    assert parts == pytest.approx(found.epoch_s)
    assert found.calibrated and found.error is None and found.cluster == "made"


@pytest.mark.parametrize(
    ("overrides", "doubt"),
    [
        (("trainer.batch_size=16",), "was not calibrated for all of alexnet owt at 64 px with batch 16"),
        (("data=synthetic",), "was calibrated with the loading of other images than synthetic at 64 px"),
        (("trainer.compile=true",), "calibration measures ops without trainer.compile=true"),
    ],
)
def test_what_was_not_calibrated_is_told(tmp_path: Path, overrides: tuple[str, ...], doubt: str) -> None:
    found = predicted(tmp_path, *overrides)
    assert doubt in found.doubt and not found.predicted.calibrated
    assert "not calibrated for this run" in found.line


def test_without_a_calibration_the_command_is_named(tmp_path: Path) -> None:
    config = compose_config([*MODEL, "strategy=data_parallel", f"cluster.cache={tmp_path}"])
    run = dataclasses.replace(run_of(tmp_path), config=config)
    (tmp_path / "cluster.yaml").unlink()
    with pytest.raises(ValueError, match="cluster=local is not calibrated for workers=2") as error:
        predict_own(run)
    line = no_prediction(config, 2, error.value)
    assert line.startswith("no prediction: cluster=local is not calibrated for workers=2, cluster.threads=1")
    assert line.endswith(f"; calibrate with: {calibration_command(config, 2)}") and "…" not in line


def test_an_engine_without_a_cost_model_is_told_so_and_not_to_calibrate(tmp_path: Path) -> None:
    config = compose_config([*MODEL, "strategy=fsdp2", f"cluster.cache={tmp_path}"])
    run = dataclasses.replace(run_of(tmp_path), config=config, plan=None)
    (tmp_path / "cluster.yaml").unlink()
    with pytest.raises(ValueError, match="strategy=fsdp2 has no cost model") as error:
        predict_own(run)
    assert no_prediction(config, 2, error.value) == f"no prediction: {error.value}"


def test_the_interval_is_that_of_a_validation_beside_the_calibrations(tmp_path: Path) -> None:
    run = run_of(tmp_path, f"cluster.cache={tmp_path}")
    digest = open_cluster(run.config.cluster, 2).digest
    rows = tuple(row(1.0, 1 + i / 100) for i in range(20))
    write_validation(kept_validation(str(tmp_path), digest), validation(*rows))
    assert predict_own(run).predicted.error == pytest.approx(0.18), "19 of 20 lie within"


def test_a_new_calibration_of_the_machine_does_not_have_the_interval_of_the_last(tmp_path: Path) -> None:
    machine = machine_of(compose_config(MODEL).cluster, [2])
    run = run_of(tmp_path, f"cluster.cache={tmp_path}", machine=machine)
    digest = open_cluster(run.config.cluster, 2).digest
    write_validation(kept_validation(str(tmp_path), digest), validation(row(1.0, 1.1)))
    assert predict_own(run).predicted.error == pytest.approx(0.1)
    run = run_of(tmp_path, f"cluster.cache={tmp_path}", machine=machine, data_s_per_image=1e-3)
    assert predict_own(run).predicted.error is None


def test_a_chosen_cluster_is_not_to_be_calibrated(tmp_path: Path) -> None:
    config = compose_config([*MODEL, "cluster=k20"])
    assert no_prediction(config, 2, ValueError("too few")) == "no prediction: too few"


def test_the_command_states_what_a_calibration_depends_on() -> None:
    config = compose_config(
        [
            *MODEL,
            "strategy=ddp",
            "model.variant=original",
            "model.image_size=96",
            "cluster.threads=2",
            "trainer.epochs=9",
        ]
        + ["trainer.channels_last=false", "trainer.precision=bf16", "trainer.lr=0.1"]
    )
    command = calibration_command(config)
    assert command == (
        "python -m parallel.torchrun --nproc-per-node 2 -m parallel.calibrate workers=2 model=alexnet "
        "data=digits model.image_size=96 trainer.batch_size=8 model.variant=original trainer.precision=bf16 "
        "trainer.channels_last=false cluster.threads=2 calibrate.budget_s=60"
    )
    words = [word for word in command.split()[7:-1]]
    again: Config = compose_config(words)
    assert (again.model, again.cluster) == (config.model, config.cluster)


def test_the_measured_time_stands_beside_the_predicted_one(tmp_path: Path) -> None:
    found = predicted(tmp_path)
    found = dataclasses.replace(found, predicted=dataclasses.replace(found.predicted, epoch_s=2.0))
    line = measured_line(found, made_epochs((3.0, 5.0, 4.0)))
    assert line == "measured: 4.00 s an epoch, predicted 2.00: 2.000 × the prediction"
    untimed = tuple(dataclasses.replace(epoch, timed=False) for epoch in made_epochs((3.0,)))
    assert measured_line(found, untimed) is None


def test_spans_of_a_step_cover_every_worker_without_gaps(tmp_path: Path) -> None:
    run = run_of(tmp_path, data_s_per_image=1e-3, step_overhead_s=2e-3)
    found = predict_own(run)
    for worker in range(2):
        own = [span for span in found.spans if span.worker == worker]
        shown = joined((span.start_s, span.end_s) for span in own if not span.hidden)
        assert len(shown) == 1 and shown[0][0] == 0.0
        assert shown[0][1] == pytest.approx(found.predicted.step_s)
        total = {kind: 0.0 for kind in ("compute", "communication", "idle", "data")}
        for span in own:
            if not span.hidden:
                total[span.kind] += span.end_s - span.start_s
        assert total["data"] == pytest.approx(4e-3)
        assert total["communication"] == pytest.approx(found.predicted.communication_s / 10)
        computing = joined((s.start_s, s.end_s) for s in own if s.kind == "compute")
        for span in own:
            if span.hidden:
                inside = [within for *_, within in pieces((span.start_s, span.end_s), computing)]
                assert all(inside), "hidden behind computing"
    assert any(span.hidden for span in found.spans)


def test_a_worker_of_a_pipeline_idles_while_the_other_computes() -> None:
    config = compose_config([*MODEL, "strategy=model_parallel"])
    graph = graph_of(config)
    timeline = simulate(lower(graph, plan_of(config, graph), 8), made_cluster(), "fp32")
    spans = {
        (worker, kind): [
            (s.start_s, s.end_s) for s in step_spans(timeline) if (s.worker, s.kind) == (worker, kind)
        ]
        for worker in range(2)
        for kind in ("idle", "compute")
    }
    idle = [sum(end - start for start, end in spans[worker, "idle"]) for worker in range(2)]
    assert idle == pytest.approx(timeline.split.idle_s.tolist()) and min(idle) > 0
    for worker in range(2):
        others = joined(spans[1 - worker, "compute"])
        assert all(any(within for *_, within in pieces(one, others)) for one in spans[worker, "idle"])


def test_pieces_of_an_interval() -> None:
    assert list(pieces((0, 10), [(-1, 1), (2, 3), (9, 12), (13, 14)])) == [
        (0, 1, True),
        (1, 2, False),
        (2, 3, True),
        (3, 9, False),
        (9, 10, True),
    ]
    assert joined([(3, 4), (0, 1), (1, 2), (3.5, 3.7)]) == [(0, 2), (3, 4)]
