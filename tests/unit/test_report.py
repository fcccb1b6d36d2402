"""The report is complete, well-formed and self-contained, and has the numbers of the table."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from markupsafe import Markup

from parallel.cli.choices import CHOICES
from parallel.prediction.recommendation.page import ORDER
from parallel.results.comparison import compare
from parallel.results.records import Epoch, Record
from parallel.results.report import Section, write_report
from parallel.results.report.colours import PALETTE, strategy_colour
from parallel.results.report.page import page
from parallel.results.report.svg import Scale, shortened, spread_out, tick_label
from tests.support.html import Tags
from tests.support.made_records import made_epochs, made_record

RECORDS = (
    made_record("single", (10.0, 11.0, 12.0)),
    made_record("single", (7.0, 7.1, 7.2), threads=2),
    made_record("data_parallel", (8.0, 8.1, 8.2)),
    made_record("one_weird_trick", (5.0, 5.1, 5.2), scheme="a", command="train <&\"'>"),
)


def written(path: Path, *records: Record) -> str:
    write_report(path, compare(records))
    return path.read_text(encoding="utf-8")


def test_report_is_well_formed_and_asks_for_nothing(tmp_path: Path) -> None:
    html = written(tmp_path / "report.html", *RECORDS)
    tags = Tags()
    tags.feed(html)
    assert tags.open == [] and tags.requests == []
    assert not {"script", "link", "img", "iframe", "object"} & set(tags.seen)
    assert "url(" not in html and "@import" not in html
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 7  # speedup, epoch times, time split, two losses, two accuracies
    for svg in drawings:
        ElementTree.fromstring(svg)
        assert "nan" not in svg and "inf" not in svg


def test_report_says_what_the_table_says(tmp_path: Path) -> None:
    html = written(tmp_path / "report.html", *RECORDS)
    assert "<b>2.16×</b> the baseline" in html and "one_weird_trick a" in html
    assert "train &lt;&amp;&#34;&#39;&gt;" in html and "train <&" not in html
    for text in (
        "Against single with 2 threads",
        "plan of data_parallel",
        "trainer.batch_size=32",
        "2.13.0",
        "alexnet owt · digits, 1,437 images",
        "exposed communication",
    ):
        assert text in html


def test_marks_stand_where_the_numbers_say(tmp_path: Path) -> None:
    html = written(
        tmp_path / "report.html", made_record("single", (8.0, 8.0)), made_record("ddp", (4.0, 4.0))
    )
    speedup = re.findall(r"<svg.*?</svg>", html, re.DOTALL)[0]
    widths = {
        m[1]: float(m[0]) for m in re.findall(r'<rect[^>]*? width="([\d.]+)"[^>]*><title>(\w+)', speedup)
    }
    assert widths["ddp"] == pytest.approx(2 * widths["single"], abs=0.02)


@pytest.mark.parametrize(
    "records",
    [
        (made_record("ddp", (5.0,)),),
        (made_record("single", (5.0, 5.0)), made_record("ddp", (5.0, 5.0))),
        (made_record("ddp", epochs=(Epoch(epoch=1, seconds=3.0),)),),
        (made_record("ddp", epochs=(Epoch(epoch=1, seconds=3.0, train_loss=float("nan")),)),),
        (
            made_record("single"),
            made_record("ddp", epochs=(*made_epochs([4.0]), Epoch(epoch=2, seconds=3.0))),
        ),
    ],
    ids=["one epoch", "no spread", "times only", "diverged", "measured in part"],
)
def test_sparse_records_make_a_report(tmp_path: Path, records: tuple[Record, ...]) -> None:
    html = written(tmp_path / "report.html", *records)
    Tags().feed(html)
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)
        assert "nan" not in svg


def test_scaling_is_drawn_from_two_numbers_of_workers() -> None:
    records = [made_record("single", (12.0, 12.0)), made_record("ddp", (6.0, 6.1))]
    assert "Scaling" not in page(compare(records))
    assert "Scaling" in page(compare([*records, made_record("ddp", (4.0, 4.1), workers=4)]))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ((5.0, 5.0, 5.0), "is fastest: <b>2.00×</b>"),
        ((20.0, 20.0, 20.0), "No strategy is faster than the baseline. The closest is"),
        ((8.0, 9.9, 12.0), "the difference may be chance"),
    ],
)
def test_headline(seconds: tuple[float, ...], said: str) -> None:
    (comparison,) = compare([made_record("single", (9.0, 10.0, 11.0)), made_record("ddp", seconds)])
    assert said in page([comparison])


def test_several_workloads_and_further_sections() -> None:
    other = made_record("ddp", environment={"cpu": "Another CPU"})
    html = page(compare([*RECORDS, other]), [Section("Prediction", Markup("<p>beside measurement</p>"))])
    assert html.count("<section>") == 3 and html.index("Prediction") > html.index("Another CPU")


def test_strategies_have_colours_of_their_own() -> None:
    colours = [strategy_colour(place) for place in range(len(CHOICES["strategy"]))]
    assert len(set(colours)) == len(CHOICES["strategy"]) < len(PALETTE)
    assert strategy_colour(100) == PALETTE[-1]
    assert ORDER == tuple(CHOICES["strategy"])[: len(ORDER)], "recommendations use the same colours"
    assert all(f"--{colour[6:-1]}:" in page([]) for colour in PALETTE)


def test_ticks_are_round() -> None:
    assert Scale(0.0, 2.08, 0, 100).ticks(7) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert tick_label(1500.0, [0.0, 500.0]) == "1,500" and tick_label(0.05, [0.0, 0.05]) == "0.05"


def test_labels_are_spread_out() -> None:
    assert spread_out([10, 11, 50], 16, 0, 100) == [10, 26, 50]
    moved = spread_out([95, 96, 97], 16, 0, 100)
    assert moved == [68, 84, 100]
    assert shortened("abcdef", 4) == "abc…" and shortened("abcd", 4) == "abcd"
