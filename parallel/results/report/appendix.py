"""Sections of the report with every epoch beside the published ones."""

from __future__ import annotations

from collections.abc import Iterable

from parallel.results.appendix import EPOCH, Appendix, appendices
from parallel.results.comparison import Comparison
from parallel.results.report.html import HtmlLine, HtmlTable, render
from parallel.results.report.page import Section


def appendix_sections(comparisons: Iterable[Comparison]) -> list[Section]:
    """Return a section for every measured workload of which there are published times."""
    return [
        Section(
            f"Every epoch beside the published ones: {found.title}",
            render("appendix.html.j2", about=found.about, notes=found.notes, table=_table(found)),
        )
        for found in appendices(comparisons)
    ]


def _table(appendix: Appendix) -> HtmlTable:
    columns, rows = appendix.table()
    groups = [(1, ""), *((len(of), strategy) for strategy, of in appendix.strategies.items())]
    return HtmlTable(columns, [HtmlLine(row) for row in rows], words=(EPOCH,), groups=groups)
