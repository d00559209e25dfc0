"""Warnings about a Conductor whose weights run to a component that tells the responses of a group hardly apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from openrlhf_maestro.config.schema import MaestroConfig

# The weight from which on a component decides alone, and the share of groups without a difference from which on it
# decides nothing.
DOMINANT, FLAT = 0.5, 0.5


@dataclass
class CollapseWatch:
    """Says once of each component that the weights run to it although it hardly varies within groups."""

    names: Sequence[str]
    mend: str
    _said: set[str] = field(default_factory=set)

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """What is to be said after a step with these metrics."""
        found = []
        for name in self.names:
            weight, constant = metrics[f"conductor/weight/{name}"], metrics[f"reward/{name}/constant_rate"]
            if name not in self._said and weight >= DOMINANT and constant >= FLAT:
                self._said.add(name)
                found.append(
                    f"the Conductor gives {weight:.0%} of the weight to {name}, which is the same for all responses in "
                    f"{constant:.0%} of the groups: the reward says little about which is better. {self.mend}"
                )
        return found


def collapse_watch(config: MaestroConfig) -> CollapseWatch | None:
    """The watch of a run, with the option to change; None where no weights are learned."""
    section = config.conductor
    if section.kind != "conductor" or section.freeze:
        return None
    if section.credit == "anchor":
        mend = "Look at the anchor: does it vary within groups?"
    else:
        schedule = " with conductor.schedule: async" if section.schedule == "joint" else ""
        mend = f"conductor.credit: anchor{schedule} is a rule without this drift."
        if config.rewards.normalisation != "rank":
            mend += " rewards.normalisation: rank takes levels away."
    return CollapseWatch(config.component_names, f"{mend} See docs/conductor.md.")
