"""The scripts that check intervals: experiments from a pool of runs, and simulated ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from parallel.results.record_files import write_record
from parallel.results.records import Record
from parallel.results.statistics import speedup_of_rounds, speedup_of_runs
from scripts import calibrate_statistics, simulate_rounds
from scripts.calibrate_statistics import KINDS, Pool, study
from tests.support.made_records import made_record


def made_run(number: int, kind: str, seconds: float) -> Record:
    record = made_record(seconds=[seconds] * 10, sweep=kind, name=f"{number} {kind}")
    return dataclasses.replace(record, config={**record.config, "repeat": number})


def made_pool(rounds: int, without: tuple[tuple[int, str], ...] = ()) -> list[Record]:
    """Return runs whose times say round and kind: round 7 takes 7.0, 7.1 and 7.2 s."""
    return [
        made_run(number, kind, number + place / 10)
        for number in range(1, rounds + 1)
        for place, kind in enumerate(KINDS)
        if (number, kind) not in without
    ]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_experiments_of_rounds_have_rounds_of_both_orders(count: int) -> None:
    pool = Pool.of(made_pool(9, without=((4, "planted"),)))
    assert sorted(pool.rounds) == [1, 2, 3, 5, 6, 7, 8, 9] and pool.mirrored == [1, 5, 7]
    assert len(pool.plain) == 18 and len(pool.planted) == 8, "sets may have runs of incomplete rounds"
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(20):
        experiment = pool.draw_rounds(count, rng)
        sides = (experiment.plain, experiment.again, experiment.planted)
        rounds = [[int(run[0]) for run in side] for side in sides]
        assert rounds[0] == rounds[1] == rounds[2] and len(set(rounds[0])) == len(rounds[0]) == count
        pairs = rounds[0][: count - count % 2]
        assert all(a % 2 and b == a + 1 for a, b in zip(pairs[::2], pairs[1::2], strict=True))
        kinds = [[round(10 * (run[0] % 1)) for run in side] for side in sides]
        assert set(kinds[2]) == {1} and all({a, b} == {0, 2} for a, b in zip(*kinds[:2], strict=True))
        assert all(
            a == b for a, b in zip(kinds[0][: len(pairs) : 2], kinds[0][1 : len(pairs) : 2], strict=True)
        )
        seen.add(kinds[0][0])
    assert seen == {0, 2}, "each of the plain runs may be on each side"


def test_a_pool_may_be_too_small_for_rounds() -> None:
    pool = Pool.of(made_pool(5, without=((2, "again"),)))
    assert [count for count in range(1, 6) if pool.has_rounds(count)] == [2, 3]


def test_the_study_finds_in_rounds_what_the_drift_of_the_machine_hides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    for number in range(1, 17):
        slow = rng.lognormal(0, 0.2)
        for kind in KINDS:
            seconds = slow * (1.05 if kind == "planted" else 1.0) * rng.lognormal(0, 0.005)
            write_record(tmp_path / f"{number} {kind}", made_run(number, kind, seconds))
    monkeypatch.setattr(calibrate_statistics, "EXPERIMENTS", 100)
    study(tmp_path, [5, 40], np.random.default_rng(0))
    said = capsys.readouterr().out
    assert "48 runs, 0 left out as noisy, 0 unreadable or unfinished; 16 complete rounds" in said
    lines = {line.partition(" A/A")[0].strip(): line for line in said.splitlines() if "repeats=5" in line}
    found = {name: float(line.split("found in ")[1].split(" ")[0]) for name, line in lines.items()}
    assert (
        found["repeats=5, rounds:"] >= 95
        and max(found[f"repeats=5, {n}:"] for n in ("the same", "sets")) < 20
    )
    alike = {name: float(line.split("differs in ")[1].split(" ")[0]) for name, line in lines.items()}
    assert max(alike.values()) <= 15
    assert "repeats=40, rounds:   the pool is too small" in said
    assert "repeats=40, sets:     the pool is too small" in said and "within run: A/A differs in" in said


@pytest.mark.parametrize("strategies", [2, 4])
def test_the_simulation_computes_the_intervals_of_comparisons(strategies: int) -> None:
    y = np.random.default_rng(0).normal(0, 0.1, (3, strategies, 4))
    found = dict(zip(simulate_rounds.METHODS, simulate_rounds.intervals(y), strict=True))
    for name, analyse in (("paired", speedup_of_rounds), ("runs", speedup_of_runs)):
        _, half_widths = found[name]
        for experiment, half_width in zip(y, half_widths, strict=True):
            base, ours = ([[value] for value in np.exp(side)] for side in experiment[:2])
            s = analyse(base, ours)
            assert s.low is not None and s.high is not None
            assert np.log(s.high / s.low) / 2 == pytest.approx(half_width)
