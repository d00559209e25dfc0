"""The simulated world: responses of known quality, what components say of them, and their hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openrlhf_maestro.config.lab import BinaryComponent, ContinuousComponent, WorldSection


@dataclass(frozen=True)
class Groups:
    """N groups of G responses; everything float32 but for the contexts."""

    contexts: Tensor  # (N,) int64, indices into world.contexts
    quality: Tensor  # (N, G) the true quality q, standard normal
    raw: Tensor  # (N, G, K) raw scores of the components
    anchor: Tensor  # (N, G) the trusted signal, NaN in the groups it was not scored on
    log_probs: Tensor  # (N, G) mean-token log-prob of each response, nats
    hidden: Tensor  # (N, G, H) RMS 1 each


class World:
    """Draws groups. Two worlds of one section and seed draw the same.

    Every score is level + spread * (rho q + sqrt(1 - rho^2) noise), with rho its informativeness in the group's
    context. The hidden state of a response is a direction that all contexts share, one of its context and noise, scaled
    so that two responses of a context have the cosine ``cosine`` in expectation, those of two contexts
    ``cosine_across``.
    """

    def __init__(self, section: WorldSection, seed: int) -> None:
        self.section = section
        self.generator = torch.Generator().manual_seed(seed)
        size, contexts = section.hidden_size, len(section.contexts)
        # Orthogonal directions, so that the cosines are not a matter of luck at small H; RMS 1 each.
        basis = torch.linalg.qr(self._normal(size, contexts + 1))[0].T * size**0.5
        shared, own = section.cosine_across, section.cosine - section.cosine_across
        self._directions = shared**0.5 * basis[:1] + own**0.5 * basis[1:]  # (contexts, H)
        self._informativeness = torch.tensor(
            [[part.informativeness.get(name, 0.0) for part in section.components] for name in section.contexts]
        )  # (contexts, K)

    def draw(self, groups: int | None = None, context: int | None = None) -> Groups:
        """``groups`` groups (default: ``world.groups``), of one context (by index) or of all, evenly at random."""
        section = self.section
        shape = (section.groups if groups is None else groups, section.responses)
        contexts = torch.randint(len(section.contexts), shape[:1], generator=self.generator)
        if context is not None:
            contexts = torch.full_like(contexts, context)
        quality = self._normal(*shape)
        anchored = torch.rand(shape[0], 1, generator=self.generator) < section.anchor_share
        anchor = self._going_with(quality, torch.tensor(section.anchor_informativeness))
        log_probs = self._going_with(quality, torch.tensor(section.log_prob_informativeness))
        return Groups(
            contexts=contexts,
            quality=quality,
            raw=self._raw(quality, contexts),
            anchor=anchor.masked_fill(~anchored, torch.nan),
            log_probs=_LOG_PROB_LEVEL + _LOG_PROB_SPREAD * log_probs,
            hidden=self._hidden(contexts, shape),
        )

    def _raw(self, quality: Tensor, contexts: Tensor) -> Tensor:
        """(N, G), (N,) -> (N, G, K)."""
        rho = self._informativeness[contexts].unsqueeze(1)  # (N, 1, K)
        latent = self._going_with(quality.unsqueeze(-1).expand(-1, -1, rho.shape[-1]), rho)
        columns = []
        for k, component in enumerate(self.section.components):
            if isinstance(component, BinaryComponent):
                threshold = torch.special.ndtri(torch.tensor(1 - component.level))
                columns.append((latent[..., k] > threshold).float())
            else:
                assert isinstance(component, ContinuousComponent)
                columns.append(component.level + component.spread * latent[..., k])
        return torch.stack(columns, dim=-1)

    def _hidden(self, contexts: Tensor, shape: tuple[int, int]) -> Tensor:
        """(N,) -> (N, G, H)."""
        noise = (1 - self.section.cosine) ** 0.5 * self._normal(*shape, self.section.hidden_size)
        h = self._directions[contexts].unsqueeze(1) + noise
        return h / h.square().mean(dim=-1, keepdim=True).sqrt()

    def _going_with(self, quality: Tensor, rho: Tensor) -> Tensor:
        """Standard normal values whose correlation with the quality is rho."""
        return rho * quality + (1 - rho.square()).sqrt() * self._normal(*quality.shape)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)


# A policy that samples at temperature 0.8 is at about this: it moves no weight but through differences in a group.
_LOG_PROB_LEVEL, _LOG_PROB_SPREAD = -1.0, 0.3
