"""Plots with one curve per result: loss and accuracy by epoch, speedup and epoch time by
workers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from parallel.results.comparison import Result
from parallel.results.report.colours import strategy_colour
from parallel.results.report.svg import (
    LogScale,
    Scale,
    drawing,
    element,
    line,
    shortened,
    spread_out,
    text,
    tick_label,
    titled,
)

WIDTH, HEIGHT = 580, 310
LEFT, RIGHT, TOP, BOTTOM = 48, 190, 30, 40
DASHES = ("none", "7 4", "2 4", "9 3 2 3")
"""Line styles that tell apart the results of one strategy, which share its colour."""
ALIKE = 0.01
"""Curves that differ by less than this fraction of the plot's range coincide."""

Points = list[tuple[int, float]]
Axis = Scale | LogScale


@dataclass(frozen=True)
class Curve:
    """One curve with its name, colour and line style."""

    name: str
    colour: str
    dash: str
    points: Points


def by_epoch(results: Sequence[Result], field: str, title: str, scale: float = 1.0, unit: str = "") -> str:
    """Return a plot of a field of `Epoch` by epoch, one curve per result, named at its end."""
    drawn = [(result, [(n, scale * v) for n, v in result.curve(field)]) for result in results]
    seen: dict[str, int] = defaultdict(int)
    curves = []
    for result, points in drawn:
        if points:
            dash = DASHES[seen[result.key.strategy] % len(DASHES)]
            seen[result.key.strategy] += 1
            more = f" {result.key.threads} threads" if result.role == "machine" else ""
            curves.append(Curve(result.label + more, strategy_colour(result.place), dash, points))
    return _panel(curves, title, "epoch", unit)


def by_workers(results: Sequence[Result]) -> str | None:
    """Return a plot of speedup by workers beside linear speedup. None: nothing ran on two numbers
    of workers."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        if result.speedup is not None and result.role == "":
            groups[result.key.strategy, result.scheme].append(result)
    if not any(len({result.key.workers for result in group}) > 1 for group in groups.values()):
        return None
    seen: dict[str, int] = defaultdict(int)
    most = max(result.key.workers for group in groups.values() for result in group)
    curves = [Curve("linear", "var(--muted)", "2 4", [(n, float(n)) for n in range(1, most + 1)])]
    for (strategy, scheme), group in groups.items():
        dash = DASHES[seen[strategy] % len(DASHES)]
        seen[strategy] += 1
        points = sorted(
            (result.key.workers, result.speedup.ratio) for result in group if result.speedup is not None
        )
        curves.append(Curve(f"{strategy} {scheme}".strip(), strategy_colour(group[0].place), dash, points))
    return _panel(curves, "Speedup", "workers", "×")


def scaling(curves: Sequence[Curve], title: str, unit: str = "", target: float | None = None) -> str:
    """Return a plot by workers with two logarithmic axes, and a horizontal line at `target`."""
    values = [v for curve in curves for _, v in curve.points] + ([] if target is None else [target])
    numbers = sorted({n for curve in curves for n, _ in curve.points})
    x = LogScale(numbers[0], max(numbers[-1], 2 * numbers[0]), LEFT + 14, WIDTH - RIGHT)
    y = LogScale(min(values) / 1.15, max(values) * 1.15, HEIGHT - BOTTOM, TOP)
    shown = [n for i, n in enumerate(numbers) if i % math.ceil(len(numbers) / 9) == 0]
    over = (
        ""
        if target is None
        else element(
            "g", titled(f"{target:g}{unit}"), line(LEFT, y(target), WIDTH - RIGHT, y(target), class_="mark")
        )
    )
    return _frame(
        curves,
        title,
        "workers",
        unit,
        x,
        y,
        [(n, f"{n:,}") for n in shown],
        [(tick, f"{tick:,.6g}") for tick in y.ticks(5)],
        ALIKE * min(values),
        over,
    )


def largest_difference(results: Sequence[Result], field: str) -> float:
    """Return the largest difference between the curves of a field after the same epoch."""
    at: dict[int, list[float]] = defaultdict(list)
    for result in results:
        for n, value in result.curve(field):
            at[n].append(value)
    return max((max(values) - min(values) for values in at.values()), default=0.0)


def _panel(curves: Sequence[Curve], title: str, along: str, unit: str) -> str:
    values = [v for curve in curves for _, v in curve.points]
    numbers = [n for curve in curves for n, _ in curve.points]
    span = max(values) - min(values)
    pad = 0.06 * span or 0.05 * abs(values[0]) or 1.0
    x = Scale(min(numbers), max(min(numbers) + 1, *numbers), LEFT + 10, WIDTH - RIGHT)
    y = Scale(min(values) - pad, max(values) + pad, HEIGHT - BOTTOM, TOP)
    steps = {round(tick) for tick in x.ticks(8)} & set(range(min(numbers), max(numbers) + 1))
    ticks = y.ticks(5)
    return _frame(
        curves,
        title,
        along,
        unit,
        x,
        y,
        [(n, str(n)) for n in sorted(steps)],
        [(tick, tick_label(tick, ticks)) for tick in ticks],
        ALIKE * span,
    )


def _frame(
    curves: Sequence[Curve],
    title: str,
    along: str,
    unit: str,
    x: Axis,
    y: Axis,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    tolerance: float,
    over: str = "",
) -> str:
    """Return the plot on the given axes. Curves that differ by less than `tolerance` are drawn as
    bands."""
    out = [text(0, 12, title, class_="name")]
    for tick, label in y_ticks:
        out += [
            line(LEFT, y(tick), WIDTH - RIGHT, y(tick), class_="grid"),
            text(LEFT - 8, y(tick) + 4, label + unit, "end", class_="small"),
        ]
    out += [text(x(n), HEIGHT - BOTTOM + 20, label, "middle", class_="small") for n, label in x_ticks]
    out.append(over)
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, along, "middle", class_="small"))
    ends = spread_out([y(curve.points[-1][1]) for curve in curves], 16, TOP + 4, HEIGHT - BOTTOM)
    for place, (curve, end) in enumerate(zip(curves, ends, strict=True)):
        # A curve that later curves cover is drawn wider, so that all of them stay visible.
        covers = sum(_alike(curve.points, other.points, tolerance) for other in curves[place + 1 :])
        out.append(_curve(curve, 2.0 + min(2.0, 10.0 / len(curves)) * covers, x, y, end, along, unit))
    return drawing(WIDTH, HEIGHT, *out, label=f"{title} by {along}")


def _curve(curve: Curve, weight: float, x: Axis, y: Axis, end: float, along: str, unit: str) -> str:
    """Return a curve with its points, and its name at height `end` with a leader line."""
    path = "M" + "L".join(f"{x(n):.2f},{y(v):.2f}" for n, v in curve.points)
    last_n, last_v = curve.points[-1]
    lead = f"M{x(last_n) + 3 + weight / 2:.2f},{y(last_v):.2f}L{WIDTH - RIGHT + 18},{end:.2f}h5"
    shown = shortened(curve.name, 26)
    return element(
        "g",
        titled(curve.name),
        element(
            "path",
            d=path,
            fill="none",
            stroke=curve.colour,
            stroke_width=weight,
            stroke_linejoin="round",
            stroke_dasharray=curve.dash,
            stroke_linecap="round" if curve.dash == "none" else "butt",
        ),
        *(
            element(
                "circle",
                titled(f"{curve.name}, {along} {n}: {v:.4g}{unit}"),
                cx=x(n),
                cy=y(v),
                r=1 + weight / 2,
                fill=curve.colour,
            )
            for n, v in curve.points
        ),
        element("path", d=lead, fill="none", stroke=curve.colour, stroke_width=1, stroke_opacity=0.55),
        text(WIDTH - RIGHT + 28, end + 4, shown, class_="end", style=f"fill:{curve.colour}"),
    )


def _alike(one: Points, other: Points, tolerance: float) -> bool:
    shared = dict(other)
    gaps = [abs(v - shared[n]) for n, v in one if n in shared]
    return bool(gaps) and max(gaps) <= tolerance
