"""The HTML report of a run folder."""

from cgd.report.html import write_report

__all__ = ["write_report"]
