"""Gradient sums in levels: every element is summed once from all workers, and gathered by all."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.graph.box import Box, Span
from parallel.plans import read_plan
from parallel.program import Backward, Bucket
from parallel.program.dry_run import ProgramError, _check_progress, dry_run
from parallel.program.levels import Levels, by_host, in_levels
from parallel.program.listing import step_rows
from parallel.program.lowering import BUCKET_BYTES, lower
from parallel.program.required_memory import memory_of
from parallel.strategies import DataParallel, build_plan
from tests.support.small_models import MODELS, graph_of, plans


def hosts_of(counts: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    ends = list(accumulate(counts))
    return tuple(tuple(range(end - count, end)) for end, count in zip(ends, counts, strict=True))


def positions(*spans: Span) -> Counter[int]:
    return Counter(position for span in spans for position in range(*span))


any_levels = st.builds(
    lambda size, counts: Levels(size, hosts_of(counts)),
    st.integers(0, 60),
    st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
)


@given(any_levels)
def test_shards_cover_the_bucket_once_and_lie_in_the_worker_s_part(levels: Levels) -> None:
    workers = [worker for host in levels.hosts for worker in host]
    assert positions(*map(levels.shard, workers)) == Counter(range(levels.size))
    for host in levels.hosts:
        assert positions(*(span for w in host for span in levels.part(w))) == Counter(range(levels.size))
        assert len({len(levels.part(worker)) for worker in host}) == 1
    for worker in workers:
        assert positions(levels.shard(worker)) <= positions(*levels.part(worker))


@given(any_levels)
def test_the_levels_add_every_worker_s_gradient_once(levels: Levels) -> None:
    """Each worker's gradient is a vote for every element; the sum at an element's owner has all votes."""
    workers = [worker for host in levels.hosts for worker in host]
    sums = {w: {p: Counter([w]) for p in range(levels.size)} for w in workers}
    within = {
        w: {
            p: sum((sums[o][p] for o in (w, *levels.local(w))), Counter[int]())
            for p in positions(*levels.part(w))
        }
        for w in workers
    }
    for w in workers:
        total = {p: within[w][p] for p in range(*levels.shard(w))}
        for other, span in levels.incoming(w):
            assert (w, span) in levels.outgoing(other), "what is received is sent"
            for p in range(*span):
                total[p] = total[p] + within[other][p]
        assert all(votes == Counter(workers) for votes in total.values())
        assert sum(len(levels.outgoing(v)) for v in workers) == sum(
            len(levels.incoming(v)) for v in workers
        ), "and the reverse"


@given(any_levels)
def test_a_gather_brings_every_shard_to_every_worker(levels: Levels) -> None:
    workers = [worker for host in levels.hosts for worker in host]
    between = {
        w: positions(levels.shard(w)) + positions(*(span for _, span in levels.outgoing(w))) for w in workers
    }
    for w in workers:
        assert between[w] == positions(*levels.part(w))
        parts = [span for other in (w, *levels.local(w)) for span in levels.part(other)]
        assert positions(*parts) == Counter(range(levels.size))


@pytest.mark.parametrize("counts", [(2, 2), (4, 4), (2, 2, 2), (3, 3, 3, 3)])
def test_bytes_between_equal_hosts(counts: tuple[int, ...]) -> None:
    """A host sends (H − 1) / H of the tensor; flat it sends m times as much. All in all it is the same."""
    hosts, size = hosts_of(counts), 5040
    levels, workers = Levels(size, hosts), sum(counts)
    for host in hosts:
        assert sum(map(levels.between, host)) == size * (len(hosts) - 1) // len(hosts)
        flat = len(host) * (workers - len(host)) * size // workers
        assert flat == len(host) * sum(map(levels.between, host))
    for worker in range(workers):
        assert levels.sums(worker) == (size - size // workers,) * 2


def test_bytes_between_hosts_of_two_and_one() -> None:
    levels = Levels(1200, ((0, 1), (2,)))
    assert [levels.shard(w) for w in range(3)] == [(0, 300), (300, 600), (600, 1200)]
    assert levels.part(0) == ((0, 300), (600, 900)) and levels.part(2) == ((0, 600), (600, 1200))
    assert [levels.between(w) for w in range(3)] == [300, 300, 600]
    assert [levels.sums(w) for w in range(3)] == [(900, 900), (900, 900), (600, 600)]


def test_hosts_of_four_and_two_have_two_columns() -> None:
    levels = Levels(2400, ((0, 1, 2, 3), (4, 5)))
    assert [sum(map(levels.between, host)) for host in levels.hosts] == [1200, 1200]
    assert {other for worker in (0, 1) for other, _ in levels.outgoing(worker)} == {4}


def test_the_rule() -> None:
    assert by_host((0, 2, 3, 5), (0, 0, 0, 1, 1, 1)) == ((0, 2), (3, 5))
    assert by_host((0, 1), ()) == ((0, 1),)
    assert in_levels(((0, 2), (3, 5))) and in_levels(((0, 1), (2,)))
    assert not in_levels(((0, 1),)) and not in_levels(((0,), (1,)))


def test_full_buckets_over_several_hosts_are_in_levels() -> None:
    graph = graph_of("tower")
    plan = build_plan(graph, 4, DataParallel())
    small = lower(graph, plan, 8, (0, 0, 1, 1))
    assert all(bucket.size * 4 < BUCKET_BYTES and bucket.levels is None for bucket in small.buckets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("parallel.program.lowering.BUCKET_BYTES", 64)
        assert all(b.levels is None for b in lower(graph, plan, 8).buckets)
        assert all(b.levels is None for b in lower(graph, plan, 8, (0, 1, 2, 3)).buckets)
        program = lower(graph, plan, 8, (0, 0, 1, 1))
    for bucket in program.buckets:
        assert bucket.hosts == (((0, 1), (2, 3)) if bucket.size * 4 >= 64 else ())
    dry_run(program)
    for worker in range(4):
        rows = step_rows(program, worker, 4)
        assert sum(row.sent for row in rows) == program.bytes_sent(worker, 4)
        flat = lower(graph, plan, 8).sent(worker, 4)
        assert program.sent(worker, 4).sums == pytest.approx(flat.sums, abs=8 * 4 * len(program.buckets))
        assert memory_of(program, worker, "fp32").received > 0


def test_without_hosts_a_bucket_is_flat() -> None:
    bucket = Bucket(0, (("fc", "weight"),), (Box.whole((10,)),), (1, 3, 4))
    assert [bucket.shard(w) for w in bucket.workers] == [(0, 3), (3, 6), (6, 10)]
    assert [bucket.sums(w) for w in bucket.workers] == [(7, 6), (7, 6), (6, 8)]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(MODELS)))
def test_any_plan_on_any_hosts_runs_to_its_end(name: str, data: st.DataObject) -> None:
    graph = graph_of(name)
    plan, batch = data.draw(plans(graph))
    hosts = data.draw(st.lists(st.integers(0, 1), min_size=plan.workers, max_size=plan.workers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("parallel.program.lowering.BUCKET_BYTES", 64)
        program = lower(graph, plan, batch, hosts)
    dry_run(program)
    for bucket in program.buckets:
        assert positions(*map(bucket.shard, bucket.workers)) == Counter(range(bucket.size))
        sent, received = zip(*map(bucket.sums, bucket.workers), strict=True)
        assert sum(sent) == sum(received)


def test_workers_of_a_host_must_sum_in_the_same_order() -> None:
    """Worker 1 runs its two backwards in the reverse order: flat sums do not block, those of a host do."""
    graph = graph_of("tower")
    plan = read_plan(
        "{workers: 4, ops: {conv1: {n: 4, on: [0, 1, 2, 3]}, fc3: {n: 4, on: [1, 0, 3, 2]}}}", graph
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("parallel.program.lowering.BUCKET_BYTES", 64)
        flat, levels = lower(graph, plan, 8), lower(graph, plan, 8, (0, 0, 1, 1))
    for program in (flat, levels):
        dry_run(program)
        first, last = (i for i, step in enumerate(program.steps[1]) if isinstance(step, Backward))
        steps = list(program.steps[1])
        steps[first], steps[last] = steps[last], steps[first]
        wrong = replace(program, steps=(program.steps[0], tuple(steps), *program.steps[2:]))
        if program is flat:
            _check_progress(wrong)
        else:
            with pytest.raises(ProgramError, match="deadlock: it waits for workers"):
                _check_progress(wrong)
