"""Plots with one line per result, each a function from results to an SVG: epoch times, speedup,
time split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parallel.results.comparison import Result, workers_and_threads
from parallel.results.formatting import percent, seconds
from parallel.results.report.colours import strategy_colour
from parallel.results.report.svg import (
    Scale,
    drawing,
    element,
    line,
    rect,
    shortened,
    text,
    tick_label,
    titled,
)

WIDTH = 1184
LEFT, RIGHT = 270, 120
"""Room for the names on the left and for the numbers on the right."""
TOP, BOTTOM, PITCH = 6, 34, 46

PARTS = (
    ("compute_s", "compute", "--compute"),
    ("communication_s", "exposed communication", "--communication"),
    ("data_wait_s", "data wait", "--wait"),
    ("idle_s", "idle", "--idle"),
    ("other", "not attributed", "--rest"),
)
"""Parts of the time split: key, name, colour."""
PALE = ("idle_s", "other", "data_wait_s")
ROLES = {"baseline": "baseline", "machine": "more threads"}


def box_plot(results: Sequence[Result]) -> str:
    """Return a box plot of epoch times in seconds; the whiskers end at minimum and maximum."""
    low, high = min(r.epoch_s.minimum for r in results), max(r.epoch_s.maximum for r in results)
    pad = 0.06 * (high - low) or 0.1 * high
    x = Scale(max(0.0, low - pad), high + pad, LEFT, WIDTH - RIGHT)

    def draw(result: Result, y: float) -> str:
        s, c = result.epoch_s, strategy_colour(result.place)
        title = titled(
            f"{result.label}: minimum {seconds(s.minimum)}, "
            f"first quartile {seconds(s.first_quartile)}, median {seconds(s.median)}, "
            f"mean {seconds(s.mean)}, third quartile {seconds(s.third_quartile)}, "
            f"maximum {seconds(s.maximum)} s"
        )
        # Jitter in y separates equal times; it is fixed so that writing the report again gives the
        # same file.
        dots = "".join(
            element(
                "circle",
                titled(f"{result.label}, {seconds(t)} s"),
                cx=x(t),
                cy=y + 15 + i * 7 % 5,
                r=2,
                fill=c,
                fill_opacity=0.55,
            )
            for i, t in enumerate(result.epoch_times)
        )
        box = rect(
            x(s.first_quartile),
            y - 11,
            max(2.0, x(s.third_quartile) - x(s.first_quartile)),
            20,
            fill=c,
            fill_opacity=0.22,
            stroke=c,
            stroke_width=1.25,
            rx=2,
        )
        return (
            element(
                "g",
                title,
                line(x(s.minimum), y - 1, x(s.first_quartile), y - 1, stroke=c, stroke_width=1.25),
                line(x(s.third_quartile), y - 1, x(s.maximum), y - 1, stroke=c, stroke_width=1.25),
                *(
                    line(x(v), y - 6, x(v), y + 4, stroke=c, stroke_width=1.25)
                    for v in (s.minimum, s.maximum)
                ),
                box,
                line(x(s.median), y - 11, x(s.median), y + 9, stroke=c, stroke_width=3),
                element(
                    "path",
                    d=f"M{x(s.mean):.2f},{y - 5:.2f}l4,4l-4,4l-4,-4z",
                    fill="var(--ground)",
                    stroke=c,
                    stroke_width=1.25,
                ),
            )
            + dots
            + text(WIDTH - RIGHT + 14, y + 4, f"{seconds(s.median)} s", class_="strong")
        )

    return _lines(results, x, " s", draw, "Epoch times by strategy")


def speedup_bars(results: Sequence[Result]) -> str:
    """Return bars of the speedup with its 95 % interval; a mark shows linear speedup, the number of
    workers."""
    results = [result for result in results if result.speedup is not None]
    top = max(max(r.speedup.high or r.speedup.ratio, r.key.workers) for r in results if r.speedup is not None)
    x = Scale(0.0, 1.04 * top, LEFT, WIDTH - RIGHT)

    def draw(result: Result, y: float) -> str:
        s = result.speedup
        if s is None:
            return ""
        title = titled(f"{result.label}, {workers_and_threads(result)}: {s}")
        parts = [rect(x(0), y - 11, x(s.ratio) - x(0), 22, title, fill=strategy_colour(result.place), rx=1.5)]
        if s.low is not None and s.high is not None:
            parts += [
                line(x(s.low), y, x(s.high), y, stroke="var(--ink)", stroke_width=1.5),
                *(
                    line(x(v), y - 5, x(v), y + 5, stroke="var(--ink)", stroke_width=1.5)
                    for v in (s.low, s.high)
                ),
            ]
        if result.key.workers > 1:
            parts.append(
                element(
                    "g",
                    titled(f"linear: {result.key.workers}×"),
                    line(x(result.key.workers), y - 15, x(result.key.workers), y + 15, class_="mark"),
                )
            )
        interval = "" if s.low is None or s.high is None else f"{s.low:.2f}–{s.high:.2f}"
        parts.append(
            text(WIDTH - RIGHT + 14, y - 1 if interval else y + 4, f"{s.ratio:.2f}×", class_="strong")
        )
        parts.append(text(WIDTH - RIGHT + 14, y + 14, interval, class_="small"))
        return "".join(parts)

    over = line(x(1), TOP, x(1), TOP + PITCH * len(results), stroke="var(--ink)", stroke_width=1)
    return _lines(results, x, "×", draw, "Speedup over the baseline", over=over)


def split_bars(results: Sequence[Result]) -> str:
    """Return bars of the mean epoch time, divided into the parts of `PARTS`."""
    split = [(result, parts) for result in results if (parts := result.time_split()) is not None]
    whole = {result.key: sum(parts.values()) for result, parts in split}
    x = Scale(0.0, 1.02 * max(whole.values()), LEFT, WIDTH - RIGHT)
    of = {result.key: parts for result, parts in split}

    def draw(result: Result, y: float) -> str:
        at, out = 0.0, []
        for key, name, css in PARTS:
            value = of[result.key][key]
            share = value / whole[result.key]
            width = x(value) - x(0)
            title = titled(f"{result.label}: {name} {seconds(value)} s, {percent(share)}")
            out.append(rect(x(at), y - 12, width - 0.75, 24, title, fill=f"var({css})"))
            if width > 46:
                out.append(text(x(at) + 7, y + 4, percent(share, 0), class_="off" if key in PALE else "on"))
            at += value
        return "".join(out) + text(WIDTH - RIGHT + 14, y + 4, f"{seconds(at)} s", class_="strong")

    return _lines([result for result, _ in split], x, " s", draw, "Where the time of an epoch goes")


def split_legend(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Return name and colour of each part that is visible in `split_bars`: more than 0.1 % of some
    epoch time."""
    splits = [parts for result in results if (parts := result.time_split())]
    return [
        (name, f"var({css})")
        for key, name, css in PARTS
        if any(parts[key] > 0.001 * sum(parts.values()) for parts in splits)
    ]


def _lines(
    results: Sequence[Result],
    x: Scale,
    unit: str,
    draw: Callable[[Result, float], str],
    label: str,
    over: str = "",
) -> str:
    """Return a plot with one line per result: names on the left, a grid in x."""
    floor = TOP + PITCH * len(results)
    out, ticks = [], x.ticks(7)
    for tick in ticks:
        out += [
            line(x(tick), TOP, x(tick), floor, class_="grid"),
            text(x(tick), floor + 20, tick_label(tick, ticks) + unit, "middle", class_="small"),
        ]
    for place, result in enumerate(results):
        y = TOP + PITCH * (place + 0.5)
        parts = (result.scheme, workers_and_threads(result), ROLES.get(result.role, ""))
        below = " · ".join(part for part in parts if part)
        out += [
            text(0, y - 2, result.key.strategy, class_="name"),
            element("g", titled(below), text(0, y + 14, shortened(below, 42), class_="small")),
            draw(result, y),
        ]
    return drawing(WIDTH, floor + BOTTOM, *out, over, label=label)
