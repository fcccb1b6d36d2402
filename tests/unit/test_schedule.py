"""The order of forwards and backwards, compared with textbook pipelines and with dependencies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.program.schedule import Task, schedule

Workers = Sequence[frozenset[int]]
STAGES = [frozenset({worker}) for worker in range(4)]
CHAIN = list(pairwise(range(4)))


def text(tasks: Sequence[Task]) -> str:
    return " ".join(
        f"{'B' if t.backward else 'F'}{'' if t.micro_batch is None else t.micro_batch}" for t in tasks
    )


def of(order: Sequence[Task], segment: int) -> list[Task]:
    return [task for task in order if task.segment == segment]


def times(
    order: Sequence[Task], workers: Workers, edges: Sequence[tuple[int, int]]
) -> dict[Task, tuple[int, int]]:
    """Return the times of each task if every worker runs them in this order; forward costs 1,
    backward 2."""
    free: dict[int, int] = defaultdict(int)
    found: dict[Task, tuple[int, int]] = {}
    for task in order:
        needed = [found[other] for other in found if depends(task, other, edges)]
        begin = max([end for _, end in needed] + [free[worker] for worker in workers[task.segment]])
        found[task] = begin, begin + (2 if task.backward else 1)
        for worker in workers[task.segment]:
            free[worker] = found[task][1]
    return found


def depends(task: Task, other: Task, edges: Sequence[tuple[int, int]]) -> bool:
    """Return whether `task` must follow `other`."""
    if None not in (task.micro_batch, other.micro_batch) and task.micro_batch != other.micro_batch:
        return False
    if task.segment == other.segment:
        return task.backward and not other.backward
    if task.backward != other.backward:
        return False
    return ((task.segment, other.segment) if task.backward else (other.segment, task.segment)) in edges


def test_1f1b_of_four_stages_and_eight_micro_batches_is_the_textbook_s() -> None:
    """Narayanan et al. 2021, figure 4 (top): stage s begins with 4 − s forwards, then one backward,
    one forward."""
    order = schedule(STAGES, [False] * 4, CHAIN, 8, "1f1b")
    assert text(of(order, 0)) == "F0 F1 F2 F3 B0 F4 B1 F5 B2 F6 B3 F7 B4 B5 B6 B7"
    assert text(of(order, 1)) == "F0 F1 F2 B0 F3 B1 F4 B2 F5 B3 F6 B4 F7 B5 B6 B7"
    assert text(of(order, 2)) == "F0 F1 B0 F2 B1 F3 B2 F4 B3 F5 B4 F6 B5 F7 B6 B7"
    assert text(of(order, 3)) == "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 F6 B6 F7 B7"


@pytest.mark.parametrize("pipeline", ["1f1b", "fill_drain"])
def test_pipeline_idles_no_longer_than_it_must(pipeline: str) -> None:
    """m micro-batches through p stages take (m + p − 1) · (forward + backward); the last stage
    never pauses."""
    order = schedule(STAGES, [False] * 4, CHAIN, 8, pipeline)
    at = times(order, STAGES, CHAIN)
    assert max(end for _, end in at.values()) == (8 + 4 - 1) * 3
    last = [at[task] for task in of(order, 3)]
    assert all(end == begin for (_, end), (begin, _) in pairwise(last))


def test_fill_drain_is_all_forwards_then_all_backwards() -> None:
    order = schedule(STAGES, [False] * 4, CHAIN, 8, "fill_drain")
    for stage in range(4):
        assert text(of(order, stage)) == " ".join([f"F{m}" for m in range(8)] + [f"B{m}" for m in range(8)])


def test_one_micro_batch_goes_through_and_comes_back() -> None:
    for pipeline in ("1f1b", "fill_drain", "passes"):
        order = schedule(STAGES, [False] * 4, CHAIN, 1, pipeline)
        assert [(task.backward, task.segment) for task in order] == [
            *((False, s) for s in range(4)),
            *((True, s) for s in reversed(range(4))),
        ]


def test_passes_behind_a_merged_front() -> None:
    """Schemes b and c: the front once, then forward and backward of each pass, then the front's
    backward."""
    everyone = [frozenset({0, 1, 2})] * 3
    for pipeline in ("1f1b", "passes"):
        order = schedule(everyone, [True, False, False], [(0, 1), (1, 2)], 3, pipeline)
        assert text(of(order, 0)) == "F B"
        assert text(of(order, 1)) == text(of(order, 2)) == "F0 B0 F1 B1 F2 B2"
        assert (order[0].segment, order[-1].segment) == (0, 0)


def test_passes_keep_one_micro_batch_in_flight_across_workers() -> None:
    order = schedule(STAGES, [False] * 4, CHAIN, 3, "passes")
    for stage in range(4):
        assert text(of(order, stage)) == "F0 B0 F1 B1 F2 B2"


def test_a_pipeline_of_two_data_parallel_stages_is_like_one_of_two_workers() -> None:
    wide = schedule([frozenset({0, 1}), frozenset({2, 3})], [False] * 2, [(0, 1)], 4, "1f1b")
    assert wide == schedule(STAGES[:2], [False] * 2, [(0, 1)], 4, "1f1b")


@st.composite
def shapes(draw: st.DrawFn) -> tuple[list[frozenset[int]], list[bool], list[tuple[int, int]], int]:
    """Draw segments on any workers, possibly merged at the front, in a graph that need not be a
    chain."""
    count = draw(st.integers(1, 6))
    workers = [frozenset(draw(st.sets(st.integers(0, 3), min_size=1))) for _ in range(count)]
    front = draw(st.integers(0, count))
    edges = [
        (producer, segment)
        for segment in range(1, count)
        for producer in draw(st.sets(st.integers(0, segment - 1), min_size=1, max_size=2))
    ]
    merged = [segment < front for segment in range(count)]
    return workers, merged, sorted(edges), draw(st.integers(1, 5))


@settings(max_examples=200, deadline=None)
@given(shapes(), st.sampled_from(("fill_drain", "1f1b", "passes")))
def test_every_task_comes_once_and_after_what_it_needs(
    shape: tuple[list[frozenset[int]], list[bool], list[tuple[int, int]], int], pipeline: str
) -> None:
    workers, merged, edges, micro_batches = shape
    order = schedule(workers, merged, edges, micro_batches, pipeline)
    expected = {
        Task(backward, s, m)
        for backward in (False, True)
        for s in range(len(workers))
        for m in ([None] if merged[s] else range(micro_batches))
    }
    assert len(order) == len(expected)
    assert set(order) == expected
    for i, task in enumerate(order):
        assert not any(depends(task, later, edges) for later in order[i + 1 :])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=6), st.integers(1, 8))
def test_1f1b_keeps_no_more_in_flight_than_stages_are_left(sets: list[set[int]], micro_batches: int) -> None:
    workers = [frozenset(workers) for workers in sets]
    edges = list(pairwise(range(len(workers))))
    order = schedule(workers, [False] * len(workers), edges, micro_batches, "1f1b")
    for segment in range(len(workers)):
        stages = 1 + sum(not workers[s] & workers[s + 1] for s in range(segment, len(workers) - 1))
        in_flight = most = 0
        for task in of(order, segment):
            in_flight += -1 if task.backward else 1
            most = max(most, in_flight)
        assert in_flight == 0
        assert most <= stages
