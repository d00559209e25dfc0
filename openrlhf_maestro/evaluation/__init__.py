"""Held-out evaluation: verdicts on responses, and what follows from them.

Importing this loads neither torch nor a client library: the verdicts import what they need when they are made.
"""

from openrlhf_maestro.evaluation.make import make_verdicts
from openrlhf_maestro.evaluation.verdicts import Item, Verdict, Verdicts

__all__ = ["Item", "Verdict", "Verdicts", "make_verdicts"]
