"""A response as it comes from vLLM, and the seed it was sampled with."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from openrlhf_maestro.rollout.responses import Response, response_seed


def completion(finish_reason: str, token_ids: tuple[int, ...] = (5, 6, 2)) -> SimpleNamespace:
    """vLLM's CompletionOutput, with the log-probs of the sampled token and of a likelier one at each position."""
    log_probs = [
        {99: SimpleNamespace(logprob=-0.1), token: SimpleNamespace(logprob=-float(token))} for token in token_ids
    ]
    return SimpleNamespace(token_ids=token_ids, logprobs=log_probs, finish_reason=finish_reason)


def test_log_probs_are_those_of_the_sampled_tokens() -> None:
    response = Response.from_vllm(completion("stop"))
    assert response.token_ids == [5, 6, 2]
    assert response.log_probs.dtype == np.float32
    assert response.log_probs.tolist() == [-5.0, -6.0, -2.0]


def test_the_stop_token_is_not_text() -> None:
    whole, cut = Response.from_vllm(completion("stop")), Response.from_vllm(completion("length"))
    assert (whole.truncated, whole.text_token_ids) == (False, [5, 6])
    assert (cut.truncated, cut.text_token_ids) == (True, [5, 6, 2])


def test_an_empty_text() -> None:
    assert Response.from_vllm(completion("stop", (2,))).text_token_ids == []


def test_no_two_responses_share_a_seed() -> None:
    keys = itertools.product((0, 1, 42), ("train", "eval"), (0, 1, 11), ("a#1", "a#11", "1#a"), (0, 1, 2, 11))
    seeds = [response_seed(*key) for key in keys]
    assert len(set(seeds)) == len(seeds)


def test_digits_do_not_run_into_each_other() -> None:
    assert response_seed(1, "train", 11, "a", 1) != response_seed(11, "train", 1, "a", 1)
    assert response_seed(1, "train", 1, "a", 12) != response_seed(1, "train", 1, "a1", 2)


def test_a_seed_fits_vllm_s_signed_64_bits_and_never_changes() -> None:
    seed = response_seed(42, "train", 1, "row#1", 0)
    assert 0 <= seed < 2**63
    assert seed == response_seed(42, "train", 1, "row#1", 0)
    assert isinstance(seed, int)


@pytest.mark.parametrize("bit", [0, 31, 62])
def test_every_bit_is_used(bit: int) -> None:
    ones = sum(response_seed(0, "train", step, "row#1", 0) >> bit & 1 for step in range(400))
    assert 140 < ones < 260  # 200 expected, six standard deviations
