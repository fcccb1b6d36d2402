"""Predictions in the library: shares of a step, combinations of a sweep, worker ranges, calibration
summaries."""

from __future__ import annotations

import dataclasses

import pytest

from parallel.calibration.summary import cluster_lines
from parallel.cli.combinations import combinations
from parallel.cli.compose import compose_config
from parallel.graph import INPUT
from parallel.plans import Layout
from parallel.prediction.predict import Predictor
from parallel.prediction.sweep import predict_all
from parallel.prediction.tables import nodes_text, ranges, sweep_table
from tests.support.made_clusters import link, made_cluster
from tests.support.small_models import graph_of

K20 = ("cluster=k20", "data=imagenet", "trainer.batch_size=128")


def test_a_batch_per_worker_predicts_weak_scaling() -> None:
    overrides = ("cluster=k20", "strategy=data_parallel", "workers=4")
    own = Predictor().predict(compose_config([*overrides, "trainer.batch_per_worker=32"]))
    weak = Predictor().predict(compose_config([*overrides, "trainer.batch_size=32"]), weak=True)
    assert own.batch_size == weak.batch_size == 128
    assert own.single.program.batch_size == weak.single.program.batch_size == 32
    assert own.speedup == weak.speedup
    with pytest.raises(ValueError, match="^trainer.batch_per_worker=32 is weak scaling by itself"):
        Predictor().predict(compose_config([*overrides, "trainer.batch_per_worker=32"]), weak=True)


def test_shares_of_a_step_add_up_to_one() -> None:
    """In a pipeline of two stages without micro-batches, one is idle while the other computes."""
    shares = Predictor().predict(compose_config([*K20, "strategy=model_parallel", "workers=2"])).shares
    assert sum(dataclasses.astuple(shares)) == pytest.approx(1.0)
    assert 0.3 < shares.idle < 0.6 and 0.3 < shares.compute < 0.6 and shares.exposed > 0


def test_a_predictor_traces_a_model_once() -> None:
    predictor = Predictor()
    graph = predictor.graph(compose_config(K20))
    assert predictor.graph(compose_config([*K20, "workers=2", "strategy=data_parallel"])) is graph
    assert predictor.graph(compose_config([*K20, "model=vgg16"])) is not graph


def test_nodes_are_named_with_their_workers() -> None:
    assert nodes_text(made_cluster(1)) == "1 node of 1 worker"
    assert nodes_text(made_cluster(2, 3)) == "3 nodes of 2 workers"
    uneven = made_cluster(2, 2, node_workers=(2, 1), speeds=(1.0, 1.0, 0.5))
    assert nodes_text(uneven) == "2 nodes of 2, 1 workers with speeds 100%, 100%, 50%"


def test_each_combination_has_a_prediction_or_a_reason() -> None:
    varied, found = combinations(
        ["cluster=dgx1", "data=imagenet", "strategy=data_parallel", "workers=1,x,16"]
    )
    assert varied == ["workers"] and [c.values for c in found] == [{"workers": v} for v in ("1", "x", "16")]
    predicted = predict_all(found)
    assert [c.prediction is not None for c in predicted] == [True, False, False]
    assert predicted[1].reason == "workers=x must be a whole number of at least 1 and at most 65,536"
    columns, rows = sweep_table(varied, predicted)
    assert {len(row) for row in rows} == {len(columns)}
    assert [row[0] for row in rows] == ["1", "x", "16"] and rows[2][-1] == predicted[2].reason != ""


@pytest.mark.parametrize(
    ("workers", "text"), [([0], "0"), ([0, 1, 2, 8], "0–2, 8"), ([0, 2, 4, 6, 8, 10], "0, 2, 4, 6 … (6)")]
)
def test_ranges_of_workers(workers: list[int], text: str) -> None:
    assert ranges(workers) == text


def test_the_summary_of_a_cluster_has_both_links_and_the_contention() -> None:
    lines = cluster_lines(
        made_cluster(2, 2, between=link(1e6, 1e-3, shared=True), core_contention=(1.0, 1.9))
    )
    assert [line.split(":")[0] for line in lines[:2]] == ["inside", "between"]
    assert "latency 1000 us, shared by the workers of a node; 5 ms for 4 kB" in lines[1]
    assert "100%, 190%" in lines[-1]
    assert len(cluster_lines(made_cluster())) == 2


def test_edges_and_trained_ops_of_a_graph() -> None:
    graph = graph_of("towers")
    assert len(graph.edges) == sum(name != INPUT for op in graph for name in op.inputs)
    assert all(graph[edge.consumer].inputs[edge.which] == edge.producer for edge in graph.edges)
    assert {op.name for op in graph if op.parameters} <= graph.trained_ops
    assert graph.ops[-1].name in graph.trained_ops


def test_holders_and_samples_of_a_layout() -> None:
    layout = Layout(on=tuple(range(36)), n=3, c=2, h=2, w=3)
    assert layout.parameter_holders == 18
    assert sum(layout.samples_by_index(10)) == 10 and len(layout.samples_by_index(10)) == 3
    assert max(layout.samples_by_index(10)) - min(layout.samples_by_index(10)) == 1
