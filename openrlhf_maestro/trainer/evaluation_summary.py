"""The end of an evaluation: summary.json, and the same for the eye."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from openrlhf_maestro.config.evaluate import EvaluateConfig
from openrlhf_maestro.evaluation import Verdicts
from openrlhf_maestro.evaluation.console import print_table
from openrlhf_maestro.evaluation.judge import JudgeVerdicts
from openrlhf_maestro.evaluation.pairwise import PairwiseVerdicts
from openrlhf_maestro.evaluation.prompts import load_instructions
from openrlhf_maestro.evaluation.results import Result
from openrlhf_maestro.evaluation.tables import Summary, percent, summarise, table
from openrlhf_maestro.evaluation.verdicts import VoteCounts
from openrlhf_maestro.trainer.console import CONSOLE
from openrlhf_maestro.trainer.evaluation_dir import EvaluationDir


def conclude(config: EvaluateConfig, folder: EvaluationDir, results: Sequence[Result], verdicts: Verdicts) -> None:
    """Writes summary.json and prints the same."""
    summary = summarise(results, pairwise=config.kind == "pairwise")
    about: dict[str, Any] = {
        "name": config.run.name,
        "model": config.model.name_or_path,
        "data": config.data.dataset,
        "verdict": _verdict_settings(config),
    }
    counts = verdicts.counts if isinstance(verdicts, JudgeVerdicts | PairwiseVerdicts) else None
    if counts is not None:
        about["replies"] = {"total": counts.total, "unreadable": counts.unreadable, "missing": counts.missing}
    if isinstance(verdicts, PairwiseVerdicts):
        bias = verdicts.bias
        about["position_bias"] = {
            "votes": bias.pairs,
            "inconsistent_share": bias.inconsistent_share,
            "first_share": bias.first_share,
        }
    folder.write_summary(about | summary.to_json())
    _print(config, summary, counts, verdicts, results)
    CONSOLE.print(
        f"results.jsonl, summary.json and responses.jsonl are in {folder.path}/", soft_wrap=True, markup=False
    )


def _verdict_settings(config: EvaluateConfig) -> dict[str, Any]:
    settings = config.verdict_settings()
    if config.kind in ("judge", "pairwise"):
        # A file's name holds a digest of its text.
        settings["prompt"] = load_instructions(config.judge.prompt).name
        settings["by_datasource"] = {
            source: load_instructions(prompt).name for source, prompt in settings["by_datasource"].items()
        }
    if config.kind == "pairwise":
        settings["opponent"] = Path(config.verdict.against or "").resolve().name
    return settings


def _print(
    config: EvaluateConfig, summary: Summary, counts: VoteCounts | None, verdicts: Verdicts, results: Sequence[Result]
) -> None:
    found = table(summary, f"{config.run.name}: {config.model.name_or_path} on {config.data.dataset}")
    # Only a terminal has an edge to fold at.
    print_table(CONSOLE if CONSOLE.is_terminal else Console(width=200, highlight=False), found)
    if counts is not None:
        CONSOLE.print(
            f"{counts.total} replies of the judge: {counts.reused} there already, {counts.asked} new, "
            f"{counts.unreadable} that could not be read, {counts.missing} missing",
            soft_wrap=True,
        )
        if counts.missing:
            CONSOLE.print("the same command asks for the missing ones again", soft_wrap=True)
    if isinstance(verdicts, PairwiseVerdicts):
        bias = verdicts.bias
        CONSOLE.print(
            f"position bias: the two orders disagree in {percent(bias.inconsistent_share)} of {bias.pairs} votes; the "
            f"answer shown first won {percent(bias.first_share)} of the replies for one of them",
            soft_wrap=True,
        )
    problem = next((result.problem for result in results if result.problem), None)
    if problem is not None:
        without = sum(result.right is None and result.score is None for result in results)
        CONSOLE.print(
            f"no verdict on {without} of {len(results)} responses, the first because {problem}",
            soft_wrap=True,
            markup=False,
        )
