"""The GRPO objective as functions on plain tensors: advantages, policy and KL loss, token statistics, reference."""

from openrlhf_maestro.objective.advantages import constant_groups, group_advantages
from openrlhf_maestro.objective.correction import (
    CorrectionGating,
    CorrectionLevel,
    CorrectionMode,
    rollout_correction,
)
from openrlhf_maestro.objective.entropy import entropy_threshold
from openrlhf_maestro.objective.policy import (
    EntropyMask,
    ImportanceSamplingLevel,
    KlEstimator,
    LossType,
    kl_loss,
    kl_per_token,
    loss_denominator,
    policy_loss,
    reward_kl,
)
from openrlhf_maestro.objective.reference import mix_reference
from openrlhf_maestro.objective.tokens import TokenStatistics, token_statistics

__all__ = [
    "CorrectionGating",
    "CorrectionLevel",
    "CorrectionMode",
    "EntropyMask",
    "ImportanceSamplingLevel",
    "KlEstimator",
    "LossType",
    "TokenStatistics",
    "constant_groups",
    "entropy_threshold",
    "group_advantages",
    "kl_loss",
    "kl_per_token",
    "loss_denominator",
    "mix_reference",
    "policy_loss",
    "reward_kl",
    "rollout_correction",
    "token_statistics",
]
