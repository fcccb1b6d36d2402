"""The plots with a line per result, each a function from results to an SVG: epoch times, speedup, time split."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parallel.results.comparison import Result
from parallel.results.report.svg import Scale, drawing, element, line, rect, shortened, text, tick_label, titled
from parallel.results.table import percent, seconds

WIDTH = 1184
LEFT, RIGHT = 270, 120
"""Room for the results' names and for the numbers at their ends."""
TOP, BOTTOM, PITCH = 6, 34, 46

PARTS = (
    ("compute_s", "compute", "--compute"),
    ("communication_s", "exposed communication", "--communication"),
    ("data_wait_s", "data wait", "--wait"),
    ("idle_s", "idle", "--idle"),
    ("other", "not attributed", "--rest"),
)
"""Of the time split: key, name, colour."""
PALE = ("idle_s", "other", "data_wait_s")
ROLES = {"baseline": "baseline", "machine": "more threads"}
KNOWN = ("single", "data_parallel", "model_parallel", "one_weird_trick", "ddp", "from_file", "searched")


def colour(result: Result) -> str:
    """The CSS colour of the result's strategy, the same in every plot."""
    return f"var(--{result.key.strategy if result.key.strategy in KNOWN else 'other'})"


def where(result: Result) -> str:
    """Workers and threads of a result."""
    key = result.key
    workers = f"{key.workers} worker{'s' * (key.workers != 1)}"
    return workers if key.threads is None else f"{workers} × {key.threads} thread{'s' * (key.threads > 1)}"


def box_plot(results: Sequence[Result]) -> str:
    """Epoch times in seconds: box from first to third quartile, median as line, whiskers to minimum and maximum."""
    low, high = min(r.epoch_s.minimum for r in results), max(r.epoch_s.maximum for r in results)
    pad = 0.06 * (high - low) or 0.1 * high
    x = Scale(max(0.0, low - pad), high + pad, LEFT, WIDTH - RIGHT)

    def draw(result: Result, y: float) -> str:
        s, c = result.epoch_s, colour(result)
        title = titled(f"{result.label}: minimum {seconds(s.minimum)}, first quartile {seconds(s.first_quartile)}, "
                       f"median {seconds(s.median)}, mean {seconds(s.mean)}, "
                       f"third quartile {seconds(s.third_quartile)}, maximum {seconds(s.maximum)} s")
        # A fixed scatter in y keeps equal times apart, and the file the same from one writing to the next.
        dots = "".join(element("circle", titled(f"{result.label}, {seconds(t)} s"), cx=x(t), cy=y + 15 + i * 7 % 5,
                               r=2, fill=c, fill_opacity=.55) for i, t in enumerate(result.epoch_times))
        box = rect(x(s.first_quartile), y - 11, max(2.0, x(s.third_quartile) - x(s.first_quartile)), 20,
                   fill=c, fill_opacity=.22, stroke=c, stroke_width=1.25, rx=2)
        return element(
            "g", title,
            line(x(s.minimum), y - 1, x(s.first_quartile), y - 1, stroke=c, stroke_width=1.25),
            line(x(s.third_quartile), y - 1, x(s.maximum), y - 1, stroke=c, stroke_width=1.25),
            *(line(x(v), y - 6, x(v), y + 4, stroke=c, stroke_width=1.25) for v in (s.minimum, s.maximum)),
            box,
            line(x(s.median), y - 11, x(s.median), y + 9, stroke=c, stroke_width=3),
            element("path", d=f"M{x(s.mean):.2f},{y - 5:.2f}l4,4l-4,4l-4,-4z", fill="var(--ground)", stroke=c,
                    stroke_width=1.25),
        ) + dots + text(WIDTH - RIGHT + 14, y + 4, f"{seconds(s.median)} s", class_="strong")

    return _rows(results, x, " s", draw, "Epoch times by strategy")


def speedup_bars(results: Sequence[Result]) -> str:
    """Speedup over the baseline with its 95 % interval; the tick is linear speedup, as many times as workers."""
    results = [result for result in results if result.speedup is not None]
    top = max(max(r.speedup.high or r.speedup.ratio, r.key.workers) for r in results if r.speedup is not None)
    x = Scale(0.0, 1.04 * top, LEFT, WIDTH - RIGHT)

    def draw(result: Result, y: float) -> str:
        s = result.speedup
        if s is None:
            return ""
        title = titled(f"{result.label}, {where(result)}: {s}")
        parts = [rect(x(0), y - 11, x(s.ratio) - x(0), 22, title, fill=colour(result), rx=1.5)]
        if s.low is not None and s.high is not None:
            parts += [line(x(s.low), y, x(s.high), y, stroke="var(--ink)", stroke_width=1.5),
                      *(line(x(v), y - 5, x(v), y + 5, stroke="var(--ink)", stroke_width=1.5) for v in (s.low, s.high))]
        if result.key.workers > 1:
            parts.append(element("g", titled(f"linear: {result.key.workers}×"),
                                 line(x(result.key.workers), y - 15, x(result.key.workers), y + 15, class_="mark")))
        interval = "" if s.low is None or s.high is None else f"{s.low:.2f}–{s.high:.2f}"
        parts.append(text(WIDTH - RIGHT + 14, y - 1 if interval else y + 4, f"{s.ratio:.2f}×", class_="strong"))
        parts.append(text(WIDTH - RIGHT + 14, y + 14, interval, class_="small"))
        return "".join(parts)

    over = line(x(1), TOP, x(1), TOP + PITCH * len(results), stroke="var(--ink)", stroke_width=1)
    return _rows(results, x, "×", draw, "Speedup over the baseline", over=over)


def split_bars(results: Sequence[Result]) -> str:
    """Mean epoch time by what the workers did in it."""
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
            out.append(rect(x(at), y - 12, width - .75, 24, title, fill=f"var({css})"))
            if width > 46:
                out.append(text(x(at) + 7, y + 4, percent(share, 0), class_="off" if key in PALE else "on"))
            at += value
        return "".join(out) + text(WIDTH - RIGHT + 14, y + 4, f"{seconds(at)} s", class_="strong")

    return _rows([result for result, _ in split], x, " s", draw, "Where the time of an epoch goes")


def _rows(results: Sequence[Result], x: Scale, unit: str, draw: Callable[[Result, float], str], label: str,
          over: str = "") -> str:
    """The frame of the plots with a line per result: names on the left, a grid in x."""
    floor = TOP + PITCH * len(results)
    out, ticks = [], x.ticks(7)
    for tick in ticks:
        out += [line(x(tick), TOP, x(tick), floor, class_="grid"),
                text(x(tick), floor + 20, tick_label(tick, ticks) + unit, "middle", class_="small")]
    for place, result in enumerate(results):
        y = TOP + PITCH * (place + .5)
        below = " · ".join(part for part in (result.scheme, where(result), ROLES.get(result.role, "")) if part)
        out += [text(0, y - 2, result.key.strategy, class_="name"),
                element("g", titled(below), text(0, y + 14, shortened(below, 42), class_="small")), draw(result, y)]
    return drawing(WIDTH, floor + BOTTOM, *out, over, label=label)
