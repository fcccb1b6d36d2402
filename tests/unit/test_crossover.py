"""Who wins where: cells, ties, borders, predictions with other links, and the page."""

from __future__ import annotations

import dataclasses
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from parallel.cli.crossover import predict_crossover
from parallel.compare import main
from parallel.prediction.crossover import finer_batches, finer_rates, with_links
from parallel.results.comparison import compare
from parallel.results.crossover import (
    NOT_LIMITED,
    Crossover,
    PredictedCell,
    PredictedMap,
    crossovers,
    link_rate,
)
from parallel.results.crossover_table import crossover_notes, crossover_table
from parallel.results.load import Load
from parallel.results.predicted import Predicted
from parallel.results.record_files import write_record
from parallel.results.records import Record
from parallel.results.report.crossover import crossover_sections
from tests.support.made_clusters import link, made_cluster
from tests.support.made_records import ENVIRONMENT, WORKLOAD, made_hosts, made_record


def run(
    strategy: str,
    batch: int,
    seconds: Sequence[float],
    rate: str | None = "1gbit",
    *,
    images: int = 1000,
    predicted_s: float | None = None,
    **more: Any,
) -> Record:
    """Return a run on two emulated hosts, or on one of them for `single`, with enough epochs for an
    interval."""
    emulated = {"hosts": 2, "rate": rate, "delay": None, "speed": "100%", "cores": 1}
    predicted = None
    if predicted_s is not None:
        parts = {"communication_s": 0.0, "idle_s": 0.0, "data_wait_s": 0.0}
        predicted = Predicted(
            epoch_s=predicted_s,
            step_s=predicted_s,
            compute_s=predicted_s,
            cluster="local",
            calibrated=True,
            **parts,
        )
    workload = dataclasses.replace(WORKLOAD, batch_size=batch, train_images=images)
    return made_record(
        strategy,
        tuple(seconds) * 4,
        name=f"{strategy} {batch} {rate}",
        workload=more.pop("workload", workload),
        environment={**ENVIRONMENT, "emulated": emulated},
        hosts=made_hosts(1) if strategy == "single" else made_hosts(1, 1, bandwidth=1e8),
        predicted=predicted,
        **more,
    )


SLOW, EQUAL, FAST = (2.0, 2.1, 2.05), (1.0, 1.5, 1.25), (1.0, 1.05, 1.02)
RUNS = (
    run("single", 32, SLOW),
    run("data_parallel", 32, SLOW, predicted_s=2.0),
    run("one_weird_trick", 32, FAST, scheme="a", predicted_s=1.0),
    run("data_parallel", 64, (1.2, 1.3, 1.1), predicted_s=1.2),
    run("one_weird_trick", 64, EQUAL, scheme="a", predicted_s=1.3),
    run("data_parallel", 64, FAST, None, predicted_s=1.5),
    run("one_weird_trick", 64, SLOW, None, scheme="a", predicted_s=1.2),
)


def only(records: Sequence[Record]) -> Crossover:
    (found,) = crossovers(compare(records))
    return found


def test_cells_are_rates_and_batches_with_the_fastest_first() -> None:
    found = only(RUNS)
    assert (found.rates, found.batches, found.workers) == ((1e9, NOT_LIMITED), (32, 64), 2)
    assert found.hardware == "cpu: Some CPU, 2 cores, 2 emulated hosts", "without the rate"
    labels = {(c.rate, c.batch): [r.label for r in c.results] for c in found.cells}
    assert labels == {
        (1e9, 32): ["one_weird_trick a", "single", "data_parallel"],
        (1e9, 64): ["data_parallel", "one_weird_trick a"],
        (NOT_LIMITED, 64): ["data_parallel", "one_weird_trick a"],
    }
    assert found.cell(NOT_LIMITED, 32) is None
    assert list(found.labels) == ["single", "data_parallel", "one_weird_trick a"]


def test_a_lead_whose_interval_contains_one_is_a_tie() -> None:
    found = only(RUNS)
    clear, tie = found.cell(1e9, 32), found.cell(1e9, 64)
    assert clear is not None and tie is not None
    assert clear.by.ratio == pytest.approx(2.05 / 1.02) and not clear.tie
    assert tie.by.ratio == pytest.approx(1.25 / 1.2) and tie.tie


def test_a_single_epoch_is_no_tie_and_has_no_interval() -> None:
    found = only([dataclasses.replace(r, epochs=r.epochs[:1]) for r in RUNS])
    assert not any(cell.tie for cell in found.cells)
    assert any("too few epochs" in note for note in crossover_notes(found, None))


def test_below_ten_epochs_a_lead_has_no_interval() -> None:
    found = only([dataclasses.replace(r, epochs=r.epochs[:9]) for r in RUNS])
    assert all(cell.by.low is None for cell in found.cells)
    assert all(cell.by.covers == "within-run" for cell in only(RUNS).cells)


def test_runs_that_did_not_train_win_nothing_and_doubtful_times_are_marked() -> None:
    noisy = Load(processes=1.9, steal=0.2, clock_mhz=2000)
    records = [
        record
        for batch in (32, 64)
        for record in (
            run("single", batch, SLOW),
            run("data_parallel", batch, SLOW, load=noisy),
            run("model_parallel", batch, (2.5, 2.5), scheme="layers"),
            run("one_weird_trick", batch, FAST, scheme="a", weights_changed=False),
        )
    ]
    found = only(records)
    assert [cell.winner.label for cell in found.cells] == ["single"] * 2
    columns, rows = crossover_table(found)
    first = dict(zip(columns, rows[0], strict=True))
    assert first["one_weird_trick a s"] == "1.02✗" and first["data_parallel s"] == "2.05!"
    assert first["by"] == "1.00×!" and first["95 %"].endswith("†"), "the runner-up is noisy"
    notes = "\n".join(crossover_notes(found, None))
    assert "Not trained ✗, no winner where another one trained: one_weird_trick a (" in notes
    assert "(1 Gbit/s, batch 32), and 1 other cell likewise" in notes
    assert "Noisy !: data_parallel (" in notes
    (section,) = crossover_sections([(found, None)])
    assert "1.02✗" in section.body and "1.00×!" in section.body

    nobody = [dataclasses.replace(r, weights_changed=False) for r in records]
    assert [cell.winner.label for cell in only(nobody).cells] == ["one_weird_trick a"] * 2
    alone = [r for r in records if r.strategy in ("data_parallel", "one_weird_trick")]
    assert crossovers(compare(alone)) == [], "one result that trained is no contest"


@pytest.mark.parametrize(
    "records", [RUNS[:3], RUNS[:2] + RUNS[3:4], [run("single", b, SLOW) for b in (32, 64)]]
)
def test_one_cell_or_one_strategy_is_no_crossover(records: Sequence[Record]) -> None:
    assert crossovers(compare(records)) == []


def test_image_sizes_and_numbers_of_workers_have_maps_of_their_own() -> None:
    wide = dataclasses.replace(WORKLOAD, image_size=128, train_images=1000)
    pairs = [("data_parallel", SLOW), ("one_weird_trick", FAST)]
    large = [
        run(name, batch, seconds, workload=dataclasses.replace(wide, batch_size=batch))
        for batch in (32, 64)
        for name, seconds in pairs
    ]
    four = [
        dataclasses.replace(run(name, batch, seconds), workers=4, hosts=made_hosts(2, 2))
        for batch in (32, 64)
        for name, seconds in pairs
    ]
    found = crossovers(compare([*large, *RUNS, *four]))
    assert [(c.workload.image_size, c.workers) for c in found] == [(64, 2), (64, 4), (128, 2)]


def test_images_may_follow_the_batch_but_times_of_unequal_epochs_are_never_compared() -> None:
    pairs = [("data_parallel", SLOW), ("one_weird_trick", FAST)]
    follow = [run(name, batch, s, images=batch) for batch in (32, 64) for name, s in pairs]
    assert [c.workload.train_images for c in crossovers(compare(follow))] == [None]
    fixed = [run(name, batch, s, images=500) for batch in (32, 64) for name, s in pairs]
    both = [dataclasses.replace(r, workload=dataclasses.replace(r.workload, train_images=900)) for r in fixed]
    found = crossovers(compare([*fixed, *both]))
    assert sorted(c.workload.train_images or 0 for c in found) == [500, 900]
    assert all(len(cell.results) == 2 for c in found for cell in c.cells)


def test_the_rate_of_a_run() -> None:
    assert link_rate(RUNS[0]) == 1e9 and link_rate(RUNS[-1]) == link_rate(made_record()) == NOT_LIMITED
    unequal = {**ENVIRONMENT, "emulated": {"hosts": 2, "rate": ["1gbit", "100mbit"]}}
    assert link_rate(made_record(environment=unequal)) == 1e8


@pytest.mark.parametrize("rate", ["fast", 7, ["1gbit", "x"], "1gbit\x1b[2J"])
def test_a_record_with_another_rate_is_refused(rate: object) -> None:
    with pytest.raises(ValueError, match="rate=.* must be"):
        made_record(environment={**ENVIRONMENT, "emulated": {"hosts": 2, "rate": rate}})


def test_predicted_winners_are_those_of_the_runs() -> None:
    cells = only(RUNS[1:]).cells
    assert [c.predicted and c.predicted.label for c in cells] == [
        "one_weird_trick a",
        "data_parallel",
        "one_weird_trick a",
    ]
    first = only(RUNS).cells[0]
    assert first.predicted is None, "single has no prediction"
    notes = crossover_notes(only(RUNS[1:]), None)
    assert notes == [
        "Of 3 cells, data_parallel wins 1, one_weird_trick a wins 1, 1 is a tie",
        "Intervals marked † cover the variation within a run only, not that between runs (repeats=3 in the "
        "sweep runs each three times)",
        "The winner was predicted by the runs themselves in 1 of 2 cells without a tie",
    ]


def predicted(*steps: tuple[int, float, float], rate: float = 1e9) -> PredictedMap:
    """Return predictions of data_parallel and one_weird_trick a, by batch."""
    return PredictedMap(
        "made",
        tuple(
            PredictedCell(rate, batch, {"data_parallel": one, "one_weird_trick a": other})
            for batch, one, other in steps
        ),
    )


def test_a_border_is_where_the_predicted_times_are_equal() -> None:
    # Ratios of 2 at batch 32 and 1/2 at batch 128: equal in the middle of the logarithms.
    found = predicted((32, 2.0, 1.0), (128, 2.0, 4.0), (512, 2.0, 5.0))
    assert found.borders(1e9) == [(pytest.approx(64), "one_weird_trick a", "data_parallel")]
    third = predicted((32, 2.0, 1.0), (128, 1.0, 4.0))
    assert third.borders(1e9)[0][0] == pytest.approx(32 * 4 ** (1 / 3)), "ratios of 2 and 1/4"
    assert predicted((32, 2.0, 1.0), (128, 2.0, 1.9)).borders(1e9) == []


def test_notes_name_the_predicted_borders() -> None:
    # (ratio of 2 at 32, of 1/2 at 64)
    found = predicted((32, 2.0, 1.0), (64, 1.0, 2.0))
    notes = crossover_notes(only(RUNS[1:5]), found)
    assert "The winner was predicted with cluster made in 1 of 1 cell without a tie" in notes
    assert notes[-1] == "Predicted at 1 Gbit/s: one_weird_trick a below batch 45, data_parallel above"
    whole = crossover_notes(only(RUNS[1:5]), predicted((32, 2.0, 1.0), (64, 1.9, 1.0)))
    assert whole[-1] == "Predicted at 1 Gbit/s: one_weird_trick a from batch 32 to 64"


def test_the_table() -> None:
    columns, rows = crossover_table(only(RUNS))
    first, second, third = (dict(zip(columns, row, strict=True)) for row in rows)
    assert (first["link"], first["batch"], first["winner"], first["by"]) == (
        "1 Gbit/s",
        "32",
        "one_weird_trick a",
        "2.01×",
    )
    assert second["winner"] == "tie: data_parallel, one_weird_trick a" and second["single s"] == "-"
    assert (third["link"], third["data_parallel s"]) == ("not limited", "1.02")


def test_the_page_shows_winners_ties_and_borders() -> None:
    fine = predicted((32, 2.0, 1.0), (64, 1.0, 2.0))
    (section,) = crossover_sections([(only(RUNS[1:5]), fine)])
    assert section.title.startswith("Who wins where: alexnet owt · digits · 64 px")
    measured, finer = re.findall(r"<svg.*?</svg>", section.body, re.DOTALL)
    for svg in (measured, finer):
        ElementTree.fromstring(svg)
        assert "nan" not in svg and "inf" not in svg
    assert ">one_weird_trick a</text>" in measured and ">tie</text>" in measured
    at = re.search(
        r'<title>predicted: one_weird_trick a below batch 45[^<]*</title><line x1="([\d.]+)"', measured
    )
    left, middle, right = 120, (120 + 1184) / 2, 1184
    assert at is not None and float(at[1]) == pytest.approx(middle, abs=0.1), "between both columns"
    assert left < float(at[1]) < right
    assert "data_parallel at 1 Gbit/s, batch 64" in finer


def test_the_page_has_a_map_for_each_image_size() -> None:
    def runs(pixels: int, times: dict[str, Sequence[float]]) -> list[Record]:
        workload = dataclasses.replace(WORKLOAD, image_size=pixels, train_images=1000)
        return [
            run(name, batch, seconds, workload=dataclasses.replace(workload, batch_size=batch))
            for batch in (32, 64)
            for name, seconds in times.items()
        ]

    small = runs(64, {"data_parallel": FAST, "one_weird_trick": SLOW})
    large = runs(128, {"data_parallel": SLOW, "one_weird_trick": FAST})
    sections = crossover_sections([(one, None) for one in crossovers(compare([*large, *small]))])
    for section, pixels, winner in zip(
        sections, ("64 px", "128 px"), ("data_parallel", "one_weird_trick a"), strict=True
    ):
        assert f" · {pixels} · " in section.title
        (drawn,) = re.findall(r"<svg.*?</svg>", section.body, re.DOTALL)
        assert re.findall(r'class="strong"[^>]*>([^<]*)<', drawn) == [winner, winner]


def test_a_cluster_with_other_links() -> None:
    one_node = made_cluster(2, inside=link(1e9, 1e-3), core_contention=(1.0, 1.5))
    apart = with_links(one_node, 2, 2, 1e9)
    assert (apart.nodes, apart.workers_per_node, apart.core_contention) == (2, 1, (1.0,))
    assert apart.between == link(1e9 / 8, 1e-3) and apart.inside == one_node.inside
    assert with_links(one_node, 2, 2, NOT_LIMITED).between == link(1e9, 1e-3)
    shared = with_links(made_cluster(2, nodes=2), 2, 4, 1e9).between
    assert shared == link(1e5, shared=True), "the link between nodes, which is slower than the rate"
    with pytest.raises(ValueError, match="^workers=3 must be a multiple of the 2 hosts"):
        with_links(one_node, 2, 3, 1e9)


def test_the_grid_is_finer_and_goes_beyond() -> None:
    batches = finer_batches([32, 512], 2)
    assert {32, 512} <= set(batches) and batches == sorted(batches) and batches[-1] == 4096
    assert all(batch % 2 == 0 for batch in batches) and len(batches) == 15
    assert finer_rates([1e9, 5e9, NOT_LIMITED]) == [5e8, 1e9, 2e9, 5e9, 8e9, NOT_LIMITED]
    assert finer_rates([NOT_LIMITED]) == [NOT_LIMITED] and math.isinf(NOT_LIMITED)


def test_searched_is_left_out_of_the_predicted_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallel.cli.crossover.predict_map", lambda configs, *_: list(configs))
    monkeypatch.setattr("parallel.cli.crossover.open_cluster", lambda *_, **__: None)
    found = only([*RUNS[:3], *(run("searched", batch, FAST) for batch in (32, 64)), *RUNS[3:5]])
    with pytest.warns(UserWarning, match="^searched is left out of the predicted borders"):
        kept = predict_crossover(found, "k20")
    assert kept == ["single", "data_parallel", "one_weird_trick a"]


def test_the_command_predicts_borders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only the measured cells: the grid has a test of its own.
    monkeypatch.setattr("parallel.prediction.crossover.finer_rates", sorted)
    monkeypatch.setattr("parallel.prediction.crossover.finer_batches", lambda batches, workers: batches)
    for i, record in enumerate([*RUNS[1:5], run("ddp", 32, SLOW)]):
        write_record(tmp_path / str(i), record)
    assert main([str(tmp_path), "borders=k20"]) == 0
    out = capsys.readouterr().out
    assert "Who wins where: alexnet owt" in out and "with cluster k20" in out
    assert "Predicted at 1 Gbit/s: " in out
    assert main([str(tmp_path / "0"), "borders=k20"]) == 2
    assert "borders=k20 needs runs of several strategies" in capsys.readouterr().err
    assert main([str(tmp_path), "borders=nowhere"]) == 2
    assert "cluster=nowhere is not known" in capsys.readouterr().err
