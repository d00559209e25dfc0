"""What the Conductor learns from between two of its updates."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class MetaBatch(NamedTuple):
    """R responses of several steps."""

    h: Tensor  # (R, H) float32
    actions: Tensor  # (R,) int64
    advantages: Tensor  # (R,) float32


class MetaBuffer:
    """Hidden states, emphases and advantages of the steps since the last meta-update.

    Its length counts steps, not responses, because that is what the period M of the meta-update counts; a step that
    adds no response (all of them truncated) is still a step.
    """

    def __init__(self) -> None:
        self._steps: list[MetaBatch] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, h: Tensor, actions: Tensor, advantages: Tensor) -> None:
        """Keep copies of one step's responses: (R, H), (R,) int64, (R,), detached, floating point as float32.

        Raises:
            ValueError: if the three do not have the same number of responses.
        """
        if h.dim() != 2 or actions.shape != h.shape[:1] or advantages.shape != h.shape[:1]:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (h, actions, advantages))
            raise ValueError(f"meta-buffer: expected h (R, H), actions (R,) and advantages (R,), got {shapes}")
        # Copies, because the caller's tensors may be views of a buffer that the next step overwrites.
        self._steps.append(
            MetaBatch(
                h.detach().to(torch.float32, copy=True),
                actions.detach().to(torch.int64, copy=True),
                advantages.detach().to(torch.float32, copy=True),
            )
        )

    def batch(self) -> MetaBatch:
        """All responses, in the order they were added.

        Raises:
            ValueError: if no step was added.
        """
        if not self._steps:
            raise ValueError("meta-buffer: empty")
        return MetaBatch(*(torch.cat(column) for column in zip(*self._steps, strict=True)))

    def clear(self) -> None:
        """Forget every step."""
        self._steps = []

    def state_dict(self) -> dict[str, Any]:
        """Tensors in lists, one entry a step: loads with ``torch.load(..., weights_only=True)``."""
        return {name: [getattr(step, name) for step in self._steps] for name in MetaBatch._fields}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the content by that of ``state_dict``."""
        self._steps = []
        for h, actions, advantages in zip(*(state[name] for name in MetaBatch._fields), strict=True):
            self.add(h, actions, advantages)
