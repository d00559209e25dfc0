"""The small vocabulary that the families share, so that one tiny tokenizer serves them all.

Traits, things and places start with a consonant: stories say "a" before them.
"""

from __future__ import annotations

ANIMALS = ("cat", "dog", "owl", "fox", "hen", "pig", "bee", "ant")
TRAITS = ("shy", "sad", "poor", "red", "big", "wise", "tiny", "calm")
THINGS = ("key", "lamp", "map", "hat", "bell", "rope", "coin", "pen")
PLACES = ("barn", "lake", "hill", "cave", "park", "shop", "yard", "boat")
CONTAINERS = ("box", "bag", "jar", "pot", "tin", "cup", "case", "sack")
NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Ian")
