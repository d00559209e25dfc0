"""The preference model as a Ray actor under DeepSpeed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.rewards.preference import ConversationReader, Messages
from openrlhf_maestro.upstream.actors import log_to_file, plain_class
from openrlhf_maestro.upstream.device import worker_device
from openrlhf_maestro.upstream.patches import prepare_process

prepare_process()

from openrlhf.trainer.ray.launcher import RewardModelActor  # noqa: E402
from openrlhf.utils import get_strategy  # noqa: E402

from openrlhf_maestro.upstream.options import scoring_arguments  # noqa: E402


@dataclass
class PreferenceScores:
    """What the preference model says of a micro-batch of responses."""

    scores: Tensor  # (B,) fp32 scalar logits; -inf over reward.max_len, NaN where the model gave no number
    seconds: float


class PreferenceWorker(plain_class(RewardModelActor)):  # type: ignore[misc]
    """One rank of the preference model."""

    def __init__(self, world_size: int, rank: int, master_addr: str | None, master_port: int | None) -> None:
        log_to_file(f"preference_rank{rank}")
        super().__init__(world_size, rank, master_addr, master_port)

    def init_model_from_pretrained(self, config: MaestroConfig) -> None:
        path = config.reward.model_name_or_path
        assert path is not None
        self.reader = ConversationReader(path, config.reward.max_len)
        ranks = config.reward_world_size
        arguments = scoring_arguments(config, worker_device(), ranks=ranks, tensor_parallel_size=1)
        if config.reward.zero_stage is not None:
            arguments.ds.zero_stage = config.reward.zero_stage
        super().init_model_from_pretrained(get_strategy(arguments), path)

    def score(self, messages: Sequence[Messages], responses: Sequence[str]) -> PreferenceScores:
        """Scores of (prompt, response), no system prompt added."""
        start_s = time.perf_counter()
        batch = self.reader.read(messages, responses)
        scores = batch.scores(self.forward(batch.token_ids, batch.attention_mask))
        return PreferenceScores(scores, time.perf_counter() - start_s)
