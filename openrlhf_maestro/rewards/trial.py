"""One component on a few texts, without a model or a run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from openrlhf_maestro.config.components import ComponentSection
from openrlhf_maestro.errors import ConfigError
from openrlhf_maestro.rewards.components import Context, make_components
from openrlhf_maestro.rewards.groups import Group, Score
from openrlhf_maestro.rewards.measured import MeasuredScorer


def try_component(
    section: ComponentSection,
    responses: Sequence[str],
    *,
    prompt: str = "",
    reference: str | None = None,
    datasource: str = "default",
    metadata: Mapping[str, Any] | None = None,
) -> list[Score]:
    """The raw scores of a component that reads texts alone: `callable`, `judge`, `remote`, `format`, `rule`.

    There is no tokenizer and no chat template: a response's token ids are its UTF-8 bytes, the rendered prompt is the
    prompt, and no response is cut. Call it outside of an event loop.

    Args:
        section: the component, such as `CallableComponent(function="my_rewards.py:brief")`.
        responses: (G,) texts, as answers to one prompt.

    Returns:
        (G,) a number, -inf for a response at fault, or `Missing` with the reason.

    Raises:
        ConfigError: the component cannot be made, or reads what only a model can say.
        RunError: the component fails.
    """
    token_ids = [list(text.encode()) for text in responses]
    context = Context(max_new_tokens=max([1, *map(len, token_ids)]))
    scorer = make_components([section], context)[0].scorer
    if isinstance(scorer, MeasuredScorer):
        raise ConfigError(f"component {section.label}: `{section.kind}` is measured by a model, texts are not enough.")
    group = Group(
        prompt=prompt,
        rendered_prompt=prompt,
        queries=[prompt + text for text in responses],
        responses=responses,
        token_ids=token_ids,
        truncated=[False] * len(responses),
        reference=reference,
        datasource=datasource,
        messages=[{"role": "user", "content": prompt}],
        metadata=metadata or {},
    )

    async def scores() -> list[Score]:
        try:
            return list(await scorer.score(group))
        finally:
            await scorer.close()

    return asyncio.run(scores())
