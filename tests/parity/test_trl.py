"""The same updates by TRL 1.16.0's own GRPOTrainer and by ours: advantages, losses, gradients and parameters.

TRL's trainer is constructed and trained as it stands. Only what it would generate is replaced, by recorded responses:
it tokenizes, pads, scores, masks, runs policy and reference, and takes its AdamW steps by itself. Our side reads the
same recording through `group_advantages`, `token_forward` and the losses of the objective.

Tolerances: both sides are fp32 but pad on different sides and sum in different orders, so gradients differ by rounding,
about 1e-6 of their norm; 1e-5 is asked for. Corrections that TRL has and the method has not are off.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from openrlhf_maestro.objective import (
    entropy_threshold,
    group_advantages,
    kl_loss,
    loss_denominator,
    policy_loss,
    reward_kl,
)
from openrlhf_maestro.workers.forward import token_forward

PROMPTS, GROUP, LONGEST, VOCABULARY = 4, 4, 12, 48
PAD, EOS = 0, 1
TEMPERATURE, LR, UPDATES = 0.8, 1e-3, 3
TOLERANCE = 1e-5

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """One setting of the objective; TRL's and our words for it are the same but for the truncated responses'."""

    loss_type: str
    level: str
    quantile: float
    mask_truncated: bool
    beta: float
    tied: bool

    def __str__(self) -> str:
        words = (self.loss_type, self.level, f"top{self.quantile}", "masked" if self.mask_truncated else "unmasked")
        return "-".join((*words, f"beta{self.beta}", "tied" if self.tied else "untied"))


CASES = [
    Case(*values)
    for values in itertools.product(
        ("dr_grpo", "grpo"), ("sequence", "token"), (0.2, 1.0), (True, False), (0.0, 0.1), (False, True)
    )
]


@dataclass(frozen=True)
class Recording:
    """Prompts, each with GROUP responses (token ids) and their rewards, a missing one NaN."""

    prompts: list[list[int]]
    responses: list[list[int]]
    rewards: list[float]

    @property
    def truncated(self) -> Tensor:
        return torch.tensor([response[-1] != EOS for response in self.responses])


@pytest.fixture(scope="module")
def recording() -> Recording:
    """Different lengths, every fourth response cut at the limit; a group of equal rewards, and one reward missing."""
    generator = torch.Generator().manual_seed(16)
    draw = lambda count: torch.randint(2, VOCABULARY, (count,), generator=generator).tolist()  # noqa: E731
    responses = []
    for index in range(PROMPTS * GROUP):
        cut = index % GROUP == 1
        length = LONGEST if cut else int(torch.randint(1, LONGEST, (1,), generator=generator))
        responses.append(draw(LONGEST) if cut else [*draw(length), EOS])
    rewards = torch.rand(PROMPTS * GROUP, generator=generator).tolist()
    rewards[GROUP : 2 * GROUP] = [1.0] * GROUP
    rewards[-1] = math.nan
    return Recording([draw(length) for length in (3, 7, 1, 5)], responses, rewards)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The reference model with its tokenizer, by whether the output head is tied to the embedding."""
    found = {}
    for tied in (False, True):
        torch.manual_seed(1)
        config = Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
            initializer_range=0.2,
            tie_word_embeddings=tied,
            pad_token_id=PAD,
            eos_token_id=EOS,
            bos_token_id=None,
        )
        folder = tmp_path_factory.mktemp("reference")
        Qwen3ForCausalLM(config).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        found[tied] = folder
    return found


def tokenizer() -> PreTrainedTokenizerFast:
    """w2, w3, ... are the words, named after their ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {"<pad>": PAD, "<eos>": EOS} | {f"w{index}": index for index in range(2, VOCABULARY)}
    words = Tokenizer(models.WordLevel(ids, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def policy_from(folder: Path) -> Qwen3ForCausalLM:
    """The reference with noise on its weights, so that the KL has a gradient."""
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return model


# ── TRL ──


def trl_trainer(case: Case, recording: Recording, folder: Path, output: Path, rloo: bool = False) -> Any:
    """TRL's trainer for this case, whose generation is the recording."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    grpo = {
        "loss_type": case.loss_type,
        "importance_sampling_level": case.level,
        "top_entropy_quantile": case.quantile,
        "scale_rewards": "group",
        "vllm_importance_sampling_correction": False,
        "use_bias_correction_kl": False,
    }
    config = (RLOOConfig if rloo else GRPOConfig)(
        **({"normalize_advantages": False} if rloo else grpo),
        output_dir=str(output),
        mask_truncated_completions=case.mask_truncated,
        beta=case.beta,
        epsilon=0.2,
        num_generations=GROUP,
        max_completion_length=LONGEST,
        temperature=TEMPERATURE,
        num_iterations=UPDATES,
        max_steps=UPDATES,
        per_device_train_batch_size=PROMPTS * GROUP,
        gradient_accumulation_steps=1,
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        shuffle_dataset=False,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    missing_as_none = [None if math.isnan(reward) else reward for reward in recording.rewards]
    trainer = (RLOOTrainer if rloo else GRPOTrainer)(
        policy_from(folder),
        reward_funcs=lambda completion_ids, **_: [
            missing_as_none[recording.responses.index(response)] for response in completion_ids
        ],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": words(prompt)} for prompt in recording.prompts]),
        processing_class=tokenizer(),
    )

    def recorded(prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
        assert prompt_ids == [prompt for prompt in recording.prompts for _ in range(GROUP)]
        return recording.responses if rloo else (recording.responses, None)

    trainer._generate_single_turn = recorded
    trainer.current_gradient_accumulation_steps = 1  # what its training loop sets first
    return trainer


def words(ids: list[int]) -> str:
    return " ".join(f"w{index}" for index in ids)


def trl_inputs(trainer: Any, recording: Recording) -> dict[str, Tensor]:
    rows = [{"prompt": words(prompt)} for prompt in recording.prompts for _ in range(GROUP)]
    trainer.model.train()
    return trainer._generate_and_score_completions(rows)


# ── ours ──


@dataclass
class Batch:
    """Right-padded rows of prompt + response; (B, T) sequences, (B, T - 1) all that belongs to tokens."""

    sequences: Tensor
    attention_mask: Tensor
    action_mask: Tensor
    loss_mask: Tensor
    advantages: Tensor
    old_logp: Tensor
    ref_logp: Tensor

    def rows(self, start: int, stop: int) -> Batch:
        """Some of the rows, cut to their own width."""
        width = int(self.attention_mask[start:stop].sum(-1).max())
        tensors = {name: tensor[start:stop] for name, tensor in vars(self).items()}
        for name in ("sequences", "attention_mask"):
            tensors[name] = tensors[name][:, :width]
        for name in ("action_mask", "loss_mask", "old_logp", "ref_logp"):
            tensors[name] = tensors[name][:, : width - 1]
        return Batch(**tensors)


def our_batch(case: Case, recording: Recording, policy: Any, reference: Any) -> Batch:
    prompts = [prompt for prompt in recording.prompts for _ in range(GROUP)]
    rows = [prompt + response for prompt, response in zip(prompts, recording.responses, strict=True)]
    width = max(map(len, rows))
    sequences = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    places = torch.arange(width)
    ends = torch.tensor([len(row) for row in rows])[:, None]
    starts = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    action_mask = ((places[1:] >= starts) & (places[1:] < ends)).float()
    attention_mask = (places < ends).long()
    kept = ~recording.truncated if case.mask_truncated else torch.ones(len(rows), dtype=torch.bool)
    with torch.no_grad():
        old = statistics(policy, sequences, attention_mask, action_mask).log_probs
        ref = statistics(reference, sequences, attention_mask, action_mask).log_probs
    return Batch(
        sequences=sequences,
        attention_mask=attention_mask,
        action_mask=action_mask,
        loss_mask=action_mask * kept[:, None],
        advantages=group_advantages(torch.tensor(recording.rewards).view(PROMPTS, GROUP)).flatten(),
        old_logp=old,
        ref_logp=ref,
    )


def statistics(model: Any, sequences: Tensor, attention_mask: Tensor, action_mask: Tensor) -> Any:
    return token_forward(
        model, sequences, attention_mask, action_mask, temperature=TEMPERATURE, chunk_tokens=7, with_entropy=True
    )


def our_losses(case: Case, model: Any, batch: Batch, pieces: int = 1) -> list[Tensor]:
    """The losses of the update's pieces; threshold and denominator are the whole update's."""
    with torch.no_grad():
        entropy = statistics(model, batch.sequences, batch.attention_mask, batch.action_mask).entropy
    shared = {
        "loss_type": case.loss_type,
        "max_completion_length": LONGEST,
        "denominator": loss_denominator(batch.loss_mask, case.loss_type, LONGEST),
    }
    threshold = entropy_threshold(entropy, batch.loss_mask, case.quantile)
    # The first tokens of a group's responses have equal entropies: a threshold among them would be decided by rounding.
    distances = (entropy[batch.loss_mask.bool()] - threshold).abs()
    assert case.quantile == 1 or distances.min() > 1e-5, "the comparison needs a recording with a clear threshold"
    losses = []
    size = len(batch.sequences) // pieces
    for start in range(0, len(batch.sequences), size):
        stop = start + size
        piece = batch.rows(start, stop)
        current = statistics(model, piece.sequences, piece.attention_mask, piece.action_mask)
        loss = policy_loss(
            current.log_probs,
            piece.old_logp,
            piece.advantages,
            piece.loss_mask,
            entropy[start:stop, : piece.loss_mask.shape[1]],
            importance_sampling_level=case.level,
            top_entropy_quantile=case.quantile,
            entropy_mask="trl",
            entropy_threshold=threshold,
            eps_low=0.2,
            eps_high=0.2,
            **shared,
        )
        if case.beta:
            loss = loss + case.beta * kl_loss(current.log_probs, piece.ref_logp, piece.loss_mask, **shared)
        losses.append(loss)
    return losses


def train(case: Case, model: Any, batch: Batch) -> list[float]:
    """Three updates on one rollout as METHOD has them; the losses."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for _ in range(UPDATES):
        (loss,) = our_losses(case, model, batch)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


def gradients(model: Any, losses: list[Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    for loss in losses:
        loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def weights(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_close_in_norm(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert tensor.norm() > 0, name
        difference = float((ours[name] - tensor).norm() / tensor.norm())
        assert difference < TOLERANCE, f"{name}: {difference:.2e}"


# ── the comparison ──


@pytest.mark.parametrize("case", CASES, ids=str)
def test_update_is_trls(case: Case, recording: Recording, folders: dict[bool, Path], tmp_path: Path) -> None:
    folder = folders[case.tied]
    trainer = trl_trainer(case, recording, folder, tmp_path)
    policy, reference = policy_from(folder), Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    start = weights(policy)
    batch = our_batch(case, recording, policy, reference)
    inputs = trl_inputs(trainer, recording)
    torch.testing.assert_close(batch.advantages, inputs["advantages"], rtol=TOLERANCE, atol=1e-7)
    assert (batch.loss_mask.sum(-1) == inputs["completion_mask"].sum(-1)).all()

    # Off-policy: the recorded log-probs are those of another policy, and some ratios are clipped.
    generator = torch.Generator().manual_seed(3)
    noise = 0.3 * torch.randn(len(recording.responses), 1, generator=generator)
    noise = noise + 0.3 * torch.randn(inputs["completion_ids"].shape, generator=generator)
    sampled = torch.arange(LONGEST) < batch.action_mask.sum(-1, keepdim=True)
    inputs["old_per_token_logps"] = inputs["old_per_token_logps"] + noise
    recorded = Batch(**vars(batch))
    recorded.old_logp = batch.old_logp + torch.zeros_like(batch.old_logp).masked_scatter(
        batch.action_mask.bool(), noise[sampled]
    )
    theirs = trainer._compute_loss(trainer.model, inputs)
    assert 0 < trainer._metrics["train"]["clip_ratio/region_mean"][-1] < 1
    their_gradients = gradients(trainer.model, [theirs])
    for pieces in (1, 4):
        losses = our_losses(case, policy, recorded, pieces)
        assert sum(loss.item() for loss in losses) == pytest.approx(theirs.item(), rel=TOLERANCE, abs=1e-7)
        assert_close_in_norm(gradients(policy, losses), their_gradients)

    # Three AdamW steps on one rollout, TRL's by its own training loop.
    their_losses: list[Tensor] = []
    compute = trainer._compute_loss
    trainer._compute_loss = lambda *arguments: their_losses.append(compute(*arguments)) or their_losses[-1]
    trainer.train()
    our_values = train(case, policy, batch)
    assert our_values == pytest.approx([loss.item() for loss in their_losses], rel=TOLERANCE, abs=1e-7)
    # In norm: where a gradient is nearly 0, AdamW makes a step of its rounding (2.7e-5 for one weight was seen).
    assert_close_in_norm(weights(policy), weights(trainer.model))
    assert all((weights(policy)[name] - start[name]).norm() > 100 * TOLERANCE * start[name].norm() for name in start)


@pytest.mark.parametrize("mask_truncated", [True, False])
def test_kl_in_the_reward_is_trls_rloo(
    mask_truncated: bool, recording: Recording, folders: dict[bool, Path], tmp_path: Path
) -> None:
    """RLOOTrainer subtracts beta x the responses' k1 from the rewards before it compares them; `reward_kl` is that."""
    case = Case("dr_grpo", "token", 1.0, mask_truncated, 0.1, False)
    trainer = trl_trainer(case, recording, folders[False], tmp_path, rloo=True)
    theirs = trl_inputs(trainer, recording)["advantages"]
    reference = Qwen3ForCausalLM.from_pretrained(folders[False], dtype=torch.float32)
    batch = our_batch(case, recording, policy_from(folders[False]), reference)
    kl = reward_kl(batch.old_logp, batch.ref_logp, batch.loss_mask, "k1")
    assert kl.abs().max() > 0.05
    rewards = (torch.tensor(recording.rewards) - 0.1 * kl).view(PROMPTS, GROUP)
    # Leaving one out makes every deviation from the mean of n larger by n / (n - 1).
    scale = torch.tensor([[4 / 3]] * (PROMPTS - 1) + [[3 / 2]])
    ours = group_advantages(rewards, "none") * scale
    torch.testing.assert_close(ours.flatten(), theirs, rtol=TOLERANCE, atol=1e-6)
