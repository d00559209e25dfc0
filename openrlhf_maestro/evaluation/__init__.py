"""Held-out evaluation: verdicts by rule, and accuracy with an honest interval."""

from openrlhf_maestro.evaluation.accuracy import Accuracy, accuracy_by_datasource
from openrlhf_maestro.evaluation.verdicts import rule_verdicts

__all__ = ["Accuracy", "accuracy_by_datasource", "rule_verdicts"]
