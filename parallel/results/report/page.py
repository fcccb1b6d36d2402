"""The report of comparisons: for each a headline, the table, plots and notes, then further sections,
and the provenance of every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from parallel.results.comparison import Comparison, describe
from parallel.results.comparison_table import (
    EPOCH_TIMES,
    RESULT_CELLS,
    RESULTS,
    TIMES,
    WHO,
    WORDS,
    Column,
    cells,
)
from parallel.results.disturbance import too_few_cores
from parallel.results.formatting import count, percent, seconds, size
from parallel.results.notes import notes
from parallel.results.report.colours import strategy_colour
from parallel.results.report.figures import Figure, figures_of
from parallel.results.report.html import HtmlLine, HtmlTable, render
from parallel.results.report.lanes import ROLES
from parallel.results.report.limits import MOST_SECTIONS, Allowance, not_all
from parallel.results.report.names import names_of
from parallel.results.report.provenance import provenance
from parallel.results.result import Result, trained, workers_and_threads
from parallel.results.running import Running
from parallel.results.settings import words

FOOT = Markup(
    "Speedup is the ratio of median epoch times, by rounds the geometric mean of those of the rounds; its "
    "95&nbsp;% interval covers the variation between runs, by rounds that of their ratios, and where it is "
    "marked † only that within a run. Efficiency is speedup divided by workers."
)
ESSENTIAL = ("strategy", "scheme", "median", "speedup")
"""Columns that a phone shows at first, with the settings below the strategy."""
MEMORY: Column = ("peak memory", lambda r: size(r.peak_memory_bytes))
"""Peak memory of the worker that needs most."""
OVERVIEW = ("workload", "hardware", "results", "fastest", "median, s", "speedup", "95 %")


@dataclass(frozen=True)
class Section:
    """A further part of the page, after the comparisons."""

    title: str
    body: Markup


@dataclass(frozen=True)
class Live:
    """A page that is written again while runs are at work."""

    written: str
    """Time of day."""
    every_s: float
    """Seconds after which the page loads itself again."""


@dataclass(frozen=True)
class ComparisonView:
    """A comparison as `comparison.html.j2` shows it."""

    workload: str
    hardware: str
    best: Result
    """The result that the headline names."""
    doubts: Sequence[str]
    """What the headline leaves out or has to doubt."""
    table: HtmlTable
    notes: Sequence[str]
    figures: Sequence[Figure]


def write_report(
    path: Path,
    comparisons: Sequence[Comparison],
    sections: Sequence[Section] = (),
    left_out: Sequence[str] = (),
    running: Sequence[Running] = (),
    live: Live | None = None,
) -> None:
    """Write the report to one file that loads nothing else.

    `left_out` are the errors of records that could not be read; `running` are runs without a record.
    """
    # A record may hold code points that UTF-8 does not have.
    path.write_text(
        page(comparisons, sections, left_out, running, live), encoding="utf-8", errors="backslashreplace"
    )


def page(
    comparisons: Sequence[Comparison],
    sections: Sequence[Section] = (),
    left_out: Sequence[str] = (),
    running: Sequence[Running] = (),
    live: Live | None = None,
) -> str:
    """Return the report as HTML."""
    records = [record for c in comparisons for result in c.results for record in result.records]
    dates = sorted({record.finished[:10] for record in records if record.finished})
    hosts = sorted({str(record.environment["host"]) for record in records if record.environment.get("host")})
    about = ", ".join([*([count(len(records), "run")] if records else []), *dates[-1:], *hosts])
    allowance = Allowance()
    detailed = _detailed(comparisons)
    views = [_view(f"t{i}", comparison, allowance) for i, comparison in enumerate(detailed)]
    runs = [
        (result, record)
        for comparison in comparisons
        for result in comparison.results
        for record in result.records
    ]
    shown, more = allowance.take("runs", runs)
    return render(
        "report.html.j2",
        title="Training strategies compared",
        about=about,
        foot=FOOT,
        overview=_overview(comparisons) if len(comparisons) > 1 else None,
        fewer=not_all(len(detailed), len(comparisons), "workloads in detail"),
        views=views,
        sections=sections,
        left_out=left_out,
        running=_running(running) if running else None,
        live=live,
        runs=[provenance(result, record) for result, record in shown],
        fewer_runs=more,
        seconds=seconds,
        strategy_colour=strategy_colour,
        workers_and_threads=workers_and_threads,
    )


def best_of(results: Sequence[Result]) -> Result:
    """Return the result with the largest speedup besides the baselines; without any speedup, the
    fastest. Results that did not train are left out, unless none did."""
    results = trained(results)
    rivals = [
        (result.speedup.ratio, result)
        for result in results
        if result.role == "" and result.speedup is not None
    ]
    if rivals:
        return max(rivals, key=lambda rival: rival[0])[1]
    return min(results, key=lambda result: result.epoch_s.median)


def _doubts(results: Sequence[Result], best: Result) -> list[str]:
    """Return what the headline on the best of the results leaves out or has to doubt."""
    found, names = [], names_of(results)
    if best.not_trained:
        found.append("It did not train, as none of these results did.")
    elif without := [names[result.key] for result in results if result.not_trained]:
        found.append(f"Left out, because they did not train: {'; '.join(without)}.")
    if flags(best):
        found.append("Its numbers are doubtful: see the notes.")
    return found


def _detailed(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with a section of their own, in their order: those with most
    results."""
    order = sorted(comparisons, key=lambda comparison: -len(comparison.results))[:MOST_SECTIONS]
    kept = {id(comparison) for comparison in order}
    return [comparison for comparison in comparisons if id(comparison) in kept]


def _overview(comparisons: Sequence[Comparison]) -> HtmlTable:
    """Return the table with a line per workload."""
    lines = []
    for comparison in comparisons:
        best = best_of(comparison.results)
        lines.append(
            HtmlLine(
                [
                    describe(comparison.workload),
                    comparison.hardware,
                    str(len(comparison.results)),
                    f"{best.label}, {workers_and_threads(best)}",
                    seconds(best.epoch_s.median),
                    *(RESULT_CELLS[name](best).removesuffix("-") for name in ("speedup", "95 %")),
                ],
                flags={"median, s": doubt} if (doubt := " ".join(flags(best).values())) else {},
            )
        )
    return HtmlTable(
        OVERVIEW,
        lines,
        words=("workload", "hardware", "fastest"),
        key=("speedup",),
        name="overview",
        essential=("workload", "fastest", "speedup"),
    )


def _running(runs: Sequence[Running]) -> HtmlTable:
    """Return the table of runs without a record, with their epochs so far."""
    lines = []
    for run in runs:
        last = run.epochs[-1] if run.epochs else None
        lines.append(
            HtmlLine(
                [
                    str(run.run_dir),
                    "running" if run.at_work else "not finished",
                    run.progress,
                    "" if last is None else f"{seconds(last.seconds)} s",
                    "" if last is None or last.train_loss is None else f"{last.train_loss:.4g}",
                    "" if last is None or last.val_top1 is None else percent(last.val_top1),
                ]
            )
        )
    columns = ("run", "state", "progress", "last epoch", "training loss", "top-1")
    return HtmlTable(
        columns, lines, words=columns[:3], name="running", essential=("run", "progress", "last epoch")
    )


def _view(name: str, comparison: Comparison, allowance: Allowance) -> ComparisonView:
    results = comparison.results
    best = best_of(results)
    return ComparisonView(
        workload=describe(comparison.workload),
        hardware=comparison.hardware,
        best=best,
        doubts=_doubts(results, best),
        table=_table(name, results, best),
        notes=notes(comparison),
        figures=figures_of(name, results, allowance),
    )


def _table(name: str, results: Sequence[Result], best: Result) -> HtmlTable:
    columns, lines = cells(results, (*WHO, *TIMES, *RESULTS, MEMORY))
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
        name=name,
        essential=ESSENTIAL,
        lines=[
            HtmlLine(
                ["" if cell == "-" else cell for cell in line],
                css="best" if faster and result is best else result.role,
                chip=strategy_colour(result.place),
                below=words(result.settings),
                note=ROLES.get(result.role, ""),
                flags=flags(result),
            )
            for result, line in zip(results, lines, strict=True)
        ],
    )


def flags(result: Result, time: str = "median") -> dict[str, str]:
    """Return by column what makes a number of a result doubtful; `time` is the column of its times."""
    few_cores = next(filter(None, map(too_few_cores, result.records)), "")
    found = {time: result.noisy, "workers": few_cores and f"{result.label} {few_cores}"}
    if result.efficiency is not None and result.efficiency > 1:
        found["efficiency"] = "more than linear: from caches, or from a baseline that was disturbed"
    return {column: sentence for column, sentence in found.items() if sentence}
