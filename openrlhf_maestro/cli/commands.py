"""The commands there are. Each is the module `openrlhf_maestro.cli.<name>`, - as _, with `run(argv) -> int`."""

from __future__ import annotations

from dataclasses import dataclass

from openrlhf_maestro.config.evaluate import EvaluateConfig
from openrlhf_maestro.config.fields import Section
from openrlhf_maestro.config.lab import LabConfig
from openrlhf_maestro.config.prepare import PrepareConfig
from openrlhf_maestro.config.schema import MaestroConfig
from openrlhf_maestro.config.serve import ServeConfig
from openrlhf_maestro.config.sft import SftConfig


@dataclass(frozen=True)
class Command:
    """One command: what it does, how it is called, and the configuration it reads, if it reads one.

    `own_help` is the switch with which it does something else, that has no configuration and a help of its own.
    """

    name: str
    summary: str
    usage: str
    config: type[Section] | None = None
    own_help: str | None = None

    @property
    def module(self) -> str:
        return f"openrlhf_maestro.cli.{self.name.replace('-', '_')}"


_CONFIGURED = "[--config FILE.yaml] [--section.option VALUE ...]"

COMMANDS = {
    command.name: command
    for command in (
        Command(
            "prepare",
            "Make prompts, references and splits of a published data set.",
            "--dataset NAME --source PATH_OR_HUB_ID --out DIR [--OPTION VALUE ...]",
            PrepareConfig,
        ),
        Command("train", "Train a policy with several rewards and a Conductor.", _CONFIGURED, MaestroConfig),
        Command("sft", "Fine-tune a model on prompts and responses: the cold start.", _CONFIGURED, SftConfig),
        Command(
            "evaluate",
            "Judge a model's responses, or compare evaluations.",
            f"{_CONFIGURED} | --compare DIR DIR [...]",
            EvaluateConfig,
            own_help="--compare",
        ),
        Command("report", "Write the page of a run, or of several.", "RUN [RUN ...] [--output FILE] [--watch]"),
        Command("lab", "Compare orchestrators and credit rules in a simulated world.", _CONFIGURED, LabConfig),
        Command(
            "weights",
            "Write a Conductor's weights of any prompts and responses.",
            "--conductor DIR --model DIR --input FILE --output FILE [--OPTION VALUE ...]",
        ),
        Command("serve-rewards", "Serve reward components over HTTP.", _CONFIGURED, ServeConfig),
    )
}
