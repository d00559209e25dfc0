"""The order of prompts over the steps."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_maestro.data import DataError, Prompt, PromptLoader


def prompts(*sizes: int) -> list[Prompt]:
    """Rows 1, 2, ... of one source after the other, their numbers going on."""
    indices = [index for index, size in enumerate(sizes) for _ in range(size)]
    return [
        Prompt(str(n), str(n), (), None, "default", "here", row=n + 1, source_index=index)
        for n, index in enumerate(indices)
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


# Mixtures.


def shares(*texts: str) -> tuple[Fraction, ...]:
    return tuple(map(Fraction, texts))


@pytest.mark.parametrize(
    ("sizes", "probs", "quotas"),
    [
        ((6, 4), ("1/2", "1/2"), (4, 4)),  # the second has 4, so a pass has 8
        ((7, 3), ("0.7", "0.3"), (7, 3)),  # these shares already: nothing is left out
        ((20, 3), ("0.7", "0.3"), (7, 3)),
        ((20, 4), ("0.7", "0.3"), (9, 4)),  # 4 / 0.3 = 13.33, and 0.7 of it is 9.33
        ((5, 100, 50), ("0.1", "0.8", "0.1"), (5, 40, 5)),
    ],
)
def test_a_pass_is_the_largest_with_the_shares_in_which_no_prompt_comes_twice(
    sizes: tuple[int, ...], probs: tuple[str, ...], quotas: tuple[int, ...]
) -> None:
    loader = PromptLoader(prompts(*sizes), 1, seed=3, num_episodes=2, probs=shares(*probs))
    assert len(loader) == 2 * sum(quotas)
    for episode in range(2):
        batches = [loader.batch(step) for step in range(episode * sum(quotas), (episode + 1) * sum(quotas))]
        seen = [prompt for (prompt,) in batches]
        assert len({prompt.row for prompt in seen}) == len(seen)
        assert Counter(prompt.source_index for prompt in seen) == dict(enumerate(quotas))


def test_the_order_of_a_mixture_is_the_same_on_every_machine_and_from_any_step_on() -> None:
    def loader() -> PromptLoader:
        return PromptLoader(prompts(6, 4), 4, seed=42, num_episodes=2, probs=shares("1/2", "1/2"))

    expected = [[3, 5, 10, 1], [7, 8, 4, 9], [8, 2, 4, 7], [10, 9, 6, 3]]
    assert [rows(loader(), step) for step in (3, 1, 0, 2)] == [expected[step] for step in (3, 1, 0, 2)]


def test_sources_are_mixed_within_a_pass() -> None:
    loader = PromptLoader(prompts(500, 5000), 100, seed=0, num_episodes=1, probs=shares("1/2", "1/2"))
    counts = [sum(prompt.source_index for prompt in loader.batch(step)) for step in range(len(loader))]
    # Hypergeometric, 50 expected, standard deviation 4.7: five of them.
    assert sum(counts) == 500 and all(abs(count - 50) < 24 for count in counts)


def test_every_prompt_of_a_source_too_large_for_its_share_has_the_same_chance() -> None:
    seen: Counter[int] = Counter()
    loader = PromptLoader(prompts(2, 6), 4, seed=1, num_episodes=3000, probs=shares("1/2", "1/2"))
    for step in range(len(loader)):
        seen.update(rows(loader, step))
    assert seen[1] == seen[2] == 3000
    # Two of six in each of 3000 passes: 1000 expected, standard deviation 25.8, five of them.
    assert all(abs(seen[row] - 1000) < 130 for row in range(3, 9))


def test_without_shares_the_sources_of_a_mixture_are_one_set_of_prompts() -> None:
    assert rows(PromptLoader(prompts(4, 2), 6, 42, 1), 0) == rows(PromptLoader(prompts(6), 6, 42, 1), 0)


@pytest.mark.parametrize(("sizes", "probs"), [((5, 0), ("1/2", "1/2")), ((10, 1000), ("0.999", "0.001"))])
def test_a_mixture_in_which_a_source_is_absent_is_refused(sizes: tuple[int, ...], probs: tuple[str, ...]) -> None:
    message = f"have {sizes[0]}, {sizes[1]} usable prompts, and by data.prompt_probs a pass would have .* 0 of them"
    with pytest.raises(DataError, match=message):
        PromptLoader(prompts(*sizes), 1, seed=0, num_episodes=1, probs=shares(*probs))


def test_a_pass_of_a_mixture_that_fills_no_step_is_refused_with_its_own_size() -> None:
    with pytest.raises(DataError, match=r"8 prompts do not fill one step of rollout.batch_size 9"):
        PromptLoader(prompts(6, 4), 9, seed=0, num_episodes=1, probs=shares("1/2", "1/2"))


def test_keys_tell_prompts_of_the_same_id_and_row_apart() -> None:
    one, other = Prompt("7", "", (), None, "a", "a/rows.jsonl", 1), Prompt("7", "", (), None, "b", "b/rows.jsonl", 1)
    assert one.key == "7#1" and replace(other, source_index=1).key != one.key
