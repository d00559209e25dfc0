"""What is printed while training: names and replies as they are, whatever signs are in them."""

from __future__ import annotations

import pytest

from openrlhf_maestro.evaluation.results import Result
from openrlhf_maestro.evaluation.tables import Summary, summarise
from openrlhf_maestro.trainer.console import CONSOLE, held_out_table


def summary(datasource: str, right: int, of: int) -> Summary:
    return summarise([Result(str(i), str(i), 0, datasource, None, i < right, None) for i in range(of)])


def printed(thing: object) -> str:
    with CONSOLE.capture() as captured:
        CONSOLE.print(thing)
    return captured.get()


@pytest.mark.parametrize("name", ["math[hard]", "[/x]", "[bold]x"])
def test_brackets_are_no_markup(name: str) -> None:
    assert f"a reply: {name}" in printed(f"a reply: {name}")
    assert name in printed(held_out_table(summary(name, 1, 2), summary(name, 2, 2)))


def test_the_table_says_k_of_n_with_wilsons_interval() -> None:
    """289/500: 53.4 to 62.1 % by the formula; with z = 1.96 that is (k + z^2/2)/(n + z^2) -+ ..."""
    table = printed(held_out_table(summary("d", 289, 500), summary("d", 500, 500)))
    assert "289/500 = 57.8% (53-62)" in table
    assert "500/500 = 100.0% (99-100)" in table
    assert "95 % interval" in table


def test_scores_stand_where_nothing_is_right_or_wrong() -> None:
    results = [Result(str(i), str(i), 0, "d", None, None, score) for i, score in enumerate((0.25, 0.75))]
    table = printed(held_out_table(summarise(results), summarise(results)))
    assert "held-out score" in table and "0.500" in table
