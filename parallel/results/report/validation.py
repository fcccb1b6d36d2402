"""The report's section on a validation: a scatter plot of predicted against measured steps, and the
tables."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from parallel.results.formatting import milliseconds, signed_percent
from parallel.results.report.colours import PALETTE
from parallel.results.report.html import HtmlLine, HtmlTable, render
from parallel.results.report.page import Section
from parallel.results.report.svg import LogScale, drawing, element, line, shortened, text, titled
from parallel.results.validation import KINDS, MAX_ERROR, MAX_MEAN_ERROR, ValidatedPlan, Validation, groups
from parallel.results.validation_table import (
    SUMMARY,
    WORDS,
    describe,
    fastest_first,
    plan_table,
    summary,
    verdict,
)

WIDTH, HEIGHT = 640, 560
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 30, 56
COLOURS = dict(zip(KINDS, (PALETTE[1], PALETTE[4], PALETTE[3], PALETTE[7]), strict=True))
MARGIN = 1.12
"""Ratio of the ends of the axes to the shortest and the longest step."""
MOST_NAMED = 6
"""Maximum number of points outside the wider band that are labelled; every point has its name as a
tooltip."""


def section(validation: Validation) -> Section:
    """Return the section; its title states the number of workers."""
    plans = validation.rows
    workers = sorted({plan.workers for plan in plans})
    body = render(
        "validation.html.j2",
        about=describe(validation),
        verdict=verdict(plans),
        bands=[f"{share:.0%}" for share in (MAX_MEAN_ERROR, MAX_ERROR)],
        legend=[(kind, COLOURS[kind]) for kind in KINDS if any(plan.kind == kind for plan in plans)],
        scatter=Markup(scatter(plans)),
        summary=HtmlTable(SUMMARY, [HtmlLine(cells) for cells in summary(plans)], words=WORDS),
        tables=[
            (f"{n} workers, global batch {batch}", _table(group))
            for (n, batch), group in groups(plans).items()
        ],
    )
    return Section(f"Predicted and measured steps, {' and '.join(map(str, workers))} workers", body)


def scatter(plans: Sequence[ValidatedPlan]) -> str:
    """Return a plot of predicted against measured milliseconds on logarithmic axes, with the
    diagonal and its bands."""
    times = [1e3 * s for plan in plans for s in (plan.predicted_s, plan.measured_s)]
    low, high = min(times) / MARGIN, max(times) * MARGIN
    x, y = LogScale(low, high, LEFT, WIDTH - RIGHT), LogScale(low, high, HEIGHT - BOTTOM, TOP)
    out = [
        text(0, 12, "Predicted step, ms", class_="name"),
        text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "measured step, ms (median)", "middle", class_="small"),
    ]
    out += [_band(share, low, high, x, y) for share in (MAX_ERROR, MAX_MEAN_ERROR)]
    for tick in x.ticks(6):
        out += [
            line(x(tick), TOP, x(tick), HEIGHT - BOTTOM, class_="grid"),
            line(LEFT, y(tick), WIDTH - RIGHT, y(tick), class_="grid"),
            text(x(tick), HEIGHT - BOTTOM + 20, f"{tick:,.6g}", "middle", class_="small"),
            text(LEFT - 8, y(tick) + 4, f"{tick:,.6g}", "end", class_="small"),
        ]
    out.append(line(x(low), y(low), x(high), y(high), class_="mark"))
    outside = [plan for plan in plans if abs(plan.error) > MAX_ERROR]
    worst = sorted(outside, key=lambda plan: -abs(plan.error))[:MOST_NAMED]
    # The optimum is drawn last, on top of the others.
    for plan in sorted(plans, key=lambda plan: plan.kind == "optimum"):
        out.append(_point(plan, x, y, named=plan in worst))
    return drawing(WIDTH, HEIGHT, *out, label=f"Predicted against measured step times of {len(plans)} plans")


def _band(share: float, low: float, high: float, x: LogScale, y: LogScale) -> str:
    """Return the band of errors up to `share`, clipped at the ends of the axes."""
    above = [(low, low * (1 + share)), (high / (1 + share), high), (high, high)]
    below = [(high, high * (1 - share)), (low / (1 - share), low), (low, low)]
    path = "M" + "L".join(f"{x(a):.2f},{y(b):.2f}" for a, b in above + below) + "Z"
    return element("path", titled(f"{share:.0%} off"), d=path, fill="var(--muted)", fill_opacity=0.1)


def _point(plan: ValidatedPlan, x: LogScale, y: LogScale, named: bool) -> str:
    at, up, colour = x(1e3 * plan.measured_s), y(1e3 * plan.predicted_s), COLOURS[plan.kind]
    says = titled(
        f"{plan.name} ({plan.kind}{', held out' * plan.held_out}), batch {plan.batch_size}: "
        f"predicted {milliseconds(plan.predicted_s)} ms, measured "
        f"{milliseconds(plan.measured_s)} ms "
        f"[{milliseconds(plan.first_quartile_s)}, {milliseconds(plan.third_quartile_s)}], "
        f"{signed_percent(plan.error)}"
    )
    spread = line(
        x(1e3 * plan.first_quartile_s),
        up,
        x(1e3 * plan.third_quartile_s),
        up,
        stroke=colour,
        stroke_opacity=0.5,
    )
    dot = element(
        "circle",
        cx=at,
        cy=up,
        r=7 if plan.kind == "optimum" else 4.5,
        fill="var(--ground)" if plan.held_out else colour,
        stroke=colour,
        stroke_width=2,
    )
    right = at < (LEFT + WIDTH - RIGHT) / 2
    label = (
        text(
            at + (11 if right else -11),
            up + 4,
            shortened(plan.name, 30),
            "start" if right else "end",
            class_="small halo",
        )
        if named
        else ""
    )
    return element("g", says, spread, dot, label)


def _table(plans: Sequence[ValidatedPlan]) -> HtmlTable:
    columns, rows = plan_table(plans)
    lines = [
        HtmlLine(cells, chip=COLOURS[plan.kind])
        for plan, cells in zip(fastest_first(plans), rows, strict=True)
    ]
    return HtmlTable(columns, lines, words=WORDS)
