"""Orchestrators: fixed rules, the learned one, its time scale and its state."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openrlhf_maestro.conductor import (
    ORCHESTRATOR_KINDS,
    Conductor,
    ConductorSettings,
    LearnedOrchestrator,
    Observation,
    make_orchestrator,
    meta_loss,
)

H, NAMES = 6, ["format", "perplexity", "length"]
SETTINGS = {
    "hidden_size": H,
    "temperature": 1.0,
    "min_prob": 1e-4,
    "learn_temperature": True,
    "lr": 5e-2,
    "update_every": 3,
    "entropy_coef": 1e-3,
    "emphasis": 0.5,
}


def learned(**changes) -> LearnedOrchestrator:
    return LearnedOrchestrator(ConductorSettings(**{**SETTINGS, **changes}), NAMES)


def observation(h: Tensor | None, actions: Tensor | None, advantages: Tensor, **changes: Any) -> Observation:
    """One group, the rest of it drawn by a fixed seed."""
    generator, size = torch.Generator().manual_seed(0), len(advantages)
    values = {
        "components": torch.rand(size, 3, generator=generator),
        "anchor": torch.rand(size, generator=generator),
        "log_prob_mean": -torch.rand(size, generator=generator),
        "truncated": torch.zeros(size, dtype=torch.bool),
        "group_size": size,
    }
    return Observation(h, actions, advantages, **values | changes)


def step(orchestrator: LearnedOrchestrator, seed: int, truncated: list[bool] | None = None) -> dict[str, float] | None:
    """One GRPO step of four responses, everything decided by the seed."""
    generator = torch.Generator().manual_seed(seed)
    h, advantages = torch.randn(4, H, generator=generator), torch.randn(4, generator=generator)
    actions = orchestrator.weights(h, 4, generator).actions
    orchestrator.observe(observation(h, actions, advantages, truncated=torch.tensor(truncated or [False] * 4)))
    return orchestrator.update()


def states_equal(ours: LearnedOrchestrator, theirs: LearnedOrchestrator) -> bool:
    return all(
        torch.equal(tensor, theirs.conductor.state_dict()[name]) for name, tensor in ours.conductor.state_dict().items()
    )


@pytest.mark.parametrize(
    ("kind", "options", "row"),
    [
        ("equal", {}, [1 / 3, 1 / 3, 1 / 3]),
        ("single", {"component": "perplexity"}, [0.0, 1.0, 0.0]),
        ("fixed", {"fixed_weights": [0.2, 0.5, 0.3]}, [0.2, 0.5, 0.3]),
        ("fixed", {"fixed_weights": [2, 1, 1]}, [0.5, 0.25, 0.25]),
    ],
)
def test_fixed_rules(kind: str, options: dict, row: list[float]) -> None:
    orchestrator = make_orchestrator(kind, NAMES, **options)
    assert not orchestrator.needs_hidden
    result = orchestrator.weights(None, 4)
    torch.testing.assert_close(result.weights, torch.tensor([row] * 4))
    torch.testing.assert_close(result.probs, result.weights)
    assert result.actions is None
    orchestrator.observe(observation(None, None, torch.zeros(4)))
    assert orchestrator.update() is None and orchestrator.updates == 0
    orchestrator.load_state_dict(orchestrator.state_dict())


def test_random_is_uniform_on_the_simplex() -> None:
    orchestrator = make_orchestrator("random", NAMES)
    result = orchestrator.weights(None, 20_000, torch.Generator().manual_seed(0))
    again = orchestrator.weights(None, 20_000, torch.Generator().manual_seed(0))
    assert not orchestrator.needs_hidden and result.actions is None
    assert torch.equal(result.weights, again.weights)
    assert (result.weights >= 0).all()
    torch.testing.assert_close(result.weights.sum(1), torch.ones(20_000))
    # Dirichlet(1, 1, 1): mean 1/3, variance 1/18, and P(w_1 > 1/2) = 1/4.
    torch.testing.assert_close(result.weights.mean(0), torch.full((3,), 1 / 3), rtol=0, atol=0.01)
    torch.testing.assert_close(result.weights.var(0), torch.full((3,), 1 / 18), rtol=0, atol=0.002)
    torch.testing.assert_close((result.weights > 0.5).float().mean(0), torch.full((3,), 0.25), rtol=0, atol=0.015)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("conductr", {}, "conductor, equal, single, random, fixed"),
        ("conductor", {}, "settings"),
        ("single", {}, "format, perplexity, length"),
        ("single", {"component": "judge"}, "'judge'"),
        ("fixed", {}, "3 weights"),
        ("fixed", {"fixed_weights": [0.5, 0.5]}, "3 weights"),
        ("fixed", {"fixed_weights": [1.0, -0.5, 0.5]}, "non-negative"),
        ("fixed", {"fixed_weights": [0.0, 0.0, 0.0]}, "not all 0"),
        ("fixed", {"fixed_weights": [math.nan, 1.0, 1.0]}, "finite"),
    ],
)
def test_factory_says_what_is_wrong(kind: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_orchestrator(kind, NAMES, **options)


def test_factory_knows_every_kind() -> None:
    options = {"settings": ConductorSettings(**SETTINGS), "component": "format", "fixed_weights": [1.0, 1.0, 1.0]}
    orchestrators = [make_orchestrator(kind, NAMES, **options) for kind in ORCHESTRATOR_KINDS]
    assert [orchestrator.needs_hidden for orchestrator in orchestrators] == [True, False, False, False, False]


@pytest.mark.parametrize(("change", "value"), [("update_every", 0), ("emphasis", 1.5), ("min_prob", 0.5)])
def test_learned_refuses_settings_out_of_range(change: str, value: float) -> None:
    with pytest.raises(ValueError, match=change):
        learned(**{change: value})


def test_learned_weights_are_those_of_its_conductor() -> None:
    orchestrator, h = learned(emphasis=0.75), torch.randn(5, H, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        orchestrator.conductor.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    result = orchestrator.weights(h, 5, torch.Generator().manual_seed(2))
    actions, _ = orchestrator.conductor.sample(h, torch.Generator().manual_seed(2))
    assert result.actions is not None and torch.equal(result.actions, actions)
    torch.testing.assert_close(result.probs, orchestrator.conductor.probs(h))
    onehot = torch.eye(3)[actions]
    torch.testing.assert_close(result.weights, 0.25 * orchestrator.conductor.probs(h) + 0.75 * onehot)
    assert not result.weights.requires_grad and not result.probs.requires_grad


def test_learned_needs_hidden_states_of_every_response() -> None:
    orchestrator = learned()
    with pytest.raises(ValueError, match="hidden states of 4"):
        orchestrator.weights(None, 4)
    with pytest.raises(ValueError, match="hidden states of 4"):
        orchestrator.weights(torch.zeros(3, H), 4)
    with pytest.raises(ValueError, match="observe"):
        orchestrator.observe(observation(None, None, torch.zeros(4)))


def test_updates_every_m_steps_on_everything_since() -> None:
    orchestrator = learned(update_every=3)
    outcomes = [step(orchestrator, seed) for seed in range(7)]
    assert [outcome is not None for outcome in outcomes] == [False, False, True, False, False, True, False]
    assert orchestrator.updates == 2 and len(orchestrator.buffer) == 1


def test_one_update_is_one_adamw_step_on_the_meta_loss() -> None:
    orchestrator, reference = learned(update_every=2), Conductor(H, NAMES)
    with torch.no_grad():  # away from 0, where a weight decay would show
        reference.head.weight.normal_(generator=torch.Generator().manual_seed(9))
        reference.log_temperature.fill_(0.4)
    orchestrator.conductor.load_state_dict(reference.state_dict())
    rows = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        h, advantages = torch.randn(4, H, generator=generator), torch.randn(4, generator=generator)
        actions = torch.randint(3, (4,), generator=generator)
        rows.append((h, actions, advantages))
        orchestrator.observe(observation(h, actions, advantages))
    metrics = orchestrator.update()
    h, actions, advantages = (torch.cat(column) for column in zip(*rows, strict=True))
    optimizer = torch.optim.AdamW(reference.parameters(), lr=5e-2, weight_decay=0.0)
    probs = reference.probs(h)
    loss = meta_loss(reference, h, actions, advantages, 1e-3)
    loss.backward()
    optimizer.step()
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(orchestrator.conductor.state_dict()[name], tensor)
    assert metrics == {
        "meta_loss": pytest.approx(loss.item()),
        "entropy": pytest.approx(-(probs * probs.log()).sum(1).mean().item()),  # before the step
        "temperature": pytest.approx(reference.temperature),
        "lr_h_l1": pytest.approx(5e-2 * h.abs().sum(1).mean().item()),
    }


def test_steps_of_truncated_responses_only_make_no_update() -> None:
    orchestrator = learned(update_every=1)
    before = orchestrator.conductor.head.bias.clone()
    assert step(orchestrator, 0, truncated=[True] * 4) is None
    assert torch.equal(orchestrator.conductor.head.bias, before)
    assert len(orchestrator.buffer) == 0 and orchestrator.updates == 0


def test_a_gradient_that_is_not_finite_leaves_the_conductor_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    orchestrator = learned(update_every=1)
    step(orchestrator, 0)
    before = {name: tensor.clone() for name, tensor in orchestrator.conductor.state_dict().items()}
    h = torch.zeros(1, H)
    h[0, 0] = math.nan
    orchestrator.observe(observation(h, torch.tensor([0]), torch.ones(1)))
    with caplog.at_level(logging.WARNING):
        assert orchestrator.update() is None
    assert "not finite" in caplog.text
    assert all(torch.equal(before[name], tensor) for name, tensor in orchestrator.conductor.state_dict().items())
    assert orchestrator.updates == 1
    assert step(orchestrator, 1) is not None  # and it goes on


@pytest.mark.parametrize(("lr", "advantage"), [(5e37, 1.0), (5e-2, 1e30)])
def test_a_step_to_what_is_not_finite_is_undone(caplog: pytest.LogCaptureFixture, lr: float, advantage: float) -> None:
    """The parameters themselves, or the optimiser's second moment, which would stop all later learning."""
    orchestrator, untouched = learned(update_every=1), learned(update_every=1)
    for one in (orchestrator, untouched):
        step(one, 0)
    orchestrator.optimizer.param_groups[0]["lr"] = lr
    orchestrator.observe(observation(torch.ones(2, H), torch.tensor([0, 1]), torch.tensor([advantage, -1.0])))
    with caplog.at_level(logging.WARNING):
        assert orchestrator.update() is None
    assert "undone" in caplog.text and orchestrator.updates == 1
    orchestrator.optimizer.param_groups[0]["lr"] = 5e-2
    assert step(orchestrator, 1) == step(untouched, 1) is not None
    assert states_equal(orchestrator, untouched)


def test_learns_which_emphasis_pays() -> None:
    orchestrator = learned(update_every=1)
    generator = torch.Generator().manual_seed(0)
    h = torch.ones(32, H)
    for _ in range(30):
        actions = orchestrator.weights(h, 32, generator).actions
        assert actions is not None
        advantages = torch.where(actions == 2, 1.0, -0.5)
        orchestrator.observe(observation(h, actions, advantages))
        orchestrator.update()
    assert orchestrator.conductor.probs(h[:1])[0, 2] > 0.9


@pytest.mark.parametrize("changes", [{"pairwise_coef": 0.5}, {"credit": "anchor"}, {"schedule": "joint"}])
def test_resume_is_exact(tmp_path: Path, changes: dict[str, Any]) -> None:
    straight, stopped = learned(**changes), learned(**changes)
    for seed in range(5):  # stops between two updates: the buffer and the optimiser's moments matter
        step(straight, seed)
        step(stopped, seed)
    torch.save(stopped.state_dict(), tmp_path / "state.pt")
    resumed = learned(**changes)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    outcomes = [(step(straight, seed), step(resumed, seed)) for seed in range(5, 10)]
    assert any(ours is not None for ours, _ in outcomes)
    assert all(ours == theirs for ours, theirs in outcomes)
    assert states_equal(straight, resumed)
    assert straight.updates == resumed.updates == (10 if "schedule" in changes else 3)


def test_a_resume_takes_the_configurations_learning_rate() -> None:
    stopped, resumed = learned(lr=0.05), learned(lr=1e-6)
    resumed.load_state_dict(stopped.state_dict())
    assert [group["lr"] for group in resumed.optimizer.param_groups] == [1e-6]


def saved(tmp_path: Path) -> LearnedOrchestrator:
    """A Conductor that has learnt, and what `save_pretrained` makes of it."""
    orchestrator = learned(update_every=1, temperature=0.7)
    for seed in range(3):
        step(orchestrator, seed)
    orchestrator.conductor.save_pretrained(tmp_path)
    return orchestrator


def test_a_run_starts_from_a_saved_conductor(tmp_path: Path) -> None:
    source, h = saved(tmp_path), torch.randn(5, H)
    started = learned(init_from=str(tmp_path), update_every=1)
    assert states_equal(started, source) and started.updates == 0
    assert torch.equal(started.weights(h, 5).probs, source.weights(h, 5).probs)
    assert step(started, 7) is not None and not states_equal(started, source)


def test_a_frozen_conductor_stays_as_it_is_and_samples_nothing(tmp_path: Path) -> None:
    source, h = saved(tmp_path), torch.randn(5, H)
    frozen = learned(init_from=str(tmp_path), freeze=True, update_every=1)
    assert [step(frozen, seed) for seed in range(4)] == [None] * 4
    assert frozen.updates == 0 and len(frozen.buffer) == 0 and states_equal(frozen, source)
    result = frozen.weights(h, 5)
    assert result.actions is None and torch.equal(result.weights, source.conductor(h))


@pytest.mark.parametrize(
    ("changes", "names", "field"),
    [
        ({"hidden_size": H + 1}, NAMES, "hidden_size"),
        ({}, NAMES[::-1], "reward_names"),
        ({"context_layer": "first"}, NAMES, "context_layer"),
        ({"context_pooling": "mean"}, NAMES, "context_pooling"),
    ],
)
def test_a_saved_conductor_of_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], names: list[str], field: str
) -> None:
    saved(tmp_path)
    with pytest.raises(ValueError, match=field):
        LearnedOrchestrator(ConductorSettings(**SETTINGS | {"init_from": str(tmp_path)} | changes), names)


def test_a_saved_conductor_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        learned(init_from=str(tmp_path / "nowhere"))


def test_state_of_another_orchestrator_is_refused_by_field() -> None:
    state = learned().state_dict()
    with pytest.raises(ValueError, match="hidden_size"):
        learned(hidden_size=H + 1).load_state_dict(state)
    with pytest.raises(ValueError, match="reward_names"):
        LearnedOrchestrator(ConductorSettings(**SETTINGS), NAMES[::-1]).load_state_dict(state)
    with pytest.raises(ValueError, match="buffer"):
        learned().load_state_dict({name: value for name, value in state.items() if name != "buffer"})
    with pytest.raises(ValueError, match="rule of the checkpoint is advantage, not anchor"):
        learned(credit="anchor").load_state_dict(state)
    with pytest.raises(ValueError, match="no state"):
        make_orchestrator("equal", NAMES).load_state_dict(state)
