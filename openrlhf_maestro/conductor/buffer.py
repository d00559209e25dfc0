"""What an orchestrator is told of a step, and what the Conductor learns from between two of its updates."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """One step (or several joined): B = N * group_size responses, group by group, float32 on the CPU."""

    h: Tensor | None  # (B, H) what `weights` was given
    actions: Tensor | None  # (B,) int64: what it returned; None where nothing was sampled
    advantages: Tensor  # (B,) of the policy
    components: Tensor  # (B, K) normalised, NaN where missing
    anchor: Tensor | None  # (B,) raw scores of the anchor, NaN where there is none, -inf where the response is at fault
    log_prob_mean: Tensor  # (B,) mean token log-probability of the response under the policy that sampled it
    truncated: Tensor  # (B,) bool: cut at the length limit
    group_size: int  # G

    def groups(self, values: Tensor) -> Tensor:
        """(B, ...) -> (N, G, ...)."""
        return values.unflatten(0, (-1, self.group_size))


_TENSORS = tuple(field.name for field in fields(Observation) if field.name != "group_size")


class MetaBuffer:
    """The steps since the last meta-update.

    Its length counts steps, not responses, because that is what the period M of the meta-update counts; a step whose
    responses are all left out (truncated, or none with an anchor) is still a step.
    """

    def __init__(self) -> None:
        self._steps: list[Observation] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: Observation) -> None:
        """Keep a copy of one step: detached, on the CPU, floating point as float32.

        Raises:
            ValueError: if the tensors do not have the same number of responses, or these are no whole groups.
        """
        _check_shapes(step)
        # Copies, because the caller's tensors may be views of a buffer that the next step overwrites.
        copies: dict[str, Any] = {name: _copy(getattr(step, name)) for name in _TENSORS}
        self._steps.append(replace(step, **copies))

    def batch(self) -> Observation:
        """All responses, in the order they were added.

        Raises:
            ValueError: if no step was added, or the steps differ in their group size or in what they hold.
        """
        if not self._steps:
            raise ValueError("meta-buffer: empty")
        if len({step.group_size for step in self._steps}) > 1:
            raise ValueError("meta-buffer: the steps have groups of different sizes")
        columns: dict[str, Any] = {
            name: _join(name, [getattr(step, name) for step in self._steps]) for name in _TENSORS
        }
        return replace(self._steps[0], **columns)

    def clear(self) -> None:
        """Forget every step."""
        self._steps = []

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, one entry a step: loads with ``torch.load(..., weights_only=True)``."""
        return {"steps": [dict(vars(step)) for step in self._steps]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the content by that of ``state_dict``."""
        self._steps = []
        for step in state["steps"]:
            self.add(Observation(**step))


def _check_shapes(step: Observation) -> None:
    responses, shapes = step.advantages.shape[:1], {}
    for name in _TENSORS:
        tensor, dimensions = getattr(step, name), 2 if name in ("h", "components") else 1
        if tensor is not None and (tensor.dim() != dimensions or tensor.shape[:1] != responses):
            shapes[name] = tuple(tensor.shape)
    if shapes or step.group_size < 1 or step.advantages.shape[0] % step.group_size:
        raise ValueError(
            f"meta-buffer: advantages {tuple(step.advantages.shape)} in groups of {step.group_size} do not fit "
            f"{shapes or 'each other'}: expected (B,) or (B, ...), B a multiple of the group size"
        )


def _copy(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    dtype = torch.float32 if tensor.is_floating_point() else torch.bool if tensor.dtype == torch.bool else torch.int64
    return tensor.detach().to("cpu", dtype, copy=True)


def _join(name: str, column: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in column if tensor is not None]
    if present and len(present) < len(column):
        raise ValueError(f"meta-buffer: only some of the steps have {name}")
    return torch.cat(present) if present else None
