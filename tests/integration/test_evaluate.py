"""`maestro evaluate` on the real stack: vLLM in the command's own process, and a real vLLM server as the judge."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import yaml
from fastapi import FastAPI, Request, Response

from openrlhf_maestro.data.assets import asset_path
from openrlhf_maestro.data.tasks import check
from openrlhf_maestro.trainer.bundled import bundled_policy

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
KEY_VARIABLE, KEY = "EVALUATION_JUDGE_KEY", "local"
PROMPTS, SAMPLES = 20, 20
LIMIT_S = 300.0

# Long enough to be killed in the middle; some responses are cut at 32 tokens.
OPTIONS: dict[str, Any] = {
    "model": "bundled:policy",
    "data": "bundled:tasks",
    "data.max_samples": PROMPTS,
    "generation.n_samples_per_prompt": SAMPLES,
    "generation.max_new_tokens": 32,
    "run.assets_dir": REPOSITORY / "assets",
}


@dataclass
class Started:
    """A `maestro evaluate` process with its folder."""

    process: subprocess.Popen[bytes]
    folder: Path
    output: Path

    def wait(self) -> str:
        """Its output; fails where it does not end well."""
        code = self.process.wait(LIMIT_S)
        text = self.output.read_text()
        assert code == 0, text
        return text

    def kill_with(self, file: str, lines: int) -> int:
        """SIGKILL once the file has so many whole lines; how many it had then."""
        path = self.folder / file
        deadline_s = time.monotonic() + LIMIT_S
        while count(path) < lines:
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < deadline_s, self.output.read_text()
            time.sleep(0.002)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return count(path)


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def start(folder: Path, **options: Any) -> Started:
    words = [
        word
        for name, value in (OPTIONS | {"output_dir": folder} | options).items()
        for word in (f"--{name.replace('__', '.')}", str(value))
    ]
    output = folder.with_name(f"{folder.name}_{time.monotonic_ns()}.out")
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "openrlhf_maestro", "evaluate", *words],
            cwd=folder.parent,
            env=os.environ | {KEY_VARIABLE: KEY},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Started(process, folder, output)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Started:
    """An evaluation that nobody disturbed, with verdicts by rule."""
    started = start(tmp_path_factory.mktemp("evaluations") / "whole")
    started.wait()
    return started


def test_the_files_and_what_is_printed(whole: Started) -> None:
    output = whole.output.read_text()
    assert {file.name for file in whole.folder.iterdir()} == {
        "config.yaml", "made_by.json", "responses.jsonl", "results.jsonl", "summary.json", "engine.log",
    }  # fmt: skip
    responses = rows(whole.folder / "responses.jsonl")
    tasks = rows(asset_path("tasks", REPOSITORY / "assets") / "test.jsonl")[:PROMPTS]
    assert [row["key"] for row in responses] == [f"{task['id']}#{n}" for task in tasks for n in range(SAMPLES)]
    assert [row["question"] for row in responses[::SAMPLES]] == [task["prompt"] for task in tasks]
    assert all(row["prompt"] == f"<|user|>{row['question']}<|end|><|assistant|>" for row in responses)
    assert len({row["seed"] for row in responses}) == PROMPTS * SAMPLES
    # vLLM's own lines are in its log, not on the terminal.
    assert "WARNING" in (whole.folder / "engine.log").read_text() and "WARNING" not in output
    assert re.search(rf"overall .* \d+ ?/ ?{PROMPTS * SAMPLES} ", output)


def test_responses_end_with_their_stop_token_or_are_cut(whole: Started) -> None:
    responses = rows(whole.folder / "responses.jsonl")
    cut = [row for row in responses if row["truncated"]]
    assert 0 < len(cut) < len(responses)
    assert {row["response_tokens"] for row in cut} == {32}
    assert not any("<|end|>" in row["response"] for row in responses)


def test_verdicts_are_the_rules(whole: Started) -> None:
    responses = rows(whole.folder / "responses.jsonl")
    results = rows(whole.folder / "results.jsonl")
    right = [check(row["datasource"], row["question"], row["reference"], row["response"]) for row in responses]
    assert [(result["key"], result["right"], result["score"]) for result in results] == [
        (row["key"], verdict, None) for row, verdict in zip(responses, right, strict=True)
    ]
    assert 0 < sum(right) < len(right)
    summary = json.loads((whole.folder / "summary.json").read_text())
    assert (summary["overall"]["right"], summary["overall"]["n"]) == (sum(right), len(right))
    assert (summary["verdict"], summary["model"]) == ({"kind": "rule"}, "bundled:policy")


def test_killed_in_the_middle_and_continued_it_is_the_same(whole: Started, tmp_path: Path) -> None:
    started = start(tmp_path / "killed")
    there = started.kill_with("responses.jsonl", 10)
    assert 10 <= there < PROMPTS * SAMPLES
    again = start(tmp_path / "killed")
    assert f"{there} of {PROMPTS * SAMPLES} responses are there already" in again.wait()
    for file in ("responses.jsonl", "results.jsonl"):
        assert (again.folder / file).read_bytes() == (whole.folder / file).read_bytes()


def test_a_finished_one_needs_no_model_and_other_sampling_is_refused(whole: Started) -> None:
    before = (whole.folder / "results.jsonl").read_bytes()
    log = (whole.folder / "engine.log").stat().st_size
    whole_again = start(whole.folder)
    whole_again.wait()
    assert (whole.folder / "results.jsonl").read_bytes() == before
    assert (whole.folder / "engine.log").stat().st_size == log
    refused = start(whole.folder, generation__temperature=0.5)
    assert refused.process.wait(LIMIT_S) == 2
    assert "generation.temperature 0.8, and now it is 0.5" in refused.output.read_text()


def test_more_rows_later_leave_those_that_are_there(whole: Started, tmp_path: Path) -> None:
    few = start(tmp_path / "grown", data__max_samples=3)
    few.wait()
    grown = start(tmp_path / "grown")
    assert f"{3 * SAMPLES} of {PROMPTS * SAMPLES} responses are there already" in grown.wait()
    for file in ("responses.jsonl", "results.jsonl"):
        assert (grown.folder / file).read_bytes() == (whole.folder / file).read_bytes()


def test_a_model_that_vllm_cannot_load_is_one_paragraph(whole: Started, tmp_path: Path) -> None:
    refused = start(tmp_path / "broken", generation__max_new_tokens=100_000)
    assert refused.process.wait(LIMIT_S) == 2
    assert "leaves no room for a prompt: bundled:policy has 4096 positions" in refused.output.read_text()
    config = yaml.safe_load((whole.folder / "config.yaml").read_text())
    model = shutil.copytree(
        bundled_policy(config["model"]["name_or_path"], config["run"]["assets_dir"]), tmp_path / "m"
    )
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    failed = start(tmp_path / "failed", model=model)
    assert failed.process.wait(LIMIT_S) == 1
    output = failed.output.read_text()
    assert output.startswith("maestro: vLLM failed with ") and "Traceback" not in output
    log = tmp_path / "failed" / "engine.log"
    assert f"Its output: {log}" in output and len(output.splitlines()) == 1
    assert "Traceback" in log.read_text()


# ── a judge ──


@dataclass
class Proxy:
    """Hands requests on to the judge, and remembers them with its replies."""

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def proxy(judge_url: str) -> Iterator[Proxy]:
    app = FastAPI()
    headers = {"Authorization": f"Bearer {KEY}"}

    @app.post("/v1/chat/completions")
    async def hand_on(request: Request) -> Response:
        body = await request.json()
        found.asked.append(body)
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            answer = await client.post(f"{judge_url}/chat/completions", json=body, headers=headers)
        return Response(answer.content, answer.status_code, media_type="application/json")

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    found = Proxy(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield found
    server.should_exit = True
    thread.join()


def judging(proxy: Proxy, *words: str) -> dict[str, Any]:
    return {
        "generation.n_samples_per_prompt": 1,
        "judge.model": "judge",
        "judge.base_url": proxy.url,
        "judge.api_key_env": KEY_VARIABLE,
        "judge.concurrency": 4,
        # Every text it allows is a vote.
        "judge.extra_body": json.dumps({"structured_outputs": {"choice": list(words)}}),
    }


def test_a_judge_killed_in_the_middle_and_continued_asks_no_vote_twice(proxy: Proxy, tmp_path: Path) -> None:
    options = judging(proxy, "True", "False")
    started = start(tmp_path / "judged", **options)
    there = started.kill_with("votes.jsonl", 15)
    before = rows(tmp_path / "judged" / "votes.jsonl")
    assert 15 <= there < 60
    proxy.asked.clear()
    output = start(tmp_path / "judged", **options).wait()
    assert f"60 replies of the judge: {there} there already, {60 - there} new" in output
    # One request a vote that was missing, and none for a vote that was there.
    seeds = [request["seed"] for request in proxy.asked]
    assert len(seeds) == len(set(seeds)) == 60 - there
    assert not set(seeds) & {row["seed"] for row in before}
    votes = rows(tmp_path / "judged" / "votes.jsonl")
    assert votes[:there] == before
    responses = rows(tmp_path / "judged" / "responses.jsonl")
    assert {(row["key"], row["vote"]) for row in votes} == {(row["key"], n) for row in responses for n in range(3)}
    assert len(votes) == 60 and {row["verdict"] for row in votes} == {True, False}
    for result in rows(tmp_path / "judged" / "results.jsonl"):
        own = [row["verdict"] for row in sorted(votes, key=lambda row: row["vote"]) if row["key"] == result["key"]]
        assert result["votes"] == own
        assert result["right"] is (own.count(True) >= 2)


def test_the_same_model_against_itself_is_a_tie_and_others_are_compared(
    proxy: Proxy, whole: Started, tmp_path: Path
) -> None:
    options = judging(proxy, "First", "Second", "Tie") | {"verdict.against": whole.folder}
    start(tmp_path / "same", **options).wait()
    assert proxy.asked == []
    assert {row["score"] for row in rows(tmp_path / "same" / "results.jsonl")} == {0.5}
    output = start(tmp_path / "other", **options, generation__seed=1).wait()
    summary = json.loads((tmp_path / "other" / "summary.json").read_text())
    duel = summary["overall"]["duel"]
    assert duel["wins"] + duel["ties"] + duel["losses"] == 20
    votes = rows(tmp_path / "other" / "votes.jsonl")
    assert len(votes) == len(proxy.asked) == summary["replies"]["total"] > 0
    assert {row["verdict"] for row in votes} <= {"first", "second", "tie"}
    assert 0 <= summary["position_bias"]["inconsistent_share"] <= 1
    assert "position bias" in output
