"""What OpenRLHF sends to a reward server, taken apart: a query is prompt, response and stop token in one text."""

from __future__ import annotations

import json
from typing import Any

from openrlhf_maestro.rewards.groups import Group


class QueryReader:
    """Reads queries with the policy's own tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)

    def __call__(self, query: str, prompt: str, label: Any) -> Group:
        """The group of one response.

        Special tokens at the end are taken off the response; where there is none it was cut. Token ids are those of the
        text, which may differ in number from the sampled ones. OpenRLHF sends the prompt as the policy reads it, chat
        template included, and that is all there is: `Group.prompt` is the same.

        Raises:
            ValueError: the query does not begin with the prompt.
        """
        if not query.startswith(prompt):
            raise ValueError("a query does not begin with its prompt (a prompt that OpenRLHF has cut, or another text)")
        text = query[len(prompt) :]
        token_ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        end = len(token_ids)
        while end and token_ids[end - 1] in self._special:
            end -= 1
            text = text.removesuffix(self._tokenizer.convert_ids_to_tokens(token_ids[end]))
        return Group(
            prompt=prompt,
            rendered_prompt=prompt,
            queries=[query],
            responses=[text],
            token_ids=[token_ids[: end + 1]],
            truncated=[end == len(token_ids)],
            reference=_reference(label),
            messages=[{"role": "user", "content": prompt}],
        )


def _reference(label: Any) -> str | None:
    if label is None or label == "":
        return None
    return label if isinstance(label, str) else json.dumps(label)
