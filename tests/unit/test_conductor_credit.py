"""The credit rules: each option changes the gradient of the update to what its definition says.

The definitions are written out here response by response, in float64, with gradients by autograd; the Conductor
computes in float32, so its gradients (of order 0.1) agree to 1e-6.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from openrlhf_maestro.conductor import (
    Conductor,
    ConductorSettings,
    LearnedOrchestrator,
    Observation,
    joint_loss,
    pairwise_loss,
)
from openrlhf_maestro.objective import group_advantages, policy_loss
from openrlhf_maestro.rewards import scalarize

H, NAMES, NAN, INF = 6, ["a", "b", "c"], math.nan, math.inf
N, G, K = 3, 4, 3


def orchestrator(**changes: Any) -> LearnedOrchestrator:
    """A Conductor away from its uniform start, with an update after every step."""
    values: dict[str, Any] = {
        "hidden_size": H,
        "temperature": 0.8,
        "min_prob": 1e-4,
        "learn_temperature": True,
        "lr": 5e-2,
        "update_every": 1,
        "entropy_coef": 0.02,
        "emphasis": 0.5,
    }
    made = LearnedOrchestrator(ConductorSettings(**values | changes), NAMES)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.conductor.head.weight.normal_(std=0.3, generator=generator)
        made.conductor.head.bias.normal_(std=0.3, generator=generator)
    return made


def observed(**changes: Any) -> Observation:
    """Three groups of four with a missing value and two truncated responses, one of them in the group of the pair."""
    generator = torch.Generator().manual_seed(1)
    components = torch.rand(N * G, K, generator=generator)
    components[2, 1] = NAN
    truncated = torch.zeros(N * G, dtype=torch.bool)
    truncated[[1, 9]] = True
    return Observation(
        **{
            "h": torch.randn(N * G, H, generator=generator),
            "actions": torch.randint(K, (N * G,), generator=generator),
            "advantages": torch.randn(N * G, generator=generator),
            "components": components,
            "anchor": None,
            "log_prob_mean": -torch.rand(N * G, generator=generator),
            "truncated": truncated,
            "group_size": G,
        }
        | changes
    )


def leaves(conductor: Conductor) -> dict[str, Tensor]:
    return {name: tensor.detach().double().requires_grad_() for name, tensor in conductor.state_dict().items()}


def pi(at: dict[str, Tensor], row: Tensor, floor: float = 1e-4) -> Tensor:
    """The distribution of one response, [1] and the floor."""
    logits = (at["head.weight"] @ row.double() + at["head.bias"]) / at["log_temperature"].exp()
    return (1 - K * floor) * torch.softmax(logits, dim=0) + floor


def entropy(probs: Tensor) -> Tensor:
    return -(probs * probs.log()).sum()


def check_gradient(made: LearnedOrchestrator, step: Observation, at: dict[str, Tensor], loss: Tensor) -> dict:
    """An update on `step` has the loss and the gradient of `loss`, which was written with the leaves `at`."""
    made.observe(step)
    metrics = made.update()
    assert metrics is not None and metrics["meta_loss"] == pytest.approx(loss.item(), abs=1e-6)
    for name, parameter in made.conductor.named_parameters():
        (expected,) = torch.autograd.grad(loss, at[name], retain_graph=True)
        torch.testing.assert_close(parameter.grad.double(), expected, rtol=1e-5, atol=1e-6)
    return metrics


def advantage_definition(at: dict[str, Tensor], step: Observation, **options: Any) -> Tensor:
    """Meta-loss [3, 5, 6] + pairwise_coef x the mean over pairs."""
    values = {"floor": 1e-4, "entropy_coef": 0.02, "keep_truncated": False, "pairwise_coef": 0.0} | options
    probs = [pi(at, row, values["floor"]) for row in step.h]
    kept = [j for j in range(N * G) if values["keep_truncated"] or not step.truncated[j]]
    chosen = {j: probs[j][step.actions[j]].log() for j in kept}
    terms = [-step.advantages[j].item() * chosen[j] - values["entropy_coef"] * entropy(probs[j]) for j in kept]
    pairs = [
        -(step.advantages[j] - step.advantages[other]).item() * (chosen[j] - chosen[other]) / 2
        for j in kept
        for other in kept
        if j < other and j // G == other // G
    ]
    return sum(terms) / len(terms) + values["pairwise_coef"] * sum(pairs) / len(pairs)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({"entropy_coef": 0.4}, {"entropy_coef": 0.4}),
        ({"pairwise_coef": 0.7}, {"pairwise_coef": 0.7}),
        ({"pairwise_coef": 0.7, "keep_truncated": True}, {"pairwise_coef": 0.7, "keep_truncated": True}),
        ({"keep_truncated": True}, {"keep_truncated": True}),
        ({"min_prob": 0.1}, {"floor": 0.1}),
        ({"temperature": 2.0}, {}),
        ({"learn_temperature": False}, {}),
    ],
)
def test_options_of_advantage_credit_change_the_gradient_as_defined(settings: dict, options: dict) -> None:
    made, step = orchestrator(**settings), observed()
    at = leaves(made.conductor)
    before = made.conductor.temperature
    check_gradient(made, step, at, advantage_definition(at, step, **options))
    assert (made.conductor.temperature != before) == made.settings.learn_temperature
    default = orchestrator()
    default.observe(step)
    default.update()
    ours, usual = made.conductor.state_dict(), default.conductor.state_dict()
    assert all(torch.equal(tensor, usual[name]) for name, tensor in ours.items()) == (not settings)


def test_pairwise_loss_by_hand() -> None:
    """At the uniform start d log pi(a) / db_k = (1 - 3 eps) (1[k = a] - 1/3)."""
    conductor, h = Conductor(H, NAMES), torch.zeros(1, 3, H)
    actions, advantages = torch.tensor([[0, 1, 2]]), torch.tensor([[1.0, -0.5, 3.0]])
    loss = pairwise_loss(conductor, h, actions, advantages, torch.tensor([[True, True, False]]))
    assert loss.item() == 0.0
    loss.backward()
    # One pair: -(1 + 0.5) / 2 (e_0 - e_1)
    assert conductor.head.bias.grad.tolist() == pytest.approx([-0.75 * (1 - 3e-4), 0.75 * (1 - 3e-4), 0.0], abs=1e-6)
    conductor.zero_grad()
    pairwise_loss(conductor, h, actions, advantages, torch.tensor([[True, False, False]])).backward()
    assert conductor.head.bias.grad.tolist() == [0.0, 0.0, 0.0]  # no pair


def joint_definition(at: dict[str, Tensor], step: Observation, scale: str, keep_truncated: bool) -> Tensor:
    """Table 6: -mean A_ij(w) log p_ij - 0.02 x mean entropy over the kept, w = pi."""
    terms = []
    for i in range(N):
        members = range(i * G, (i + 1) * G)
        probs = {j: pi(at, step.h[j]) for j in members}
        rewards = []
        for j in members:
            there = [k for k in range(K) if not step.components[j, k].isnan()]
            mixed = sum(probs[j][k] * step.components[j, k].double() for k in there)
            rewards.append(mixed / sum(probs[j][k] for k in there))
        mean = sum(rewards) / G
        std = (sum((reward - mean) ** 2 for reward in rewards) / (G - 1)) ** 0.5
        for j, reward in zip(members, rewards, strict=True):
            advantage = (reward - mean) / (std + 1e-4) if scale == "group" else reward - mean
            if keep_truncated or not step.truncated[j]:
                terms.append(-advantage * step.log_prob_mean[j].double() - 0.02 * entropy(probs[j]))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("keep_truncated", [True, False])
def test_joint_update_has_the_gradient_of_its_definition(scale: str, keep_truncated: bool) -> None:
    made = orchestrator(schedule="joint", scale_rewards=scale, keep_truncated=keep_truncated, update_every=3)
    step, at = observed(actions=None), leaves(made.conductor)
    check_gradient(made, step, at, joint_definition(at, step, scale, keep_truncated))
    assert made.updates == 1  # every step, whatever the period
    drawn = made.weights(step.h, N * G)
    assert drawn.actions is None and torch.equal(drawn.weights, drawn.probs)


def test_joint_loss_mixes_components_as_the_policys_reward_does() -> None:
    """log p picks out one response, so the loss without entropy is minus its advantage over B."""
    conductor, step = orchestrator().conductor, observed()
    components = step.components.clone()
    components[5] = NAN  # no reward: advantage 0, the others are compared without it
    weights = conductor.probs(step.h).detach()
    advantages = group_advantages(scalarize(components, weights).view(N, G)).flatten()
    kept = torch.ones(N, G, dtype=torch.bool)
    for j in range(N * G):
        picked = torch.eye(N * G)[j].view(N, G)
        loss = joint_loss(conductor, step.groups(step.h), step.groups(components), picked, kept, 0.0)
        assert loss.item() == pytest.approx(-advantages[j].item() / (N * G), abs=1e-6)
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(conductor.parameters())))


def test_joint_loss_of_constant_groups_moves_nothing() -> None:
    made = orchestrator(schedule="joint", entropy_coef=0.0)
    made.observe(observed(components=torch.full((N * G, K), 0.3), actions=None))
    metrics = made.update()
    assert metrics is not None and metrics["meta_loss"] == 0.0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in made.conductor.parameters())


def through_the_ratio(theta: Tensor, components: Tensor, lengths: Tensor, loss_type: Any) -> Tensor:
    """The policy's own loss on-policy (ratio 1), its advantages a function of the weights softmax(theta)."""
    scalar = scalarize(components, theta.softmax(dim=-1))
    mask = torch.arange(10) < lengths[:, None]
    logp = torch.zeros(N * G, 10, dtype=torch.float64)
    advantages = group_advantages(scalar.view(N, G)).flatten()
    return policy_loss(
        logp,
        logp,
        advantages,
        mask,
        loss_type=loss_type,
        importance_sampling_level="sequence",
        top_entropy_quantile=1.0,
        entropy_mask="trl",
        eps_low=0.2,
        eps_high=0.2,
        max_completion_length=10,
    )


def test_the_clipped_ratio_would_give_the_weights_no_gradient() -> None:
    """Why the joint schedule has log p in the ratio's place: on-policy the ratio is 1, and advantages sum to 0."""
    generator = torch.Generator().manual_seed(3)
    components = torch.rand(N * G, K, generator=generator, dtype=torch.float64)
    theta = torch.randn(N * G, K, generator=generator, dtype=torch.float64, requires_grad=True)
    lengths = torch.randint(1, 11, (N * G,), generator=generator)

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, theta)[0]

    assert gradient(through_the_ratio(theta, components, lengths, "grpo")).abs().max() < 1e-12
    alike = torch.full_like(lengths, 7)
    assert gradient(through_the_ratio(theta, components, alike, "dr_grpo")).abs().max() < 1e-12
    # With different lengths only the covariance of the advantages with length is left.
    advantages = group_advantages(scalarize(components, theta.softmax(dim=-1)).view(N, G)).flatten()
    centred = lengths.double() - lengths.double().view(N, G).mean(dim=1).repeat_interleave(G)
    covariance = (advantages * centred).mean()
    by_length = gradient(through_the_ratio(theta, components, lengths, "dr_grpo"))
    torch.testing.assert_close(by_length, gradient(-covariance / 10), rtol=0, atol=1e-12)
    assert by_length.abs().max() > 1e-3


def standardised(values: list[float]) -> list[float]:
    """By definition; NaN is left out and 0, -inf is 1 below the lowest."""
    valid = [value for value in values if math.isfinite(value)]
    mean = sum(valid) / max(len(valid), 1)
    std = (sum((value - mean) ** 2 for value in valid) / max(len(valid) - 1, 1)) ** 0.5
    scores = [(value - mean) / (std + 1e-4) if math.isfinite(value) else 0.0 for value in values]
    return [min(scores) - 1 if value == -INF else score for value, score in zip(values, scores, strict=True)]


def anchor_definition(at: dict[str, Tensor], step: Observation, keep_truncated: bool) -> tuple[Tensor, float]:
    """The loss, and the meta-reward, over the responses with an anchor."""
    terms, rewards = [], []
    left_out = step.truncated & (not keep_truncated)
    for i in range(N):
        members = range(i * G, (i + 1) * G)
        anchors = [NAN if left_out[j] else step.anchor[j].item() for j in members]
        here = [j for j, anchor in zip(members, anchors, strict=True) if not math.isnan(anchor)]
        scores = dict(zip(members, standardised(anchors), strict=True))
        columns = [
            standardised([step.components[j, k].item() if j in here else NAN for j in members]) for k in range(K)
        ]
        for j in here:
            probs = pi(at, step.h[j])
            agreement = torch.tensor([columns[k][j - i * G] * scores[j] for k in range(K)], dtype=torch.float64)
            reward = (probs * agreement).sum()
            rewards.append(reward.item())
            terms.append(-(probs * (agreement - reward.detach())).sum() - 0.02 * entropy(probs))
    return sum(terms) / len(terms), sum(rewards) / len(rewards)


@pytest.mark.parametrize("keep_truncated", [True, False])
def test_anchor_update_has_the_gradient_of_its_definition(keep_truncated: bool) -> None:
    anchor = torch.rand(N * G, generator=torch.Generator().manual_seed(4))
    anchor[G : 2 * G] = NAN  # a group that was not asked
    anchor[8], anchor[11] = -INF, NAN  # one at fault, one whose scorer failed
    made = orchestrator(credit="anchor", keep_truncated=keep_truncated)
    step, at = observed(actions=None, anchor=anchor), leaves(made.conductor)
    loss, reward = anchor_definition(at, step, keep_truncated)
    metrics = check_gradient(made, step, at, loss)
    assert metrics["meta_reward"] == pytest.approx(reward, abs=1e-6) and abs(reward) > 1e-2
    took_part = [j for j in range(N * G) if not anchor[j].isnan() and (keep_truncated or not step.truncated[j])]
    entropies = [entropy(pi(at, step.h[j])).item() for j in took_part]
    assert metrics["entropy"] == pytest.approx(sum(entropies) / len(entropies), abs=1e-6)
    assert metrics["lr_h_l1"] == pytest.approx(5e-2 * step.h[took_part].abs().sum(1).mean().item())
    assert made.weights(step.h, N * G).actions is None


def test_without_an_anchored_response_nothing_is_learnt() -> None:
    made = orchestrator(credit="anchor")
    before = made.conductor.head.weight.clone()
    made.observe(observed(anchor=torch.full((N * G,), NAN)))
    assert made.update() is None
    assert torch.equal(made.conductor.head.weight, before) and made.updates == 0 and len(made.buffer) == 0


@pytest.mark.parametrize(
    ("settings", "changes", "missing"),
    [({}, {"actions": None}, "sampled actions"), ({"credit": "anchor"}, {"anchor": None}, "an anchor")],
)
def test_a_rule_says_what_it_lacks(settings: dict, changes: dict, missing: str) -> None:
    made = orchestrator(**settings)
    made.observe(replace(observed(), **changes))
    with pytest.raises(ValueError, match=f"needs {missing}"):
        made.update()
