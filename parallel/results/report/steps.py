"""One step as timelines: measured above predicted, on one scale of time."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from parallel.results.formatting import milliseconds
from parallel.results.report.svg import Scale, element, tick_label, titled
from parallel.results.result import Result
from parallel.results.step_timeline import FILE, Span, StepTimelines, read

MOST_SPANS = 240
"""Spans of a timeline that are drawn, over all workers; of more, the longest."""
MOST_WORKERS = 8
CLASSES = {"compute": "p0", "communication": "p1", "data": "p2", "idle": "p3"}
HEIGHT, STRIP = 22, 5
"""Height of a worker's row, and of the strip of hidden communication below it, in pixels."""


def timelines_of(result: Result) -> tuple[StepTimelines | None, str]:
    """Return the timelines of the last run of a result that has some, and the error of a file that
    cannot be read."""
    error = ""
    for record in reversed(result.records):
        file = None if record.directory is None else Path(record.directory) / FILE
        if file is None or not file.is_file():
            continue
        try:
            found = read(file)
        except ValueError as unreadable:
            error = str(unreadable)
            continue
        if found.measured or found.predicted:
            return found, ""
    return None, error


def step_chart(timelines: StepTimelines) -> str:
    """Return the two timelines, one above the other."""
    rows = [
        (name, spans)
        for name, spans in (("measured", timelines.measured), ("predicted", timelines.predicted))
        if spans
    ]
    x = Scale(0.0, max(span.end_s for _, spans in rows for span in spans) or 1.0, 0, 100)
    milli = Scale(0.0, 1e3 * x.high, 0, 100)
    ticks = milli.ticks(6)
    axis = "".join(
        f'<span style="left:{milli(tick):.2f}%">{escape(tick_label(tick, ticks))} ms</span>' for tick in ticks
    )
    drawn = "".join(_timeline(name, spans, x) for name, spans in rows)
    return f'<div class="step">{drawn}<i></i><div class="ticks">{axis}</div></div>'


def _timeline(name: str, spans: Sequence[Span], x: Scale) -> str:
    workers = sorted({span.worker for span in spans})
    end = max(span.end_s for span in spans)
    kept = sorted(spans, key=lambda span: span.start_s - span.end_s)[:MOST_SPANS]
    limit = "" if len(kept) == len(spans) else f"; {len(spans) - len(kept)} short spans are not drawn"
    if len(workers) > MOST_WORKERS:
        limit += f"; workers {workers[0]} to {workers[MOST_WORKERS - 1]} of {len(workers)}"
    head = f'<div class="head"><b>{name}</b> <small>{milliseconds(end)} ms{limit}</small></div>'
    rows = "".join(
        f'<small>worker {worker}</small><svg height="{HEIGHT + STRIP}" role="img" '
        f'aria-label="{name} step of worker {worker}">'
        f"{''.join(_span(span, x) for span in kept if span.worker == worker)}</svg>"
        for worker in workers[:MOST_WORKERS]
    )
    return head + rows


def _span(span: Span, x: Scale) -> str:
    hidden = ", hidden" if span.hidden else ""
    return element(
        "rect",
        titled(f"{span.name}: {span.kind}{hidden}, {milliseconds(span.end_s - span.start_s)} ms"),
        x=f"{x(span.start_s):.2f}%",
        width=f"{max(0.05, x(span.end_s) - x(span.start_s)):.2f}%",
        y=HEIGHT if span.hidden else 2,
        height=STRIP if span.hidden else HEIGHT - 3,
        class_=CLASSES[span.kind],
    )
