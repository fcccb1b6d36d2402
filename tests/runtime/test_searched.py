"""The strategy `searched`: plans that it finds, keeps and reads from its files; and a run."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import yaml

from parallel.cli.compose import compose_config
from parallel.cluster import Roofline, open_cluster, write_cluster
from parallel.config import ClusterConfig, Searched
from parallel.plans import Plan, read_plan
from parallel.prediction.plans import plan_of
from parallel.program.lowering import lower
from parallel.results import step_timeline
from parallel.results.record_files import read_record
from parallel.search.kept_plans import load
from parallel.search.resolve import Request, confirm, find, resolve, reuse
from parallel.simulator.simulate import simulate
from parallel.strategies.named import named_plans
from tests.support.commands import Run
from tests.support.made_clusters import link, made_cluster
from tests.support.small_models import graph_of

COMPUTE = Roofline(
    peak={"fp32": 1e9}, efficiency={"Conv2d": 0.5, "Linear": 0.5}, memory_bandwidth=1e9, op_overhead_s=1e-6
)


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    file = tmp_path / "cluster.yaml"
    file.write_text(write_cluster(made_cluster(inside=link(1e7, 1e-5), compute=COMPUTE)), encoding="utf-8")
    return file


@pytest.fixture
def request_(cluster_file: Path, tmp_path: Path) -> Request:
    cluster = open_cluster(ClusterConfig(file=str(cluster_file)), 2)
    return Request(graph_of("tower"), 2, 12, "fp32", cluster, Searched(plans=str(tmp_path / "plans")))


def named(request: Request) -> dict[str, Plan]:
    return named_plans(request.graph, request.workers, request.batch_size)


def test_it_is_never_predicted_to_be_slower_than_a_named_plan(request_: Request) -> None:
    plans = named(request_)
    kept, candidates = find(request_, plans)
    assert {"data_parallel", "one_weird_trick a", "model_parallel tensor"} <= set(plans)
    for plan in plans.values():
        seconds = simulate(lower(request_.graph, plan, 12), request_.cluster, "fp32").loaded_step_s
        assert kept.predicted_step_s <= seconds
    assert kept.bound_step_s <= kept.predicted_step_s == candidates[0].predicted_step_s
    assert [c.predicted_step_s for c in candidates] == sorted(c.predicted_step_s for c in candidates)


def test_what_was_found_is_kept_and_used_again(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = resolve(request_, named(request_))
    (file,) = Path(request_.options.plans).iterdir()
    kept = load(file, request_.graph, 2)
    assert str(kept.plan) == str(plan) and kept.certificate and not kept.confirmed
    # `from_file` runs it.
    assert str(read_plan(file.read_text(encoding="utf-8"), request_.graph, 2)) == str(plan)
    monkeypatch.setattr(sys.modules[find.__module__], "search", None)  # calling it would fail
    assert str(resolve(request_, named(request_))) == str(plan)


@pytest.mark.parametrize("change", ["batch", "cluster", "calibration", "seed", "time_limit", "confirm"])
def test_what_was_found_for_something_else_is_not(change: str, request_: Request) -> None:
    calibrated = dataclasses.replace(request_.cluster, machine={"cores": "2"})
    if change == "calibration":
        request_ = dataclasses.replace(request_, cluster=calibrated)
    find(request_, named(request_))
    assert reuse(request_)
    other = {
        "batch": {"batch_size": 8},
        "cluster": {"cluster": dataclasses.replace(request_.cluster, inside=link(2e7))},
        "calibration": {"cluster": dataclasses.replace(calibrated, inside=link(2e7))},
        "seed": {"options": dataclasses.replace(request_.options, seed=1)},
        "time_limit": {"options": dataclasses.replace(request_.options, time_limit_s=0.01)},
        "confirm": {"options": dataclasses.replace(request_.options, confirm=True)},
    }[change]
    assert reuse(dataclasses.replace(request_, **other)) is None  # type: ignore[arg-type]


def test_the_fastest_of_the_timed_candidates_wins(request_: Request) -> None:
    kept, candidates = find(request_, named(request_))
    chosen = candidates[:3]
    confirmed = confirm(kept, chosen, [0.3, 0.1, 0.2])
    assert kept.plan != chosen[1].plan, "the search alone chose another"
    assert confirmed.plan == chosen[1].plan and confirmed.predicted_step_s == chosen[1].predicted_step_s
    assert confirmed.confirmed == dict(zip([c.label for c in chosen], [0.3, 0.1, 0.2], strict=True))


def test_a_damaged_file_is_refused_with_what_to_do(request_: Request) -> None:
    find(request_, named(request_))
    path = request_.path
    path.write_text(path.read_text(encoding="utf-8").replace("certificate:", "certificat:"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"searched lacks certificate .*; delete the file to search again"):
        reuse(request_)


def test_without_a_calibration_the_command_is_named(tmp_path: Path) -> None:
    config = compose_config(["strategy=searched", "workers=2", f"cluster.cache={tmp_path / 'none'}"])
    with pytest.raises(ValueError, match=r"is not calibrated .*parallel\.calibrate"):
        plan_of(config, graph_of("tower"))


def test_a_run_searches_times_its_candidates_and_trains(
    torchrun: Run, cluster_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "wide.yaml"
    file.write_text(cluster_file.read_text(encoding="utf-8").replace("1 GB", "8 GB"), encoding="utf-8")
    done = torchrun(
        2,
        "parallel.train",
        "strategy=searched",
        "strategy.confirm=true",
        "strategy.candidates=2",
        "strategy.confirm_steps=1",
        f"cluster.file={file}",
        f"strategy.plans={tmp_path / 'plans'}",
        "model=small",
        "data=digits",
        "data.train_images=24",
        "data.val_images=12",
        "trainer.batch_size=8",
        "trainer.epochs=1",
        "tracker=none",
    )
    assert done.returncode == 0, done.stderr
    assert "searched: timed: " in done.stderr and "ms a step" in done.stderr
    (path,) = (tmp_path / "plans").iterdir()
    head = yaml.safe_load(path.read_text(encoding="utf-8"))["searched"]
    assert len(head["confirmed"]) == 2 and head["bound_step_s"] <= head["predicted_step_s"]
    (found,) = (tmp_path / "runs").rglob("record.json")
    record = read_record(found.parent)
    assert (record.strategy, record.workers) == ("searched", 2) and record.plan is not None
    assert record.plan in path.read_text(encoding="utf-8")
    assert record.predicted is not None and not record.predicted.calibrated
    assert "warning: prediction: cluster made is described by data sheets" in done.stderr
    step = step_timeline.read(found.parent / step_timeline.FILE)
    assert {span.worker for span in step.measured} == {span.worker for span in step.predicted} == {0, 1}
    assert "predicted: " in done.stdout and "× the prediction" in done.stdout
