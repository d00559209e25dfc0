"""The order of prompts over the steps."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_maestro.data import DataError, Prompt, PromptLoader


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(id=str(n), text=str(n), messages=(), reference=None, datasource="default", source="here", row=n + 1)
        for n in range(count)
    ]


def rows(loader: PromptLoader, step: int) -> list[int]:
    return [prompt.row for prompt in loader.batch(step)]


PROPERTY = settings(deadline=None, derandomize=True, database=None)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.integers(1, 4))
@PROPERTY
def test_every_pass_is_whole_batches_of_distinct_prompts(size: int, batch: int, seed: int, episodes: int) -> None:
    if batch > size:
        with pytest.raises(DataError):
            PromptLoader(prompts(size), batch, seed, episodes)
        return
    loader = PromptLoader(prompts(size), batch, seed, episodes)
    assert len(loader) == (size // batch) * episodes
    for episode in range(episodes):
        steps = range(episode * (size // batch), (episode + 1) * (size // batch))
        seen = Counter(row for step in steps for row in rows(loader, step))
        assert set(seen.values()) == {1} and seen.total() == size // batch * batch
        assert set(seen) <= set(range(1, size + 1))


def test_a_step_depends_on_nothing_but_its_number() -> None:
    unbroken = PromptLoader(prompts(20), 3, seed=5, num_episodes=4)
    expected = [rows(unbroken, step) for step in range(len(unbroken))]
    for step in (len(unbroken) - 1, 7, 0, 13, 7):
        assert rows(PromptLoader(prompts(20), 3, seed=5, num_episodes=4), step) == expected[step]
        assert rows(unbroken, step) == expected[step]


def test_the_order_is_the_same_on_every_machine() -> None:
    loader = PromptLoader(prompts(6), 3, seed=42, num_episodes=2)
    assert [rows(loader, step) for step in range(4)] == [[4, 3, 6], [5, 2, 1], [5, 1, 2], [3, 4, 6]]


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    loader = PromptLoader(prompts(50), 50, seed=1, num_episodes=2)
    other = PromptLoader(prompts(50), 50, seed=2, num_episodes=2)
    orders = [rows(loader, 0), rows(loader, 1), rows(other, 0), rows(other, 1), list(range(1, 51))]
    assert len({tuple(order) for order in orders}) == 5


def test_each_place_of_a_batch_is_equally_likely() -> None:
    first = Counter(rows(PromptLoader(prompts(4), 1, seed, 1), 0)[0] for seed in range(2000))
    # 500 expected of each, standard deviation 19.4: five of them.
    assert all(abs(first[row] - 500) < 97 for row in range(1, 5))


def test_the_rows_left_out_differ_from_pass_to_pass() -> None:
    loader = PromptLoader(prompts(10), 9, seed=0, num_episodes=30)
    left_out = {next(iter(set(range(1, 11)) - set(rows(loader, step)))) for step in range(30)}
    assert len(left_out) > 5


@pytest.mark.parametrize("step", [-1, 6, 100])
def test_a_step_there_is_not(step: int) -> None:
    with pytest.raises(IndexError, match=f"step {step}"):
        PromptLoader(prompts(9), 3, seed=0, num_episodes=2).batch(step)


def test_too_few_prompts_name_the_sizes() -> None:
    with pytest.raises(DataError, match=r"17 prompts do not fill one step of rollout.batch_size 18"):
        PromptLoader(prompts(17), 18, seed=0, num_episodes=2)
