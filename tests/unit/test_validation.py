"""Validations: statistics by hand, complete or rejected JSON files, the section of the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from parallel.compare import main
from parallel.results.record_files import write_record
from parallel.results.report import write_report
from parallel.results.report.validation import section
from parallel.results.validation import (
    StepSplit,
    Terms,
    find_validations,
    groups,
    interval_half_width,
    read_validation,
    statistics,
    write_validation,
)
from parallel.results.validation_table import subsets, summary, verdict
from tests.support.html import Tags
from tests.support.made_records import made_record
from tests.support.made_validations import row, validation

FOUR = (
    row(1.0, 1.0, "a"),
    row(2.2, 2.0, "b"),
    row(2.8, 4.0, "c <&>", kind="random", held_out=True),
    row(3.0, 3.0, "d", kind="optimum", held_out=True),
)
"""Errors 0, 0.1, −0.3, 0; of the six pairs only c and d are in the wrong order."""


def test_errors_rank_and_regret_by_hand() -> None:
    found = statistics(FOUR)
    assert found.rows == 4
    assert found.mean == pytest.approx(0.1) and found.largest == pytest.approx(0.3)
    assert found.tau == pytest.approx((5 - 1) / 6)
    assert found.regret == 1.0
    chosen_worse = statistics([row(1.0, 1.5), row(1.2, 1.0)])
    assert chosen_worse.regret == 1.5 and chosen_worse.tau == -1.0


def test_terms_add_up_to_the_mean_signed_error() -> None:
    """Measured 4 s: computing 3, exposed 1. Predicted 5 s: computing 2, exposed 2, idle 1."""
    found = statistics([row(5.0, 4.0, predicted=StepSplit(2.0, 2.0, 1.0)), row(1.0, 1.0)])
    assert found.terms == Terms(pytest.approx(-0.125), pytest.approx(0.125), pytest.approx(0.125))
    assert found.terms.compute + found.terms.exposed + found.terms.idle == pytest.approx((0.25 + 0.0) / 2)


def test_plans_are_ranked_among_those_for_the_same_workers_and_batch() -> None:
    """Each group is in order, but all rows together would not be; regret is the maximum over the
    groups, τ the mean."""
    small = [row(1.0, 1.0, batch_size=64), row(1.1, 2.0, batch_size=64)]
    large = [row(0.5, 3.0), row(0.6, 2.0), row(0.7, 4.0)]
    assert list(groups([*large, *small])) == [(2, 64), (2, 128)]
    assert statistics(small).tau == 1.0
    assert statistics(large).tau == pytest.approx(1 / 3) and statistics(large).regret == 1.5
    both = statistics([*large, *small])
    assert both.tau == pytest.approx((1 + 1 / 3) / 2) and both.regret == 1.5


def test_one_plan_has_no_rank() -> None:
    found = statistics([row(1.0, 1.0)])
    assert found.tau is None and found.regret == 1.0 and found.missed() == []
    with pytest.raises(ValueError, match="rows=0 must be at least 1"):
        statistics([])


def test_missed_targets_are_named_of_the_held_out_rows() -> None:
    assert verdict([row(1.0, 1.0), row(2.0, 2.0)]) == "All targets are met (all plans; none is held out)."
    assert verdict(FOUR) == (
        "Targets missed (held-out plans): mean error 15 % (target: at most 5 %); "
        "largest error 30 % (target: at most 15 %); τ -1 (target: at least 0.9); "
        "regret 1.33 (target: at most 1.03)."
    )


def test_summary_has_the_subsets() -> None:
    names = [name for name, _ in subsets([*FOUR, row(1.0, 1.0, batch_size=96)])]
    assert names == [
        "all",
        "held out",
        "2 workers, batch 96",
        "2 workers, batch 128",
        "named plans",
        "optimum plans",
        "random plans",
    ]
    assert summary(FOUR)[0][:6] == ["all", "4", "10.0 %", "30.0 %", "0.667", "1.000"]
    assert summary(FOUR)[-1][4:6] == ["-", "-"]


def test_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "validation-2.json"
    whole = validation(*FOUR)
    write_validation(path, whole)
    assert read_validation(path) == whole
    assert find_validations([tmp_path]) == ([whole], [])
    assert [file.name for file in path.parent.iterdir()] == ["validation-2.json"]


def test_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "validation.json"
    write_validation(path, validation(*FOUR))
    content = path.read_bytes()
    for length in range(0, len(content) - 2, 97):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is truncated or not JSON"):
            read_validation(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("seed"), "validation lacks seed"),
        (lambda v: v.update(format=2), "format=2 must be 1"),
        (lambda v: v.update(rows={}), "rows={} must be a list"),
        (lambda v: v.update(rows=[]), "rows=0 must be at least 1"),
        (lambda v: v.update(rows=["a"]), r"rows\[0\]='a' must be a mapping"),
        (lambda v: v["rows"][0].update(kind="odd"), "kind=odd is not known"),
        (lambda v: v["rows"][0].update(measured_s="1"), "measured_s='1' must be a number"),
        (lambda v: v["rows"][0].update(measured_s=-1.0), "measured_s=-1.0 must be at least 1e-09"),
        (lambda v: v["rows"][0].update(predicted_s=math.inf), "Infinity is not a number"),
        (lambda v: v["rows"][0].update(predicted_s=1e308), r"predicted_s=1e\+308 must be at least"),
        (lambda v: v["rows"][0].update(measured_s=9.0), "must lie between its quartiles"),
        (lambda v: v["rows"][0]["measured"].update(idle_s=1.0), "must add up to measured_s=1.0"),
        (lambda v: v["rows"][0]["measured"].pop("idle_s"), r"rows\[0\].measured lacks idle_s"),
    ],
)
def test_what_does_not_fit_is_named_with_its_file(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "validation.json"
    write_validation(path, validation(*FOUR))
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        read_validation(path)
    with pytest.raises(ValueError, match="can't be read: No such file"):
        read_validation(tmp_path / "other.json")


def test_section_is_well_formed_and_has_a_dot_for_each_row(tmp_path: Path) -> None:
    found = section(validation(*FOUR))
    write_report(tmp_path / "report.html", [], [found])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(html)
    assert tags.open == [] and tags.requests == []
    assert found.title == "Predicted and measured steps, 2 workers"
    assert found.body.count("<circle") == 4
    assert found.body.count('fill="var(--ground)"') == 2  # hollow: held out
    assert "5% off" in found.body and "15% off" in found.body
    assert "c &lt;&amp;&gt;" in found.body and "c <&>" not in html
    assert ">c &lt;&amp;&gt;</text>" in found.body  # more than 15 % off: named in the plot
    assert "Targets missed (held-out plans)" in found.body


def test_compare_shows_validations_beside_records_and_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_validation(tmp_path / "validation-2.json", validation(*FOUR))
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "2 workers, global batch 128" in out and "held out" in out and "-30.0 %" in out
    assert "Predicted and measured steps" in (tmp_path / "report.html").read_text(encoding="utf-8")
    write_record(tmp_path / "run", made_record("single"))
    assert main([str(tmp_path)]) == 0
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Epoch times" in html and "Predicted and measured steps" in html
    (tmp_path / "validation-2.json").write_text("{")
    assert main([str(tmp_path)]) == 0
    assert "warning: left out: " in (err := capsys.readouterr().err) and "is truncated or not JSON" in err
    assert "Left out: " in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_interval_holds_19_of_20_measurements() -> None:
    rows = [row(1.0, 1 + i / 100) for i in range(20)]
    assert interval_half_width(rows) == pytest.approx(0.18)
    assert interval_half_width([row(2.0, 1.0)]) == 0.5
