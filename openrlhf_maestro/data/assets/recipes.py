"""Recipes: everything that decides what an asset turns out to be. Plain data, so that reading one costs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TasksRecipe:
    """Rows of the bundled families; sizes are rows per family."""

    train_per_family: int = 2560
    validation_per_family: int = 100
    test_per_family: int = 200
    seed: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Rows per family of each split."""
        return {"train": self.train_per_family, "validation": self.validation_per_family, "test": self.test_per_family}


@dataclass(frozen=True)
class PolicyRecipe:
    """A randomly initialised Qwen3 with its tokenizer: about 0.45 M parameters with tied embeddings."""

    tasks: TasksRecipe = field(default_factory=TasksRecipe)
    vocab_size: int = 480
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 4096
    initializer_range: float = 0.05
    tie_word_embeddings: bool = True
    seed: int = 0


@dataclass(frozen=True)
class PreferenceRecipe:
    """A Qwen3 sequence classifier and how it is trained on pairs (Bradley-Terry, AdamW)."""

    tasks: TasksRecipe = field(default_factory=TasksRecipe)
    vocab_size: int = 420
    hidden_size: int = 64
    intermediate_size: int = 192
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    num_key_value_heads: int = 1
    head_dim: int = 32
    max_position_embeddings: int = 4096
    train_steps: int = 120
    pairs_per_step: int = 24
    held_out_pairs: int = 500
    lr: float = 2e-3
    max_grad_norm: float = 1.0
    seed: int = 0


Recipe = TasksRecipe | PolicyRecipe | PreferenceRecipe

DEFAULT_RECIPES: dict[str, Recipe] = {
    "tasks": TasksRecipe(),
    "policy_base": PolicyRecipe(),
    "policy_base_untied": PolicyRecipe(tie_word_embeddings=False),
    "preference": PreferenceRecipe(),
}
