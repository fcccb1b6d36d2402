"""Plots with one lane per result: speedup, epoch times, time split."""

from __future__ import annotations

from collections.abc import Sequence

from parallel.results.formatting import percent, seconds
from parallel.results.report.lanes import HEIGHT, Lane, at, block, lanes, level, upright
from parallel.results.report.svg import Scale, element, titled
from parallel.results.result import Result

PARTS = (
    ("compute_s", "compute", "--compute"),
    ("communication_s", "exposed communication", "--communication"),
    ("data_wait_s", "data wait", "--wait"),
    ("idle_s", "idle", "--idle"),
    ("other", "not attributed", "--rest"),
)
"""Parts of the time split: key, name, colour."""
MOST_DOTS = 120
"""Epochs of a result that are drawn as dots; of more, evenly spread ones."""
NAMED_SHARE = 0.04
"""Parts from this share on carry it as text, those below `NARROW_SHARE` on wide pages only."""
NARROW_SHARE = 0.12


def speedup_bars(results: Sequence[Result]) -> str:
    """Return bars of the speedup with its 95 % interval; a mark shows linear speedup, the number of
    workers."""
    shown = [(result, result.speedup) for result in results if result.speedup is not None]
    of = {result.key: speedup for result, speedup in shown}
    x = Scale(0.0, 1.03 * max(max(s.high or s.ratio, r.key.workers) for r, s in shown), 0, 100)

    def draw(result: Result) -> Lane:
        s = of[result.key]
        marks = [
            upright(x, 1, HEIGHT / 2, "one"),
            block(x, 0, s.ratio, "bar", titled(f"{result.label}: {s}")),
        ]
        if s.low is not None and s.high is not None:
            marks += [level(x, s.low, s.high, "ink"), *(upright(x, v, 5, "ink") for v in (s.low, s.high))]
        if result.key.workers > 1:
            linear = titled(f"linear: {result.key.workers}×")
            marks.append(upright(x, result.key.workers, HEIGHT / 2, "mark", linear))
        interval = "" if s.low is None or s.high is None else f"{s.low:.2f}–{s.high:.2f}"
        return Lane("".join(marks), f"{s.ratio:.2f}×", interval)

    return lanes([result for result, _ in shown], x, "×", draw, "Speedup over the baseline")


def box_plot(results: Sequence[Result]) -> str:
    """Return a box plot of epoch times in seconds; the whiskers end at minimum and maximum."""
    low, high = min(r.epoch_s.minimum for r in results), max(r.epoch_s.maximum for r in results)
    pad = 0.06 * (high - low) or 0.1 * high
    x = Scale(max(0.0, low - pad), high + pad, 0, 100)

    def draw(result: Result) -> Lane:
        s = result.epoch_s
        title = titled(
            f"{result.label}: minimum {seconds(s.minimum)}, "
            f"first quartile {seconds(s.first_quartile)}, median {seconds(s.median)}, "
            f"mean {seconds(s.mean)}, third quartile {seconds(s.third_quartile)}, "
            f"maximum {seconds(s.maximum)} s"
        )
        marks = [
            title,
            level(x, s.minimum, s.maximum, "line"),
            *(upright(x, v, 5, "line") for v in (s.minimum, s.maximum)),
            block(x, s.first_quartile, s.third_quartile, "box", height=20),
            upright(x, s.median, 10, "median"),
            element("rect", x=at(x, s.mean), y=HEIGHT / 2 - 3.5, width=7, height=7, class_="mean"),
        ]
        return Lane(element("g", *marks) + _dots(result, x), f"{seconds(s.median)} s")

    return lanes(results, x, " s", draw, "Epoch times")


def split_bars(results: Sequence[Result]) -> str:
    """Return bars of the mean epoch time, divided into the parts of `PARTS`."""
    of = {result.key: parts for result in results if (parts := result.time_split()) is not None}
    x = Scale(0.0, 1.02 * max(sum(parts.values()) for parts in of.values()), 0, 100)

    def draw(result: Result) -> Lane:
        start, marks = 0.0, []
        whole = sum(of[result.key].values())
        for place, (key, name, _) in enumerate(PARTS):
            value = of[result.key][key]
            share = value / whole
            if value == 0:
                continue
            title = titled(f"{result.label}: {name} {seconds(value)} s, {percent(share)}")
            marks.append(block(x, start, start + value, f"p{place}", title, height=24))
            if value / x.high >= NAMED_SHARE:
                css = f"share p{place}" + (" wide" if value / x.high < NARROW_SHARE else "")
                marks.append(
                    element("text", percent(share, 0), x=at(x, start), dx=6, y=HEIGHT / 2 + 4, class_=css)
                )
            start += value
        return Lane("".join(marks), f"{seconds(whole)} s")

    shown = [result for result in results if result.key in of]
    return lanes(shown, x, " s", draw, "Where the time of an epoch goes")


def split_legend(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Return name and colour of each part that is visible in `split_bars`: more than 0.1 % of some
    epoch time."""
    splits = [parts for result in results if (parts := result.time_split())]
    return [
        (name, f"var({css})")
        for key, name, css in PARTS
        if any(parts[key] > 0.001 * sum(parts.values()) for parts in splits)
    ]


def _dots(result: Result, x: Scale) -> str:
    """Return a dot per epoch below the box.

    Jitter in y separates equal times; it is fixed so that writing the report again gives the same
    file.
    """
    times = list(enumerate(result.epoch_times, start=1))
    drawn = times[:: -(-len(times) // MOST_DOTS)]
    return "".join(
        element("circle", titled(f"epoch {i}: {seconds(t)} s"), cx=at(x, t), cy=HEIGHT - 5 + i * 7 % 5, r=2)
        for i, t in drawn
    )
