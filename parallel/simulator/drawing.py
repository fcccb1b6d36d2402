"""Draw a timeline as SVG: two rows for each worker, one for computing and one for messages."""

from __future__ import annotations

from parallel.results.report.svg import Scale, drawing, element, line, rect, text, tick_label, titled
from parallel.simulator.timeline import COMPUTE, NETWORK, Timeline
from parallel.simulator.trace import Bar, bars_of

STYLE = """
svg { --ground: #ffffff; --ink: #1d1f23; --muted: #63676e; --grid: #e6e3dd; --rest: #f4f2ee;
  --forward: #0072b2; --backward: #00875f; --update: #7b7f87; --exchange: #d55e00; --exchange_back: #b8568c;
  --sum: #b87900; --gather: #e69f00;
  background: var(--ground); font: 12px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { svg {
  --ground: #14161a; --ink: #e7e6e3; --muted: #9aa0a8; --grid: #31353c;
  --forward: #4aa5e0; --backward: #2fbf93; --update: #9a9fa8; --exchange: #f0853c; --exchange_back: #df93bd;
  --sum: #b98b2e; --gather: #efb63a; --rest: #1d2026; } }
text { fill: var(--ink); } .muted { fill: var(--muted); } .grid { stroke: var(--grid); }
.inside { fill: #ffffff; font-size: 10px; pointer-events: none; }
"""
KINDS = ("forward", "backward", "update", "exchange", "exchange back", "sum", "gather")
MOST_WORKERS = 16
"""Rows of more workers would be too thin to tell apart; the trace has all of them."""
WIDTH, LEFT, RIGHT, TOP = 1200.0, 92.0, 20.0, 66.0
LANE, GAP, CHARACTER = 18.0, 12.0, 6.0


def draw(timeline: Timeline, title: str) -> str:
    """Return the drawing of the first `MOST_WORKERS` workers."""
    shown = min(timeline.workers, MOST_WORKERS)
    bottom = TOP + shown * (2 * LANE + GAP)
    scale = Scale(0.0, timeline.step_s * 1e3, LEFT, WIDTH - RIGHT)
    parts = [element("style", STYLE), text(LEFT, 20, title, font_weight=600), *_legend()]
    if shown < timeline.workers:
        parts.append(
            text(
                WIDTH - RIGHT, 20, f"workers 0 to {shown - 1} of {timeline.workers:,}", "end", class_="muted"
            )
        )
    ticks = scale.ticks(8)
    for tick in ticks:
        parts += [
            line(scale(tick), TOP - 6, scale(tick), bottom, class_="grid"),
            text(scale(tick), bottom + 14, tick_label(tick, ticks), "middle", class_="muted"),
        ]
    parts.append(text(WIDTH - RIGHT, bottom + 30, "milliseconds", "end", class_="muted"))
    for worker in range(shown):
        parts.append(text(LEFT - 8, _row(worker, COMPUTE) + 13, f"worker {worker}", "end"))
        parts.append(text(LEFT - 8, _row(worker, NETWORK) + 12, "messages", "end", class_="muted"))
        parts += [
            rect(LEFT, _row(worker, stream), WIDTH - RIGHT - LEFT, LANE - 1, fill="var(--rest)")
            for stream in (COMPUTE, NETWORK)
        ]
    parts += [mark for bar in bars_of(timeline) if bar.worker < shown for mark in _bar(bar, scale)]
    label = f"{title}: {shown} workers during a step of {timeline.step_s * 1e3:.4g} milliseconds"
    return drawing(WIDTH, bottom + 40, *parts, label=label) + "\n"


def _row(worker: int, stream: str) -> float:
    return TOP + worker * (2 * LANE + GAP) + (LANE if stream == NETWORK else 0.0)


def _colour(kind: str) -> str:
    return f"var(--{kind.replace(' ', '_')})"


def _legend() -> list[str]:
    marks, x = [], LEFT
    for kind in KINDS:
        marks += [rect(x, 34, 10, 10, fill=_colour(kind)), text(x + 15, 43, kind, class_="muted")]
        x += 15 + CHARACTER * len(kind) + 18
    return marks


def _bar(bar: Bar, scale: Scale) -> list[str]:
    start, end = scale(bar.start_s * 1e3), scale(bar.end_s * 1e3)
    top = _row(bar.worker, bar.stream)
    says = f"{bar.kind} {bar.name}: {(bar.end_s - bar.start_s) * 1e3:.4g} ms from {bar.start_s * 1e3:.4g} ms"
    marks = [rect(start, top, max(end - start, 0.4), LANE - 1, titled(says), fill=_colour(bar.kind))]
    if end - start > CHARACTER * len(bar.name) + 4:
        marks.append(text((start + end) / 2, top + 12, bar.name, "middle", class_="inside"))
    return marks
