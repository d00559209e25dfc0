"""`report.html`: one self-contained page from the files of a run directory, or of several side by side."""

from openrlhf_maestro.report.page import Extras, write_comparison, write_report
from openrlhf_maestro.report.run import ReportError
from openrlhf_maestro.report.watch import all_finished, watch

__all__ = ["Extras", "ReportError", "all_finished", "watch", "write_comparison", "write_report"]
