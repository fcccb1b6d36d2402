"""Runs whose workers shared a GPU: rows of their own, marked, without speedups, scaling and predictions."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from parallel.cli.choices import CHOICES
from parallel.config import ClusterConfig, Config, DataConfig, Ddp
from parallel.models.alexnet import AlexNetConfig
from parallel.results.comparison import compare
from parallel.results.comparison_table import RESULTS, WHO, cells
from parallel.results.notes import notes
from parallel.results.records import Record
from parallel.results.run_summary import summary_among
from parallel.results.scaling import batch_scaling, strong_scaling, weak_scaling
from tests.support.made_records import ENVIRONMENT, WORKLOAD, made_record

GPU = {**ENVIRONMENT, "gpus": ["Some GPU"]}


def on_gpu(
    strategy: str, seconds: float, workers: int, *, share: bool | None = False, **changes: Any
) -> Record:
    """Return a record of a run on GPUs; `share` None: from before there was the option."""
    backend = "none" if workers == 1 else "gloo" if share else "nccl"
    values = {"device": "cuda", "backend": backend, "workers": workers, "environment": GPU, **changes}
    record = made_record(strategy, (seconds, seconds), **values)
    cluster = {**record.config["cluster"], "share_gpu": share}
    if share is None:
        del cluster["share_gpu"]
    return dataclasses.replace(record, config={**record.config, "cluster": cluster})


ALONE = on_gpu("single", 10.0, 1)
OWN = on_gpu("data_parallel", 6.0, 2)
SHARED = on_gpu("data_parallel", 14.0, 2, share=True)


def test_rows_of_their_own_without_speedups() -> None:
    (comparison,) = compare([ALONE, OWN, SHARED])
    single, shared, own = comparison.results  # rows by backend
    assert (single.speedup is not None, own.speedup is not None, shared.speedup) == (True, True, None)
    assert shared.efficiency is None and shared.baseline and shared.top1 == own.top1
    names, lines = cells(comparison.results, WHO + RESULTS)
    assert [line[names.index("speedup")] for line in lines] == ["1.00×", "‡", "1.67×"]
    assert [line[names.index("backend")] for line in lines] == ["-", "gloo", "nccl"]
    said = [note for note in notes(comparison) if "speedup" in note.lower()]
    assert said[0].startswith(
        "‡ Workers shared a GPU (cluster.share_gpu=true): no speedups and no scaling for data_parallel"
    )
    assert not any("there is no single" in note for note in said)


def test_the_summary_of_a_run_says_why_it_has_no_speedup() -> None:
    summary = summary_among(SHARED, [ALONE, SHARED])
    assert "speedup" not in summary
    assert summary["speedup_note"] == (
        "its workers shared a GPU (cluster.share_gpu=true): times are not compared"
    )
    assert summary_among(OWN, [ALONE, OWN])["speedup"] == pytest.approx(10 / 6)


def test_the_option_separates_rows_only_where_it_is_on() -> None:
    older, newer = on_gpu("ddp", 6.0, 2, share=None), on_gpu("ddp", 6.5, 2)
    shared = on_gpu("ddp", 14.0, 2, share=True, backend="nccl")
    (comparison,) = compare([older, newer, shared])
    assert [len(result.records) for result in comparison.results] == [2, 1]
    alone = on_gpu("single", 10.0, 1, share=True)
    assert not alone.shares_gpu, "a single worker shares with nobody"


def test_no_scaling_of_shared_gpus() -> None:
    shared = [on_gpu("data_parallel", 10.0 + n, n, share=True) for n in (2, 4)]
    own = [on_gpu("data_parallel", 10.0 / n, n) for n in (2, 4)]
    batches = [
        dataclasses.replace(SHARED, workload=dataclasses.replace(WORKLOAD, batch_size=n)) for n in (64, 128)
    ]
    comparisons = compare([ALONE, *shared])
    assert strong_scaling(comparisons) == [] and batch_scaling(compare([ALONE, *batches])) == []
    assert weak_scaling(compare([ALONE, *batches])) == []
    (scaling,) = strong_scaling(compare([ALONE, *shared, *own]))
    assert [(point.workers, point.result.shares_gpu) for point in scaling.points] == [
        (1, False),
        (2, False),
        (4, False),
    ]


def test_commands_that_measure_refuse_shared_gpus() -> None:
    with pytest.raises(ValueError, match="is for checking results, and calibration measures times"):
        ClusterConfig(share_gpu=True).require_own_gpus("calibration")
    ClusterConfig().require_own_gpus("calibration")


def test_peers_other_than_ddp_are_refused() -> None:
    share = ClusterConfig(share_gpu=True)
    model, data = AlexNetConfig(), DataConfig("digits")
    assert Config(model, data, Ddp(), share).cluster.share_gpu
    with pytest.raises(
        ValueError, match="does not work with strategy=fsdp2, whose messages gloo does not have"
    ):
        Config(model, data, CHOICES["strategy"]["fsdp2"], share)
