"""Options and recommendations as text: table cells, sentences, reasons."""

from __future__ import annotations

from collections.abc import Sequence

from parallel.prediction.recommendation.choose import Choice, best_of_each
from parallel.prediction.recommendation.options import Option
from parallel.prediction.tables import milliseconds
from parallel.results.formatting import count, percent, size

COLUMNS = (
    "cluster",
    "workers",
    "batch",
    "strategy",
    "step ms",
    "epoch s",
    "images/s",
    "speedup",
    "worker·s",
    "compute",
    "exposed",
    "idle",
    "data",
    "memory",
    "",
)
WORDS = ("cluster", "strategy", "")
"""Columns of text; the others are numbers."""


def cells(option: Option, mark: str) -> list[str]:
    """Return the option's cells under `COLUMNS`; shares are means over the workers."""
    found = option.prediction
    first = [option.cluster, f"{option.workers:,}", f"{option.batch_size:,}", option.strategy]
    if found is None:
        return [*first, *[""] * 10, option.reason]
    timeline, shares = found.timeline, found.shares
    return [
        *first,
        milliseconds(timeline.loaded_step_s),
        seconds(found.epoch_s),
        f"{timeline.images_per_second:,.0f}",
        f"{found.speedup:.2f}×",
        seconds(option.workers * found.epoch_s),
        *(percent(share, 0) for share in (shares.compute, shares.exposed, shares.idle, shares.data)),
        size(max(timeline.peak_memory)),
        option.reason or mark,
    ]


def seconds(value: float) -> str:
    """Return seconds with at least three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def marked_rows(
    found: Sequence[Option], choices: Sequence[Choice], everything: bool
) -> list[tuple[Option, str]]:
    """Return the options to list with their marks.

    These are all, or the best strategy of each cluster and number of workers.
    """
    marks: dict[int, list[str]] = {}
    for choice in choices:
        marks.setdefault(id(choice.option), []).append(choice.mark)
    best = best_of_each(found)
    rows = found if everything else [option for option in found if id(option) in marks or option in best]
    return [(option, " ".join(f"◀ {mark}" for mark in marks.get(id(option), ()))) for option in rows]


def sentences(found: Sequence[Option], choices: Sequence[Choice], target_s: float | None) -> list[str]:
    """Return the recommendations as sentences, cluster by cluster."""
    lines = []
    for cluster in dict.fromkeys(option.cluster for option in found):
        own = [choice for choice in choices if choice.option.cluster == cluster]
        if not own:
            lines.append(f"{cluster}: no option is possible")
        for choice in own:
            option = choice.option
            what = (
                f"{count(option.workers, 'worker')} with {option.strategy}, batch "
                f"{option.batch_size:,}: {seconds(option.epoch_s)} s an epoch"
            )
            if choice.mark == "enough":
                lines.append(f"{cluster}: {what}, within {target_s:g} s")
            elif choice.mark == "closest":
                lines.append(f"{cluster}: no option reaches {target_s:g} s; closest: {what}")
            else:
                lines.append(f"{cluster}, {choice.mark}: {what}")
    return lines


def reasons(found: Sequence[Option]) -> list[str]:
    """Return what is not possible and why; equal reasons share a line."""
    strategies: dict[tuple[str, int, str], list[str]] = {}
    for option in found:
        if option.reason:
            strategies.setdefault((option.reason, option.workers, option.cluster), []).append(option.strategy)
    clusters: dict[tuple[str, int, str], list[str]] = {}
    for (reason, workers, cluster), labels in strategies.items():
        clusters.setdefault((reason, workers, ", ".join(filter(None, labels))), []).append(cluster)
    lines = []
    for (reason, workers, labels_text), names in clusters.items():
        subject = f"{labels_text} on " if labels_text else ""
        lines.append(f"{subject}{', '.join(names)} with {count(workers, 'worker')}: {reason}")
    return lines
