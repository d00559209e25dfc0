"""The paper's meta-loss and the anchor's: values and gradients by definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_maestro.conductor import Conductor, anchor_agreement, anchor_loss, meta_loss

H, NAMES, NAN = 6, ["a", "b", "c"], math.nan


def make(seed: int = 0) -> Conductor:
    conductor = Conductor(H, NAMES, temperature=0.8)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in conductor.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return conductor


def definition(conductor: Conductor, row: torch.Tensor) -> list[torch.Tensor]:
    """pi(.|h) of one response, differentiable, written out from [1] and the floor."""
    logits = [
        (conductor.head.weight[k] @ row + conductor.head.bias[k]) / conductor.log_temperature.exp() for k in range(3)
    ]
    total = sum(logit.exp() for logit in logits)
    return [(1 - 3 * 1e-4) * logit.exp() / total + 1e-4 for logit in logits]


def gradients(loss: torch.Tensor, conductor: Conductor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(conductor.parameters())))


def assert_same_loss(loss: torch.Tensor, expected: torch.Tensor, conductor: Conductor) -> None:
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(gradients(loss, conductor), gradients(expected, conductor), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_meta_loss_at_the_uniform_start_by_hand() -> None:
    conductor = Conductor(H, NAMES)
    loss = meta_loss(conductor, torch.ones(4, H), torch.tensor([0, 1, 2, 0]), torch.tensor([1.0, 2.0, 3.0, 0.0]), 0.1)
    # log pi = -log 3 for every action, the entropy is log 3: 6/4 log 3 - 0.1 log 3
    assert loss.item() == pytest.approx(1.4 * math.log(3), abs=1e-6)
    loss.backward()
    # d(-A log pi_a)/db_k = -A (1[k = a] - 1/3), mean over four; the entropy's gradient is 0 at the uniform point
    expected = [-(1.0 * 1 - 6 / 3) / 4, -(2.0 - 6 / 3) / 4, -(3.0 - 6 / 3) / 4]
    assert conductor.head.bias.grad.tolist() == pytest.approx([g * (1 - 3e-4) for g in expected], abs=1e-6)


@pytest.mark.parametrize("entropy_coef", [0.0, 1e-3, 0.5])
def test_meta_loss_agrees_with_its_definition(entropy_coef: float) -> None:
    conductor, generator = make(), torch.Generator().manual_seed(1)
    h, advantages = torch.randn(7, H, generator=generator), torch.randn(7, generator=generator)
    actions = torch.randint(3, (7,), generator=generator)
    expected = torch.zeros(())
    for row, action, advantage in zip(h, actions.tolist(), advantages.tolist(), strict=True):
        probs = definition(conductor, row)
        expected = expected - advantage * probs[action].log() / 7
        expected = expected + entropy_coef * sum(p * p.log() for p in probs) / 7
    assert_same_loss(meta_loss(conductor, h, actions, advantages, entropy_coef), expected, conductor)


def test_meta_loss_reaches_neither_the_policy_nor_its_advantages() -> None:
    h, advantages = torch.randn(4, H, requires_grad=True), torch.randn(4, requires_grad=True)
    meta_loss(make(), h, torch.tensor([0, 1, 2, 0]), advantages, 0.1).backward()
    assert h.grad is None and advantages.grad is None


def slow_standardised(values: list[float]) -> list[float]:
    present = [value for value in values if not math.isnan(value)]
    if len(set(present)) < 2:
        return [0.0] * len(values)
    mean = sum(present) / len(present)
    std = math.sqrt(sum((value - mean) ** 2 for value in present) / (len(present) - 1))
    return [0.0 if math.isnan(value) else (value - mean) / (std + 1e-4) for value in values]


VALUE = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, NAN]), st.floats(-1, 1, width=16))


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 16).flatmap(lambda g: st.lists(st.tuples(VALUE, VALUE, VALUE, VALUE), min_size=g, max_size=g)))
def test_agreement_is_the_product_of_standardised_values(rows: list[tuple[float, ...]]) -> None:
    *components, anchor = zip(*rows, strict=True)
    agreement = anchor_agreement(torch.tensor(rows)[None, :, :3], torch.tensor([anchor]))
    s = slow_standardised(list(anchor))
    for k, component in enumerate(components):
        z = slow_standardised([NAN if math.isnan(a) else c for c, a in zip(component, anchor, strict=True)])
        expected = torch.tensor([a * b for a, b in zip(z, s, strict=True)])
        torch.testing.assert_close(agreement[0, :, k], expected, rtol=1e-3, atol=1e-4)


def test_agreement_of_what_is_constant_is_exactly_zero() -> None:
    """In float32 the mean of equal values may be off by a rounding error."""
    constant = torch.rand(500, 1, generator=torch.Generator().manual_seed(0)).expand(500, 5)
    assert (constant.mean(dim=1, keepdim=True) != constant).any()
    varied = torch.linspace(0, 1, 5).expand(500, 5)
    components = torch.stack([constant, varied], dim=-1)
    agreement = anchor_agreement(components, varied)
    assert torch.equal(agreement[..., 0], torch.zeros(500, 5))
    assert (agreement[..., 1].sum(1) > 3.9).all()  # (n - 1) times a correlation of 1
    assert torch.equal(anchor_agreement(components, constant), torch.zeros(500, 5, 2))


def anchored_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    h, components = torch.randn(3, 4, H, generator=generator), torch.rand(3, 4, 3, generator=generator)
    anchor = torch.rand(3, 4, generator=generator)
    components[0, 1, 2] = NAN
    anchor[1] = NAN  # a group that was not anchored
    anchor[2, 0] = NAN  # a judge that failed once
    return h, components, anchor


@pytest.mark.parametrize("entropy_coef", [0.0, 0.3])
def test_anchor_loss_agrees_with_its_definition(entropy_coef: float) -> None:
    conductor = make()
    h, components, anchor = anchored_batch()
    agreement = anchor_agreement(components, anchor)
    expected, anchored = torch.zeros(()), 0
    for i in range(3):
        for j in range(4):
            if math.isnan(anchor[i, j]):
                continue
            anchored += 1
            probs = definition(conductor, h[i, j])
            baseline = sum(p.item() * m.item() for p, m in zip(probs, agreement[i, j], strict=True))
            expected = expected - sum(p * (m.item() - baseline) for p, m in zip(probs, agreement[i, j], strict=True))
            expected = expected + entropy_coef * sum(p * p.log() for p in probs)
    assert anchored == 7
    assert_same_loss(anchor_loss(conductor, h, components, anchor, entropy_coef), expected / anchored, conductor)


def test_anchor_loss_has_the_gradient_of_the_expected_meta_reward() -> None:
    """The baseline moves no gradient."""
    conductor = make()
    h, components, anchor = anchored_batch()
    expected = -(conductor.probs(h) * anchor_agreement(components, anchor)).sum() / 7
    loss = anchor_loss(conductor, h, components, anchor, 0.0)
    for ours, theirs in zip(gradients(loss, conductor), gradients(expected, conductor), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_anchor_loss_moves_weight_to_the_component_that_agrees() -> None:
    conductor, generator = Conductor(H, NAMES), torch.Generator().manual_seed(3)
    optimizer = torch.optim.AdamW(conductor.parameters(), lr=0.05, weight_decay=0.0)
    for _ in range(40):
        h, anchor = torch.randn(4, 5, H, generator=generator), torch.rand(4, 5, generator=generator)
        noise = torch.rand(4, 5, generator=generator)
        loss = anchor_loss(conductor, h, torch.stack([noise, anchor, 1 - anchor], dim=-1), anchor, 1e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    probs = conductor.probs(torch.zeros(1, H))[0].tolist()
    assert probs[1] > 0.7 and probs[1] > probs[0] > probs[2]


def test_anchor_loss_without_an_anchor_is_zero_with_zero_gradients() -> None:
    conductor = make()
    loss = anchor_loss(conductor, torch.randn(2, 3, H), torch.rand(2, 3, 3), torch.full((2, 3), NAN), 0.1)
    assert loss.item() == 0.0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients(loss, conductor))


def test_anchor_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="anchor"):
        anchor_agreement(torch.zeros(2, 3, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="anchor_loss"):
        anchor_loss(make(), torch.zeros(2, 3, H), torch.zeros(2, 3, 2), torch.zeros(2, 3), 0.0)
