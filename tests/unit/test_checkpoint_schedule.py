"""When a checkpoint is due."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from parallel.checkpoints.schedule import Schedule
from parallel.config import CheckpointConfig


def test_intervals_in_epochs_and_steps() -> None:
    def due(every: str) -> list[int]:
        schedule = Schedule(CheckpointConfig(every).interval, 4, 0)
        found = []
        for step in range(1, 17):
            assert not schedule.looks(step)
            if schedule.due(step):
                found.append(step)
                schedule.saved(step)
        return found

    assert due("1 epoch") == [4, 8, 12, 16]
    assert due("3 epochs") == [12]
    assert due("5 steps") == [5, 10, 15]
    assert due("never") == []


def saved_at(minutes: int, durations: Sequence[float], workers: int = 3) -> tuple[list[float], int]:
    """Return when a run with these times of steps saves, and how often its workers look at the clock."""
    schedules = [Schedule((minutes, "minute"), 100, 7) for _ in range(workers)]
    now = last = 0.0
    found, looks = [], 0
    for step, duration in enumerate(durations, start=8):
        now += duration
        asked = {schedule.looks(step) for schedule in schedules}
        assert len(asked) == 1  # a worker that looked alone would wait for the others for ever
        looks += asked == {True}
        due = {schedule.due(step, now - last if asked == {True} else 0.0) for schedule in schedules}
        assert len(due) == 1
        if due == {True}:
            found.append(now)
            last = now
            for schedule in schedules:
                schedule.saved(step)
    return found, looks


@given(
    st.integers(1, 20),
    st.floats(0.001, 400.0),
    st.lists(st.tuples(st.floats(0.2, 5.0), st.floats(0.2, 3.0)), min_size=1, max_size=4),
)
def test_intervals_in_minutes(minutes: int, step_s: float, phases: list[tuple[float, float]]) -> None:
    """Steps of changing speed: each phase lasts some intervals, with steps so many times as long."""
    interval = 60.0 * minutes
    step_s = max(step_s, interval / 2000)  # keeps the number of steps small
    durations: list[float] = []
    for factor, intervals in phases:
        durations += [factor * step_s] * (1 + round(intervals * interval / (factor * step_s)))
    found, looks = saved_at(minutes, durations)
    longest = max(durations)
    for before, after in zip([0.0, *found], found, strict=False):
        assert interval - longest <= after - before <= 1.45 * interval + 1.5 * longest
    assert sum(durations) - max([0.0, *found]) <= 1.45 * interval + 1.5 * longest
    assert looks <= (1 + sum(durations) / interval) * 150


def test_looks_are_few() -> None:
    found, looks = saved_at(10, [0.05] * 30_000)
    assert [round(at) for at in found] == [600, 1200] and looks < 80
