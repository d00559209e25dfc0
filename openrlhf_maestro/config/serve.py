"""The configuration of `maestro serve-rewards`: what is served, to whom, and how much at a time."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from pydantic import field_validator, model_validator

from openrlhf_maestro.config.components import (
    AnyComponent,
    ComponentSection,
    LengthComponent,
    check_names_and_gates,
)
from openrlhf_maestro.config.fields import Section, option, section
from openrlhf_maestro.config.sections import Device, ParamDtype

# They are read off the policy's own forward, which a server does not make.
OF_THE_POLICY = ("perplexity", "entropy", "neg_entropy")


class ServeSection(Section):
    """The server: its address, who may ask, and how much at a time."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0: every one of this machine's")
    port: int = option(8765, "port to listen on; 0: one that is free", ge=0, le=65535)
    require_token: bool = option(
        True, "ask for a bearer token; can be switched off on a loopback address only, for clients that cannot send one"
    )
    token_env: str = option("MAESTRO_REWARD_TOKEN", "environment variable that holds the bearer token")
    max_body_mib: float = option(64.0, "a larger request is refused", unit="MiB", gt=0)
    max_responses: int = option(1024, "a request with more is refused", unit="responses", ge=1)
    policy_tokenizer: str | None = option(
        None,
        "the policy's tokenizer, a Hugging Face name or folder: finds the stop token in what OpenRLHF sends and counts "
        "tokens; null: POST /get_reward is not served",
    )
    trust_remote_code: bool = option(False, "let Hugging Face repositories run their own code")

    @property
    def is_loopback(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @model_validator(mode="after")
    def _open_to_this_machine_only(self) -> ServeSection:
        if not self.require_token and not self.is_loopback:
            raise ValueError(
                f"serve.require_token: false would let everyone who reaches {self.host} ask: set serve.host to "
                "127.0.0.1, or serve.require_token to true"
            )
        return self


class ServedRewardsSection(Section):
    """What is served."""

    components: tuple[AnyComponent, ...] = option(
        ..., "the components, in the order of each response's vector", min_length=1
    )
    weights: dict[str, float] | None = option(
        None, "weight of each component by name in the one reward of OpenRLHF's protocol; default all equal"
    )

    @field_validator("components")
    @classmethod
    def _can_be_served(cls, value: tuple[ComponentSection, ...]) -> tuple[ComponentSection, ...]:
        check_names_and_gates(value)
        for component in value:
            if component.kind in OF_THE_POLICY:
                raise ValueError(
                    f"{component.label} is read off the policy's own forward, which only a run makes: configure it "
                    "there, and take it out here"
                )
        return value

    @model_validator(mode="after")
    def _weigh_what_is_served(self) -> ServedRewardsSection:
        names = [component.label for component in self.components]
        if self.weights is None:
            return self
        values = self.weights.values()
        if sorted(self.weights) != sorted(names) or min(values) < 0 or sum(values) == 0:
            raise ValueError(
                f"rewards.weights needs weights, not negative and not all 0, for exactly {', '.join(names)}"
            )
        return self


class ServedPreferenceSection(Section):
    """The preference model, for a `preference` component."""

    model_name_or_path: str | None = option(None, "a Hugging Face sequence-classification model, or bundled:preference")
    max_len: int = option(
        4096, "longest prompt + response it reads; a longer one is the response's fault", unit="its tokens", ge=1
    )
    batch_size: int = option(8, "conversations a forward", unit="responses", ge=1)
    device: Device = option("auto", "where the model runs; auto: cuda where there is one, else cpu")
    param_dtype: ParamDtype = option("auto", "auto: bf16 on cuda, fp32 on a CPU")
    assets_dir: str = option("assets", "folder of the bundled model, made on first use")


class ServeConfig(Section):
    """Everything `maestro serve-rewards` reads."""

    serve: ServeSection = section(ServeSection)
    rewards: ServedRewardsSection
    reward: ServedPreferenceSection = section(ServedPreferenceSection)

    @model_validator(mode="after")
    def _combination_can_work(self) -> ServeConfig:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        for component in self.rewards.components:
            if isinstance(component, LengthComponent):
                yield from component.limit_problems(None)
        served = any(component.kind == "preference" for component in self.rewards.components)
        if served and self.reward.model_name_or_path is None:
            yield (
                "the `preference` component needs a model: set reward.model_name_or_path, "
                "or take it out of rewards.components."
            )

    def notes(self) -> list[str]:
        """What was set but has no effect in this combination, and what is open to others; one sentence each."""
        found = []
        if self.rewards.weights is not None and self.serve.policy_tokenizer is None:
            found.append(
                "rewards.weights has no effect without serve.policy_tokenizer: POST /get_reward is not served."
            )
        if self.reward.model_name_or_path and not any(part.kind == "preference" for part in self.rewards.components):
            found.append("reward.model_name_or_path has no effect without a `preference` component.")
        if not self.serve.is_loopback:
            found.append(
                f"serve.host: {self.serve.host} is open to other machines, and what they send, the token included, is "
                "not encrypted. Put a proxy with TLS before it wherever the network is not your own."
            )
        return found
