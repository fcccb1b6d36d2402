"""Sections of the report on crossovers: for each image size the winners by link rate and batch, measured
and predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from parallel.results.crossover import Cell, Crossover, PredictedMap
from parallel.results.crossover_table import (
    WORDS,
    crossover_notes,
    crossover_table,
    interval,
    lead,
    rate_text,
    title,
    winner_text,
)
from parallel.results.formatting import milliseconds
from parallel.results.report.colours import strategy_colour
from parallel.results.report.html import HtmlLine, HtmlTable, render
from parallel.results.report.page import Section
from parallel.results.report.svg import LogScale, drawing, element, line, rect, shortened, text, titled

WIDTH = 1184
LEFT, TOP, BOTTOM = 120, 26, 40
ROW, FINE_ROW = 58, 24
CLEAR = 1.5
"""Lead of a winner from which its colour has its full strength."""
FAINTEST, STRONGEST = 0.12, 0.6


@dataclass(frozen=True)
class Columns:
    """Places of batches: columns of equal width, one for each batch, the smallest first."""

    batches: Sequence[int]

    @property
    def width(self) -> float:
        """Width of a column."""
        return (WIDTH - LEFT) / len(self.batches)

    def start(self, batch: int) -> float:
        """Return the left edge of the column of a batch."""
        return LEFT + self.width * self.batches.index(batch)

    def place(self, batch: float) -> float | None:
        """Return where a batch between those of two columns lies. None: outside of all columns."""
        low, high = self.batches[0], self.batches[-1]
        if len(self.batches) == 1 or not low <= batch <= high:
            return None
        below = max(i for i, one in enumerate(self.batches[:-1]) if one <= batch)
        first, second = self.batches[below], self.batches[below + 1]
        scale = LogScale(first, second, self.start(first), self.start(second))
        return scale(batch) + self.width / 2


def crossover_sections(found: Sequence[tuple[Crossover, PredictedMap | None]]) -> list[Section]:
    """Return a section for each map, with its predictions if there are any."""
    return [_section(*each, f"crossover-{number}") for number, each in enumerate(found)]


def _section(crossover: Crossover, predicted: PredictedMap | None, name: str) -> Section:
    colours = {label: strategy_colour(result.place) for label, result in crossover.labels.items()}
    columns, rows = crossover_table(crossover)
    chips = ["" if cell.tie else colours[cell.winner.label] for cell in crossover.cells]
    body = render(
        "crossover.html.j2",
        hardware=crossover.hardware,
        notes=crossover_notes(crossover, predicted),
        legend=list(colours.items()),
        measured=Markup(measured_map(crossover, predicted, colours)),
        predicted=None if predicted is None else Markup(predicted_map(predicted, colours)),
        cluster=None if predicted is None else predicted.cluster,
        table_data=HtmlTable(
            columns,
            [
                HtmlLine(["" if c == "-" else c for c in row], chip=chip)
                for row, chip in zip(rows, chips, strict=True)
            ],
            words=WORDS,
            key=("winner",),
            name=name,
            essential=("link", "batch", "winner", "by"),
        ),
    )
    return Section(f"Who wins where: {title(crossover)}", body)


def measured_map(crossover: Crossover, predicted: PredictedMap | None, colours: Mapping[str, str]) -> str:
    """Return the measured winners: a row for each link rate, a column for each batch. Dashed: predicted
    borders."""
    columns = Columns(crossover.batches)
    out = []
    for row, rate in enumerate(crossover.rates):
        top = TOP + ROW * row
        out.append(text(0, top + ROW / 2 + 4, rate_text(rate), class_="name"))
        for batch in crossover.batches:
            cell = crossover.cell(rate, batch)
            if cell is not None:
                out.append(_measured_cell(cell, columns, top, colours))
        for batch_at, below, above in [] if predicted is None else predicted.borders(rate):
            at = columns.place(batch_at)
            if at is not None:
                says = f"predicted: {below} below batch {batch_at:,.0f}, {above} above"
                out.append(element("g", titled(says), line(at, top, at, top + ROW - 3, class_="mark")))
    return _map(out, columns, TOP + ROW * len(crossover.rates), "Measured winners by link rate and batch")


def _measured_cell(cell: Cell, columns: Columns, top: float, colours: Mapping[str, str]) -> str:
    x, width = columns.start(cell.batch), columns.width - 3
    # Over rounds, the ratio of a winner by medians may be below 1.
    clear = min(1.0, max(0.0, cell.by.ratio - 1) / (CLEAR - 1))
    colour, strength = colours[cell.winner.label], FAINTEST + (STRONGEST - FAINTEST) * clear
    if cell.tie:
        colour, strength = "var(--muted)", FAINTEST
    times = ", ".join(f"{result.label} {result.epoch_s.median:.4g} s" for result in cell.results)
    says = f"{winner_text(cell)}, {cell.by}: {times}"
    name = "tie" if cell.tie else cell.winner.label
    extent = interval(cell)
    below = lead(cell) + ("" if extent == "-" else f" ({extent})")
    return element(
        "g",
        titled(says),
        rect(x, top, width, ROW - 3, fill=colour, fill_opacity=strength, rx=2),
        text(x + width / 2, top + ROW / 2 - 6, shortened(name, int(width / 8)), "middle", class_="strong"),
        text(x + width / 2, top + ROW / 2 + 13, shortened(below, int(width / 6.5)), "middle"),
    )


def predicted_map(predicted: PredictedMap, colours: Mapping[str, str]) -> str:
    """Return the predicted winners on the finer grid."""
    columns = Columns(sorted({cell.batch for cell in predicted.cells}))
    rates = sorted({cell.rate for cell in predicted.cells})
    out = []
    for row, rate in enumerate(rates):
        top = TOP + FINE_ROW * row
        out.append(text(0, top + FINE_ROW / 2 + 4, rate_text(rate), class_="small"))
        for cell in predicted.row(rate):
            others = sorted(cell.step_s.values())
            clear = min(1.0, (others[1] / others[0] - 1) / (CLEAR - 1)) if len(others) > 1 else 1.0
            times = ", ".join(f"{label} {milliseconds(s)} ms" for label, s in cell.step_s.items())
            out.append(
                rect(
                    columns.start(cell.batch),
                    top,
                    columns.width - 1,
                    FINE_ROW - 1,
                    titled(f"{cell.winner} at {rate_text(rate)}, batch {cell.batch:,}: {times}"),
                    fill=colours[cell.winner],
                    fill_opacity=FAINTEST + (STRONGEST - FAINTEST) * clear,
                )
            )
    return _map(out, columns, TOP + FINE_ROW * len(rates), "Predicted winners by link rate and batch")


def _map(out: Sequence[str], columns: Columns, floor: float, label: str) -> str:
    """Return a map with the batches below its columns."""
    every = -(-len(columns.batches) // 14)
    ticks = [
        text(columns.start(batch) + columns.width / 2, floor + 16, f"{batch:,}", "middle", class_="small")
        for i, batch in enumerate(columns.batches)
        if i % every == 0
    ]
    axis = text((LEFT + WIDTH) / 2, floor + 34, "global batch", "middle", class_="small")
    head = text(0, 12, "link", class_="small")
    return drawing(WIDTH, floor + BOTTOM, head, *out, *ticks, axis, label=label)
