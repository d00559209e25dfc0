"""The rollout-trainer importance correction inside OpenRLHF 0.11.2's own PolicyLoss, and in ours."""

import itertools
from typing import Any

import pytest
import torch

from openrlhf_maestro.objective import policy_loss, rollout_correction
from openrlhf_maestro.upstream.patches import import_openrlhf

ROWS, COLUMNS = 12, 9
RATIO_BANDS = [(0.5, 5.0), (0.9, 1.1), (0.0, 1.05)]
VALID = [("token", "clip", "ratio", band) for band in RATIO_BANDS] + [
    (level, "mask", gating, threshold)
    for level in ("token", "seq")
    for gating, thresholds in (("ratio", RATIO_BANDS), ("binary_kl", [(0.0, 0.02)]), ("tv", [(0.0, 0.05)]))
    for threshold in thresholds
]


@pytest.fixture(scope="module")
def openrlhf_policy_loss() -> Any:
    import_openrlhf()
    from openrlhf.models.loss import PolicyLoss

    return PolicyLoss


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


@pytest.mark.parametrize(("level", "mode", "gating", "threshold"), VALID)
@pytest.mark.parametrize("token_mean", [True, False])
def test_agrees_with_openrlhfs_policy_loss(openrlhf_policy_loss, level, mode, gating, threshold, token_mean) -> None:
    """Value and gradient to 1e-6: the same fp32 operations, summed in another order."""
    tensors = batch()
    logp, mask = tensors["logp"].requires_grad_(), tensors["mask"]
    theirs = openrlhf_policy_loss(
        0.2,
        0.28,
        token_level_loss=token_mean,
        is_correction_level=level,
        is_correction_mode=mode,
        is_correction_gating=gating,
        is_correction_threshold=threshold,
    )
    expected, *_, filtered = theirs(
        logp, tensors["old_logp"], tensors["advantages"][:, None], mask, tensors["rollout_logp"]
    )
    options = {"level": level, "mode": mode, "gating": gating, "threshold": threshold}
    correction = rollout_correction(tensors["old_logp"], tensors["rollout_logp"], mask, **options)
    ours = policy_loss(
        logp,
        tensors["old_logp"],
        tensors["advantages"],
        mask,
        loss_type="token_mean" if token_mean else "grpo",
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        entropy_mask="trl",
        eps_low=0.2,
        eps_high=0.28,
        max_completion_length=COLUMNS,
        correction=correction,
    )
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(loss, logp)[0] for loss in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)
    assert 0 <= filtered < 1 and (threshold == (0.5, 5.0) or filtered > 0)  # the gate decides something
    if mode == "mask" and level == "token":
        assert ((correction == 0) & mask.bool()).sum() / mask.sum() == pytest.approx(filtered.item(), abs=1e-6)


def test_refuses_what_openrlhf_refuses(openrlhf_policy_loss) -> None:
    thresholds = [(0.5, 5.0), (0.0, 0.1)]
    refused = 0
    tensors = batch()
    for values in itertools.product(("token", "seq"), ("mask", "clip"), ("ratio", "binary_kl", "tv"), thresholds):
        level, mode, gating, threshold = values
        options = {"level": level, "mode": mode, "gating": gating, "threshold": threshold}
        try:
            openrlhf_policy_loss(**{f"is_correction_{name}": value for name, value in options.items()})
        except ValueError:
            refused += 1
            with pytest.raises(ValueError, match="rollout_correction"):
                rollout_correction(tensors["old_logp"], tensors["rollout_logp"], tensors["mask"], **options)
        else:
            rollout_correction(tensors["old_logp"], tensors["rollout_logp"], tensors["mask"], **options)
    assert refused == 14  # clip but for token and ratio: 10; mask on a divergence with a lower bound: 4
