"""Assets that the project makes for itself: tasks, a tiny policy, a tiny preference model.

No weights can be assumed on a fresh machine, so each asset is built from a recipe on first use and kept.
"""

from openrlhf_maestro.data.assets.recipes import (
    DEFAULT_RECIPES,
    PolicyRecipe,
    PreferenceRecipe,
    Recipe,
    TasksRecipe,
)
from openrlhf_maestro.data.assets.store import asset_path, ensure_asset, publish

__all__ = [
    "DEFAULT_RECIPES",
    "PolicyRecipe",
    "PreferenceRecipe",
    "Recipe",
    "TasksRecipe",
    "asset_path",
    "ensure_asset",
    "publish",
]
