"""What a vLLM engine returns, as plain data; and how every response gets its own seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    token_ids: list[int]  # with the stop token, where it stopped by itself
    log_probs: np.ndarray  # (tokens,) fp32, under the distribution that was sampled from; empty where not asked for
    truncated: bool  # cut at the length limit

    @classmethod
    def from_vllm(cls, output: Any) -> Response:
        """From vLLM's `CompletionOutput`."""
        token_ids = list(output.token_ids)
        log_probs = [at[token].logprob for token, at in zip(token_ids, output.logprobs or (), strict=False)]
        return cls(token_ids, np.asarray(log_probs, dtype=np.float32), output.finish_reason == "length")

    @property
    def text_token_ids(self) -> list[int]:
        """The tokens without the stop token."""
        return self.token_ids if self.truncated else self.token_ids[:-1]


def response_seed(run_seed: int, purpose: str, step: int, prompt_id: str, sample: int) -> int:
    """A 63-bit sampling seed that no other response of the run shares.

    It depends on its arguments alone: the same response comes back after a resume, on another engine, in another batch.
    """
    key = f"{run_seed}|{purpose}|{step}|{prompt_id}|{sample}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
