"""The Conductor: from a response's hidden state to the weights of its reward components, and how it learns."""

from openrlhf_maestro.conductor.buffer import MetaBatch, MetaBuffer
from openrlhf_maestro.conductor.conductor import Conductor
from openrlhf_maestro.conductor.losses import anchor_agreement, anchor_loss, meta_loss
from openrlhf_maestro.conductor.orchestrator import (
    ORCHESTRATOR_KINDS,
    ConductorSettings,
    FixedOrchestrator,
    LearnedOrchestrator,
    Orchestration,
    Orchestrator,
    RandomOrchestrator,
    make_orchestrator,
)

__all__ = [
    "ORCHESTRATOR_KINDS",
    "Conductor",
    "ConductorSettings",
    "FixedOrchestrator",
    "LearnedOrchestrator",
    "MetaBatch",
    "MetaBuffer",
    "Orchestration",
    "Orchestrator",
    "RandomOrchestrator",
    "anchor_agreement",
    "anchor_loss",
    "make_orchestrator",
    "meta_loss",
]
