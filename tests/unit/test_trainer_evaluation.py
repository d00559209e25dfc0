"""Held-out verdicts during training: what is judged, what is logged, and what lies in evaluations/."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from openrlhf_maestro.config.sections import EvalSection
from openrlhf_maestro.data.prompts import Prompt
from openrlhf_maestro.evaluation import Item, Verdict
from openrlhf_maestro.rollout.responses import Response
from openrlhf_maestro.trainer.evaluation import Evaluator, evaluation_metrics
from openrlhf_maestro.trainer.run_dir import RunDir

STOP = 9


def prompt(number: int, datasource: str) -> Prompt:
    text = f"question {number}"
    return Prompt(str(number), f"Please: {text}", (), f"reference {number}", datasource, "f", number, question=text)


class Engine:
    """Answers the n-th sample of a prompt with the tokens [row, sample] and a stop token."""

    def sample(self, prompts: Sequence[Prompt], *, n_samples: int, **_: object) -> list[list[Response]]:
        none = np.zeros(0, dtype=np.float32)
        return [[Response([asked.row, k, STOP], none, False) for k in range(n_samples)] for asked in prompts]


class Tokenizer:
    def batch_decode(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        return [" ".join(map(str, sequence)) for sequence in sequences]


class Judge:
    """Says what it was made to say, in order, and remembers what it was asked."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts, self.asked = verdicts, list[Item]()

    def __call__(self, items: Sequence[Item]) -> list[Verdict]:
        self.asked += items
        return list(self.verdicts)


def evaluator(tmp_path: Path, judge: Judge) -> Evaluator:
    run_dir = RunDir(tmp_path)
    run_dir.evaluations.mkdir()
    prompts = [prompt(1, "one"), prompt(2, "two")]
    return Evaluator(EvalSection(n_samples_per_prompt=2), prompts, Engine(), Tokenizer(), run_dir, judge)  # type: ignore[arg-type]


RIGHT, WRONG, UNKNOWN = Verdict(True, None), Verdict(False, None), Verdict(None, None, problem="no vote")


def test_a_judge_is_shown_the_question_without_its_template(tmp_path: Path) -> None:
    judge = Judge(RIGHT, WRONG, RIGHT, UNKNOWN)
    evaluator(tmp_path, judge).evaluate(3)
    assert judge.asked == [
        Item("step 3 1#1#0", "one", "question 1", "reference 1", "1 0"),
        Item("step 3 1#1#1", "one", "question 1", "reference 1", "1 1"),
        Item("step 3 2#2#0", "two", "question 2", "reference 2", "2 0"),
        Item("step 3 2#2#1", "two", "question 2", "reference 2", "2 1"),
    ]


def test_metrics_count_what_has_a_verdict(tmp_path: Path) -> None:
    summary = evaluator(tmp_path, Judge(RIGHT, WRONG, RIGHT, UNKNOWN)).evaluate(3)
    metrics = evaluation_metrics(summary)
    bounds = {name for name in metrics if name.endswith(("_low", "_high"))}
    assert {name for name in bounds if "overall" in name} == {f"eval/overall/accuracy_{end}" for end in ("low", "high")}
    assert {name: value for name, value in metrics.items() if name not in bounds} == {
        "eval/one/accuracy": 0.5,
        "eval/one/n": 2,
        "eval/one/missing_rate": 0.0,
        "eval/two/accuracy": 1.0,
        "eval/two/n": 1,
        "eval/two/missing_rate": 0.5,
        "eval/overall/accuracy": pytest.approx(2 / 3),
        "eval/overall/n": 3,
        "eval/overall/missing_rate": 0.25,
    }


def test_an_interval_is_that_of_prompts_not_of_responses(tmp_path: Path) -> None:
    """Two equal samples of each of two prompts are worth two responses: Wilson for 1 of 2, by hand."""
    metrics = evaluation_metrics(evaluator(tmp_path, Judge(RIGHT, RIGHT, WRONG, WRONG)).evaluate(0))
    # The two prompts say nothing about how far they vary, beyond t's quantile for one degree of freedom.
    assert metrics["eval/overall/accuracy"] == 0.5
    z, n = 1.959964, 2.0
    half = z / (n + z * z) * (n / 4 + z * z / 4) ** 0.5
    assert metrics["eval/overall/accuracy_low"] <= 0.5 - half
    assert metrics["eval/overall/accuracy_high"] >= 0.5 + half


def test_rows_of_one_story_belong_together(tmp_path: Path) -> None:
    judge = Judge(RIGHT, WRONG, RIGHT, UNKNOWN)
    made = evaluator(tmp_path, judge)
    made.prompts = [replace(one, metadata={"meta": {"cluster": "story"}}, datasource="d") for one in made.prompts]
    assert made.evaluate(0).overall.clusters == 1


def test_scores_alone_have_no_accuracy(tmp_path: Path) -> None:
    scores = [Verdict(None, value) for value in (0.5, 1.0, 0.0, 0.25)]
    metrics = evaluation_metrics(evaluator(tmp_path, Judge(*scores)).evaluate(0))
    assert metrics["eval/one/score"] == 0.75
    assert metrics["eval/overall/score"] == pytest.approx(0.4375)
    assert metrics["eval/overall/n"] == 4
    assert not any(name.endswith("accuracy") for name in metrics)


def test_every_response_is_written_with_its_verdict(tmp_path: Path) -> None:
    evaluator(tmp_path, Judge(RIGHT, WRONG, Verdict(None, 0.5), UNKNOWN)).evaluate(3)
    found = pq.read_table(tmp_path / "evaluations" / "step_000003.parquet").to_pydict()
    assert found["right"] == [True, False, None, None]
    assert found["score"] == [None, None, 0.5, None]
    assert found["sample"] == [0, 1, 0, 1]
    assert found["id"] == ["1", "1", "2", "2"]
    assert found["prompt"][0] == "Please: question 1"
    assert found["response"] == ["1 0", "1 1", "2 0", "2 1"]
