"""A self-contained HTML page with scaling curves, all options and the recommendations."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from parallel import strategies
from parallel.prediction.recommendation.choose import Choice, best_of_each
from parallel.prediction.recommendation.listing import COLUMNS, WORDS, cells, marked_rows, sentences
from parallel.prediction.recommendation.options import STRATEGIES, Option
from parallel.results.report.colours import PALETTE, strategy_colour
from parallel.results.report.curves import DASHES, Curve, scaling
from parallel.results.report.html import HtmlLine, HtmlTable, render

ORDER = tuple(dict.fromkeys([*strategies.STRATEGIES, *(label.split()[0] for label in STRATEGIES)]))
"""Strategies in the order of their colours, the same as in comparisons of runs."""
CLUSTER_COLOURS = (*PALETTE[1:], PALETTE[0])
"""Colours of the clusters, in order; the first of the palette is grey and comes last."""


def page(found: Sequence[Option], choices: Sequence[Choice], target_s: float | None, workload: str) -> str:
    """Return the page: recommendations, epoch time over workers, and all options."""
    lines = [
        HtmlLine(cells(option, mark), css="best" if mark else "")
        for option, mark in marked_rows(found, choices, everything=True)
    ]
    return render(
        "recommendation.html.j2",
        title="Which configuration, how many workers, which strategy",
        about=workload,
        sentences=sentences(found, choices, target_s),
        target_s=target_s,
        panels=[Markup(panel) for panel in _panels(found, target_s)],
        combinations=HtmlTable(COLUMNS, lines, words=WORDS),
        foot="Predicted by simulation; nothing here was measured. Speedup is over one worker of "
        "the same cluster; worker·s is the number of workers times the seconds of an epoch.",
    )


def _panels(found: Sequence[Option], target_s: float | None) -> list[str]:
    """Return plots of the best strategy of each cluster, and of all strategies on each cluster."""
    clusters = list(dict.fromkeys(option.cluster for option in found if option.possible))
    if not clusters:
        return []
    batches = list(dict.fromkeys(option.batch_size for option in found)) if _constant(found) else [None]
    best, panels = best_of_each(found), []
    for batch in batches:
        title = "" if batch is None or len(batches) == 1 else f", batch {batch:,}"
        panels.append(
            scaling(_by_cluster(best, clusters, batch), f"Epoch of the best strategy{title}, s", "", target_s)
        )
        panels += [
            scaling(_by_strategy(found, cluster, batch), f"Epoch on {cluster}{title}, s", "", target_s)
            for cluster in clusters
        ]
    return panels


def _constant(found: Sequence[Option]) -> bool:
    """Return whether the same batches are used with every number of workers."""
    by_workers: dict[int, set[int]] = {}
    for option in found:
        if option.possible:
            by_workers.setdefault(option.workers, set()).add(option.batch_size)
    return len({frozenset(sizes) for sizes in by_workers.values()}) <= 1


def _points(options: Sequence[Option], batch: int | None) -> list[tuple[int, float]]:
    """Return (workers, epoch seconds), the shortest epoch of each number of workers."""
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
            curves.append(
                Curve(
                    cluster,
                    CLUSTER_COLOURS[i % len(CLUSTER_COLOURS)],
                    DASHES[i // len(CLUSTER_COLOURS) % len(DASHES)],
                    points,
                )
            )
    return curves


def _by_strategy(found: Sequence[Option], cluster: str, batch: int | None) -> list[Curve]:
    """Return a curve for each strategy, in the order of `STRATEGIES`. All begin at one worker, with
    the same plan."""
    own = [option for option in found if option.cluster == cluster and option.possible]
    alone = [option for option in own if option.workers == 1]
    used = {option.strategy for option in own if option.workers > 1} or {option.strategy for option in alone}
    seen: dict[str, int] = {}
    curves = []
    for label in (label for label in STRATEGIES if label in used):
        name = label.split()[0]
        seen[name] = seen.get(name, -1) + 1
        points = _points([*alone, *(option for option in own if option.strategy == label)], batch)
        if points:
            curves.append(
                Curve(label, strategy_colour(ORDER.index(name)), DASHES[seen[name] % len(DASHES)], points)
            )
    return curves
