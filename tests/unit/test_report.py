"""The report is complete, well-formed and self-contained, and has the numbers of the table."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from markupsafe import Markup

from parallel.cli.choices import CHOICES
from parallel.prediction.recommendation.page import ORDER
from parallel.results.comparison import compare
from parallel.results.load import Load
from parallel.results.predicted import Predicted
from parallel.results.records import Epoch, Record
from parallel.results.report import Section, write_report
from parallel.results.report.accuracy import accuracy_table, over_time
from parallel.results.report.again import command_again
from parallel.results.report.colours import PALETTE, strategy_colour
from parallel.results.report.limits import drawn
from parallel.results.report.names import names_of
from parallel.results.report.page import best_of, page
from parallel.results.report.svg import Scale, shortened, spread_out, tick_label
from tests.support.html import Tags
from tests.support.made_records import WORKLOAD, made_epochs, made_hosts, made_record

RECORDS = (
    made_record("single", (10.0, 11.0, 12.0)),
    made_record("single", (7.0, 7.1, 7.2), threads=2),
    made_record("data_parallel", (8.0, 8.1, 8.2)),
    made_record("one_weird_trick", (5.0, 5.1, 5.2), scheme="a", command="train <&\"'>"),
)


def written(path: Path, *records: Record) -> str:
    write_report(path, compare(records))
    return path.read_text(encoding="utf-8")


def drawings_of(html: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", html, re.DOTALL)


def test_report_is_well_formed_and_asks_for_nothing(tmp_path: Path) -> None:
    html = written(tmp_path / "report.html", *RECORDS)
    tags = Tags()
    tags.feed(html)
    assert tags.open == [] and tags.requests == []
    assert not {"link", "img", "iframe", "object"} & set(tags.seen) and tags.seen.count("script") == 1
    assert not any(word in html for word in ("url(", "@import", "fetch(", "XMLHttpRequest", "import("))
    drawings = drawings_of(html)
    # A lane per result for speedup, epoch times and time split; time, two losses and two accuracies by
    # epoch; accuracy over time.
    assert len([svg for svg in drawings if "aria-label" in svg]) == 3 * len(RECORDS) + 6
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


def test_hosts_are_listed(tmp_path: Path) -> None:
    record = made_record("data_parallel", workers=3, hosts=made_hosts(2, 1, bandwidth=125e6))
    html = written(tmp_path / "report.html", record)
    line = (
        "host0: workers 0, 1, 1 thread each, 2 cores, 8 GB, eth0, 1 Gbit/s to the next host; "
        "host1: worker 2, 1 thread each"
    )
    assert line in html and "3 workers × 1 thread on hosts of 2 + 1 at 1 Gbit/s" in html


def test_marks_stand_where_the_numbers_say(tmp_path: Path) -> None:
    html = written(
        tmp_path / "report.html", made_record("single", (8.0, 8.0)), made_record("ddp", (4.0, 4.0))
    )
    widths = [
        float(width)
        for svg in drawings_of(html)
        if "Speedup" in svg
        for width in re.findall(r'<rect[^>]* width="([\d.]+)%"', svg)
    ]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.02) and widths[1] < 100


def test_a_narrow_page_shows_who_and_the_result(tmp_path: Path) -> None:
    """Rules of the page hide the columns by place: those of the table must be what they name."""
    html = written(tmp_path / "report.html", *RECORDS)
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", html[html.index("<thead>") : html.index("</thead>")])[3:]
    hidden = {int(place) for place in re.findall(r'<table class="sortable([^"]*)"', html)[0].split(" h")[1:]}
    shown = [name for place, name in enumerate(heads, start=1) if place not in hidden]
    assert shown == ["strategy", "scheme", "median", "speedup"]
    assert all(f".h{place} tr > :nth-child({place})" in html for place in hidden)
    assert "@page" in html and "print-color-adjust: exact" in html


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
    for svg in drawings_of(html):
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


def test_headline_and_overview_leave_out_what_did_not_train() -> None:
    noisy = Load(processes=1.9, steal=0.2, clock_mhz=2000)
    idle = made_record("one_weird_trick", (2.0,) * 10, scheme="a", weights_changed=False)
    records = [
        made_record("single", (10.0,) * 10),
        made_record("data_parallel", (8.0,) * 10, load=noisy),
        idle,
    ]
    (comparison,) = compare(records)
    assert best_of(comparison.results).label == "data_parallel"
    html = page([comparison])
    lead = re.sub("<[^>]*>", "", html[html.index('<p class="lead">') :].split("</p>")[0])
    assert "data_parallel on 2 workers × 1 thread is fastest: 1.25×" in lead
    assert "Left out, because they did not train: one_weird_trick a." in lead
    assert lead.endswith("Its numbers are doubtful: see the notes.")

    (comparison,) = compare([records[0], idle])
    assert best_of(comparison.results).role == "baseline"
    (comparison,) = compare([dataclasses.replace(r, weights_changed=False) for r in records])
    assert best_of(comparison.results).label == "one_weird_trick a", "if none did, the fastest"
    assert "It did not train, as none of these results did." in page([comparison])

    other = dataclasses.replace(WORKLOAD, batch_size=64)
    overview = page(compare([*records, *(dataclasses.replace(r, workload=other) for r in records)]))
    line = overview[overview.index("<tbody>") : overview.index("</tbody>")]
    assert "1.25×!" in line and "1.25–1.25†" in line and line.count('class="flag" title="data_parallel') == 2


def test_several_workloads_and_further_sections() -> None:
    other = made_record("ddp", environment={"cpu": "Another CPU"})
    html = page(compare([*RECORDS, other]), [Section("Prediction", Markup("<p>beside measurement</p>"))])
    assert html.count("<section>") == 3 and html.index("Prediction") > html.index("Another CPU")


def test_strategies_have_colours_of_their_own() -> None:
    colours = [strategy_colour(place) for place in range(len(CHOICES["strategy"]))]
    assert len(set(colours)) == min(len(colours), len(PALETTE))
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


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>\"'&"
    plan = f"workers: 2\nops:\n  {evil.replace(' ', '')}: {{n: 2, on: [0, 1]}}\n"
    record = made_record(
        "ddp",
        name=evil,
        label=f"ddp {evil}",
        command=evil,
        plan=plan,
        environment={"cpu": evil, "host": evil},
        workload=dataclasses.replace(WORKLOAD, model=evil, data=evil),
    )
    record = dataclasses.replace(record, strategy=evil)
    other = made_record("ddp", label=f"ddp {evil}", environment={"cpu": "other"})
    write_report(tmp_path / "report.html", compare([record, other]), [], [evil])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(html)
    assert tags.open == [] and tags.seen.count("script") == 1 and "<script>alert" not in html
    for svg in drawings_of(html):
        ElementTree.fromstring(svg)


def test_time_by_epoch_leaves_out_epochs_that_were_not_timed() -> None:
    epochs = made_epochs((6.0, 6.0, 0.5))
    partly = (*epochs[:2], dataclasses.replace(epochs[2], timed=False))
    (comparison,) = compare([made_record("ddp", epochs=partly)])
    (result,) = comparison.results
    assert result.curve("seconds") == [(1, 6.0), (2, 6.0)]
    assert len(result.curve("train_loss")) == 3


def test_time_to_accuracy() -> None:
    """Accuracies of made epochs are 50, 75, 83.3 and 87.5 %."""
    slow, fast = made_record("single", (10.0,) * 4), made_record("ddp", (4.0,) * 3)
    (comparison,) = compare([slow, fast])
    columns, rows = accuracy_table(comparison.results)
    assert columns == ["strategy", "workers", "to 70 %", "to 75 %", "to 80 %", "to 85 %"]
    assert rows[0] == ["single", "1", "20.00 s", "20.00 s", "30.00 s", "40.00 s"]
    assert rows[1] == ["ddp", "2", "8.00 s", "8.00 s", "12.00 s", ""]
    assert over_time(comparison.results[1])[1] == (8.0, 75.0)
    continued = dataclasses.replace(
        fast, epochs=(dataclasses.replace(fast.epochs[0], timed=False), *fast.epochs[1:])
    )
    (comparison,) = compare([slow, continued])
    assert over_time(comparison.results[1]) == [], "its first epoch was not timed"


SRUN = "srun --ntasks=2 --nodes=2 python -m parallel.train"
EMULATE = "python -m parallel.emulate run --hosts=2 --rate=1gbit --workers-per-host=1,1 -- -m parallel.train"
SEVERAL = "parallel-torchrun --nnodes 2 --node-rank 0 --master-addr a --nproc-per-node 1 -m parallel.train"
IN_PROCESS = "python -m parallel.train -m strategy=ddp,single trainer.lr=0.1,0.002"


@pytest.mark.parametrize(
    ("command", "workers", "again"),
    [
        (
            "/venv/bin/python -u -m parallel.train strategy=ddp 'hydra.run.dir='\"'\"'/r/x y'\"'\"''",
            2,
            "python -m parallel.torchrun --nproc-per-node 2 -m parallel.train strategy=ddp",
        ),
        ("python -m parallel.train strategy=single", 1, "python -m parallel.train strategy=single"),
        (f"{EMULATE} strategy=ddp hydra.run.dir=runs/x", 2, f"{EMULATE} strategy=ddp"),
        (f"{SRUN} strategy=ddp hydra.run.dir=runs/x", 2, f"{SRUN} strategy=ddp"),
        (f"{SEVERAL} strategy=ddp", 2, f"{SEVERAL} strategy=ddp"),
        ("parallel-train strategy=single hydra.run.dir=runs/x", 1, "parallel-train strategy=single"),
        (
            "parallel-torchrun --nproc-per-node 2 -m parallel.train hydra.run.dir=runs/x strategy=ddp",
            2,
            "parallel-torchrun --nproc-per-node 2 -m parallel.train strategy=ddp",
        ),
        (IN_PROCESS, 1, "python -m parallel.train strategy=ddp trainer.lr=0.002"),
        (
            "parallel-train --multirun strategy=ddp 'trainer.lr=choice(0.1,0.002)' data.root='[a,b]' "
            "hydra.sweep.dir=runs/all",
            1,
            "parallel-train strategy=ddp trainer.lr=0.002 'data.root=[a,b]'",
        ),
        ("python -m parallel.train -m strategy=ddp nothing.known=1,2", 1, None),
        ("paper, table 2", 2, None),
        ("python 'open quote", 2, None),
        ("", 1, None),
    ],
)
def test_command_to_run_again(command: str, workers: int, again: str | None) -> None:
    assert command_again(made_record("ddp", command=command, workers=workers)) == again


def test_a_command_that_no_shell_takes_is_not_read() -> None:
    typed = "python -m parallel.train strategy=ddp " + "x" * 200_000
    assert command_again(made_record("ddp", command=typed)) is None


def test_a_command_that_does_not_join_its_hosts_is_no_command_to_run_again() -> None:
    """Torchrun would start all workers on one host."""
    typed, hosts = "python -m parallel.train strategy=ddp", made_hosts(1, 1)
    apart = made_record("ddp", command=typed, hosts=hosts)
    assert command_again(apart) is None
    assert command_again(dataclasses.replace(apart, command=f"{EMULATE} strategy=ddp")) is not None
    html = page(compare([made_record("single"), apart]))
    shown = html[html.index("<h3>Run again</h3>") : html.index("Provenance")]
    assert shown.count('class="command"') == 1 and "do not say what starts them: ddp." in shown


def test_predictions_stand_beside_measurements() -> None:
    predicted = Predicted(
        epoch_s=4.0,
        step_s=0.1,
        compute_s=4.0,
        communication_s=0.0,
        idle_s=0.0,
        data_wait_s=0.0,
        cluster="two",
        calibrated=True,
        error=0.1,
    )
    assert "Measured and predicted" not in page(compare(RECORDS))
    html = page(compare([*RECORDS, made_record("ddp", (5.0, 5.0), predicted=predicted)]))
    assert "predicted 4.00 s" in html and "1.25× !" in html and "Not calibrated for" not in html
    rough = dataclasses.replace(predicted, calibrated=False)
    html = page(compare([*RECORDS, made_record("ddp", (5.0, 5.0), predicted=rough)]))
    assert "Not calibrated for its shapes on its machine: ddp" in html and "1.25× !" not in html


def test_results_with_one_label_are_told_apart() -> None:
    records = [*RECORDS, made_record("data_parallel", (4.0, 4.1), workers=4)]
    (comparison,) = compare(records)
    names = set(names_of(comparison.results).values())
    assert {"data_parallel, 2 workers × 1 thread", "data_parallel, 4 workers × 1 thread"} < names
    assert "one_weird_trick a" in names and len(names) == len(comparison.results)
    assert page([comparison]).count('title="data_parallel, 4 workers × 1 thread"') >= 5, (
        "in every plot by epoch"
    )


def test_validations_precede_provenance() -> None:
    html = page(compare(RECORDS), [Section("Prediction", Markup("<p>scatter</p>"))])
    assert html.index("scatter") < html.index("<h2>Provenance</h2>")


def test_plots_keep_the_baselines_and_the_fastest() -> None:
    records = [made_record("ddp", (float(i),) * 2, label=f"ddp bucket_mb={i}") for i in range(2, 9)]
    (comparison,) = compare([made_record("single", (10.0, 10.0)), *records])
    shown, sentence = drawn(comparison.results, 3)
    assert [result.epoch_s.median for result in shown] == [10.0, 2.0, 3.0]
    assert "3 of 8 results" in sentence and drawn(comparison.results, 8) == (list(comparison.results), "")


def test_long_curves_are_thinned_and_say_so() -> None:
    (comparison,) = compare([made_record("ddp", tuple(5 + i % 7 / 10 for i in range(1200)))])
    html = page([comparison])
    assert "epoch, 1 of 3 points drawn" in html and len(html) < 200_000
    assert "epoch, 1 of" not in page(compare(RECORDS))


def test_what_a_page_leaves_out_is_said() -> None:
    records = [
        made_record("ddp", (5.0, 5.0), label=f"ddp bucket_mb={i}", command=f"train {i}") for i in range(70)
    ]
    html = page(compare(records))
    assert html.count("<details>") == 60 and "60 of 70 runs are shown" in html
    assert "30 of 70 results are shown" in html and "12 of 70 results are shown" in html
    assert html.count("<tr>") > 70, "the table has all"
    workloads = [
        made_record("ddp", workload=dataclasses.replace(WORKLOAD, batch_size=i + 1)) for i in range(20)
    ]
    html = page(compare(workloads))
    assert "12 of 20 workloads in detail are shown" in html and "batch 20" in html
