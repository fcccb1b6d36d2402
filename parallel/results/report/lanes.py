"""Charts with one lane per result: its name, a drawing on a shared horizontal scale, its number.

Names and numbers are text of the page, and marks are placed in percent of the drawing's width, so a
chart fills any width without scaling its text: on a narrow page the drawing moves below the name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from parallel.results.report.colours import strategy_class
from parallel.results.report.svg import Scale, element, tick_label
from parallel.results.result import Result, workers_and_threads

HEIGHT = 32
"""Height of a lane's drawing in pixels; its middle is at half of it."""
ROLES = {"baseline": "baseline", "machine": "more threads"}


@dataclass(frozen=True)
class Lane:
    """What a lane shows of a result."""

    marks: str
    """SVG elements; horizontal places in percent, vertical ones in pixels."""
    value: str
    detail: str = ""
    """Second line below the value."""


def at(x: Scale, value: float) -> str:
    """Return the place of a value, in percent of the drawing's width."""
    return f"{x(value):.2f}".rstrip("0").rstrip(".") + "%"


def width(x: Scale, low: float, high: float) -> str:
    """Return the distance of two values, in percent of the drawing's width."""
    return f"{max(0.0, x(high) - x(low)):.2f}%"


def upright(x: Scale, value: float, reach: float, css: str, *children: str) -> str:
    """Return a vertical line at `value` that reaches `reach` pixels up and down from the middle."""
    place = at(x, value)
    y1, y2 = HEIGHT / 2 - reach, HEIGHT / 2 + reach
    return element("line", *children, x1=place, x2=place, y1=y1, y2=y2, class_=css)


def level(x: Scale, low: float, high: float, css: str) -> str:
    """Return a horizontal line from one value to another, in the middle of the lane."""
    return element("line", x1=at(x, low), x2=at(x, high), y1=HEIGHT / 2, y2=HEIGHT / 2, class_=css)


def block(x: Scale, low: float, high: float, css: str, *children: str, height: float = 22) -> str:
    """Return a rectangle from one value to another."""
    return element(
        "rect",
        *children,
        x=at(x, low),
        width=width(x, low, high),
        y=(HEIGHT - height) / 2,
        height=height,
        class_=css,
    )


def lanes(results: Sequence[Result], x: Scale, unit: str, draw: Callable[[Result], Lane], label: str) -> str:
    """Return the chart. `x` maps values to 0 to 100; `label` describes it to screen readers."""
    ticks = x.ticks(6)
    grid = ",".join(
        f"linear-gradient(var(--grid),var(--grid)) {at(x, tick)} 0/1px 100% no-repeat" for tick in ticks
    )
    rows = "".join(_row(result, draw(result), label) for result in results)
    axis = "".join(
        f'<span style="left:{at(x, tick)}">{escape(tick_label(tick, ticks) + unit)}</span>' for tick in ticks
    )
    return (
        f'<div class="lanes" style="--lines:{grid}">{rows}'
        f'<div class="lane axis"><i></i><div class="ticks">{axis}</div><i></i></div></div>'
    )


def _row(result: Result, lane: Lane, label: str) -> str:
    parts = (result.scheme, workers_and_threads(result), ROLES.get(result.role, ""))
    below = escape(" · ".join(part for part in parts if part))
    detail = f"<small>{escape(lane.detail)}</small>" if lane.detail else ""
    described = escape(f"{label}: {result.label}")
    return (
        f'<div class="lane {strategy_class(result.place)}">'
        f'<div class="who"><b>{escape(result.key.strategy)}</b><small>{below}</small></div>'
        f'<svg height="{HEIGHT}" role="img" aria-label="{described}">{lane.marks}</svg>'
        f'<div class="value"><b>{escape(lane.value)}</b>{detail}</div></div>'
    )
