"""The reward server's application, called without a socket."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch

from openrlhf_maestro.config.components import FormatComponent, LengthComponent
from openrlhf_maestro.config.load import load_config
from openrlhf_maestro.config.serve import ServeConfig, ServeSection
from openrlhf_maestro.errors import RunError
from openrlhf_maestro.rewards import normalize
from openrlhf_maestro.rewards.components import Component, Context, make_components
from openrlhf_maestro.rewards.groups import FAULT, Group, Missing, Score
from openrlhf_maestro.rewards.panel import Panel, PreferenceScorer, make_panel
from openrlhf_maestro.rewards.queries import QueryReader
from openrlhf_maestro.rewards.server import make_app
from openrlhf_maestro.rewards.service import ServiceDown

GOOD = "<think>a</think><answer>b</answer>"
TOKEN = "a-token-of-32-characters-or-more"


@dataclass
class Fixed:
    """A scorer that gives the same scores to every group, or one to each of its responses."""

    scores: Sequence[Score] | Callable[[Group], Sequence[Score]]
    closed: bool = False

    async def score(self, group: Group) -> Sequence[Score]:
        return self.scores(group) if callable(self.scores) else self.scores

    async def close(self) -> None:
        self.closed = True


def component(name: str, scores: Any, normalisation: Any = "none", gate: str | None = None) -> Component:
    return Component(name, normalisation, gate, Fixed(scores))


def panel(**scores: Any) -> Panel:
    return Panel([component(name, given) for name, given in scores.items()])


def raising(error: Exception) -> Any:
    def scores(_group: Group) -> Sequence[Score]:
        raise error

    return scores


class Letters:
    """A tokenizer of one token a character; `.` is the stop token."""

    all_special_ids = (ord("."),)

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}

    def convert_ids_to_tokens(self, token: int) -> str:
        return chr(token)


def send(
    served: Panel,
    method: str,
    path: str,
    body: Any = None,
    token: str | None = None,
    headers: Any = None,
    **limits: Any,
) -> httpx.Response:
    section = ServeSection(**limits)
    app = make_app(served, section, token, QueryReader(Letters()))
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            all_headers = {"content-type": "application/json"} | (headers or {})
            return await client.request(method, path, content=content, headers=all_headers)

    return asyncio.run(call())


def score(served: Panel, *responses: str, **more: Any) -> httpx.Response:
    return send(served, "POST", "/score", {"groups": [{"prompt": "p", "responses": responses}]}, **more)


# ── POST /score ──


def test_a_vector_a_response_in_the_order_of_the_components() -> None:
    served = panel(a=[1.0, FAULT], b=[Missing("down"), 0.5], c=[math.nan, math.inf])
    answer = score(served, "x", "y")
    assert answer.status_code == 200 and answer.json() == {
        "components": ["a", "b", "c"],
        "groups": [
            {"scores": [[1.0, None, None], ["fault", 0.5, None]], "reasons": {"b": "down", "c": "its value is nan"}}
        ],
    }


def test_only_what_is_asked_for_is_scored_and_in_that_order() -> None:
    served = panel(a=[1.0], b=[2.0], broken=raising(AssertionError("not asked for")))
    body = {"groups": [{"prompt": "p", "responses": ["x"]}], "components": ["b", "a"]}
    assert send(served, "POST", "/score", body).json() == {
        "components": ["b", "a"], "groups": [{"scores": [[2.0, 1.0]], "reasons": {}}]
    }  # fmt: skip


def test_several_groups_of_different_size() -> None:
    served = panel(a=lambda group: [float(len(text)) for text in group.responses])
    body = {"groups": [{"prompt": "p", "responses": ["x", "yy"]}, {"prompt": "q", "responses": ["zzz"]}]}
    groups = send(served, "POST", "/score", body).json()["groups"]
    assert [group["scores"] for group in groups] == [[[1.0], [2.0]], [[3.0]]]


def test_a_closed_gate_is_the_responses_fault_also_where_the_gate_is_not_asked_for() -> None:
    gate = component("gate", [1.0, 0.0, FAULT, Missing("down")])
    gated = component("a", [0.3, 0.3, 0.3, 0.3], gate="gate")
    body = {"groups": [{"prompt": "p", "responses": list("wxyz")}], "components": ["a"]}
    (group,) = send(Panel([gate, gated]), "POST", "/score", body).json()["groups"]
    assert group == {"scores": [[0.3], ["fault"], ["fault"], [None]], "reasons": {"a": "its gate has no value"}}


def test_gates_do_not_follow_one_another() -> None:
    first, second = component("first", [0.0, 1.0]), component("second", [1.0, 0.0], gate="first")
    served = Panel([first, second, component("a", [0.3, 0.3], gate="second")])
    group = {"prompt": "p", "responses": ["x", "y"]}
    alone = send(served, "POST", "/score", {"groups": [group], "components": ["a"]}).json()["groups"][0]["scores"]
    together = send(served, "POST", "/score", {"groups": [group]}).json()["groups"][0]["scores"]
    assert alone == [[0.3], ["fault"]]
    assert together == [[0.0, "fault", 0.3], [1.0, 0.0, "fault"]]


def test_real_components_with_their_parameters_per_data_set() -> None:
    length = LengthComponent(l_max=4, by_datasource={"long": {"l_max": 8, "l_min": 7}})  # type: ignore[dict-item]
    served = Panel(make_components([FormatComponent(), length], Context(max_new_tokens=0)), None, ["length"])
    group = {"prompt": "p", "responses": [GOOD, "", "x"], "token_ids": [[1] * 3, [], [1] * 4]}
    body = {"groups": [group, group | {"datasource": "long"}]}
    answer = send(served, "POST", "/score", body).json()
    # l_min is half of l_max = 4: (4 - 3) / (4 - 2) = 0.5.
    assert [part["scores"] for part in answer["groups"]] == [
        [[1.0, 0.5], [0.0, "fault"], [0.0, 0.0]],
        [[1.0, 1.0], [0.0, "fault"], [0.0, 1.0]],
    ]


def test_a_component_that_counts_tokens_needs_them() -> None:
    served = Panel([component("length", [1.0]), component("a", [2.0])], None, ["length"])
    answer = score(served, "x")
    assert answer.status_code == 422 and "length counts tokens" in answer.json()["detail"]
    body = {"groups": [{"prompt": "p", "responses": ["x"]}], "components": ["a"]}
    assert send(served, "POST", "/score", body).status_code == 200


# ── what is refused ──


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN]
)
@pytest.mark.parametrize("path", ["/score", "/get_reward"])
def test_without_the_token_nothing_is_read(path: str, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    answer = send(panel(a=[1.0]), "POST", path, b"not even JSON", token=TOKEN, headers=headers)
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert answer.json() == {"detail": "the bearer token is absent or wrong"}


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_with_the_token(scheme: str) -> None:
    answer = score(panel(a=[1.0]), "x", token=TOKEN, headers={"authorization": f"{scheme} {TOKEN}"})
    assert answer.status_code == 200


def test_health_needs_no_token_and_tells_nothing() -> None:
    answer = send(panel(a=[1.0]), "GET", "/health", token=TOKEN)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/"])
def test_there_is_nothing_else(path: str) -> None:
    answer = send(panel(a=[1.0]), "GET", path)
    assert answer.status_code == 404 and answer.headers["content-type"] == "application/json"


def test_a_body_over_the_limit() -> None:
    answer = score(panel(a=[1.0]), "x" * 2048, max_body_mib=1 / 1024)
    assert answer.status_code == 413 and "serve.max_body_mib" in answer.json()["detail"]


def test_a_body_over_the_limit_that_does_not_say_its_length() -> None:
    app = make_app(panel(a=[1.0]), ServeSection(max_body_mib=1 / 1024), None)
    given = 0

    async def body() -> Any:
        nonlocal given
        for _ in range(1000):
            given += 1
            yield b"x" * 512

    async def call() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.post("/score", content=body(), headers={"content-type": "application/json"})

    assert asyncio.run(call()).status_code == 413
    assert given < 10  # the rest is not read


def test_more_responses_than_the_limit() -> None:
    groups = [{"prompt": "p", "responses": ["x", "y"]}, {"prompt": "q", "responses": ["z"]}]
    answer = send(panel(a=[1.0]), "POST", "/score", {"groups": groups}, max_responses=2)
    assert answer.status_code == 413 and "3 responses" in answer.json()["detail"]
    body = {"query": ["px"] * 3, "prompts": ["p"] * 3, "labels": [""] * 3}
    assert send(panel(a=[1.0]), "POST", "/get_reward", body, max_responses=2).status_code == 413


@pytest.mark.parametrize(
    ("body", "status", "fragment"),
    [
        (b"{", 422, "Invalid JSON"),
        (b"\xff", 422, "JSON"),
        (b"[" * 10_000, 422, "JSON"),
        ({}, 422, "groups: Field required"),
        ({"groups": [{"prompt": "p", "responses": ["x"]}], "components": ["b"]}, 422, "no component b; there are a"),
        ({"groups": [{"prompt": "p", "responses": ["x"]}], "components": []}, 422, "nothing asked for"),
        ({"groups": [{"prompt": "p", "responses": [1]}]}, 422, "groups.0.responses.0: Input should be a valid string"),
    ],
)
def test_wrong_bodies(body: Any, status: int, fragment: str) -> None:
    answer = send(panel(a=[1.0]), "POST", "/score", body)
    assert answer.status_code == status and fragment in answer.json()["detail"]


def test_a_form_that_a_page_in_a_browser_could_send_is_refused() -> None:
    answer = score(panel(a=[1.0]), "x", headers={"content-type": "text/plain"})
    assert answer.status_code == 415


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (RunError("reward component a: refused"), 424, "reward component a: refused"),
        (ServiceDown("reward component a: 10 calls in a row failed"), 503, "10 calls"),
        (KeyError("the prompt"), 500, "internal error: KeyError"),
    ],
)
def test_a_scorer_that_fails(error: Exception, status: int, detail: str) -> None:
    answer = score(panel(a=raising(error)), "x")
    assert answer.status_code == status and detail in answer.json()["detail"]
    assert "the prompt" not in answer.text


def test_no_text_of_a_request_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="openrlhf_maestro")
    secret = "a secret story"
    score(panel(a=raising(RunError(f"bad: {secret}"))), secret)
    send(panel(a=[1.0]), "POST", "/score", {"groups": [{"prompt": secret, "responses": secret}]})
    send(panel(a=[1.0]), "POST", "/get_reward", {"query": [secret], "prompts": ["p"], "labels": [""]})
    group = {"prompt": "p", "responses": ["x"]}
    send(panel(a=[1.0]), "POST", "/score", {"groups": [group], "components": [secret]})
    send(panel(a=[1.0]), "POST", "/score", {"groups": [group | {secret: 1}]})
    assert len(caplog.records) == 5 and secret not in caplog.text


def test_a_client_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    body = {"groups": [{"prompt": "p", "responses": ["x"]}], "components": ["b\nPOST /score: 401"]}
    send(panel(a=[1.0]), "POST", "/score", body)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("openrlhf_maestro")] == [
        "POST /score: 422"
    ]


def test_scorers_are_closed_when_the_server_ends() -> None:
    part = component("a", [1.0])

    async def live() -> None:
        app = make_app(Panel([part]), ServeSection(), None)
        async with app.router.lifespan_context(app):
            assert not part.scorer.closed  # type: ignore[union-attr]

    asyncio.run(live())
    assert part.scorer.closed  # type: ignore[union-attr]


# ── POST /get_reward ──


def rewards(served: Panel, query: str, prompt: str = "p", label: Any = "") -> httpx.Response:
    return send(served, "POST", "/get_reward", {"query": [query], "prompts": [prompt], "labels": [label]})


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_one_reward_is_the_weighted_mean_of_the_components() -> None:
    parts = [component("plain", [3.0]), component("ranked", [-2.0], "group_rank")]
    expected = 0.25 * 3.0 + 0.75 * logistic(-2.0)
    answer = rewards(Panel(parts, {"ranked": 3.0, "plain": 1.0}), "px.").json()
    # Both sides in float64.
    assert answer["rewards"] == pytest.approx([expected], rel=1e-12) and answer["scores"] == answer["rewards"]
    assert answer["extra_logs"] == {
        "plain": [3.0],
        "plain_missing": [0.0],
        "ranked": pytest.approx([logistic(-2.0)], rel=1e-12),
        "ranked_missing": [0.0],
    }


def test_weights_are_equal_where_none_are_given() -> None:
    served = panel(a=[0.2], b=[0.4], c=[0.9])
    assert rewards(served, "px.").json()["rewards"] == pytest.approx([0.5], rel=1e-12)


@pytest.mark.parametrize("raw", [-700.0, -5.0, 0.0, 5.0])
def test_a_fault_is_below_every_ranked_value(raw: float) -> None:
    fault = rewards(Panel([component("a", [FAULT], "group_rank")]), "px.").json()["rewards"]
    valid = rewards(Panel([component("a", [raw], "group_rank")]), "px.").json()["rewards"]
    assert fault == [0.0] and valid[0] > 0.0


def test_what_is_not_ranked_is_what_a_run_makes_of_it() -> None:
    part = component("a", [0.7, FAULT])
    in_a_run = normalize(torch.tensor([[[0.7], [FAULT]]], dtype=torch.float64), [part])[0, :, 0]
    got, _ = Panel([part]).single_reward({"a": [0.7, FAULT]})
    assert got.tolist() == in_a_run.tolist()


def test_a_missing_component_leaves_its_weight_to_the_others() -> None:
    parts = [component("a", [0.2]), component("b", [Missing("down")]), component("c", [0.8])]
    answer = rewards(Panel(parts, {"a": 1, "b": 5, "c": 3}), "px.").json()
    assert answer["rewards"] == pytest.approx([0.25 * 0.2 + 0.75 * 0.8], rel=1e-12)
    assert answer["extra_logs"]["b"] == [0.0] and answer["extra_logs"]["b_missing"] == [1.0]


def test_a_reward_that_nothing_is_known_of_is_asked_for_again() -> None:
    parts = [component("a", [Missing("down")]), component("b", [0.5])]
    answer = rewards(Panel(parts, {"a": 1, "b": 0}), "px.")
    assert answer.status_code == 503


def test_several_queries_in_one_request() -> None:
    served = panel(a=lambda group: [float(len(text)) for text in group.responses])
    body = {"query": ["px.", "qqyyy"], "prompts": ["p", "qq"], "labels": ["", ""]}
    assert send(served, "POST", "/get_reward", body).json()["rewards"] == [1.0, 3.0]


def test_without_the_policys_tokenizer_there_is_no_single_reward() -> None:
    app = make_app(panel(a=[1.0]), ServeSection(), None)

    async def call() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.post("/get_reward", json={"query": [], "prompts": [], "labels": []})

    answer = asyncio.run(call())
    assert answer.status_code == 404 and "serve.policy_tokenizer" in answer.json()["detail"]


def test_a_query_is_taken_apart() -> None:
    group = QueryReader(Letters())("prompt.text..", "prompt.", "right")
    assert group.responses == ["text"] and group.truncated == [False]
    assert group.token_ids == [[*map(ord, "text"), ord(".")]]  # with one stop token, as in a run
    assert group.reference == "right" and group.prompt == group.rendered_prompt == "prompt."
    assert group.queries == ["prompt.text.."]


def test_a_query_without_a_stop_token_was_cut() -> None:
    group = QueryReader(Letters())("pab.cd", "p", None)
    assert group.responses == ["ab.cd"] and group.truncated == [True] and len(group.token_ids[0]) == 5


@pytest.mark.parametrize(("label", "reference"), [("", None), (None, None), ("a", "a"), (3, "3"), (["a"], '["a"]')])
def test_labels(label: Any, reference: str | None) -> None:
    assert QueryReader(Letters())("px", "p", label).reference == reference


def test_a_query_that_does_not_begin_with_its_prompt_is_refused() -> None:
    answer = rewards(panel(a=[1.0]), "x.", "p")
    assert answer.status_code == 422 and "does not begin with its prompt" in answer.json()["detail"]


# ── the preference model ──


def test_the_preference_model_reads_the_conversation() -> None:
    seen: list[Any] = []

    def model_score(messages: Sequence[Any], responses: Sequence[str]) -> torch.Tensor:
        seen.append(([list(given) for given in messages], list(responses)))
        return torch.tensor([1.5, -math.inf, math.nan, 2.0])

    served = Panel([Component("preference", "group_rank", None, PreferenceScorer(SimpleNamespace(score=model_score)))])  # type: ignore[arg-type]
    answer = score(served, "x", "much too long", "y", " ")
    # A text too long for the model and an empty one are at fault; no number is missing.
    assert [row[0] for row in answer.json()["groups"][0]["scores"]] == [1.5, "fault", None, "fault"]
    assert seen == [([[{"role": "user", "content": "p"}]] * 4, ["x", "much too long", "y", " "])]


# ── docs/serving.md ──


def test_the_example_of_the_page_is_answered_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = Path(__file__).parents[2] / "docs"
    blocks = re.findall(r"```(\w+)\n(.*?)```", (docs / "serving.md").read_text(), re.DOTALL)
    configuration = next(text for language, text in blocks if language == "yaml")
    request, expected = (text for language, text in blocks if language == "json")
    function = re.search(r"```python\n(.*?)```", (docs / "extending.md").read_text(), re.DOTALL)
    assert function is not None
    (tmp_path / "my_rewards.py").write_text(function.group(1))
    (tmp_path / "my_server.yaml").write_text(configuration)
    monkeypatch.chdir(tmp_path)
    served = make_panel(load_config(ServeConfig, ["--config", "my_server.yaml"]))
    assert send(served, "POST", "/score", request.encode()).json() == json.loads(expected)
