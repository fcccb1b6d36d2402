"""Plots with one curve per result: loss and accuracy by epoch, speedup and epoch time by
workers.

The drawing is stretched to its place in the page; text is text of the page around it. So a plot
fills any width with text of one size, and on a narrow page the names become a legend below it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from parallel.results.report.colours import strategy_colour
from parallel.results.report.names import names_of
from parallel.results.report.svg import LogScale, Scale, element, spread_out, tick_label, titled
from parallel.results.result import Result

SIZE = 1000
"""Width and height of the drawing's coordinates, whatever its shape on the page."""
LEFT, RIGHT, TOP, BOTTOM = 25, 60, 30, 30
"""Margins in these coordinates; on the right, lines lead from the curves to their names."""
LABEL = 75
"""Height of a curve's name in these coordinates, where the plot has its usual height."""
DASHES = ("none", "7 4", "2 4", "9 3 2 3")
"""Line styles that tell apart the results of one strategy, which share its colour."""
MOST_POINTS = 500
"""Points of a curve; of more, evenly spread ones and the last, which the axis states."""
MOST_DOTS = 100
"""Points of a curve that have a mark with their numbers; of more, evenly spread ones."""
ALIKE = 0.01
"""Curves that differ by less than this fraction of the plot's range coincide."""

Points = Sequence[tuple[float, float]]
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
    return _panel(_styled(drawn), title, "epoch", unit)


def over_time(points: Sequence[tuple[Result, Points]], title: str, unit: str) -> str | None:
    """Return a plot of values over training seconds, one curve per result. None: no points."""
    found = _styled(points)
    return _panel(found, title, "training time, s", unit) if found else None


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
    return by_number(curves, title, "workers", unit, logarithmic=True, target=target)


def by_number(
    curves: Sequence[Curve],
    title: str,
    along: str,
    unit: str = "",
    *,
    logarithmic: bool = False,
    target: float | None = None,
) -> str:
    """Return a plot by a number of workers or samples on a logarithmic axis.

    Values start at zero unless their axis is `logarithmic`, too. `target` is drawn as a horizontal line.
    """
    values = [v for curve in curves for _, v in curve.points] + ([] if target is None else [target])
    numbers = sorted({n for curve in curves for n, _ in curve.points})
    x = LogScale(numbers[0], max(numbers[-1], 2 * numbers[0]), LEFT, SIZE - RIGHT)
    low, high = (min(values) / 1.15, max(values) * 1.15) if logarithmic else (0.0, 1.05 * max(values) or 1.0)
    y = (LogScale if logarithmic else Scale)(low, high, SIZE - BOTTOM, TOP)
    over = ""
    if target is not None:
        over = element(
            "path", titled(f"{target:g}{unit}"), d=f"M0 {_at(y(target))}H{SIZE - RIGHT}", class_="mark"
        )
    return _frame(
        curves,
        title,
        along,
        unit,
        x,
        y,
        [(n, f"{n:,}") for i, n in enumerate(numbers) if i % math.ceil(len(numbers) / 9) == 0],
        [(tick, f"{tick:,.6g}") for tick in y.ticks(5)],
        ALIKE * (min(values) if logarithmic else high),
        over,
    )


def largest_difference(results: Sequence[Result], field: str) -> float:
    """Return the largest difference between the curves of a field after the same epoch."""
    at: dict[int, list[float]] = defaultdict(list)
    for result in results:
        for n, value in result.curve(field):
            at[n].append(value)
    return max((max(values) - min(values) for values in at.values()), default=0.0)


def _styled(points: Sequence[tuple[Result, Points]]) -> list[Curve]:
    """Return a curve for each result that has points. Those of a strategy differ in their line style."""
    names = names_of([result for result, _ in points])
    seen: dict[str, int] = defaultdict(int)
    curves = []
    for result, those in points:
        if those:
            dash = DASHES[seen[result.key.strategy] % len(DASHES)]
            seen[result.key.strategy] += 1
            curves.append(Curve(names[result.key], strategy_colour(result.place), dash, those))
    return curves


def _panel(curves: Sequence[Curve], title: str, along: str, unit: str) -> str:
    values = [v for curve in curves for _, v in curve.points]
    numbers = [n for curve in curves for n, _ in curve.points]
    span = max(values) - min(values)
    pad = 0.06 * span or 0.05 * abs(values[0]) or 1.0
    least = math.floor(min(numbers))
    x = Scale(min(numbers), max(min(numbers) + 1, *numbers), LEFT, SIZE - RIGHT)
    y = Scale(min(values) - pad, max(values) + pad, SIZE - BOTTOM, TOP)
    steps = {round(tick) for tick in x.ticks(8)} & set(range(least, math.floor(max(numbers)) + 1))
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
    every = -(-max(len(curve.points) for curve in curves) // MOST_POINTS)
    if every > 1:
        curves = [dataclasses.replace(curve, points=_thinned(curve.points, every)) for curve in curves]
        along += f", 1 of {every} points drawn"
    grid = "".join(f"M0 {_at(y(tick))}H{SIZE - RIGHT}" for tick, _ in y_ticks)
    drawn = [element("path", d=grid or "M0 0", class_="grid"), over]
    names = []
    ends = spread_out([y(curve.points[-1][1]) for curve in curves], LABEL, TOP, SIZE - TOP)
    for place, (curve, end) in enumerate(zip(curves, ends, strict=True)):
        # A curve that later curves cover is drawn wider, so that all of them stay visible.
        covers = sum(_alike(curve.points, other.points, tolerance) for other in curves[place + 1 :])
        weight = 2.0 + min(2.0, 10.0 / len(curves)) * covers
        drawn.append(_curve(curve, weight, x, y, end, along, unit))
        names.append(
            f'<span style="top:{end / 10:.1f}%;--c:{escape(curve.colour)}" title="{escape(curve.name)}">'
            f"{_key(curve)}{escape(curve.name)}</span>"
        )
    left = "".join(
        f'<span style="top:{y(tick) / 10:.1f}%">{escape(label + unit)}</span>' for tick, label in y_ticks
    )
    below = "".join(f'<span style="left:{x(n) / 10:.1f}%">{escape(label)}</span>' for n, label in x_ticks)
    described = escape(f"{title} by {along}")
    return (
        f'<div class="xy"><b>{escape(title)}</b><div class="ys">{left}</div>'
        f'<svg viewBox="0 0 {SIZE} {SIZE}" preserveAspectRatio="none" role="img" aria-label="{described}">'
        f'{"".join(drawn)}</svg><div class="names">{"".join(names)}</div>'
        f'<div class="ticks">{below}</div><small>{escape(along)}</small></div>'
    )


def _curve(curve: Curve, weight: float, x: Axis, y: Axis, end: float, along: str, unit: str) -> str:
    """Return a curve with its points, and a line that leads to its name at height `end`."""
    places = [(x(n), y(v)) for n, v in curve.points]
    path = "M" + "L".join(f"{_at(a)} {_at(b)}" for a, b in places)
    lead = f"M{_at(places[-1][0])} {_at(places[-1][1])}L{SIZE} {_at(end)}"
    dots = "".join(
        # A round cap on a line without length is a dot that is round however the drawing is stretched.
        element(
            "path",
            titled(f"{curve.name}, {along} {n:,.4g}: {v:.4g}{unit}"),
            d=f"M{_at(a)} {_at(b)}h0",
            class_="dot",
        )
        for (n, v), (a, b) in list(zip(curve.points, places, strict=True))[:: -(-len(places) // MOST_DOTS)]
    )
    dashes = {} if curve.dash == "none" else {"stroke_dasharray": curve.dash}
    return element(
        "g",
        titled(curve.name),
        element("path", d=path, class_="curve", stroke_width=weight, **dashes),
        element("path", d=lead, class_="lead"),
        element("g", dots, stroke_width=3 + weight),
        style=f"--c:{curve.colour}",
    )


def _key(curve: Curve) -> str:
    """Return a sample of the curve's line, for the legend of narrow pages."""
    dots, *_ = curve.dash.split()
    style = "solid" if dots == "none" else "dotted" if float(dots) < 3 else "dashed"
    return f'<i class="{style}"></i>'


def _thinned(points: Points, every: int) -> Points:
    return [*points[:-1:every], points[-1]]


def _at(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")


def _alike(one: Points, other: Points, tolerance: float) -> bool:
    shared = dict(other)
    gaps = [abs(v - shared[n]) for n, v in one if n in shared]
    return bool(gaps) and max(gaps) <= tolerance
