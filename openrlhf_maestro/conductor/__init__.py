"""The Conductor: from a response's hidden state to the weights of its reward components, and how it learns."""

from openrlhf_maestro.conductor.buffer import MetaBuffer, Observation
from openrlhf_maestro.conductor.conductor import Conductor
from openrlhf_maestro.conductor.inference import Pair, PairWeights, check_pairs, pair_weights
from openrlhf_maestro.conductor.losses import anchor_agreement, anchor_loss, joint_loss, meta_loss, pairwise_loss
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
    "MetaBuffer",
    "Observation",
    "Orchestration",
    "Orchestrator",
    "Pair",
    "PairWeights",
    "RandomOrchestrator",
    "anchor_agreement",
    "anchor_loss",
    "check_pairs",
    "joint_loss",
    "make_orchestrator",
    "meta_loss",
    "pair_weights",
    "pairwise_loss",
]
