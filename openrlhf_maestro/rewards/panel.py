"""The components that a reward server answers for: raw scores of a group, and one reward a response."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from openrlhf_maestro.config.schema import BUNDLED
from openrlhf_maestro.config.serve import ServeConfig
from openrlhf_maestro.data.assets import ensure_asset
from openrlhf_maestro.rewards.components import Component, Context, apply_gates, make_components
from openrlhf_maestro.rewards.groups import FAULT, Group, GroupScorer, Missing, Score, no_value
from openrlhf_maestro.rewards.measured import PREFERENCE, Features, MeasuredScorer
from openrlhf_maestro.rewards.preference import LocalPreference
from openrlhf_maestro.rewards.scalar import scalarize


class Panel:
    """Components, each with a scorer that needs no run, and their weights in the one reward."""

    def __init__(
        self,
        components: Sequence[Component],
        weights: Mapping[str, float] | None = None,
        counting_tokens: Iterable[str] = (),
    ) -> None:
        """
        Args:
            weights: by name, normalised to sum 1; None: all equal.
            counting_tokens: names of those that need the responses' token ids.
        """
        self.components = {component.name: component for component in components}
        self._scorers = {part.name: part.scorer for part in components if not isinstance(part.scorer, MeasuredScorer)}
        given = weights or dict.fromkeys(self.components, 1.0)
        self.counting_tokens = frozenset(counting_tokens)
        self.weights = {name: given[name] / sum(given.values()) for name in self.components}

    async def scores(self, group: Group, names: Collection[str]) -> dict[str, list[Score]]:
        """The (G,) raw scores of the components `names` of a group; a closed gate is the response's fault."""
        gates = {gate for name in names if (gate := self.components[name].gate) is not None}
        # The gate of one that was not asked for, and is a gate only, does not matter.
        used = [
            component if component.name in names else replace(component, gate=None)
            for component in self.components.values()
            if component.name in gates.union(names)
        ]
        given = await asyncio.gather(*(self._scorers[component.name].score(group) for component in used))
        raw = torch.tensor([[_number(score) for score in column] for column in given], dtype=torch.float64)
        gated = apply_gates(raw.T, used).T.tolist()
        scores = {
            component.name: [_score(*pair) for pair in zip(values, column, strict=True)]
            for component, values, column in zip(used, gated, given, strict=True)
        }
        return {name: scores[name] for name in names}

    def single_reward(self, scores: Mapping[str, Sequence[Score]]) -> tuple[Tensor, Tensor]:
        """One reward a response, from raw scores of all components: R = sum_k w_k v_k / sum_k w_k over those present.

        There is no group to rank in: what is ranked in a run is here put through the logistic function, which keeps
        the order, so v = 1 / (1 + exp(-raw)) lies above 0, the value of a fault. What is not ranked stays as it is,
        and a fault is 0, as in a run.

        Returns:
            (G,) float64 rewards, NaN where no component with a weight has a value; (G, K) float64 the values v, NaN
            where missing.
        """
        columns = []
        for name, component in self.components.items():
            raw = torch.tensor([_number(score) for score in scores[name]], dtype=torch.float64)
            ranked = component.normalisation == "group_rank"
            columns.append(raw.sigmoid() if ranked else raw.masked_fill(raw == FAULT, 0.0))
        values = torch.stack(columns, dim=-1)
        return scalarize(values, torch.tensor(list(self.weights.values()), dtype=torch.float64)), values

    async def close(self) -> None:
        for scorer in self._scorers.values():
            await scorer.close()


def make_panel(config: ServeConfig) -> Panel:
    """The panel of a configuration; loads the preference model where there is one.

    Raises:
        ConfigError: a component or the model cannot be made.
    """
    sections = config.rewards.components
    components = make_components(sections, Context(max_new_tokens=0))  # every `length` has an l_max of its own
    for k, section in enumerate(sections):
        if section.kind == "preference":
            components[k] = replace(components[k], scorer=PreferenceScorer(_preference_model(config)))
    counting = [section.label for section in sections if section.kind == "length"]
    return Panel(components, config.rewards.weights, counting)


def _preference_model(config: ServeConfig) -> LocalPreference:
    section = config.reward
    name = str(section.model_name_or_path)
    if name == f"{BUNDLED}preference":
        name = str(ensure_asset("preference", section.assets_dir))
    return LocalPreference(
        name,
        max_len=section.max_len,
        device=section.device,
        dtype=section.param_dtype,
        batch_size=section.batch_size,
        trust_remote_code=config.serve.trust_remote_code,
    )


class PreferenceScorer(GroupScorer):
    """The preference model of a server, one group at a time."""

    def __init__(self, model: LocalPreference) -> None:
        self._model = model
        self._free = asyncio.Lock()

    async def score(self, group: Group) -> Sequence[Score]:
        async with self._free:
            given = await asyncio.to_thread(self._model.score, [group.messages] * len(group), group.responses)
        features = Features(texts=group.responses, lengths=list(map(len, group.responses)), preference=given)
        scores: list[float] = PREFERENCE.score(features).tolist()
        return scores

    async def close(self) -> None:
        """The model goes with the process."""


def _number(score: Score) -> float:
    """A score as a number; NaN: missing."""
    return math.nan if isinstance(score, Missing) or score == math.inf else float(score)


def _score(gated: float, given: Score) -> Score:
    """A gated value as a score, with the reason where it is missing."""
    if not math.isnan(gated):
        return gated
    return Missing(no_value(given) or "its gate has no value")
