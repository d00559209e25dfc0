"""What is written to a run directory, and how one is continued."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from openrlhf_maestro.conductor import ConductorSettings, make_orchestrator
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.data.prompts import Prompt
from openrlhf_maestro.rollout.responses import Response
from openrlhf_maestro.trainer.batch import Rollout, Scored, TokenValues
from openrlhf_maestro.trainer.console import step_line
from openrlhf_maestro.trainer.metrics import Stopwatch, step_metrics
from openrlhf_maestro.trainer.run_dir import RunDir, rollout_columns

INF, NAN = math.inf, math.nan


def rollout(group: int, text: str, tokens: int, datasource: str) -> Rollout:
    prompt = Prompt(
        id=f"row{group}",
        text=f"prompt {group}",
        messages=({"role": "user", "content": f"prompt {group}"},),
        reference=f"reference {group}",
        datasource=datasource,
        source="rows.jsonl",
        row=group + 1,
    )
    response = Response(list(range(tokens)), np.zeros(tokens, dtype=np.float32), truncated=tokens == 8)
    return Rollout(prompt, response, text, group)


@pytest.fixture
def scored() -> Scored:
    """Two groups of two responses, two components; a fault, a missing value, a truncated response."""
    rollouts = [
        rollout(0, "a", 4, "left"),
        rollout(0, "b", 8, "left"),
        rollout(1, "c", 2, "right"),
        rollout(1, "d", 2, "right"),
    ]
    return Scored(
        rollouts=rollouts,
        component_names=["one", "two"],
        raw=torch.tensor([[1.0, 2.0], [0.0, -INF], [1.0, NAN], [0.5, 4.0]]),
        normalised=torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, NAN], [0.5, 0.5]]),
        anchor=None,
        weights=torch.tensor([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.25]]),
        probs=torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.6, 0.4], [0.8, 0.2]]),
        actions=torch.tensor([0, 1, 0, 0]),
        hidden=torch.zeros(4, 3),
        scalar=torch.tensor([1.0, 0.0, 1.0, 0.5]),
        advantages=torch.tensor([0.7, -0.7, 0.7, -0.7]),
        constant=torch.tensor([False, False, True, True]),
        spread=torch.tensor([1.0, 1.0, 0.5, 0.5]),
        truncated=torch.tensor([False, True, False, False]),
        response_tokens=torch.tensor([4, 8, 2, 2]),
        mean_entropy=torch.tensor([0.1, 0.2, 0.3, 0.4]),
        kl=torch.tensor([0.0, 0.1, 0.2, 0.3]),
        kl_penalty=None,
        policy_loss_tokens=torch.tensor([1, 0, 2, 1]),
        logprob_diff_mean=torch.tensor([1e-7, 2e-7, 3e-7, 3e-7]),
        logprob_diff_max=torch.tensor([1e-6, 5e-6, 3e-6, 2e-6]),
        log_prob_mean=torch.tensor([-0.5, -0.25, -1.0, -0.125]),
        tokens=TokenValues(*[torch.zeros(4, 8)] * 4, ref_log_probs=None),
        missing_reasons={"two": "no answer"},
        reward_s={"one": 0.25, "two": 1.5},
        reward_wait_s=0.125,
    )


@pytest.fixture
def config() -> MaestroConfig:
    return MaestroConfig.model_validate(
        {
            "actor": {"model_name_or_path": "policy", "num_gpus_per_node": 1},
            "ref": {"num_gpus_per_node": 1},
            "data": {"prompt_dataset": "rows.jsonl"},
            "rewards": {"components": [{"kind": "format"}, {"kind": "length"}]},
            "rollout": {"n_samples_per_prompt": 5},
        }
    )


# ── rows ──


def test_rollout_columns(scored: Scored) -> None:
    columns = {name: list(values) for name, values in rollout_columns(7, scored).items()}
    assert columns["step"] == [7] * 4
    assert columns["prompt"] == ["prompt 0", "prompt 0", "prompt 1", "prompt 1"]
    assert columns["response"] == ["a", "b", "c", "d"]
    assert columns["reference"] == ["reference 0", "reference 0", "reference 1", "reference 1"]
    assert columns["datasource"] == ["left", "left", "right", "right"]
    assert columns["group"] == [0, 0, 1, 1]
    assert columns["action"] == ["one", "two", "one", "one"]
    assert columns["truncated"] == [False, True, False, False]
    assert columns["response_tokens"] == [4, 8, 2, 2]
    assert columns["policy_loss_tokens"] == [1, 0, 2, 1]
    assert columns["weight_two"] == [0.25, 0.75, 0.25, 0.25]
    assert columns["pi_two"] == pytest.approx([0.5, 0.5, 0.4, 0.2])
    assert columns["raw_two"] == pytest.approx([2.0, -INF, NAN, 4.0], nan_ok=True)
    assert columns["norm_two"] == pytest.approx([1.0, 0.0, NAN, 0.5], nan_ok=True)


def test_rollout_columns_without_emphasis_and_reference(scored: Scored) -> None:
    scored.actions, scored.kl = None, None
    columns = rollout_columns(1, scored)
    assert list(columns["action"]) == [None] * 4
    assert list(columns["kl"]) == [None] * 4


def test_rollout_file_reads_back(tmp_path: Path, scored: Scored) -> None:
    run = RunDir(tmp_path / "run")
    run.rollouts.mkdir(parents=True)
    run.write_rollouts(12, scored)
    assert [path.name for path in run.rollouts.iterdir()] == ["step_000012.parquet"]
    table = pq.read_table(run.rollouts / "step_000012.parquet")
    assert table.column("raw_two").to_pylist() == pytest.approx([2.0, -INF, NAN, 4.0], nan_ok=True)
    assert table.schema.field("scalar_reward").type == pa.float32()


# ── metrics ──


@pytest.fixture
def learned() -> Any:
    settings = ConductorSettings(3, 2.0, 1e-4, True, 1e-3, 1, 1e-3, 0.5)
    return make_orchestrator("conductor", ["one", "two"], settings=settings)


def test_metrics(scored: Scored, learned: Any) -> None:
    metrics = step_metrics(scored, {"loss": 0.5, "lr": 1e-4}, learned)
    expected = {
        "rollout/tokens": 16,
        "rollout/response_length_mean": 4.0,
        "rollout/truncated_rate": 0.25,
        "rollout/logprob_diff_max": 5e-6,
        "rollout/logprob_diff_mean": (4 * 1e-7 + 8 * 2e-7 + 2 * 3e-7 + 2 * 3e-7) / 16,
        "reward/one/raw_mean": 0.625,
        "reward/two/raw_mean": 3.0,
        "reward/two/missing_rate": 0.25,
        "reward/two/fault_rate": 0.25,
        "reward/scalar_mean": 0.625,
        "advantage/frac_zero_std": 0.5,
        "conductor/weight/one": 0.6,
        "conductor/weight/left/two": 0.5,
        "conductor/weight/right/two": 0.3,
        "conductor/action_freq/one": 0.75,
        "conductor/action_freq/two": 0.25,
        "conductor/temperature": 2.0,
        "policy/loss": 0.5,
        "policy/lr": 1e-4,
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-5), name
    bernoulli = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.5, 0.5, 0.6, 0.8)]
    assert metrics["conductor/entropy"] == pytest.approx(sum(bernoulli) / 4)


def test_metrics_without_a_conductor_name_none_of_its_own(scored: Scored) -> None:
    scored.actions, scored.hidden = None, None
    metrics = step_metrics(scored, {}, make_orchestrator("equal", ["one", "two"]))
    assert {name for name in metrics if name.startswith("conductor/")} == {
        f"conductor/weight/{source}{name}" for source in ("", "left/", "right/") for name in ("one", "two")
    }


def test_stopwatch_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 2.0, 10.0, 13.0, 20.0, 21.0])
    monkeypatch.setattr("openrlhf_maestro.trainer.metrics.time.perf_counter", lambda: next(ticks))
    watch = Stopwatch()
    for name in ("generation", "update", "generation"):
        with watch.phase(name):
            pass
    assert watch.metrics() == {
        "time/step_s": 6.0,
        "time/generation_s": 3.0,
        "time/experience_s": 0.0,
        "time/update_s": 3.0,
        "time/sync_s": 0.0,
    }


def test_step_line() -> None:
    metrics = {
        "reward/scalar_mean": 0.7121,
        "conductor/weight/format": 0.25,
        "conductor/weight/perplexity": 0.75,
        "rollout/response_length_mean": 23.44,
        "policy/kl": 0.01234,
        "time/step_s": 1.234,
    }
    line = step_line(7, 120, metrics, ["format", "perplexity"])
    assert "\n" not in line
    for part in ("7/120", "0.712", "form 0.25", "perp 0.75", "23.4", "0.0123", "1.23 s"):
        assert part in line


# ── the folder ──


def written_run(path: Path, config: MaestroConfig, scored: Scored, steps: int) -> RunDir:
    run = RunDir(path)
    run.start(config, None)
    for step in range(1, steps + 1):
        run.append_metrics({"step": step, "policy/loss": step / 2})
        run.write_rollouts(step, scored)
    run.write_evaluation(steps, {"step": [steps], "right": [True]})
    return run


def test_a_number_that_is_not_finite_is_null(tmp_path: Path, config: MaestroConfig) -> None:
    run = RunDir(tmp_path / "run")
    run.start(config, None)
    run.append_metrics({"step": 1, "a": NAN, "b": INF, "c": -INF, "d": 0.5, "e": 3})
    run.append_metrics({"step": 2})
    first, second = run.metrics.read_text().splitlines()
    assert json.loads(first) == {"step": 1, "a": None, "b": None, "c": None, "d": 0.5, "e": 3}
    assert json.loads(second) == {"step": 2}


def test_an_earlier_run_is_moved_aside(tmp_path: Path, config: MaestroConfig, scored: Scored) -> None:
    run = written_run(tmp_path / "run", config, scored, 2)
    old = run.metrics.read_text()
    moved = RunDir(run.path).start(config, None)
    assert moved is not None and moved.parent == tmp_path and moved.name.startswith("run.")
    assert (moved / "metrics.jsonl").read_text() == old
    assert len(list((moved / "rollouts").iterdir())) == 2
    assert not run.metrics.exists() and not list(run.rollouts.iterdir())


def test_a_fresh_folder_moves_nothing(tmp_path: Path, config: MaestroConfig) -> None:
    run = RunDir(tmp_path / "run")
    assert run.start(config, None) is None
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (run.path / "config.yaml").is_file()


def test_a_resume_forgets_what_came_after_the_checkpoint(tmp_path: Path, config: MaestroConfig, scored: Scored) -> None:
    run = written_run(tmp_path / "run", config, scored, 5)
    with run.metrics.open("a") as file:
        file.write('{"step": 6, "policy/lo')  # killed in the middle of a line
    assert RunDir(run.path).start(config, 3) is None
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2, 3]
    assert sorted(path.name for path in run.rollouts.iterdir()) == [f"step_00000{n}.parquet" for n in (1, 2, 3)]
    assert not list(run.evaluations.iterdir())
    run.append_metrics({"step": 4})
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_resume_keeps_what_came_before(tmp_path: Path, config: MaestroConfig, scored: Scored) -> None:
    run = written_run(tmp_path / "run", config, scored, 3)
    before = run.metrics.read_text()
    RunDir(run.path).start(config, 3)
    assert run.metrics.read_text() == before
    assert len(list(run.rollouts.iterdir())) == 3 and len(list(run.evaluations.iterdir())) == 1
