"""`statevla report`: everything that a run left behind, on one self-contained HTML page."""

from statevla.report.command import ReportArgs, report, write_report

__all__ = ["ReportArgs", "report", "write_report"]
