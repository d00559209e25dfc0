"""What the functions of the objective ask of their arguments."""

from typing import get_args

from torch import Tensor


def check_shapes(mask: Tensor, **tensors: Tensor) -> None:
    """Raise ValueError unless the mask is (B, A) and the named tensors are like it."""
    for name, tensor in {"mask": mask, **tensors}.items():
        if tensor.dim() != 2 or tensor.shape != mask.shape:
            raise ValueError(f"{name}: expected (B, A) like the mask {tuple(mask.shape)}, got {tuple(tensor.shape)}")


def check_option(name: str, value: str, allowed: object) -> None:
    """Raise ValueError unless the value is one of a Literal's."""
    if value not in get_args(allowed):
        raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}")
