"""`maestro sft`: supervised fine-tuning on prompts and responses, by OpenRLHF."""

from __future__ import annotations

from collections.abc import Sequence

from openrlhf_maestro.config.load import load_config
from openrlhf_maestro.config.sft import SftConfig


def run(argv: Sequence[str]) -> int:
    config = load_config(SftConfig, argv)
    from openrlhf_maestro.trainer.sft import fine_tune

    fine_tune(config)
    return 0
