"""summary.json, and what a person sees at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openrlhf_maestro.config.evaluate import EvaluateConfig
from openrlhf_maestro.config.load import load_config
from openrlhf_maestro.config.verdicts import JudgeVerdictSection
from openrlhf_maestro.evaluation import Item
from openrlhf_maestro.evaluation.judge import JudgeVerdicts
from openrlhf_maestro.evaluation.pairwise import PairwiseVerdicts
from openrlhf_maestro.evaluation.results import Result
from openrlhf_maestro.evaluation.rule import RuleVerdicts
from openrlhf_maestro.evaluation.tables import Summary
from openrlhf_maestro.trainer.evaluation_dir import EvaluationDir
from openrlhf_maestro.trainer.evaluation_summary import conclude

HOSTILE = "[/bold] [red]x"


def config(*words: str) -> EvaluateConfig:
    return load_config(EvaluateConfig, ["--model", "m", "--data", "bundled:tasks", *words])


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def section(judge: Any) -> JudgeVerdictSection:
    return JudgeVerdictSection(model="m", base_url=judge.url, api_key_env="EVALUATION_JUDGE_KEY")


def test_it_is_what_comparisons_read_and_markup_in_names_is_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [Result(f"r{n}#0", f"r{n}", 0, HOSTILE, None, n < 3, float(n < 3)) for n in range(4)]
    conclude(config("--run.name", "[mine]"), EvaluationDir(tmp_path), results, RuleVerdicts())
    found = summary(tmp_path)
    assert {name: found[name] for name in ("name", "model", "data", "verdict")} == {
        "name": "[mine]",
        "model": "m",
        "data": "bundled:tasks",
        "verdict": {"kind": "rule"},
    }
    assert "replies" not in found and "position_bias" not in found
    overall = Summary.from_json(found).overall
    assert (overall.right, overall.n) == (3, 4)
    output = capsys.readouterr().out
    assert HOSTILE in output and "[mine]: m on bundled:tasks" in output


def test_a_judges_replies_are_counted_and_the_first_problem_is_shown(
    judge: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "mine.txt"
    own.write_text("Is it so?")
    judge.answer = lambda request: "True" if judge.shown(request, "answer") == "good" else "who knows [/x]"
    verdicts = JudgeVerdicts(section(judge), tmp_path)
    items = [Item("a#0", "d", "q", "r", "good"), Item("b#0", "d", "q", "r", "bad")]
    results = [
        Result(item.key, item.key[0], 0, "d", None, verdict.right, verdict.score, verdict.votes, verdict.problem)
        for item, verdict in zip(items, verdicts(items), strict=True)
    ]
    options = config("--judge.model", "m", "--judge.by_datasource", f"{{d: {{prompt: {own}}}}}")
    conclude(options, EvaluationDir(tmp_path), results, verdicts)
    found = summary(tmp_path)
    assert found["replies"] == {"total": 6, "unreadable": 3, "missing": 0}
    assert found["verdict"]["prompt"] == "strict"
    assert found["verdict"]["by_datasource"]["d"].startswith("mine.txt:")
    output = capsys.readouterr().out
    assert "6 replies of the judge: 0 there already, 6 new, 3 that could not be read, 0 missing" in output
    assert "no verdict on 1 of 2 responses, the first because 3 of 3 replies are neither" in output
    assert "who knows [/x]" in output


def test_a_comparison_has_its_opponent_and_position_bias(
    judge: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge.answer = lambda _: "First"
    verdicts = PairwiseVerdicts(section(judge), tmp_path, {"a#0": "theirs"})
    (verdict,) = verdicts([Item("a#0", "d", "q", "r", "ours")])
    results = [Result("a#0", "a", 0, "d", None, verdict.right, verdict.score)]
    options = config("--judge.model", "m", "--verdict.against", "evaluations/base")
    conclude(options, EvaluationDir(tmp_path), results, verdicts)
    found = summary(tmp_path)
    assert found["position_bias"] == {"votes": 3, "inconsistent_share": 1.0, "first_share": 1.0}
    assert (found["verdict"]["kind"], found["verdict"]["opponent"]) == ("pairwise", "base")
    duel = found["overall"]["duel"]
    assert (duel["wins"], duel["ties"], duel["losses"]) == (0, 1, 0)
    assert "the two orders disagree in 100.0 % of 3 votes" in capsys.readouterr().out
