"""The JSON between a run and its remote scorers."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from openrlhf_maestro.rewards.groups import FAULT, Group, Missing, Score
from openrlhf_maestro.rewards.protocol import (
    GroupBody,
    ProtocolError,
    RewardRequest,
    ScoreRequest,
    group_answer,
    read_rewards,
    read_scores,
    reward_request,
    score_request,
)

GROUP = Group(
    prompt="How many?",
    rendered_prompt="<user>How many?<end>",
    queries=["<user>How many?<end>two<eos>", "<user>How many?<end>thr"],
    responses=["two", "thr"],
    token_ids=[[5, 2], [7]],
    truncated=[False, True],
    reference="two",
    datasource="counting",
    messages=({"role": "user", "content": "How many?"},),
    metadata={"id": 3, "weight": 0.5, "tags": ["a", None]},
)


def answer(scores: Any, components: Any = ("a", "b"), **group: Any) -> str:
    return json.dumps({"components": components, "groups": [{"scores": scores} | group]})


def test_a_group_arrives_as_it_was_sent() -> None:
    request = ScoreRequest.model_validate_json(score_request(GROUP, ["a", "b"]))
    assert request.components == ["a", "b"]
    (body,) = request.groups
    arrived = body.group()
    for field in dataclasses.fields(Group):
        sent, got = getattr(GROUP, field.name), getattr(arrived, field.name)
        assert (list(got) == list(sent)) if field.name == "messages" else got == sent, field.name


def test_every_field_of_a_group_is_in_the_protocol() -> None:
    assert set(GroupBody.model_fields) == {field.name for field in dataclasses.fields(Group)}


def test_what_was_left_out_is_made_from_the_rest() -> None:
    group = GroupBody(prompt="p", responses=["x", "y"]).group()
    assert group.rendered_prompt == "p" and group.queries == ["px", "py"] and group.truncated == [False, False]
    assert list(group.messages) == [{"role": "user", "content": "p"}]
    assert group.token_ids == [[], []] and group.reference is None and group.datasource == "default"


def test_metadata_json_has_no_form_for() -> None:
    metadata = {"when": datetime.date(2026, 1, 2), "share": math.nan, "deep": [{"most": math.inf}], 5: (1, 2)}
    sent = json.loads(score_request(dataclasses.replace(GROUP, metadata=metadata), ["a"]))
    assert sent["groups"][0]["metadata"] == {
        "when": "2026-01-02", "share": None, "deep": [{"most": None}], "5": [1, 2]
    }  # fmt: skip


def test_openrlhf_gets_what_openrlhf_sends() -> None:
    assert json.loads(reward_request(GROUP)) == {
        "query": ["<user>How many?<end>two<eos>", "<user>How many?<end>thr"],
        "prompts": ["<user>How many?<end>", "<user>How many?<end>"],
        "labels": ["two", "two"],
    }
    assert json.loads(reward_request(dataclasses.replace(GROUP, reference=None)))["labels"] == ["", ""]


@pytest.mark.parametrize(
    ("body", "fragment"),
    [
        ({"prompt": "p", "responses": ["x"], "token_ids": [[1], [2]]}, "2 token_ids for 1 responses"),
        ({"prompt": "p", "responses": ["x"], "truncated": []}, "0 truncated for 1 responses"),
        ({"prompt": "p", "responses": ["x", "y"], "queries": ["x"]}, "1 queries for 2 responses"),
        ({"prompt": "p", "responses": []}, "responses"),
        ({"prompt": "p", "responses": [3]}, "valid string"),
        ({"prompt": "p", "responses": ["x"], "promt": ""}, "promt"),
        ({"responses": ["x"]}, "prompt"),
    ],
)
def test_a_wrong_group_is_refused(body: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ValidationError, match=fragment):
        ScoreRequest.model_validate_json(json.dumps({"groups": [body]}))


def test_a_wrong_reward_request_is_refused() -> None:
    with pytest.raises(ValidationError, match="2 query, 1 prompts, 1 labels"):
        RewardRequest.model_validate_json('{"query": ["a", "b"], "prompts": ["a"], "labels": [""]}')


def test_numbers_faults_and_missing_values_come_back() -> None:
    columns: dict[str, list[Score]] = {
        "a": [0.1, FAULT, Missing("no answer")],
        "b": [math.nan, 2.0, math.inf],
    }
    written = group_answer(columns)
    assert written["scores"] == [[0.1, None], ["fault", 2.0], [None, None]]
    assert written["reasons"] == {"a": "no answer", "b": "its value is nan"}
    text = json.dumps({"components": ["a", "b"], "groups": [written]}, allow_nan=False)
    assert read_scores(text, ["a", "b"], 3) == {
        "a": [0.1, FAULT, Missing("no answer")],
        "b": [Missing("its value is nan"), 2.0, Missing("its value is nan")],
    }


def test_numbers_keep_every_digit() -> None:
    third = 1 / 3
    text = json.dumps({"components": ["a"], "groups": [group_answer({"a": [third]})]})
    assert read_scores(text, ["a"], 1)["a"] == [third]


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("<html>", "it is not JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "it is not JSON"),
        (answer([[1, 2], [3, 4]], ["b", "a"]), "its components are not a, b"),
        (answer([[1, 2], [3, 4]], None), "its components are not a, b"),
        (answer([[1, 2]]), "1 scores where 2 were expected"),
        (answer([[1, 2], [3, 4], [5, 6]]), "3 scores where 2 were expected"),
        (answer([[1, 2], [3]]), "1 components where 2 were expected"),
        (answer([[1, 2], 3]), "no list of components"),
        (answer({"0": [1, 2]}), "no list of scores"),
        (answer([[1, 2], [3, "4"]]), '"4" is not a number'),
        (answer([[1, 2], [3, True]]), "true is not a number"),
        (answer([[1, 2], [3, [4]]]), "[4.0] is not a number"),
        (answer([[1, 2], [3, 4]], reasons=[]), "reasons"),
        ('{"components": ["a", "b"], "groups": []}', "one group"),
        ('{"components": ["a", "b"], "groups": {"scores": []}}', "one group"),
    ],
)
def test_an_answer_that_is_not_the_protocols_is_told(text: str, fragment: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_scores(text, ["a", "b"], 2)
    assert fragment in str(caught.value)


def test_a_number_that_is_none_is_missing() -> None:
    found = read_scores(answer([[math.nan, -math.inf], [1, 2]]), ["a", "b"], 2)
    assert found == {"a": [Missing("its value is nan"), 1.0], "b": [Missing("its value is -inf"), 2.0]}
    huge = '{"components": ["a"], "groups": [{"scores": [[1' + "0" * 400 + "]]}]}"
    assert read_scores(huge, ["a"], 1) == {"a": [Missing("its value is inf")]}


def test_rewards_of_openrlhfs_protocol() -> None:
    text = '{"rewards": [1, -0.5, NaN, -Infinity], "scores": [9, 9, 9, 9], "extra_logs": {}}'
    assert read_rewards(text, 4) == [1.0, -0.5, Missing("its reward is nan"), Missing("its reward is -inf")]


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ('{"rewards": [1]}', "1 rewards where 2"),
        ('{"rewards": 1}', "no list of rewards"),
        ('{"reward": [1, 2]}', "no list of rewards"),
        ('{"rewards": [1, null]}', "null is not a number"),
        ('{"rewards": [[1], [2]]}', "[1.0] is not a number"),
    ],
)
def test_wrong_rewards_are_told(text: str, fragment: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        read_rewards(text, 2)
    assert fragment in str(caught.value)
