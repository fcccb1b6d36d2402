"""The report of comparisons: for each a headline, the table, plots, notes, and the provenance of
every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from parallel.results.comparison import Comparison, Result, describe, workers_and_threads
from parallel.results.comparison_table import EPOCH_TIMES, RESULTS, TIMES, WHO, WORDS, cells
from parallel.results.formatting import count, seconds
from parallel.results.notes import notes
from parallel.results.report import charts, curves
from parallel.results.report.colours import strategy_colour
from parallel.results.report.html import HtmlLine, HtmlTable, render
from parallel.results.report.provenance import Provenance, provenance

FOOT = Markup(
    "Speedup is the ratio of median epoch times; its 95&nbsp;% interval is a bootstrap over "
    "epochs. Efficiency is speedup divided by workers."
)
CURVES = (
    ("train_loss", "Training loss", 1.0, ""),
    ("val_loss", "Validation loss", 1.0, ""),
    ("val_top1", "Top-1 accuracy", 100.0, " %"),
    ("val_top5", "Top-5 accuracy", 100.0, " %"),
)
"""Plots by epoch: field of `Epoch`, title, factor, unit."""


@dataclass(frozen=True)
class Section:
    """A further part of the page, after the comparisons."""

    title: str
    body: Markup


@dataclass(frozen=True)
class Figure:
    """Plots under one title."""

    title: str
    caption: str
    drawings: Sequence[Markup]
    panels: bool = False
    """Whether the plots stand side by side where the page is wide enough."""
    legend: Sequence[tuple[str, str]] = ()
    """Names and colours."""


@dataclass(frozen=True)
class ComparisonView:
    """A comparison as `comparison.html.j2` shows it."""

    workload: str
    hardware: str
    best: Result
    """The result that the headline names."""
    table: HtmlTable
    notes: Sequence[str]
    figures: Sequence[Figure]
    runs: Sequence[Provenance]


def write_report(
    path: Path,
    comparisons: Sequence[Comparison],
    sections: Sequence[Section] = (),
    left_out: Sequence[str] = (),
) -> None:
    """Write the report to one file that loads nothing else.

    `left_out` are the errors of records that could not be read.
    """
    # A record may hold code points that UTF-8 does not have.
    path.write_text(page(comparisons, sections, left_out), encoding="utf-8", errors="backslashreplace")


def page(
    comparisons: Sequence[Comparison], sections: Sequence[Section] = (), left_out: Sequence[str] = ()
) -> str:
    """Return the report as HTML."""
    records = [record for c in comparisons for result in c.results for record in result.records]
    dates = sorted({record.finished[:10] for record in records if record.finished})
    hosts = sorted({str(record.environment["host"]) for record in records if record.environment.get("host")})
    about = ", ".join([*([count(len(records), "run")] if records else []), *dates[-1:], *hosts])
    return render(
        "report.html.j2",
        title="Training strategies compared",
        about=about,
        foot=FOOT,
        views=[_view(comparison) for comparison in comparisons],
        sections=sections,
        left_out=left_out,
        seconds=seconds,
        strategy_colour=strategy_colour,
        workers_and_threads=workers_and_threads,
    )


def best_of(results: Sequence[Result]) -> Result:
    """Return the result with the largest speedup besides the baselines; without any speedup, the
    fastest."""
    rivals = [
        (result.speedup.ratio, result)
        for result in results
        if result.role == "" and result.speedup is not None
    ]
    if rivals:
        return max(rivals, key=lambda rival: rival[0])[1]
    return min(results, key=lambda result: result.epoch_s.median)


def _view(comparison: Comparison) -> ComparisonView:
    results = comparison.results
    best = best_of(results)
    return ComparisonView(
        workload=describe(comparison.workload),
        hardware=comparison.hardware,
        best=best,
        table=_table(results, best),
        notes=notes(comparison),
        figures=_figures(results),
        runs=[provenance(result, record) for result in results for record in result.records],
    )


def _table(results: Sequence[Result], best: Result) -> HtmlTable:
    columns, lines = cells(results, WHO + TIMES + RESULTS)
    faster = best.role == "" and best.speedup is not None and best.speedup.ratio > 1
    before = columns.index(EPOCH_TIMES[0])
    after = len(columns) - columns.index(EPOCH_TIMES[-1]) - 1
    groups = [(before, ""), (len(EPOCH_TIMES), "epoch time, s"), (after, "")]
    return HtmlTable(
        columns=columns,
        words=WORDS,
        key=("strategy", "median", "speedup"),
        groups=[group for group in groups if group[0]],
        note_column="scheme" if "scheme" in columns else columns[0],
        lines=[
            HtmlLine(
                ["" if cell == "-" else cell for cell in line],
                css="best" if faster and result is best else result.role,
                chip=strategy_colour(result.place),
                note=charts.ROLES.get(result.role, ""),
            )
            for result, line in zip(results, lines, strict=True)
        ],
    )


def _figures(results: Sequence[Result]) -> list[Figure]:
    figures = []
    if any(result.speedup for result in results):
        figures.append(
            Figure(
                "Speedup",
                "Bar: ratio of median epoch times to the baseline; whiskers: 95 % interval; "
                "dashed: linear in the workers.",
                [Markup(charts.speedup_bars(results))],
            )
        )
    scaling = curves.by_workers(results)
    if scaling:
        figures.append(
            Figure(
                "Scaling", "Speedup over the baseline by number of workers.", [Markup(scaling)], panels=True
            )
        )
    figures.append(
        Figure(
            "Epoch times",
            "Box: quartiles; thick line: median; diamond: mean; whiskers: minimum and "
            "maximum; one dot per epoch. The axis may not start at zero.",
            [Markup(charts.box_plot(results))],
        )
    )
    if any(result.time_split() for result in results):
        figures.append(
            Figure(
                "Where the time of an epoch goes",
                "Mean over epochs and workers.",
                [Markup(charts.split_bars(results))],
                legend=charts.split_legend(results),
            )
        )
    return [*figures, *_curves(results)]


def _curves(results: Sequence[Result]) -> list[Figure]:
    measured = [curve for curve in CURVES if any(result.curve(curve[0]) for result in results)]
    if not measured:
        return []
    caption = ""
    if sum(bool(result.curve("train_loss")) for result in results) > 1:
        largest = curves.largest_difference(results, "train_loss")
        caption = (
            f"The training losses of all results differ by at most {largest:.2g} after the same "
            "epoch. Curves that coincide are drawn as bands."
        )
    drawings = [Markup(curves.by_epoch(results, *curve)) for curve in measured]
    return [Figure("Loss and accuracy", caption, drawings, panels=True)]
