"""The report: one self-contained HTML file with the table, the plots and the provenance of every
number."""

from parallel.results.report.page import Live, Section, write_report

__all__ = ["Live", "Section", "write_report"]
