"""Traces of simulated and measured steps for Perfetto and chrome://tracing.

A worker is a process of the trace, each of its streams (compute, network) a thread, an event a bar.
Times are microseconds from the start of the step. The format is the "Trace Event Format" of
Google's Catapult project: bars have phase X, counters C, names M.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from parallel.simulator.timeline import COMPUTE, NETWORK, Timeline

STREAMS = (COMPUTE, NETWORK)


@dataclass(frozen=True)
class Bar:
    """A time span of one worker's stream: a pass of an op, an update, a message or a wait."""

    worker: int
    stream: str
    kind: str
    """forward, backward, update, exchange, exchange back, sum, gather, wait …"""
    name: str
    start_s: float
    end_s: float
    details: dict[str, object] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Count:
    """A counter's value on one worker from one time on, in bytes."""

    worker: int
    name: str
    at_s: float
    value: float


def write_trace(path: Path, bars: Iterable[Bar], counts: Iterable[Count] = (), title: str = "") -> None:
    """Write a trace file with a title."""
    path.write_text(json.dumps(trace_of(list(bars), list(counts), title)), encoding="utf-8")


def trace_of(bars: Sequence[Bar], counts: Sequence[Count], title: str) -> dict[str, object]:
    """Return the trace as the JSON object of the format.

    Overlapping messages go to separate lanes of the network stream. Computing bars may be nested.
    """
    lanes = _lanes(bars)
    threads = {
        (bar.worker, lane): f"{bar.stream} {lane[1] + 1}" if lane[1] else bar.stream
        for bar, lane in zip(bars, lanes, strict=True)
    }
    numbers = {key: i for i, key in enumerate(sorted(threads, key=lambda key: (key[0], key[1])))}
    events: list[dict[str, object]] = []
    for worker in sorted({bar.worker for bar in bars}):
        events.append(
            {"ph": "M", "name": "process_name", "pid": worker, "args": {"name": f"worker {worker}"}}
        )
        events.append(
            {"ph": "M", "name": "process_sort_index", "pid": worker, "args": {"sort_index": worker}}
        )
    for key, number in numbers.items():
        events.append(
            {"ph": "M", "name": "thread_name", "pid": key[0], "tid": number, "args": {"name": threads[key]}}
        )
        events.append(
            {
                "ph": "M",
                "name": "thread_sort_index",
                "pid": key[0],
                "tid": number,
                "args": {"sort_index": number},
            }
        )
    for bar, lane in zip(bars, lanes, strict=True):
        events.append(
            {
                "ph": "X",
                "name": f"{bar.kind} {bar.name}",
                "cat": bar.kind,
                "pid": bar.worker,
                "tid": numbers[bar.worker, lane],
                "ts": bar.start_s * 1e6,
                "dur": (bar.end_s - bar.start_s) * 1e6,
                "args": bar.details,
            }
        )
    for count in counts:
        events.append(
            {
                "ph": "C",
                "name": count.name,
                "pid": count.worker,
                "ts": count.at_s * 1e6,
                "args": {"bytes": count.value},
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"title": title}}


def _lanes(bars: Sequence[Bar]) -> list[tuple[int, int]]:
    """Return the stream number of each bar, and its lane: the first one that is free."""
    lanes: list[tuple[int, int]] = [(0, 0)] * len(bars)
    open_bars: dict[tuple[int, str], list[list[float]]] = {}
    for i in sorted(range(len(bars)), key=lambda i: (bars[i].start_s, -bars[i].end_s)):
        bar = bars[i]
        stacks = open_bars.setdefault((bar.worker, bar.stream), [])
        for stack in stacks:
            while stack and stack[-1] <= bar.start_s:
                stack.pop()
        nests = bar.stream == COMPUTE
        fits = [n for n, stack in enumerate(stacks) if not stack or (nests and bar.end_s <= stack[-1])]
        lane = fits[0] if fits else len(stacks)
        if not fits:
            stacks.append([])
        stacks[lane].append(bar.end_s)
        lanes[i] = STREAMS.index(bar.stream), lane
    return lanes


def bars_of(timeline: Timeline) -> list[Bar]:
    """Return the bars of a simulated step. Computing bars end with the worker's own part."""
    bars = []
    for event in timeline.events:
        for i, worker in enumerate(event.workers):
            end_s = event.end_s if event.own_s is None else event.start_s + float(event.own_s[i])
            if end_s > event.start_s:
                name = event.name if event.micro_batch is None else f"{event.name}:{event.micro_batch}"
                details: dict[str, object] = {}
                if len(event.workers) <= 32:
                    details["workers"] = list(event.workers)
                bars.append(Bar(worker, event.stream, event.kind, name, event.start_s, end_s, details))
    return bars


def counts_of(timeline: Timeline) -> list[Count]:
    """Return the stored activations of each worker over the step."""
    return [
        Count(worker, "activations", at_s, nbytes)
        for worker in range(timeline.workers)
        for at_s, nbytes in [(0.0, 0), *timeline.activations(worker)]
    ]
