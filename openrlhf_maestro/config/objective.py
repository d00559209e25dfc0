"""The sections of the GRPO objective: `algo`, with OpenRLHF's names, and `objective`, in TRL's meaning of each word."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from openrlhf_maestro.config.fields import OPENRLHF, PAPER, Section, option, section


class KlSection(Section):
    """The KL term against the reference."""

    init_coef: float = option(
        0.1, "beta, its coefficient; 0: no reference model is started", source=f"{PAPER}, Table 7", ge=0
    )
    estimator: Literal["k1", "k2", "k3"] = option(
        "k3", "Schulman's estimate of a token's KL; k1 only with objective.kl_in: reward", source=PAPER
    )


class AdvantageSection(Section):
    """The correction of the policy loss for differences between vLLM's probabilities and the trainer's."""

    is_correction_level: Literal["off", "token", "seq"] = option(
        "off", "what is gated: each token, or a response by its mean over tokens; off: no correction", source=OPENRLHF
    )
    is_correction_mode: Literal["mask", "clip"] = option(
        "mask",
        "outside the threshold, mask: weight 0 (the rest keep p_trainer / p_vLLM); clip: the ratio is brought to the "
        "nearer bound (token and ratio only)",
        source=OPENRLHF,
    )
    is_correction_gating: Literal["ratio", "binary_kl", "tv"] = option(
        "ratio",
        "what the threshold is for: p_trainer / p_vLLM of the sampled token, or a divergence of the two",
        source=OPENRLHF,
    )
    is_correction_threshold: tuple[float, float] = option(
        (0.5, 5.0), "lowest and highest value that passes; [0, delta] for a divergence", source=OPENRLHF
    )

    @model_validator(mode="after")
    def _correction_is_defined(self) -> AdvantageSection:
        low, high = self.is_correction_threshold
        if not 0 <= low < high:
            raise ValueError(f"is_correction_threshold is [low, high] with 0 <= low < high, not [{low}, {high}]")
        if self.is_correction_level == "off":
            return self
        if self.is_correction_mode == "clip" and (self.is_correction_level, self.is_correction_gating) != (
            "token",
            "ratio",
        ):
            raise ValueError(
                "is_correction_mode: clip clips a token's ratio: set is_correction_level: token and "
                "is_correction_gating: ratio, or is_correction_mode: mask"
            )
        if self.is_correction_gating != "ratio" and low > 0:
            raise ValueError(
                f"is_correction_gating: {self.is_correction_gating} is a divergence, which has an upper bound only: "
                f"set is_correction_threshold to [0, delta], not [{low}, {high}]"
            )
        return self


class AlgoSection(Section):
    """What OpenRLHF calls the algorithm."""

    kl: KlSection = section(KlSection)
    advantage: AdvantageSection = section(AdvantageSection)
    dynamic_filtering_enable: bool = option(
        False, "learn only from groups whose scalar rewards differ; further prompts fill the step", source=OPENRLHF
    )
    dynamic_filtering_min_spread: float = option(
        0.0, "a group counts where its largest less its smallest scalar reward is above this", ge=0
    )
    dynamic_filtering_max_batches: int = option(
        10, "stop the run when a step is not filled by so many batches of prompts", unit="batches", ge=1
    )


class ObjectiveSection(Section):
    """The GRPO objective, in TRL's meaning of each word."""

    loss_type: Literal["dr_grpo", "grpo", "token_mean"] = option(
        "dr_grpo", "how token losses become one number", source=f"{PAPER}, Table 7"
    )
    importance_sampling_level: Literal["sequence", "token"] = option(
        "sequence", "one ratio a sequence or one a token", source=f"{PAPER}, Table 7"
    )
    top_entropy_quantile: float = option(
        0.2,
        "policy loss only on this share of tokens, those of highest entropy",
        unit="share",
        source=f"{PAPER}, Table 7",
        gt=0,
        le=1,
    )
    entropy_mask: Literal["trl", "token"] = option(
        "trl", "trl: under a sequence ratio the mask only rescales; token: a real mask", source="TRL"
    )
    kl_in: Literal["loss", "reward"] = option(
        "loss",
        "loss: beta x KL of the tokens is added to the loss; reward: beta x KL of the response, summed over its "
        "tokens, is subtracted from its scalar reward",
        source=f"{PAPER}, appendix G and Figure 2",
    )
    mask_truncated: bool = option(True, "a response cut at the length limit adds no loss", source=f"{PAPER}, Table 7")
    scale_rewards: Literal["group", "none"] = option(
        "group", "divide advantages by the group's standard deviation", source=f"{PAPER}, Eq. 4"
    )
    ref_sync_steps: int = option(
        6,
        "mix the policy into the reference every this many steps; -1: never",
        unit="steps",
        source=f"{PAPER}, Table 7",
        ge=-1,
    )
    ref_mixup_alpha: float = option(
        0.6, "reference <- alpha * policy + (1 - alpha) * reference", source=f"{PAPER}, Table 7", ge=0, le=1
    )
