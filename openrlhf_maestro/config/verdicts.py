"""How responses are judged: shared by `maestro evaluate` and the evaluation during training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from openrlhf_maestro.config.components import ScorerUrl, ServiceOptions
from openrlhf_maestro.config.fields import PAPER, Section, option

VerdictKind = Literal["rule", "judge", "reference"]


class VerdictPrompt(Section):
    """What the judge is asked."""

    prompt: str = option(
        "strict",
        "what the judge is asked: strict, lenient or creative, or a text file with instructions of your own",
        source=f"{PAPER}, Figures 5-7; the wording is ours",
    )


class JudgeVerdictSection(VerdictPrompt, ServiceOptions):
    """The language model that gives verdicts, over an OpenAI-compatible API."""

    model: str | None = option(None, "name of the model at the endpoint")
    base_url: ScorerUrl = option("https://api.openai.com/v1", "the endpoint, up to what comes before /chat/completions")
    api_key_env: str | None = option(
        "OPENAI_API_KEY", "environment variable that holds the key; null: the endpoint wants none"
    )
    by_datasource: dict[str, VerdictPrompt] = option({}, "other prompts for the rows of a data set, by its name")
    votes: int = option(3, "votes on each response; the majority decides", unit="votes", source=PAPER, ge=1)
    seed: int | None = option(
        0,
        "of the judge's sampling; every vote has a seed of its own that follows from it; null: not sent, for an "
        "endpoint that refuses it",
        ge=0,
    )
    temperature: float | None = option(0.7, "the judge's sampling temperature; null: not sent", ge=0)
    max_tokens: int | None = option(16, "longest reply; null: not sent", unit="tokens", ge=1)
    extra_body: dict[str, Any] = option({}, "further fields of the request, such as {structured_outputs: {...}}")

    def prompt_for(self, datasource: str) -> str:
        """`prompt` for the rows of a data set: the one in `by_datasource`, else the general one."""
        special = self.by_datasource.get(datasource)
        return special.prompt if special is not None else self.prompt

    def problems(self, kind: str, name: str) -> Iterator[str]:
        """What is wrong where the verdicts are of `kind`, a sentence each. `name`: of this section."""
        if kind in ("judge", "pairwise"):
            if self.model is None:
                yield f"a verdict by a judge needs its name at the endpoint: set {name}.model."
            if self.votes % 2 == 0:
                yield f"{name}.votes is {self.votes}: an even number has no majority where it is split. Set it to 3."


class ReferenceVerdictSection(Section):
    """Comparison with the reference answer, without a model."""

    metric: Literal["f1", "chrf", "exact"] = option(
        "f1", "f1: of the tokens, as for SQuAD; chrf: of character n-grams, for translations; exact: equal or not"
    )
    threshold: float | None = option(
        None, "scores from here on count as right; null: scores only (exact: always right or wrong)", ge=0, le=1
    )
