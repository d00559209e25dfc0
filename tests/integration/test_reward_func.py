"""OpenRLHF's `reward_func` files: what a function gets, and what its result means, from OpenRLHF's own executor."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openrlhf_maestro.config.components import CallableComponent
from openrlhf_maestro.errors import ConfigError
from openrlhf_maestro.rewards import Group
from openrlhf_maestro.rewards.callables import CallableScorer

pytestmark = pytest.mark.integration

PROMPT, REFERENCE, STOP = "<user>2 + 2?<bot>", "4", "$"
RESPONSES = ["4", "five", ""]
# A number that differs wherever an argument does; in the forms that the executor passes on.
FINGERPRINT = """
import torch, zlib

def fingerprint(queries, prompts, labels):
    given = repr((type(queries), queries, type(prompts), prompts, type(labels), labels))
    return torch.tensor([zlib.crc32(given.encode()) % 10007], dtype=torch.float)
"""
FORMS = {
    "tensors": "def reward_func(queries, prompts, labels):\n    r = fingerprint(queries, prompts, labels)\n"
    "    return {'rewards': r, 'scores': 1 - r, 'extra_logs': {'mean': r.mean()}}",
    "more arguments": "def reward_func(queries, prompts, labels, **kwargs):\n"
    "    return {'rewards': fingerprint(queries, prompts, labels) + 7 * len(kwargs)}",
    "a number": "def reward_func(queries, prompts, labels):\n"
    "    return {'rewards': fingerprint(queries, prompts, labels).item()}",
}


class Letters:
    """A tokenizer whose tokens are letters."""

    def __call__(self, text: str, **_options: Any) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[ord(letter) for letter in text]])}

    def decode(self, token_ids: list[int], **_options: Any) -> str:
        return "".join(map(chr, token_ids))


class Engine:
    """Answers with one text; the stop token ends it."""

    def __init__(self, response: str) -> None:
        self.token_ids = [ord(letter) for letter in response + STOP]

    async def generate(self, _prompt: list[int], _params: Any, **_options: Any) -> Any:
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=self.token_ids, finish_reason="stop", logprobs=None)])


def openrlhf_reward(file: Path, response: str, label: str) -> Any:
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    sampling = SimpleNamespace(max_tokens=16, logprobs=None)
    executor = SingleTurnAgentExecutor(str(file))
    return asyncio.run(executor.execute(PROMPT, label, sampling, 64, Letters(), Engine(response)))["reward"]


@pytest.mark.parametrize("reference", [REFERENCE, None])
@pytest.mark.parametrize("form", FORMS)
def test_a_reward_func_gives_what_it_gives_in_openrlhf(form: str, reference: str | None, tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text(FINGERPRINT + FORMS[form])
    group = Group(
        prompt="2 + 2?",
        rendered_prompt=PROMPT,
        queries=[PROMPT + response + STOP for response in RESPONSES],
        responses=RESPONSES,
        token_ids=[[ord(letter) for letter in response + STOP] for response in RESPONSES],
        truncated=[False] * len(RESPONSES),
        reference=reference,
    )
    ours = asyncio.run(CallableScorer(CallableComponent(function=f"{file}:reward_func")).score(group))
    # OpenRLHF's data set has an empty label where there is none.
    theirs = [openrlhf_reward(file, response, reference or "") for response in RESPONSES]
    assert ours == [torch.tensor([reward]).item() for reward in theirs]  # as its sample generator reads it
    assert len(set(ours)) == len(RESPONSES)


def test_openrlhf_cannot_call_a_remote_function_and_we_say_so(tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text(
        "import ray\n@ray.remote\ndef reward_func(queries, prompts, labels):\n    return {'rewards': 1.0}\n"
    )
    assert openrlhf_reward(file, "4", REFERENCE) is None
    with pytest.raises(ConfigError, match="is a Ray remote function"):
        CallableScorer(CallableComponent(function=f"{file}:reward_func"))
