"""The report's reasons follow from measured times and spans, never from names of strategies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from parallel.results.comparison import compare
from parallel.results.load import Load
from parallel.results.record_files import read_record, write_record
from parallel.results.records import Epoch
from parallel.results.report.figures import baseline_of
from parallel.results.report.page import page
from parallel.results.report.steps import MOST_SPANS, step_chart, timelines_of
from parallel.results.report.why import described, exposed_by_name, message, why
from parallel.results.result import Result
from parallel.results.step_timeline import FILE, Span, StepTimelines, write
from tests.support.made_records import WORKLOAD, made_record


def span(
    worker: int, start: float, end: float, kind: str = "compute", name: str = "forward conv1", **more: Any
) -> Span:
    return Span(worker=worker, start_s=start, end_s=end, kind=kind, name=name, **more)


def result(
    compute: float, communication: float = 0.0, idle: float = 0.0, data: float = 0.0, sent: int = 0
) -> Result:
    """Return a result on two workers that divides its epochs like this, beside a baseline of 10 s."""
    epoch = Epoch(
        epoch=1,
        seconds=compute + communication + idle + data,
        compute_s=compute,
        communication_s=communication,
        idle_s=idle,
        data_wait_s=data,
        bytes_sent=sent,
    )
    alone = dataclasses.replace(
        epoch, seconds=10.0, compute_s=10.0, communication_s=0.0, idle_s=0.0, data_wait_s=0.0
    )
    (found,) = compare(
        [made_record("single", epochs=(alone,)), made_record("data_parallel", epochs=(epoch,))]
    )
    return found.results[1]


def alone() -> Result:
    (found,) = compare(
        [
            made_record(
                "single",
                epochs=(
                    Epoch(
                        epoch=1,
                        seconds=10.0,
                        compute_s=10.0,
                        communication_s=0.0,
                        idle_s=0.0,
                        data_wait_s=0.0,
                    ),
                ),
            )
        ]
    )
    return found.results[0]


STEP = (
    span(0, 0.0, 0.4),
    span(0, 0.4, 0.6, "communication", "sum fc7.bias … fc6.weight", received=42_000_000),
    span(0, 0.55, 0.7, "communication", "exchange pool5>fc6:1"),
    span(0, 0.1, 0.3, "communication", "gather conv1.weight", hidden=True),
    span(0, 0.2, 0.3, "communication", "gather conv2.weight", hidden=True),
    span(1, 0.0, 0.5),
    span(1, 0.5, 0.9, "idle", "exchange back pool5>fc6"),
    span(1, 0.9, 1.0),
)


def test_exposed_time_counts_once_and_hidden_time_not() -> None:
    found = exposed_by_name([dataclasses.replace(s, name=message(s.name)) for s in STEP])
    assert found == pytest.approx({"sum fc7 … fc6": 0.2, "exchange pool5>fc6": 0.1})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sum fc7.bias … fc6.weight", "the gradients of fc7 … fc6"),
        ("sum fc6.bias … fc6.weight", "the gradients of fc6"),
        ("sum fc6.bias … fc6.weight between hosts", "the gradients of fc6 between hosts"),
        ("exchange pool5>fc6:3", "the activations from pool5 to fc6"),
        ("exchange back pool5>fc6", "the gradients of the activations from fc6 to pool5"),
        ("gather conv1.weight", "the updated weights of conv1"),
        ("all_reduce bucket 2", "all_reduce bucket 2"),
    ],
)
def test_messages_have_words(name: str, words: str) -> None:
    assert described(message(name)) == words


def test_reasons_name_the_largest_part_and_its_message() -> None:
    sentences = why(result(4.0, communication=3.0, idle=1.0, sent=44 * 2_000_000), None, StepTimelines(STEP))
    assert (
        "Exposed communication costs 38 % of an epoch; computing takes 50 %, waiting for other workers 12 %"
        in sentences
    )
    assert (
        "A worker waits 10 % of the measured step for the gradients of fc7 … fc6, 42 MB "
        "(67 % of its exposed communication)." in sentences
    )
    assert (
        "Worker 1 waits longest, 40 % of the measured step, mostly for the gradients of the activations"
        in sentences
    )
    assert "worker 0 waits 0 %" in sentences
    assert "hides 40 % of the time of its messages" in sentences
    assert "Each worker sends 1 MB a step." in sentences, f"{WORKLOAD.train_images} images make 44 steps"


def test_what_linear_speedup_lacks_is_divided_into_its_causes() -> None:
    sentences = why(result(6.0, communication=1.0, idle=0.5), alone(), None)
    assert "Linear speedup would be 5.00 s. Beyond it, it loses 2.50 s" in sentences
    assert "computing 1.00 s, exposed communication 1.00 s, waiting for other workers 500 ms" in sentences
    assert "Each worker computes 20 % longer than 1/2 of the baseline." in sentences
    waiting = why(result(4.0, idle=3.0), alone(), None)
    assert "it loses 2.00 s: waiting for other workers 3.00 s, but computing takes 1.00 s less." in waiting
    faster = why(result(4.0), alone(), None)
    assert "Bound by computing: 100 %" in faster
    assert (
        "1.00 s faster than linear speedup (5.00 s): compared with 1/2 of the baseline, computing" in faster
    )


def test_what_makes_it_faster_than_linear_is_what_takes_less() -> None:
    """Computing takes longer than its share: it is the images that arrive sooner."""
    waiting = dataclasses.replace(alone().records[0].epochs[0], compute_s=5.0, data_wait_s=5.0)
    parallel = dataclasses.replace(waiting, seconds=3.6, compute_s=2.6, data_wait_s=1.0)
    (found,) = compare(
        [made_record("single", epochs=(waiting,)), made_record("data_parallel", epochs=(parallel,))]
    )
    baseline, measured = found.results
    said = why(measured, baseline, None)
    assert "1.40 s faster than linear speedup (5.00 s): compared with 1/2 of the baseline, " in said
    assert said.endswith("baseline, waiting for images takes 1.50 s less.") and "their share" not in said


def test_a_wait_of_less_than_a_hundredth_of_the_step_is_not_mentioned() -> None:
    short = span(0, 0.99, 0.995, "communication", "sum fc7.bias")
    longer = span(0, 0.95, 0.99, "communication", "sum fc7.bias")
    step = (span(0, 0.0, 0.95), span(1, 0.0, 1.0))
    measured = result(4.0, communication=1.0)
    assert "A worker waits" not in why(measured, None, StepTimelines((*step, short)))
    assert "A worker waits 2 %" in why(measured, None, StepTimelines((*step, longer)))


def test_a_busy_machine_is_part_of_the_reason() -> None:
    slow = result(6.0)
    busy = dataclasses.replace(
        slow, records=(dataclasses.replace(slow.records[0], load=Load(processes=2.0)),)
    )
    assert "busy" not in why(slow, alone(), None)
    assert why(busy, alone(), None).endswith("It ran on a busy machine: see the notes.")


def test_waits_of_all_workers_alike_blame_nobody() -> None:
    step = tuple(s for w in (0, 1) for s in (span(w, 0.0, 0.8), span(w, 0.8, 1.0, "idle", "barrier")))
    assert "All workers wait alike, up to 20 %" in why(result(4.0, idle=1.0), None, StepTimelines(step))


def test_nothing_measured_says_nothing() -> None:
    (comparison,) = compare([made_record("ddp", epochs=(Epoch(epoch=1, seconds=3.0),))])
    assert why(comparison.results[0], None, StepTimelines(STEP)) == ""
    assert baseline_of(comparison.results[0], comparison.results) is None


def test_timelines_come_from_the_run_directory(tmp_path: Path) -> None:
    write_record(tmp_path / "run", made_record("data_parallel"))
    record = read_record(tmp_path / "run")
    assert "One step" not in page(compare([record]))
    write(tmp_path / "run" / FILE, StepTimelines(STEP, STEP[:1]))
    html = page(compare([record]))
    assert "One step, measured and predicted" in html and html.count('<div class="step">') == 1
    assert html.index(">measured</b>") < html.index(">predicted</b>")
    assert "sum fc7.bias … fc6.weight: communication, 200.0 ms" in html
    (tmp_path / "run" / FILE).write_text('{"format": 1, "measured": 3}')
    (comparison,) = compare([record])
    assert timelines_of(comparison.results[0])[0] is None and FILE in timelines_of(comparison.results[0])[1]
    assert "Left out: " in page([comparison])


def test_short_spans_of_long_timelines_are_left_out_and_said_so() -> None:
    spans = [
        span(0, i / 1000, i / 1000 + (0.0009 if i % 2 else 0.0001), name=f"op {i}")
        for i in range(2 * MOST_SPANS)
    ]
    drawn = step_chart(StepTimelines(tuple(spans)))
    assert f"{MOST_SPANS} short spans are not drawn" in drawn and drawn.count("<rect") == MOST_SPANS
    assert "op 1:" in drawn and "op 2:" not in drawn
