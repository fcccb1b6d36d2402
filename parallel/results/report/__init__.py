"""The report: one HTML file that needs nothing else, with the table, the plots and where every number comes from."""

from parallel.results.report.page import Section, write_report

__all__ = ["Section", "write_report"]
