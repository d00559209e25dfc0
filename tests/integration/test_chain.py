"""The whole way from raw EmoBench rows to a judged table, by its script: killed once while judging, and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = REPOSITORY.parent / "shared" / "data" / "emobench"
ARMS = ("base", "cot", "sft", "maestro")
ITEMS, VOTES = 10, 3
LIMIT_S = 1500


@dataclass
class Chain:
    work: Path
    output: str

    def rows(self, arm: str, file: str) -> list[dict[str, Any]]:
        text = (self.work / "evaluations" / arm / file).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, small_options: dict[str, Any]) -> Iterator[Chain]:
    if not SOURCE.is_dir():
        pytest.skip("needs EmoBench's rows in ../shared/data/emobench, which are not part of the project")
    work = tmp_path_factory.mktemp("chain")
    environment = os.environ | {"MAESTRO_ASSETS": str(small_options["run.assets_dir"])}
    log = work / "chain.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "examples/scripts/emobench_chain.sh", str(SOURCE), str(work)],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=LIMIT_S)
        finally:
            for left in [*psutil.Process(os.getpid()).children(recursive=True)]:
                if left.is_running() and os.getpgid(left.pid) == process.pid:
                    left.send_signal(signal.SIGKILL)
    assert code == 0, log.read_text(errors="replace")[-4000:]
    yield Chain(work, log.read_text(errors="replace"))


@pytest.mark.timeout(LIMIT_S + 100)
def test_every_arm_has_every_verdict(chain: Chain) -> None:
    for arm in ARMS:
        results = chain.rows(arm, "results.jsonl")
        assert len({row["key"] for row in results}) == ITEMS
        assert all(row["right"] is not None and len(row["votes"]) in (0, VOTES) for row in results)
        summary = json.loads((chain.work / "evaluations" / arm / "summary.json").read_text())
        assert (summary["overall"]["n"], summary["overall"]["missing"]) == (ITEMS, 0)


def test_it_was_killed_while_judging_and_no_vote_was_lost_or_given_twice(chain: Chain) -> None:
    killed = next(line for line in chain.output.splitlines() if line.startswith("killed after "))
    before = int(killed.split()[2])
    votes = chain.rows("maestro", "votes.jsonl")
    asked = {row["key"] for row in votes}
    assert 5 <= before < VOTES * len(asked)
    assert Counter((row["key"], row["vote"]) for row in votes) == Counter(
        (key, vote) for key in asked for vote in range(VOTES)
    )


def test_the_verdicts_are_the_majorities_of_the_votes(chain: Chain) -> None:
    for arm in ARMS:
        given: dict[str, list[bool]] = {}
        for row in chain.rows(arm, "votes.jsonl"):
            given.setdefault(row["key"], []).append(row["verdict"])
        for row in chain.rows(arm, "results.jsonl"):
            votes = given.get(row["key"], [])  # none: an empty answer, which is wrong unasked
            assert row["right"] == (votes.count(True) > votes.count(False))


def test_training_was_judged_too_and_its_best_policy_is_kept(chain: Chain) -> None:
    lines = [json.loads(line) for line in (chain.work / "run" / "metrics.jsonl").read_text().splitlines()]
    judged = {line["step"]: line["eval/emobench/accuracy"] for line in lines if "eval/emobench/accuracy" in line}
    assert sorted(judged) == [0, 2, 4]
    best = json.loads((chain.work / "run" / "best" / "best.json").read_text())
    trained = {step: value for step, value in judged.items() if step}
    assert best["value"] == max(trained.values()) == trained[best["step"]]


def test_the_tables_and_the_page_are_there(chain: Chain) -> None:
    comparison = json.loads((chain.work / "comparison" / "comparison.json").read_text())
    assert [one["label"] for one in comparison["evaluations"]] == list(ARMS)
    assert {(one["evaluation"], one["baseline"]) for one in comparison["contrasts"]} == {
        (arm, "base") for arm in ARMS[1:]
    }
    page = (chain.work / "run" / "report.html").read_text(encoding="utf-8")
    assert all(f">{arm}<" in page for arm in ARMS)


def test_no_server_is_left(chain: Chain, run_python: Callable[..., str]) -> None:
    port = (chain.work / "judge.port").read_text().strip()
    code = "import socket, sys; print(socket.socket().connect_ex(('127.0.0.1', int(sys.argv[1]))))"
    assert run_python(code, port).strip() != "0"
