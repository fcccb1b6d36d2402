"""The strategy `searched`: what it finds, keeps and takes from its files; and a run of it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import yaml

from parallel.cluster import Roofline, open_cluster, write_cluster
from parallel.config import ClusterConfig, StrategyConfig
from parallel.graph import Graph
from parallel.plans import read_plan
from parallel.program.lowering import lower
from parallel.results.record_files import read_record
from parallel.simulator.simulate import simulate
from parallel.strategies import build_plan
from parallel.strategies.named import named_plans
from parallel.strategies.saved import load
from parallel.strategies.searched import Candidate, confirm, find, path_of, reusable, workload_of
from parallel.strategies.strategy import Setting
from tests.support.commands import Run
from tests.support.made_clusters import link, made_cluster
from tests.support.small_models import graph_of

COMPUTE = Roofline(peak={"fp32": 1e9}, efficiency={"Conv2d": 0.5, "Linear": 0.5}, memory_bandwidth=1e9,
                   op_overhead_s=1e-6)


@pytest.fixture
def graph() -> Graph:
    return graph_of("tower")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    file = tmp_path / "cluster.yaml"
    file.write_text(write_cluster(made_cluster(inside=link(1e7, 1e-5), compute=COMPUTE)), encoding="utf-8")
    return Setting(batch_size=12, cluster=ClusterConfig(file=str(file)))


@pytest.fixture
def config(tmp_path: Path) -> StrategyConfig:
    return StrategyConfig("searched", plans=str(tmp_path / "plans"))


def test_it_is_never_predicted_to_be_slower_than_a_named_plan(graph: Graph, setting: Setting, config: StrategyConfig,
                                                              ) -> None:
    cluster = open_cluster(setting.cluster, 2)
    saved, candidates = find(graph, 2, config, setting, cluster)
    named = named_plans(graph, 2, setting)
    assert {"data_parallel", "one_weird_trick a", "model_parallel tensor"} <= set(named)
    for plan in named.values():
        seconds = simulate(lower(graph, plan, 12), cluster, "fp32").loaded_step_s
        assert saved.predicted_step_s <= seconds
    assert saved.bound_step_s <= saved.predicted_step_s == candidates[0].predicted_step_s
    assert [c.predicted_step_s for c in candidates] == sorted(c.predicted_step_s for c in candidates)


def test_what_was_found_is_kept_and_used_again(graph: Graph, setting: Setting, config: StrategyConfig,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    plan = build_plan(graph, 2, config, setting)
    (file,) = Path(config.plans).iterdir()
    saved = load(file, graph, 2)
    assert str(saved.plan) == str(plan) and saved.certificate and not saved.confirmed
    assert str(read_plan(file.read_text(encoding="utf-8"), graph, 2)) == str(plan)  # strategy=from_file runs it
    monkeypatch.setattr(sys.modules[find.__module__], "search", None)  # calling it would fail
    assert str(build_plan(graph, 2, config, setting)) == str(plan)


@pytest.mark.parametrize("change", ["batch", "cluster", "seed", "confirm"])
def test_what_was_found_for_something_else_is_not(change: str, graph: Graph, setting: Setting, config: StrategyConfig,
                                                  ) -> None:
    cluster = open_cluster(setting.cluster, 2)
    find(graph, 2, config, setting, cluster)
    assert reusable(graph, 2, config, setting, cluster)
    if change == "batch":
        setting = dataclasses.replace(setting, batch_size=8)
    elif change == "cluster":
        cluster = dataclasses.replace(cluster, inside=link(2e7))
    else:
        config = dataclasses.replace(config, **({"seed": 1} if change == "seed" else {"confirm": True}))
    assert reusable(graph, 2, config, setting, cluster) is None


def test_the_fastest_of_the_timed_candidates_wins(graph: Graph, setting: Setting, config: StrategyConfig) -> None:
    saved, candidates = find(graph, 2, config, setting, open_cluster(setting.cluster, 2))
    chosen = candidates[:3]
    confirmed = confirm(saved, chosen, [0.3, 0.1, 0.2])
    assert confirmed.plan == chosen[1].plan and confirmed.predicted_step_s == chosen[1].predicted_step_s
    assert confirmed.confirmed == dict(zip([c.label for c in chosen], [0.3, 0.1, 0.2], strict=True))
    assert isinstance(chosen[0], Candidate)


def test_a_damaged_file_is_refused_with_what_to_do(graph: Graph, setting: Setting, config: StrategyConfig) -> None:
    cluster = open_cluster(setting.cluster, 2)
    find(graph, 2, config, setting, cluster)
    path = path_of(workload_of(graph, 2, config, setting), cluster, config)
    path.write_text(path.read_text(encoding="utf-8").replace("certificate:", "certificat:"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"has no 'certificate'; delete the file to search again"):
        reusable(graph, 2, config, setting, cluster)


def test_without_a_calibration_the_command_is_named(graph: Graph, config: StrategyConfig, tmp_path: Path) -> None:
    setting = Setting(12, cluster=ClusterConfig(cache=str(tmp_path / "none")))
    with pytest.raises(ValueError, match=r"is not calibrated .*parallel\.calibrate"):
        build_plan(graph, 2, config, setting)


def test_a_run_searches_times_its_candidates_and_trains(torchrun: Run, setting: Setting, tmp_path: Path) -> None:
    file = tmp_path / "wide.yaml"
    file.write_text(Path(str(setting.cluster.file)).read_text(encoding="utf-8").replace("1 GB", "8 GB"),
                    encoding="utf-8")
    done = torchrun(2, "parallel.train", "strategy=searched", "strategy.confirm=true", "strategy.candidates=2",
                    "strategy.confirm_steps=1", f"cluster.file={file}", f"strategy.plans={tmp_path / 'plans'}",
                    "data=digits", "data.train_images=24", "data.val_images=12", "trainer.batch_size=8",
                    "trainer.epochs=1", "tracker=none")
    assert done.returncode == 0, done.stderr
    assert "searched: timed: " in done.stderr and "ms a step" in done.stderr
    (path,) = (tmp_path / "plans").iterdir()
    head = yaml.safe_load(path.read_text(encoding="utf-8"))["searched"]
    assert len(head["confirmed"]) == 2 and head["bound_step_s"] <= head["predicted_step_s"]
    (found,) = (tmp_path / "runs").rglob("record.json")
    record = read_record(found.parent)
    assert (record.strategy, record.workers) == ("searched", 2) and record.plan is not None
    assert record.plan in path.read_text(encoding="utf-8")
