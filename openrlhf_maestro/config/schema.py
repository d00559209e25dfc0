"""The whole configuration of a training run; combinations that cannot work are refused before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from pydantic import model_validator

from openrlhf_maestro.config.components import ComponentSection, LengthComponent, PerplexityComponent
from openrlhf_maestro.config.conductor import ConductorSection
from openrlhf_maestro.config.fields import Section, changed, section
from openrlhf_maestro.config.logger import LoggerSection
from openrlhf_maestro.config.objective import AlgoSection, ObjectiveSection
from openrlhf_maestro.config.sections import (
    ActorSection,
    CkptSection,
    DataSection,
    DsSection,
    EvalSection,
    RefSection,
    RewardSection,
    RewardsSection,
    RolloutSection,
    RunSection,
    TrainSection,
    VllmSection,
)

BUNDLED = "bundled:"
BUNDLED_TASKS = f"{BUNDLED}tasks"


class MaestroConfig(Section):
    """Everything `maestro train` reads."""

    run: RunSection = section(RunSection)
    actor: ActorSection
    ref: RefSection = section(RefSection)
    reward: RewardSection = section(RewardSection)
    rewards: RewardsSection = section(RewardsSection)
    conductor: ConductorSection = section(ConductorSection)
    objective: ObjectiveSection = section(ObjectiveSection)
    algo: AlgoSection = section(AlgoSection)
    data: DataSection
    rollout: RolloutSection = section(RolloutSection)
    train: TrainSection = section(TrainSection)
    eval: EvalSection = section(EvalSection)
    vllm: VllmSection = section(VllmSection)
    ds: DsSection = section(DsSection)
    ckpt: CkptSection = section(CkptSection)
    logger: LoggerSection = section(LoggerSection)

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir or Path("runs") / self.run.name)

    @property
    def actor_world_size(self) -> int:
        """Ranks of the policy."""
        return self.actor.num_nodes * self.actor.num_gpus_per_node

    @property
    def ref_world_size(self) -> int:
        return self.ref.num_nodes * self.ref.num_gpus_per_node

    @property
    def actor_data_ranks(self) -> int:
        """Data-parallel ranks of the policy: what its responses are divided over."""
        return self.actor_world_size // self.ds.tensor_parallel_size

    @property
    def ref_data_ranks(self) -> int:
        return self.ref_world_size // self.ds.tensor_parallel_size

    @property
    def reward_world_size(self) -> int:
        return self.reward.num_nodes * self.reward.num_gpus_per_node

    @property
    def scoring_ranks(self) -> int:
        """The micro-batches of a step are a multiple of this, so that they divide over every model's ranks."""
        ranks = [self.actor_data_ranks]
        ranks += [self.ref_data_ranks] if self.uses_reference else []
        ranks += [self.reward_world_size] if self.component_of_kind("preference") else []
        return math.lcm(*ranks)

    @property
    def responses_per_step(self) -> int:
        """N * G."""
        return self.rollout.batch_size * self.rollout.n_samples_per_prompt

    @property
    def update_token_budget(self) -> int | None:
        """Most tokens, padding counted, of a micro-batch of an update; None where it is counted in responses."""
        return self._token_budget(self.train.max_tokens_per_gpu)

    @property
    def scoring_token_budget(self) -> int | None:
        """The same for the forwards that score responses."""
        return self._token_budget(self.rollout.max_tokens_per_gpu or self.train.max_tokens_per_gpu)

    def _token_budget(self, tokens_per_gpu: int) -> int | None:
        return tokens_per_gpu * self.ds.tensor_parallel_size if self.train.dynamic_batch_enable else None

    @property
    def anchor(self) -> ComponentSection | None:
        """The component that is no part of the reward but a trusted signal, where there is one."""
        return next((component for component in self.rewards.components if component.anchor), None)

    @property
    def component_names(self) -> list[str]:
        """Names of the K components of the reward."""
        return [component.label for component in self.rewards.components if not component.anchor]

    @property
    def uses_reference(self) -> bool:
        return self.algo.kl.init_coef > 0

    @property
    def max_prompt_tokens(self) -> int:
        """Prompt budget: what data.max_len leaves after the longest response."""
        return self.data.max_len - self.rollout.max_new_tokens

    def component_of_kind(self, kind: str) -> ComponentSection | None:
        return next((component for component in self.rewards.components if component.kind == kind), None)

    @property
    def perplexity(self) -> PerplexityComponent | None:
        """The `perplexity` component, where there is one: its parameters shape the policy's forward."""
        return next((part for part in self.rewards.components if isinstance(part, PerplexityComponent)), None)

    @model_validator(mode="after")
    def _combination_can_work(self) -> MaestroConfig:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        yield from self._tensor_parallel_problems()
        yield from self._size_problems()
        yield from self._reward_problems()
        yield from self._objective_problems()
        yield from self._placement_problems()

    def _tensor_parallel_problems(self) -> Iterator[str]:
        size = self.ds.tensor_parallel_size
        if size > 1 and self.ds.zero_stage == 3:
            yield (
                "ds.tensor_parallel_size splits every layer, and so does ds.zero_stage: 3; the two together are not "
                "supported. Set ds.zero_stage to 1, or ds.tensor_parallel_size to 1."
            )
        ranks = {"actor": self.actor_world_size} | ({"ref": self.ref_world_size} if self.uses_reference else {})
        for name, world_size in ranks.items():
            if world_size % size:
                yield (
                    f"{name}.num_nodes x {name}.num_gpus_per_node = {world_size} ranks do not divide into groups of "
                    f"ds.tensor_parallel_size = {size}. Set {name}.num_gpus_per_node to a multiple of {size}."
                )

    def _size_problems(self) -> Iterator[str]:
        if self.rollout.n_samples_per_prompt < 2:
            yield (
                "rollout.n_samples_per_prompt is 1: advantages are relative to the group, so a group of one "
                "learns nothing. Set it to 2 or more (the paper: 5)."
            )
        if self.max_prompt_tokens < 1:
            yield (
                f"data.max_len ({self.data.max_len}) leaves no room for a prompt beside rollout.max_new_tokens "
                f"({self.rollout.max_new_tokens}). Raise data.max_len."
            )
        yield from self._token_budget_problems()
        total, ranks = self.responses_per_step, self.actor_data_ranks
        # A micro-batch by tokens is as long as it need be: then only the responses divide over the ranks.
        by_tokens = self.train.dynamic_batch_enable
        responses = f"rollout.batch_size x rollout.n_samples_per_prompt = {total} responses a step"
        yield from _does_not_divide(
            responses,
            total,
            1 if by_tokens else self.rollout.micro_batch_size,
            ranks,
            "rollout",
            self.rollout.n_samples_per_prompt,
        )
        yield from _does_not_divide(
            f"train.batch_size = {self.train.batch_size} responses an update",
            self.train.batch_size,
            1 if by_tokens else self.train.micro_batch_size,
            ranks,
            "train",
        )
        if total % self.train.batch_size:
            yield (
                f"{responses} do not divide into updates of train.batch_size = {self.train.batch_size}. "
                f"Set train.batch_size to {total} for one update a step."
            )
        if self.uses_reference:
            yield from self._side_model_problems("ref", self.ref_data_ranks, self.ds.tensor_parallel_size)
        if self.component_of_kind("preference"):
            yield from self._side_model_problems("reward", self.reward_world_size)

    def _side_model_problems(self, name: str, ranks: int, gpus_a_rank: int = 1) -> Iterator[str]:
        by_tokens = self.train.dynamic_batch_enable
        parts = self.responses_per_step // (1 if by_tokens else self.rollout.micro_batch_size)
        if parts % ranks:
            yield (
                f"{parts} {'' if by_tokens else 'micro-batches of '}responses do not divide over the "
                f"{ranks * gpus_a_rank} ranks of {name}.num_nodes x {name}.num_gpus_per_node, and ranks with unequal "
                f"work wait for each other forever. Nearest that does: {_nearest_divisor(parts, ranks) * gpus_a_rank} "
                "ranks."
            )

    def _token_budget_problems(self) -> Iterator[str]:
        budgets = {
            "train.max_tokens_per_gpu": self.update_token_budget,
            "rollout.max_tokens_per_gpu": self.scoring_token_budget,
        }
        for name, budget in budgets.items():
            if budget is not None and budget < self.data.max_len:
                size = self.ds.tensor_parallel_size
                yield (
                    f"{name} x ds.tensor_parallel_size = {budget} tokens is less than one prompt + response can have "
                    f"(data.max_len = {self.data.max_len}). Set it to {math.ceil(self.data.max_len / size)} or more."
                )

    def _reward_problems(self) -> Iterator[str]:
        names = self.component_names
        if self.component_of_kind("preference") and not self.reward.model_name_or_path:
            yield (
                "the `preference` component needs a model: set reward.model_name_or_path, "
                "or take it out of rewards.components."
            )
        for component in self.rewards.components:
            if component.needs_reference and self.data.label_key is None:
                yield (
                    f"the `{component.label}` component needs reference answers: set data.label_key, "
                    "or take it out of rewards.components."
                )
        yield from self._length_problems()
        if self.component_of_kind("rule") and self.data.prompt_dataset != BUNDLED_TASKS:
            yield f"the `rule` component knows the bundled tasks only: set data.prompt_dataset to {BUNDLED_TASKS}."
        yield from self._evaluation_problems()
        kl_in_reward = self.uses_reference and self.objective.kl_in == "reward"
        yield from self.conductor.problems(names, self.anchor.label if self.anchor else None, kl_in_reward)

    def _evaluation_problems(self) -> Iterator[str]:
        if self.eval.dataset is None:
            return
        if self.eval.verdict == "rule" and self.eval.dataset != BUNDLED_TASKS:
            yield (
                f"eval.dataset: verdicts by rule exist for {BUNDLED_TASKS} only. "
                "Set eval.verdict to judge or reference, or eval.dataset to null."
            )
        if self.data.label_key is None:
            yield "eval.dataset: a verdict compares with the reference answer: set data.label_key."
        yield from self.eval.judge.problems(self.eval.verdict, "eval.judge")

    def _objective_problems(self) -> Iterator[str]:
        if self.uses_reference and self.algo.kl.estimator == "k1" and self.objective.kl_in == "loss":
            yield (
                "algo.kl.estimator: k1 has an expected gradient of 0 in the loss, so it would only add noise. "
                "Set it to k3 (the paper) or k2, or objective.kl_in to reward."
            )

    def _length_problems(self) -> Iterator[str]:
        for component in self.rewards.components:
            if isinstance(component, LengthComponent):
                yield from component.limit_problems(self.rollout.max_new_tokens)

    def _placement_problems(self) -> Iterator[str]:
        engine_gpus = self.vllm.num_engines * self.vllm.tensor_parallel_size
        if self.train.colocate_all and engine_gpus != self.actor_world_size:
            yield (
                f"train.colocate_all needs as many GPUs for the engines (vllm.num_engines x vllm.tensor_parallel_size "
                f"= {engine_gpus}) as for the policy ({self.actor_world_size})."
            )
        if (
            self.train.colocate_all
            and self.component_of_kind("preference")
            and self.reward_world_size > self.actor_world_size
        ):
            yield (
                f"train.colocate_all has a place for {self.actor_world_size} ranks of the preference model, not for "
                f"{self.reward_world_size}: lower reward.num_nodes x reward.num_gpus_per_node."
            )
        colocated = self.train.colocate_all or self.train.colocate_actor_ref
        if colocated and self.uses_reference and self.ref_world_size != self.actor_world_size:
            yield (
                f"a colocated reference needs as many ranks as the policy: set ref.num_nodes x ref.num_gpus_per_node "
                f"({self.ref_world_size}) to {self.actor_world_size}."
            )
        for name, enabled in (("vllm.enable_sleep", self.vllm.enable_sleep), ("ds.enable_sleep", self.ds.enable_sleep)):
            if enabled and not self.train.colocate_all:
                yield f"{name} frees memory for models on the same GPU: it needs train.colocate_all."
        if self.ds.param_dtype == "fp32" and self.ds.attn_implementation.startswith("flash_attention"):
            yield "ds.attn_implementation: flash attention has no fp32; use sdpa, or ds.param_dtype: bf16."

    def notes(self) -> list[str]:
        """Options that were set but have no effect in this combination, one sentence each."""
        found = list(self.conductor.notes(self.anchor.label if self.anchor else None))
        if not self.uses_reference:
            unused = changed(self.objective) & {"ref_sync_steps", "ref_mixup_alpha", "kl_in"}
            options = sorted(f"objective.{field}" for field in unused)
            options += [f"algo.kl.{field}" for field in sorted(changed(self.algo.kl) & {"estimator"})]
            for name in options:
                found.append(f"{name} has no effect with algo.kl.init_coef: 0 (there is no reference).")
        if self.algo.advantage.is_correction_level == "off":
            for field in sorted(changed(self.algo.advantage)):
                found.append(f"algo.advantage.{field} has no effect with algo.advantage.is_correction_level: off.")
        by_tokens = self.train.dynamic_batch_enable
        unused_size = "micro_batch_size" if by_tokens else "max_tokens_per_gpu"
        for name, part in (("rollout", self.rollout), ("train", self.train)):
            if unused_size in changed(part):
                state = "true" if by_tokens else "false"
                found.append(f"{name}.{unused_size} has no effect with train.dynamic_batch_enable: {state}.")
        if not self.algo.dynamic_filtering_enable:
            for field in sorted(changed(self.algo) & {"dynamic_filtering_min_spread", "dynamic_filtering_max_batches"}):
                found.append(f"algo.{field} has no effect without algo.dynamic_filtering_enable.")
        if "entropy_mask" in changed(self.objective) and self.objective.top_entropy_quantile == 1.0:
            found.append("objective.entropy_mask has no effect with objective.top_entropy_quantile: 1.0.")
        found += self._thinking_notes()
        found += self.eval.notes()
        if self.logger.wandb.mode == "off":
            for field in sorted(changed(self.logger.wandb)):
                found.append(f"logger.wandb.{field} has no effect with logger.wandb.mode: off.")
        if changed(self.ckpt) & {"best_metric_key"} and not (self.eval.dataset and self.eval.steps > 0):
            found.append("ckpt.best_metric_key has no effect without eval.dataset and eval.steps.")
        if self.reward.model_name_or_path and not self.component_of_kind("preference"):
            found.append("reward.model_name_or_path has no effect without a `preference` component.")
        return found

    def _thinking_notes(self) -> Iterator[str]:
        thinking, data = self.data.enable_thinking, self.data
        needing = [part.label for part in self.rewards.components if part.kind in ("format", "perplexity")]
        lost = f"and {', '.join(f'`{name}`' for name in needing)} cannot be earned."
        if thinking is not None and not data.apply_chat_template:
            yield "data.enable_thinking has no effect with data.apply_chat_template: false."
        elif thinking is False and needing:
            yield (
                "data.enable_thinking: false puts an empty <think></think> into the prompt with Qwen3's chat template. "
                f"A response that follows it has no reasoning of its own, {lost}"
            )
        if data.input_template == "direct" and needing:
            yield f"data.input_template: direct asks for no reasoning, {lost}"


def _does_not_divide(what: str, total: int, micro: int, ranks: int, name: str, group: int = 1) -> Iterator[str]:
    """Ranks with unequal numbers of micro-batches wait for each other forever under ZeRO-3."""
    step = micro * ranks
    if total % step == 0:
        return
    # Whole groups only: the nearest totals are multiples of both the step and the group.
    multiple = step
    while multiple % group:
        multiple += step
    below, above = total // multiple * multiple, (total // multiple + 1) * multiple
    sizes = " or ".join(str(size // group) for size in (below, above) if size)
    micro_batches = f" x {name}.micro_batch_size {micro}" if micro > 1 else ""
    yield f"{what} do not divide over {ranks} ranks{micro_batches}. Nearest {name}.batch_size that does: {sizes}."


def _nearest_divisor(total: int, wanted: int) -> int:
    return min((n for n in range(1, total + 1) if total % n == 0), key=lambda n: (abs(n - wanted), n))
