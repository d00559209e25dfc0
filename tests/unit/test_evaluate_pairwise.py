"""Verdicts by comparison of two models: both orders, ties, and what the order did."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from openrlhf_maestro.config.verdicts import JudgeVerdictSection
from openrlhf_maestro.errors import DataError
from openrlhf_maestro.evaluation import Item, Verdict
from openrlhf_maestro.evaluation.pairwise import PairwiseVerdicts, PositionBias, parse_choice
from openrlhf_maestro.evaluation.prompts import BUILT_IN

WIN, TIE, LOSS = Verdict(True, 1.0), Verdict(None, 0.5), Verdict(False, 0.0)
OURS, THEIRS = "ours", "theirs"


def item(key: str = "a#0", **fields: Any) -> Item:
    values = {"datasource": "d", "question": "Which?", "reference": "This.", "response": OURS} | fields
    return Item(key=key, **values)


def section(judge: Any, **options: Any) -> JudgeVerdictSection:
    defaults = {"model": "judge-1", "base_url": judge.url, "api_key_env": "EVALUATION_JUDGE_KEY"}
    return JudgeVerdictSection.model_validate(defaults | options)


def compare(
    judge: Any, folder: Path, items: list[Item], others: Mapping[str, str], **options: Any
) -> tuple[list[Verdict], PairwiseVerdicts]:
    judging = PairwiseVerdicts(section(judge, **options), folder, others)
    return judging(items), judging


def ours_is_first(judge: Any, request: dict[str, Any]) -> bool:
    return bool(judge.shown(request, "first answer") == OURS)


@pytest.mark.parametrize("reply", ["First", "first.", " SECOND", "Tie.", "tie\n"])
def test_the_three_words(reply: str) -> None:
    assert parse_choice(reply) == reply.strip().lower().rstrip(".")


@pytest.mark.parametrize(
    "reply", ["", "1", "A", "First, I think", "the first", "First Second", "draw", "**First**", "First.."]
)
def test_anything_else_is_no_choice(reply: str) -> None:
    assert parse_choice(reply) is None


def test_both_orders_are_asked_with_one_seed_a_vote(judge: Any, tmp_path: Path) -> None:
    judge.answer = lambda _: "Tie"
    compare(judge, tmp_path, [item()], {"a#0": THEIRS})
    shown = {
        (request["seed"], judge.shown(request, "first answer"), judge.shown(request, "second answer"))
        for request in judge.requests
    }
    seeds = {seed for seed, _, _ in shown}
    assert len(judge.requests) == 6 and len(seeds) == 3
    assert shown == {(seed, *pair) for seed in seeds for pair in ((OURS, THEIRS), (THEIRS, OURS))}
    request = judge.requests[0]
    assert request["messages"][0]["content"].startswith(BUILT_IN["strict"].pair)
    assert (judge.shown(request, "question"), judge.shown(request, "reference answer")) == ("Which?", "This.")


def test_without_a_reference_none_is_shown(judge: Any, tmp_path: Path) -> None:
    judge.answer = lambda _: "Tie"
    compare(judge, tmp_path, [item(reference=None)], {"a#0": THEIRS}, votes=1)
    assert "reference answer" not in judge.requests[0]["messages"][1]["content"]


@pytest.mark.parametrize(
    ("in_our_order", "in_theirs", "expected"),
    [
        ("First", "Second", WIN),
        ("Second", "First", LOSS),
        ("Tie", "Tie", TIE),
        ("First", "First", TIE),  # whatever comes first
        ("Second", "Second", TIE),
        ("First", "Tie", TIE),
        ("Tie", "First", TIE),
    ],
)
def test_a_vote_counts_where_both_orders_agree(
    judge: Any, tmp_path: Path, in_our_order: str, in_theirs: str, expected: Verdict
) -> None:
    judge.answer = lambda request: in_our_order if ours_is_first(judge, request) else in_theirs
    found, judging = compare(judge, tmp_path, [item()], {"a#0": THEIRS}, votes=1)
    assert found == [expected]
    agree = (in_our_order, in_theirs) in [("First", "Second"), ("Second", "First"), ("Tie", "Tie")]
    assert judging.bias.pairs == 1 and judging.bias.inconsistent_share == (0.0 if agree else 1.0)


REPLIES = {"win": ("First", "Second"), "loss": ("Second", "First"), "tie": ("Tie", "Tie"), "unread": ("?", "First")}


@pytest.mark.parametrize("votes", list(itertools.combinations_with_replacement(REPLIES, 3)))
def test_the_majority_of_three_votes(judge: Any, tmp_path: Path, votes: tuple[str, str, str]) -> None:
    seeds: dict[int, str] = {}

    def answer(request: dict[str, Any]) -> str:
        vote = seeds.setdefault(request["seed"], votes[len(seeds) % 3])
        return REPLIES[vote][0 if ours_is_first(judge, request) else 1]

    judge.answer = answer
    (found,), judging = compare(judge, tmp_path, [item()], {"a#0": THEIRS})
    read = [vote for vote in votes if vote != "unread"]
    if not read:
        assert found.right is None and found.score is None
        assert found.problem == "no vote has a reply that could be read in both orders: '?'"
    elif read.count("win") > len(read) / 2:
        assert found == WIN
    elif read.count("loss") > len(read) / 2:
        assert found == LOSS
    else:
        assert found == TIE
    assert judging.bias.pairs == len(read)
    assert judging.counts.unreadable == votes.count("unread")


def test_equal_and_empty_answers_need_no_judge(judge: Any, tmp_path: Path) -> None:
    items = [
        item("equal", response="<think>a</think><answer>x</answer>"),
        item("ours empty", response="<answer></answer>"),
        item("theirs empty"),
        item("both empty", response=""),
    ]
    others = {"equal": "x", "ours empty": "x", "theirs empty": " ", "both empty": "<answer> </answer>"}
    found, judging = compare(judge, tmp_path, items, others)
    assert found == [TIE, LOSS, WIN, TIE]
    assert judge.requests == [] and judging.bias.inconsistent_share is None and judging.bias.first_share is None


def test_position_bias_of_a_judge_that_always_takes_the_first(judge: Any, tmp_path: Path) -> None:
    judge.answer = lambda _: "First"
    found, judging = compare(judge, tmp_path, [item("a"), item("b")], {"a": THEIRS, "b": THEIRS})
    assert found == [TIE, TIE]
    assert judging.bias == PositionBias(pairs=6, inconsistent=6, first=12, second=0)
    assert (judging.bias.inconsistent_share, judging.bias.first_share) == (1.0, 1.0)


def test_an_interrupted_comparison_goes_on(judge: Any, tmp_path: Path) -> None:
    judge.answer = lambda request: "First" if ours_is_first(judge, request) else "Second"
    whole, judging = compare(judge, tmp_path, [item()], {"a#0": THEIRS})
    file = tmp_path / "votes.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    judge.requests.clear()
    again, continued = compare(judge, tmp_path, [item()], {"a#0": THEIRS})
    assert again == whole == [WIN] and continued.bias == judging.bias
    assert len(judge.requests) == 3 and continued.counts.reused == 3
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(row["vote"], row["order"]) for row in rows} == {
        (vote, order) for vote in range(3) for order in ("ours first", "theirs first")
    }


def test_a_vote_of_another_kind_in_its_place_is_an_error_that_names_its_line(judge: Any, tmp_path: Path) -> None:
    judge.answer = lambda _: "First"
    compare(judge, tmp_path, [item()], {"a#0": THEIRS}, votes=1, concurrency=1)
    file = tmp_path / "votes.jsonl"
    file.write_text(file.read_text().replace('"verdict": "first"', '"verdict": true'))
    with pytest.raises(DataError, match=r"votes\.jsonl, line 1: .* is True, and can be first, second, tie or null"):
        compare(judge, tmp_path, [item()], {"a#0": THEIRS}, votes=1)


def test_a_response_that_the_other_model_lacks_is_an_error(judge: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no response for b#0"):
        compare(judge, tmp_path, [item("a#0"), item("b#0")], {"a#0": THEIRS})
