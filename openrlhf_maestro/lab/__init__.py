"""The lab: groups of responses with known quality, in which orchestrators and credit rules are compared.

What is simulated is the world alone. Rewards, advantages, weights and updates come from the functions that a run uses.
"""

from openrlhf_maestro.lab.experiment import Findings, run_count, run_lab
from openrlhf_maestro.lab.findings import COLLAPSED, drift_rows, rows, write_files
from openrlhf_maestro.lab.plot import write_plot

__all__ = ["COLLAPSED", "Findings", "drift_rows", "rows", "run_count", "run_lab", "write_files", "write_plot"]
