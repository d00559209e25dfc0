"""Mixing of the reference, and what the plain packages import."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from openrlhf_maestro.objective import mix_reference


def test_mixing_by_hand_makes_new_tensors() -> None:
    ref = {"w": torch.tensor([1.0, 2.0]), "b": torch.tensor(4.0)}
    policy = {"b": torch.tensor(0.0), "w": torch.tensor([3.0, 2.0])}
    mixed = mix_reference(ref, policy, 0.6)
    torch.testing.assert_close(mixed, {"w": torch.tensor([2.2, 2.0]), "b": torch.tensor(1.6)})
    assert list(mixed) == ["w", "b"]
    mixed["w"].zero_()
    assert ref["w"].tolist() == [1.0, 2.0] and policy["w"].tolist() == [3.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ends_are_exact_and_never_shared(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    ref, policy = ({"w": torch.randn(50, generator=generator).to(dtype)} for _ in range(2))
    for alpha, source in ((0.0, ref), (1.0, policy)):
        mixed = mix_reference(ref, policy, alpha)["w"]
        assert torch.equal(mixed, source["w"]) and mixed.data_ptr() != source["w"].data_ptr()


def test_mixing_keeps_the_references_dtype_and_rounds_once() -> None:
    ref, policy = {"w": torch.ones(3, dtype=torch.bfloat16)}, {"w": torch.full((3,), 1.011)}
    mixed = mix_reference(ref, policy, 0.5)["w"]
    # 1.0055 is nearest to 1 + 1/128; with the policy rounded to bfloat16 before the sum it comes to 1.
    assert mixed.dtype == torch.bfloat16 and mixed.float().tolist() == [1.0078125] * 3


def test_mixing_takes_what_is_not_floating_point_from_the_policy() -> None:
    ref, policy = {"steps": torch.tensor(3), "w": torch.ones(1)}, {"steps": torch.tensor(8), "w": torch.ones(1)}
    mixed = mix_reference(ref, policy, 0.5)
    assert mixed["steps"].item() == 8 and mixed["steps"].data_ptr() != policy["steps"].data_ptr()


def test_mixing_needs_no_gradient() -> None:
    mixed = mix_reference({"w": torch.ones(1)}, {"w": nn.Parameter(torch.zeros(1))}, 0.5)
    assert not mixed["w"].requires_grad


@pytest.mark.parametrize(
    ("policy", "alpha", "message"),
    [
        ({"w": torch.ones(2)}, 0.5, r"only the reference has 'b'"),
        ({"w": torch.ones(2), "b": torch.ones(1), "c": torch.ones(1)}, 0.5, r"only the policy has 'c'"),
        ({"w": torch.ones(3), "b": torch.ones(1)}, 0.5, r"'w' is \(2,\)"),
        ({"w": torch.ones(2), "b": torch.ones(1)}, 1.5, "alpha"),
        ({"w": torch.ones(2), "b": torch.ones(1)}, -0.1, "alpha"),
    ],
)
def test_mixing_names_what_does_not_fit(policy: dict, alpha: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mix_reference({"w": torch.ones(2), "b": torch.ones(1)}, policy, alpha)


def test_plain_packages_import_none_of_the_heavy_ones() -> None:
    """In a fresh interpreter: what other tests imported must not hide an import here."""
    script = (
        "import sys\n"
        "import openrlhf_maestro.rewards, openrlhf_maestro.conductor, openrlhf_maestro.objective\n"
        "import openrlhf_maestro.data.prompts, openrlhf_maestro.data.tasks, openrlhf_maestro.data.assets\n"
        "import openrlhf_maestro.report, openrlhf_maestro.launch, openrlhf_maestro.evaluation\n"
        "heavy = {'ray', 'vllm', 'deepspeed', 'openrlhf', 'transformers'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"imported: {result.stderr}"
