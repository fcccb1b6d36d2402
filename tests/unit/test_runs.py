"""Which runs are the rounds of a sweep, and what tables and exports say of their intervals."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from markupsafe import escape

from parallel.cli.repeats import order_of_round
from parallel.results.comparison import Comparison, compare
from parallel.results.comparison_export import as_csv, as_json, comparison_values
from parallel.results.comparison_table import RESULTS, cells
from parallel.results.notes import notes
from parallel.results.records import Record
from parallel.results.report.page import page
from parallel.results.runs import in_rounds
from tests.support.made_records import made_record

START = datetime(2026, 1, 2, tzinfo=timezone.utc)
SINGLE, DDP = 0, 1


def run(
    side: int,
    repeat: int,
    place: int,
    seconds: Sequence[float] = (10.0,) * 3,
    sides: tuple[str, str] = ("single", "ddp"),
    **changes: Any,
) -> Record:
    """Return the record of the run of a sweep at a place in time, of which each takes a minute."""
    whole = {"threads": 2} if sides[side] == "whole" else {}
    record = made_record(
        "single" if whole else sides[side],
        seconds,
        name=f"{side} {repeat}",
        started=(START + timedelta(minutes=place)).isoformat(timespec="seconds"),
        finished=(START + timedelta(minutes=place + 1)).isoformat(timespec="seconds"),
        trainer={"seed": repeat},
        **whole,
        **changes,
    )
    return dataclasses.replace(record, config={**record.config, "repeat": repeat})


def swept(
    orders: Sequence[Sequence[int]],
    seconds: Callable[[int, int], float] = lambda side, repeat: 10.0,
    **changes: Any,
) -> list[Record]:
    """Return the runs of both sides, made in these orders, round by round."""
    flat = [(side, number) for number, order in enumerate(orders, 1) for side in order]
    return [
        run(side, number, place, [seconds(side, number)] * 3, **changes)
        for place, (side, number) in enumerate(flat)
    ]


def rounds_of(records: Sequence[Record]) -> list[tuple[str, str]] | None:
    """Return the names of the runs of each round."""
    sides = ([r for r in records if r.strategy == name] for name in ("single", "ddp"))
    found = in_rounds(*sides)
    return None if found is None else [(one.name, other.name) for one, other in found]


ALTERNATING = [order_of_round(2, number) for number in (1, 2, 3)]


def test_the_runs_of_a_sweep_are_its_rounds_in_any_order_of_records() -> None:
    records = swept(ALTERNATING)
    random.Random(0).shuffle(records)
    assert rounds_of(records) == [("0 1", "1 1"), ("0 2", "1 2"), ("0 3", "1 3")]


def test_a_sweep_that_was_repeated_later_has_its_rounds() -> None:
    later = [run(DDP, 7, 5000), run(SINGLE, 7, 5001)]
    assert rounds_of([*swept(ALTERNATING[:1]), *later]) == [("0 1", "1 1"), ("0 7", "1 7")]


def without(records: Sequence[Record], place: int, **changes: Any) -> list[Record]:
    """Return the records with another one in a place."""
    other = dataclasses.replace(records[place], **changes)
    return [other if i == place else record for i, record in enumerate(records)]


UNTIMED = dataclasses.replace(made_record().epochs[0], timed=False)
NO_ROUNDS: dict[str, Callable[[], list[Record]]] = {
    "the same side first each time": lambda: swept([(SINGLE, DDP)] * 3),
    "one side first too often": lambda: swept([*[(SINGLE, DDP)] * 3, (DDP, SINGLE)]),
    "a run is missing": lambda: swept(ALTERNATING)[:-1],
    "a single round": lambda: swept(ALTERNATING[:1]),
    "other repetitions": lambda: [*swept(ALTERNATING[:2]), run(SINGLE, 3, 8), run(DDP, 4, 9)],
    "another run of a repetition": lambda: [*swept(ALTERNATING[:2]), run(SINGLE, 2, 8), run(DDP, 2, 9)],
    "rounds in another order": lambda: swept(ALTERNATING[:2])[2:] + [run(SINGLE, 1, 8), run(DDP, 1, 9)],
    "a run made again after all rounds": lambda: [*swept(ALTERNATING)[1:], run(SINGLE, 1, 9)],
    "a strategy added later": lambda: [
        *(run(SINGLE, k, k) for k in (1, 2, 3)),
        *(run(DDP, k, k + 10) for k in (1, 2, 3)),
    ],
    "both runs of a round of one side": lambda: [
        *(run(SINGLE, 1, place) for place in (0, 1)),
        *(run(DDP, 2, place) for place in (2, 3)),
    ],
    "another sweep": lambda: without(swept(ALTERNATING), 3, sweep="other"),
    "no sweep": lambda: swept(ALTERNATING, sweep=None),
    "no times": lambda: without(swept(ALTERNATING), 0, started=None),
    "times that are none": lambda: without(swept(ALTERNATING), 0, finished="yesterday"),
    "runs at the same time": lambda: without(swept(ALTERNATING), 2, finished="2026-01-02T00:03:01Z"),
    "an untimed run": lambda: without(swept(ALTERNATING), 2, epochs=(UNTIMED,)),
    "an imported record": lambda: without(swept(ALTERNATING), 2, config={}),
}


@pytest.mark.parametrize("case", NO_ROUNDS)
def test_other_runs_are_no_rounds(case: str) -> None:
    assert rounds_of(NO_ROUNDS[case]()) is None


def compared(records: Sequence[Record]) -> Comparison:
    (comparison,) = compare(records)
    return comparison


def drifting(orders: Sequence[Sequence[int]]) -> list[Record]:
    """Return rounds of which each takes twice the time of the one before; ddp is 2, 2.1, 2.2, … times as
    fast."""
    return swept(orders, lambda side, k: 2.0**k / (1.0, 1.9 + 0.1 * k)[side])


def test_the_interval_of_rounds_is_that_of_their_ratios() -> None:
    result = compared(drifting(ALTERNATING)).results[1]
    s = result.speedup
    assert s is not None and s.covers == "rounds" and s.low is not None and s.high is not None
    assert s.ratio == pytest.approx((2.0 * 2.1 * 2.2) ** (1 / 3)) and result.efficiency == s.ratio / 2
    assert 1.8 < s.low < s.ratio < s.high < 2.4
    fixed = compared(drifting([(SINGLE, DDP)] * 3)).results[1].speedup
    assert fixed is not None and fixed.covers == "runs" and fixed.low is not None and fixed.low < 1.0


def test_the_table_the_exports_and_the_report_say_what_an_interval_covers() -> None:
    rounds = compared(drifting(ALTERNATING))
    runs = compared(drifting([(SINGLE, DDP)] * 3))
    single = compared([run(SINGLE, 1, 0, [1.0] * 10), run(DDP, 1, 1, [0.5] * 10)])
    for comparison, covers, note in (
        (rounds, "rounds", "Speedup and interval by rounds for ddp: "),
        (runs, "runs", "Interval of independent runs for ddp: "),
        (single, "within-run", "Intervals marked † cover"),
    ):
        values = comparison_values([comparison])
        assert [row["speedup_interval"] for row in json.loads(as_json(values))[0]["rows"]] == [None, covers]
        assert f",{covers}," in as_csv(values)
        names, (_, cells_of_ddp) = cells(comparison.results, RESULTS)
        assert cells_of_ddp[names.index("95 %")].endswith("†") == (covers == "within-run")
        said = [text for text in notes(comparison) if "nterval" in text]
        assert len(said) == 1 and said[0].startswith(note)
        assert escape(said[0]) in page([comparison])


def test_against_a_baseline_of_all_cores_rounds_count_too() -> None:
    ours = swept(ALTERNATING, lambda side, k: 2.0**k / (1, 2)[side], sides=("whole", "ddp"))
    (note,) = (text for text in notes(compared([run(SINGLE, 1, 99), *ours])) if text.startswith("Against"))
    assert "ddp 2.00× [2.00, 2.00]" in note
