"""Token statistics in chunks: values, gradients, what is kept and how often the projection is called."""

import pytest
import torch
from torch import nn

from openrlhf_maestro.objective import token_statistics, tokens

N, H, V = 37, 8, 53


def problem(dtype: torch.dtype = torch.float64) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    project = nn.Linear(H, V, dtype=dtype)
    with torch.no_grad():
        for parameter in project.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    hidden = torch.randn(N, H, generator=generator).to(dtype).requires_grad_()
    return project, hidden, torch.randint(V, (N,), generator=generator)


class Calls:
    """A projection that notes how many rows each call had."""

    def __init__(self, project: nn.Linear) -> None:
        self.project, self.rows = project, []

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows.append(hidden.shape[0])
        return self.project(hidden)


@pytest.mark.parametrize("temperature", [1.0, 0.8])
@pytest.mark.parametrize("chunk_tokens", [1, 10, N, 1000])
def test_agrees_with_the_full_log_softmax_and_its_gradient(temperature: float, chunk_tokens: int) -> None:
    project, hidden, targets = problem()
    result = token_statistics(project, hidden, targets, temperature=temperature, chunk_tokens=chunk_tokens)
    full = (project(hidden) / temperature).log_softmax(-1)
    expected = full.gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(result.log_probs, expected)
    torch.testing.assert_close(result.entropy, -(full.exp() * full).sum(-1).detach())
    assert not result.entropy.requires_grad
    leaves = [hidden, *project.parameters()]
    upstream = torch.linspace(-1, 1, N, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(value, leaves, upstream) for value in (result.log_probs, expected))
    for our_gradient, their_gradient in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_gradient, their_gradient)


def test_without_gradients_gives_the_same() -> None:
    project, hidden, targets = problem()
    with torch.no_grad():
        result = token_statistics(project, hidden, targets, chunk_tokens=10)
    expected = token_statistics(project, hidden, targets, chunk_tokens=10)
    assert not result.log_probs.requires_grad
    assert torch.equal(result.log_probs, expected.log_probs) and torch.equal(result.entropy, expected.entropy)


def test_entropy_only_if_asked() -> None:
    project, hidden, targets = problem()
    assert token_statistics(project, hidden, targets, with_entropy=False).entropy is None


def test_half_precision_logits_are_raised_to_float32_first() -> None:
    project, hidden, targets = problem(torch.bfloat16)
    result = token_statistics(project, hidden, targets, temperature=0.8, chunk_tokens=10)
    expected = (project(hidden).float() / 0.8).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert result.log_probs.dtype == result.entropy.dtype == torch.float32
    torch.testing.assert_close(result.log_probs, expected, rtol=1e-6, atol=1e-6)
    result.log_probs.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16


def test_entropy_of_a_distribution_with_ruled_out_tokens() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf, 0.0], [5.0, -torch.inf, -torch.inf, -torch.inf]])
    result = token_statistics(lambda rows: rows, logits, torch.tensor([0, 0]))
    torch.testing.assert_close(result.entropy, torch.tensor([3.0, 1.0]).log(), rtol=0, atol=1e-6)


def vocabulary_sized_saved(run) -> int:
    """How many numbers in tensors with a vocabulary dimension the graph of ``run()`` keeps for the backward pass."""
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() == 2 and tensor.shape[1] == V:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept)


def test_graph_keeps_no_vocabulary_sized_tensor() -> None:
    project, hidden, targets = problem()
    rows = torch.arange(N)
    assert vocabulary_sized_saved(lambda: project(hidden).log_softmax(-1)[rows, targets]) >= N * V  # the probe works
    assert vocabulary_sized_saved(lambda: token_statistics(project, hidden, targets, chunk_tokens=10)) == 0


def test_no_call_sees_more_than_a_chunk_and_backward_repeats_each_once() -> None:
    project, hidden, targets = problem()
    calls = Calls(project)
    result = token_statistics(calls, hidden, targets, chunk_tokens=10)
    assert calls.rows == [10, 10, 10, 7]
    result.log_probs.sum().backward()
    assert sorted(calls.rows) == [7, 7, 10, 10, 10, 10, 10, 10]


def test_backward_does_not_repeat_the_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    project, hidden, targets = problem()
    computed = []
    original = tokens._entropy
    monkeypatch.setattr(tokens, "_entropy", lambda *logits: computed.append(1) or original(*logits))
    token_statistics(project, hidden, targets, chunk_tokens=10).log_probs.sum().backward()
    assert len(computed) == 4


def test_no_token_at_all_gives_empty_results_that_can_be_differentiated() -> None:
    project, hidden, targets = problem()
    result = token_statistics(project, hidden[:0], targets[:0])
    assert result.log_probs.shape == result.entropy.shape == (0,)
    result.log_probs.sum().backward()
    assert torch.equal(project.weight.grad, torch.zeros_like(project.weight))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(N - 1, dtype=torch.long)}, "targets"),
        ({"hidden": torch.zeros(1, N, H)}, "hidden"),
        ({"temperature": 0.0}, "temperature"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
    ],
)
def test_refuses_what_does_not_fit(change: dict, message: str) -> None:
    project, hidden, targets = problem()
    with pytest.raises(ValueError, match=message):
        token_statistics(**{"project": project, "hidden": hidden, "targets": targets, **change})
