"""The clipped policy loss, the KL loss and the entropy mask."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_maestro.objective import (
    entropy_threshold,
    kl_loss,
    kl_per_token,
    loss_denominator,
    policy_loss,
    reward_kl,
)

LOSS_TYPES = ["dr_grpo", "grpo", "token_mean"]
LEVELS = ["sequence", "token"]
L_MAX = 10
PLAIN = {
    "loss_type": "dr_grpo",
    "importance_sampling_level": "token",
    "top_entropy_quantile": 1.0,
    "entropy_mask": "trl",
    "eps_low": 0.2,
    "eps_high": 0.2,
    "max_completion_length": L_MAX,
}


def batch(rows: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    """Responses of different lengths, one of them left out, ratios on both sides of the clipping range."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, L_MAX)
    old_logp = -2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, L_MAX + 1, (rows, 1), generator=generator)
    mask = (torch.arange(L_MAX) < lengths).double()
    mask[1] = 0
    return {
        "logp": old_logp + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64),
        "old_logp": old_logp,
        "advantages": torch.randn(rows, generator=generator, dtype=torch.float64),
        "mask": mask,
        "entropy": 3 * torch.rand(shape, generator=generator, dtype=torch.float64),
    }


def slow_policy_loss(logp, old_logp, advantages, mask, entropy, **options) -> torch.Tensor:
    """METHOD.md section 3, one token at a time."""
    rows, columns = mask.shape
    tokens = [[t for t in range(columns) if mask[b, t] == 1] for b in range(rows)]
    quantile = options["top_entropy_quantile"]
    every = sorted(entropy[b, t].item() for b in range(rows) for t in tokens[b])
    place = (1 - quantile) * (len(every) - 1)
    low, high = every[math.floor(place)], every[math.ceil(place)]
    threshold = low + (high - low) * (place - math.floor(place))
    own_ratio = options["importance_sampling_level"] == "token" or (quantile < 1 and options["entropy_mask"] == "token")
    total = torch.zeros((), dtype=torch.float64)
    for b in range(rows):
        sum_of_row = torch.zeros((), dtype=torch.float64)
        for t in tokens[b]:
            averaged = [t] if own_ratio else tokens[b]
            ratio = (sum(logp[b, u] - old_logp[b, u] for u in averaged) / len(averaged)).exp()
            clipped = ratio.clamp(1 - options["eps_low"], 1 + options["eps_high"])
            if quantile == 1 or entropy[b, t].item() >= threshold - 1e-12:
                sum_of_row = sum_of_row - torch.min(ratio * advantages[b], clipped * advantages[b])
        total = total + (sum_of_row / max(len(tokens[b]), 1) if options["loss_type"] == "grpo" else sum_of_row)
    denominator = {"dr_grpo": rows * options["max_completion_length"], "grpo": rows, "token_mean": len(every)}
    return total / denominator[options["loss_type"]]


@pytest.mark.parametrize(
    ("loss_type", "level", "quantile", "entropy_mask"),
    list(itertools.product(LOSS_TYPES, LEVELS, [1.0, 0.3], ["trl", "token"])),
)
def test_agrees_with_the_definition_value_and_gradient(loss_type, level, quantile, entropy_mask) -> None:
    options = {
        **PLAIN,
        "loss_type": loss_type,
        "importance_sampling_level": level,
        "top_entropy_quantile": quantile,
        "entropy_mask": entropy_mask,
        "eps_high": 0.28,
    }
    tensors = batch()
    tensors["logp"].requires_grad_()
    loss, expected = policy_loss(**tensors, **options), slow_policy_loss(**tensors, **options)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    ours, theirs = (torch.autograd.grad(value, tensors["logp"])[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert ours.abs().max() > 1e-3


def test_clipping_by_hand() -> None:
    """Ratios 0.5, 1, 1.5 with advantages 1 and -1: the pessimistic one of the clipped and the plain term."""
    logp = torch.tensor([[0.5, 1.0, 1.5]] * 2).log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0])
    loss = policy_loss(logp, torch.zeros(2, 3), advantages, torch.ones(2, 3), **{**PLAIN, "eps_high": 0.28})
    # A = 1: -(0.5 + 1 + 1.28); A = -1: 0.8 + 1 + 1.5; over 2 responses * 10 tokens
    assert loss.item() == pytest.approx((-2.78 + 3.3) / 20, abs=1e-6)
    loss.backward()
    # Where the clipped term is the smaller one there is no gradient.
    expected = torch.tensor([[-0.5, -1.0, 0.0], [0.0, 1.0, 1.5]]) / 20
    torch.testing.assert_close(logp.grad, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("level", LEVELS)
def test_on_policy_the_gradient_is_the_policy_gradient(level) -> None:
    """At ratio 1 both levels give -A / (B L_max) per token: the sequence ratio's 1/n is undone by its n tokens."""
    tensors = batch()
    logp = tensors["old_logp"].clone().requires_grad_()
    options = {**PLAIN, "importance_sampling_level": level}
    loss = policy_loss(logp, logp, tensors["advantages"], tensors["mask"], **options)  # a constant, even if it is logp
    loss.backward()
    expected = -tensors["advantages"][:, None] * tensors["mask"] / (6 * L_MAX)
    torch.testing.assert_close(logp.grad, expected, rtol=1e-10, atol=1e-12)


def test_trl_mask_rescales_a_sequence_and_token_mask_selects_tokens() -> None:
    """Four tokens, two of them of high entropy, on-policy: the known oddity, and its mend."""
    logp = torch.zeros(1, 4, requires_grad=True)
    arguments = (logp, torch.zeros(1, 4), torch.tensor([2.0]), torch.ones(1, 4), torch.tensor([[0.1, 3.0, 0.2, 4.0]]))
    options = {**PLAIN, "importance_sampling_level": "sequence", "top_entropy_quantile": 0.5}
    (trl,) = torch.autograd.grad(policy_loss(*arguments, **{**options, "entropy_mask": "trl"}), logp)
    (token,) = torch.autograd.grad(policy_loss(*arguments, **{**options, "entropy_mask": "token"}), logp)
    torch.testing.assert_close(trl, torch.full((1, 4), -2.0 / 10 * 2 / 4))
    torch.testing.assert_close(token, torch.tensor([[0.0, -2.0, 0.0, -2.0]]) / 10)


def test_a_token_at_the_threshold_is_kept() -> None:
    """Eleven entropies 0 ... 10: the top fifth begins at rank 8 exactly, and 8, 9 and 10 are in it."""
    zeros, entropy = torch.zeros(1, 11), torch.arange(11.0)[None]
    options = {**PLAIN, "top_entropy_quantile": 0.2}
    loss = policy_loss(zeros, zeros, torch.ones(1), torch.ones(1, 11), entropy, **options)
    assert loss.item() == pytest.approx(-3 / L_MAX)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize(("level", "entropy_mask"), [("sequence", "trl"), ("sequence", "token"), ("token", "trl")])
def test_pieces_with_a_shared_denominator_and_threshold_add_up(loss_type, level, entropy_mask) -> None:
    tensors = batch(rows=12, seed=3)
    tensors["logp"].requires_grad_()
    options = {
        **PLAIN,
        "loss_type": loss_type,
        "importance_sampling_level": level,
        "entropy_mask": entropy_mask,
        "top_entropy_quantile": 0.2,
    }
    reduction = {"loss_type": loss_type, "max_completion_length": L_MAX}
    whole = policy_loss(**tensors, **options) + 0.1 * kl_loss(
        tensors["logp"], tensors["old_logp"], tensors["mask"], **reduction
    )
    pieces = [
        {name: tensor[rows] for name, tensor in tensors.items()} for rows in (slice(0, 5), slice(5, 6), slice(6, 12))
    ]
    denominator = sum(loss_denominator(piece["mask"], **reduction) for piece in pieces)
    threshold = entropy_threshold(tensors["entropy"], tensors["mask"], 0.2)
    shared = sum(
        policy_loss(**piece, **options, entropy_threshold=threshold, denominator=denominator)
        + 0.1 * kl_loss(piece["logp"], piece["old_logp"], piece["mask"], **reduction, denominator=denominator)
        for piece in pieces
    )
    torch.testing.assert_close(shared, whole, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(loss, tensors["logp"])[0] for loss in (shared, whole)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    alone = sum(policy_loss(**piece, **options) for piece in pieces)
    assert abs((alone - policy_loss(**tensors, **options)).item()) > 1e-4  # so sharing them is what makes it true


@pytest.mark.parametrize(
    ("loss_type", "expected"), [("dr_grpo", 3 * L_MAX), ("grpo", 3), ("token_mean", 6)], ids=LOSS_TYPES
)
def test_denominators_count_a_response_that_is_left_out_as_trl_does(loss_type, expected: int) -> None:
    mask = torch.zeros(3, L_MAX)
    mask[0, :4] = 1
    mask[2, :2] = 1
    assert loss_denominator(mask, loss_type, L_MAX).item() == expected
    ones, zeros = torch.ones(3), torch.zeros(3, L_MAX)
    loss = policy_loss(zeros, zeros, ones, mask, **{**PLAIN, "loss_type": loss_type})
    # Six tokens of loss -1; per-response means -1, 0 and -1.
    assert loss.item() == pytest.approx((-2 if loss_type == "grpo" else -6) / expected)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e6])
def test_what_stands_in_masked_positions_never_matters(loss_type, level, garbage: float) -> None:
    options = {**PLAIN, "loss_type": loss_type, "importance_sampling_level": level, "top_entropy_quantile": 0.4}
    clean = batch()
    dirty = {
        name: tensor if name in ("mask", "advantages") else tensor.masked_fill(clean["mask"] == 0, garbage)
        for name, tensor in clean.items()
    }
    results = []
    for tensors in (clean, dirty):
        logp = tensors["logp"].clone().requires_grad_()
        loss = policy_loss(**{**tensors, "logp": logp}, **options)
        loss = loss + kl_loss(
            logp, tensors["old_logp"], tensors["mask"], loss_type=loss_type, max_completion_length=L_MAX
        )
        results.append((loss.detach(), torch.autograd.grad(loss, logp)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert (results[1][1][clean["mask"] == 0] == 0).all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_batch_without_a_token_has_loss_zero_and_zero_gradients(loss_type) -> None:
    tensors = batch()
    logp, mask = tensors["logp"].requires_grad_(), torch.zeros(6, L_MAX)
    options = {**PLAIN, "loss_type": loss_type, "top_entropy_quantile": 0.2}
    loss = policy_loss(logp, tensors["old_logp"], tensors["advantages"], mask, tensors["entropy"], **options)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logp.grad, torch.zeros_like(logp))


def test_a_fractional_denominator_is_used_as_it_is() -> None:
    """A loop may divide the denominator by the number of ranks instead of multiplying the loss."""
    zeros = torch.zeros(1, 2)
    loss = policy_loss(
        zeros, zeros, torch.ones(1), torch.ones(1, 2), **{**PLAIN, "loss_type": "grpo"}, denominator=0.25
    )
    assert loss.item() == -4.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_type": "drgrpo"}, "loss_type must be one of dr_grpo, grpo, token_mean"),
        ({"importance_sampling_level": "group"}, "importance_sampling_level"),
        ({"entropy_mask": "none"}, "entropy_mask"),
        ({"top_entropy_quantile": 0.2, "entropy": None}, "needs the tokens' entropy"),
        ({"top_entropy_quantile": 0.0}, "quantile"),
        ({"max_completion_length": 0}, "max_completion_length"),
        ({"advantages": torch.zeros(6, 1)}, "advantages"),
        ({"old_logp": torch.zeros(6, 9)}, "old_logp"),
        ({"entropy": torch.zeros(6), "top_entropy_quantile": 0.2}, "entropy"),
        ({"loss_type": "dapo", "denominator": 3.0}, "loss_type"),
    ],
)
def test_refuses_what_does_not_fit(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy_loss(**{**batch(), **PLAIN, **change})


# -- entropy threshold


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=60), st.floats(0.01, 1.0))
def test_threshold_is_torch_quantile_of_the_unmasked_tokens(values: list[float], quantile: float) -> None:
    entropy = torch.tensor([*values, 1e9, math.nan])
    mask = torch.tensor([1.0] * len(values) + [0.0, 0.0])
    expected = torch.quantile(torch.tensor(values), 1 - quantile)
    assert torch.equal(entropy_threshold(entropy, mask, quantile), expected)


def test_threshold_by_hand_keeps_the_boundary() -> None:
    entropy = torch.arange(11.0)  # rank 0.8 * 10 = 8 exactly
    threshold = entropy_threshold(entropy, torch.ones(11), 0.2)
    assert threshold.item() == 8.0
    assert (entropy >= threshold).sum() == 3
    # rank 0.8 * 4 = 3.2 of five values: a fifth of the way from 3 to 4
    assert entropy_threshold(torch.arange(5.0), torch.ones(5), 0.2).item() == pytest.approx(3.2, abs=1e-6)
    assert entropy_threshold(entropy, torch.ones(11), 1.0).item() == 0.0


def test_threshold_takes_more_tokens_than_torch_quantile() -> None:
    entropy = torch.linspace(0, 1, 2**24 + 4)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(entropy, 0.8)
    # In float32 the rank of the last value, 2^24 + 3, rounds up to one that does not exist.
    assert entropy_threshold(entropy, torch.ones_like(entropy, dtype=torch.bool), 1e-9).item() == 1.0


def test_threshold_of_no_tokens_keeps_none() -> None:
    assert entropy_threshold(torch.ones(2, 3), torch.zeros(2, 3), 0.2).item() == math.inf


# -- KL


def test_kl_estimators_by_hand() -> None:
    logp, ref_logp = torch.tensor([0.5, 0.25, 0.3]).log(), torch.tensor([0.25, 0.5, 0.3]).log()
    log2 = math.log(2)
    torch.testing.assert_close(kl_per_token(logp, ref_logp, "k1"), torch.tensor([log2, -log2, 0.0]))
    torch.testing.assert_close(kl_per_token(logp, ref_logp, "k2"), torch.tensor([log2**2 / 2, log2**2 / 2, 0.0]))
    torch.testing.assert_close(kl_per_token(logp, ref_logp, "k3"), torch.tensor([0.5 + log2 - 1, 2 - log2 - 1, 0.0]))


def test_kl_estimators_in_expectation() -> None:
    """Over the whole vocabulary: k1 and k3 give the KL, k2 its gradient, k1 as a loss no gradient at all."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, generator=generator, dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(0)
    ref_logp = torch.randn(8, generator=generator, dtype=torch.float64).log_softmax(0)
    kl = (logp.exp() * (logp - ref_logp)).sum()
    sampled = logp.detach().exp()  # the weights of sampled tokens are no part of the loss
    means = {name: (sampled * kl_per_token(logp, ref_logp, name)).sum() for name in ("k1", "k2", "k3")}
    assert means["k1"].item() == pytest.approx(kl.item(), abs=1e-12)
    assert means["k3"].item() == pytest.approx(kl.item(), abs=1e-12)
    gradients = {name: torch.autograd.grad(mean, logits, retain_graph=True)[0] for name, mean in means.items()}
    torch.testing.assert_close(gradients["k2"], torch.autograd.grad(kl, logits, retain_graph=True)[0])
    torch.testing.assert_close(gradients["k1"], torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=8))
def test_k3_is_never_negative(pairs: list[tuple[float, float]]) -> None:
    logp, ref_logp = torch.tensor(pairs).T
    assert (kl_per_token(logp, ref_logp) >= 0).all()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_loss_agrees_with_the_definition(loss_type, estimator) -> None:
    tensors = batch()
    logp, ref_logp, mask = tensors["logp"].requires_grad_(), tensors["old_logp"], tensors["mask"]
    total = torch.zeros((), dtype=torch.float64)
    for b in range(6):
        tokens = [t for t in range(L_MAX) if mask[b, t] == 1]
        for t in tokens:
            d = logp[b, t] - ref_logp[b, t]
            value = {"k1": d, "k2": d * d / 2, "k3": (-d).exp() + d - 1}[estimator]
            total = total + (value / len(tokens) if loss_type == "grpo" else value)
    expected = total / {"dr_grpo": 6 * L_MAX, "grpo": 6, "token_mean": mask.sum().item()}[loss_type]
    loss = kl_loss(logp, ref_logp, mask, estimator=estimator, loss_type=loss_type, max_completion_length=L_MAX)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    ours, theirs = (torch.autograd.grad(value, logp)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_reference_is_a_constant_in_the_kl() -> None:
    logp, ref_logp = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    kl_loss(logp, ref_logp, torch.ones(1, 2), loss_type="grpo", max_completion_length=2).backward()
    assert ref_logp.grad is None and logp.grad is not None


def test_kl_loss_refuses_what_does_not_fit() -> None:
    zeros = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="ref_logp"):
        kl_loss(zeros, torch.zeros(2, 4), zeros, loss_type="grpo", max_completion_length=3)
    with pytest.raises(ValueError, match="estimator must be one of k1, k2, k3"):
        kl_loss(zeros, zeros, zeros, estimator="k4", loss_type="grpo", max_completion_length=3)


E = math.e


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", [0, 1, 0]), ("k2", [1, 1.5, 0]), ("k3", [1 / E + E - 2, 2 / E + E - 2, 0])],
)
def test_kl_in_the_reward_by_hand(estimator, expected: list[float]) -> None:
    """d = 1 and -1; d = 1, -1 and 1; no token. Summed, not averaged: k3 is 1 / e for d = 1 and e - 2 for d = -1."""
    log_probs = torch.tensor([[-1.0, -2.0, math.nan], [-1.0, -2.0, 0.0], [math.inf, 0.0, 0.0]], requires_grad=True)
    ref_log_probs = torch.tensor([[-2.0, -1.0, math.inf], [-2.0, -1.0, -1.0], [1.0, 2.0, 3.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    kl = reward_kl(log_probs, ref_log_probs, mask, estimator)
    torch.testing.assert_close(kl, torch.tensor(expected, dtype=torch.float32))
    assert not kl.requires_grad


def test_kl_in_the_reward_is_k1_whose_policy_gradient_is_that_of_the_kl() -> None:
    """Over all pairs of tokens: the gradient of E[KL estimate] through the samples' log-probs, against autograd's."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(-1)
    ref_logp = torch.randn(2, 5, generator=generator, dtype=torch.float64).log_softmax(-1)
    pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    sampled, reference = (table[torch.arange(2), pairs] for table in (logp, ref_logp))  # (25, 2)
    probability = sampled.sum(-1).exp().detach()
    penalty = reward_kl(sampled, reference, torch.ones(25, 2), "k1")
    (through_reward,) = torch.autograd.grad((probability * penalty * sampled.sum(-1)).sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - ref_logp)).sum(), logits)
    torch.testing.assert_close(through_reward, exact)


def test_kl_in_the_reward_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="ref_log_probs"):
        reward_kl(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="estimator must be one of k1, k2, k3"):
        reward_kl(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3), "k4")


def test_a_correction_weighs_tokens_and_keeps_the_denominator() -> None:
    """Loss -A for each token at ratio 1, weights 2, 0 and 1/2; masked tokens' weights do not count."""
    logp = torch.zeros(1, 4, requires_grad=True)
    weights = torch.tensor([[2.0, 0.0, 0.5, 7.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    loss = policy_loss(logp, torch.zeros(1, 4), torch.tensor([3.0]), mask, **PLAIN, correction=weights)
    assert loss.item() == pytest.approx(-3 * 2.5 / L_MAX)
    loss.backward()
    torch.testing.assert_close(logp.grad, torch.tensor([[-6.0, 0.0, -1.5, 0.0]]) / L_MAX)
    assert weights.grad is None
