"""The components of the reward: one section a kind. What each measures is in `openrlhf_maestro/rewards`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Tag, model_validator

from openrlhf_maestro.config.fields import PAPER, Section, option

Normalisation = Literal["none", "group_rank", "zscore"]


class ComponentSection(Section):
    """One component of the reward."""

    # Whether its raw value needs a forward of its own of a large model, and so can be configured once only.
    once: ClassVar[bool] = False

    kind: str = option(..., "what is measured, see docs/concepts.md")
    name: str | None = option(None, "its name in logs and files; default the kind", pattern=r"^[A-Za-z0-9_.-]+$")
    normalisation: Normalisation | None = option(
        None, "how raw values become comparable; default rewards.normalisation", source=f"{PAPER}, appendix B"
    )
    gate: str | None = option(
        None, "name of another component: where its raw value is not above 0 this one is 0, the response's fault"
    )

    anchor: bool = option(
        False,
        "the trusted signal of conductor.credit: anchor: its raw scores on a share of the groups, not part of the "
        "reward (what a model measures, `preference` and `perplexity`, is measured on all)",
    )

    @property
    def label(self) -> str:
        return self.name or self.kind

    @property
    def needs_reference(self) -> bool:
        """Whether it reads the rows' reference answers; then a row without one is left out."""
        return False

    def knows(self, reference: str | None, metadata: Mapping[str, Any]) -> bool:
        """Whether a row has what a score of its responses needs."""
        return reference is not None or not self.needs_reference

    def parameter(self, name: str, datasource: str) -> Any:
        """The value of a parameter for the rows of a data source: the one in `by_datasource`, else the general one."""
        by_datasource: Mapping[str, Section] = getattr(self, "by_datasource", {})
        special = by_datasource.get(datasource)
        return getattr(special if special is not None and name in special.model_fields_set else self, name)


class FormatComponent(ComponentSection):
    """1 for exactly one `<think>...</think>` and then one `<answer>...</answer>`, else 0."""

    kind: Literal["format"] = option("format", "what is measured")


class AnswerPrefix(Section):
    """What opens the answer before the reference is read."""

    answer_prefix: str = option("\n<answer>\n", "put between the reasoning segment and the reference answer")


class PerplexityComponent(ComponentSection, AnswerPrefix):
    """How likely the reference answer is after the response's own reasoning."""

    once: ClassVar[bool] = True
    kind: Literal["perplexity"] = option("perplexity", "what is measured")
    by_datasource: dict[str, AnswerPrefix] = option({}, "other values for the rows of a data source, by its name")
    shared_forward: bool = option(
        False, "read response and reference in one forward (a 4D attention mask; not with flash attention)"
    )

    @property
    def needs_reference(self) -> bool:
        return True


class EntropyComponent(ComponentSection):
    """Mean entropy of the policy's predictions along the response."""

    kind: Literal["entropy"] = option("entropy", "what is measured")


class NegEntropyComponent(ComponentSection):
    """The opposite of `entropy` (EM-GRPO)."""

    kind: Literal["neg_entropy"] = option("neg_entropy", "what is measured")


class LengthLimits(Section):
    """Where the length reward begins to fall and where it is 0."""

    l_min: int | None = option(None, "full reward up to here; default half of l_max", unit="tokens", ge=0)
    l_max: int | None = option(None, "no reward from here; default rollout.max_new_tokens", unit="tokens", ge=1)


class LengthComponent(ComponentSection, LengthLimits):
    """1 for a short response, falling linearly to 0."""

    kind: Literal["length"] = option("length", "what is measured")
    by_datasource: dict[str, LengthLimits] = option({}, "other limits for the rows of a data source, by its name")

    def limits(self, datasource: str, max_new_tokens: int) -> tuple[float, float]:
        """l_min and l_max for the rows of a data source, tokens."""
        l_max = self.parameter("l_max", datasource)
        l_max = max_new_tokens if l_max is None else l_max
        l_min = self.parameter("l_min", datasource)
        return (l_max / 2 if l_min is None else l_min), l_max

    def limit_problems(self, max_new_tokens: int | None) -> Iterator[str]:
        """What is wrong with its limits, a sentence each. `max_new_tokens`: of the run; None: there is no run."""
        for source in ("", *self.by_datasource):
            where = f" of {source}" if source else ""
            if max_new_tokens is None and self.parameter("l_max", source) is None:
                yield f"the `{self.label}` component needs l_max{where}: a server does not know rollout.max_new_tokens."
                continue
            l_min, l_max = self.limits(source, max_new_tokens or 0)
            if l_min >= l_max:
                highest = f"{l_max:g}" if max_new_tokens is None else f"{l_max:g}; by default rollout.max_new_tokens"
                yield f"the `{self.label}` component: l_min{where} ({l_min:g}) must be below l_max ({highest})."


class PreferenceComponent(ComponentSection):
    """Score of the preference model of section `reward`."""

    once: ClassVar[bool] = True
    kind: Literal["preference"] = option("preference", "what is measured")


class RuleComponent(ComponentSection):
    """Verdict of the bundled tasks' rule checker, 0 or 1."""

    kind: Literal["rule"] = option("rule", "what is measured")

    @property
    def needs_reference(self) -> bool:
        return True


def _scorer_url(url: str) -> str:
    """The address of an outside scorer: http or https, no secrets in it, no link-local number (cloud metadata).

    What is wrong is said without the address: there may be a secret in it.
    """
    # What a client makes of other characters differs, so that it could ask another host than the one that was checked.
    if not all("!" <= character <= "~" for character in url):
        raise ValueError("an address is of printable ASCII without spaces: write a host as xn--..., the rest as %...")
    if "?" in url or "#" in url:
        raise ValueError("an address may not hold a query or fragment: keys are read from environment variables")
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("an address may not hold a user name or password: keys are read from environment variables")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:  # `port` checks itself
        raise ValueError("an address begins with http:// or https:// and a host")
    _check_host(parts.hostname)
    return url


def _check_host(host: str) -> None:
    try:
        number = ip_address(host)
    except ValueError:
        labels = host.removesuffix(".").split(".")
        if labels[-1].isdigit() or not all(re.fullmatch(r"[A-Za-z0-9_-]{1,63}", label) for label in labels):
            raise ValueError(
                "the host is no IP address, and no name of labels of 1 to 63 letters, digits, - and _"
            ) from None
        return
    if number.is_link_local:
        raise ValueError(f"{host} is a link-local address, which is not called")


ScorerUrl = Annotated[str, AfterValidator(_scorer_url)]


class MatchComponent(ComponentSection):
    """1 where the answer segment is the row's label, else 0; case and white space aside."""

    kind: Literal["match"] = option("match", "what is measured")
    column: str | None = option(None, "column of the rows that holds the label; default the reference answer")

    @property
    def needs_reference(self) -> bool:
        return self.column is None

    def label_of(self, reference: str | None, metadata: Mapping[str, Any]) -> str:
        """The row's label; empty where there is none."""
        label = reference if self.column is None else metadata.get(self.column)
        return "" if label is None else str(label).strip()

    def knows(self, reference: str | None, metadata: Mapping[str, Any]) -> bool:
        return bool(self.label_of(reference, metadata))


class ServiceOptions(Section):
    """How an outside scorer is called, and what happens when it fails."""

    concurrency: int = option(32, "most calls at a time", unit="calls", ge=1)
    timeout_s: float = option(60.0, "a call that takes longer has failed", unit="s", gt=0)
    retry_s: float = option(
        300.0, "a failing call is tried again, with growing waits, for at most this long; then the value is missing",
        unit="s", ge=0,
    )  # fmt: skip
    max_failures: int = option(
        10, "after this many calls given up in a row the run writes a checkpoint and stops", unit="calls", ge=1
    )


class JudgePrompt(Section):
    """What a judge is asked."""

    prompt: str = option(
        "Judge how good the answer is to the question: is it right, complete and clear?",
        "what the judge is asked to rate; the scale and the delimiters are added",
    )


class JudgeComponent(ComponentSection, JudgePrompt, ServiceOptions):
    """A language model's score of the answer segment between 0 and 1, over an OpenAI-compatible API."""

    kind: Literal["judge"] = option("judge", "what is measured", source=f"{PAPER}, appendix F")
    model: str = option(..., "name of the model at the endpoint")
    base_url: ScorerUrl = option("https://api.openai.com/v1", "the endpoint, up to what comes before /chat/completions")
    api_key_env: str | None = option(
        "OPENAI_API_KEY", "environment variable that holds the key; null: the endpoint wants none"
    )
    by_datasource: dict[str, JudgePrompt] = option({}, "other prompts for the rows of a data source, by its name")
    with_reference: bool = option(True, "show the judge the reference answer")
    temperature: float | None = option(0.0, "the judge's sampling temperature; null: not sent", ge=0)
    max_tokens: int | None = option(16, "longest reply; null: not sent", unit="tokens", ge=1)
    extra_body: dict[str, Any] = option({}, "further fields of the request, such as {structured_outputs: {...}}")
    cache: str | None = option(
        None, "SQLite file that remembers scores, off: none; default judge_<name>.sqlite in run.dir"
    )

    @property
    def needs_reference(self) -> bool:
        return self.with_reference


class RemoteComponent(ComponentSection, ServiceOptions):
    """A score over HTTP: from `maestro serve-rewards`, or from a server of OpenRLHF's single-reward protocol."""

    kind: Literal["remote"] = option("remote", "what is measured")
    url: ScorerUrl = option(..., "address of the endpoint, http:// or https://")
    protocol: Literal["maestro", "openrlhf"] = option(
        "maestro", "maestro: groups in, a vector a response out; openrlhf: query, prompts, labels in, rewards out"
    )
    component: str | None = option(None, "maestro: which of the server's components; default this one's name")
    token_env: str = option("MAESTRO_REWARD_TOKEN", "environment variable that holds the bearer token, if it is set")

    @model_validator(mode="after")
    def _one_reward_has_no_name(self) -> RemoteComponent:
        if self.protocol == "openrlhf" and self.component is not None:
            raise ValueError("component has no meaning with protocol: openrlhf, which has one reward: leave it out")
        return self


class CallableComponent(ComponentSection):
    """A Python function of yours, see docs/extending.md."""

    kind: Literal["callable"] = option("callable", "what is measured")
    function: str = option(..., "package.module:function or path/to/file.py:function")
    timeout_s: float = option(300.0, "a group that takes longer has no value", unit="s", gt=0)


def kind_of(value: Any) -> Any:
    """What tells the items of a list option apart, before or after they are validated."""
    return value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)


AnyComponent = Annotated[
    Annotated[FormatComponent, Tag("format")]
    | Annotated[PerplexityComponent, Tag("perplexity")]
    | Annotated[EntropyComponent, Tag("entropy")]
    | Annotated[NegEntropyComponent, Tag("neg_entropy")]
    | Annotated[LengthComponent, Tag("length")]
    | Annotated[PreferenceComponent, Tag("preference")]
    | Annotated[RuleComponent, Tag("rule")]
    | Annotated[MatchComponent, Tag("match")]
    | Annotated[JudgeComponent, Tag("judge")]
    | Annotated[RemoteComponent, Tag("remote")]
    | Annotated[CallableComponent, Tag("callable")],
    Discriminator(kind_of),
]


def paper_components() -> tuple[ComponentSection, ...]:
    """The paper's five [B]."""
    return (FormatComponent(), PerplexityComponent(), EntropyComponent(), LengthComponent(), PreferenceComponent())


# Minus a loss and minus an entropy: as a gate they would always be closed.
NEVER_ABOVE_0 = ("perplexity", "neg_entropy")


def check_names_and_gates(components: Sequence[ComponentSection]) -> None:
    """Raises ValueError where two share a name or a kind that is used once, or a gate is no other component."""
    names = [component.label for component in components]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two components are called {', '.join(twice)}: each needs a name of its own")
    kinds = [component.kind for component in components if component.once]
    again = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if again:
        raise ValueError(f"two components are of kind {', '.join(again)}: this kind can be used once")
    anchors = [component.label for component in components if component.anchor]
    for component in components:
        if component.anchor and component.normalisation is not None:
            raise ValueError(f"{component.label} is the anchor, whose raw scores count: take its normalisation away")
    if len(anchors) > 1:
        raise ValueError(f"{', '.join(anchors)} are all an anchor: there is one trusted signal")
    if anchors and len(components) == 1:
        raise ValueError(f"{anchors[0]} is the anchor, which is not part of the reward: no component is left for that")
    never = {component.label for component in components if component.kind in NEVER_ABOVE_0}
    for component in components:
        others = [name for name in names if name not in (component.label, *anchors)]
        if component.gate in never:
            raise ValueError(f"the gate of {component.label} is {component.gate}, whose values are never above 0")
        if component.gate is not None and component.gate not in others:
            raise ValueError(
                f"the gate of {component.label} is {component.gate}, which is not another component "
                f"({', '.join(others) or 'there is none'})"
            )
