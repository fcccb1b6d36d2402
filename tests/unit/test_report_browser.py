"""The report in a browser: nothing is cut on a phone, on a screen and on paper, and tables sort."""

from __future__ import annotations

from pathlib import Path

import pytest

from parallel.results.comparison import compare
from parallel.results.predicted import Predicted
from parallel.results.records import Record
from parallel.results.report.html import HtmlLine, HtmlTable, render, sort_number
from parallel.results.report.page import page
from tests.support.browser import in_browser
from tests.support.made_records import made_epochs, made_hosts, made_record

PAPER = 1031
"""Pixels of a line on A4 in landscape, with margins of 12 mm."""


def sweep() -> list[Record]:
    """Return runs that differ in three settings, with predictions of some length."""
    records = []
    for lr in (0.01, 0.001):
        trainer = {
            "lr": lr,
            "momentum": 0.9 if lr < 0.005 else 0.8,
            "schedule": "step" if lr < 0.005 else "constant",
        }
        for strategy, seconds in (("single", 1000.0), ("one_weird_trick", 700.0)):
            parts = {"compute_s": 1.0, "communication_s": 0.0, "idle_s": 0.0, "data_wait_s": 0.0}
            records.append(
                made_record(
                    strategy,
                    epochs=made_epochs([seconds] * 10),
                    scheme=None if strategy == "single" else "a",
                    hosts=made_hosts(1) if strategy == "single" else made_hosts(1, 1, bandwidth=1.25e8),
                    trainer=trainer,
                    predicted=Predicted(
                        epoch_s=0.8 * seconds, step_s=1.0, cluster="local", calibrated=True, **parts
                    ),
                )
            )
    return records


def test_on_a_phone_the_result_is_inside_and_the_settings_are_below_the_strategy(tmp_path: Path) -> None:
    found = in_browser(
        page(compare(sweep())),
        390,
        """
        const table = page.querySelector("section .table table");
        const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
        const shown = heads.filter((head) => head.getBoundingClientRect().width > 0);
        const below = table.tBodies[0].querySelector(".below");
        return {
          columns: shown.map((head) => head.textContent),
          right: Math.max(...shown.map((head) => head.getBoundingClientRect().right)),
          below: [below.textContent, getComputedStyle(below).display],
          page: page.documentElement.scrollWidth,
        };""",
        tmp_path,
    )
    assert found["columns"] == ["strategy", "scheme", "median", "speedup"]
    assert found["right"] <= 390 and found["page"] <= 390
    assert found["below"] == ["lr=0.001 momentum=0.9 schedule=step", "block"]


@pytest.mark.parametrize("width", [390, 1280, PAPER])
def test_no_text_beside_a_bar_is_cut(width: int, tmp_path: Path) -> None:
    html = page(compare(sweep()))
    if width == PAPER:
        html = html.replace("@media print", "@media all")
    texts, cut = in_browser(
        html,
        width,
        """
        const texts = [...page.querySelectorAll(".lane b, .lane small, .lane .value, .lane .who")];
        const outside = (text) => text.scrollWidth > text.clientWidth + 1 && text.clientWidth > 0;
        const cut = texts.filter((text) => outside(text) || text.getBoundingClientRect().right > width);
        return [texts.length, cut.map((text) => text.textContent)];""",
        tmp_path,
    )
    assert texts > 20 and cut == []


def test_columns_sort_by_number_unit_and_text(tmp_path: Path) -> None:
    cells = [
        ("ddp", "1e-05", "step", "41.8 s", "1.60×!"),
        ("single", "0.1", "constant", "1.48 min", ""),
        ("fsdp2", "0.001", "step", "2.00 h", "10.00×"),
        ("x", "0.01", "-", "-", "2.50× "),
    ]
    columns = ("strategy", "lr", "schedule", "time", "speedup")
    lines = [HtmlLine(["" if cell == "-" else cell for cell in line]) for line in cells]
    table = HtmlTable(columns, lines, words=columns[:1])
    body = render("report.html.j2", title="", about="", foot="", overview=table, fewer="", views=[],
        sections=[], left_out=[], running=None, live=None, runs=[], fewer_runs="", seconds=str,
        strategy_colour=str, workers_and_threads=str)  # fmt: skip
    found = in_browser(
        body,
        1280,
        """
        const table = page.querySelector("table"), body = table.tBodies[0];
        const column = (i) => [...body.rows].map((row) => row.cells[i].textContent.trim());
        const sorted = [0, 1, 2, 3, 4].map((i) => {
          table.tHead.rows[0].cells[i].click();
          const up = column(i);
          table.tHead.rows[0].cells[i].click();
          return [up, column(i)];
        });
        return sorted;""",
        tmp_path,
    )
    (strategy, _), (lr, falling), (schedule, words), (time, back), (speedup, _) = found
    assert strategy == ["ddp", "fsdp2", "single", "x"]
    assert lr == ["1e-05", "0.001", "0.01", "0.1"] and falling == lr[::-1]
    assert schedule == ["constant", "step", "step", ""] and words == ["step", "step", "constant", ""]
    assert time == ["41.8 s", "1.48 min", "2.00 h", ""] and back == ["2.00 h", "1.48 min", "41.8 s", ""]
    assert speedup == ["1.60×!", "2.50×", "10.00×", ""]


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        *(("1e-05", 1e-5), ("1,437.5", 1437.5), ("41.8 s", 41.8), ("1.48 min", 88.8), ("1,000.00 h", 3.6e6)),
        *(("1.53–1.55†", 1.53), ("83.3 %✗", 83.3), ("0.98 ~", 0.98), ("1.19 !", 1.19), ("123 %!", 123.0)),
        *(("2.67 GB", 2.67e9), ("33 kB", 3.3e4), ("1 Gbit/s", 1e9), ("+3.2 %", 3.2), ("", None)),
        *(("2 × 1", None), ("64, 64", None), ("constant", None), ("true", None), ("64 px", None)),
    ],
)
def test_numbers_of_cells(cell: str, number: float | None) -> None:
    found = sort_number(cell)
    assert found == (None if number is None else pytest.approx(number))
