"""The report's section on a validation: predicted against measured steps as a scatter plot, and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from parallel.results.report.page import Section
from parallel.results.report.svg import LogScale, drawing, element, line, shortened, text, titled
from parallel.results.validation import KINDS, LARGEST, MEAN, Row, Validation, groups
from parallel.results.validation_table import (
    COLUMNS,
    SUMMARY,
    WORDS,
    describe,
    fastest_first,
    signed,
    summary,
    verdict,
)

WIDTH, HEIGHT = 640, 560
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 30, 56
COLOURS = {"named": "var(--data_parallel)", "optimum": "var(--searched)", "runner-up": "var(--one_weird_trick)",
           "random": "var(--other)"}
MARGIN = 1.12
"""From the shortest and the longest step to the ends of the axes."""
MOST_NAMED = 6
"""Points outside the wider band that are named in the plot; all have their names under the pointer."""


def section(validation: Validation) -> Section:
    """The section; its title says for how many workers."""
    rows = validation.rows
    workers = sorted({row.workers for row in rows})
    kinds = "".join(f'<span style="--c:{COLOURS[kind]}">{kind}</span>' for kind in KINDS
                    if any(row.kind == kind for row in rows))
    tables = "".join(f"<h3>{n} workers, global batch {batch}</h3>{_rows_table(group)}"
                     for (n, batch), group in groups(rows).items())
    body = (
        f'<p class="where">{escape(describe(validation))}</p><p class="lead">{escape(verdict(rows))}</p>'
        '<p class="caption">A dot for each plan and batch size; hollow: held out, some of its shapes or its batch were '
        f"not measured in calibration. Dashed: the prediction is right; bands: {MEAN:.0%} and {LARGEST:.0%} off. "
        "τ and regret compare plans for the same workers and batch; the parts of the signed error are of the measured "
        "step.</p>"
        f'<div class="legend">{kinds}</div><div class="figure curves"><div style="max-width:{WIDTH}px">'
        f"{scatter(rows)}</div></div>{_html_table(SUMMARY, summary(rows))}{tables}"
    )
    return Section(f"Predicted and measured steps, {' and '.join(map(str, workers))} workers", body)


def scatter(rows: Sequence[Row]) -> str:
    """Predicted against measured milliseconds, both logarithmic, with the diagonal and its bands."""
    times = [1e3 * s for row in rows for s in (row.predicted_s, row.measured_s)]
    low, high = min(times) / MARGIN, max(times) * MARGIN
    x, y = LogScale(low, high, LEFT, WIDTH - RIGHT), LogScale(low, high, HEIGHT - BOTTOM, TOP)
    out = [text(0, 12, "Predicted step, ms", class_="name"),
           text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "measured step, ms (median)", "middle", class_="small")]
    out += [_band(share, low, high, x, y) for share in (LARGEST, MEAN)]
    for tick in x.ticks(6):
        out += [line(x(tick), TOP, x(tick), HEIGHT - BOTTOM, class_="grid"),
                line(LEFT, y(tick), WIDTH - RIGHT, y(tick), class_="grid"),
                text(x(tick), HEIGHT - BOTTOM + 20, f"{tick:,.6g}", "middle", class_="small"),
                text(LEFT - 8, y(tick) + 4, f"{tick:,.6g}", "end", class_="small")]
    out.append(line(x(low), y(low), x(high), y(high), class_="mark"))
    worst = sorted((row for row in rows if abs(row.error) > LARGEST), key=lambda row: -abs(row.error))[:MOST_NAMED]
    # The optimum comes last, on top of the others.
    for row in sorted(rows, key=lambda row: row.kind == "optimum"):
        out.append(_point(row, x, y, named=row in worst))
    return drawing(WIDTH, HEIGHT, *out, label=f"Predicted against measured step times of {len(rows)} plans")


def _band(share: float, low: float, high: float, x: LogScale, y: LogScale) -> str:
    """Where predicted ÷ measured − 1 is at most `share` off, cut at the ends of the axes."""
    above = [(low, low * (1 + share)), (high / (1 + share), high), (high, high)]
    below = [(high, high * (1 - share)), (low / (1 - share), low), (low, low)]
    path = "M" + "L".join(f"{x(a):.2f},{y(b):.2f}" for a, b in above + below) + "Z"
    return element("path", titled(f"{share:.0%} off"), d=path, fill="var(--muted)", fill_opacity=.1)


def _point(row: Row, x: LogScale, y: LogScale, named: bool) -> str:
    at, up, colour = x(1e3 * row.measured_s), y(1e3 * row.predicted_s), COLOURS[row.kind]
    says = titled(f"{row.name} ({row.kind}{', held out' * row.held_out}), batch {row.batch_size}: predicted "
                  f"{1e3 * row.predicted_s:.1f} ms, measured {1e3 * row.measured_s:.1f} ms "
                  f"[{1e3 * row.first_quartile_s:.1f}, {1e3 * row.third_quartile_s:.1f}], {signed(row.error)}")
    spread = line(x(1e3 * row.first_quartile_s), up, x(1e3 * row.third_quartile_s), up, stroke=colour,
                  stroke_opacity=.5)
    dot = element("circle", cx=at, cy=up, r=7 if row.kind == "optimum" else 4.5,
                  fill="var(--ground)" if row.held_out else colour, stroke=colour, stroke_width=2)
    right = at < (LEFT + WIDTH - RIGHT) / 2
    label = text(at + (11 if right else -11), up + 4, shortened(row.name, 30), "start" if right else "end",
                 class_="small halo") if named else ""
    return element("g", says, spread, dot, label)


def _rows_table(rows: Sequence[Row]) -> str:
    lines = [[cell(row) for _, cell in COLUMNS] for row in fastest_first(rows)]
    chips = [f'<span class="chip" style="background:{COLOURS[row.kind]}"></span>' for row in fastest_first(rows)]
    return _html_table([name for name, _ in COLUMNS], lines, chips)


def _html_table(names: Sequence[str], lines: Sequence[Sequence[str]], chips: Sequence[str] = ()) -> str:
    head = "".join(f'<th class="{"word" if name in WORDS else ""}">{escape(name)}</th>' for name in names)
    body = []
    for i, cells in enumerate(lines):
        shown = [escape(cell) for cell in cells]
        shown[0] = (chips[i] if chips else "") + shown[0]
        body.append("<tr>" + "".join(f'<td class="{"word" if name in WORDS else ""}">{cell}</td>'
                                     for name, cell in zip(names, shown, strict=True)) + "</tr>")
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
