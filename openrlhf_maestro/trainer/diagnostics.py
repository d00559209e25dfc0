"""Warnings about a Conductor whose weights run to a component that tells the responses of a group hardly apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# The weight from which on a component decides alone, and the spread in a group below which it decides nothing: five
# ranks between 0 and 1 have a standard deviation of 0.40.
DOMINANT, FLAT = 0.5, 0.1


@dataclass
class CollapseWatch:
    """Says once of each component that the weights run to it although it hardly varies within groups."""

    names: Sequence[str]
    credit: str  # conductor.credit
    _said: set[str] = field(default_factory=set)

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """What is to be said after a step with these metrics."""
        found = []
        for name in self.names:
            weight, spread = metrics[f"conductor/weight/{name}"], metrics[f"reward/{name}/norm_group_std"]
            if name not in self._said and weight >= DOMINANT and spread < FLAT:
                self._said.add(name)
                found.append(
                    f"the Conductor gives {weight:.0%} of the weight to {name}, which hardly varies within groups "
                    f"(standard deviation {spread:.2f}): the reward says little about which response is better. "
                    f"{self._mend}"
                )
        return found

    @property
    def _mend(self) -> str:
        if self.credit == "anchor":
            return "Look at the anchor: does it vary within groups? docs/conductor.md"
        return (
            "conductor.credit: anchor is a rule without this drift, rewards.normalisation: rank takes levels away; "
            "docs/conductor.md"
        )
