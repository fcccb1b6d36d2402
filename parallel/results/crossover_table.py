"""Who wins where, as a table and in sentences."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from parallel.results.comparison import describe
from parallel.results.comparison_table import DISTURBED, NOT_TRAINED
from parallel.results.crossover import Cell, Crossover, PredictedMap
from parallel.results.disturbance import too_few_cores
from parallel.results.formatting import count, rate, seconds
from parallel.results.notes import WITHIN_RUN
from parallel.results.result import Result

WORDS = ("link", "winner", "predicted")
"""Columns of text; the others are numbers."""


def rate_text(bits: float) -> str:
    """Return the rate of a link: `1 Gbit/s`, or `not limited`."""
    return "not limited" if math.isinf(bits) else rate(bits / 8)


def title(crossover: Crossover) -> str:
    """Return the workload and the number of workers."""
    return f"{describe(crossover.workload)} · {count(crossover.workers, 'worker')}"


def interval(cell: Cell) -> str:
    """Return the interval of the winner's lead, marked if it covers the variation within runs only; `-`
    without one."""
    by = cell.by
    if by.low is None or by.high is None:
        return "-"
    return f"{by.low:.2f}–{by.high:.2f}{WITHIN_RUN * (by.covers == 'within-run')}"


def lead(cell: Cell) -> str:
    """Return the winner's lead, marked if its time or that of the runner-up is doubtful."""
    return f"{cell.by.ratio:.2f}×{DISTURBED * (_disturbed(cell.winner) or _disturbed(cell.runner_up))}"


def winner_text(cell: Cell) -> str:
    """Return the label of the winner, or `tie` with those of the two fastest."""
    return f"tie: {cell.winner.label}, {cell.runner_up.label}" if cell.tie else cell.winner.label


def crossover_table(crossover: Crossover) -> tuple[list[str], list[list[str]]]:
    """Return a row for each cell: winner, lead, and the median epoch seconds of every strategy."""
    labels = list(crossover.labels)
    rows = []
    for cell in crossover.cells:
        times = {result.label: _time(result) for result in cell.results}
        rows.append(
            [
                rate_text(cell.rate),
                f"{cell.batch:,}",
                winner_text(cell),
                lead(cell),
                interval(cell),
                "-" if cell.predicted is None else cell.predicted.label,
                *(times.get(label, "-") for label in labels),
            ]
        )
    columns = ["link", "batch", "winner", "by", "95 %", "predicted", *(f"{label} s" for label in labels)]
    used = [i for i in range(len(columns)) if any(row[i] != "-" for row in rows)]
    return [columns[i] for i in used], [[row[i] for i in used] for row in rows]


def crossover_notes(crossover: Crossover, predicted: PredictedMap | None) -> list[str]:
    """Return sentences: how often who wins, how many winners were predicted, and the predicted borders."""
    cells = crossover.cells
    wins = Counter(cell.winner.label for cell in cells if not cell.tie)
    parts = [f"{label} wins {wins[label]}" for label in crossover.labels if wins[label]]
    ties = sum(cell.tie for cell in cells)
    parts += [f"{ties} {'is a tie' if ties == 1 else 'are ties'}"] if ties else []
    notes = [f"Of {count(len(cells), 'cell')}, {', '.join(parts)}"]
    if any(cell.by.low is None for cell in cells):
        notes.append("A cell without an interval has too few epochs to tell a win from a tie")
    if any(cell.by.covers == "within-run" for cell in cells):
        notes.append(
            f"Intervals marked {WITHIN_RUN} cover the variation within a run only, not that between runs "
            "(repeats=3 in the sweep runs each three times)"
        )
    notes += _doubts(cells)
    notes += _agreement([(cell, None if c is None else c.label) for cell in cells for c in [cell.predicted]])
    if predicted is not None:
        near = {(cell.rate, cell.batch): cell.winner for cell in predicted.cells}
        notes += _agreement([(cell, near.get((cell.rate, cell.batch))) for cell in cells], predicted.cluster)
        notes += [_borders(rate, predicted) for rate in crossover.rates]
    return notes


def _time(result: Result) -> str:
    marks = NOT_TRAINED * bool(result.not_trained) + DISTURBED * _disturbed(result)
    return seconds(result.epoch_s.median) + marks


def _disturbed(result: Result) -> bool:
    return bool(result.noisy) or any(map(too_few_cores, result.records))


def _doubts(cells: Sequence[Cell]) -> list[str]:
    """Return what the marks of times say: for each kind and strategy the first cell, and how many more."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for cell in cells:
        where = f"{rate_text(cell.rate)}, batch {cell.batch:,}"
        for result in cell.results:
            crowded = next(filter(None, map(too_few_cores, result.records)), "")
            for kind, said in (
                (f"Not trained {NOT_TRAINED}, no winner where another one trained", result.not_trained),
                (f"Noisy {DISTURBED}", result.noisy),
                (f"More threads than cores {DISTURBED}", crowded and f"{result.label} {crowded}"),
            ):
                if said:
                    found[kind, result.label].append(f"{said} ({where})")
    return [
        f"{kind}: {said[0]}" + (f", and {count(len(said) - 1, 'other cell')} likewise" if said[1:] else "")
        for (kind, _), said in found.items()
    ]


def _agreement(pairs: Sequence[tuple[Cell, str | None]], cluster: str = "") -> list[str]:
    """Return how many winners of cells that are no ties were predicted; nothing without predictions."""
    known = [(cell, label) for cell, label in pairs if label is not None and not cell.tie]
    if not known:
        return []
    hits = sum(cell.winner.label == label for cell, label in known)
    source = f" with cluster {cluster}" if cluster else " by the runs themselves"
    return [f"The winner was predicted{source} in {hits} of {count(len(known), 'cell')} without a tie"]


def _borders(at: float, predicted: PredictedMap) -> str:
    row, borders = predicted.row(at), predicted.borders(at)
    where = "Predicted with links that are not limited" if math.isinf(at) else f"Predicted at {rate_text(at)}"
    if not borders:
        first, last = row[0], row[-1]
        return f"{where}: {first.winner} from batch {first.batch:,} to {last.batch:,}"
    words = [f"{below} below batch {batch:,.0f}" for batch, below, _ in borders]
    return f"{where}: {', '.join([*words, f'{borders[-1][2]} above'])}"
