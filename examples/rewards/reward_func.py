"""A reward in OpenRLHF's form, as for its `--reward.remote_url reward_func.py`: is the number in the answer right?

rewards:
  components:
    - {kind: callable, name: number, function: examples/rewards/reward_func.py:reward_func, normalisation: none}
"""

import re

import torch

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def reward_func(queries, prompts, labels, **kwargs):
    """1 where the last number of the response is the label.

    Args:
        queries: rendered prompt, response and stop token, each a text.
        prompts: the rendered prompts.
        labels: the reference answers, "" where there is none.
    """
    rewards = torch.zeros(len(queries))
    for index, (query, prompt, label) in enumerate(zip(queries, prompts, labels, strict=True)):
        numbers = NUMBER.findall(query.removeprefix(prompt))
        rewards[index] = float(bool(numbers) and numbers[-1] == label.strip())
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"accuracy": rewards.mean()}}
