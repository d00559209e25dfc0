"""A step's groups: which prompts are drawn, which groups dynamic filtering keeps. Sampler and maker are stand-ins."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.data.prompts import Prompt, PromptLoader
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.rewards import Group
from openrlhf_maestro.rollout.responses import Response
from openrlhf_maestro.trainer.batch import Rollout, Scored, TokenValues, concatenate, first_equals
from openrlhf_maestro.trainer.collector import Collector
from openrlhf_maestro.trainer.metrics import Stopwatch

N, G = 2, 2


def prompt(row: int) -> Prompt:
    messages = ({"role": "user", "content": f"prompt {row}"},)
    return Prompt(f"id{row}", f"prompt {row}", messages, "reference", "default", "rows.jsonl", row, token_ids=[row, 9])


def scored(rollouts: list[Rollout], spread: list[float], width: int) -> Scored:
    """Values by which a row can be told: the prompt's number, everywhere."""
    numbers = torch.tensor([float(rollout.prompt.row) for rollout in rollouts])
    wide = numbers[:, None].expand(-1, width).contiguous()
    return Scored(
        rollouts=rollouts,
        component_names=["one"],
        anchor=None,
        actions=None,
        hidden=None,
        kl=None,
        kl_penalty=None,
        spread=torch.tensor(spread).repeat_interleave(G),
        tokens=TokenValues(wide, wide, wide, wide, None),
        missing_reasons={},
        reward_s={"one": 0.5},
        reward_wait_s=0.25,
        **{name: numbers[:, None] for name in ("raw", "normalised", "weights", "probs")},
        **{
            name: numbers
            for name in ("scalar", "advantages", "constant", "truncated", "response_tokens", "log_prob_mean")
        },
        **{name: numbers for name in ("policy_loss_tokens", "logprob_diff_mean", "logprob_diff_max", "mean_entropy")},
    )


class FakeMaker:
    """Scores each prompt's group with the spread it is given; remembers what was submitted."""

    def __init__(self, spreads: dict[int, float]) -> None:
        self.spreads = spreads
        self.submitted: dict[int, Group] = {}
        self.skipped: list[list[str]] = []
        self.scoring = SimpleNamespace(submit=self._submit)
        self.anchored: list[set[int]] = []
        self.draws: list[float] = []

    def _submit(self, index: int, group: Group, skipped: list[str]) -> None:
        self.submitted[index] = group
        self.skipped.append(skipped)

    def make(self, rollouts: list[Rollout], anchored: set[int], generator: torch.Generator) -> Scored:
        self.anchored.append(anchored)
        self.draws.append(float(torch.rand((), generator=generator)))
        rows = [rollout.prompt.row for rollout in rollouts[::G]]
        return scored(rollouts, [self.spreads.get(row, 1.0) for row in rows], width=rows[0])

    def join(self, parts: list[Scored], groups: int) -> Scored:
        return concatenate(parts, G).select(torch.arange(groups * G))


class FakeSampler:
    """The last prompt's responses come first."""

    def stream(self, prompts: list[Prompt], **settings: Any) -> Any:
        assert settings["n_samples"] == G and settings["purpose"] == "train"
        for index in reversed(range(len(prompts))):
            tokens = [prompts[index].row, 5]
            yield index, [Response(tokens, np.zeros(2, dtype=np.float32), truncated=False) for _ in range(G)]


class FakeTokenizer:
    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def batch_decode(self, rows: list[list[int]]) -> list[str]:
        return [self.decode(row) for row in rows]


def collector(maker: FakeMaker, prompts: int = 12, drawn: int = 0, **algo: Any) -> Collector:
    config = MaestroConfig.model_validate(
        {
            "actor": {"model_name_or_path": "policy"},
            "reward": {"model_name_or_path": "preference"},
            "data": {"prompt_dataset": "rows.jsonl"},
            "rollout": {"batch_size": N, "n_samples_per_prompt": G},
            "train": {"batch_size": N * G},
            "algo": algo,
        }
    )
    loader = PromptLoader([prompt(row) for row in range(1, prompts + 1)], N, 0, 1)
    return Collector(config, loader, FakeSampler(), maker, FakeTokenizer(), drawn)  # type: ignore[arg-type]


def collect(of: Collector, step: int) -> Scored | None:
    return of.collect(step, Stopwatch(), SimpleNamespace(phase=lambda _: None))  # type: ignore[arg-type]


def rows(found: Scored | None) -> list[int]:
    assert found is not None
    return [rollout.prompt.row for rollout in found.rollouts]


def order(of: Collector, batches: int) -> list[int]:
    return [prompt.row for index in range(batches) for prompt in of.loader.batch(index)]


def test_a_step_is_one_batch_of_prompts_in_their_order_whatever_arrives_first() -> None:
    maker = FakeMaker({})
    of = collector(maker)
    first, second = rows(collect(of, 1)), rows(collect(of, 2))
    assert [first[0], first[2], second[0], second[2]] == order(of, 2)
    assert first[0] == first[1]
    assert of.drawn == 2


def test_text_scorers_see_the_group_as_it_was_sampled() -> None:
    maker = FakeMaker({})
    of = collector(maker)
    collect(of, 1)
    row = order(of, 1)[0]
    seen = maker.submitted[0]
    assert (seen.prompt, seen.reference, seen.datasource) == (f"prompt {row}", "reference", "default")
    assert seen.rendered_prompt == f"{row} 9"
    assert list(seen.responses) == [f"{row}"] * G, "without the stop token"
    assert list(seen.token_ids) == [[row, 5]] * G
    assert list(seen.queries) == [f"{row} 9 {row} 5"] * G


def test_filtering_fills_the_step_with_groups_that_have_a_spread() -> None:
    of = collector(FakeMaker({}), dynamic_filtering_enable=True)
    there = order(of, 3)
    of.maker.spreads = {there[0]: 0.0, there[2]: 0.0}  # type: ignore[attr-defined]
    found = collect(of, 1)
    assert rows(found) == [there[1], there[1], there[3], there[3]]
    assert found is not None
    assert [rollout.group for rollout in found.rollouts] == [0, 0, 1, 1]
    assert of.drawn == 2
    assert found.filtered_rate == 0.5, "two of four groups"
    assert (found.reward_s, found.reward_wait_s) == ({"one": 1.0}, 0.5)
    # Every value went with its response, whatever the widths of the batches were.
    numbers = torch.tensor([float(row) for row in rows(found)])
    for field in fields(Scored):
        value = getattr(found, field.name)
        if isinstance(value, torch.Tensor) and field.name != "spread":
            assert value.flatten().tolist() == numbers.tolist(), field.name
    kept = found.tokens.mask
    assert kept.shape == (4, max(there[0], there[2]))
    assert kept[:, 0].tolist() == numbers.tolist()
    assert set(kept[0].tolist()) <= {numbers[0].item(), 0.0}


def test_a_spread_at_the_limit_does_not_count() -> None:
    of = collector(FakeMaker({}), dynamic_filtering_enable=True, dynamic_filtering_min_spread=0.25)
    there = order(of, 2)
    of.maker.spreads = {there[0]: 0.25, there[1]: 0.26}  # type: ignore[attr-defined]
    assert rows(collect(of, 1))[::G] == [there[1], there[2]], "and what is over is left out"


def test_filtering_stops_the_run_when_nothing_is_left_to_learn_from() -> None:
    nothing = dict.fromkeys(range(1, 13), 0.0)
    of = collector(FakeMaker(nothing), dynamic_filtering_enable=True, dynamic_filtering_max_batches=3)
    with pytest.raises(RunError, match=r"step 1: 3 batches of prompts gave 0 groups.*2 are needed"):
        collect(of, 1)


def test_no_step_is_made_of_too_few_groups_at_the_end_of_the_prompts() -> None:
    of = collector(FakeMaker({}), prompts=4, dynamic_filtering_enable=True)
    of.maker.spreads = {order(of, 2)[0]: 0.0}  # type: ignore[attr-defined]
    assert rows(collect(of, 1))
    assert collect(of, 2) is None
    assert of.drawn == 2, "what was drawn for nothing is drawn again after a resume"


def test_a_resumed_run_draws_what_comes_next_with_the_same_draws_of_the_conductor() -> None:
    unbroken, resumed = FakeMaker({}), FakeMaker({})
    of = collector(unbroken)
    collect(of, 1)
    expected = rows(collect(of, 2))
    assert rows(collect(collector(resumed, drawn=1), 2)) == expected
    assert resumed.draws == unbroken.draws[1:]
    assert unbroken.draws[0] != unbroken.draws[1]


def test_replacing_a_field_keeps_the_others() -> None:
    record = scored([Rollout(prompt(3), Response([1], np.zeros(1, dtype=np.float32), False), "t", 0)] * 2, [1.0], 4)
    assert replace(record, filtered_rate=0.5).select(torch.tensor([1])).filtered_rate == 0.5


def test_equal_responses_of_a_group_share_the_first_ones_score() -> None:
    def rollout(group: int, *token_ids: int) -> Rollout:
        return Rollout(prompt(group), Response(list(token_ids), np.zeros(2, dtype=np.float32), False), "t", group)

    # The same tokens to another prompt are another response.
    rows = [rollout(0, 5, 6), rollout(0, 5), rollout(0, 5, 6), rollout(1, 5, 6), rollout(1, 5), rollout(1, 5)]
    assert first_equals(rows).tolist() == [0, 1, 0, 3, 4, 4]


@pytest.mark.parametrize(("share", "expected"), [(0.5, 1), (0.07, 1), (1.0, 2)])
def test_the_anchor_scores_a_share_of_the_groups_and_the_others_are_skipped(share: float, expected: int) -> None:
    maker = FakeMaker({})
    of = anchored_collector(maker, share)
    collect(of, 1)
    assert len(maker.anchored[0]) == expected
    assert sorted(map(tuple, maker.skipped)) == sorted([()] * expected + [("match",)] * (N - expected))


def test_the_anchor_is_asked_about_groups_that_it_knows_alone() -> None:
    maker = FakeMaker({})
    of = anchored_collector(maker, 1.0, column="label")
    collect(of, 1)
    known = {index for index, row in enumerate(order(of, 1)) if row % 2}
    assert maker.anchored[0] == known, "odd rows have a label"


def anchored_collector(maker: FakeMaker, share: float, column: str | None = None) -> Collector:
    of = collector(maker)
    sections = [{"kind": "format"}, {"kind": "length"}, {"kind": "match", "anchor": True, "column": column}]
    config = of.config.model_dump(exclude_unset=True) | {
        "rewards": {"components": sections},
        "conductor": {"credit": "anchor", "anchor_share": share},
    }
    labelled = [replace(prompt(row), metadata={"label": "x"} if row % 2 else {}) for row in range(1, 13)]
    return replace(of, config=MaestroConfig.model_validate(config), loader=PromptLoader(labelled, N, 0, 1))
