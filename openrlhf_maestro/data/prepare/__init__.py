"""Published data sets to prompts, references and splits: one adapter a file, and what they have in common.

`recipe.py` says what an adapter is, `run.py` is one preparation from source to files. No torch.
"""

from openrlhf_maestro.data.prepare.run import RECIPES, Prepared, prepare

__all__ = ["RECIPES", "Prepared", "prepare"]
