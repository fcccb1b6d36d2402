"""The figures of a comparison's section, in the order of the page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from markupsafe import Markup

from parallel.results.records import plan_fingerprint
from parallel.results.report import charts, curves
from parallel.results.report.accuracy import accuracy_table, over_time
from parallel.results.report.again import command_again
from parallel.results.report.colours import strategy_colour
from parallel.results.report.html import HtmlLine, HtmlTable
from parallel.results.report.limits import MOST_CURVES, MOST_LANES, Allowance, drawn
from parallel.results.report.names import names_of
from parallel.results.report.plan_grid import WORDS, grid, letters, parse, settings
from parallel.results.report.predicted_plot import predicted_bars
from parallel.results.report.steps import step_chart, timelines_of
from parallel.results.report.why import why
from parallel.results.result import Key, Result
from parallel.results.step_timeline import StepTimelines

CURVES = (
    ("train_loss", "Training loss", 1.0, ""),
    ("val_loss", "Validation loss", 1.0, ""),
    ("val_top1", "Top-1 accuracy", 100.0, " %"),
    ("val_top5", "Top-5 accuracy", 100.0, " %"),
)
"""Plots by epoch: field of `Epoch`, title, factor, unit."""


@dataclass(frozen=True)
class Figure:
    """Plots under one title."""

    title: str
    caption: str = ""
    drawings: Sequence[Markup] = ()
    panels: bool = False
    """Whether the plots stand side by side where the page is wide enough."""
    legend: Sequence[tuple[str, str]] = ()
    """Names and colours."""
    sentences: Sequence[tuple[Result, str]] = ()
    """Shown before the plots, each after the name of its result."""
    table: HtmlTable | None = None
    """Shown after the plots."""
    commands: Sequence[tuple[str, str]] = field(default=())
    """Titles and commands, each with a button that copies it."""


def figures_of(name: str, results: Sequence[Result], allowance: Allowance) -> list[Figure]:
    """Return the figures; those without data are left out. `name` identifies the section."""
    timelines: dict[Key, StepTimelines] = {}
    unreadable = []
    for result in results:
        found, error = timelines_of(result)
        if found is not None:
            timelines[result.key] = found
        unreadable += [error] if error else []
    figures = [
        _speedup(results),
        _reasons(results, timelines),
        _predictions(results),
        _steps(results, timelines, unreadable, allowance),
        _plans(results, allowance),
        _scaling(results),
        _epoch_times(results),
        *_curves(results),
        _accuracy(name, results),
        _commands(results, allowance),
    ]
    return [figure for figure in figures if figure is not None]


def baseline_of(result: Result, results: Sequence[Result]) -> Result | None:
    """Return the result that the speedup of `result` is measured against. None: there is none."""
    return next((other for other in results if result.baseline and other.records == result.baseline), None)


def _speedup(results: Sequence[Result]) -> Figure | None:
    shown, more = drawn([result for result in results if result.speedup], MOST_LANES)
    if not shown:
        return None
    caption = (
        "Bar: ratio of median epoch times to the baseline; whiskers: 95 % interval; dashed: linear in the "
        f"workers. {more}"
    )
    return Figure("Speedup", caption, [Markup(charts.speedup_bars(shown))])


def _reasons(results: Sequence[Result], timelines: Mapping[Key, StepTimelines]) -> Figure | None:
    shown, more = drawn([result for result in results if result.time_split()], MOST_LANES)
    if not shown:
        return None
    reasons = [
        (result, why(result, baseline_of(result, results), timelines.get(result.key))) for result in shown
    ]
    return Figure(
        "Why",
        f"Bars: where the time of an epoch goes, mean over epochs and workers. {more}",
        [Markup(charts.split_bars(shown))],
        legend=charts.split_legend(shown),
        sentences=[(result, sentence) for result, sentence in reasons if sentence],
    )


def _predictions(results: Sequence[Result]) -> Figure | None:
    shown, more = drawn([result for result in results if result.predicted], MOST_LANES)
    if not shown:
        return None
    rough = [result.label for result in shown if result.predicted and not result.predicted.calibrated]
    caption = (
        "Bar: measured median epoch; line: predicted before the first step; band: the interval in which "
        "measurements are expected, from a validation of this machine or, without one, the default. The number is "
        f"measured ÷ predicted; ! marks a calibrated one outside the band. {more}"
    )
    if rough:
        caption += f" Not calibrated for its shapes on its machine: {', '.join(rough)}."
    return Figure("Measured and predicted", caption, [Markup(predicted_bars(shown))])


def _steps(
    results: Sequence[Result],
    timelines: Mapping[Key, StepTimelines],
    unreadable: Sequence[str],
    allowance: Allowance,
) -> Figure | None:
    if not timelines and not unreadable:
        return None
    shown, more = allowance.take("timelines", [result for result in results if result.key in timelines])
    names = names_of(results)
    panels = [
        Markup(
            f'<div class="panel">{_named(result, names[result.key])}{step_chart(timelines[result.key])}</div>'
        )
        for result in shown
    ]
    errors = " ".join(f"Left out: {error}." for error in unreadable)
    caption = f"One step of each worker. The strip below a worker is communication behind computing. {more} {errors}"
    legend = [(name, f"var({css})") for _, name, css in charts.PARTS[:4]]
    predicted = any(timelines[result.key].predicted for result in shown)
    title = "One step, measured and predicted" if predicted else "One step, measured"
    return Figure(title, caption, panels, panels=True, legend=legend)


def _plans(results: Sequence[Result], allowance: Allowance) -> Figure | None:
    plans: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result.records[0].plan is not None:
            plans[result.records[0].plan].append(result)
    shown, more = allowance.take("plans", list(plans.items()))
    panels, used, names = [], set[str](), names_of(results)
    for text, those in shown:
        plan = parse(text)
        if plan is not None:
            used.update(*(letters(layout, plan.workers) for layout in plan.layouts.values()))
            about = ", ".join(filter(None, (f"plan {plan_fingerprint(text)}", settings(plan))))
            titles = "".join(_named(result, names[result.key]) for result in those[:3])
            titles += f"<small>and {len(those) - 3} more</small>" if len(those) > 3 else ""
            panels.append(Markup(f'<div class="panel plan">{titles}<small>{about}</small>{grid(plan)}</div>'))
    if not panels:
        return None
    caption = (
        "Rows: ops; columns: workers; a cell shows the part of the op that the worker computes, samples from "
        "left to right, other dims from top to bottom (n samples, c output channels, k input channels, h height, "
        f"w width). {more}"
    )
    legend = [
        (f"{letter} {word}", f"var(--soap-{letter.lower()})")
        for letter, word in WORDS.items()
        if letter in used
    ]
    return Figure("Plans", caption, panels, panels=True, legend=legend)


def _scaling(results: Sequence[Result]) -> Figure | None:
    scaling = curves.by_workers(drawn(results, MOST_LANES)[0])
    if scaling is None:
        return None
    return Figure(
        "Scaling", "Speedup over the baseline by number of workers.", [Markup(scaling)], panels=True
    )


def _epoch_times(results: Sequence[Result]) -> Figure:
    shown, more = drawn(results, MOST_LANES)
    caption = (
        "Box: quartiles; thick line: median; diamond: mean; whiskers: minimum and maximum; one dot per epoch. The "
        f"axis may not start at zero. {more}"
    )
    drawings = [Markup(charts.box_plot(shown))]
    few = drawn(results, MOST_CURVES)[0]
    if any(len(result.epoch_times) > 1 for result in few):
        by_epoch = curves.by_epoch(few, "seconds", "Time by epoch", unit=" s")
        drawings.append(Markup(f'<div class="curves"><div class="whole">{by_epoch}</div></div>'))
    return Figure("Epoch times", caption, drawings)


def _curves(results: Sequence[Result]) -> list[Figure]:
    shown, more = drawn(results, MOST_CURVES)
    measured = [curve for curve in CURVES if any(result.curve(curve[0]) for result in shown)]
    if not measured:
        return []
    caption = more
    if sum(bool(result.curve("train_loss")) for result in shown) > 1:
        largest = curves.largest_difference(shown, "train_loss")
        caption = (
            f"The training losses of {'these' if more else 'all'} results differ by at most {largest:.2g} after the "
            f"same epoch. Curves that coincide are drawn as bands. {more}"
        )
    drawings = [Markup(curves.by_epoch(shown, *curve)) for curve in measured]
    return [Figure("Loss and accuracy", caption, drawings, panels=True)]


def _accuracy(name: str, results: Sequence[Result]) -> Figure | None:
    shown, more = drawn(results, MOST_CURVES)
    plot = curves.over_time([(result, over_time(result)) for result in shown], "Top-1 accuracy", " %")
    columns, rows = accuracy_table(shown)
    if plot is None:
        return None
    table = None
    if columns:
        lines = [
            HtmlLine(cells, chip=strategy_colour(result.place))
            for result, cells in zip(shown, rows, strict=True)
        ]
        table = HtmlTable(columns, lines, words=("strategy",), key=("strategy",), name=f"{name}-accuracy")
    caption = (
        "Training time without validation. The table has the seconds until each top-1 accuracy, a median over the "
        f"runs; empty: not reached. {more}"
    )
    return Figure("Time to accuracy", caption, [Markup(plot)], panels=True, table=table)


def _commands(results: Sequence[Result], allowance: Allowance) -> Figure | None:
    names = names_of(results)
    every = [(names[result.key], command_again(result.records[0])) for result in results]
    commands = [(name, command) for name, command in every if command is not None]
    shown, more = allowance.take("commands", commands)
    if not shown:
        return None
    without = [name for name, command in every if command is None]
    left_out = f"Left out, because their records do not say what starts them: {'; '.join(without)}." * bool(
        without
    )
    return Figure(
        "Run again", f"The command of each result's first run. {more} {left_out}".strip(), commands=shown
    )


def _named(result: Result, name: str) -> str:
    return f'<b style="color:{strategy_colour(result.place)}">{escape(name)}</b>'
