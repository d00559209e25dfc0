"""The meta-buffer: steps with their groups, between two updates of the Conductor."""

from dataclasses import replace

import pytest
import torch

from openrlhf_maestro.conductor import MetaBuffer, Observation

H, K = 6, 3


def step(groups: int, first: float = 0.0) -> Observation:
    """Groups of two; the advantages count up from `first`."""
    responses = 2 * groups
    return Observation(
        h=torch.full((responses, H), first),
        actions=torch.arange(responses) % K,
        advantages=torch.arange(responses) + first,
        components=torch.rand(responses, K),
        anchor=None,
        log_prob_mean=torch.rand(responses),
        truncated=torch.arange(responses) == 1,
        group_size=2,
    )


def test_counts_steps_and_joins_them_in_order() -> None:
    buffer = MetaBuffer()
    for groups, first in ((1, 1.0), (0, 0.0), (2, 5.0)):
        buffer.add(step(groups, first))
    assert len(buffer) == 3
    batch = buffer.batch()
    assert batch.advantages.tolist() == [1.0, 2.0, 5.0, 6.0, 7.0, 8.0]
    assert batch.groups(batch.advantages).tolist() == [[1.0, 2.0], [5.0, 6.0], [7.0, 8.0]]
    assert batch.h is not None and batch.groups(batch.h).shape == (3, 2, H)
    assert batch.actions is not None and batch.actions.tolist() == [0, 1, 0, 1, 2, 0]
    assert batch.truncated.tolist() == [False, True, False, True, False, False]
    assert batch.anchor is None and batch.group_size == 2
    buffer.clear()
    assert len(buffer) == 0
    with pytest.raises(ValueError, match="empty"):
        buffer.batch()


def test_keeps_detached_single_precision_copies() -> None:
    h, advantages = torch.ones(2, H, requires_grad=True), torch.ones(2, dtype=torch.float64)
    buffer = MetaBuffer()
    buffer.add(replace(step(1), h=h, advantages=advantages, actions=torch.tensor([0, 1], dtype=torch.int32)))
    with torch.no_grad():
        h.zero_()
    advantages.zero_()
    batch = buffer.batch()
    assert batch.h is not None and batch.actions is not None and not batch.h.requires_grad
    assert (batch.h.dtype, batch.actions.dtype, batch.advantages.dtype) == (torch.float32, torch.int64, torch.float32)
    assert batch.truncated.dtype == torch.bool
    assert batch.h.sum() == 2 * H and batch.advantages.sum() == 2


def test_state_survives_a_file(tmp_path) -> None:
    buffer, restored = MetaBuffer(), MetaBuffer()
    for groups in (1, 0, 3):
        buffer.add(step(groups))
    torch.save(buffer.state_dict(), tmp_path / "buffer.pt")
    restored.load_state_dict(torch.load(tmp_path / "buffer.pt", weights_only=True))
    assert len(restored) == 3
    for name, tensor in vars(buffer.batch()).items():
        theirs = getattr(restored.batch(), name)
        assert torch.equal(tensor, theirs) if isinstance(tensor, torch.Tensor) else tensor == theirs


@pytest.mark.parametrize(
    "changes",
    [
        {"h": torch.zeros(3, H)},
        {"h": torch.zeros(2)},
        {"actions": torch.zeros(1, dtype=torch.long)},
        {"components": torch.zeros(2)},
        {"anchor": torch.zeros(4)},
        {"truncated": torch.zeros(3, dtype=torch.bool)},
        {"group_size": 3},
        {"group_size": 0},
    ],
)
def test_refuses_what_does_not_fit(changes: dict) -> None:
    with pytest.raises(ValueError, match="meta-buffer"):
        MetaBuffer().add(replace(step(1), **changes))


def test_refuses_steps_that_cannot_be_joined() -> None:
    for other in (replace(step(2), group_size=4), replace(step(1), anchor=torch.zeros(2))):
        buffer = MetaBuffer()
        buffer.add(step(1))
        buffer.add(other)
        with pytest.raises(ValueError, match=r"different sizes|only some of the steps have anchor"):
            buffer.batch()
