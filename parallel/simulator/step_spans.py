"""A simulated step as spans of `results.step_timeline`, as a measured step is written.

For each worker: its passes are compute; a message is communication, hidden as long as the worker
computes or another message that started earlier is under way; the rest of the time it is idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from parallel.results.step_timeline import Span
from parallel.simulator.timeline import COMPUTE, Timeline
from parallel.simulator.trace import Bar, bars_of

Interval = tuple[float, float]


def step_spans(timeline: Timeline) -> list[Span]:
    """Return the spans of all workers, each worker's in the order of start times.

    Loading comes first, or at the end if it overlaps the step and takes longer.
    """
    wait_s, overhead_s = max(0.0, timeline.data_wait_s), timeline.cluster.step_overhead_s
    overlaps = timeline.cluster.data_overlaps
    first_s = 0.0 if overlaps else wait_s
    bars: list[list[Bar]] = [[] for _ in range(timeline.workers)]
    for bar in bars_of(timeline):
        bars[bar.worker].append(bar)
    result: list[Span] = []
    for worker, own in enumerate(bars):
        spans = list(_worker_spans(worker, own, timeline.end_s, first_s))
        if wait_s > 0:
            start_s = timeline.step_s if overlaps else 0.0
            spans.append(
                Span(worker=worker, start_s=start_s, end_s=start_s + wait_s, kind="data", name="loading")
            )
        if overhead_s > 0:
            end_s = first_s + timeline.end_s
            spans.append(
                Span(
                    worker=worker,
                    start_s=end_s,
                    end_s=end_s + overhead_s,
                    kind="compute",
                    name="step overhead",
                )
            )
        result += sorted(spans, key=lambda span: (span.start_s, span.end_s))
    return result


def _worker_spans(worker: int, bars: Sequence[Bar], end_s: float, first_s: float) -> Iterator[Span]:
    """Yield the spans of one worker; the timeline begins `first_s` seconds into the step."""

    def span(start: float, end: float, kind: str, name: str, hidden: bool = False) -> Span:
        return Span(
            worker=worker, start_s=first_s + start, end_s=first_s + end, kind=kind, name=name, hidden=hidden
        )

    covered = joined((bar.start_s, bar.end_s) for bar in bars if bar.stream == COMPUTE)
    for bar in sorted(bars, key=lambda bar: bar.start_s):
        name = f"{bar.kind} {bar.name}"
        if bar.stream == COMPUTE:
            yield span(bar.start_s, bar.end_s, "compute", name)
            continue
        for start, end, hidden in pieces((bar.start_s, bar.end_s), covered):
            yield span(start, end, "communication", name, hidden)
        covered = joined([*covered, (bar.start_s, bar.end_s)])
    busy = joined((bar.start_s, bar.end_s) for bar in bars)
    for start, end, within in pieces((0.0, end_s), busy):
        if not within:
            yield span(start, end, "idle", "waiting")


def joined(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the union of intervals as disjoint ones in ascending order."""
    union: list[Interval] = []
    for start, end in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = union[-1][0], max(union[-1][1], end)
        else:
            union.append((start, end))
    return union


def pieces(whole: Interval, within: Iterable[Interval]) -> Iterator[tuple[float, float, bool]]:
    """Cut an interval where it enters or leaves disjoint, ascending intervals; yield start, end, and
    whether the piece is inside one of them."""
    at, end = whole
    for start, stop in within:
        if stop <= at or start >= end:
            continue
        if start > at:
            yield at, start, False
        yield max(at, start), min(stop, end), True
        at = min(stop, end)
    if at < end:
        yield at, end, False
