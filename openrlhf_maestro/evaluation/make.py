"""From the options to verdicts."""

from __future__ import annotations

from pathlib import Path

from openrlhf_maestro.config.verdicts import JudgeVerdictSection, ReferenceVerdictSection, VerdictKind
from openrlhf_maestro.evaluation.verdicts import Verdicts, Watch


def make_verdicts(
    kind: VerdictKind,
    judge: JudgeVerdictSection,
    reference: ReferenceVerdictSection,
    folder: Path,
    *,
    watch: Watch | None = None,
) -> Verdicts:
    """Verdicts of a kind. `folder`: where a judge's votes.jsonl goes; `watch`: is told how many votes there are.

    Raises:
        ConfigError: the judge's key is not set, or one of its prompts does not exist.
    """
    # Imported where they are needed: a page or a table should not load torch, which the judge's client brings along.
    if kind == "rule":
        from openrlhf_maestro.evaluation.rule import RuleVerdicts

        return RuleVerdicts()
    if kind == "reference":
        from openrlhf_maestro.evaluation.reference import ReferenceVerdicts

        return ReferenceVerdicts(reference)
    from openrlhf_maestro.evaluation.judge import JudgeVerdicts

    return JudgeVerdicts(judge, folder, watch=watch)
