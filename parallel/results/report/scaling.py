"""Sections of the report on scaling: for each workload the tables of strong and weak scaling, and
plots by workers and by batch with linear scaling and predictions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from parallel.results.comparison import Comparison, describe
from parallel.results.krizhevsky import MACHINE, SOURCE
from parallel.results.records import Workload
from parallel.results.report.colours import strategy_colour
from parallel.results.report.curves import DASHES, Curve, by_number
from parallel.results.report.html import HtmlLine, HtmlTable, render
from parallel.results.report.page import Section, flags
from parallel.results.result import Result
from parallel.results.scaling import (
    BatchScaling,
    Line,
    Point,
    Scaling,
    batch_scaling,
    strong_scaling,
    weak_scaling,
)
from parallel.results.scaling_table import (
    WORDS,
    has_one_weird_trick,
    krizhevsky_table,
    scaling_notes,
    scaling_table,
    title,
)

ESSENTIAL = ("strategy", "workers", "batch (conv, FC)", "images/s", "speedup", "published speedup")
"""Columns that a phone shows at first."""
MOST_VIEWS = 12
"""Strong and weak scalings, and numbers of workers by batch, that the section of a workload shows."""
MOST_ROWS = 60
"""Points with a row each in a table; with more, only the plots are shown."""
PREDICTED_DASH = "1 4"
LINEAR_DASH = "2 4"
Value = Callable[[Point], "float | None"]


@dataclass(frozen=True)
class ScalingView:
    """A scaling as `scaling.html.j2` shows it."""

    title: str
    table: HtmlTable | None
    """None: too many rows."""
    notes: Sequence[str]
    panels: Sequence[Markup]
    krizhevsky: HtmlTable | None
    """Krizhevsky's table, beside weak scaling of one weird trick."""


def scaling_sections(comparisons: Sequence[Comparison]) -> list[Section]:
    """Return a section for each workload of which something was scaled."""
    groups: dict[tuple[Workload, str], list[Scaling | BatchScaling]] = defaultdict(list)
    scalings: list[Scaling | BatchScaling] = [
        *strong_scaling(comparisons),
        *weak_scaling(comparisons),
        *batch_scaling(comparisons),
    ]
    for scaling in scalings:
        groups[scaling.workload, scaling.hardware].append(scaling)
    sections = []
    for number, ((workload, hardware), found) in enumerate(groups.items()):
        # Those with the most points, in their order: a page of hundreds would take long to open.
        largest = sorted(range(len(found)), key=lambda i: -len(found[i].points))[:MOST_VIEWS]
        body = render(
            "scaling.html.j2",
            hardware=hardware,
            views=[_view(found[i], f"scaling-{number}-{i}") for i in sorted(largest)],
            left_out=len(found) - len(largest),
            published=f"{SOURCE} ({MACHINE})",
        )
        sections.append(Section(f"Scaling: {describe(workload)}", body))
    return sections


def _view(scaling: Scaling | BatchScaling, name: str) -> ScalingView:
    """Return a scaling as the page shows it; `name` is the name of its table."""
    along = "global batch" if isinstance(scaling, BatchScaling) else "workers"
    paper = isinstance(scaling, Scaling) and has_one_weird_trick(scaling)
    return ScalingView(
        title(scaling),
        _html_table(*scaling_table(scaling), name, [point.result for point in scaling.points])
        if len(scaling.points) <= MOST_ROWS
        else None,
        scaling_notes(scaling),
        _panels(scaling, along),
        _html_table(*krizhevsky_table(scaling), f"{name}-published")
        if paper and isinstance(scaling, Scaling)
        else None,
    )


def _html_table(
    columns: list[str], rows: list[list[str]], name: str, results: Sequence[Result] = ()
) -> HtmlTable:
    """Return a table, with the colours and flags of the results that its rows have, if any."""
    of: Sequence[Result | None] = results or [None] * len(rows)
    lines = [
        HtmlLine(
            ["" if cell == "-" else cell for cell in row],
            chip="" if result is None else strategy_colour(result.place),
            flags={} if result is None else flags(result, "epoch s"),
        )
        for row, result in zip(rows, of, strict=True)
    ]
    return HtmlTable(columns, lines, words=WORDS, key=("strategy", "speedup"), name=name, essential=ESSENTIAL)


def _panels(scaling: Scaling | BatchScaling, along: str) -> list[Markup]:
    """Return plots of epoch time, efficiency and accuracy."""
    numbers = _workers if isinstance(scaling, Scaling) else _batch
    lines = scaling.lines
    linear = _linear_times(scaling) if isinstance(scaling, Scaling) else []
    times = [
        *linear,
        *_curves(lines, numbers, lambda p: p.result.epoch_s.median),
        *_curves(lines, numbers, lambda p: p.predicted_s, predicted=True),
    ]
    efficiencies = [
        *_curves(lines, numbers, lambda p: _percent(p.efficiency)),
        *_curves(lines, numbers, lambda p: _percent(p.predicted_efficiency), predicted=True),
    ]
    accuracies = _curves(lines, numbers, lambda p: _percent(p.result.top1))
    drawn = [Markup(by_number(times, "Epoch time", along, " s", logarithmic=True))]
    if efficiencies:
        drawn.append(Markup(by_number(efficiencies, "Efficiency", along, " %", target=100.0)))
    if accuracies:
        drawn.append(Markup(by_number(accuracies, "Top-1 accuracy", along, " %")))
    return drawn


def _curves(
    lines: Iterable[Line], number: Callable[[Point], int], value: Value, predicted: bool = False
) -> list[Curve]:
    """Return a curve for each line that has values; predictions are dotted."""
    seen: dict[int, int] = defaultdict(int)
    curves = []
    for line in lines:
        points = [(number(p), v) for p in line.points if (v := value(p)) is not None]
        dash = PREDICTED_DASH if predicted else DASHES[seen[line.place] % len(DASHES)]
        seen[line.place] += 1
        if points:
            name = f"predicted {line.name}" if predicted else line.name
            curves.append(Curve(name, strategy_colour(line.place), dash, points))
    return curves


def _linear_times(scaling: Scaling) -> list[Curve]:
    """Return the epoch times of linear scaling: those of the baseline ÷ workers. Weak scaling trains the
    same images in an epoch, in fewer steps."""
    if scaling.baseline is None:
        return []
    alone = scaling.baseline.result.epoch_s.median
    numbers = sorted({1, *(point.workers for point in scaling.points)})
    return [Curve("linear", "var(--muted)", LINEAR_DASH, [(n, alone / n) for n in numbers])]


def _workers(point: Point) -> int:
    return point.workers


def _batch(point: Point) -> int:
    return point.batch_size


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
