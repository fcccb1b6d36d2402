"""Options as tables on the console and as a page with scaling curves."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parallel.prediction.recommendation.choose import Choice, best_of_each
from parallel.prediction.recommendation.options import SEARCHED, Option
from parallel.results.report.curves import DASHES, Curve, scaling
from parallel.results.report.page import document
from parallel.results.table import percent, size

COLUMNS = ("cluster", "workers", "batch", "strategy", "step ms", "epoch s", "images/s", "speedup", "worker·s",
           "compute", "exposed", "idle", "data", "memory", "")
WORDS = ("cluster", "strategy", "")
PALETTE = ("var(--data_parallel)", "var(--model_parallel)", "var(--one_weird_trick)", "var(--searched)", "var(--other)",
           "var(--from_file)", "var(--single)", "var(--ddp)")
"""Colours of clusters, in their order."""


def cells(option: Option, mark: str) -> list[str]:
    """The option under `COLUMNS`. Shares are of the step, as means over the workers."""
    found = option.prediction
    first = [option.cluster, f"{option.workers:,}", f"{option.batch_size:,}", option.strategy]
    if found is None:
        return [*first, *[""] * 10, option.reason]
    line, split, step = found.timeline, found.timeline.split, found.timeline.loaded_step_s
    shares = [percent(float(part.mean()) / step, 0) for part in (split.compute_s, split.exposed_s, split.idle_s)]
    return [*first, f"{1e3 * step:,.4g}" if step < 10 else f"{1e3 * step:,.0f}", seconds(found.epoch_s),
            f"{line.images_per_second:,.0f}", f"{found.speedup:.2f}×", seconds(option.workers * found.epoch_s), *shares,
            percent(line.data_wait_s / step, 0), size(max(line.peak_memory)), option.reason or mark]


def seconds(value: float) -> str:
    """Seconds with three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def sentences(found: Sequence[Option], choices: Sequence[Choice], target_s: float | None) -> list[str]:
    """The recommendation in words, a line for each cluster."""
    lines = []
    for cluster in dict.fromkeys(option.cluster for option in found):
        own = [choice for choice in choices if choice.option.cluster == cluster]
        if not own:
            lines.append(f"{cluster}: nothing can be had")
        for choice in own:
            what = _what(choice.option)
            if choice.mark == "enough":
                lines.append(f"{cluster}: {what} are enough for {target_s:g} s" if choice.option.workers > 1
                             else f"{cluster}: {what} is enough for {target_s:g} s")
            elif choice.mark == "closest":
                lines.append(f"{cluster}: nothing reaches {target_s:g} s; {what} comes closest")
            else:
                lines.append(f"{cluster}, {choice.mark}: {what}")
    return lines


def _what(option: Option) -> str:
    return (f"{option.workers:,} worker{'s' * (option.workers > 1)} with {option.strategy}, batch "
            f"{option.batch_size:,}: {seconds(option.epoch_s)} s an epoch")


def listed(found: Sequence[Option], choices: Sequence[Choice], everything: bool) -> list[tuple[Option, str]]:
    """Rows of a table with their marks: the best strategy of each cluster and number of workers, or all."""
    marks: dict[int, list[str]] = {}
    for choice in choices:
        marks.setdefault(id(choice.option), []).append(choice.mark)
    rows = list(found) if everything else [option for option in found
                                           if id(option) in marks or option in best_of_each(found)]
    return [(option, " ".join(f"◀ {mark}" for mark in marks.get(id(option), ()))) for option in rows]


def reasons(found: Sequence[Option]) -> list[str]:
    """What cannot be, and why: strategies, and clusters where they are the same, share a line."""
    strategies: dict[tuple[str, int, str], list[str]] = {}
    for option in found:
        if option.reason:
            strategies.setdefault((option.reason, option.workers, option.cluster), []).append(option.strategy)
    clusters: dict[tuple[str, int, str], list[str]] = {}
    for (reason, workers, cluster), of in strategies.items():
        clusters.setdefault((reason, workers, ", ".join(filter(None, of))), []).append(cluster)
    return [" ".join(filter(None, (which, "on" * bool(which), ", ".join(where), "with",
                                   f"{workers:,} worker{'s' * (workers > 1)}: {reason}")))
            for (reason, workers, which), where in clusters.items()]


def show(found: Sequence[Option], choices: Sequence[Choice], target_s: float | None, everything: bool,
         console: Console) -> None:
    """Print the table, what cannot be, and the recommendation."""
    table = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in WORDS else "right", no_wrap=name != "")
    for option, mark in listed(found, choices, everything):
        table.add_row(*map(Text, cells(option, mark)), style="bold" if mark else None)
    console.print(table)
    if not everything:
        for reason in reasons(found):
            console.print(Text(f"cannot be: {reason}"), soft_wrap=True)
    console.print()
    for sentence in sentences(found, choices, target_s):
        console.print(Text(sentence), soft_wrap=True)


def page(found: Sequence[Option], choices: Sequence[Choice], target_s: float | None, workload: str) -> str:
    """The same as a page that needs nothing else, with epoch times by workers: of the best strategy of each cluster,
    and of all strategies on each cluster."""
    clusters = list(dict.fromkeys(option.cluster for option in found if option.possible))
    batches = list(dict.fromkeys(option.batch_size for option in found)) if _constant(found) else [None]
    best, panels = best_of_each(found), []
    for batch in batches:
        title = "" if batch is None or len(batches) == 1 else f", batch {batch:,}"
        panels += [scaling(_by_cluster(best, clusters, batch), f"Epoch of the best strategy{title}, s", "", target_s),
                   *(scaling(_by_strategy(found, cluster, batch), f"Epoch on {cluster}{title}, s", "", target_s)
                     for cluster in clusters)] if clusters else []
    told = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences(found, choices, target_s))
    drawn = "".join(f"<div>{panel}</div>" for panel in panels)
    head = "".join(f'<th class="{"word" if name in WORDS else ""}">{escape(name)}</th>' for name in COLUMNS)
    rows = "".join(
        f'<tr class="{"best" if mark else ""}">' + "".join(
            f'<td class="{"word" if name in WORDS else ""}">{escape(cell)}</td>'
            for name, cell in zip(COLUMNS, cells(option, mark), strict=True)) + "</tr>"
        for option, mark in listed(found, choices, everything=True))
    body = (f'<ul class="notes">{told}</ul><h3>Scaling</h3><p class="caption">Predicted; both axes are logarithmic. '
            f'{"" if target_s is None else f"Dashed: {target_s:g} s."}</p><div class="figure curves">{drawn}</div>'
            f'<h3>All combinations</h3><div class="table"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>'
            "</table></div>")
    return document("Which configuration, how many workers, which strategy", workload, body,
                    "Predicted by simulation; nothing here was measured. Speedup is over one worker of the same "
                    "cluster; worker·s are workers times seconds of an epoch.")


def _constant(found: Sequence[Option]) -> bool:
    """Whether the batch does not grow with the workers."""
    by_workers: dict[int, set[int]] = {}
    for option in found:
        if option.possible:
            by_workers.setdefault(option.workers, set()).add(option.batch_size)
    return len({frozenset(sizes) for sizes in by_workers.values()}) <= 1


def _points(options: Sequence[Option], batch: int | None) -> list[tuple[int, float]]:
    """Workers and epoch seconds, the shortest where there are several."""
    points: dict[int, float] = {}
    for option in options:
        if option.possible and batch in (None, option.batch_size):
            points[option.workers] = min(option.epoch_s, points.get(option.workers, float("inf")))
    return sorted(points.items())


def _by_cluster(best: Sequence[Option], clusters: Sequence[str], batch: int | None) -> list[Curve]:
    curves = []
    for i, cluster in enumerate(clusters):
        points = _points([option for option in best if option.cluster == cluster], batch)
        if points:
            curves.append(Curve(cluster, PALETTE[i % len(PALETTE)], DASHES[i // len(PALETTE) % len(DASHES)], points))
    return curves


def _by_strategy(found: Sequence[Option], cluster: str, batch: int | None) -> list[Curve]:
    """Every strategy's curve begins at one worker, where all are the same plan."""
    own = [option for option in found if option.cluster == cluster]
    labels = list(dict.fromkeys(option.strategy for option in own if option.workers > 1 and option.possible))
    alone = [option for option in own if option.workers == 1]
    seen: dict[str, int] = {}
    curves = []
    for label in labels or ["single"]:
        name = label.split()[0]
        seen[name] = seen.get(name, -1) + 1
        points = _points([*alone, *(option for option in own if option.strategy == label)], batch)
        if points:
            curves.append(Curve(label, f"var(--{name})", DASHES[seen[name] % len(DASHES)], points))
    return sorted(curves, key=lambda curve: curve.name == SEARCHED)
