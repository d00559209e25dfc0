"""docs/analysis.md: its code, read from the page, finds the answers that a small run has by construction."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from openrlhf_maestro.data.prompts import Prompt
from openrlhf_maestro.evaluation.results import Result, write_results
from openrlhf_maestro.objective import group_advantages
from openrlhf_maestro.rewards import group_rank, scalarize
from openrlhf_maestro.rollout.responses import Response
from openrlhf_maestro.trainer.batch import Rollout, Scored, TokenValues
from openrlhf_maestro.trainer.run_dir import RunDir

pytest.importorskip("duckdb")

PAGE = Path(__file__).parents[2] / "docs" / "analysis.md"
NAMES = ["format", "entropy"]
INF, NAN = float("inf"), float("nan")

Question = Callable[[str], dict[str, Any]]


# ── the run: 20 steps of four groups of three responses ──


def groups(step: int) -> list[tuple[str, str, list[float], list[float]]]:
    """Data set, prompt, raw format and raw entropy of the three responses."""
    turn = [2.0, 2.0, 2.0] if step % 2 else [1.0, 2.0, 3.0]
    found = [
        ("counting", "count A", [0.0, 0.0, 0.0], [-INF, 2.0, 3.0]),
        ("creative", "write B", [1.0, 0.0, 0.0], [2.0, 1.0, 3.0]),
        ("counting", "count C", [1.0, 1.0, 1.0], [NAN, NAN, NAN]),
        ("counting", "count E in turns", [1.0, 1.0, 1.0], turn),
    ]
    once = ("counting", "once", [0.0, 0.0, 0.0], [2.0, 2.0, 2.0])
    return [*found, once] if step == 20 else found


def scored(step: int) -> Scored:
    found = groups(step)
    raw = torch.tensor([[given for given in pair] for _, _, *both in found for pair in zip(*both, strict=True)])
    norm = raw.clone()
    norm[:, 1] = group_rank(raw[:, 1].view(-1, 3)).flatten()
    rows = len(raw)
    weights = torch.full((rows, 2), 0.5)
    late = step > 10
    shares = {"counting": (0.1, 0.9) if late else (0.5, 0.5), "creative": (0.7, 0.3) if late else (0.5, 0.5)}
    probs = torch.tensor([shares[datasource] for datasource, *_ in found for _ in range(3)])
    scalar = scalarize(norm, weights)
    prompts = [
        Prompt(text, text, ({"role": "user", "content": text},), "reference", datasource, "rows.jsonl", 1)
        for datasource, text, *_ in found
    ]
    response = Response([1, 2], np.zeros(2, dtype=np.float32), False)
    zeros = torch.zeros(rows)
    return Scored(
        rollouts=[Rollout(prompt, response, "text", place) for place, prompt in enumerate(prompts) for _ in range(3)],
        component_names=NAMES,
        raw=raw,
        normalised=norm,
        anchor=None,
        weights=weights,
        probs=probs,
        actions=None,
        hidden=None,
        scalar=scalar,
        advantages=group_advantages(scalar.view(-1, 3)).flatten(),
        constant=zeros.bool(),
        spread=zeros,
        truncated=zeros.bool(),
        response_tokens=torch.full((rows,), 10),
        mean_entropy=zeros,
        kl=None,
        kl_penalty=None,
        policy_loss_tokens=torch.full((rows,), 10),
        logprob_diff_mean=zeros,
        logprob_diff_max=zeros,
        log_prob_mean=zeros,
        tokens=TokenValues(*[torch.zeros(rows, 3)] * 4, ref_log_probs=None),
        missing_reasons={},
        reward_s=dict.fromkeys(NAMES, 0.0),
        reward_wait_s=0.0,
    )


def started(path: Path) -> RunDir:
    run = RunDir(path)
    for folder in (run.rollouts, run.evaluations):
        folder.mkdir(parents=True)
    return run


def evaluated(run: RunDir, step: int, right: str) -> None:
    rows = len(right)
    columns: dict[str, list[Any]] = {
        "step": [step] * rows,
        "id": [str(row) for row in range(rows)],
        "datasource": ["counting"] * rows,
        "right": [sign == "+" for sign in right],
    }
    run.write_evaluation(step, columns)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two runs and an evaluation."""
    monkeypatch.chdir(tmp_path)
    run = started(tmp_path / "runs" / "maestro")
    run.append_metrics({"step": 0, "eval/counting/accuracy": 0.25})
    for step in range(1, 21):
        late = step > 10
        values = scored(step)
        run.write_rollouts(step, values)
        run.append_metrics(
            {
                "step": step,
                "rollout/response_length_mean": 20.0 if late else 10.0,
                "rollout/truncated_rate": 0.25 if late else 0.0,
                "rollout/tokens": 240 if late else 120,
                "time/step_s": 1.8 if late else 1.2,
                "reward/scalar_mean": float(values.scalar.mean()),
                "reward/entropy/raw_mean": NAN,
            }
        )
    evaluated(run, 0, "+---")
    evaluated(run, 20, "+++-")
    other = started(tmp_path / "runs" / "equal")
    evaluated(other, 0, "----")
    evaluated(other, 10, "+--+")
    return tmp_path


def blocks(heading: str | None) -> list[str]:
    """Python blocks under a heading; those before the first one for None."""
    parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    chosen = [parts[0]] if heading is None else [part for part in parts[1:] if part.startswith(heading)]
    assert len(chosen) == 1, heading
    return re.findall(r"```python\n(.*?)```", chosen[0], re.DOTALL)


@pytest.fixture
def ask(workplace: Path) -> Question:
    """Runs the page's first block and those of a section, and gives back the names they define."""

    def run(heading: str) -> dict[str, Any]:
        names: dict[str, Any] = {}
        found = blocks(heading)
        assert found, heading
        for text in [*blocks(None), *found]:
            exec(compile(text, f"{PAGE.name}: {heading}", "exec"), names)
        return names

    return run


# ── the answers ──


def test_the_reward_that_drives_the_advantage(ask: Question) -> None:
    """Counting: format never differs in a group. Creative: R = f/2 + e/2 with f = 1 0 0 and e = 0.5 0 1.

    Deviations of f/2 from its mean 1/6: 1/3 -1/6 -1/6; of e/2 from 1/4: 0 -1/4 1/4; of R: 1/3 -5/12 1/12.
    Their products with those of R add up to 1/6 and 1/8: shares 4/7 and 3/7.
    """
    drive = ask("1.")["drive"]
    assert drive.loc["counting"].to_dict() == pytest.approx({"format": 0.0, "entropy": 1.0})
    assert drive.loc["creative"].to_dict() == pytest.approx({"format": 4 / 7, "entropy": 3 / 7})


def test_where_the_weight_went_and_what_it_follows(ask: Question) -> None:
    moved = ask("2.")["moved"].set_index(["datasource", "component"])
    counting = moved.loc["counting"]
    assert counting["first_weight"].to_dict() == pytest.approx({"format": 0.5, "entropy": 0.5})
    assert counting["last_weight"].to_dict() == pytest.approx({"format": 0.1, "entropy": 0.9})
    # Entropy: 0 0.5 1 in A and in half of the E, whose standard deviation is 0.5; else constant, and none in C.
    assert counting.loc["entropy", "spread"] == pytest.approx((20 * 0.5 + 10 * 0.5) / 41)
    assert counting.loc["entropy", "level"] == pytest.approx(0.5)
    # Format: constant everywhere; 0 in A and once, 1 in C and E.
    assert counting.loc["format", "spread"] == 0
    assert counting.loc["format", "level"] == pytest.approx(40 / 61)
    assert counting["follows_spread"].tolist() == pytest.approx([1, 1])
    assert counting["follows_level"].tolist() == pytest.approx([-1, -1])
    creative = moved.loc["creative"]
    assert creative["last_weight"].to_dict() == pytest.approx({"format": 0.7, "entropy": 0.3})
    assert creative.loc["format", "spread"] == pytest.approx(3**-0.5)


def test_prompts_that_never_give_a_signal(ask: Question) -> None:
    """C always is constant. E is every other time, A and B never, and `once` was drawn once."""
    never = ask("3.")["never"].reset_index()
    assert never.to_dict("records") == [
        {"datasource": "counting", "prompt": "count C", "groups": 20, "silent": 20, "reward": 1.0}
    ]


def test_growth_truncation_and_the_cost_of_a_token(ask: Question) -> None:
    assert ask("4.")["growth"].round(6).to_dict("records") == [
        {"from_step": 1, "response_tokens": 10.0, "truncated": 0.0, "step_s": 1.2, "ms_a_token": 10.0},
        {"from_step": 11, "response_tokens": 20.0, "truncated": 0.25, "step_s": 1.8, "ms_a_token": 7.5},
    ]


def test_logged_numbers_follow_from_the_raw_scores(ask: Question) -> None:
    assert (ask("5.")["off"] < 1e-5).all()


@pytest.mark.parametrize(
    ("column", "found"),
    [("advantage", "advantage"), ("scalar_reward", "scalar_reward"), ("norm_entropy", "normalised")],
)
def test_a_number_that_does_not_follow_is_found(ask: Question, workplace: Path, column: str, found: str) -> None:
    file = workplace / "runs" / "maestro" / "rollouts" / "step_000007.parquet"
    rows = pd.read_parquet(file)
    rows.loc[4, column] += 0.125
    rows.to_parquet(file)
    off = ask("5.")["off"]
    assert off[found] == pytest.approx(0.125, abs=1e-5)
    assert (off.drop(found) < 1e-5).all()


def test_two_runs_side_by_side(ask: Question) -> None:
    """+++- against +--+, the last evaluation of each."""
    assert ask("Two runs")["sides"].to_dict("records") == [
        {"datasource": "counting", "prompts": 4, "maestro": 0.75, "equal": 0.5, "better": 2, "worse": 1}
    ]


def test_wrong_or_cut_off_and_split_votes(ask: Question, workplace: Path) -> None:
    folder = workplace / "evaluations" / "maestro"
    folder.mkdir(parents=True)
    votes: list[tuple[bool | None, ...]] = [(True, True, True), (True, False, True), (False, False, None), (None,) * 3]
    rights = [True, True, False, None]
    results = [
        Result(f"{row}#0", str(row), 0, "counting", None, right, None, given)
        for row, (right, given) in enumerate(zip(rights, votes, strict=True))
    ]
    write_results(folder / "results.jsonl", results)
    responses = [{"key": one.key, "truncated": row >= 2, "response": "text"} for row, one in enumerate(results)]
    (folder / "responses.jsonl").write_text("".join(json.dumps(one) + "\n" for one in responses))
    names = ask("The files of an evaluation")
    assert names["cut"].to_dict("records") == [
        {"datasource": "counting", "truncated": False, "responses": 2, "accuracy": 1.0},
        {"datasource": "counting", "truncated": True, "responses": 1, "accuracy": 0.0},
    ]
    assert names["split"]["key"].tolist() == ["1#0"]


def test_every_block_of_the_page_is_run_here() -> None:
    parts = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    run_here = re.findall(r'ask\("([^"]+)"\)', Path(__file__).read_text(encoding="utf-8"))
    assert all(any(part.startswith(heading) for heading in run_here) for part in parts)
    assert PAGE.read_text(encoding="utf-8").count("```python") == sum(len(blocks(part)) for part in [None, *parts])
