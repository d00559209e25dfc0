"""`report.html`: one self-contained page from the files of a run directory."""

from openrlhf_maestro.report.page import write_report
from openrlhf_maestro.report.run import ReportError

__all__ = ["ReportError", "write_report"]
