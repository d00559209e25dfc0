"""The update's loss with the KL elsewhere and vLLM's probabilities corrected, written out on full logits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.integration

ROWS, PROMPT, RESPONSE, VOCABULARY = 4, 3, 5, 37
TEMPERATURE, BETA, DENOMINATOR = 0.8, 0.3, 11.0


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCABULARY, initializer_range=0.3, **sizes, **heads)).eval()


@pytest.fixture(scope="module")
def batch(model: Any) -> dict[str, Tensor]:
    """The third response is left out of the loss; vLLM's log-probs and the reference's are off by differing amounts."""
    generator = torch.Generator().manual_seed(1)
    noise = lambda scale: scale * torch.randn(ROWS, PROMPT + RESPONSE - 1, generator=generator)  # noqa: E731
    sequences = torch.randint(0, VOCABULARY, (ROWS, PROMPT + RESPONSE), generator=generator)
    action_mask = torch.zeros(ROWS, PROMPT + RESPONSE - 1)
    action_mask[:, PROMPT - 1 :] = 1
    loss_mask = action_mask.clone()
    loss_mask[2] = 0
    with torch.no_grad():
        current = log_probs(model, sequences) * action_mask
    return {
        "sequences": sequences,
        "attention_mask": torch.ones_like(sequences),
        "action_mask": action_mask,
        "loss_mask": loss_mask,
        "old_log_probs": (current + noise(0.05)) * action_mask,
        "rollout_log_probs": (current + noise(0.2)).clamp(max=0) * action_mask,
        "ref_log_probs": (current + noise(0.5)) * action_mask,
        "advantages": torch.tensor([1.0, -1.0, 2.0, 0.5]),
        "entropy": torch.ones_like(action_mask),
    }


def log_probs(model: Any, sequences: Tensor) -> Tensor:
    logits = model(sequences).logits[:, :-1] / TEMPERATURE
    return logits.log_softmax(-1).gather(-1, sequences[:, 1:, None]).squeeze(-1)


def found_loss(model: Any, batch: dict[str, Tensor], **sections: Any) -> tuple[Tensor, Tensor]:
    """What `PolicyTrainer` makes of it, without its processes."""
    from openrlhf_maestro.upstream.patches import import_openrlhf

    import_openrlhf()
    from openrlhf_maestro.config.schema import MaestroConfig
    from openrlhf_maestro.workers.update import PolicyTrainer

    trainer = PolicyTrainer.__new__(PolicyTrainer)
    trainer.actor = SimpleNamespace(model=model)
    objective = {"loss_type": "token_mean", "importance_sampling_level": "token", "top_entropy_quantile": 1.0}
    trainer.maestro = MaestroConfig.model_validate(
        {
            "actor": {"model_name_or_path": "policy"},
            "data": {"prompt_dataset": "rows.jsonl"},
            "rewards": {"components": [{"kind": "format"}, {"kind": "length"}]},
            "rollout": {"temperature": TEMPERATURE},
            "algo": sections.get("algo", {}),
            "objective": objective | sections.get("objective", {}),
        }
    )
    return trainer._loss(batch, None, DENOMINATOR, BETA)


def expected_policy_loss(model: Any, batch: dict[str, Tensor], weights: Tensor) -> Tensor:
    ratio = (log_probs(model, batch["sequences"]) - batch["old_log_probs"]).exp()
    advantage = batch["advantages"][:, None]
    loss = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    return (weights * loss)[batch["loss_mask"].bool()].sum() / DENOMINATOR


def expected_kl(model: Any, batch: dict[str, Tensor], estimator: str) -> Tensor:
    d = (log_probs(model, batch["sequences"]) - batch["ref_log_probs"])[batch["loss_mask"].bool()]
    return {"k1": d, "k2": d * d / 2, "k3": (-d).exp() + d - 1}[estimator].sum()


@pytest.mark.parametrize(
    ("kl_in", "estimator"), [("loss", "k3"), ("loss", "k2"), ("reward", "k3"), ("reward", "k1"), ("reward", "k2")]
)
def test_the_kl_is_logged_wherever_it_goes(model: Any, batch: dict[str, Tensor], kl_in: str, estimator: str) -> None:
    algo = {"kl": {"init_coef": BETA, "estimator": estimator}}
    loss, logged = found_loss(model, batch, algo=algo, objective={"kl_in": kl_in})
    kl = expected_kl(model, batch, estimator)
    expected = expected_policy_loss(model, batch, torch.ones_like(batch["loss_mask"]))
    if kl_in == "loss":
        expected = expected + BETA * kl / DENOMINATOR
    parameters = list(model.parameters())
    for ours, theirs in zip(*(torch.autograd.grad(value, parameters) for value in (loss, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert logged[:2].tolist() == pytest.approx([expected.item(), kl.item()], rel=1e-5, abs=1e-6)
    assert logged[3:].tolist() == [0, 15]  # three responses of five tokens; nothing is corrected


@pytest.mark.parametrize(
    ("level", "mode", "gating", "threshold"),
    [("token", "clip", "ratio", (0.9, 1.1)), ("token", "mask", "ratio", (0.8, 1.2)), ("seq", "mask", "tv", (0, 0.003))],
)
def test_the_correction_weighs_the_policy_loss_only(model, batch, level, mode, gating, threshold) -> None:
    values = {"level": level, "mode": mode, "gating": gating, "threshold": threshold}
    advantage = {f"is_correction_{name}": value for name, value in values.items()}
    loss, logged = found_loss(model, batch, algo={"kl": {"init_coef": BETA}, "advantage": advantage})
    low, high = threshold
    trainers, vllms = batch["old_log_probs"].exp(), batch["rollout_log_probs"].exp()
    ratio = trainers / vllms
    read = ratio if gating == "ratio" else (trainers - vllms).abs()[:, PROMPT - 1 :].mean(-1, keepdim=True)
    dropped = torch.where((read >= low) & (read <= high), ratio, 0.0)
    weights = (ratio.clamp(low, high) if mode == "clip" else dropped) * batch["loss_mask"]
    expected = expected_policy_loss(model, batch, weights) + BETA * expected_kl(model, batch, "k3") / DENOMINATOR
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    outside = ((read < low) | (read > high)) * batch["loss_mask"]
    assert logged[3].item() == outside.sum().item()
    assert 0 < outside.sum() < 15
