"""The multi-reward scorer in a run: a function of one's own, gates, limits by data source, KL in the reward, filtering;
and a scorer that goes down.

Expected values are computed from the rollout files alone, by the definitions in docs/metrics.md.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

BETA = 0.05
MIN_SPREAD = 0.2
L_MIN, L_MAX, SOURCE_L_MIN, SOURCE_L_MAX = 28, 32, 10, 20
FUNCTION = """
def brief(responses, datasources, references, token_ids, metadata):
    assert len(responses) == len(datasources) == len(references) == len(token_ids) == len(metadata) == 4
    assert len(set(datasources)) == len(set(references)) == 1, "whole groups of one prompt"
    return [None if len(text) % 7 == 0 else float(text.count("the ")) for text in responses]
"""


def brief(text: str) -> float:
    return math.nan if len(text) % 7 == 0 else float(text.count("the "))


def as_yaml(components: list[dict[str, Any]]) -> str:
    return json.dumps(components)


# ── everything but models ──


@pytest.fixture(scope="module")
def run(finished: Callable[..., Any], small_options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("functions") / "rewards.py"
    file.write_text(FUNCTION)
    components = [
        {"kind": "format"},
        {"kind": "callable", "name": "brief", "function": f"{file}:brief", "gate": "format", "normalisation": "none"},
        {
            "kind": "length",
            "l_min": L_MIN,
            "l_max": L_MAX,
            "by_datasource": {"creative": {"l_min": SOURCE_L_MIN, "l_max": SOURCE_L_MAX}},
        },
    ]
    return finished(
        small_options
        | {
            "run.max_steps": 3,
            "rewards.components": as_yaml(components),
            "rewards.max_missing_rate": 1,
            "conductor.kind": "equal",
            "objective.kl_in": "reward",
            "objective.ref_sync_steps": -1,
            "algo.kl.init_coef": BETA,
            "algo.kl.estimator": "k1",
            "algo.dynamic_filtering_enable": True,
            "algo.dynamic_filtering_min_spread": MIN_SPREAD,
            "algo.advantage.is_correction_level": "token",
            "actor.adam.lr": 1e-3,
            "reward.model_name_or_path": "null",
            "eval.dataset": "null",
            "ckpt.save_steps": 3,
        }
    )


@pytest.fixture(scope="module")
def rows(run: Any) -> list[dict[str, Any]]:
    columns = [run.rollouts(step) for step in (1, 2, 3)]
    return [dict(zip(step, values, strict=True)) for step in columns for values in zip(*step.values(), strict=True)]


def test_a_function_sees_responses_and_its_gate_is_the_format(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        expected = brief(row["response"]) if row["raw_format"] > 0 else -math.inf
        assert row["raw_brief"] == pytest.approx(expected, nan_ok=True)
        assert row["norm_brief"] == pytest.approx(max(expected, 0.0) if expected == expected else expected, nan_ok=True)
    assert {row["raw_format"] for row in rows} == {0.0, 1.0}, "both sides of the gate were seen"
    assert any(math.isnan(row["raw_brief"]) for row in rows)


def test_limits_by_data_source(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        l_min, l_max = (SOURCE_L_MIN, SOURCE_L_MAX) if row["datasource"] == "creative" else (L_MIN, L_MAX)
        expected = min(1.0, max(0.0, (l_max - row["response_tokens"]) / (l_max - l_min)))
        assert row["raw_length"] == pytest.approx(expected)


def test_the_kl_is_taken_off_the_scalar(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        # A response cut at the limit adds no KL (TRL's RLOO masks it as well).
        kl = 0.0 if row["truncated"] else row["kl"] * row["response_tokens"]
        assert row["kl_penalty"] == pytest.approx(BETA * kl, rel=1e-4, abs=1e-6)
        present = {name: row[f"norm_{name}"] for name in ("format", "brief", "length")}
        present = {name: value for name, value in present.items() if not math.isnan(value)}
        total = sum(row[f"weight_{name}"] for name in present)
        mixed = sum(row[f"weight_{name}"] * value for name, value in present.items()) / total
        assert row["scalar_reward"] == pytest.approx(mixed - row["kl_penalty"], abs=1e-5)
    assert {row["truncated"] for row in rows} == {False, True}
    assert any(abs(row["kl_penalty"]) > 1e-4 for row in rows if row["step"] == 3), "the policy has left the reference"


def test_filtered_groups_all_have_a_spread_and_the_step_is_full(run: Any, rows: list[dict[str, Any]]) -> None:
    groups: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        groups.setdefault((row["step"], row["group"]), []).append(row["scalar_reward"])
    assert sorted(groups) == [(step, group) for step in (1, 2, 3) for group in range(4)]
    assert all(max(rewards) - min(rewards) > MIN_SPREAD for rewards in groups.values())
    assert all(line["advantage/frac_zero_std"] == 0 for line in run.steps())
    state = json.loads((run.directory / "checkpoints" / "global_step_3" / "state.json").read_text())
    # Batches of 4 groups were drawn until 4 with such a spread were found.
    assert state["batches_drawn"] > 3
    assert any(line["rollout/filtered_rate"] > 0 for line in run.steps())


def test_missing_values_are_said_by_name(run: Any) -> None:
    assert "brief has no value for" in run.output and "None" in run.output


def test_time_and_correction_are_logged(run: Any) -> None:
    for line in run.steps():
        assert line["time/reward/brief_s"] > 0 and line["time/reward/format_s"] > 0
        assert 0 <= line["time/reward_wait_s"] <= line["time/experience_s"]
        # vLLM and the trainer differ by rounding alone: nothing is corrected.
        assert line["policy/is_filter_ratio"] == 0


# ── a scorer that goes down ──


class Server(ThreadingHTTPServer):
    """OpenRLHF's single-reward protocol: the reward is the number of characters. 503 while `down`."""

    daemon_threads = True
    down = False


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps({"rewards": [float(len(query)) for query in body["query"]]}).encode()
        self.send_response(503 if self.server.down else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Nothing on the test's output."""


@pytest.fixture
def server() -> Iterator[Server]:
    serving = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield serving
    serving.shutdown()
    serving.server_close()


def test_a_scorer_that_goes_down_ends_the_run_with_a_checkpoint_that_continues_it_exactly(
    start: Callable[..., Any],
    finished: Callable[..., Any],
    main_options: dict[str, Any],
    server: Server,
    tmp_path: Path,
) -> None:
    remote = {
        "kind": "remote",
        "name": "chars",
        "protocol": "openrlhf",
        "url": f"http://127.0.0.1:{server.server_port}/get_reward",
        "retry_s": 0.5,
    }
    # Four calls a step: fewer than the ten failures in a row that open the circuit. The missing values end the run.
    options = main_options | {
        "run.max_steps": 400,
        "rewards.components": as_yaml([{"kind": "format"}, remote]),
        "actor.lr_scheduler": "constant",
        "reward.model_name_or_path": "null",
        "eval.dataset": "null",
        "ckpt.save_steps": -1,
    }
    run = start(options, directory=tmp_path / "run")
    run.wait_for_step(3)
    server.down = True
    assert run.wait(120) == 1
    assert "chars: 100% of the responses got no value" in run.stderr
    assert "503" in run.stderr and "Traceback" not in run.stderr
    done = run.metrics()[-1]["step"]
    assert [path.name for path in (run.directory / "checkpoints").iterdir()] == [f"global_step_{done}"]

    server.down = False
    resumed = finished(options | {"run.max_steps": done + 2}, directory=tmp_path / "run")
    unbroken = finished(options | {"run.max_steps": done + 2}, directory=tmp_path / "unbroken")
    assert [line["step"] for line in resumed.metrics()] == list(range(1, done + 3)), "each step once, none lost"
    for found, expected in zip(resumed.metrics(), unbroken.metrics(), strict=True):
        for key, value in expected.items():
            if key.startswith(("time/", "rollout/logprob_diff")):
                continue
            # As for any resume on a CPU (test_resume.py); null in steps without a meta-update.
            same = found[key] is None if value is None else found[key] == pytest.approx(value, rel=1e-6, abs=1e-6)
            assert same, (expected["step"], key)


# ── other ways through the models ──


def test_batching_by_tokens_and_one_forward_for_both_branches_change_nothing(
    main_run: Any, finished: Callable[..., Any], main_options: dict[str, Any]
) -> None:
    """The first step of `main_run` once more. Rounding differs with the padding: 1e-4 on raw scores of size 1."""
    components = [{"kind": name} for name in ("format", "entropy", "length", "preference")]
    components.insert(1, {"kind": "perplexity", "answer_prefix": "<answer>", "shared_forward": True})
    run = finished(
        main_options
        | {
            "run.max_steps": 1,
            "rewards.components": as_yaml(components),
            "train.dynamic_batch_enable": True,
            "train.max_tokens_per_gpu": 512,
            "rollout.max_tokens_per_gpu": 300,
            "ckpt.save_steps": -1,
            "eval.dataset": "null",
        }
    )
    found, expected = run.rollouts(1), main_run.rollouts(1)
    assert found["response"] == expected["response"]
    for name in ("format", "perplexity", "entropy", "length", "preference"):
        assert found[f"raw_{name}"] == pytest.approx(expected[f"raw_{name}"], abs=1e-4), name
    assert found["kl"] == pytest.approx(expected["kl"], abs=1e-6)
    assert found["advantage"] == pytest.approx(expected["advantage"], abs=1e-4)
    step, same = run.steps()[0], main_run.steps()[0]
    assert step["policy/grad_norm"] == pytest.approx(same["policy/grad_norm"], rel=1e-4)
    assert step["policy/loss"] == pytest.approx(same["policy/loss"], abs=1e-6)
    assert same["time/reward/perplexity_s"] > 0
    assert step["time/reward/perplexity_s"] == 0, "it has no forward of its own"
