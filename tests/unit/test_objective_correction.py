"""The rollout-trainer importance correction, and its place in the policy loss."""

import math

import pytest
import torch

from openrlhf_maestro.objective import policy_loss, rollout_correction

ROWS, COLUMNS = 12, 9
RATIO_BANDS = [(0.5, 5.0), (0.9, 1.1), (0.0, 1.05)]
VALID = [("token", "clip", "ratio", band) for band in RATIO_BANDS] + [
    (level, "mask", gating, threshold)
    for level in ("token", "seq")
    for gating, thresholds in (("ratio", RATIO_BANDS), ("binary_kl", [(0.0, 0.02)]), ("tv", [(0.0, 0.05)]))
    for threshold in thresholds
]


def batch() -> dict[str, torch.Tensor]:
    """Lengths 1 to 9; rollout log-probs off by more in some responses than in others."""
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS, COLUMNS)
    old_logp = -3 * torch.rand(shape, generator=generator)
    spread = 0.3 * torch.rand(ROWS, 1, generator=generator)
    lengths = torch.arange(ROWS)[:, None] % COLUMNS + 1
    return {
        "logp": old_logp + 0.3 * torch.randn(shape, generator=generator),
        "old_logp": old_logp,
        "rollout_logp": (old_logp + spread * torch.randn(shape, generator=generator)).clamp(max=0),
        "advantages": torch.randn(ROWS, generator=generator),
        "mask": (torch.arange(COLUMNS) < lengths).float(),
    }


# Ratios 2, 1, 1/4 and one masked; in probabilities of the trainer and of vLLM:
TRAINER, VLLM = [[0.8, 0.5, 0.1, 0.3]], [[0.4, 0.5, 0.4, 0.9]]


@pytest.mark.parametrize(
    ("level", "mode", "gating", "threshold", "expected"),
    [
        ("token", "mask", "ratio", (0.5, 1.5), [0, 1, 0, 0]),
        ("token", "mask", "ratio", (0.25 - 1e-6, 2 + 1e-6), [2, 1, 0.25, 0]),
        ("token", "clip", "ratio", (0.5, 1.5), [1.5, 1, 0.5, 0]),
        # The geometric mean is (1/2)^(1/3) = 0.794: the response passes as a whole, with each token's own ratio.
        ("seq", "mask", "ratio", (0.7, 1.5), [2, 1, 0.25, 0]),
        ("seq", "mask", "ratio", (0.8, 1.5), [0, 0, 0, 0]),
        ("token", "mask", "tv", (0.0, 0.35), [0, 1, 0.25, 0]),  # 0.4, 0, 0.3
        ("seq", "mask", "tv", (0.0, 0.24), [2, 1, 0.25, 0]),  # mean 0.2333
        ("seq", "mask", "tv", (0.0, 0.23), [0, 0, 0, 0]),
        # KL of Bernoullis: 0.4 ln(1/2) + 0.6 ln 3 = 0.3819; 0; 0.4 ln 4 + 0.6 ln(2/3) = 0.3112
        ("token", "mask", "binary_kl", (0.0, 0.35), [0, 1, 0.25, 0]),
        ("token", "mask", "binary_kl", (0.0, 0.3), [0, 1, 0, 0]),
        ("seq", "mask", "binary_kl", (0.0, 0.232), [2, 1, 0.25, 0]),  # mean 0.2310
        ("seq", "mask", "binary_kl", (0.0, 0.230), [0, 0, 0, 0]),
    ],
)
def test_by_hand(level, mode, gating, threshold, expected) -> None:
    weights = rollout_correction(
        torch.tensor(TRAINER).log(),
        torch.tensor(VLLM).log(),
        torch.tensor([[1.0, 1.0, 1.0, 0.0]]),
        level=level,
        mode=mode,
        gating=gating,
        threshold=threshold,
    )
    torch.testing.assert_close(weights, torch.tensor([expected], dtype=torch.float32), rtol=1e-5, atol=0)


@pytest.mark.parametrize("gating", ["ratio", "binary_kl", "tv"])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_what_stands_in_masked_positions_never_matters(gating, garbage: float) -> None:
    tensors = batch()
    tensors["mask"][3] = 0
    options = {"level": "seq", "mode": "mask", "gating": gating}
    threshold = (0.9, 1.1) if gating == "ratio" else (0.0, 0.02)
    results = []
    for value in (0.0, garbage):
        logps = [tensors[name].masked_fill(tensors["mask"] == 0, value) for name in ("old_logp", "rollout_logp")]
        results.append(rollout_correction(*logps, tensors["mask"], **options, threshold=threshold))
    assert torch.equal(*results)
    assert results[0].isfinite().all() and (results[0][tensors["mask"] == 0] == 0).all()


def test_policies_that_agree_are_not_corrected() -> None:
    tensors = batch()
    for level, mode, gating, threshold in VALID:
        weights = rollout_correction(
            tensors["old_logp"],
            tensors["old_logp"],
            tensors["mask"],
            level=level,
            mode=mode,
            gating=gating,
            threshold=threshold,
        )
        assert torch.equal(weights, tensors["mask"])


def test_refuses_what_does_not_fit() -> None:
    zeros = torch.zeros(2, 3)
    options = {"level": "token", "mode": "mask", "gating": "ratio", "threshold": (0.5, 2.0)}
    for changes, message in [
        ({"level": "off"}, "level must be one of token, seq"),
        ({"mode": "drop"}, "mode must be one of mask, clip"),
        ({"gating": "kl"}, "gating must be one of"),
        ({"threshold": (2.0, 0.5)}, "threshold"),
        ({"threshold": (-0.1, 0.5)}, "threshold"),
    ]:
        with pytest.raises(ValueError, match=message):
            rollout_correction(zeros, zeros, zeros, **{**options, **changes})
    with pytest.raises(ValueError, match="rollout_logp"):
        rollout_correction(zeros, torch.zeros(2, 4), zeros, **options)
    with pytest.raises(ValueError, match="correction"):
        policy_loss(
            zeros,
            zeros,
            torch.zeros(2),
            zeros,
            loss_type="grpo",
            importance_sampling_level="token",
            top_entropy_quantile=1.0,
            entropy_mask="trl",
            eps_low=0.2,
            eps_high=0.2,
            max_completion_length=3,
            correction=torch.zeros(2, 1),
        )
