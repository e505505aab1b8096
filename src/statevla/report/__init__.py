"""What runs left behind, on one self-contained HTML page."""

from statevla.report.page import write_report

__all__ = ["write_report"]
